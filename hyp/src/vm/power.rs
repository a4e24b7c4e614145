//! Which vCPUs are on, as the guest that owns them has it (PSCI), and its host where it may.
//!
//! ```text
//!   VCPU_CREATE ----> On --CPU_OFF--> Off --CPU_ON by another--> Pending --VCPU_LOAD, in its reset state--> On
//!   VCPU_RESET, of a normal VM: from anywhere to On, in its reset state, or to Off
//!   VCPU_WRITE of its power, of a normal VM: from anywhere to Off, or from Off to On as it was
//!          \---------------------------^
//! ```
//!
//! A vCPU that is off is loaded nowhere but where it turned itself off, and runs there no more. Until it has been
//! put it counts as on: only then nothing of it is in any register (PSCI 1.1 §5.7, AFFINITY_INFO).

#![forbid(unsafe_code)]

use super::features::check_start;
use super::hardware::{Boot, Machine};
use super::life::{Power, VcpuSlot, Vm, slot};
use crate::memory::pages::VmId;
use arm_psci::ErrorCode;
use umbra_shared::call::{MAX_VCPUS, Start, VcpuIndex, VmHandle};
use umbra_shared::error::Error;

/// AFFINITY_INFO's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Affinity {
    /// ON.
    On = 0,
    /// OFF.
    Off = 1,
    /// ON_PENDING.
    OnPending = 2,
}

impl<T, V> Vm<T, V> {
    /// The vCPU with this affinity, as PSCI's calls have it: MPIDR_EL1's Aff3 in bits 39:32, which nobody has, Aff2 to
    /// Aff0 in 23:0, and all else zero.
    fn by_affinity(&mut self, target: u64) -> Result<(usize, &mut VcpuSlot<V>), ErrorCode> {
        let mut all = self.vcpus.iter_mut().enumerate();
        all.find_map(|(index, slot)| {
            slot.as_mut()
                .filter(|slot| u64::from(slot.affinity) == target)
                .map(|slot| (index, slot))
        })
        .ok_or(ErrorCode::InvalidParameters)
    }

    /// CPU_ON by the guest. Returns the number of the vCPU that can be loaded now.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS for no vCPU of the VM's, ALREADY_ON, ON_PENDING, INVALID_ADDRESS for an entry that is
    /// outside guests' address space or not aligned for an instruction.
    pub fn cpu_on<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        target: u64,
        boot: Boot,
    ) -> Result<usize, ErrorCode> {
        let (index, slot) = self.by_affinity(target)?;
        match slot.power {
            Power::On => return Err(ErrorCode::AlreadyOn),
            Power::Pending(_) => return Err(ErrorCode::OnPending),
            Power::Off if slot.loaded_on.is_some() => return Err(ErrorCode::AlreadyOn),
            Power::Off => {}
        }
        let aligned = match (slot.features.aarch32, boot.entry & 3) {
            (_, 0) => true,
            (true, low) => low & 1 != 0,
            (false, _) => false,
        };
        let bits = if slot.features.aarch32 { 32 } else { m.ipa_bits() };
        if !aligned || boot.entry >> bits != 0 {
            return Err(ErrorCode::InvalidAddress);
        }
        slot.power = Power::Pending(boot);
        Ok(index)
    }

    /// CPU_OFF by the guest's vCPU with this number, which is loaded.
    pub fn cpu_off<M: Machine<Tables = T, Vcpu = V>>(&mut self, m: &M, vm: VmId, index: usize) {
        if let Some(Some(slot)) = self.vcpus.get_mut(index) {
            slot.power = Power::Off;
            m.set_stopped(vm, index, true);
        }
    }

    /// AFFINITY_INFO by the guest, of one vCPU.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS for no vCPU of the VM's.
    pub fn affinity_info(&mut self, target: u64) -> Result<Affinity, ErrorCode> {
        let (_, slot) = self.by_affinity(target)?;
        Ok(match slot.power {
            Power::On => Affinity::On,
            Power::Pending(_) => Affinity::OnPending,
            Power::Off if slot.loaded_on.is_some() => Affinity::On,
            Power::Off => Affinity::Off,
        })
    }

    /// SYSTEM_OFF, SYSTEM_RESET or SYSTEM_RESET2 by the guest: a protected VM runs no more. Says whether it is
    /// one. What becomes of a normal VM is its host's to decide.
    pub fn end<M: Machine<Tables = T, Vcpu = V>>(&mut self, m: &M, vm: VmId) -> bool {
        self.ended = self.config.protected;
        if self.ended {
            (0..MAX_VCPUS).for_each(|index| m.set_stopped(vm, index, true));
        }
        self.ended
    }

    /// A normal VM's vCPU that is loaded nowhere, for its host to look at its registers, and to write them.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING, PROTECTED, BAD_VCPU, BUSY while it is loaded.
    pub fn registers(&mut self, handle: VmHandle, index: VcpuIndex) -> Result<&V, Error> {
        self.check(handle)?;
        self.tables()?;
        if self.config.protected {
            return Err(Error::Protected);
        }
        let (_, slot) = self.vcpu(index)?;
        if slot.loaded_on.is_some() { Err(Error::Busy) } else { Ok(&slot.vcpu) }
    }

    /// VCPU_READ of its power: whether a normal VM's vCPU is on, or will be when it is loaded.
    ///
    /// # Errors
    ///
    /// Those of [`Self::registers`].
    pub fn power(&mut self, handle: VmHandle, index: VcpuIndex) -> Result<bool, Error> {
        self.registers(handle, index)?;
        let (_, slot) = self.vcpu(index)?;
        Ok(slot.power != Power::Off)
    }

    /// VCPU_WRITE of its power: a normal VM's vCPU is off, or on, and otherwise what it was.
    ///
    /// # Errors
    ///
    /// Those of [`Self::registers`].
    pub fn set_power<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
        index: VcpuIndex,
        on: bool,
    ) -> Result<(), Error> {
        let vm = slot(handle)?;
        self.registers(handle, index)?;
        let (index, slot) = self.vcpu(index)?;
        match (slot.power, on) {
            (Power::On | Power::Pending(_), true) => {}
            (_, false) => slot.power = Power::Off,
            (Power::Off, true) => {
                slot.power = Power::On;
                // It had turned itself off, perhaps. One that can't go on still can't.
                m.set_stopped(vm, index, m.is_broken(&slot.vcpu));
            }
        }
        Ok(())
    }

    /// VCPU_RESET: a normal VM's vCPU is as if it had just been made.
    ///
    /// # Errors
    ///
    /// BAD_VM, DYING, PROTECTED, BAD_VCPU, BUSY while it is loaded, and those of [`check_start`].
    pub fn reset_vcpu<M: Machine<Tables = T, Vcpu = V>>(
        &mut self,
        m: &M,
        handle: VmHandle,
        index: VcpuIndex,
        start: Start,
    ) -> Result<(), Error> {
        let vm = slot(handle)?;
        self.check(handle)?;
        self.tables()?;
        if self.config.protected {
            return Err(Error::Protected);
        }
        let (index, slot) = self.vcpu(index)?;
        if slot.loaded_on.is_some() {
            return Err(Error::Busy);
        }
        check_start(slot.features, start)?;
        slot.power = Power::of(start);
        if let Start::At { entry, argument } = start {
            m.reset_vcpu(&slot.vcpu, Boot { entry, argument, big_endian: false });
            m.set_stopped(vm, index, false);
        }
        Ok(())
    }
}
