//! Statistical profiling: MDCR_EL2.E2PB = 0 keeps the profiling buffer, which writes memory by itself, with EL2,
//! where nobody turns it on.

#![forbid(unsafe_code)]

use super::Control::{Hdfgrtr, Hdfgwtr, Mdcr, Pmscr};
use super::id::Field;
use super::id::IdRegister::Aa64Dfr0;
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, register};

/// MDCR_EL2.
const TPMS: u64 = 1 << 14;
/// HDFGxTR_EL2: nPMSNEVFR_EL1.
const NPMSNEVFR: u64 = 1 << 62;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Dfr0, 32) != 0,
    fields: &[Field::new(Aa64Dfr0, 32, "PMSVer", Hidden)],
    bits: &[
        Bits::guest(Mdcr, TPMS, "TPMS").always(),
        Bits::host(Hdfgrtr, NPMSNEVFR, "nPMSNEVFR_EL1").always(),
        Bits::host(Hdfgwtr, NPMSNEVFR, "nPMSNEVFR_EL1").always(),
    ],
    // Zero: nothing of EL2 is sampled.
    owns: &[Pmscr],
    registers: &[register("PMS*_EL1, PMB*_EL1", How::Trapped("MDCR_EL2.TPMS, E2PB = 0"))],
    ..Feature::new(Name::Spe, "FEAT_SPE")
};
