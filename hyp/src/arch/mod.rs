//! The hardware side of hyp: boot, traps, the world switch, page tables. Only on the bare-metal
//! target.
//!
//! | file | what |
//! |---|---|
//! | [`boot`], `boot.S` | from the loader to the final page tables |
//! | [`arrival`] | every CPU out of reset, up to the host's first instruction there |
//! | [`layout`] | virtual addresses |
//! | [`cpu`] | per-CPU data, bring-up of a CPU |
//! | [`trap`], `vectors.S` | what the host traps on |
//! | [`run`], [`guest`], [`guest32`] | running a vCPU; what a guest traps on, and one in AArch32 |
//! | [`world`], `switch.S` | the register table and the world switch |
//! | [`interrupts`] | a guest's virtual timer and GIC CPU interface |
//! | [`calls`], [`vm`] | hypercalls; VMs and vCPUs |
//! | [`mem`], [`tables`], [`frames`] | memory: ownership put into effect, page tables, page pools |
//! | [`power`] | PSCI put into effect |
//! | [`log`] | transitions written down, in a test build |
//! | [`console`], [`fatal`] | messages, and the last ones |
//! | [`report`] | counters on the console |
//! | [`sysreg`] | registers that the sysreg crate lacks |

pub mod arrival;
pub mod boot;
pub mod calls;
pub mod console;
pub mod cpu;
pub mod fatal;
pub mod frames;
pub mod guest;
pub mod guest32;
pub mod interrupts;
pub mod layout;
pub mod log;
pub mod mem;
pub mod power;
pub mod report;
pub mod run;
pub mod sysreg;
pub mod tables;
pub mod trap;
pub mod vm;
pub mod world;

/// A spin lock whose waiters say so to the machine (YIELD): under emulation that lets the holder run.
pub type Lock<T> = spin::mutex::SpinMutex<T, Yield>;

/// What a taken [`Lock`] is held by.
pub type LockGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T, Yield>;

/// The relax strategy of [`Lock`].
#[derive(Debug)]
pub struct Yield;

impl spin::RelaxStrategy for Yield {
    fn relax() {
        // SAFETY: a hint.
        unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) };
    }
}
