//! What EL1 and EL2 hold per world: which registers there are, what of them is switched, trapped or shown,
//! and the switch itself.

pub mod cpufeatures;
pub mod idregs;
#[cfg(target_os = "none")]
pub mod interrupts;
#[cfg(target_os = "none")]
pub mod switch;
