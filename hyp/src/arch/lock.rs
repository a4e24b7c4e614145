//! Locks, and how a CPU waits.

use core::arch::asm;

/// A lock that goes to whoever has waited longest: a guest that calls about its memory again and again keeps neither
/// its host nor another guest from it for longer than the CPUs before them take. Waiters say so to the machine
/// (YIELD): under emulation that lets the holder run.
pub type Lock<T> = spin::mutex::TicketMutex<T, Yield>;

/// What a taken [`Lock`] is held by.
pub type LockGuard<'a, T> = spin::mutex::TicketMutexGuard<'a, T, Yield>;

/// The relax strategy of [`Lock`].
#[derive(Debug)]
pub struct Yield;

impl spin::RelaxStrategy for Yield {
    fn relax() {
        // Whoever holds it may have stopped with it.
        super::end::stop_if_asked();
        // SAFETY: a hint.
        unsafe { asm!("yield", options(nomem, nostack, preserves_flags)) };
    }
}

/// WFE.
pub fn wait_for_event() {
    // SAFETY: a hint.
    unsafe { asm!("wfe", options(nostack, preserves_flags)) };
}

/// WFI: until an interrupt is pending, masked or not.
pub fn wait_for_interrupt() {
    // SAFETY: barriers and a hint.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// Wakes CPUs in [`wait_for_event`], after what was written before is visible to them.
pub fn send_event() {
    // SAFETY: a barrier and a hint.
    unsafe { asm!("dsb ish", "sev", options(nostack, preserves_flags)) };
}
