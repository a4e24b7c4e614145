//! The ground that every other room stands on: registers that the sysreg crate lacks, the console, hyp's
//! addresses, counters, the transition log, and the fatal end.

#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod fatal;
#[cfg(target_os = "none")]
pub mod layout;
#[cfg(target_os = "none")]
pub mod log;
pub mod stats;
#[cfg(target_os = "none")]
pub mod sysreg;

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
