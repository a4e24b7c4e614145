//! Stage 2 forces write-back: whatever a guest's stage 1 says, with its MMU off too, its memory is what caches hold.
//! Data caches need not be cleaned for instructions either: with it LoUU and LoUIS are zero (Arm ARM, CLIDR_EL1).

#![forbid(unsafe_code)]

use super::Control::Hcr;
use super::id::Field;
use super::id::IdRegister::Aa64Mmfr2;
use super::id::Shown::Hidden;
use super::{Bits, Feature, Name, Relied};

/// HCR_EL2.
const FWB: u64 = 1 << 46;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Mmfr2, 40) != 0,
    fields: &[Field::new(Aa64Mmfr2, 40, "FWB", Hidden)],
    // The host's stage 2 leaves the host its attributes.
    bits: &[Bits::guest(Hcr, FWB, "FWB")],
    // MemAttr of a guest's stage 2 means something else without it.
    relied_on: Relied::ByAll,
    ..Feature::new(Name::Fwb, "FEAT_S2FWB")
};
