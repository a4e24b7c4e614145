//! A vCPU's file: its ioctls.

#![forbid(unsafe_code)]

mod one_reg;
mod run;

use crate::{
    abi::*,
    gic,
    linux::User,
    machine::Machine,
    memory::{Faults, refused},
    vcpu::{Features, State, Vcpu},
};
use core::sync::atomic::Ordering::SeqCst;
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    vm::VcpuSettings,
};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuIndex},
    vcpu::VcpuFeatures,
    vl::Vq,
};

impl Vcpu {
    /// An ioctl of its file.
    pub fn ioctl(&self, machine: &Machine, command: u32, argument: usize) -> Result<i64, Errno> {
        let mut state = self.state.lock_killable()?;
        let user = User(argument);
        match command {
            KVM_RUN if argument != 0 => Err(Errno::EINVAL),
            KVM_RUN => self.run(machine, &mut state),
            KVM_ARM_VCPU_INIT => self.init(machine, &mut state, &user.read()?).map(|()| 0),
            _ if state.init.is_none() => Err(Errno::ENOEXEC),
            KVM_ARM_VCPU_FINALIZE => {
                let feature: u32 = user.read()?;
                self.finalize(machine, &mut state, feature).map(|()| 0)
            }
            KVM_GET_ONE_REG => {
                let register: OneReg = user.read()?;
                let to = User(register.addr as usize);
                self.read_register(machine, &state, register.id, to).map(|()| 0)
            }
            KVM_SET_ONE_REG => {
                let register: OneReg = user.read()?;
                let from = User(register.addr as usize);
                self.write_register(machine, &mut state, register.id, from).map(|()| 0)
            }
            KVM_GET_REG_LIST => self.list_registers(&state, user).map(|()| 0),
            KVM_GET_MP_STATE => {
                let on = self.on.load(SeqCst);
                let state = if on { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_STOPPED };
                user.write(&state).map(|()| 0)
            }
            KVM_SET_MP_STATE => {
                let on = match user.read()? {
                    KVM_MP_STATE_RUNNABLE => true,
                    KVM_MP_STATE_STOPPED => false,
                    _ => return Err(Errno::EINVAL),
                };
                if on == self.on.load(SeqCst) {
                    return Ok(0);
                }
                let start = if on { Start::At { entry: 0, argument: 0 } } else { Start::Off };
                self.reset(machine, &mut state, start).map(|()| 0)
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    /// KVM_ARM_VCPU_INIT: at first what it has, later its reset.
    fn init(&self, machine: &Machine, state: &mut State, init: &VcpuInit) -> Result<(), Errno> {
        let features = Features::of(init, machine.vector_lengths(), machine.has_pauth())?;
        match state.init {
            None => {
                if !features.sve {
                    self.create(machine, state, features, None)?;
                }
                state.init = Some(features);
                self.on.store(!features.power_off, SeqCst);
                machine.set_power(self.index, !features.power_off);
                Ok(())
            }
            Some(before) => {
                if (before.sve, before.pauth) != (features.sve, features.pauth) {
                    return Err(Errno::EINVAL);
                }
                state.init = Some(features);
                if state.inside.is_none() {
                    self.on.store(!features.power_off, SeqCst);
                    return Ok(());
                }
                self.reset(machine, state, features.start())
            }
        }
    }

    fn reset(&self, machine: &Machine, state: &mut State, start: Start) -> Result<(), Errno> {
        let inside = state.inside.as_mut().ok_or(Errno::EPERM)?;
        match machine.interface(self.index) {
            Some(mut interface) => inside.reset(&Hvc, &mut interface, start).map_err(refused)?,
            None => Hvc.vcpu_reset(inside.vm(), inside.index(), start).map_err(refused)?,
        }
        (state.open, state.answer, state.supplied) = (None, None, None);
        let on = start != Start::Off;
        self.on.store(on, SeqCst);
        machine.set_power(self.index, on);
        Ok(())
    }

    /// KVM_ARM_VCPU_FINALIZE.
    fn finalize(&self, machine: &Machine, state: &mut State, feature: u32) -> Result<(), Errno> {
        let has_sve = state.init.is_some_and(|features| features.sve);
        if feature != KVM_ARM_VCPU_SVE || !has_sve {
            return Err(Errno::EINVAL);
        }
        if state.inside.is_some() {
            return Err(Errno::EPERM);
        }
        let lengths = state.lengths.unwrap_or(machine.vector_lengths());
        let features = state.init.ok_or(Errno::ENOEXEC)?;
        self.create(machine, state, features, lengths.max())
    }

    fn create(
        &self,
        machine: &Machine,
        state: &mut State,
        features: Features,
        vq: Option<Vq>,
    ) -> Result<(), Errno> {
        let start = features.start();
        let settings = VcpuSettings {
            index: VcpuIndex(self.index.into()),
            affinity: UntrustedAffinity(gic::affinity(self.index).into()),
            features: VcpuFeatures::sve(vq),
            start,
        };
        state.inside = Some(machine.memory(|memory| memory.create_vcpu(settings))??);
        Ok(())
    }
}
