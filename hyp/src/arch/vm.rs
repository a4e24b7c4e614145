//! VMs and vCPUs: what hyp keeps of them, and every change to that.
//!
//! A VM is a slot in a fixed table (its VMID is the slot's number plus one, so there are no VMIDs to
//! run out of or to recycle under somebody's feet), guarded by a lock of its own. Everything that
//! grows with the guest lies in pages that the host donated: stage-2 tables in the VM's pool, a vCPU's
//! registers and FP image in the vCPU's pages. Locks are taken in this order: VM, pool, memory.
//!
//! A vCPU that is loaded belongs to its CPU: the slot only remembers where, and the run path takes no
//! lock.

use super::Lock;
use super::cpu::{Cpu, machine};
use super::frames::{FrameList, Tables, WORST_CASE_TABLES, linear};
use super::mem::memory;
use super::tables::{Stage2, invalidate_local_vcpu, invalidate_vm, vttbr};
use super::world::{El1Context, GuestRegs, PSTATE_EL1H_MASKED, Timer, VirtualGic};
use crate::fp::hw::Image;
use crate::fp::{CpuFp, VcpuFp};
use crate::idregs;
use crate::memory::pages::Page;
use crate::platform::MAX_CPUS;
use arrayvec::ArrayVec;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{
    MAX_PAGES_PER_CALL, Policy, UntrustedIpa, UntrustedPa, UntrustedPages, VM_PAGES, VcpuConfig,
    VcpuIndex, VmConfig, VmHandle, vcpu_pages,
};
use umbra_shared::error::Error;
use umbra_shared::flags::FlagShadowPage;
use umbra_shared::vl::Vq;

/// VMs at a time: with 8-bit VMIDs, less the host's 0, there could be 255.
pub const MAX_VMS: usize = 64;
/// vCPUs of a VM.
pub const MAX_VCPUS: usize = 16;

/// What the guest waits for the host to finish.
///
/// Linux keeps this as flags of the vCPU, among them INCREMENT_PC, which lies inside EXCEPT_MASK on
/// purpose: a vCPU either has an exception pending or is to step over an instruction, and one word says
/// which. A hypervisor that takes its host's word for none of it needs no such overlap: what is open is
/// one value of a type, hyp alone writes it, and stepping over belongs to finishing it. The only flags
/// that host and hyp share are those of [`umbra_shared::flags`], whose words are asserted at compile
/// time to have no bit in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Open {
    /// Nothing.
    #[default]
    Nothing,
    /// An HVC: x0-x3 are the host's to set.
    Hvc,
    /// A load: the register that takes it.
    Read {
        /// Xt; 31 is XZR
        register: u8,
        /// bytes accessed
        bytes: u8,
        /// sign-extend
        sign: bool,
        /// to 64 bits
        wide: bool,
        /// ESR_EL2, for an abort
        esr: u64,
        /// guest address, for an abort
        far: u64,
    },
    /// A store: nothing to write, but the instruction is still to be stepped over.
    Write {
        /// ESR_EL2, for an abort
        esr: u64,
        /// guest address, for an abort
        far: u64,
    },
    /// An access to nothing: tried again, unless the host aborts it.
    Fault {
        /// ESR_EL2, for an abort
        esr: u64,
        /// guest address, for an abort
        far: u64,
    },
    /// The guest can't go on.
    Broken {
        /// ESR_EL2
        esr: u64,
    },
}

/// A vCPU, in the first of its donated pages.
#[derive(Debug)]
#[repr(C)]
pub struct Vcpu {
    /// General-purpose registers.
    pub regs: GuestRegs,
    /// EL1.
    pub el1: El1Context,
    /// Virtual timer.
    pub timer: Timer,
    /// GIC CPU interface.
    pub gic: VirtualGic,
    /// FP.
    pub fp: VcpuFp<Image>,
    /// VMPIDR_EL2.
    pub vmpidr: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// What the last exit left open.
    pub open: Open,
    /// What its ID registers show.
    pub id: idregs::Guest,
    /// Its flag-shadow page.
    pub flags: &'static FlagShadowPage,
}

static_assertions::const_assert!(size_of::<Vcpu>() <= PAGE_SIZE);

#[derive(Debug)]
struct VcpuSlot {
    vcpu: NonNull<Vcpu>,
    flag_page: Page,
    loaded_on: Option<usize>,
}

/// The vCPU loaded on a CPU.
#[derive(Debug)]
pub struct Loaded {
    vcpu: NonNull<Vcpu>,
    slot: usize,
    index: usize,
}

impl Loaded {
    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut Vcpu {
        // SAFETY: a loaded vCPU's pages stay hyp's (a VM with a loaded vCPU can't be torn down), and
        // its slot says that this CPU alone has it.
        unsafe { self.vcpu.as_mut() }
    }
}

#[derive(Debug)]
enum Life {
    Free,
    Alive(ManuallyDrop<Stage2>),
    Dying,
}

#[derive(Debug)]
struct Vm {
    life: Life,
    /// How often the slot was used: makes old handles invalid.
    generation: u64,
    config: VmConfig,
    vcpus: ArrayVec<VcpuSlot, MAX_VCPUS>,
    /// Pages the host has not got back.
    pages_out: u64,
    vttbr: u64,
    /// CNTVOFF_EL2: when it was created.
    clock: u64,
    /// Per CPU, which vCPU ran there last, plus one.
    last_vcpu: [u8; MAX_CPUS],
}

// SAFETY: the pointers lead to donated pages, which every CPU has mapped alike.
unsafe impl Send for Vm {}

static VMS: [Lock<Vm>; MAX_VMS] = [const {
    Lock::new(Vm {
        life: Life::Free,
        generation: 0,
        config: VmConfig { policy: Policy::Lazy, protected: false },
        vcpus: ArrayVec::new_const(),
        pages_out: 0,
        vttbr: 0,
        clock: 0,
        last_vcpu: [0; MAX_CPUS],
    })
}; MAX_VMS];

/// Each VM's free stage-2 tables.
static POOLS: [Lock<FrameList>; MAX_VMS] = [const { Lock::new(FrameList::new()) }; MAX_VMS];

const SLOT_BITS: u32 = 8;

/// Looks a handle up.
fn slot(handle: VmHandle) -> Result<(usize, &'static Lock<Vm>), Error> {
    let number = (handle.0 & ((1 << SLOT_BITS) - 1)) as usize;
    VMS.get(number).map(|vm| (number, vm)).ok_or(Error::BadVm)
}

impl Vm {
    fn check(&self, handle: VmHandle) -> Result<(), Error> {
        let known = handle.0 >> SLOT_BITS == self.generation && !matches!(self.life, Life::Free);
        if known { Ok(()) } else { Err(Error::BadVm) }
    }

    fn stage2(&mut self) -> Result<&mut Stage2, Error> {
        match &mut self.life {
            Life::Alive(stage2) => Ok(stage2),
            Life::Dying => Err(Error::Dying),
            Life::Free => Err(Error::BadVm),
        }
    }
}

/// Takes pages over for a VM's pool.
fn donate_tables(number: usize, pages: UntrustedPages) -> Result<(), Error> {
    if pages.count > MAX_PAGES_PER_CALL {
        return Err(Error::InvalidArgument);
    }
    let mut pool = POOLS[number].lock();
    let mut memory = memory().lock();
    let range = memory.pages.lookup_range(pages.start.0, pages.count)?;
    memory.donate_to_vm(range, number as u8)?;
    for page in range.pages() {
        // SAFETY: the page has just become hyp's for this VM and is mapped.
        unsafe { pool.push(page.pa()) };
    }
    Ok(())
}

/// VM_CREATE.
///
/// # Errors
///
/// TOO_FEW_PAGES, LIMIT, and what is wrong with the pages.
pub fn create(pages: UntrustedPages, config: VmConfig) -> Result<VmHandle, Error> {
    if pages.count < VM_PAGES {
        return Err(Error::TooFewPages);
    }
    for (number, lock) in VMS.iter().enumerate() {
        let mut vm = lock.lock();
        if !matches!(vm.life, Life::Free) {
            continue;
        }
        donate_tables(number, pages)?;
        let stage2 = Stage2::new(Tables(&POOLS[number]), machine().stage2);
        vm.vttbr = vttbr(number as u8 + 1, stage2.root());
        vm.generation += 1;
        vm.life = Life::Alive(ManuallyDrop::new(stage2));
        vm.config = config;
        vm.pages_out = pages.count;
        vm.clock = super::sysreg::read_cntpct_el0();
        vm.last_vcpu = [0; MAX_CPUS];
        return Ok(VmHandle(vm.generation << SLOT_BITS | number as u64));
    }
    Err(Error::Limit)
}

/// VM_TOPUP.
///
/// # Errors
///
/// BAD_VM, DYING, and what is wrong with the pages.
pub fn topup(handle: VmHandle, pages: UntrustedPages) -> Result<(), Error> {
    let (number, lock) = slot(handle)?;
    let mut vm = lock.lock();
    vm.check(handle)?;
    vm.stage2()?;
    donate_tables(number, pages)?;
    vm.pages_out += pages.count;
    Ok(())
}

/// VM_MAP.
///
/// # Errors
///
/// BAD_VM, DYING, BAD_IPA, IPA_IN_USE, NO_TABLES, and what is wrong with the page.
pub fn map(handle: VmHandle, pa: UntrustedPa, ipa: UntrustedIpa) -> Result<(), Error> {
    let (number, lock) = slot(handle)?;
    let mut vm = lock.lock();
    vm.check(handle)?;
    let protected = vm.config.protected;
    let stage2 = vm.stage2()?;
    if !ipa.0.is_multiple_of(PAGE_SIZE as u64) {
        return Err(Error::Unaligned);
    }
    if ipa.0 >> machine().stage2.ipa_bits != 0 {
        return Err(Error::BadIpa);
    }
    if stage2.lookup(ipa.0).is_some() {
        return Err(Error::IpaInUse);
    }
    if POOLS[number].lock().count() < WORST_CASE_TABLES {
        return Err(Error::NoTables);
    }
    let ready = {
        let mut memory = memory().lock();
        let page = memory.pages.lookup(pa.0)?;
        memory.give_to_guest(page, number as u8, protected)?
    };
    stage2.map_page(ipa.0, ready.pa());
    vm.pages_out += 1;
    Ok(())
}

/// VM_DESTROY: from here on the VM can only be reclaimed.
///
/// # Errors
///
/// BAD_VM, DYING, BUSY.
pub fn destroy(handle: VmHandle) -> Result<(), Error> {
    let (number, lock) = slot(handle)?;
    let mut vm = lock.lock();
    vm.check(handle)?;
    vm.stage2()?;
    if vm.vcpus.iter().any(|v| v.loaded_on.is_some()) {
        return Err(Error::Busy);
    }
    // Nothing of it runs and nothing of it can be loaded again: the tables are dead, and with their
    // last translations gone no walk begins in them. Their pages go back one by one.
    vm.life = Life::Dying;
    invalidate_vm(vm.vttbr);
    POOLS[number].lock().clear();
    let mut memory = memory().lock();
    for vcpu in vm.vcpus.drain(..) {
        memory.pages.unpin_flag_page(vcpu.flag_page);
    }
    Ok(())
}

/// VM_RECLAIM. Returns how many pages are still out.
///
/// # Errors
///
/// BAD_VM, NOT_DYING, NOT_OWNED, and what is wrong with the address.
pub fn reclaim(handle: VmHandle, pa: UntrustedPa) -> Result<u64, Error> {
    let (number, lock) = slot(handle)?;
    let mut vm = lock.lock();
    vm.check(handle)?;
    if !matches!(vm.life, Life::Dying) {
        return Err(Error::NotDying);
    }
    {
        let mut memory = memory().lock();
        let page = memory.pages.lookup(pa.0)?;
        memory.reclaim(page, number as u8)?;
    }
    vm.pages_out -= 1;
    if vm.pages_out == 0 {
        vm.life = Life::Free;
    }
    Ok(vm.pages_out)
}

/// VCPU_CREATE.
///
/// # Errors
///
/// BAD_VM, DYING, LIMIT, NO_SVE, BAD_VL, TOO_FEW_PAGES, BUSY or NOT_SHARED for the flag-shadow page,
/// and what is wrong with the pages.
pub fn create_vcpu(config: &VcpuConfig) -> Result<VcpuIndex, Error> {
    let (number, lock) = slot(config.vm)?;
    let mut vm = lock.lock();
    vm.check(config.vm)?;
    vm.stage2()?;
    if vm.vcpus.is_full() {
        return Err(Error::Limit);
    }
    let vq = guest_vq(config.vl_bytes)?;
    if config.pages.count != vcpu_pages(vq) {
        return Err(if config.pages.count < vcpu_pages(vq) {
            Error::TooFewPages
        } else {
            Error::InvalidArgument
        });
    }
    if !config.entry.is_multiple_of(4) {
        return Err(Error::InvalidArgument);
    }
    let mut memory = memory().lock();
    let range = memory.pages.lookup_range(config.pages.start.0, config.pages.count)?;
    let flag_page = memory.pages.lookup(config.flag_page.0)?;
    // All that can fail on the donated pages is asked before the flag page is pinned.
    memory.pages.check_donation(range)?;
    let flags = memory.pin_flag_page(flag_page)?;
    memory.donate_to_vm(range, number as u8)?;
    drop(memory);

    let base = linear(range.first().pa());
    let image = NonNull::new((base + PAGE_SIZE) as *mut u8).expect("the linear map is not at 0");
    // SAFETY: the pages behind the first are this vCPU's image, zeroed, mapped, and nobody else's.
    let image = unsafe { Image::new(image, (range.count() - 1) * PAGE_SIZE) };
    let index = vm.vcpus.len();
    let vcpu = Vcpu {
        regs: GuestRegs {
            x: {
                let mut x = [0; 31];
                x[0] = config.argument;
                x
            },
            pc: config.entry,
            pstate: PSTATE_EL1H_MASKED,
        },
        el1: El1Context::reset(),
        timer: Timer::with_offset(vm.clock),
        gic: VirtualGic::default(),
        fp: VcpuFp::new(image, vq, vm.config.policy),
        // RES1, and the index as Aff0.
        vmpidr: 1 << 31 | index as u64,
        vttbr: vm.vttbr,
        open: Open::Nothing,
        id: idregs::Guest { sve: vq.is_some(), pa_range: machine().stage2.pa_range },
        flags,
    };
    let place = NonNull::new(base as *mut Vcpu).expect("the linear map is not at 0");
    // SAFETY: the first page is this vCPU's, mapped, zeroed, and large enough.
    unsafe { place.write(vcpu) };
    vm.vcpus.push(VcpuSlot { vcpu: place, flag_page, loaded_on: None });
    vm.pages_out += config.pages.count;
    Ok(VcpuIndex(index as u64))
}

/// The clamp for a guest that asks for `vl_bytes`.
fn guest_vq(vl_bytes: u64) -> Result<Option<Vq>, Error> {
    if vl_bytes == 0 {
        return Ok(None);
    }
    let common = machine().lengths.common;
    if common.is_empty() {
        return Err(Error::NoSve);
    }
    match Vq::from_vl(vl_bytes) {
        Some(vq) if common.contains(vq) => Ok(Some(vq)),
        _ => Err(Error::BadVl),
    }
}

/// VCPU_LOAD.
///
/// # Errors
///
/// BUSY (another is loaded here, or it is loaded elsewhere), BAD_VM, BAD_VCPU, DYING, VL_MISMATCH.
pub fn load(cpu: &mut Cpu, handle: VmHandle, index: VcpuIndex) -> Result<(), Error> {
    if cpu.loaded.is_some() {
        return Err(Error::Busy);
    }
    let (number, lock) = slot(handle)?;
    let mut vm = lock.lock();
    vm.check(handle)?;
    vm.stage2()?;
    let index = usize::try_from(index.0).map_err(|_| Error::BadVcpu)?;
    let vm_vttbr = vm.vttbr;
    let vcpu = vm.vcpus.get_mut(index).ok_or(Error::BadVcpu)?;
    if vcpu.loaded_on.is_some() {
        return Err(Error::Busy);
    }
    let mut loaded = Loaded { vcpu: vcpu.vcpu, slot: number, index };
    CpuFp::check_load(&loaded.vcpu().fp, machine().lengths.guests(cpu.shared.vqs()))?;
    vcpu.loaded_on = Some(cpu.index);
    let last = &mut vm.last_vcpu[cpu.index];
    let this = index as u8 + 1;
    if *last != this {
        if *last != 0 {
            invalidate_local_vcpu(vm_vttbr);
        }
        *last = this;
    }
    cpu.loaded = Some(loaded);
    Ok(())
}

/// VCPU_PUT.
///
/// # Errors
///
/// NOT_LOADED.
pub fn put(cpu: &mut Cpu) -> Result<(), Error> {
    let mut loaded = cpu.loaded.take().ok_or(Error::NotLoaded)?;
    let vcpu = loaded.vcpu();
    let flags = cpu.fp.put(&mut cpu.hw, &mut vcpu.fp, &cpu.shared.stats);
    vcpu.flags.publish(flags);
    VMS[loaded.slot].lock().vcpus[loaded.index].loaded_on = None;
    Ok(())
}
