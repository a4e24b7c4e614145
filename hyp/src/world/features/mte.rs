//! Memory tagging: the host's alone.

#![forbid(unsafe_code)]

use super::Control::{Hcr, Tfsr};
use super::id::Field;
use super::id::IdRegister::{Aa64Pfr1, Aa64Pfr2};
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, register};

/// HCR_EL2.
const ATA: u64 = 1 << 56;

pub(super) const FEATURE: Feature = Feature {
    // From FEAT_MTE2 on there are registers and tags.
    is_there: |id| id.field(Aa64Pfr1, 8) >= 2,
    fields: &[
        Field::new(Aa64Pfr1, 8, "MTE", Hidden),
        Field::new(Aa64Pfr1, 40, "MTE_frac", Hidden),
        Field::new(Aa64Pfr1, 52, "MTEX", Hidden),
        Field::new(Aa64Pfr2, 0, "MTEPERM", Hidden),
        Field::new(Aa64Pfr2, 4, "MTESTOREONLY", Hidden),
        Field::new(Aa64Pfr2, 8, "MTEFAR", Hidden),
    ],
    bits: &[Bits::host(Hcr, ATA, "ATA")],
    owns: &[Tfsr],
    registers: &[register(
        "GCR_EL1, RGSR_EL1, TFSR_EL1, TFSRE0_EL1",
        How::Trapped("HCR_EL2.ATA = 0"),
    )],
    ..Feature::new(Name::Mte, "FEAT_MTE2")
};
