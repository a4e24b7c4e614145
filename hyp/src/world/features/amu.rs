//! Activity monitors: they count what a CPU does, whoever runs, so guests don't have them.

#![forbid(unsafe_code)]

use super::Control::{Cptr, Hafgrtr};
use super::id::Field;
use super::id::IdRegister::Aa64Pfr0;
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, register};

/// CPTR_EL2.
const TAM: u64 = 1 << 30;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr0, 44) != 0,
    fields: &[Field::new(Aa64Pfr0, 44, "AMU", Hidden)],
    bits: &[Bits::guest(Cptr, TAM, "TAM").always()],
    // With FEAT_FGT. Its bits trap if set.
    owns: &[Hafgrtr],
    registers: &[register("AM*_EL0", How::Trapped("CPTR_EL2.TAM"))],
    ..Feature::new(Name::Amu, "FEAT_AMUv1")
};
