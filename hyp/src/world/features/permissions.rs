//! Translation's later registers (TCR2_EL1, SCTLR2_EL1, permission indirection and overlays, MAIR2, AMAIR2, RCW
//! masks): the host's. Their enables are off for guests, which makes the host's values ineffective there, too.

#![forbid(unsafe_code)]

use super::Control::{Hcrx, Hfgrtr, Hfgwtr};
use super::id::Field;
use super::id::IdRegister::{Aa64Mmfr3, Aa64Pfr1};
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, register};

/// HCRX_EL2: TCR2En, SCTLR2En.
const EN2: u64 = 1 << 14 | 1 << 15;
/// HFGxTR_EL2: nRCWMASK_EL1, nPIRE0_EL1, nPIR_EL1, nPOR_EL0, nPOR_EL1, nS2POR_EL1, nMAIR2_EL1, nAMAIR2_EL1.
const N_BITS: u64 = 0xff << 56;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Mmfr3, 0) != 0 || id.field(Aa64Mmfr3, 4) != 0,
    fields: &[
        Field::new(Aa64Pfr1, 48, "THE", Hidden),
        Field::new(Aa64Mmfr3, 0, "TCRX", Hidden),
        Field::new(Aa64Mmfr3, 4, "SCTLRX", Hidden),
        Field::new(Aa64Mmfr3, 8, "S1PIE", Hidden),
        Field::new(Aa64Mmfr3, 12, "S2PIE", Hidden),
        Field::new(Aa64Mmfr3, 16, "S1POE", Hidden),
        Field::new(Aa64Mmfr3, 20, "S2POE", Hidden),
        Field::new(Aa64Mmfr3, 24, "AIE", Hidden),
        Field::new(Aa64Mmfr3, 28, "MEC", Hidden),
        Field::new(Aa64Mmfr3, 60, "Spec_FPACC", Hidden),
    ],
    bits: &[
        Bits::host(Hcrx, EN2, "TCR2En, SCTLR2En").always(),
        Bits::host(Hfgrtr, N_BITS, "nRCWMASK_EL1 to nAMAIR2_EL1").always(),
        Bits::host(Hfgwtr, N_BITS, "nRCWMASK_EL1 to nAMAIR2_EL1").always(),
    ],
    registers: &[
        register("TCR2_EL1, SCTLR2_EL1", How::Trapped("HCRX_EL2.TCR2En, SCTLR2En = 0")),
        register(
            "PIR*_EL1, POR_ELx, MAIR2_EL1, AMAIR2_EL1, S2POR_EL1, RCWMASK_EL1, RCWSMASK_EL1",
            How::Trapped("HFGxTR_EL2's and HFGxTR2_EL2's n-bits = 0"),
        ),
    ],
    ..Feature::new(Name::Permissions, "FEAT_TCR2, FEAT_SCTLR2, FEAT_S1PIE and their kin")
};
