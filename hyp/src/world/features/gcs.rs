//! Guarded control stacks: the host's.

#![forbid(unsafe_code)]

use super::Control::{Gcscr, Hcrx, Hfgitr, Hfgrtr, Hfgwtr};
use super::id::Field;
use super::id::IdRegister::Aa64Pfr1;
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, register};

/// HCRX_EL2.
const GCSEN: u64 = 1 << 22;
/// HFGxTR_EL2: nGCS_EL0, nGCS_EL1.
const NGCS: u64 = 3 << 52;
/// HFGITR_EL2: nGCSPUSHM_EL1, nGCSSTR_EL1, nGCSEPP.
const NGCS_INSTRUCTIONS: u64 = 7 << 57;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr1, 44) != 0,
    fields: &[Field::new(Aa64Pfr1, 44, "GCS", Hidden)],
    bits: &[
        Bits::host(Hcrx, GCSEN, "GCSEn").always(),
        Bits::host(Hfgrtr, NGCS, "nGCS_EL0, nGCS_EL1").always(),
        Bits::host(Hfgwtr, NGCS, "nGCS_EL0, nGCS_EL1").always(),
        Bits::host(Hfgitr, NGCS_INSTRUCTIONS, "nGCSPUSHM_EL1, nGCSSTR_EL1, nGCSEPP").always(),
    ],
    // Zero: hyp's returns are not checked against a stack that it doesn't have.
    owns: &[Gcscr],
    registers: &[register("GCSCR*, GCSPR*", How::Trapped("HCRX_EL2.GCSEn, HFGxTR_EL2.nGCS_* = 0"))],
    ..Feature::new(Name::Gcs, "FEAT_GCS")
};
