//! Registers of a vCPU, one by one (KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST).

use super::CNTVOFF;
use crate::{
    abi::Errno,
    linux::{self, User},
    machine::Machine,
    memory::refused,
    registers::{self, Named},
    vcpu::{State, Vcpu},
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{register::Register, vl::VqSet};

/// What hyp's guests have.
const PSCI_1_1: u64 = 0x1_0001;

impl Vcpu {
    pub(super) fn read_register(
        &self,
        machine: &Machine,
        state: &State,
        id: u64,
        to: User,
    ) -> Result<(), Errno> {
        let inside = || state.inside.as_ref().ok_or(Errno::EPERM);
        let read = |register: Register| {
            let inside = inside()?;
            Hvc.vcpu_read(inside.vm(), inside.index(), register.encode()).map_err(refused)
        };
        let named = name(state, id)?;
        match named {
            Named::One(..) | Named::Counter | Named::Z(_) | Named::P(_)
                if machine.is_protected() =>
            {
                to.write(&self.private_register(machine, state, named)?)
            }
            Named::VectorLengths => to.write(&read_lengths(machine, state)?),
            Named::One(register, bytes) => {
                let [low, high] = read(register)?.map(u64::to_le_bytes);
                let all: [u8; 16] =
                    core::array::from_fn(|n| if n < 8 { low[n] } else { high[n - 8] });
                to.write_bytes(&all[..bytes])
            }
            Named::Counter => {
                let offset = read(Register::System(CNTVOFF))?[0];
                to.write(&linux::counter().wrapping_sub(offset))
            }
            Named::Z(_) | Named::P(_) => {
                let vq = inside()?.features().vq.ok_or(Errno::ENOENT)?;
                for (n, register) in named.quadwords(vq).enumerate() {
                    let value = register.map_or(Ok([0; 2]), read)?;
                    to.at(n * 16).write(&value)?;
                }
                Ok(())
            }
            Named::PsciVersion => {
                state.features().ok_or(Errno::EPERM)?;
                to.write(&PSCI_1_1)
            }
        }
    }

    pub(super) fn write_register(
        &self,
        machine: &Machine,
        state: &mut State,
        id: u64,
        from: User,
    ) -> Result<(), Errno> {
        let named = name(state, id)?;
        if named == Named::VectorLengths {
            return write_lengths(machine, state, from);
        }
        state.features().ok_or(Errno::EPERM)?;
        if machine.is_protected() {
            let value = from.read()?;
            return match named {
                Named::PsciVersion => set_psci_version(value),
                _ => self.set_private_register(machine, state, named, value),
            };
        }
        let inside = state.inside.as_ref().ok_or(Errno::EPERM)?;
        let write = |register: Register, value: [u64; 2]| {
            Hvc.vcpu_write(inside.vm(), inside.index(), register.encode(), value).map_err(refused)
        };
        match named {
            Named::One(register, bytes) => {
                let mut all = [0; 16];
                from.read_bytes(&mut all[..bytes])?;
                let half = |n: usize| {
                    all[n..n + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
                };
                write(register, [half(0), half(8)])
            }
            Named::Counter => {
                let count: u64 = from.read()?;
                machine.restore_clock(linux::counter().wrapping_sub(count));
                self.settle(machine, state)
            }
            Named::Z(_) | Named::P(_) => {
                let vq = inside.features().vq.ok_or(Errno::ENOENT)?;
                for (n, register) in named.quadwords(vq).enumerate() {
                    if let Some(register) = register {
                        write(register, from.at(n * 16).read()?)?;
                    }
                }
                Ok(())
            }
            Named::PsciVersion => set_psci_version(from.read()?),
            Named::VectorLengths => Err(Errno::ENOENT),
        }
    }

    /// KVM_GET_REG_LIST: those of all that can be read now.
    pub(super) fn list_registers(
        &self,
        machine: &Machine,
        state: &State,
        user: User,
    ) -> Result<(), Errno> {
        let sve = state.features().ok_or(Errno::EPERM)?.vq.is_some();
        let has = |id: &u64| match (Named::of(*id), &state.inside) {
            (Ok(Named::VectorLengths | Named::PsciVersion), _) => true,
            (Ok(named), _) if machine.is_protected() => {
                self.private_register(machine, state, named).is_ok()
            }
            (Ok(Named::One(register, _)), Some(inside)) => {
                Hvc.vcpu_read(inside.vm(), inside.index(), register.encode()).is_ok()
            }
            (Ok(_), _) => true,
            (Err(_), _) => false,
        };
        let room: u64 = user.read()?;
        let mut count: u64 = 0;
        for id in registers::all(sve).filter(has) {
            if count < room {
                user.at(8 + count as usize * 8).write(&id)?;
            }
            count += 1;
        }
        user.write(&count)?;
        if count > room { Err(Errno::E2BIG) } else { Ok(()) }
    }
}

fn set_psci_version(version: u64) -> Result<(), Errno> {
    if version == PSCI_1_1 { Ok(()) } else { Err(Errno::EINVAL) }
}

/// What an ID names, of this vCPU.
fn name(state: &State, id: u64) -> Result<Named, Errno> {
    let named = Named::of(id)?;
    let has_sve = state.init.is_some_and(|features| features.sve);
    if named.is_v() && has_sve { Err(Errno::EINVAL) } else { Ok(named) }
}

/// KVM_REG_ARM64_SVE_VLS: a bit for every length, that of one quadword first.
fn read_lengths(machine: &Machine, state: &State) -> Result<[u64; 8], Errno> {
    state.init.filter(|features| features.sve).ok_or(Errno::ENOENT)?;
    let mut words = [0_u64; 8];
    let largest = state.features().map(|features| features.vq);
    let all = state.lengths.unwrap_or(machine.vector_lengths());
    for vq in all.iter().filter(|&vq| largest.is_none_or(|largest| Some(vq) <= largest)) {
        words[0] |= 1 << (vq.quadwords() - 1);
    }
    Ok(words)
}

fn write_lengths(machine: &Machine, state: &mut State, from: User) -> Result<(), Errno> {
    state.init.filter(|features| features.sve).ok_or(Errno::ENOENT)?;
    if state.features().is_some() {
        return Err(Errno::EPERM);
    }
    let words: [u64; 8] = from.read()?;
    let set = u16::try_from(words[0]).map_err(|_| Errno::EINVAL)?;
    // All that there are up to the largest: hyp's guests are held by their largest alone.
    let asked = VqSet::from_bits(set);
    let all = machine.vector_lengths();
    let largest = asked.max().ok_or(Errno::EINVAL)?;
    let expected =
        all.iter().filter(|&vq| vq <= largest).fold(0, |set, vq| set | 1 << (vq.quadwords() - 1));
    if words[1..].iter().any(|&word| word != 0) || u64::from(set) != expected {
        return Err(Errno::EINVAL);
    }
    state.lengths = Some(asked);
    Ok(())
}
