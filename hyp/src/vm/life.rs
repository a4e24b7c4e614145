//! VMs and vCPUs: what is decided about them, and when.
//!
//! A VM is a slot in a fixed table; its VMID is the slot's number plus one, so there are no VMIDs to
//! run out of or to recycle under somebody's feet. Everything that grows with the guest lies in pages
//! that the host donated: stage-2 tables in the VM's pool, a vCPU's registers and FP image in the
//! vCPU's pages.
//!
//! Here are the decisions alone: which call is refused and why, and in which order things happen
//! once nothing can fail any more. What is done to the machine is behind [`Machine`]: page tables, TLBs
//! and memory on the target (`vm::slots`), a machine in a vector in the tests. Whoever calls a method
//! of [`Vm`] holds that VM's lock; the locks behind [`Machine`] are taken after it.
//!
//! ```text
//!          VM_CREATE             VM_DESTROY, no vCPU loaded          the last page is reclaimed
//!   Free ------------> Alive ----------------------------------> Dying ----------------------> Free
//!                        |  VM_DESTROY, some vCPU loaded: BUSY     ^
//!                        +------> Alive, closing ------------------+ VM_DESTROY again, all put
//! ```
//!
//! A protected VM that is alive is first built: the host gives it its payload, page by page with their content,
//! and all its vCPUs. VM_SEAL ends that, for good; before it nothing of the VM runs, after it nothing of the
//! host's choosing gets in. A normal VM knows no seal.
//!
//! Which of its vCPUs are on is in [`super::power`], what its host does to its memory in [`super::ranges`], what a
//! guest does to its own in [`super::calls`] and [`super::rsi`].

#![forbid(unsafe_code)]

use super::features::{check_features, check_start};
use super::hardware::{Boot, Machine, Memory as _, NewVcpu};
use super::measurement::Measurements;
use super::ripas::Ram;
use crate::arch::MAX_CPUS;
use crate::memory::handover;
use crate::memory::pages::{Page, VmId};
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{
    MAX_PAGES_PER_CALL, MAX_VCPUS, MAX_VMS, Start, UntrustedIpa, UntrustedPages, VM_PAGES,
    VcpuConfig, VcpuIndex, VmConfig, VmHandle,
};
use umbra_shared::error::Error;
use umbra_shared::measurement::Record;
use umbra_shared::vcpu::VcpuFeatures;

/// Bits of a handle that are the slot's number; the rest counts how often the slot was used.
const SLOT_BITS: u32 = 8;

/// A vCPU's power state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It may run.
    On,
    /// It has been turned on and begins anew when it is loaded.
    Pending(Boot),
    /// It may not.
    Off,
}

impl Power {
    /// That of a new one.
    pub(super) const fn of(start: Start) -> Self {
        match start {
            Start::At { .. } => Self::On,
            Start::Off => Self::Off,
        }
    }
}

#[derive(Debug)]
pub(super) struct VcpuSlot<V> {
    pub(super) vcpu: V,
    pub(super) features: VcpuFeatures,
    pub(super) power: Power,
    /// Aff2, Aff1 and Aff0: no sibling has the same.
    pub(super) affinity: u32,
    flag_page: Page,
    pub(super) loaded_on: Option<usize>,
}

#[derive(Debug)]
pub(super) enum Life<T> {
    Free,
    Alive(T),
    Dying,
}

/// By which interface a protected guest deals with its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// KVM's vendor-specific calls.
    Kvm,
    /// RSI.
    Rsi,
}

/// A VM's slot.
#[derive(Debug)]
pub struct Vm<T, V> {
    pub(super) life: Life<T>,
    /// Its end has been asked for while vCPUs were loaded.
    closing: bool,
    /// How often the slot was used: makes old handles invalid.
    generation: u64,
    pub(super) config: VmConfig,
    /// A protected VM is built no more: nothing of the host's choosing gets in.
    pub(super) sealed: bool,
    /// A protected VM has turned itself off: it runs no more.
    pub(super) ended: bool,
    /// By index.
    pub(super) vcpus: [Option<VcpuSlot<V>>; MAX_VCPUS],
    /// Pages the host has not got back.
    pub(super) pages_out: u64,
    /// When it was created.
    clock: u64,
    /// Per CPU, which vCPU ran there last, plus one.
    last_vcpu: [u8; MAX_CPUS],
    /// Of each vCPU, where the page is in the guest that its host was last told it is about to lose.
    pub(super) told: [u64; MAX_VCPUS],
    /// Pages that are shared at their aliases.
    pub(super) at_aliases: u64,
    /// The interface that a protected guest uses; `None`: neither yet.
    pub(super) interface: Option<Interface>,
    /// What it has said is RAM.
    pub(super) ram: Ram,
    /// What it is measured by, if it is protected.
    pub(super) measurements: Measurements,
}

/// No page's address.
pub(super) const NOT_TOLD: u64 = u64::MAX;

/// The slot that a handle names, if any.
///
/// # Errors
///
/// [`Error::BadVm`].
pub fn slot(handle: VmHandle) -> Result<VmId, Error> {
    let number = handle.0 & ((1 << SLOT_BITS) - 1);
    if number < MAX_VMS as u64 { Ok(number as VmId) } else { Err(Error::BadVm) }
}

/// Takes pages over for a VM's tables, and does what else is to be done with memory then, under the same lock.
fn donate_tables<M: Machine>(
    m: &M,
    vm: VmId,
    pages: UntrustedPages,
    then: impl FnOnce(&mut M::Memory),
) -> Result<(), Error> {
    if pages.count > MAX_PAGES_PER_CALL {
        return Err(Error::InvalidArgument);
    }
    let range = m.memory(|memory| {
        let range = memory.pages().lookup_range(pages.start.0, pages.count)?;
        memory.pages().donate_to_vm(range, vm)?;
        handover::donate(memory, range);
        then(memory);
        Ok(range)
    })?;
    m.add_tables(vm, range);
    Ok(())
}

impl<T, V> Default for Vm<T, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, V> Vm<T, V> {
    /// A free slot.
    pub const fn new() -> Self {
        Self {
            life: Life::Free,
            closing: false,
            generation: 0,
            config: VmConfig::normal(),
            sealed: false,
            ended: false,
            vcpus: [const { None }; MAX_VCPUS],
            pages_out: 0,
            clock: 0,
            last_vcpu: [0; MAX_CPUS],
            told: [NOT_TOLD; MAX_VCPUS],
            at_aliases: 0,
            interface: None,
            ram: Ram::new(),
            measurements: Measurements::new(),
        }
    }

    /// Whether a VM can be created here.
    pub const fn is_free(&self) -> bool {
        matches!(self.life, Life::Free)
    }

    /// Whether the handle names the VM that is here.
    pub(super) fn check(&self, handle: VmHandle) -> Result<(), Error> {
        let known = handle.0 >> SLOT_BITS == self.generation && !self.is_free();
        if known { Ok(()) } else { Err(Error::BadVm) }
    }

    /// The vCPU that an index names.
    pub(super) fn vcpu(&mut self, index: VcpuIndex) -> Result<(usize, &mut VcpuSlot<V>), Error> {
        let index = usize::try_from(index.0).map_err(|_| Error::BadVcpu)?;
        match self.vcpus.get_mut(index) {
            Some(Some(slot)) => Ok((index, slot)),
            _ => Err(Error::BadVcpu),
        }
    }

    /// The stage 2 of a VM that is neither dying nor about to.
    pub(super) fn tables(&mut self) -> Result<&mut T, Error> {
        match &mut self.life {
            Life::Alive(_) if self.closing => Err(Error::Dying),
            Life::Alive(tables) => Ok(tables),
            Life::Dying => Err(Error::Dying),
            Life::Free => Err(Error::BadVm),
        }
    }

    /// VM_CREATE in this free slot, whose number is `vm`.
    ///
    /// # Errors
    ///
    /// NOT_ISOLATED, TOO_FEW_PAGES, and what is wrong with the pages.
    pub fn create<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        vm: VmId,
        pages: UntrustedPages,
        config: VmConfig,
    ) -> Result<VmHandle, Error> {
        if config.protected && !m.protects() {
            return Err(Error::NotIsolated);
        }
        if pages.count < VM_PAGES {
            return Err(Error::TooFewPages);
        }
        donate_tables(m, vm, pages, |memory| memory.set_junk(vm, config.junk))?;
        self.life = Life::Alive(m.new_tables(vm));
        self.closing = false;
        self.generation += 1;
        self.config = config;
        // What is left of a protected guest on a CPU that its host runs on is not the host's to choose.
        if config.protected {
            self.config.policy = m.protected_policy();
        }
        self.sealed = false;
        self.ended = false;
        self.pages_out = pages.count;
        self.clock = m.now();
        self.last_vcpu = [0; MAX_CPUS];
        self.told = [NOT_TOLD; MAX_VCPUS];
        self.at_aliases = 0;
        self.interface = None;
        self.ram.clear();
        self.measurements = Measurements::new();
        if config.protected {
            let ipa_width = ipa_width(m);
            self.measurements.enter(&Record::Create { ipa_width });
        }
        Ok(VmHandle(self.generation << SLOT_BITS | u64::from(vm)))
    }

    /// VM_TOPUP.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING, and what is wrong with the pages.
    pub fn topup<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
        pages: UntrustedPages,
    ) -> Result<(), Error> {
        self.check(handle)?;
        self.tables()?;
        donate_tables(m, slot(handle)?, pages, |_| {})?;
        self.pages_out += pages.count;
        Ok(())
    }

    /// VM_SEAL: a protected VM with all its vCPUs and its payload can run from here on. The host has no say in
    /// its content, its entries and its registers any more, but for answers to exits that are open.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING, NOT_PROTECTED, SEALED; BAD_VCPU if it has no vCPU 0, which it could never get, and which alone
    /// can begin.
    pub fn seal(&mut self, handle: VmHandle) -> Result<(), Error> {
        self.check(handle)?;
        self.tables()?;
        if !self.config.protected {
            return Err(Error::NotProtected);
        }
        if self.sealed {
            return Err(Error::Sealed);
        }
        if self.vcpus[0].is_none() {
            return Err(Error::BadVcpu);
        }
        self.sealed = true;
        Ok(())
    }

    /// VM_DESTROY: from here on the VM can only be reclaimed.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING; BUSY while one of its vCPUs is loaded: then no other is loaded any more, and
    /// nothing can be added to the VM, until it is called again.
    pub fn destroy<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
    ) -> Result<(), Error> {
        let vm = slot(handle)?;
        self.check(handle)?;
        if matches!(self.life, Life::Dying) {
            return Err(Error::Dying);
        }
        if self.vcpus.iter().flatten().any(|vcpu| vcpu.loaded_on.is_some()) {
            self.closing = true;
            return Err(Error::Busy);
        }
        // Nothing of it runs and nothing of it can be loaded again. Its pages go back one by one.
        if let Life::Alive(tables) = core::mem::replace(&mut self.life, Life::Dying) {
            m.drop_tables(vm, tables);
        }
        m.memory(|memory| {
            for vcpu in self.vcpus.iter_mut().filter_map(Option::take) {
                memory.pages().unpin_flag_page(vcpu.flag_page);
            }
        });
        Ok(())
    }

    /// VCPU_CREATE.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING, SEALED, BAD_VCPU for an index beyond the last, VCPU_IN_USE, TOO_FEW_PAGES, those of [`check_features`] and of [`check_start`],
    /// INVALID_ARGUMENT for a protected VM's vCPU 0 that is off or another that is on, BUSY or NOT_SHARED for
    /// the flag-shadow page, and what is wrong with the pages.
    pub fn create_vcpu<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        config: &VcpuConfig,
    ) -> Result<(), Error> {
        let vm = slot(config.vm)?;
        self.check(config.vm)?;
        self.tables()?;
        if self.sealed {
            return Err(Error::Sealed);
        }
        let index = usize::try_from(config.index.0).map_err(|_| Error::BadVcpu)?;
        let place = self.vcpus.get(index).ok_or(Error::BadVcpu)?;
        let affinity = u32::try_from(config.affinity.0).map_err(|_| Error::InvalidArgument)?;
        if place.is_some() || self.vcpus.iter().flatten().any(|vcpu| vcpu.affinity == affinity) {
            return Err(Error::VcpuInUse);
        }
        let VmConfig { policy, protected, .. } = self.config;
        let clock = self.clock;
        let features = check_features(m, config.features)?;
        let needed = features.pages();
        if config.pages.count < needed {
            return Err(Error::TooFewPages);
        }
        check_start(features, config.start)?;
        // Of a protected VM one entry is the host's choice, as a boot loader's is; all others are the guest's.
        let chosen = !protected || (config.start == Start::Off) == (index != 0);
        if config.pages.count != needed || !chosen {
            return Err(Error::InvalidArgument);
        }
        let (pages, flag_page) = m.memory(|memory| {
            let owners = memory.pages();
            let range = owners.lookup_range(config.pages.start.0, config.pages.count)?;
            let flag_page = owners.lookup(config.flag_page.0)?;
            // All that can fail on the donated pages is asked before the flag page is pinned.
            owners.check_donation(range)?;
            owners.pin_flag_page(flag_page)?;
            owners.donate_to_vm(range, vm)?;
            handover::donate(memory, range);
            Ok((range, flag_page))
        })?;
        let start = config.start;
        let new = NewVcpu {
            pages,
            flag_page,
            index,
            affinity,
            features,
            policy,
            protected,
            start,
            clock,
        };
        let vcpu = m.new_vcpu(self.tables()?, &new);
        m.set_stopped(vm, index, false);
        let power = Power::of(start);
        let slot = VcpuSlot { vcpu, features, power, affinity, flag_page, loaded_on: None };
        self.vcpus[index] = Some(slot);
        self.pages_out += config.pages.count;
        if protected {
            self.measurements.enter(&Record::Vcpu {
                index: config.index.0,
                affinity: config.affinity.0,
                features: config.features.0,
                start: match start {
                    Start::At { entry, argument } => Some([entry, argument]),
                    Start::Off => None,
                },
            });
        }
        Ok(())
    }

    /// VCPU_LOAD on a CPU that has nothing loaded. `fits` says whether the CPU has the vCPU's vector
    /// length. Returns the vCPU and its number.
    ///
    /// # Errors
    ///
    /// BUSY if it is loaded elsewhere, BAD_VM, BAD_VCPU, DYING, NOT_SEALED for a protected VM that is still
    /// being built, POWERED_OFF, and what `fits` says.
    pub fn load<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
        index: VcpuIndex,
        cpu: usize,
        fits: impl FnOnce(&V) -> Result<(), Error>,
    ) -> Result<(&V, usize), Error> {
        let vm = slot(handle)?;
        self.check(handle)?;
        self.tables()?;
        if self.config.protected && !self.sealed {
            return Err(Error::NotSealed);
        }
        let ended = self.ended;
        let (index, slot) = self.vcpu(index)?;
        if slot.loaded_on.is_some() {
            return Err(Error::Busy);
        }
        if ended || slot.power == Power::Off {
            return Err(Error::PoweredOff);
        }
        fits(&slot.vcpu)?;
        slot.loaded_on = Some(cpu);
        if let Power::Pending(boot) = core::mem::replace(&mut slot.power, Power::On) {
            m.reset_vcpu(&slot.vcpu, boot);
            m.set_stopped(vm, index, false);
        }
        let this = index as u8 + 1;
        let last = core::mem::replace(&mut self.last_vcpu[cpu], this);
        if let (Life::Alive(tables), true) = (&self.life, last != this && last != 0) {
            m.forget_sibling(tables);
        }
        let (index, slot) = self.vcpu(VcpuIndex(index as u64))?;
        Ok((&slot.vcpu, index))
    }

    /// The vCPU is loaded no longer.
    pub fn put(&mut self, index: usize) {
        if let Some(Some(slot)) = self.vcpus.get_mut(index) {
            slot.loaded_on = None;
        }
    }
}

/// Bits of a protected guest's address, the alias bit being the highest.
pub(super) fn ipa_width<M: Machine>(m: &M) -> u64 {
    u64::from(m.alias_bit().trailing_zeros()) + 1
}

pub(super) fn check_ipa<M: Machine>(m: &M, ipa: UntrustedIpa) -> Result<(), Error> {
    if !ipa.0.is_multiple_of(PAGE_SIZE as u64) {
        Err(Error::Unaligned)
    } else if ipa.0 >> m.ipa_bits() != 0 {
        Err(Error::BadIpa)
    } else {
        Ok(())
    }
}
