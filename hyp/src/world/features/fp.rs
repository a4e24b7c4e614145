//! FP and Advanced SIMD: every CPU that hyp runs on. The registers are the FP engine's ([`crate::fp`]).

#![forbid(unsafe_code)]

use super::Control::Cptr;
use super::id::Field;
use super::id::IdRegister::Aa64Pfr0;
use super::id::Shown::AsIs;
use super::{Feature, How, Name, register};

pub(super) const FEATURE: Feature = Feature {
    fields: &[
        Field::new(Aa64Pfr0, 16, "FP", AsIs).signed(),
        Field::new(Aa64Pfr0, 20, "AdvSIMD", AsIs).signed(),
    ],
    // Its FP bits are the engine's in both worlds.
    owns: &[Cptr],
    registers: &[register("V0-V31, FPSR, FPCR, FPEXC32_EL2", How::SwitchedBy("the FP engine"))],
    ..Feature::new(Name::Fp, "FEAT_FP, FEAT_AdvSIMD")
};
