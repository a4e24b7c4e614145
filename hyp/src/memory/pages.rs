//! Who owns each page of RAM, and with whom it is shared.
//!
//! One entry per page, in a table that only hyp can reach, is the truth about memory; the page tables
//! follow it. Every transition is checked here first and changes nothing if it is refused.
//!
//! ```text
//!            share flag page           create VM / vCPU / top up
//!    Host ------------------> FlagPage         Host ---------> Vm (hyp's, for that VM)
//!         <------------------                  Host ---------> Guest (protected)      \ put memory
//!            unshare, not in use               Host ---------> SharedWithGuest        / in place
//!                                              Vm, Guest, SharedWithGuest of a dying VM --> Host
//!
//!            guest shares                      unmap (a normal VM's), relinquish (by the guest)
//!    Guest -------------> SharedByGuest        SharedWithGuest --------------> Host
//!          <-------------                      Guest, SharedByGuest ---------> Host (relinquish only)
//!            guest unshares
//! ```
//!
//! What a device tree reserves, and what the host has told the GIC to read, stays the host's for good (Reserved).

#![forbid(unsafe_code)]

pub use super::state::{State, VmId};
use umbra_shared::PAGE_SIZE;
use umbra_shared::error::Error;

/// A page that was looked up: page-aligned, and RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Page {
    pa: u64,
    index: usize,
}

impl Page {
    /// Its physical address.
    pub const fn pa(self) -> u64 {
        self.pa
    }

    /// It alone.
    pub const fn alone(self) -> PageRange {
        PageRange { first: self, count: 1 }
    }
}

/// A bank of RAM: page-aligned, `first` is its first entry in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bank {
    start: u64,
    end: u64,
    first: usize,
}

/// Banks of RAM a machine may have.
pub const MAX_BANKS: usize = 16;
#[cfg(target_os = "none")]
const _: () = assert!(MAX_BANKS == crate::arch::end::END_BANKS);

/// The table. `entries` holds one [`State`] per page of all banks.
#[derive(Debug)]
pub struct Pages<'a> {
    banks: arrayvec::ArrayVec<Bank, MAX_BANKS>,
    entries: &'a mut [State],
    /// What has changed since somebody asked.
    #[cfg(feature = "transition-log")]
    changes: super::changes::Changes,
}

/// Pages in `banks` (start, end), which [`Pages::new`] needs entries for.
pub fn count(banks: &[(u64, u64)]) -> usize {
    banks.iter().map(|(start, end)| ((end - start) as usize) / PAGE_SIZE).sum()
}

impl<'a> Pages<'a> {
    /// All of `banks` (page-aligned, not overlapping, at most [`MAX_BANKS`]) belongs to the host.
    ///
    /// # Panics
    ///
    /// If `entries` is shorter than [`count`] says: at boot only.
    pub fn new(banks: &[(u64, u64)], entries: &'a mut [State]) -> Self {
        assert!(entries.len() >= count(banks));
        entries.fill(State::Host);
        let mut first = 0;
        let banks = banks
            .iter()
            .map(|&(start, end)| {
                let bank = Bank { start, end, first };
                first += ((end - start) as usize) / PAGE_SIZE;
                bank
            })
            .collect();
        Self {
            banks,
            entries,
            #[cfg(feature = "transition-log")]
            changes: super::changes::Changes::default(),
        }
    }

    /// Where the table is: the address of the first entry.
    pub fn entries_address(&self) -> u64 {
        self.entries.as_ptr().addr() as u64
    }

    /// The page at an address.
    ///
    /// # Errors
    ///
    /// [`Error::Unaligned`], [`Error::NotMemory`].
    pub fn lookup(&self, pa: u64) -> Result<Page, Error> {
        if !pa.is_multiple_of(PAGE_SIZE as u64) {
            return Err(Error::Unaligned);
        }
        self.banks
            .iter()
            .find(|bank| (bank.start..bank.end).contains(&pa))
            .map(|bank| Page { pa, index: bank.first + ((pa - bank.start) as usize) / PAGE_SIZE })
            .ok_or(Error::NotMemory)
    }

    /// `count` pages from an address; all of one bank.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`]; [`Error::NotMemory`] for a range that leaves the bank or wraps.
    pub fn lookup_range(&self, pa: u64, count: u64) -> Result<PageRange, Error> {
        let first = self.lookup(pa)?;
        let last = count
            .checked_sub(1)
            .and_then(|n| n.checked_mul(PAGE_SIZE as u64))
            .and_then(|bytes| pa.checked_add(bytes))
            .ok_or(Error::NotMemory)?;
        let last = self.lookup(last)?;
        // In one bank, so the indices are as far apart as the addresses.
        if last.index - first.index != (count - 1) as usize
            || (last.pa - first.pa) / PAGE_SIZE as u64 != count - 1
        {
            return Err(Error::NotMemory);
        }
        Ok(PageRange { first, count: count as usize })
    }

    /// The first page at or above an address.
    pub fn next_from(&self, pa: u64) -> Option<Page> {
        let bank = self.banks.iter().find(|bank| pa <= bank.end - PAGE_SIZE as u64)?;
        // Below the last page of a bank, so rounding up can't wrap.
        let pa = pa.max(bank.start).next_multiple_of(PAGE_SIZE as u64);
        Some(Page { pa, index: bank.first + ((pa - bank.start) as usize) / PAGE_SIZE })
    }

    /// The one place where states change.
    fn set_all(&mut self, range: PageRange, state: State) {
        self.entries[range.indices()].fill(state);
        #[cfg(feature = "transition-log")]
        for page in range.pages() {
            self.changes.note(page.pa, state);
        }
    }

    fn set(&mut self, page: Page, state: State) {
        self.set_all(page.alone(), state);
    }

    /// A page's state.
    pub fn state(&self, page: Page) -> State {
        self.entries[page.index]
    }

    /// How many pages are in such a state.
    pub fn count(&self, is: impl Fn(State) -> bool) -> usize {
        self.entries.iter().filter(|&&state| is(state)).count()
    }

    /// The pages of the block of `bytes` bytes that a page lies in, if the block is RAM of one bank, and all of it
    /// the host's to use for as long as anybody can tell: what a guest shares is about to be taken back.
    pub fn whole_host_block(&self, page: Page, bytes: u64) -> Option<PageRange> {
        let start = page.pa / bytes * bytes;
        let bank = self.banks.iter().find(|bank| (bank.start..bank.end).contains(&page.pa))?;
        if start < bank.start || bank.end - start < bytes {
            return None;
        }
        let count = (bytes / PAGE_SIZE as u64) as usize;
        let index = page.index - ((page.pa - start) / PAGE_SIZE as u64) as usize;
        let states = &self.entries[index..index + count];
        let settled =
            |state: &State| state.host_has_access() && !matches!(state, State::SharedByGuest(_));
        // Pages come back in order, mostly: the next one to come back says no at once.
        let (below, from) = states.split_at(page.index - index);
        let whole = from.iter().all(settled) && below.iter().rev().all(settled);
        whole.then_some(PageRange { first: Page { pa: start, index }, count })
    }

    /// Boot only: takes a range for hyp itself.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup_range`].
    pub fn take_for_hyp(&mut self, pa: u64, count: u64) -> Result<(), Error> {
        let range = self.lookup_range(pa, count)?;
        self.set_all(range, State::Hyp);
        Ok(())
    }

    /// Boot only: what a device tree reserves is nobody's to give away.
    pub fn reserve(&mut self, start: u64, end: u64) {
        let first = start / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        for pa in (first..end).step_by(PAGE_SIZE) {
            if let Ok(page) = self.lookup(pa)
                && self.state(page) == State::Host
            {
                self.set(page, State::Reserved);
            }
        }
    }

    /// From now on the host can give none of a range away: a device reads it by its address. What is reserved
    /// already is nobody's to give.
    ///
    /// # Errors
    ///
    /// [`Error::Shared`], [`Error::NotOwned`]; then nothing has changed.
    pub fn pin(&mut self, range: PageRange) -> Result<(), Error> {
        let free = |page| self.state(page) == State::Reserved || self.require_host(page).is_ok();
        if let Some(page) = range.pages().find(|&page| !free(page)) {
            return self.require_host(page);
        }
        for page in range.pages() {
            if self.state(page) == State::Host {
                self.set(page, State::Reserved);
            }
        }
        Ok(())
    }

    /// Shares a page as a flag-shadow page.
    ///
    /// # Errors
    ///
    /// [`Error::Shared`], [`Error::NotOwned`].
    pub fn share_flag_page(&mut self, page: Page) -> Result<(), Error> {
        self.require_host(page)?;
        self.set(page, State::FlagPage { used: false });
        Ok(())
    }

    /// Ends that.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while a vCPU uses it, [`Error::NotShared`], [`Error::NotOwned`].
    pub fn unshare_flag_page(&mut self, page: Page) -> Result<(), Error> {
        match self.state(page) {
            State::FlagPage { used: false } => {
                self.set(page, State::Host);
                Ok(())
            }
            State::FlagPage { used: true } => Err(Error::Busy),
            State::Host | State::SharedWithGuest(_) | State::SharedByGuest(_) => {
                Err(Error::NotShared)
            }
            _ => Err(Error::NotOwned),
        }
    }

    /// A vCPU begins to use a flag-shadow page.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if another does, [`Error::NotShared`], [`Error::NotOwned`].
    pub fn pin_flag_page(&mut self, page: Page) -> Result<(), Error> {
        match self.state(page) {
            State::FlagPage { used: false } => {
                self.set(page, State::FlagPage { used: true });
                Ok(())
            }
            State::FlagPage { used: true } => Err(Error::Busy),
            State::Host | State::SharedWithGuest(_) | State::SharedByGuest(_) => {
                Err(Error::NotShared)
            }
            _ => Err(Error::NotOwned),
        }
    }

    /// The vCPU is gone.
    pub fn unpin_flag_page(&mut self, page: Page) {
        if let State::FlagPage { .. } = self.state(page) {
            self.set(page, State::FlagPage { used: false });
        }
    }

    /// Checks that the host could give all of a range away.
    ///
    /// # Errors
    ///
    /// [`Error::Shared`], [`Error::NotOwned`].
    pub fn check_donation(&self, range: PageRange) -> Result<(), Error> {
        let states = &self.entries[range.indices()];
        match states.iter().find(|state| !matches!(state, State::Host)) {
            Some(&state) => Self::refusal(state),
            None => Ok(()),
        }
    }

    /// Gives a range to hyp for a VM.
    ///
    /// # Errors
    ///
    /// As [`Self::check_donation`]; then nothing has changed.
    pub fn donate_to_vm(&mut self, range: PageRange, vm: VmId) -> Result<(), Error> {
        self.check_donation(range)?;
        self.set_all(range, State::Vm(vm));
        Ok(())
    }

    /// Gives a range to a guest: for good if it is protected, else shared.
    ///
    /// # Errors
    ///
    /// As [`Self::check_donation`]; then nothing has changed.
    pub fn give_to_guest(
        &mut self,
        range: PageRange,
        vm: VmId,
        protected: bool,
    ) -> Result<(), Error> {
        self.check_donation(range)?;
        self.set_all(range, if protected { State::Guest(vm) } else { State::SharedWithGuest(vm) });
        Ok(())
    }

    /// The host gets pages of a dying VM back: of a range as many from its beginning as have been the same. Returns
    /// what, and which.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwned`] if the first was not that VM's.
    pub fn reclaim(&mut self, range: PageRange, vm: VmId) -> Result<(State, PageRange), Error> {
        let state = self.state(range.first);
        match state {
            State::Vm(owner)
            | State::Guest(owner)
            | State::SharedWithGuest(owner)
            | State::SharedByGuest(owner)
                if owner == vm =>
            {
                let states = &self.entries[range.indices()];
                let alike = states.iter().position(|&other| other != state);
                let (back, _) = range.split_at(alike.unwrap_or(range.count));
                self.set_all(back, State::Host);
                Ok((state, back))
            }
            _ => Err(Error::NotOwned),
        }
    }

    /// The host takes a range back that it shared with a normal guest.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwned`] if any of it is not the host's to take; then nothing has changed.
    pub fn unshare_with_guest(&mut self, range: PageRange, vm: VmId) -> Result<(), Error> {
        let shared = |state: &State| *state == State::SharedWithGuest(vm);
        if !self.entries[range.indices()].iter().all(shared) {
            return Err(Error::NotOwned);
        }
        self.set_all(range, State::Host);
        Ok(())
    }

    /// A protected guest shares a page of its own with the host.
    ///
    /// # Errors
    ///
    /// [`Error::Shared`] if it does already; [`Error::NotOwned`].
    pub fn share_by_guest(&mut self, page: Page, vm: VmId) -> Result<(), Error> {
        let refused = match self.state(page) {
            State::SharedByGuest(owner) if owner == vm => Error::Shared,
            _ => Error::NotOwned,
        };
        self.change(page, State::Guest(vm), State::SharedByGuest(vm), refused)
    }

    /// It no longer does.
    ///
    /// # Errors
    ///
    /// [`Error::NotShared`] if it didn't; [`Error::NotOwned`].
    pub fn unshare_by_guest(&mut self, page: Page, vm: VmId) -> Result<(), Error> {
        let refused = match self.state(page) {
            State::Guest(owner) if owner == vm => Error::NotShared,
            _ => Error::NotOwned,
        };
        self.change(page, State::SharedByGuest(vm), State::Guest(vm), refused)
    }

    /// A guest gives a page of its memory back to the host. Returns what it was.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwned`] if it is none of its memory.
    pub fn relinquish(&mut self, page: Page, vm: VmId) -> Result<State, Error> {
        match self.state(page) {
            State::Vm(_) => Err(Error::NotOwned),
            _ => self.reclaim(page.alone(), vm).map(|(was, _)| was),
        }
    }

    fn change(&mut self, page: Page, from: State, to: State, refused: Error) -> Result<(), Error> {
        if self.state(page) != from {
            return Err(refused);
        }
        self.set(page, to);
        Ok(())
    }

    /// What has changed since the last time, oldest first.
    #[cfg(feature = "transition-log")]
    pub fn take_changes(&mut self) -> impl Iterator<Item = umbra_shared::record::Change> {
        self.changes.take()
    }

    /// All pages as runs of one state: address of the first, how many, and the state as a change of
    /// one page.
    #[cfg(feature = "transition-log")]
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64, umbra_shared::record::Change)> {
        self.banks.iter().flat_map(move |bank| {
            let pages = ((bank.end - bank.start) as usize) / PAGE_SIZE;
            let states = &self.entries[bank.first..bank.first + pages];
            let mut at = bank.start;
            states.chunk_by(|a, b| a == b).map(move |run| {
                let pa = at;
                at += (run.len() * PAGE_SIZE) as u64;
                (pa, run.len() as u64, super::changes::change(pa, run[0]))
            })
        })
    }

    fn require_host(&self, page: Page) -> Result<(), Error> {
        Self::refusal(self.state(page))
    }

    /// Why the host can't give away what is in this state.
    fn refusal(state: State) -> Result<(), Error> {
        match state {
            State::Host => Ok(()),
            State::Reserved => Err(Error::NotMemory),
            State::FlagPage { .. } | State::SharedWithGuest(_) | State::SharedByGuest(_) => {
                Err(Error::Shared)
            }
            State::Hyp | State::Vm(_) | State::Guest(_) => Err(Error::NotOwned),
        }
    }
}

/// Pages that lie one behind the other in one bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    first: Page,
    count: usize,
}

impl PageRange {
    /// The first.
    pub const fn first(self) -> Page {
        self.first
    }

    /// How many.
    pub const fn count(self) -> usize {
        self.count
    }

    /// The address of the first.
    pub const fn start(self) -> u64 {
        self.first.pa
    }

    /// Bytes in all.
    pub const fn bytes(self) -> u64 {
        (self.count * PAGE_SIZE) as u64
    }

    /// The first `count` of them, or as many as there are, and the rest.
    #[must_use]
    pub fn split_at(self, count: usize) -> (Self, Self) {
        let count = count.min(self.count);
        let first = Page {
            pa: self.first.pa + (count * PAGE_SIZE) as u64,
            index: self.first.index + count,
        };
        (Self { count, ..self }, Self { first, count: self.count - count })
    }

    /// With those that lie right behind them.
    #[must_use]
    pub const fn and(self, behind: Self) -> Self {
        assert!(self.first.pa + self.bytes() == behind.first.pa);
        Self { first: self.first, count: self.count + behind.count }
    }

    /// All of them, cut at every multiple of `bytes`.
    pub fn cut_at(self, bytes: u64) -> impl Iterator<Item = Self> {
        let mut rest = self;
        core::iter::from_fn(move || {
            let to_end = (bytes - rest.start() % bytes) as usize / PAGE_SIZE;
            let (piece, behind) = rest.split_at(to_end);
            rest = behind;
            (piece.count != 0).then_some(piece)
        })
    }

    const fn indices(self) -> core::ops::Range<usize> {
        self.first.index..self.first.index + self.count
    }

    /// Each.
    pub fn pages(self) -> impl Iterator<Item = Page> {
        (0..self.count).map(move |n| Page {
            pa: self.first.pa + (n * PAGE_SIZE) as u64,
            index: self.first.index + n,
        })
    }
}

#[cfg(test)]
mod tests;
