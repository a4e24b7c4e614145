//! The devices' own stage 2: a page of RAM is in it exactly while the host may use it.
//!
//! It is in single pages, where the host's has blocks: a block that loses a page is broken first, and of what it
//! misses meanwhile a CPU tries again while a device doesn't. Memory is all that it holds; boot adds the pages that
//! take message-signalled interrupts.

#![forbid(unsafe_code)]

use super::stage2::{Table, cut};
use umbra_shared::PAGE_SIZE;

/// Pages that are named to SMMUs one by one, at the most: each is a command in every queue.
const NAMED: u64 = 8;

/// What keeps translations for devices: all SMMUs of the machine.
pub trait Smmus {
    /// Stores to tables before this are what every walk finds.
    fn stores_done(&self);

    /// What is kept of a page is to be forgotten.
    fn forget_page(&mut self, ipa: u64);

    /// All that is kept is.
    fn forget_everything(&mut self);

    /// All that was to be forgotten is, and no transaction is under way that has used it.
    fn settle(&mut self);
}

/// The devices' stage 2, and those who walk it.
#[derive(Debug)]
pub struct Devices<T, S> {
    table: T,
    smmus: S,
}

impl<T: Table, S: Smmus> Devices<T, S> {
    /// This table, which these walk.
    pub const fn new(table: T, smmus: S) -> Self {
        Self { table, smmus }
    }

    /// Those who walk it.
    pub const fn smmus(&mut self) -> &mut S {
        &mut self.smmus
    }

    /// Whether a device reaches a page.
    pub fn reach(&self, pa: u64) -> bool {
        self.table.leaf(pa).is_some()
    }

    /// Pages are taken away: begun, and done at [`Self::settle`].
    pub fn take(&mut self, pa: u64, bytes: u64) {
        for piece in cut(pa, bytes, T::BLOCK) {
            self.table.clear(piece);
        }
        if bytes / PAGE_SIZE as u64 > NAMED {
            self.smmus.forget_everything();
        } else {
            (pa..pa + bytes).step_by(PAGE_SIZE).for_each(|page| self.smmus.forget_page(page));
        }
    }

    /// No device reaches what was taken away, or has anything under way there.
    pub fn settle(&mut self) {
        self.smmus.settle();
    }

    /// Pages are there again. None was, so nobody keeps anything of them.
    pub fn give(&mut self, pa: u64, bytes: u64) {
        self.table.fill(pa, pa, bytes);
        self.smmus.stores_done();
    }
}
