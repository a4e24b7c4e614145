//! Stage 1 of guests: what their tables may be like. All of it is in registers that are switched with EL1.

#![forbid(unsafe_code)]

use super::Control::{Hacdbsbr, Hcr};
use super::id::Field;
use super::id::IdRegister::{Aa64Mmfr0, Aa64Mmfr1, Aa64Mmfr2, Aa64Mmfr4};
use super::id::Shown::{AsIs, AtMost, Hidden, PaRange};
use super::{Bits, Feature, How, Name, register};

/// HCR_EL2.
const TLOR: u64 = 1 << 35;

pub(super) const FEATURE: Feature = Feature {
    fields: &[
        Field::new(Aa64Mmfr0, 0, "PARange", PaRange),
        Field::new(Aa64Mmfr0, 4, "ASIDBits", AsIs),
        Field::new(Aa64Mmfr0, 8, "BigEnd", AsIs),
        Field::new(Aa64Mmfr0, 12, "SNSMem", AsIs),
        Field::new(Aa64Mmfr0, 16, "BigEndEL0", AsIs),
        Field::new(Aa64Mmfr0, 20, "TGran16", AsIs),
        Field::new(Aa64Mmfr0, 24, "TGran64", AsIs).signed(),
        Field::new(Aa64Mmfr0, 28, "TGran4", AsIs).signed(),
        Field::new(Aa64Mmfr0, 32, "TGran16_2", AsIs).exact(),
        Field::new(Aa64Mmfr0, 36, "TGran64_2", AsIs).exact(),
        Field::new(Aa64Mmfr0, 40, "TGran4_2", AsIs).exact(),
        // Without HAFT, which needs TCR2_EL1.
        Field::new(Aa64Mmfr1, 0, "HAFDBS", AtMost(2)),
        Field::new(Aa64Mmfr1, 4, "VMIDBits", AsIs),
        Field::new(Aa64Mmfr1, 12, "HPDS", AsIs),
        Field::new(Aa64Mmfr1, 16, "LO", Hidden),
        Field::new(Aa64Mmfr1, 20, "PAN", AsIs),
        // 0: never an SError by speculation.
        Field::new(Aa64Mmfr1, 24, "SpecSEI", AsIs).inverse(),
        Field::new(Aa64Mmfr1, 28, "XNX", AsIs),
        Field::new(Aa64Mmfr1, 36, "ETS", AsIs),
        Field::new(Aa64Mmfr1, 44, "AFP", AsIs),
        Field::new(Aa64Mmfr1, 48, "nTLBPA", AsIs),
        Field::new(Aa64Mmfr1, 56, "CMOW", AsIs),
        Field::new(Aa64Mmfr1, 60, "ECBHB", Hidden),
        Field::new(Aa64Mmfr2, 0, "CnP", AsIs),
        Field::new(Aa64Mmfr2, 4, "UAO", AsIs),
        Field::new(Aa64Mmfr2, 8, "LSM", AsIs),
        Field::new(Aa64Mmfr2, 12, "IESB", AsIs),
        Field::new(Aa64Mmfr2, 16, "VARange", AsIs),
        Field::new(Aa64Mmfr2, 20, "CCIDX", AsIs),
        Field::new(Aa64Mmfr2, 28, "ST", AsIs),
        Field::new(Aa64Mmfr2, 32, "AT", AsIs),
        Field::new(Aa64Mmfr2, 36, "IDS", AsIs),
        Field::new(Aa64Mmfr2, 48, "TTL", AsIs),
        Field::new(Aa64Mmfr2, 52, "BBM", AsIs),
        Field::new(Aa64Mmfr2, 60, "E0PD", AsIs),
        Field::new(Aa64Mmfr4, 8, "ASID2", Hidden),
        Field::new(Aa64Mmfr4, 12, "HACDBS", Hidden),
    ],
    bits: &[Bits::guest(Hcr, TLOR, "TLOR")],
    registers: &[register("LOR*_EL1", How::Trapped("HCR_EL2.TLOR"))],
    ..Feature::new(Name::Translation, "VMSAv8-64")
};

/// The accelerator for cleaning dirty state writes tables by itself: HACDBSBR_EL2.EN is off.
pub(super) const HACDBS: Feature = Feature {
    is_there: |id| id.field(Aa64Mmfr4, 12) != 0,
    owns: &[Hacdbsbr],
    ..Feature::new(Name::Hacdbs, "FEAT_HACDBS")
};
