//! SME: guests have it whose vCPU asks for a streaming vector length. ZA, ZT0, SVCR and SMCR_EL1 are the FP
//! engine's ([`crate::fp`]), and so are CPTR_EL2.TSM and the clamp in SMCR_EL2. SME's priorities are the host's
//! alone.

#![forbid(unsafe_code)]

use super::Control::{Hfgrtr, Hfgwtr, Smprimap};
use super::id::IdRegister::{Aa64Pfr1, Aa64Smfr0};
use super::id::Shown::{WithSme, WithSveAndSme};
use super::id::{Field, Level};
use super::{Bits, Feature, How, Name, Optional, Relied, register};

/// HFGRTR_EL2 and HFGWTR_EL2: nSMPRI_EL1.
const NSMPRI_EL1: u64 = 1 << 54;
/// nTPIDR2_EL0: the register is switched, so a guest may have it, as on CPUs that can't trap it.
const NTPIDR2_EL0: u64 = 1 << 55;

pub(super) const SME: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr1, 24) != 0,
    fields: &[
        Field::new(Aa64Pfr1, 24, "SME", WithSme),
        Field::new(Aa64Smfr0, 0, "outer products and lookups", WithSme).wide(56).flags(),
        Field::new(Aa64Smfr0, 60, "LUTv2 to FA64's neighbours", WithSme).wide(3).flags(),
    ],
    bits: &[
        Bits::host(Hfgrtr, NSMPRI_EL1, "nSMPRI_EL1").always(),
        Bits::host(Hfgwtr, NSMPRI_EL1, "nSMPRI_EL1").always(),
        Bits::both(Hfgrtr, NTPIDR2_EL0, "nTPIDR2_EL0").always(),
        Bits::both(Hfgwtr, NTPIDR2_EL0, "nTPIDR2_EL0").always(),
    ],
    owns: &[Smprimap],
    registers: &[
        register("SVCR, ZA, ZT0, SMCR_EL1", How::SwitchedBy("the FP engine")),
        register("SME, SMCR_EL1, SVCR of guests that don't have it", How::Trapped("CPTR_EL2.TSM")),
        register("TPIDR2_EL0", How::Switched(Optional::Tpidr2El0)),
        register(
            "SMPRI_EL1",
            How::Trapped(
                "HFGxTR_EL2.nSMPRI_EL1 = 0 (FEAT_SME comes with FEAT_FGT; QEMU 7.2 has a constant zero)",
            ),
        ),
        register("SMIDR_EL1", How::Trapped("HCR_EL2.TID1 (implementer and revision only)")),
    ],
    ..Feature::new(Name::Sme, "FEAT_SME")
};

pub(super) const SME2: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr1, 24) >= 2,
    fields: &[Field::new(Aa64Smfr0, 56, "SMEver", WithSme)],
    levels: &[Level { of: Aa64Pfr1, low: 24, without: 1 }],
    relied_on: Relied::WithSme,
    ..Feature::new(Name::Sme2, "FEAT_SME2")
};

pub(super) const FA64: Feature = Feature {
    is_there: |id| id.get(Aa64Smfr0) >> 63 != 0,
    // SVE's instructions in streaming mode.
    fields: &[Field::new(Aa64Smfr0, 63, "FA64", WithSveAndSme).wide(1)],
    relied_on: Relied::WithSme,
    ..Feature::new(Name::SmeFa64, "FEAT_SME_FA64")
};
