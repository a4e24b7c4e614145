//! The generic timer: a guest has the virtual one, with an offset of its VM's
//! ([`super::super::interrupts`]); the physical one is the host's.

#![forbid(unsafe_code)]

use super::Control::Cnthctl;
use super::id::Field;
use super::id::IdRegister::{Aa64Isar2, Aa64Mmfr0};
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, register};

/// CNTHCTL_EL2, as it is with E2H = 0.
const EL1PCTEN: u64 = 1;
const EL1PCEN: u64 = 1 << 1;

pub(super) const FEATURE: Feature = Feature {
    fields: &[
        Field::new(Aa64Mmfr0, 60, "ECV", Hidden),
        // An exit of WFI doesn't carry a deadline.
        Field::new(Aa64Isar2, 0, "WFxT", Hidden),
    ],
    bits: &[Bits::both(Cnthctl, EL1PCTEN, "EL1PCTEN"), Bits::host(Cnthctl, EL1PCEN, "EL1PCEN")],
    owns: &[Cnthctl],
    registers: &[
        register("CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVOFF_EL2", How::SwitchedBy("`Timer`")),
        register("CNTP_*", How::Trapped("CNTHCTL_EL2.EL1PCEN = 0")),
        register("CNTFRQ_EL0, CNTPCT_EL0", How::Constant),
    ],
    ..Feature::new(Name::Timer, "generic timer")
};
