//! The devices' own stage 2: a page of RAM is in it exactly while the host may use it.
//!
//! It is in single pages, where the host's has blocks: a block that loses a page is broken first, and of what it
//! misses meanwhile a CPU tries again while a device doesn't. Memory is all that it holds; boot adds the pages that
//! take message-signalled interrupts.

#![forbid(unsafe_code)]

use super::stage2::Table;
use umbra_shared::PAGE_SIZE;

/// What keeps translations for devices: all SMMUs of the machine.
pub trait Smmus {
    /// Stores to tables before this are what every walk finds.
    fn stores_done(&self);

    /// What is kept of a page is to be forgotten.
    fn forget_page(&mut self, ipa: u64);

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

    /// A page is taken away: begun, and done at [`Self::settle`].
    pub fn take(&mut self, pa: u64) {
        if let Some(leaf) = self.table.leaf(pa) {
            self.table.clear(leaf);
            self.smmus.forget_page(leaf.ipa);
        }
    }

    /// No device reaches what was taken away, or has anything under way there.
    pub fn settle(&mut self) {
        self.smmus.settle();
    }

    /// A page is there again. None was, so nobody keeps anything of it.
    pub fn give(&mut self, pa: u64) {
        self.table.fill(pa, pa, PAGE_SIZE as u64);
        self.smmus.stores_done();
    }
}
