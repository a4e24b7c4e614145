//! All of physical memory, as the host would map it if it meant ill.
//!
//! The kernel's linear map covers what the device tree calls memory, and hyp's is not among it. Here
//! the lower half of the address space becomes an identity map of everything, in 1 GiB blocks, on the
//! calling CPU and for as long as a closure runs.

use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering},
};
use umbra_host::kernel::{
    exception::{Fault, probe_read_virtual, probe_write_virtual},
    mmu, sysreg,
};

/// Gigabytes mapped.
const BLOCKS: usize = 8;
/// Normal memory (attribute 0), inner shareable, accessed: a block.
const BLOCK: u64 = 1 << 10 | 3 << 8 | 1;
const UXN: u64 = 1 << 54;
const PXN: u64 = 1 << 53;
/// AP\[1\]: EL0's, too.
const USER: u64 = 1 << 6;

/// What may be done through the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    /// Read and write, at EL1.
    Data,
    /// Execute as well, at EL1.
    Code,
    /// Everything, at EL0.
    User,
}

impl Pane {
    const fn block(self) -> u64 {
        match self {
            Self::Data => BLOCK | UXN | PXN,
            Self::Code => BLOCK | UXN,
            Self::User => BLOCK | PXN | USER,
        }
    }
}

/// TCR_EL1.EPD0.
const EPD0: u64 = 1 << 7;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static TABLE: Table = Table([const { AtomicU64::new(0) }; 512]);

/// The open window.
pub struct Window(());

impl Window {
    /// Reads 8 bytes at a physical address.
    pub fn read(&self, pa: u64) -> Result<u64, Fault> {
        probe_read_virtual(pa)
    }

    /// Writes 8 bytes at a physical address.
    ///
    /// # Safety
    ///
    /// If the memory is the kernel's, it must not be in use.
    pub unsafe fn write(&self, pa: u64, value: u64) -> Result<(), Fault> {
        // SAFETY: the window maps the address onto itself; the caller answers for the rest.
        unsafe { probe_write_virtual(pa, value) }
    }
}

/// Opens the window while `f` runs. If `f` panics it stays open, which harms nobody.
pub fn open<R>(f: impl FnOnce(&Window) -> R) -> R {
    open_as(Pane::Data, f)
}

/// The same for something else than data. All CPUs have one table: only one may use it.
pub fn open_as<R>(pane: Pane, f: impl FnOnce(&Window) -> R) -> R {
    for (n, entry) in TABLE.0.iter().take(BLOCKS).enumerate() {
        entry.store((n as u64) << 30 | pane.block(), Ordering::Relaxed);
    }
    open_by(mmu::image_pa(TABLE.0.as_ptr() as usize), f)
}

/// The lower half of addresses as the table at this physical address has it.
pub fn open_by<R>(root: u64, f: impl FnOnce(&Window) -> R) -> R {
    let tcr: u64;
    // SAFETY: reads TCR_EL1.
    unsafe { asm!("mrs {}, tcr_el1", out(reg) tcr, options(nostack)) };
    set(root, tcr & !EPD0);
    let result = f(&Window(()));
    set(0, tcr | EPD0);
    result
}

fn set(ttbr0: u64, tcr: u64) {
    let daif = sysreg::mask_interrupts();
    // SAFETY: the kernel has nothing in the lower half of the address space; its own half stays as it
    // is.
    unsafe {
        asm!(
            "dsb ishst",
            "msr ttbr0_el1, {}",
            "msr tcr_el1, {}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            in(reg) ttbr0,
            in(reg) tcr,
            options(nostack)
        );
    }
    sysreg::restore_interrupts(daif);
}
