//! Umbra's EL2 hypervisor.
//!
//! All logic is in this library, and all of it that has no hardware in it builds and is tested on
//! any machine. `arch` (only on the bare-metal target) is the hardware: boot, traps, the world
//! switch, page-table maintenance.
//!
//! # What it needs of a machine
//!
//! The packed image ([`umbra_shared::package`]) is entered as a Linux `Image` is, at EL2: MMU off, at a 2
//! MiB boundary, x0 the DTB's address; U-Boot's `booti` does that. Everything else is in the DTB
//! ([`platform`]): CPUs, RAM and what of it is reserved, a GICv3, PSCI by SMC, a PL011 for messages if
//! there is one. HCR_EL2.E2H must be clearable, and EL3 must leave EL2 what the CPU has (SVE, SME,
//! pointer authentication, the GIC's system registers), on every CPU.
//!
//! # What the host sees
//!
//! An unmodified Linux finds a machine without EL2: it is started at EL1, its /memory has no hyp in it,
//! its PSCI calls are SMCs that [`psci`] interposes. Its page tables are below an identity map that lacks
//! hyp's memory: an access there is a synchronous external abort. All CPU features are its own but for
//! EL2, and its FP registers move only when a guest has displaced them ([`fp`]), or when
//! [`options`] ask for that.

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
