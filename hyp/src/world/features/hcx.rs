//! HCRX_EL2: what it opens belongs to other features. For guests everything in it is closed but for what they
//! name.

#![forbid(unsafe_code)]

use super::Control::Hcrx;
use super::id::Field;
use super::id::IdRegister::Aa64Mmfr1;
use super::id::Shown::Hidden;
use super::{Feature, Name};

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Mmfr1, 40) != 0,
    fields: &[Field::new(Aa64Mmfr1, 40, "HCX", Hidden)],
    owns: &[Hcrx],
    ..Feature::new(Name::Hcx, "FEAT_HCX")
};
