//! The kernel's own address space.
//!
//! The boot assembly leaves the image mapped writable and executable in one piece. [`init`] builds
//! what it is to be ([`layout`](super::layout)): text executable, constants read-only, data writable, a
//! hole below each stack, all RAM at [`LINEAR`], the devices at [`DEVICES`]; and changes over by way of an empty table, because
//! the same addresses change block size. Nothing is mapped afterwards, so no table changes while live.

use super::{
    MAX_CPUS,
    layout::{DEVICES, ECAM, KERNEL, LINEAR, STACK_SLOT, WINDOW},
    machine::Machine,
    sysreg,
    sysreg::msr,
};
use aarch64_paging::{
    descriptor::{El1Attributes, PhysicalAddress},
    paging::{Constraints, El1And0, MemoryRegion, PageTable, RootTable, Translation, VaRange},
};
use core::{
    arch::asm,
    ops::Range,
    ptr::NonNull,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};
use umbra_shared::PAGE_SIZE;

pub use super::layout::linear;

/// Attribute 0: Normal write-back. 1: Device-nGnRE.
pub const MAIR: u64 = 0xff | 0x04 << 8;
/// 39 bits on both sides, 4 KiB granule, walks inner-shareable write-back; IPS is filled in at boot.
pub const TCR: u64 = {
    const WALKS: u64 = 1 << 8 | 1 << 10 | 3 << 12;
    25 | WALKS | 25 << 16 | WALKS << 16 | 0b10 << 30
};
/// TCR_EL1.EPD0: no walks through TTBR0.
const TCR_EPD0: u64 = 1 << 7;
/// RES1 bits (and their modern meanings: SPAN, EIS, EOS, nTLSMD, LSMAOE), M, C, SA, I.
pub const SCTLR: u64 = 0x30d0_0800 | 1 << 12 | 1 << 3 | 1 << 2 | 1;
/// A 2 MiB block, Normal, inner shareable, accessed, not executable at EL0.
pub const BOOT_BLOCK: u64 =
    (El1Attributes::UXN.bits() | NORMAL.bits() | El1Attributes::VALID.bits()) as u64;

const NORMAL: El1Attributes = El1Attributes::ATTRIBUTE_INDEX_0
    .union(El1Attributes::INNER_SHAREABLE)
    .union(El1Attributes::ACCESSED);
const TEXT: El1Attributes =
    NORMAL.union(El1Attributes::VALID).union(El1Attributes::UXN).union(El1Attributes::READ_ONLY);
const DATA: El1Attributes =
    NORMAL.union(El1Attributes::VALID).union(El1Attributes::UXN).union(El1Attributes::PXN);
const RODATA: El1Attributes = DATA.union(El1Attributes::READ_ONLY);
const DEVICE: El1Attributes = El1Attributes::ATTRIBUTE_INDEX_1
    .union(El1Attributes::ACCESSED)
    .union(El1Attributes::VALID)
    .union(El1Attributes::UXN)
    .union(El1Attributes::PXN);

unsafe extern "C" {
    static umbra_image_start: u8;
    static umbra_text_end: u8;
    static umbra_rodata_end: u8;
    static umbra_stacks: u8;
    static umbra_image_end: u8;
    static umbra_boot_tables: u8;
    static umbra_replace_root: u8;
}

/// TTBR1 for secondaries, which read it with their caches off.
// SAFETY: no other symbol of this name exists; the boot assembly declares it as 8 bytes.
#[unsafe(no_mangle)]
static umbra_kernel_root: AtomicU64 = AtomicU64::new(0);

/// Physical address of the image.
static IMAGE: AtomicU64 = AtomicU64::new(0);

pub(super) fn note_image(pa: u64) {
    IMAGE.store(pa, Ordering::Relaxed);
}

/// The physical range of the image with its .bss and stacks.
pub fn image() -> Range<u64> {
    let start = IMAGE.load(Ordering::Relaxed);
    start..start + (&raw const umbra_image_end as usize - KERNEL) as u64
}

/// The physical address of something in the image.
pub fn image_pa(va: usize) -> u64 {
    (va - KERNEL) as u64 + IMAGE.load(Ordering::Relaxed)
}

/// Maps the block around `pa` as a device in the boot window, and says where `pa` is.
pub(super) fn window_device(pa: u64) -> NonNull<u8> {
    const SLOT: usize = 2;
    const BLOCK: u64 = 2 << 20;
    let windows = &raw const umbra_boot_tables as usize + 4 * PAGE_SIZE;
    let entry = (pa & !(BLOCK - 1)) | DEVICE.bits() as u64;
    // SAFETY: the fifth boot table is the level 2 table of the window; this slot of it is invalid so
    // far, so no TLB holds it, and the barriers make it visible to the walker.
    unsafe {
        core::ptr::with_exposed_provenance_mut::<u64>(windows).add(SLOT).write_volatile(entry);
        asm!("dsb ishst", "isb", options(nostack));
    }
    let va = WINDOW + SLOT * BLOCK as usize + (pa & (BLOCK - 1)) as usize;
    NonNull::new(core::ptr::with_exposed_provenance_mut(va)).expect("not zero")
}

const TABLES: usize = 64;

#[repr(C, align(4096))]
struct TablePool([PageTable<El1Attributes>; TABLES]);

/// Zeroed like all of .bss: zero is the empty table.
static mut POOL: core::mem::MaybeUninit<TablePool> = core::mem::MaybeUninit::zeroed();
static POOL_USED: AtomicUsize = AtomicUsize::new(0);

struct ImageTables;

impl ImageTables {
    fn take() -> (NonNull<PageTable<El1Attributes>>, PhysicalAddress) {
        let n = POOL_USED.fetch_add(1, Ordering::Relaxed);
        assert!(n < TABLES, "the memory map needs more than {TABLES} tables");
        let va = &raw mut POOL as usize + n * PAGE_SIZE;
        let table = NonNull::new(core::ptr::with_exposed_provenance_mut(va)).expect("not zero");
        (table, PhysicalAddress(image_pa(va) as usize))
    }
}

impl Translation<El1Attributes> for ImageTables {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El1Attributes>>, PhysicalAddress) {
        Self::take()
    }

    unsafe fn deallocate_table(&mut self, _: NonNull<PageTable<El1Attributes>>) {
        unreachable!("the kernel's tables are never taken down");
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<El1Attributes>> {
        let va = KERNEL + (pa.0 - IMAGE.load(Ordering::Relaxed) as usize);
        NonNull::new(core::ptr::with_exposed_provenance_mut(va)).expect("not zero")
    }
}

type Root = RootTable<El1And0, ImageTables>;

fn map(root: &mut Root, va: Range<usize>, pa: u64, attributes: El1Attributes) {
    if va.is_empty() {
        return;
    }
    let region = MemoryRegion::new(va.start, va.end);
    root.map_range(
        &region,
        PhysicalAddress(pa as usize),
        attributes,
        Constraints::NO_CONTIGUOUS_HINT,
    )
    .unwrap_or_else(|error| panic!("mapping {region}: {error}"));
}

fn map_image(root: &mut Root) {
    let at = |symbol: *const u8| symbol as usize;
    let mut part = |range: Range<usize>, attributes| {
        let pa = image_pa(range.start);
        map(root, range, pa, attributes);
    };
    let start = at(&raw const umbra_image_start);
    let text_end = at(&raw const umbra_text_end);
    let rodata_end = at(&raw const umbra_rodata_end);
    let stacks = at(&raw const umbra_stacks);
    part(start..text_end, TEXT);
    part(text_end..rodata_end, RODATA);
    part(rodata_end..stacks, DATA);
    for slot in 0..MAX_CPUS {
        let slot = stacks + slot * STACK_SLOT;
        part(slot + STACK_SLOT / 2..slot + STACK_SLOT, DATA);
    }
}

/// Builds the kernel's tables and changes over to them.
pub(super) fn init(machine: &Machine) {
    let mut root = Root::with_va_range(ImageTables, 1, El1And0, VaRange::Upper);
    map_image(&mut root);
    for ram in &machine.ram {
        let va = LINEAR + ram.start as usize..LINEAR + ram.end as usize;
        map(&mut root, va, ram.start, DATA);
    }
    for registers in machine.devices() {
        let page = PAGE_SIZE as u64;
        let (start, end) = (registers.start & !(page - 1), registers.end.next_multiple_of(page));
        let va = DEVICES + start as usize..DEVICES + end as usize;
        map(&mut root, va, start, DEVICE);
    }
    if let Some(pcie) = &machine.masters.pcie {
        let range = &pcie.ecam.range;
        let va = ECAM..ECAM + (range.end - range.start) as usize;
        map(&mut root, va, range.start, DEVICE);
    }
    let pa = root.to_physical().0 as u64;
    // The tables live as long as the kernel.
    core::mem::forget(root);
    let (_, empty) = ImageTables::take();
    let replace = image_pa(&raw const umbra_replace_root as usize);
    // SAFETY: the new tables map this code, its data and its stack as the boot tables do, and were
    // never live before; the routine runs from the identity map while TTBR1 has nothing in it.
    unsafe {
        asm!(
            "dsb ishst",
            "blr {replace}",
            replace = in(reg) replace,
            in("x0") pa,
            in("x1") empty.0,
            out("x30") _,
            options(nostack),
        );
    }
    umbra_kernel_root.store(pa, Ordering::Relaxed);
    sysreg::clean_to_poc(&raw const umbra_kernel_root as usize, 8);
}

/// Closes TTBR0, which the boot code ran through.
pub(super) fn drop_identity_map() {
    let tcr = sysreg::mrs!("tcr_el1") | TCR_EPD0;
    // SAFETY: nothing of the kernel lies below the top of the address space; stale translations go.
    unsafe {
        msr!("tcr_el1", tcr);
        asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack));
    }
}
