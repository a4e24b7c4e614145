//! Non-maskable interrupts, and injected UNDEFINED: no guest has them.

#![forbid(unsafe_code)]

use super::id::Field;
use super::id::IdRegister::{Aa64Pfr1, Aa64Pfr2};
use super::id::Shown::Hidden;
use super::{Feature, Name};

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr1, 36) != 0,
    fields: &[
        Field::new(Aa64Pfr1, 36, "NMI", Hidden),
        Field::new(Aa64Pfr2, 12, "GCIE", Hidden),
        Field::new(Aa64Pfr2, 16, "UINJ", Hidden),
    ],
    ..Feature::new(Name::Nmi, "FEAT_NMI")
};
