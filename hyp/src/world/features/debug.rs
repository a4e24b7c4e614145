//! Self-hosted debug: breakpoints and watchpoints are the host's.

#![forbid(unsafe_code)]

use super::Control::Mdcr;
use super::id::Field;
use super::id::IdRegister::{Aa64Dfr0, Aa64Dfr1, Dfr1};
use super::id::Shown::{Hidden, Is};
use super::{Bits, Feature, How, Name, register};

/// MDCR_EL2: TDA, TDOSA, TDRA.
const TDX: u64 = 1 << 9 | 1 << 10 | 1 << 11;

pub(super) const FEATURE: Feature = Feature {
    fields: &[
        // The architecture needs a debug version; nothing else is there.
        Field::new(Aa64Dfr0, 0, "DebugVer", Is(6)),
        Field::new(Aa64Dfr0, 12, "BRPs", Hidden),
        Field::new(Aa64Dfr0, 20, "WRPs", Hidden),
        Field::new(Aa64Dfr0, 24, "SEBEP", Hidden),
        Field::new(Aa64Dfr0, 28, "CTX_CMPs", Hidden),
        Field::new(Aa64Dfr0, 36, "DoubleLock", Hidden),
        Field::new(Aa64Dfr1, 0, "DFR1", Hidden).wide(64),
        Field::new(Dfr1, 0, "DFR1 of AArch32", Hidden).wide(32),
    ],
    bits: &[Bits::guest(Mdcr, TDX, "TDA, TDOSA, TDRA")],
    owns: &[Mdcr],
    registers: &[register(
        "breakpoints, watchpoints, OS lock, debug communication",
        How::Trapped("MDCR_EL2.TDA, TDOSA, TDRA (read as zero, writes ignored)"),
    )],
    ..Feature::new(Name::Debug, "FEAT_Debugv8p0 and later")
};
