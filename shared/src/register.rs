//! Registers of a vCPU, one by one, as VCPU_READ and VCPU_WRITE name them: what a monitor of a normal VM needs to
//! set one up, to look at it, and to take it elsewhere (KVM's KVM_GET_ONE_REG and KVM_SET_ONE_REG).
//!
//! A value has 16 bytes: the lower half in one register, the upper one, zero for most, in the next. What is longer is
//! named in quadwords. ZA and ZT0 have no names, and SVCR is what it is: a vCPU in streaming mode, or with ZA on, can be looked
//! at and not be taken elsewhere (INVALID_ARGUMENT, when SVCR is written). Of an AArch32 vCPU they are the registers that the Arm ARM maps its own to (D1.19.2).
//! SPSR_abt, SPSR_und, SPSR_irq and SPSR_fiq are there in AArch64, too, where a guest can't reach them: KVM has names for them.

/// A register as the host named it: it may be anything.
///
/// | bits | |
/// |---|---|
/// | 7:0 | which quadword (16 bytes) of it |
/// | 31:8 | its number |
/// | 39:32 | its kind |
/// | 63:40 | zero |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UntrustedRegister(pub u64);

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// Kind 0: Xn, n in 0..31.
    X(u8),
    /// Kind 1, number 0: PC.
    Pc,
    /// Kind 1, number 1: PSTATE, as SPSR_EL2 has it.
    Pstate,
    /// Kind 1, number 2: whether it is on: 1, or 0. One that its guest has turned on is on, and in its reset state once it
    /// has been loaded. Written it is on, or off, and all else is as it was: not as by VCPU_RESET.
    Power,
    /// Kind 2: what MRS reads, by op0 (15:14), op1 (13:11), CRn (10:7), CRm (6:3) and op2 (2:0).
    System(u16),
    /// Kind 3: Zn, n in 0..32; its first quadword is Vn, and all that there is without SVE.
    Z {
        /// n
        n: u8,
        /// which 16 bytes of VL bytes
        quadword: u8,
    },
    /// Kind 4: Pn, n in 0..16; number 16 is FFR. They have VL / 8 bytes; what a quadword has beyond is zero.
    P {
        /// n
        n: u8,
        /// which 16 bytes
        quadword: u8,
    },
}

/// The number of FFR among the predicates.
pub const FFR: u8 = 16;

/// The number of a system register.
pub const fn system(op0: u16, op1: u16, crn: u16, crm: u16, op2: u16) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

impl Register {
    const fn named(kind: u64, number: u64, quadword: u8) -> UntrustedRegister {
        UntrustedRegister(kind << 32 | number << 8 | quadword as u64)
    }

    /// As the calls have it.
    pub const fn encode(self) -> UntrustedRegister {
        match self {
            Self::X(n) => Self::named(0, n as u64, 0),
            Self::Pc => Self::named(1, 0, 0),
            Self::Pstate => Self::named(1, 1, 0),
            Self::Power => Self::named(1, 2, 0),
            Self::System(number) => Self::named(2, number as u64, 0),
            Self::Z { n, quadword } => Self::named(3, n as u64, quadword),
            Self::P { n, quadword } => Self::named(4, n as u64, quadword),
        }
    }
}

impl UntrustedRegister {
    /// The register, if there is one of this name. Whether a vCPU has it is another matter.
    pub const fn decode(self) -> Option<Register> {
        let (kind, number, quadword) = (self.0 >> 32, self.0 >> 8 & 0xff_ffff, self.0 as u8);
        Some(match (kind, number, quadword) {
            (0, 0..=30, 0) => Register::X(number as u8),
            (1, 0, 0) => Register::Pc,
            (1, 1, 0) => Register::Pstate,
            (1, 2, 0) => Register::Power,
            (2, 0..=0xffff, 0) => Register::System(number as u16),
            (3, 0..=31, 0..=15) => Register::Z { n: number as u8, quadword },
            (4, 0..=16, 0..=1) => Register::P { n: number as u8, quadword },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_kvms() {
        // KVM_REG_ARM_TIMER_CVAL and SCTLR_EL1 (Linux, arch/arm64/include/uapi/asm/kvm.h).
        assert_eq!(system(3, 3, 14, 3, 2), 0xdf1a);
        assert_eq!(system(3, 0, 1, 0, 0), 0xc080);
    }

    proptest! {
        #[test]
        fn what_has_a_name_has_one(
            raw in prop_oneof![any::<u64>(), 0u64..6 << 32, (0u64..6, 0u64..64, 0u64..18)
                .prop_map(|(kind, n, quadword)| kind << 32 | n << 8 | quadword)]
        ) {
            if let Some(register) = UntrustedRegister(raw).decode() {
                prop_assert_eq!(register.encode(), UntrustedRegister(raw));
            }
        }
    }
}
