//! Hyp's pool while boot hands it out.

use crate::arch::Lock;
use crate::memory::frames::FrameList;
use umbra_shared::PAGE_SIZE;

/// The pool, handed out from its start.
#[derive(Debug)]
pub struct Pool {
    next: u64,
    end: u64,
}

impl Pool {
    /// From `start` to `end`, mapped in the boot tables.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { next: start, end }
    }

    /// What has not been handed out.
    pub const fn rest(&self) -> (u64, u64) {
        (self.next, self.end)
    }

    /// `bytes` bytes, whole pages, not initialised. Returns the physical address.
    pub fn take(&mut self, bytes: usize) -> u64 {
        let pa = self.next;
        self.next += bytes.next_multiple_of(PAGE_SIZE) as u64;
        assert!(self.next <= self.end, "the pool was sized for this");
        pa
    }

    /// The same, aligned to `align`, a power of two.
    pub fn take_aligned(&mut self, bytes: usize, align: usize) -> u64 {
        self.next = self.next.next_multiple_of(align as u64);
        self.take(bytes)
    }

    /// Puts `pages` pages on a list.
    pub fn fill(&mut self, list: &Lock<FrameList>, pages: usize) {
        let mut list = list.lock();
        for _ in 0..pages {
            let pa = self.take(PAGE_SIZE);
            // SAFETY: fresh from the pool, which is mapped.
            unsafe { list.push(pa) };
        }
    }
}
