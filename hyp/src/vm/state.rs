//! Single registers of a vCPU that is loaded nowhere: where they are.
//!
//! What a guest could write, its host may, for a normal guest has no secrets from it; what would be more than that
//! (PSTATE of another exception level, bits of EL2's registers) is refused by [`super::registers`].

#![forbid(unsafe_code)]

use super::registers::{self, Value, bits, number};
use super::vcpu::Vcpu;
use crate::machine::machine;
use crate::world::features::Name;
use umbra_shared::error::Error;
use umbra_shared::register::{Register, UntrustedRegister};

impl Vcpu {
    /// VCPU_READ.
    ///
    /// # Errors
    ///
    /// BAD_REGISTER.
    pub fn read(&mut self, raw: UntrustedRegister) -> Result<Value, Error> {
        let register = self.find(raw)?;
        if let Some((offset, count)) = registers::place(register, self.length()) {
            let mut bytes = [0; 16];
            self.fp.image().read(offset, &mut bytes[..count]);
            let value = u128::from_le_bytes(bytes);
            return Ok([value as u64, (value >> 64) as u64]);
        }
        let value = match register {
            Register::System(number) => match self.constant(number) {
                Some(value) => value,
                None => *self.system(number).ok_or(Error::BadRegister)?,
            },
            other => *self.core(other).ok_or(Error::BadRegister)?,
        };
        Ok([value, 0])
    }

    /// VCPU_WRITE.
    ///
    /// # Errors
    ///
    /// BAD_REGISTER; INVALID_ARGUMENT for a value that it can't have, or another than the one that it has for good.
    pub fn write(&mut self, raw: UntrustedRegister, value: Value) -> Result<(), Error> {
        let register = self.find(raw)?;
        if let Some((offset, count)) = registers::place(register, self.length()) {
            let bytes = (u128::from(value[0]) | u128::from(value[1]) << 64).to_le_bytes();
            if bytes[count..].iter().any(|&byte| byte != 0) {
                return Err(Error::InvalidArgument);
            }
            self.fp.image().write(offset, &bytes[..count]);
            return Ok(());
        }
        let [value, above] = value;
        let aarch32 = self.features.aarch32;
        let good = above == 0
            && match register {
                Register::Pstate => registers::is_guests_pstate(value, aarch32),
                // A PC in A32 is even, as one in T32; and none of AArch32's has more than 32 bits.
                Register::Pc if aarch32 => value & !0xffff_fffe == 0,
                Register::Pc => value.is_multiple_of(4),
                Register::X(_) => self.register_width(value) == value,
                Register::System(number) => {
                    self.constant(number).is_none_or(|constant| constant == value)
                        && value & !bits(number) == 0
                }
                _ => false,
            };
        let place = match register {
            Register::System(number) if self.constant(number).is_some() => None,
            Register::System(number) => Some(self.system(number).ok_or(Error::BadRegister)?),
            other => Some(self.core(other).ok_or(Error::BadRegister)?),
        };
        if !good {
            return Err(Error::InvalidArgument);
        }
        if let Some(place) = place {
            *place = value;
        }
        Ok(())
    }

    fn find(&self, raw: UntrustedRegister) -> Result<Register, Error> {
        registers::find(raw, self.features, self.streaming())
    }

    fn streaming(&self) -> bool {
        self.fp.is_streaming()
    }

    fn length(&self) -> Option<umbra_shared::vl::Vq> {
        registers::length(self.features, self.streaming())
    }

    fn core(&mut self, register: Register) -> Option<&mut u64> {
        match register {
            Register::X(n) => self.regs.x.get_mut(usize::from(n)),
            Register::Pc => Some(&mut self.regs.pc),
            Register::Pstate => Some(&mut self.regs.pstate),
            _ => None,
        }
    }

    /// A register that a vCPU has for good: who it is, and what it is shown.
    fn constant(&self, number: u16) -> Option<u64> {
        match number {
            number::MPIDR_EL1 => Some(self.vmpidr),
            number::SVCR if self.features.svq.is_some() => Some(self.fp.svcr_bits()),
            _ => registers::id_register(number).map(|n| self.regs.id[n]),
        }
    }

    fn system(&mut self, number: u16) -> Option<&mut u64> {
        let (features, aarch32) = (self.features, self.features.aarch32);
        let [cntv_ctl, cntv_cval, cntvoff] = self.timer.registers();
        let [vmcr, ap0r0, ap1r0] = self.gic.registers();
        match number {
            number::CNTV_CTL_EL0 => return Some(cntv_ctl),
            number::CNTV_CVAL_EL0 => return Some(cntv_cval),
            number::CNTVOFF_EL2 => return Some(cntvoff),
            number::ICH_VMCR_EL2 => return Some(vmcr),
            number::ICH_AP0R0_EL2 => return Some(ap0r0),
            number::ICH_AP1R0_EL2 => return Some(ap1r0),
            number::TPIDR2_EL0 if features.svq.is_some() => return Some(self.el1.tpidr2_el0()),
            _ => {}
        }
        let [abt, und, irq, fiq, dacr, ifsr] = self.aarch32.registers();
        match number {
            number::SPSR_ABT => return Some(abt),
            number::SPSR_UND => return Some(und),
            number::SPSR_IRQ => return Some(irq),
            number::SPSR_FIQ => return Some(fiq),
            number::DACR32_EL2 if aarch32 => return Some(dacr),
            number::IFSR32_EL2 if aarch32 => return Some(ifsr),
            number::FPEXC32_EL2 if aarch32 => return Some(self.fp.fpexc()),
            _ => {}
        }
        if let Some(n) = registers::pauth_key(number) {
            return if machine().features.has(Name::Pauth) { self.el1.key(n) } else { None };
        }
        match number {
            number::ZCR_EL1 if features.vq.is_some() => Some(self.fp.zcr_el1()),
            number::SMCR_EL1 if features.svq.is_some() => Some(self.fp.smcr_el1()),
            number::FPMR if !machine().features.has(Name::Fpmr) => None,
            number::FPSR | number::FPCR | number::FPMR => {
                let [fpsr, fpcr, fpmr] = self.fp.image().status();
                match number {
                    number::FPSR => Some(fpsr),
                    number::FPCR => Some(fpcr),
                    _ => Some(fpmr),
                }
            }
            _ => self.el1.register(number),
        }
    }
}
