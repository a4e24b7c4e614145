//! What every CPU has: stage 2, exceptions, the traps that a guest always runs under.

#![forbid(unsafe_code)]

use super::Control::{Hcr, Hstr};
use super::id::Field;
use super::id::IdRegister::Aa64Pfr0;
use super::id::Shown::Is;
use super::{Bits, Feature, How, Name, register};

/// HCR_EL2.RW: EL1 is AArch64.
pub const HCR_RW: u64 = 1 << 31;

const VM: u64 = 1;
const SWIO: u64 = 1 << 1;
const PTW: u64 = 1 << 2;
const FB: u64 = 1 << 9;
/// Barriers act on the inner shareable domain at least.
const BSU_INNER: u64 = 1 << 10;
const TWI: u64 = 1 << 13;
const TID1: u64 = 1 << 16;
const TID3: u64 = 1 << 18;
const TSC: u64 = 1 << 19;
const TIDCP: u64 = 1 << 20;
const TACR: u64 = 1 << 21;
const TSW: u64 = 1 << 22;

pub(super) const FEATURE: Feature = Feature {
    // EL0 and EL1 in AArch64 only.
    fields: &[Field::new(Aa64Pfr0, 0, "EL0", Is(1)), Field::new(Aa64Pfr0, 4, "EL1", Is(1))],
    bits: &[
        Bits::both(Hcr, HCR_RW | VM | TSC, "RW, VM, TSC"),
        Bits::guest(Hcr, SWIO | PTW | FB | BSU_INNER, "SWIO, PTW, FB, BSU"),
        Bits::guest(Hcr, TWI | TSW, "TWI, TSW"),
        Bits::guest(Hcr, TID1 | TID3 | TACR, "TID1, TID3, TACR"),
        // The host's as well: what an implementer has put there may read anybody's memory.
        Bits::both(Hcr, TIDCP, "TIDCP"),
    ],
    owns: &[Hcr, Hstr],
    registers: &[
        register(
            "X0-X30, PC, PSTATE",
            How::SwitchedBy("`umbra_guest_enter`; the host's are on hyp's stack"),
        ),
        register("MPIDR_EL1", How::SwitchedBy("VMPIDR_EL2, the vCPU's")),
        register("stage 2 and VMID", How::SwitchedBy("VTTBR_EL2, the VM's")),
        register("REVIDR_EL1, AIDR_EL1", How::Trapped("HCR_EL2.TID1")),
        register("ACTLR_EL1", How::Trapped("HCR_EL2.TACR")),
        register(
            "IMPLEMENTATION DEFINED registers and instructions",
            How::Trapped("HCR_EL2.TIDCP, from the host, too"),
        ),
        register("DC ISW, CSW, CISW", How::Trapped("HCR_EL2.TSW (ignored)")),
        register("MIDR_EL1, CTR_EL0, CLIDR_EL1, CCSIDR_EL1, DCZID_EL0, ISR_EL1", How::Constant),
        register("RNDR, RNDRRS", How::Constant),
    ],
    ..Feature::new(Name::Base, "Armv8.0")
};
