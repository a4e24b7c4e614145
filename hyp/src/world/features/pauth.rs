//! Pointer authentication, of either algorithm. A guest's keys are switched from its first use of them on;
//! until then they are trapped and the host's stay where they are.

#![forbid(unsafe_code)]

use super::Control::Hcr;
use super::id::Field;
use super::id::IdRegister::{Aa64Isar1, Aa64Isar2};
use super::id::Shown::AsIs;
use super::{Bits, Feature, How, Name, Relied, register};

/// HCR_EL2.API and APK.
pub const HCR_API_APK: u64 = 1 << 41 | 1 << 40;

const KEYS: &str =
    "`switch_pauth`, from the guest's first use on; until then HCR_EL2.API, APK trap it";

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| {
        id.field(Aa64Isar1, 4) != 0 || id.field(Aa64Isar1, 8) != 0 || id.field(Aa64Isar2, 12) != 0
    },
    fields: &[
        Field::new(Aa64Isar1, 4, "APA", AsIs).exact(),
        Field::new(Aa64Isar1, 8, "API", AsIs).exact(),
        Field::new(Aa64Isar1, 24, "GPA", AsIs).exact(),
        Field::new(Aa64Isar1, 28, "GPI", AsIs).exact(),
        Field::new(Aa64Isar2, 8, "GPA3", AsIs).exact(),
        Field::new(Aa64Isar2, 12, "APA3", AsIs).exact(),
        Field::new(Aa64Isar2, 24, "PAC_frac", AsIs),
    ],
    bits: &[Bits::host(Hcr, HCR_API_APK, "API, APK")],
    registers: &[register("APIAKey, APIBKey, APDAKey, APDBKey, APGAKey", How::SwitchedBy(KEYS))],
    relied_on: Relied::InAarch64,
    ..Feature::new(Name::Pauth, "FEAT_PAuth")
};
