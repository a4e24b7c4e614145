//! Memory copy instructions: everybody's, with an exception of their own that stays with EL1.

#![forbid(unsafe_code)]

use super::Control::Hcrx;
use super::id::Field;
use super::id::IdRegister::Aa64Isar2;
use super::id::Shown::AsIs;
use super::{Bits, Feature, Name, Relied};

/// HCRX_EL2.
const MSCEN: u64 = 1 << 11;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Isar2, 16) != 0,
    fields: &[Field::new(Aa64Isar2, 16, "MOPS", AsIs)],
    bits: &[Bits::both(Hcrx, MSCEN, "MSCEn").always()],
    relied_on: Relied::InAarch64,
    ..Feature::new(Name::Mops, "FEAT_MOPS")
};
