//! Locks whose waiting is a YIELD: under emulation the CPU that holds the lock runs on a thread that
//! may have to share with the one that waits, and `core::hint::spin_loop` (an ISB) does not tell.

use core::arch::asm;
use spin::relax::RelaxStrategy;

/// Waits by YIELD.
#[derive(Debug)]
pub struct Yield;

impl RelaxStrategy for Yield {
    fn relax() {
        // SAFETY: a hint.
        unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) };
    }
}

/// A spin lock.
pub type Lock<T> = spin::mutex::SpinMutex<T, Yield>;

/// A value set once.
pub type Once<T> = spin::once::Once<T, Yield>;
