//! VMs and vCPUs on this machine: what the decisions of [`crate::vm::life`] are put into effect with.
//!
//! Each VM's slot is guarded by a lock of its own (the order of locks is in [`crate`]'s description). A
//! vCPU that is loaded belongs to its CPU: the slot only remembers where, and the run path takes no
//! lock.

use crate::arch::end;
use crate::arch::log;
use crate::arch::stats::Stats;
use crate::arch::{Lock, LockGuard};
use crate::fp::CpuFp;
use crate::fp::hw::{Cpu as FpCpu, Image};
use crate::machine::{Shared, machine};
use crate::memory::frames::{FrameList, Tables, WORST_CASE_TABLES, linear};
use crate::memory::handover::Ready;
use crate::memory::hw;
use crate::memory::pages::{PageRange, Pages, VmId};
use crate::memory::stage2::{Entry, Mark, Stage2};
use crate::memory::tables::{Stage2Tables, Tlbs};
use crate::vm::features::check_features;
use crate::vm::hardware::{self, Boot, Machine, NewVcpu, There};
use crate::vm::life;
use crate::vm::power::Affinity;
use crate::vm::vcpu::{self, Open, Vcpu};
use crate::world::features::Name;
use arm_psci::ErrorCode;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{
    BLOCK_PAGES, MAX_VMS, Policy, Start, UntrustedIpa, UntrustedPages, VcpuConfig, VcpuIndex,
    VmConfig, VmHandle,
};
use umbra_shared::error::Error;
use umbra_shared::register::{Register, UntrustedRegister};
use umbra_shared::vcpu::VcpuFeatures;
use umbra_shared::vl::VqSet;

mod asked;
pub use asked::*;

const PAGE: u64 = PAGE_SIZE as u64;

/// A vCPU's place in its donated pages: in the first of them.
#[derive(Clone, Copy, Debug)]
pub struct Place(NonNull<Vcpu>);

// SAFETY: it leads to donated pages, which every CPU has mapped alike; who may use them is decided by
// the slot that it is kept in.
unsafe impl Send for Place {}

/// The vCPU loaded on a CPU.
#[derive(Debug)]
pub struct Loaded {
    vcpu: Place,
    stopped: &'static AtomicBool,
    vm: VmId,
    index: usize,
}

impl Loaded {
    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut Vcpu {
        // SAFETY: a loaded vCPU's pages stay hyp's (a VM with a loaded vCPU can't be torn down), and
        // its slot says that this CPU alone has it.
        unsafe { self.vcpu.0.as_mut() }
    }

    /// Whether it runs no more.
    #[inline]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Its number in the VM.
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Its VM's number.
    pub const fn vm(&self) -> VmId {
        self.vm
    }

    /// Both numbers as the log has them.
    pub const fn name(&self) -> u64 {
        (self.vm as u64 + 1) | ((self.index as u64) << 8)
    }
}

/// A VM's stage 2.
#[derive(Debug)]
pub struct VmTables {
    /// Dropped by nobody: its pages go back to the host one by one.
    stage2: ManuallyDrop<Stage2<Stage2Tables>>,
}

// SAFETY: the raw table pointers inside lead to the VM's pool, which every CPU has mapped alike.
unsafe impl Send for VmTables {}

type Vm = life::Vm<VmTables, Place>;

static VMS: [Lock<Vm>; MAX_VMS] = [const { Lock::new(Vm::new()) }; MAX_VMS];

/// Each VM's free stage-2 tables.
static POOLS: [Lock<FrameList>; MAX_VMS] = [const { Lock::new(FrameList::new()) }; MAX_VMS];

impl hardware::Memory for hw::Memory {
    fn pages(&mut self) -> &mut Pages<'static> {
        &mut self.pages
    }

    fn set_junk(&mut self, vm: VmId, junk: bool) {
        self.junk.set(vm, junk);
    }
}

/// How often something was taken from a VM's stage 2: the rest of a block is missing meanwhile, too.
static BROKEN: [AtomicU32; MAX_VMS] = [const { AtomicU32::new(0) }; MAX_VMS];

/// This machine.
struct Target;

impl Machine for Target {
    type Memory = hw::Memory;
    type Tables = VmTables;
    type Vcpu = Place;

    fn memory<R>(&self, f: impl FnOnce(&mut hw::Memory) -> R) -> R {
        hw::with(f)
    }

    fn ipa_bits(&self) -> u32 {
        machine().stage2.ipa_bits
    }

    fn alias_bit(&self) -> u64 {
        machine().stage2.alias_bit()
    }

    fn guest_vqs(&self) -> VqSet {
        machine().lengths.common
    }

    fn guest_svqs(&self) -> VqSet {
        machine().streaming.common
    }

    fn aarch32(&self) -> bool {
        machine().features.has(Name::Aarch32)
    }

    fn protects(&self) -> bool {
        machine().protects
    }

    fn protected_policy(&self) -> Policy {
        machine().protected_policy
    }

    fn now(&self) -> u64 {
        crate::arch::sysreg::read_cntpct_el0()
    }

    fn add_tables(&self, vm: VmId, pages: PageRange) {
        let mut pool = POOLS[usize::from(vm)].lock();
        for page in pages.pages() {
            // SAFETY: the page has just become hyp's for this VM, is mapped, and nobody uses it.
            unsafe { pool.push(page.pa()) };
        }
    }

    fn tables_left(&self, vm: VmId) -> usize {
        POOLS[usize::from(vm)].lock().count()
    }

    fn tables_for_one(&self) -> usize {
        WORST_CASE_TABLES
    }

    fn new_tables(&self, vm: VmId) -> VmTables {
        let mut tables = Stage2Tables::new(Tables(&POOLS[usize::from(vm)]), machine().stage2);
        if machine().features.has(Name::Fwb) {
            tables = tables.forcing_write_back();
        }
        VmTables { stage2: ManuallyDrop::new(tables.with_vmid(vm + 1)) }
    }

    fn drop_tables(&self, vm: VmId, tables: VmTables) {
        end::stage2_root(vm + 1, 0);
        tables.stage2.forget_all(&Tlbs);
        POOLS[usize::from(vm)].lock().clear();
    }

    fn lookup(&self, tables: &VmTables, ipa: u64) -> There {
        match tables.stage2.entry(ipa) {
            Entry::Nothing => There::Nothing,
            Entry::Marked(Mark::Enrolled) => There::Device,
            Entry::Marked(Mark::Aliased) => There::Aliased,
            Entry::Leaf(leaf) => There::Memory(leaf.pa + (ipa - leaf.ipa)),
        }
    }

    fn block_pages(&self) -> u64 {
        BLOCK_PAGES
    }

    fn is_free(&self, tables: &VmTables, ipa: u64, count: u64) -> bool {
        tables.stage2.is_free(ipa, count * PAGE)
    }

    fn run(&self, tables: &VmTables, ipa: u64, count: u64) -> Option<(u64, u64)> {
        tables.stage2.run(ipa, count * PAGE)
    }

    fn tables_to_unmap(&self, tables: &VmTables, ipa: u64, count: u64) -> usize {
        usize::from(tables.stage2.cuts_a_block(ipa, count * PAGE))
    }

    fn map(&self, tables: &mut VmTables, ipa: u64, ready: Ready) {
        let pages = ready.pages();
        tables.stage2.map(&Tlbs, ipa, pages.start(), pages.bytes());
    }

    fn unmap(&self, tables: &mut VmTables, ipa: u64, count: u64) {
        // Before a walk can miss what is still the guest's ([`is_there_again`]).
        let vm = usize::from(tables.stage2.vttbr().vmid() - 1);
        BROKEN[vm].fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        tables.stage2.unmap(&Tlbs, ipa, count * PAGE);
    }

    fn new_vcpu(&self, tables: &VmTables, new: &NewVcpu) -> Place {
        let base = linear(new.pages.first().pa());
        let image =
            NonNull::new((base + PAGE_SIZE) as *mut u8).expect("the linear map is not at 0");
        // SAFETY: the pages behind the first are this vCPU's image, zeroed, mapped, and nobody else's.
        let image = unsafe { Image::new(image, new.features.storage()) };
        let vttbr = tables.stage2.vttbr();
        let broken = BROKEN[usize::from(vttbr.vmid() - 1)].load(Ordering::SeqCst);
        let vcpu = Vcpu::new(new, image, vttbr, broken);
        let place = NonNull::new(base as *mut Vcpu).expect("the linear map is not at 0");
        // SAFETY: the first page is this vCPU's, mapped, zeroed, and large enough.
        unsafe { place.write(vcpu) };
        Place(place)
    }

    fn enrol(&self, tables: &mut VmTables, ipa: u64) {
        tables.stage2.mark(ipa, Mark::Enrolled);
    }

    fn hide(&self, tables: &mut VmTables, ipa: u64) {
        tables.stage2.mark(ipa, Mark::Aliased);
    }

    fn unhide(&self, tables: &mut VmTables, ipa: u64) {
        tables.stage2.unmark(ipa);
    }

    fn next_hidden(&self, tables: &VmTables, ipa: u64, count: u64) -> Option<u64> {
        tables.stage2.find(ipa, count * PAGE, Mark::Aliased)
    }

    fn is_broken(&self, place: &Place) -> bool {
        // SAFETY: it is loaded nowhere, and the slot's lock is held, as `life` promises: nobody writes it.
        matches!(unsafe { place.0.as_ref() }.open, Open::Broken { .. })
    }

    fn reset_vcpu(&self, place: &Place, boot: Boot) {
        let mut place = *place;
        // SAFETY: it is loaded nowhere, and the slot's lock is held, as `life` promises: nobody else uses it.
        let vcpu = unsafe { place.0.as_mut() };
        vcpu.fp.reset(Image::wipe);
        vcpu.begin(boot);
    }

    fn set_stopped(&self, vm: VmId, index: usize, stopped: bool) {
        vcpu::stopped(vm, index).store(stopped, Ordering::Relaxed);
    }

    fn forget_sibling(&self, tables: &VmTables) {
        tables.stage2.forget_sibling(&Tlbs);
    }
}

/// A VM's slot.
fn lock(vm: VmId) -> LockGuard<'static, Vm> {
    let guard = VMS[usize::from(vm)].lock();
    log::locked();
    guard
}

/// The slot that a handle names.
fn slot(handle: VmHandle) -> Result<LockGuard<'static, Vm>, Error> {
    life::slot(handle).map(lock)
}

/// VM_CREATE.
///
/// # Errors
///
/// LIMIT, and those of [`life::Vm::create`].
pub fn create(pages: UntrustedPages, config: VmConfig) -> Result<VmHandle, Error> {
    for number in 0..MAX_VMS as VmId {
        let mut vm = lock(number);
        if vm.is_free() {
            return vm.create(&Target, number, pages, config);
        }
    }
    Err(Error::Limit)
}

/// VM_TOPUP.
///
/// # Errors
///
/// Those of [`life::Vm::topup`].
pub fn topup(handle: VmHandle, pages: UntrustedPages) -> Result<(), Error> {
    slot(handle)?.topup(&Target, handle, pages)
}

/// VM_MAP. Returns how many pages are in place.
///
/// # Errors
///
/// Those of [`life::Vm::map`].
pub fn map(handle: VmHandle, pages: UntrustedPages, ipa: UntrustedIpa) -> Result<u64, Error> {
    slot(handle)?.map(&Target, handle, pages, ipa)
}

/// VM_UNMAP. Returns the first page's address, and how many.
///
/// # Errors
///
/// Those of [`life::Vm::unmap`].
pub fn unmap(handle: VmHandle, ipa: UntrustedIpa, count: u64) -> Result<(u64, u64), Error> {
    slot(handle)?.unmap(&Target, handle, ipa, count)
}

/// VM_SEAL.
///
/// # Errors
///
/// Those of [`life::Vm::seal`].
pub fn seal(handle: VmHandle) -> Result<(), Error> {
    slot(handle)?.seal(handle)
}

/// VM_LOOKUP. Returns the page, and whether the host has access to it.
///
/// # Errors
///
/// Those of [`life::Vm::find`].
pub fn find(handle: VmHandle, ipa: UntrustedIpa) -> Result<(u64, bool), Error> {
    slot(handle)?.find(&Target, handle, ipa)
}

/// VM_DESTROY.
///
/// # Errors
///
/// Those of [`life::Vm::destroy`].
pub fn destroy(handle: VmHandle) -> Result<(), Error> {
    slot(handle)?.destroy(&Target, handle)
}

/// VM_RECLAIM. Returns how many pages are still out, and how many came back.
///
/// # Errors
///
/// Those of [`life::Vm::reclaim`].
pub fn reclaim(handle: VmHandle, pages: UntrustedPages) -> Result<(u64, u64), Error> {
    slot(handle)?.reclaim(&Target, handle, pages)
}

/// What a vCPU would have, if that much of the call can be done.
pub fn needs(config: &VcpuConfig) -> Option<VcpuFeatures> {
    check_features(&Target, config.features).ok()
}

/// VCPU_CREATE.
///
/// # Errors
///
/// Those of [`life::Vm::create_vcpu`].
pub fn create_vcpu(config: &VcpuConfig) -> Result<(), Error> {
    slot(config.vm)?.create_vcpu(&Target, config)
}

/// VCPU_LOAD on this CPU, which has nothing loaded.
///
/// # Errors
///
/// VL_MISMATCH or NO_AARCH32 if this CPU lacks what the vCPU has, and those of [`life::Vm::load`].
pub fn load(cpu: usize, has: &Shared, handle: VmHandle, index: VcpuIndex) -> Result<Loaded, Error> {
    let number = life::slot(handle)?;
    let mut vm = slot(handle)?;
    let vqs = machine().lengths.guests(has.vqs());
    let svqs = machine().streaming.guests(has.svqs());
    let (&vcpu, index) = vm.load(&Target, handle, index, cpu, |&vcpu| {
        // SAFETY: it is loaded nowhere, and the slot's lock is held: nobody else uses it.
        let vcpu = unsafe { vcpu.0.as_ref() };
        // A CPU that came late may be another than those which were asked at boot.
        let missing = machine().features.relied_on_by(vcpu.features).less(has.features());
        if !missing.is_empty() {
            let aarch32 = missing.has(Name::Aarch32);
            return Err(if aarch32 { Error::NoAarch32 } else { Error::VlMismatch });
        }
        vcpu.fp.check_load(vqs, svqs)
    })?;
    let stopped = vcpu::stopped(number, index);
    let mut loaded = Loaded { vcpu, stopped, vm: number, index };
    let vcpu = loaded.vcpu();
    vcpu.gic.load();
    if vcpu.is_aarch32() {
        vcpu.aarch32.load();
    }
    Ok(loaded)
}

/// VCPU_PUT of what was loaded here.
#[inline]
pub fn put(mut loaded: Loaded, fp: &mut CpuFp<Image>, hw: &mut FpCpu, stats: &Stats) {
    let vcpu = loaded.vcpu();
    let flags = fp.put(hw, &mut vcpu.fp, stats);
    vcpu.flags.publish(flags);
    vcpu.gic.put();
    if vcpu.is_aarch32() {
        vcpu.aarch32.put();
    }
    lock(loaded.vm).put(loaded.index);
}

/// What is at an address of a guest of this VM.
pub fn lookup(vm: VmId, ipa: u64) -> There {
    lock(vm).lookup(&Target, ipa)
}

/// Whether memory is there all the same that the vCPU has just missed: it was the rest of a block that was being
/// broken. Asked of the VM's tables only if anything was taken from them since the vCPU last asked; whoever takes
/// something holds the slot's lock until the rest is there again.
pub fn is_there_again(vcpu: &mut Vcpu, vm: VmId, ipa: u64) -> bool {
    // The walk that missed came before what is read here.
    fence(Ordering::SeqCst);
    let broken = BROKEN[usize::from(vm)].load(Ordering::SeqCst);
    if core::mem::replace(&mut vcpu.broken, broken) == broken {
        return false;
    }
    matches!(lookup(vm, ipa & !(PAGE - 1)), There::Memory(_))
}

/// VCPU_RESET.
///
/// # Errors
///
/// Those of [`life::Vm::reset_vcpu`].
pub fn reset_vcpu(handle: VmHandle, index: VcpuIndex, start: Start) -> Result<(), Error> {
    slot(handle)?.reset_vcpu(&Target, handle, index, start)
}

/// VCPU_READ.
///
/// # Errors
///
/// BAD_REGISTER, and those of [`life::Vm::registers`].
pub fn read_register(
    handle: VmHandle,
    index: VcpuIndex,
    register: UntrustedRegister,
) -> Result<[u64; 2], Error> {
    if register.decode() == Some(Register::Power) {
        return slot(handle)?.power(handle, index).map(|on| [on.into(), 0]);
    }
    with_unloaded(handle, index, |vcpu| vcpu.read(register))
}

/// VCPU_WRITE.
///
/// # Errors
///
/// BAD_REGISTER, INVALID_ARGUMENT for a value that the register can't have, and those of [`life::Vm::registers`].
pub fn write_register(
    handle: VmHandle,
    index: VcpuIndex,
    register: UntrustedRegister,
    value: [u64; 2],
) -> Result<(), Error> {
    if register.decode() != Some(Register::Power) {
        return with_unloaded(handle, index, |vcpu| vcpu.write(register, value));
    }
    let mut vm = slot(handle)?;
    match value {
        [on @ (0 | 1), 0] => vm.set_power(&Target, handle, index, on != 0),
        _ => vm.registers(handle, index).and(Err(Error::InvalidArgument)),
    }
}

/// A normal VM's vCPU that is loaded nowhere.
fn with_unloaded<R>(
    handle: VmHandle,
    index: VcpuIndex,
    f: impl FnOnce(&mut Vcpu) -> Result<R, Error>,
) -> Result<R, Error> {
    let mut vm = slot(handle)?;
    let mut place = *vm.registers(handle, index)?;
    // SAFETY: it is loaded nowhere, and the slot's lock is held until `f` is done: nobody else uses it.
    f(unsafe { place.0.as_mut() })
}

/// CPU_ON by a guest of this VM. Returns the number of the vCPU that can be loaded now.
///
/// # Errors
///
/// Those of [`life::Vm::cpu_on`].
pub fn cpu_on(vm: VmId, target: u64, boot: Boot) -> Result<usize, ErrorCode> {
    lock(vm).cpu_on(&Target, target, boot)
}

/// CPU_OFF by the vCPU with this number, which is loaded here.
pub fn cpu_off(vm: VmId, index: usize) {
    lock(vm).cpu_off(&Target, vm, index);
}

/// AFFINITY_INFO by a guest of this VM.
///
/// # Errors
///
/// Those of [`life::Vm::affinity_info`].
pub fn affinity_info(vm: VmId, target: u64) -> Result<Affinity, ErrorCode> {
    lock(vm).affinity_info(target)
}

/// SYSTEM_OFF, SYSTEM_RESET or SYSTEM_RESET2 by a guest of this VM: the end of a protected one.
pub fn end(vm: VmId) {
    lock(vm).end(&Target, vm);
}
