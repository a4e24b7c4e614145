//! Instructions without state or control: shown as they are. Transactions have state and are not.

#![forbid(unsafe_code)]

use super::id::Field;
use super::id::IdRegister::{Aa64Isar0, Aa64Isar1, Aa64Isar2, Aa64Isar3, Aa64Pfr0, Aa64Pfr1, Afr0};
use super::id::Shown::{AsIs, Hidden};
use super::{Feature, Name};

pub(super) const FEATURE: Feature = Feature {
    fields: &[
        Field::new(Aa64Pfr0, 48, "DIT", AsIs),
        Field::new(Aa64Pfr1, 0, "BT", AsIs),
        Field::new(Aa64Pfr1, 4, "SSBS", AsIs),
        Field::new(Aa64Pfr1, 28, "RNDR_trap", Hidden),
        Field::new(Aa64Isar0, 4, "AES", AsIs),
        Field::new(Aa64Isar0, 8, "SHA1", AsIs),
        Field::new(Aa64Isar0, 12, "SHA2", AsIs),
        Field::new(Aa64Isar0, 16, "CRC32", AsIs),
        Field::new(Aa64Isar0, 20, "Atomic", AsIs),
        Field::new(Aa64Isar0, 24, "TME", Hidden),
        Field::new(Aa64Isar0, 28, "RDM", AsIs),
        Field::new(Aa64Isar0, 32, "SHA3", AsIs),
        Field::new(Aa64Isar0, 36, "SM3", AsIs),
        Field::new(Aa64Isar0, 40, "SM4", AsIs),
        Field::new(Aa64Isar0, 44, "DP", AsIs),
        Field::new(Aa64Isar0, 48, "FHM", AsIs),
        Field::new(Aa64Isar0, 52, "TS", AsIs),
        Field::new(Aa64Isar0, 56, "TLB", AsIs),
        Field::new(Aa64Isar0, 60, "RNDR", AsIs),
        Field::new(Aa64Isar1, 0, "DPB", AsIs),
        Field::new(Aa64Isar1, 12, "JSCVT", AsIs),
        Field::new(Aa64Isar1, 16, "FCMA", AsIs),
        Field::new(Aa64Isar1, 20, "LRCPC", AsIs),
        Field::new(Aa64Isar1, 32, "FRINTTS", AsIs),
        Field::new(Aa64Isar1, 36, "SB", AsIs),
        Field::new(Aa64Isar1, 40, "SPECRES", AsIs),
        Field::new(Aa64Isar1, 44, "BF16", AsIs),
        Field::new(Aa64Isar1, 48, "DGH", AsIs),
        Field::new(Aa64Isar1, 52, "I8MM", AsIs),
        Field::new(Aa64Isar1, 56, "XS", AsIs),
        Field::new(Aa64Isar2, 4, "RPRES", AsIs),
        Field::new(Aa64Isar2, 20, "BC", AsIs),
        Field::new(Aa64Isar2, 28, "CLRBHB", AsIs),
        Field::new(Aa64Isar2, 40, "PRFMSLC", Hidden),
        Field::new(Aa64Isar2, 44, "PCDPHINT", Hidden),
        Field::new(Aa64Isar2, 48, "RPRFM", AsIs),
        Field::new(Aa64Isar2, 52, "CSSC", AsIs),
        Field::new(Aa64Isar2, 56, "LUT", Hidden),
        Field::new(Aa64Isar2, 60, "ATS1A", Hidden),
        Field::new(Aa64Isar3, 0, "CPA to FPRCVT", Hidden).wide(64),
        Field::new(Afr0, 0, "IMPLEMENTATION DEFINED", Hidden).wide(32),
    ],
    ..Feature::new(Name::Instructions, "instructions")
};
