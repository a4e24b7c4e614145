//! Per-CPU counters: what the engine did and what it could leave out.
//!
//! Written by their own CPU only, read by any (STATS hypercall), hence atomics without
//! read-modify-write: a relaxed load and a relaxed store cost two instructions.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};
use umbra_shared::call::Counter;

/// The counters of one CPU.
#[derive(Debug)]
pub struct Stats([AtomicU64; Counter::ALL.len()]);

impl Stats {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Counter::ALL.len()])
    }

    /// Adds to a counter. Only the CPU that owns it may.
    #[inline]
    pub fn add(&self, counter: Counter, n: u64) {
        let cell = &self.0[counter as usize];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Reads a counter by number; zero for a number that there isn't.
    pub fn get(&self, number: u64) -> u64 {
        usize::try_from(number)
            .ok()
            .and_then(|n| self.0.get(n))
            .map_or(0, |c| c.load(Ordering::Relaxed))
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}
