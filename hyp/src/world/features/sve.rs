//! SVE: guests have it whose vCPU asks for a vector length. The registers are the FP engine's
//! ([`crate::fp`]), and so are CPTR_EL2.TZ and the clamp in ZCR_EL2.
//!
//! Some of ID_AA64ZFR0_EL1 tells of instructions that are illegal in streaming mode: a guest with SME alone is
//! not shown them (Linux did, and user space used them: the SVE hwcaps of 2025-01). The others are SME's as well.

#![forbid(unsafe_code)]

use super::id::Field;
use super::id::IdRegister::{Aa64Pfr0, Aa64Zfr0};
use super::id::Shown::{WithSve, WithSveOrSme};
use super::{Feature, How, Name, register};

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr0, 32) != 0,
    fields: &[
        Field::new(Aa64Pfr0, 32, "SVE", WithSve),
        Field::new(Aa64Zfr0, 0, "SVEver", WithSveOrSme).beside(),
        Field::new(Aa64Zfr0, 4, "AES", WithSve),
        Field::new(Aa64Zfr0, 12, "EltPerm", WithSve),
        Field::new(Aa64Zfr0, 16, "BitPerm", WithSve),
        Field::new(Aa64Zfr0, 20, "BF16", WithSveOrSme).beside(),
        Field::new(Aa64Zfr0, 24, "B16B16", WithSveOrSme).beside(),
        Field::new(Aa64Zfr0, 32, "SHA3", WithSve),
        Field::new(Aa64Zfr0, 40, "SM4", WithSve),
        Field::new(Aa64Zfr0, 44, "I8MM", WithSveOrSme).beside(),
        Field::new(Aa64Zfr0, 48, "F16MM", WithSve),
        Field::new(Aa64Zfr0, 52, "F32MM", WithSve),
        Field::new(Aa64Zfr0, 56, "F64MM", WithSve),
    ],
    registers: &[
        register("Z0-Z31, P0-P15, FFR, ZCR_EL1", How::SwitchedBy("the FP engine")),
        register("SVE and ZCR_EL1 of guests that don't have it", How::Trapped("CPTR_EL2.TZ")),
    ],
    ..Feature::new(Name::Sve, "FEAT_SVE")
};
