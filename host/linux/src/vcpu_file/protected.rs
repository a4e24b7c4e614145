//! vCPUs of protected VMs, of whose registers their host chooses PC and x0 of the first, and nothing once that has run
//! (Linux, Documentation/virt/kvm/arm/pkvm.rst).

use crate::{
    abi::Errno,
    gic,
    machine::Machine,
    registers::Named,
    vcpu::{Primary, State, Vcpu},
};
use umbra_shared::{
    call::Start,
    register::{Register, system},
};

const MPIDR_EL1: u16 = system(3, 0, 0, 0, 5);
/// RES1 of MPIDR_EL1.
const MPIDR_RES1: u64 = 1 << 31;
/// PSTATE at reset: EL1h, with DAIF masked.
const RESET_PSTATE: u64 = 0x3c5;

impl Vcpu {
    /// The first of KVM_RUN: hyp gets the payload and the first vCPU, and the VM is sealed. EPERM: any but vCPU 0 is on, or that is
    /// off.
    pub(super) fn begin(&self, machine: &Machine, state: &mut State) -> Result<(), Errno> {
        if machine.is_sealed() {
            return Ok(());
        }
        if self.index != 0 {
            // It waits until its guest turns it on.
            return if self.is_on() { Err(Errno::EPERM) } else { Ok(()) };
        }
        if !self.is_on() || machine.are_others_on(self.index) {
            return Err(Errno::EPERM);
        }
        if let Some(Primary { features, entry, argument }) = state.primary {
            self.make(machine, state, features, Start::At { entry, argument })?;
            state.primary = None;
        }
        machine.seal(&mut state.scratch)
    }

    /// What KVM_GET_ONE_REG says of a register: what it is at reset, and of the first what it is to be.
    pub(super) fn private_register(
        &self,
        machine: &Machine,
        state: &State,
        named: Named,
    ) -> Result<u64, Errno> {
        if let Named::One(Register::System(MPIDR_EL1), _) = named {
            return Ok(MPIDR_RES1 | u64::from(gic::affinity(self.index)));
        }
        machine.refuse_sealed()?;
        let (entry, argument) = match state.primary {
            Some(primary) => (primary.entry, primary.argument),
            None => (0, 0),
        };
        match named {
            Named::One(Register::Pc, _) => Ok(entry),
            Named::One(Register::X(0), _) => Ok(argument),
            Named::One(Register::X(_), _) => Ok(0),
            Named::One(Register::Pstate, _) => Ok(RESET_PSTATE),
            _ => Err(Errno::EPERM),
        }
    }

    /// KVM_SET_ONE_REG. Anything may be written as it is.
    pub(super) fn set_private_register(
        &self,
        machine: &Machine,
        state: &mut State,
        named: Named,
        value: u64,
    ) -> Result<(), Errno> {
        if self.private_register(machine, state, named)? == value {
            return Ok(());
        }
        let primary = state.primary.as_mut().ok_or(Errno::EPERM)?;
        match named {
            Named::One(Register::Pc, _) if !value.is_multiple_of(4) => Err(Errno::EINVAL),
            Named::One(Register::Pc, _) => {
                primary.entry = value;
                Ok(())
            }
            Named::One(Register::X(0), _) => {
                primary.argument = value;
                Ok(())
            }
            _ => Err(Errno::EPERM),
        }
    }
}
