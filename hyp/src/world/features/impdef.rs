//! What the implementer defines: registers and instructions of CRn 11 and 15, which may do anything. On Cortex-A57
//! and Cortex-A72 some read the caches' RAMs, whoever's data is in them (RAMINDEX: their TRMs, 4.3.64 and
//! 4.3.65). HCR_EL2.TIDCP traps them from both worlds ([`super::base`]); what of them Linux as the host needs is
//! in [`crate::world::impdef`].
//!
//! On cores of Arm's own, ACTLR_EL2 says which of them EL1 may write (Cortex-A57: may use), and zero is none of
//! them; HACR_EL2 is RES0 or traps if set (Cortex-A53, -A57, -A72, -A76 and Neoverse N1 TRM, "ACTLR_EL2"). What
//! those two registers do on others' cores isn't known here, so there they stay as firmware left them, and the
//! trap is what there is.

#![forbid(unsafe_code)]

use super::Control::{Actlr, Hacr};
use super::{Feature, Name};
use crate::world::midr::Midr;

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| Midr::new(id.midr).implementer() == Midr::ARM,
    owns: &[Actlr, Hacr],
    ..Feature::new(Name::ArmCore, "cores of Arm's own")
};
