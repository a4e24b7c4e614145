//! Branch records: no guest has them, and none of the host's shows what a guest does.

#![forbid(unsafe_code)]

use super::Control::{Brbcr, Hdfgrtr, Hdfgwtr, Hfgitr};
use super::id::Field;
use super::id::IdRegister::Aa64Dfr0;
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, Optional, register};

/// HFGITR_EL2: nBRBINJ, nBRBIALL.
const NBRBI: u64 = 3 << 55;
/// HDFGRTR_EL2: nBRBIDR, nBRBCTL, nBRBDATA.
const NBRB: u64 = 1 << 59 | 1 << 60 | 1 << 61;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Dfr0, 52) != 0,
    fields: &[Field::new(Aa64Dfr0, 52, "BRBE", Hidden)],
    bits: &[
        Bits::host(Hfgitr, NBRBI, "nBRBINJ, nBRBIALL").always(),
        Bits::host(Hdfgrtr, NBRB, "nBRBIDR, nBRBCTL, nBRBDATA").always(),
        Bits::host(Hdfgwtr, NBRB, "nBRBCTL, nBRBDATA").always(),
    ],
    // Zero: none of hyp's branches, and no mispredict counts.
    owns: &[Brbcr],
    registers: &[
        // The host's; zero while a guest runs.
        register("BRBCR_EL1", How::Switched(Optional::BrbcrEl1)),
        register("BRB* of guests", How::Trapped("HDFGxTR_EL2.nBRB*, HFGITR_EL2.nBRBI* = 0")),
    ],
    ..Feature::new(Name::Brbe, "FEAT_BRBE")
};
