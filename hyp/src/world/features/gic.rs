//! The GIC's system registers: the host has the physical CPU interface, a guest the virtual one
//! ([`super::super::interrupts`]), and the host has the distributor.

#![forbid(unsafe_code)]

use super::Control::{Hcr, IccSre};
use super::id::Field;
use super::id::IdRegister::Aa64Pfr0;
use super::id::Shown::AsIs;
use super::{Bits, Feature, How, Name, register};

/// HCR_EL2: FMO, IMO, AMO.
const XMO: u64 = 1 << 3 | 1 << 4 | 1 << 5;
/// ICC_SRE_EL2: SRE, DFB, DIB.
const SRE_DFB_DIB: u64 = 7;
const ENABLE: u64 = 1 << 3;

const VIRTUAL: &str =
    "the virtual CPU interface, while HCR_EL2.{IMO,FMO} are set; from VCPU_LOAD to VCPU_PUT";

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr0, 24) != 0,
    fields: &[Field::new(Aa64Pfr0, 24, "GIC", AsIs)],
    bits: &[
        Bits::guest(Hcr, XMO, "FMO, IMO, AMO"),
        Bits::both(IccSre, SRE_DFB_DIB, "SRE, DFB, DIB"),
        Bits::host(IccSre, ENABLE, "Enable"),
    ],
    owns: &[IccSre],
    registers: &[
        register(
            "ICC_PMR, ICC_BPRn, ICC_IGRPENn, ICC_CTLR.EOImode, ICC_APnRn, ICC_IAR/EOIR/HPPIR/RPR",
            How::SwitchedBy(VIRTUAL),
        ),
        register(
            "ICC_SRE_EL1, ICC_SGIxR_EL1",
            How::Trapped("ICC_SRE_EL2.Enable = 0; HCR_EL2.IMO, FMO"),
        ),
    ],
    ..Feature::new(Name::Gic, "FEAT_GICv3")
};
