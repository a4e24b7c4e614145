//! 64-byte accesses: the host's, for ACCDATA_EL1 isn't switched.

#![forbid(unsafe_code)]

use super::Control::{Hcrx, Hfgrtr, Hfgwtr};
use super::id::Field;
use super::id::IdRegister::Aa64Isar1;
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, register};

/// HCRX_EL2: EnAS0, EnALS, EnASR.
const ENLS64: u64 = 7;
/// HFGxTR_EL2: nACCDATA_EL1.
const NACCDATA: u64 = 1 << 50;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Isar1, 60) != 0,
    fields: &[Field::new(Aa64Isar1, 60, "LS64", Hidden)],
    bits: &[
        Bits::host(Hcrx, ENLS64, "EnAS0, EnALS, EnASR").always(),
        Bits::host(Hfgrtr, NACCDATA, "nACCDATA_EL1").always(),
        Bits::host(Hfgwtr, NACCDATA, "nACCDATA_EL1").always(),
    ],
    registers: &[register(
        "ACCDATA_EL1",
        How::Trapped("HCRX_EL2.EnAS0, HFGxTR_EL2.nACCDATA_EL1 = 0"),
    )],
    ..Feature::new(Name::Ls64, "FEAT_LS64")
};
