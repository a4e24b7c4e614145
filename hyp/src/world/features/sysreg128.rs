//! 128-bit registers and descriptors, PACM: the host's.

#![forbid(unsafe_code)]

use super::Control::Hcrx;
use super::id::Field;
use super::id::IdRegister::{Aa64Isar2, Aa64Mmfr3};
use super::id::Shown::Hidden;
use super::{Bits, Feature, Name};

/// HCRX_EL2: D128En, EnIDCP128, PACMEn.
const EN: u64 = 1 << 17 | 1 << 21 | 1 << 24;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Isar2, 32) != 0 || id.field(Aa64Mmfr3, 32) != 0,
    fields: &[
        Field::new(Aa64Isar2, 32, "SYSREG_128", Hidden),
        Field::new(Aa64Isar2, 36, "SYSINSTR_128", Hidden),
        Field::new(Aa64Mmfr3, 32, "D128", Hidden),
        Field::new(Aa64Mmfr3, 36, "D128_2", Hidden),
    ],
    bits: &[Bits::host(Hcrx, EN, "D128En, EnIDCP128, PACMEn").always()],
    ..Feature::new(Name::Sysreg128, "FEAT_SYSREG128, FEAT_D128")
};
