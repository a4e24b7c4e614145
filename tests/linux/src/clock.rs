//! Time, from the virtual counter, which Linux leaves open to programs: no system call.

use core::arch::asm;

/// CNTVCT_EL0.
pub fn ticks() -> u64 {
    let value;
    // SAFETY: reads a counter. The ISB keeps it from being read early.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack, nomem)) };
    value
}

/// CNTFRQ_EL0.
pub fn frequency() -> u64 {
    let value;
    // SAFETY: reads a constant.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) value, options(nostack, nomem)) };
    value
}

/// A moment to wait for.
#[derive(Clone, Copy)]
pub struct Deadline(u64);

impl Deadline {
    /// So many microseconds from now.
    pub fn in_micros(micros: u64) -> Self {
        Self(ticks() + micros * frequency() / 1_000_000)
    }

    /// Whether it is over.
    pub fn is_over(self) -> bool {
        ticks() >= self.0
    }
}

/// Keeps the CPU busy, in user space all the time.
pub fn spin(micros: u64) {
    let end = Deadline::in_micros(micros);
    while !end.is_over() {}
}
