//! A vCPU's file: its ioctls.

#![forbid(unsafe_code)]

mod one_reg;
mod protected;
mod run;

use crate::{
    abi::*,
    gic,
    linux::User,
    machine::Machine,
    memory::{Faults, refused},
    vcpu::{Features, Primary, Request, State, Vcpu},
};
use core::sync::atomic::Ordering::SeqCst;
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    vcpu::MmioAnswer,
    vm::VcpuSettings,
};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuIndex},
    register::{Register, system},
    vcpu::VcpuFeatures,
    vl::Vq,
};
use zerocopy::FromZeros;

/// CNTVOFF_EL2.
const CNTVOFF: u16 = system(3, 4, 14, 0, 3);
/// Where one begins that was reset. Whether it is on is said apart from that.
const START: Start = Start::At { entry: 0, argument: 0 };

impl Vcpu {
    /// An ioctl of its file.
    pub fn ioctl(&self, machine: &Machine, command: u32, argument: usize) -> Result<i64, Errno> {
        let mut state = self.state.lock_killable()?;
        self.settle(machine, &mut state)?;
        let user = User(argument);
        match command {
            KVM_RUN if argument != 0 => Err(Errno::EINVAL),
            KVM_RUN => self.run(machine, &mut state),
            KVM_ARM_VCPU_INIT => self.init(machine, &mut state, &user.read()?).map(|()| 0),
            KVM_SET_SIGNAL_MASK => {
                state.signals = read_signals(user)?;
                Ok(0)
            }
            // Of a PMU, a timer or stolen time there is none.
            KVM_SET_DEVICE_ATTR | KVM_GET_DEVICE_ATTR | KVM_HAS_DEVICE_ATTR => Err(Errno::ENXIO),
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
            KVM_GET_REG_LIST => self.list_registers(machine, &state, user).map(|()| 0),
            KVM_GET_MP_STATE => {
                let on = self.on.load(SeqCst);
                let state = if on { KVM_MP_STATE_RUNNABLE } else { KVM_MP_STATE_STOPPED };
                user.write(&state).map(|()| 0)
            }
            KVM_SET_MP_STATE => {
                machine.refuse_sealed()?;
                let on = match user.read()? {
                    KVM_MP_STATE_RUNNABLE => true,
                    KVM_MP_STATE_STOPPED => false,
                    _ => return Err(Errno::EINVAL),
                };
                self.set_power(machine, &state, on).map(|()| 0)
            }
            // No SError can be injected: none is ever pending. An abort is taken at the next entry.
            KVM_GET_VCPU_EVENTS => user.write(&VcpuEvents::new_zeroed()).map(|()| 0),
            KVM_SET_VCPU_EVENTS => {
                let events: VcpuEvents = user.read()?;
                set_events(&mut state, &events).map(|()| 0)
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
                    self.create(machine, state, None)?;
                }
            }
            Some(before) => {
                machine.refuse_sealed()?;
                if (before.sve, before.pauth) != (features.sve, features.pauth) {
                    return Err(Errno::EINVAL);
                }
                if let Some(primary) = &mut state.primary {
                    (primary.entry, primary.argument) = (0, 0);
                } else if state.inside.is_some() && !machine.is_protected() {
                    self.reset(machine, state)?;
                }
            }
        }
        state.init = Some(features);
        self.set_power(machine, state, !features.power_off)
    }

    /// Whether it is on, or is to be: nothing else of it changes.
    fn set_power(&self, machine: &Machine, state: &State, on: bool) -> Result<(), Errno> {
        if !on {
            // Before hyp knows: whom another vCPU turns on from then on is on here, too, and that comes after this.
            self.on.store(false, SeqCst);
            machine.set_power(self.index, false);
        }
        // Of a protected VM's it is its guest's to say.
        if let Some(inside) = &state.inside
            && !machine.is_protected()
        {
            let power = Register::Power.encode();
            let value = [on.into(), 0];
            Hvc.vcpu_write(inside.vm(), inside.index(), power, value).map_err(refused)?;
        }
        if on {
            self.on.store(true, SeqCst);
            machine.set_power(self.index, true);
        }
        Ok(())
    }

    fn reset(&self, machine: &Machine, state: &mut State) -> Result<(), Errno> {
        let inside = state.inside.as_mut().ok_or(Errno::EPERM)?;
        match machine.interface(self.index) {
            Some(mut interface) => inside.reset(&Hvc, &mut interface, START).map_err(refused)?,
            None => Hvc.vcpu_reset(inside.vm(), inside.index(), START).map_err(refused)?,
        }
        (state.open, state.answer, state.supplied) = (None, None, None);
        Ok(())
    }

    /// Does what it was asked to do since somebody had its lock.
    fn settle(&self, machine: &Machine, state: &mut State) -> Result<(), Errno> {
        if !self.has_requests() {
            return Ok(());
        }
        let requests = self.take_requests();
        if requests.has(Request::PowerOff) {
            self.set_power(machine, state, false)?;
        }
        if let Some(inside) = &state.inside
            && let Some(offset) = machine.clock_offset().filter(|_| requests.has(Request::Clock))
        {
            let register = Register::System(CNTVOFF).encode();
            Hvc.vcpu_write(inside.vm(), inside.index(), register, [offset, 0]).map_err(refused)?;
        }
        Ok(())
    }

    /// KVM_ARM_VCPU_FINALIZE.
    fn finalize(&self, machine: &Machine, state: &mut State, feature: u32) -> Result<(), Errno> {
        let has_sve = state.init.is_some_and(|features| features.sve);
        if feature != KVM_ARM_VCPU_SVE || !has_sve {
            return Err(Errno::EINVAL);
        }
        if state.features().is_some() {
            return Err(Errno::EPERM);
        }
        let lengths = state.lengths.unwrap_or(machine.vector_lengths());
        self.create(machine, state, lengths.max())?;
        self.set_power(machine, state, self.is_on())
    }

    fn create(&self, machine: &Machine, state: &mut State, vq: Option<Vq>) -> Result<(), Errno> {
        let features = VcpuFeatures::sve(vq);
        match (machine.is_protected(), self.index) {
            (true, 0) => {
                // Hyp makes it with its entry, which is not known yet.
                state.primary = Some(Primary { features, entry: 0, argument: 0 });
                return Ok(());
            }
            (true, _) => self.make(machine, state, features, Start::Off)?,
            (false, _) => self.make(machine, state, features, START)?,
        }
        // Its VM's clock may have been set before.
        self.request(Request::Clock);
        self.settle(machine, state)
    }

    fn make(
        &self,
        machine: &Machine,
        state: &mut State,
        features: VcpuFeatures,
        start: Start,
    ) -> Result<(), Errno> {
        let settings = VcpuSettings {
            index: VcpuIndex(self.index.into()),
            affinity: UntrustedAffinity(gic::affinity(self.index).into()),
            features,
            start,
        };
        state.inside = Some(machine.memory(|memory| memory.create_vcpu(settings))??);
        Ok(())
    }
}

/// KVM_SET_SIGNAL_MASK: a set of signals, or none of its own.
fn read_signals(user: User) -> Result<Option<u64>, Errno> {
    if user.0 == 0 {
        return Ok(None);
    }
    let bytes: u32 = user.read()?;
    if bytes as usize != size_of::<u64>() {
        return Err(Errno::EINVAL);
    }
    user.at(4).read().map(Some)
}

/// KVM_SET_VCPU_EVENTS.
fn set_events(state: &mut State, events: &VcpuEvents) -> Result<(), Errno> {
    if events.serror_pending != 0 || events.pad != [0; 5] || events.reserved != [0; 12] {
        return Err(Errno::EINVAL);
    }
    if events.ext_dabt_pending != 0 {
        // For the access that the VMM was told of: no other address is known.
        state.open.take().ok_or(Errno::EINVAL)?;
        state.answer = Some(MmioAnswer::Abort);
    }
    Ok(())
}
