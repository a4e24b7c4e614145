//! Umbra's EL2 hypervisor.
//!
//! All logic is in this library, and all of it that has no hardware in it builds and is tested on
//! any machine. `arch` (only on the bare-metal target) is the hardware: boot, traps, the world
//! switch, page-table maintenance.

#![cfg_attr(not(test), no_std)]

pub mod cpufeatures;
pub mod fp;
pub mod idregs;
pub mod memory;
pub mod options;
pub mod platform;
pub mod psci;
pub mod stats;
pub mod syndrome;
pub mod vms;

#[cfg(target_os = "none")]
pub mod arch;
