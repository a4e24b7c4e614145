//! Fine-grained traps: nothing that a guest is shown is trapped by them; what it isn't, is, where a bit opens it
//! (an "n" bit). What such a bit opens belongs to other features, except what none of them names.

#![forbid(unsafe_code)]

use super::Control::{
    Hdfgrtr, Hdfgrtr2, Hdfgwtr, Hdfgwtr2, Hfgitr, Hfgitr2, Hfgrtr, Hfgrtr2, Hfgwtr, Hfgwtr2,
};
use super::id::IdRegister::Aa64Mmfr0;
use super::id::Shown::Hidden;
use super::id::{Field, Level};
use super::{Bits, Feature, Name};

/// HFGITR2_EL2: nDCCIVAPS; the other bit traps if set.
const NDCCIVAPS: u64 = 1 << 1;

pub(super) const FGT: Feature = Feature {
    is_there: |id| id.field(Aa64Mmfr0, 56) != 0,
    fields: &[Field::new(Aa64Mmfr0, 56, "FGT", Hidden)],
    owns: &[Hfgrtr, Hfgwtr, Hfgitr, Hdfgrtr, Hdfgwtr],
    ..Feature::new(Name::Fgt, "FEAT_FGT")
};

pub(super) const FGT2: Feature = Feature {
    is_there: |id| id.field(Aa64Mmfr0, 56) >= 2,
    levels: &[Level { of: Aa64Mmfr0, low: 56, without: 1 }],
    // All bits of these but one are n-bits.
    bits: &[
        Bits::host(Hfgrtr2, u64::MAX, "all"),
        Bits::host(Hfgwtr2, u64::MAX, "all"),
        Bits::host(Hfgitr2, NDCCIVAPS, "nDCCIVAPS"),
        Bits::host(Hdfgrtr2, u64::MAX, "all"),
        Bits::host(Hdfgwtr2, u64::MAX, "all"),
    ],
    owns: &[Hfgrtr2, Hfgwtr2, Hfgitr2, Hdfgrtr2, Hdfgwtr2],
    ..Feature::new(Name::Fgt2, "FEAT_FGT2")
};
