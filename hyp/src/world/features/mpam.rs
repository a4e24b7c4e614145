//! MPAM: partitions of caches and memory are the host's. MPAMIDR_EL1 is hidden by MPAM2_EL2.TIDR or by
//! MPAMHCR_EL2; a CPU that has neither can't hide it.

#![forbid(unsafe_code)]

use super::Control::{Mpam2, Mpamhcr};
use super::id::Field;
use super::id::IdRegister::{Aa64Pfr0, Aa64Pfr1};
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, register};

/// MPAMIDR_EL1.HAS_HCR: there is an MPAMHCR_EL2.
pub const MPAMIDR_HAS_HCR: u64 = 1 << 17;

/// MPAM2_EL2: EnMPAMSM, RES0 without SME. MPAMEN (63) belongs to EL3 or is read-only here.
const ENMPAMSM: u64 = 1 << 50;
/// MPAMIDR_EL1.HAS_TIDR: there is an MPAM2_EL2.TIDR.
const MPAMIDR_HAS_TIDR: u64 = 1 << 58;

/// MPAM2_EL2: TIDR.
const TIDR: u64 = 1 << 58;
/// TRAPMPAM0EL1, TRAPMPAM1EL1; MPAMSM_EL1 traps without EnMPAMSM.
const TRAPMPAMXEL1: u64 = 3 << 48;
/// MPAMHCR_EL2: TRAP_MPAMIDR_EL1.
const TRAP_MPAMIDR_EL1: u64 = 1 << 31;

pub(super) const MPAM: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr0, 40) != 0 || id.field(Aa64Pfr1, 16) != 0,
    fields: &[
        Field::new(Aa64Pfr0, 40, "MPAM", Hidden),
        Field::new(Aa64Pfr1, 16, "MPAM_frac", Hidden),
    ],
    bits: &[
        Bits::host(Mpam2, ENMPAMSM, "EnMPAMSM"),
        Bits::guest(Mpam2, TRAPMPAMXEL1, "TRAPMPAM0EL1, TRAPMPAM1EL1"),
    ],
    owns: &[Mpam2],
    registers: &[
        register("MPAM0_EL1, MPAM1_EL1", How::Trapped("MPAM2_EL2.TRAPMPAMxEL1")),
        register("MPAMSM_EL1", How::Trapped("MPAM2_EL2.EnMPAMSM = 0")),
        register(
            "MPAMIDR_EL1",
            How::Trapped(
                "MPAM2_EL2.TIDR or MPAMHCR_EL2.TRAP_MPAMIDR_EL1, where one exists; else a constant",
            ),
        ),
    ],
    ..Feature::new(Name::Mpam, "FEAT_MPAM")
};

pub(super) const TRAP_ID: Feature = Feature {
    is_there: |id| id.mpamidr & MPAMIDR_HAS_TIDR != 0,
    bits: &[Bits::guest(Mpam2, TIDR, "TIDR")],
    ..Feature::new(Name::MpamTidr, "MPAM2_EL2.TIDR")
};

pub(super) const HCR: Feature = Feature {
    is_there: |id| id.mpamidr & MPAMIDR_HAS_HCR != 0,
    bits: &[Bits::guest(Mpamhcr, TRAP_MPAMIDR_EL1, "TRAP_MPAMIDR_EL1")],
    owns: &[Mpamhcr],
    ..Feature::new(Name::MpamHcr, "MPAMHCR_EL2")
};
