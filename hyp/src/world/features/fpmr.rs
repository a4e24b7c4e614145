//! FPMR, which FP8's instructions need: switched by the FP engine, open to all.

#![forbid(unsafe_code)]

use super::Control::Hcrx;
use super::id::Field;
use super::id::IdRegister::{Aa64Fpfr0, Aa64Pfr2};
use super::id::Shown::AsIs;
use super::{Bits, Feature, How, Name, Relied, register};

/// HCRX_EL2.
const ENFPM: u64 = 1 << 23;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr2, 32) != 0,
    fields: &[
        Field::new(Aa64Pfr2, 32, "FPMR", AsIs),
        Field::new(Aa64Fpfr0, 0, "FP8's instructions", AsIs).wide(64).flags(),
    ],
    bits: &[Bits::both(Hcrx, ENFPM, "EnFPM").always()],
    registers: &[register("FPMR", How::SwitchedBy("the FP engine"))],
    relied_on: Relied::InAarch64,
    ..Feature::new(Name::Fpmr, "FEAT_FPMR")
};
