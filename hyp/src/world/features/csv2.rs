//! Speculation: what CPUs say of themselves, and SCXTNUM_ELx (FEAT_CSV2_2), which is the host's alone.

#![forbid(unsafe_code)]

use super::Control::{Hcr, Scxtnum};
use super::id::IdRegister::{Aa64Pfr0, Aa64Pfr1};
use super::id::Shown::{AsIs, AtMost, Hidden};
use super::id::{Field, Level};
use super::{Bits, Feature, How, Name, register};

/// HCR_EL2.
const ENSCXT: u64 = 1 << 53;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr0, 56) >= 2,
    fields: &[
        Field::new(Aa64Pfr0, 56, "CSV2", AtMost(1)).beside(),
        Field::new(Aa64Pfr0, 60, "CSV3", AsIs).beside(),
        Field::new(Aa64Pfr1, 32, "CSV2_frac", Hidden),
    ],
    levels: &[Level { of: Aa64Pfr0, low: 56, without: 1 }],
    bits: &[Bits::host(Hcr, ENSCXT, "EnSCXT")],
    owns: &[Scxtnum],
    registers: &[register("SCXTNUM_EL0, SCXTNUM_EL1", How::Trapped("HCR_EL2.EnSCXT = 0"))],
    ..Feature::new(Name::Csv2, "FEAT_CSV2_2")
};
