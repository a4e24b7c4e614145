//! EL2 itself, and what only a hypervisor or EL3 uses: no guest has it.

#![forbid(unsafe_code)]

use super::Control::{CnthvCtl, Contextidr};
use super::id::Field;
use super::id::IdRegister::{Aa64Mmfr0, Aa64Mmfr1, Aa64Mmfr2, Aa64Mmfr4, Aa64Pfr0};
use super::id::Shown::Hidden;
use super::{Feature, Name};

pub(super) const FEATURE: Feature = Feature {
    fields: &[
        Field::new(Aa64Pfr0, 8, "EL2", Hidden),
        Field::new(Aa64Pfr0, 12, "EL3", Hidden),
        Field::new(Aa64Pfr0, 36, "SEL2", Hidden),
        Field::new(Aa64Pfr0, 52, "RME", Hidden),
        Field::new(Aa64Mmfr0, 44, "ExS", Hidden),
        Field::new(Aa64Mmfr1, 8, "VH", Hidden),
        Field::new(Aa64Mmfr1, 32, "TWED", Hidden),
        Field::new(Aa64Mmfr1, 52, "TIDCP1", Hidden),
        Field::new(Aa64Mmfr2, 24, "NV", Hidden),
        Field::new(Aa64Mmfr2, 56, "EVT", Hidden),
        Field::new(Aa64Mmfr4, 4, "EIESB", Hidden),
        Field::new(Aa64Mmfr4, 16, "FGWTE3", Hidden),
        Field::new(Aa64Mmfr4, 20, "NV_frac", Hidden),
        Field::new(Aa64Mmfr4, 24, "E2H0", Hidden),
        Field::new(Aa64Mmfr4, 36, "E3DSE", Hidden),
    ],
    ..Feature::new(Name::El2, "EL2, EL3")
};

/// What VHE brings, which hyp doesn't use: EL2's virtual timer, which would interrupt the host, and a context
/// number.
pub(super) const VHE: Feature = Feature {
    is_there: |id| id.field(Aa64Mmfr1, 8) != 0,
    owns: &[CnthvCtl, Contextidr],
    ..Feature::new(Name::Vhe, "FEAT_VHE")
};
