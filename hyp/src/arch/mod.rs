//! The ground that every other room stands on. It knows none of them.
//!
//! | file | what |
//! |---|---|
//! | `sysreg` | registers that the sysreg crate lacks; barriers |
//! | `layout` | hyp's virtual addresses |
//! | `reset` | where the image lies, and what a CPU finds when it comes out of reset |
//! | `percpu` | what a CPU finds of itself |
//! | `exception`, `vectors.S` | EL2's vectors |
//! | `lock` | locks, and how a CPU waits |
//! | `console`, [`patience`], `fatal` | messages, and the last ones |
//! | [`stop`], `end` | all CPUs stopped, memory wiped, the machine reset |
//! | `log` | transitions written down, in a test build |
//! | [`stats`] | per-CPU counters |

#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod end;
#[cfg(target_os = "none")]
pub mod exception;
#[cfg(target_os = "none")]
pub mod fatal;
pub mod layout;
#[cfg(target_os = "none")]
pub mod lock;
#[cfg(target_os = "none")]
pub mod log;
pub mod patience;
#[cfg(target_os = "none")]
pub mod percpu;
#[cfg(target_os = "none")]
pub mod reset;
pub mod stats;
pub mod stop;
#[cfg(target_os = "none")]
pub mod sysreg;

#[cfg(target_os = "none")]
pub use lock::{Lock, LockGuard};

/// CPUs at most.
pub const MAX_CPUS: usize = 64;
