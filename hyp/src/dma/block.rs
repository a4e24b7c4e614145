//! Memory that a device reads or writes beside hyp.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

/// Memory of hyp's that a device is given the address of: a table or a queue, in doublewords.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pa: u64,
    words: &'static [AtomicU64],
}

impl Block {
    /// These doublewords, which are at this physical address.
    pub const fn new(pa: u64, words: &'static [AtomicU64]) -> Self {
        Self { pa, words }
    }

    /// Its physical address.
    pub const fn pa(&self) -> u64 {
        self.pa
    }

    /// How many doublewords it has.
    pub const fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether it has none.
    pub const fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Writes a doubleword, little-endian as devices are told. One that is not there is not written.
    pub fn store(&self, n: usize, value: u64) {
        if let Some(word) = self.words.get(n) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Reads a doubleword; one that is not there is zero.
    pub fn load(&self, n: usize) -> u64 {
        self.words.get(n).map_or(0, |word| u64::from_le(word.load(Ordering::Relaxed)))
    }
}
