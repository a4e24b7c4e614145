//! Trace: no guest has it, and no trace of the host's shows what a guest does. MDCR_EL2.E2TB = 0 keeps the trace
//! buffer, which writes memory by itself, with EL2, where nobody turns it on.

#![forbid(unsafe_code)]

use super::Control::{Cptr, Mdcr, Trcitecr, Trfcr};
use super::id::Field;
use super::id::IdRegister::{Aa64Dfr0, Aa64Dfr1};
use super::id::Shown::Hidden;
use super::{Bits, Feature, How, Name, Optional, register};

/// CPTR_EL2, as it is with E2H = 0.
const TTA: u64 = 1 << 20;
/// MDCR_EL2.
const TTRF: u64 = 1 << 19;

/// The trace unit and its buffer, of whichever kind.
pub(super) const UNIT: Feature = Feature {
    fields: &[
        Field::new(Aa64Dfr0, 4, "TraceVer", Hidden),
        Field::new(Aa64Dfr0, 44, "TraceBuffer", Hidden),
        Field::new(Aa64Dfr0, 56, "ExtTrcBuff", Hidden),
    ],
    bits: &[Bits::guest(Cptr, TTA, "TTA").always()],
    registers: &[
        register("TRC*", How::Trapped("CPTR_EL2.TTA")),
        register("TRB*_EL1", How::Trapped("MDCR_EL2.E2TB = 0")),
    ],
    ..Feature::new(Name::Trace, "FEAT_ETE, FEAT_TRBE")
};

/// Which ELs a trace sees.
pub(super) const FILTER: Feature = Feature {
    is_there: |id| id.field(Aa64Dfr0, 40) != 0,
    fields: &[Field::new(Aa64Dfr0, 40, "TraceFilt", Hidden)],
    bits: &[Bits::guest(Mdcr, TTRF, "TTRF").always()],
    // Zero: no trace sees EL2.
    owns: &[Trfcr],
    registers: &[
        // The host's; zero while a guest runs.
        register("TRFCR_EL1", How::Switched(Optional::TrfcrEl1)),
        register("TRFCR_EL1 of guests", How::Trapped("MDCR_EL2.TTRF")),
    ],
    ..Feature::new(Name::TraceFilter, "FEAT_TRF")
};

/// Instrumentation by instructions (TRCIT): zero, none of EL2's is in a trace.
pub(super) const ITE: Feature = Feature {
    is_there: |id| id.field(Aa64Dfr1, 40) != 0,
    owns: &[Trcitecr],
    ..Feature::new(Name::TraceIte, "FEAT_ITE")
};
