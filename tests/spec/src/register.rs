//! VCPU_READ and VCPU_WRITE.

use umbra_shared::call::{VcpuIndex, VmHandle};
use umbra_shared::error::Error;
use umbra_shared::register::UntrustedRegister;

use crate::Spec;
use crate::calls::{Choice, Outcome};
use crate::vm::{self, Power};

impl Spec {
    /// A register of a vCPU, looked at or with a new value.
    pub(crate) fn register(
        &mut self,
        handle: VmHandle,
        vcpu: VcpuIndex,
        register: UntrustedRegister,
        value: Option<[u64; 2]>,
        choice: Choice,
    ) -> Result<Outcome, Error> {
        let vm = &mut self.vms[usize::from(vm::slot(handle)?)];
        vm.check_alive(handle)?;
        if vm.protected {
            return Err(Error::Protected);
        }
        let index = usize::try_from(vcpu.0).map_err(|_| Error::BadVcpu)?;
        let vcpu = vm.vcpus.get_mut(&index).ok_or(Error::BadVcpu)?;
        if vcpu.loaded_on.is_some() {
            return Err(Error::Busy);
        }
        let raw = register.0;
        let (kind, number, quadword) = (raw >> 32, raw >> 8 & 0xff_ffff, raw & 0xff);
        let wide = value.is_some_and(|[_, upper]| upper != 0);
        let narrow = vcpu.features.aarch32;
        let refused = |bad: bool| if bad { Err(Error::InvalidArgument) } else { Ok(()) };
        let low = value.map_or(0, |[lower, _]| lower);
        match (kind, number, quadword) {
            (0, 0..=30, 0) => refused(wide || narrow && low >> 32 != 0)?,
            (1, 0, 0) => {
                let odd =
                    if narrow { low & 1 != 0 || low >> 32 != 0 } else { !low.is_multiple_of(4) };
                refused(value.is_some() && (wide || odd))?;
            }
            (1, 2, 0) => {
                refused(value.is_some() && (wide || low > 1))?;
                match (value, vcpu.power) {
                    (None, power) => {
                        let on = u64::from(power != Power::Off);
                        return Ok(Outcome { x1: Some(on), ..Outcome::ok() });
                    }
                    (Some([0, _]), _) => vcpu.power = Power::Off,
                    (Some(_), Power::Off) => vcpu.power = Power::On,
                    (Some(_), Power::On | Power::Pending) => {}
                }
            }
            // Which PSTATE is a guest's, and which system registers there are, is not told here a second time.
            (1, 1, 0) | (2, 0..=0xffff, 0) => match choice.register {
                Some(Error::BadRegister) if kind == 1 => return Err(Error::NotSupported),
                Some(error) => return Err(error),
                None => refused(wide)?,
            },
            // Streaming mode's are as many as the SVL has.
            (3, 0..=31, _) if quadword < 16 => match (choice.register, vcpu.features.svq) {
                (Some(Error::BadRegister), _) if quadword > 0 => return Err(Error::BadRegister),
                (_, Some(_)) => {}
                (_, None) if quadword < vcpu.features.vq.map_or(1, |vq| vq.quadwords() as u64) => {}
                _ => return Err(Error::BadRegister),
            },
            (4, 0..=16, 0 | 1) => match choice.register {
                Some(Error::BadRegister) if vcpu.features.vq.is_none() || quadword == 1 => {
                    return Err(Error::BadRegister);
                }
                Some(Error::BadRegister) if vcpu.features.svq.is_some() => {
                    return Err(Error::BadRegister);
                }
                Some(Error::InvalidArgument) if value.is_some() => {
                    return Err(Error::InvalidArgument);
                }
                _ => {}
            },
            _ => return Err(Error::BadRegister),
        }
        Ok(Outcome::ok())
    }
}
