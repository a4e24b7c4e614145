//! Performance monitors: the host's. MDCR_EL2.HPMN leaves it all counters ([`super::super::controls`] adds
//! PMCR_EL0.N), HPMD keeps them from counting hyp.

#![forbid(unsafe_code)]

use super::Control::Mdcr;
use super::id::IdRegister::Aa64Dfr0;
use super::id::Shown::Hidden;
use super::id::{Field, IdRegisters};
use super::{Bits, Feature, How, Name, register};

/// MDCR_EL2: TPM, TPMCR.
const TPMX: u64 = 1 << 6 | 1 << 5;
const HPMD_BIT: u64 = 1 << 17;

/// ID_AA64DFR0_EL1.PMUVer: 0xf is a PMU of the implementer's own, without these registers.
fn version(id: &IdRegisters) -> u64 {
    match id.field(Aa64Dfr0, 8) {
        0xf => 0,
        version => version,
    }
}

pub(super) const PMU: Feature = Feature {
    is_there: |id| version(id) != 0,
    fields: &[
        Field::new(Aa64Dfr0, 8, "PMUVer", Hidden),
        Field::new(Aa64Dfr0, 16, "PMSS", Hidden),
        Field::new(Aa64Dfr0, 48, "MTPMU", Hidden),
        Field::new(Aa64Dfr0, 60, "HPMN0", Hidden),
    ],
    bits: &[Bits::guest(Mdcr, TPMX, "TPM, TPMCR").always()],
    registers: &[register("PM*_EL0, PMINTEN*_EL1", How::Trapped("MDCR_EL2.TPM, TPMCR"))],
    ..Feature::new(Name::Pmu, "FEAT_PMUv3")
};

/// From FEAT_PMUv3p1 on.
pub(super) const HPMD: Feature = Feature {
    is_there: |id| version(id) >= 4,
    bits: &[Bits::both(Mdcr, HPMD_BIT, "HPMD")],
    ..Feature::new(Name::PmuHpmd, "FEAT_PMUv3p1")
};
