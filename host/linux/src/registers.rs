//! Registers as KVM_GET_ONE_REG and KVM_SET_ONE_REG name them, in the words of VCPU_READ and VCPU_WRITE (KVM's api.rst,
//! 4.68; arm64's `asm/kvm.h`).

#![forbid(unsafe_code)]

use crate::abi::Errno;
use umbra_shared::{
    register::{FFR, Register, system},
    vl::Vq,
};

/// KVM_REG_ARM64.
const ARM64: u64 = 0x6000_0000_0000_0000;
const ARCH_MASK: u64 = 0xff00_0000_0000_0000;
/// KVM_REG_SIZE_*: the logarithm of the bytes.
const SIZE_SHIFT: u32 = 52;
const SIZE_MASK: u64 = 0xf << SIZE_SHIFT;
const U32: u64 = 2 << SIZE_SHIFT;
const U64: u64 = 3 << SIZE_SHIFT;
const U128: u64 = 4 << SIZE_SHIFT;
const U256: u64 = 5 << SIZE_SHIFT;
const U512: u64 = 6 << SIZE_SHIFT;
const U2048: u64 = 8 << SIZE_SHIFT;
/// KVM_REG_ARM_COPROC_MASK and what is there.
const KIND_MASK: u64 = 0x0fff_0000;
const CORE: u64 = 0x10 << 16;
const SYSREG: u64 = 0x13 << 16;
const FIRMWARE: u64 = 0x14 << 16;
const SVE: u64 = 0x15 << 16;

/// Places in `struct kvm_regs`, in units of four bytes.
mod place {
    pub const SP: u64 = 62;
    pub const PC: u64 = 64;
    pub const PSTATE: u64 = 66;
    pub const SP_EL1: u64 = 68;
    pub const ELR_EL1: u64 = 70;
    /// SPSR_EL1, and of AArch32 SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq.
    pub const SPSR: u64 = 72;
    pub const V: u64 = 84;
    pub const FPSR: u64 = 212;
    pub const FPCR: u64 = 213;
}

/// Where Zn, Pn and FFR begin among the SVE ones, whose numbers have 5 bits for a slice; there is one.
const SVE_P: u64 = 0x400;
const SVE_FFR: u64 = 0x600;
/// KVM_REG_ARM64_SVE_VLS.
pub const VLS: u64 = ARM64 | U512 | SVE | 0xffff;
/// KVM_REG_ARM_PSCI_VERSION.
pub const PSCI_VERSION: u64 = ARM64 | U64 | FIRMWARE;

const SP_EL0: u16 = system(3, 0, 4, 1, 0);
const SP_EL1: u16 = system(3, 4, 4, 1, 0);
const ELR_EL1: u16 = system(3, 0, 4, 0, 1);
const SPSR_EL1: u16 = system(3, 0, 4, 0, 0);
const SPSR_ABT: u16 = system(3, 4, 4, 3, 1);
const SPSR_UND: u16 = system(3, 4, 4, 3, 2);
const SPSR_IRQ: u16 = system(3, 4, 4, 3, 0);
const SPSR_FIQ: u16 = system(3, 4, 4, 3, 3);
const FPSR: u16 = system(3, 3, 4, 4, 1);
const FPCR: u16 = system(3, 3, 4, 4, 0);
const CNTV_CVAL: u16 = system(3, 3, 14, 3, 2);
const CNTVCT: u16 = system(3, 3, 14, 0, 2);

/// What an ID names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// A register of so many bytes: 4, 8 or 16.
    One(Register, usize),
    /// CNTVCT_EL0, which a write sets.
    Counter,
    /// Zn, in 256 bytes.
    Z(u8),
    /// Pn, or FFR, in 32 bytes.
    P(u8),
    /// The vector lengths that the vCPU has.
    VectorLengths,
    /// The version of PSCI.
    PsciVersion,
}

impl Named {
    /// What an ID names.
    ///
    /// # Errors
    ///
    /// ENOENT: nothing that a vCPU can have. EINVAL: of another size.
    pub fn of(id: u64) -> Result<Self, Errno> {
        if id & ARCH_MASK != ARM64 {
            return Err(Errno::ENOENT);
        }
        let (size, kind) = (id & SIZE_MASK, id & KIND_MASK);
        let number = id & 0xffff;
        if id & !(ARCH_MASK | SIZE_MASK | KIND_MASK | 0xffff) != 0 {
            return Err(Errno::ENOENT);
        }
        let (named, expected) = match kind {
            CORE => Self::core(number)?,
            SYSREG => match number as u16 {
                // KVM took one for the other once, and that is the interface now.
                CNTV_CVAL => (Self::Counter, U64),
                CNTVCT => (Self::One(Register::System(CNTV_CVAL), 8), U64),
                // They have names of the core's, or are hyp's: KVM knows none of them here.
                SP_EL0 | ELR_EL1 | SPSR_EL1 | FPSR | FPCR => return Err(Errno::ENOENT),
                el2 if el2 >> 11 & 7 == 4 => return Err(Errno::ENOENT),
                other => (Self::One(Register::System(other), 8), U64),
            },
            FIRMWARE if number == 0 => (Self::PsciVersion, U64),
            SVE if id == VLS => (Self::VectorLengths, U512),
            SVE if number & 0x1f != 0 => return Err(Errno::ENOENT),
            SVE => {
                let n = (number >> 5) as u8;
                match number {
                    0..SVE_P => (Self::Z(n & 0x1f), U2048),
                    SVE_P..SVE_FFR if n & 0x1f < 16 => (Self::P(n & 0xf), U256),
                    SVE_FFR => (Self::P(FFR), U256),
                    _ => return Err(Errno::ENOENT),
                }
            }
            _ => return Err(Errno::ENOENT),
        };
        if size == expected { Ok(named) } else { Err(Errno::EINVAL) }
    }

    /// Whether it is one of V0 to V31: of a vCPU with SVE these are parts of Z0 to Z31, and KVM's ID of them is EINVAL.
    pub const fn is_v(self) -> bool {
        matches!(self, Self::One(Register::Z { .. }, _))
    }

    /// The quadwords of Zn, Pn or FFR, as many as there is room for under its ID, for a vCPU with vectors of `vq`.
    /// `None`: its vectors are shorter, and KVM has zeroes there.
    pub fn quadwords(self, vq: Vq) -> impl Iterator<Item = Option<Register>> {
        let vector = vq.quadwords() as u8;
        let (room, has) = match self {
            Self::Z(_) => (16, vector),
            // A bit for every byte of the vector.
            Self::P(_) => (2, vector.div_ceil(8)),
            _ => (0, 0),
        };
        (0..room).map(move |quadword| match self {
            Self::Z(n) if quadword < has => Some(Register::Z { n, quadword }),
            Self::P(n) if quadword < has => Some(Register::P { n, quadword }),
            _ => None,
        })
    }

    fn core(place: u64) -> Result<(Self, u64), Errno> {
        let system = |number| Register::System(number);
        let register = match place {
            place::FPSR => return Ok((Self::One(system(FPSR), 4), U32)),
            place::FPCR => return Ok((Self::One(system(FPCR), 4), U32)),
            place::V..place::FPSR if (place - place::V).is_multiple_of(4) => {
                let n = ((place - place::V) / 4) as u8;
                return Ok((Self::One(Register::Z { n, quadword: 0 }, 16), U128));
            }
            place if !place.is_multiple_of(2) => return Err(Errno::ENOENT),
            0..place::SP => Register::X((place / 2) as u8),
            place::SP => system(SP_EL0),
            place::PC => Register::Pc,
            place::PSTATE => Register::Pstate,
            place::SP_EL1 => system(SP_EL1),
            place::ELR_EL1 => system(ELR_EL1),
            place::SPSR..82 => {
                let all = [SPSR_EL1, SPSR_ABT, SPSR_UND, SPSR_IRQ, SPSR_FIQ];
                let n = ((place - place::SPSR) / 2) as usize;
                system(*all.get(n).ok_or(Errno::ENOENT)?)
            }
            _ => return Err(Errno::ENOENT),
        };
        Ok((Self::One(register, 8), U64))
    }
}

/// All that a vCPU may have, of which it has those that can be read. With SVE V0 to V31 are parts of Z0 to Z31, and
/// have no names of their own.
pub fn all(sve: bool) -> impl Iterator<Item = u64> {
    let core = (0..place::SPSR + 10).step_by(2).map(|place| ARM64 | U64 | CORE | place);
    let v = (0..32).filter(move |_| !sve).map(|n| ARM64 | U128 | CORE | (place::V + 4 * n));
    let fp = [place::FPSR, place::FPCR].map(|place| ARM64 | U32 | CORE | place);
    let z = (0..32).map(|n| ARM64 | U2048 | SVE | n << 5);
    let p = (0..16).map(|n| ARM64 | U256 | SVE | SVE_P | n << 5);
    let rest = [ARM64 | U256 | SVE | SVE_FFR, VLS];
    let vectors = z.chain(p).chain(rest).filter(move |_| sve);
    let system =
        (0..1u64 << 16).filter(|&n| is_candidate(n as u16)).map(|n| ARM64 | U64 | SYSREG | n);
    core.chain(v).chain(fp).chain(vectors).chain(system).chain([PSCI_VERSION])
}

/// System registers of EL1 and EL0 that hyp may have for a vCPU: beyond ID registers and what it switches there are
/// none, and asking for all 65,536 numbers takes too long.
fn is_candidate(number: u16) -> bool {
    let (op0, op1, crn) = (number >> 14, number >> 11 & 7, number >> 7 & 0xf);
    let has_names = matches!(number, SP_EL0 | ELR_EL1 | SPSR_EL1 | FPSR | FPCR);
    op0 == 3
        && matches!((op1, crn), (0, 0..=2 | 4..=7 | 10 | 12..=14) | (2, 0) | (3, 4 | 13 | 14))
        && !has_names
        || op0 == 2 && number == system(2, 0, 0, 2, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn ids_are_kvms() {
        // module/abi.c holds the same against Linux's headers.
        for (id, named) in [
            (0x6030_0000_0010_0000, Named::One(Register::X(0), 8)),
            (0x6030_0000_0010_003c, Named::One(Register::X(30), 8)),
            (0x6030_0000_0010_003e, Named::One(Register::System(SP_EL0), 8)),
            (0x6030_0000_0010_0040, Named::One(Register::Pc, 8)),
            (0x6030_0000_0010_0042, Named::One(Register::Pstate, 8)),
            (0x6030_0000_0010_0044, Named::One(Register::System(SP_EL1), 8)),
            (0x6030_0000_0010_0046, Named::One(Register::System(ELR_EL1), 8)),
            (0x6030_0000_0010_0048, Named::One(Register::System(SPSR_EL1), 8)),
            (0x6040_0000_0010_0058, Named::One(Register::Z { n: 1, quadword: 0 }, 16)),
            (0x6020_0000_0010_00d4, Named::One(Register::System(FPSR), 4)),
            (0x6020_0000_0010_00d5, Named::One(Register::System(FPCR), 4)),
            (0x6030_0000_0013_c005, Named::One(Register::System(0xc005), 8)),
            (0x6030_0000_0013_df1a, Named::Counter),
            (0x6030_0000_0013_df02, Named::One(Register::System(0xdf1a), 8)),
            (0x6080_0000_0015_0020, Named::Z(1)),
            (0x6050_0000_0015_0420, Named::P(1)),
            (0x6050_0000_0015_0600, Named::P(FFR)),
            (0x6060_0000_0015_ffff, Named::VectorLengths),
            (0x6030_0000_0014_0000, Named::PsciVersion),
        ] {
            assert_eq!(Named::of(id), Ok(named), "{id:#x}");
        }
    }

    #[test]
    fn every_id_of_the_list_has_a_name_of_its_own() {
        for sve in [false, true] {
            let ids: Vec<_> = all(sve).collect();
            assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
            assert!(ids.iter().all(|&id| Named::of(id).is_ok()));
            assert_eq!(ids.contains(&VLS), sve);
            // As KVM, one register has one name.
            let names: HashSet<_> =
                ids.iter().map(|&id| format!("{:?}", Named::of(id).unwrap())).collect();
            assert_eq!(names.len(), ids.len());
            assert!(ids.len() < 1 << 14);
        }
    }

    #[test]
    fn what_is_not_the_guests_has_no_name() {
        // ICH_VMCR_EL2, CNTVOFF_EL2, and SPSR_EL1 by its encoding.
        for number in [system(3, 4, 12, 11, 7), system(3, 4, 14, 0, 3), SPSR_EL1] {
            assert_eq!(Named::of(ARM64 | U64 | SYSREG | u64::from(number)), Err(Errno::ENOENT));
        }
    }

    #[test]
    fn vectors_fill_their_ids_from_below() {
        for (quadwords, of_p) in [(1, 1), (2, 1), (8, 1), (9, 2), (16, 2)] {
            let vq = Vq::new(quadwords).unwrap();
            for (named, room, has) in [
                (Named::Z(3), 16, quadwords as usize),
                (Named::P(3), 2, of_p),
                (Named::P(FFR), 2, of_p),
            ] {
                let all: Vec<_> = named.quadwords(vq).collect();
                assert_eq!(all.len(), room);
                assert!(all[..has].iter().enumerate().all(|(at, register)| {
                    match (named, register) {
                        (Named::Z(n), &Some(Register::Z { n: of, quadword }))
                        | (Named::P(n), &Some(Register::P { n: of, quadword })) => {
                            n == of && usize::from(quadword) == at
                        }
                        _ => false,
                    }
                }));
                assert!(all[has..].iter().all(Option::is_none));
            }
        }
        assert_eq!(Named::Counter.quadwords(Vq::new(16).unwrap()).count(), 0);
    }

    proptest! {
        #[test]
        fn nothing_else_has_one(id: u64, low in 0u64..1 << 16, size in 0u64..16, kind in 0x10u64..0x18) {
            for id in [id, ARM64 | size << SIZE_SHIFT | kind << 16 | low] {
                if let Ok(named) = Named::of(id) {
                    let bytes = 1 << (id >> SIZE_SHIFT & 0xf);
                    let expected = match named {
                        Named::One(_, bytes) => bytes,
                        Named::Counter | Named::PsciVersion => 8,
                        Named::Z(n) => { prop_assert!(n < 32); 256 },
                        Named::P(n) => { prop_assert!(n <= FFR); 32 },
                        Named::VectorLengths => 64,
                    };
                    prop_assert_eq!(bytes, expected);
                }
            }
        }
    }
}
