//! RAS: error records are the host's. DISR_EL1 is VDISR_EL2 for a guest (HCR_EL2.AMO), which it can write
//! although RAS is hidden: zero at each entry, so that it carries nothing from one guest to another.

#![forbid(unsafe_code)]

use super::Control::{Hcr, Hcrx, Vdisr, Vsesr};
use super::id::IdRegister::{Aa64Mmfr3, Aa64Mmfr4, Aa64Pfr0, Aa64Pfr1};
use super::id::Shown::Hidden;
use super::id::{Field, Level};
use super::{Bits, Feature, How, Name, register};

/// HCR_EL2.
const TERR: u64 = 1 << 36;
const FIEN: u64 = 1 << 47;
/// HCRX_EL2: EnSNERR, EnSDERR.
const ENSXERR: u64 = 1 << 18 | 1 << 20;

pub(super) const RAS: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr0, 28) != 0,
    fields: &[
        Field::new(Aa64Pfr0, 28, "RAS", Hidden),
        Field::new(Aa64Pfr1, 12, "RAS_frac", Hidden),
        Field::new(Aa64Pfr1, 56, "DF2", Hidden),
        Field::new(Aa64Pfr1, 60, "PFAR", Hidden),
        Field::new(Aa64Mmfr3, 40, "SNERR", Hidden),
        Field::new(Aa64Mmfr3, 44, "ANERR", Hidden),
        Field::new(Aa64Mmfr3, 52, "SDERR", Hidden),
        Field::new(Aa64Mmfr3, 56, "ADERR", Hidden),
        Field::new(Aa64Mmfr4, 0, "RASv2's part", Hidden),
    ],
    bits: &[
        // Where there is no RAS the bit is RES0.
        Bits::guest(Hcr, TERR, "TERR").always(),
        Bits::host(Hcrx, ENSXERR, "EnSNERR, EnSDERR").always(),
    ],
    owns: &[Vdisr, Vsesr],
    registers: &[
        register("ERRIDR_EL1, ERRSELR_EL1, ERX*_EL1", How::Trapped("HCR_EL2.TERR")),
        register("DISR_EL1", How::SwitchedBy("VDISR_EL2, zero at each entry of a guest")),
    ],
    ..Feature::new(Name::Ras, "FEAT_RAS")
};

/// FEAT_RASv1p1's fault injection, or the same with RAS_frac.
pub(super) const FAULT_INJECTION: Feature = Feature {
    is_there: |id| {
        let ras = id.field(Aa64Pfr0, 28);
        ras >= 2 || (ras == 1 && id.field(Aa64Pfr1, 12) >= 1)
    },
    levels: &[
        Level { of: Aa64Pfr0, low: 28, without: 1 },
        Level { of: Aa64Pfr1, low: 12, without: 0 },
    ],
    bits: &[Bits::host(Hcr, FIEN, "FIEN")],
    ..Feature::new(Name::RasFaultInjection, "FEAT_RASv1p1")
};
