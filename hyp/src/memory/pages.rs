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

    /// The one place where a state changes.
    fn set(&mut self, page: Page, state: State) {
        self.entries[page.index] = state;
        #[cfg(feature = "transition-log")]
        self.changes.note(page.pa, state);
    }

    /// A page's state.
    pub fn state(&self, page: Page) -> State {
        self.entries[page.index]
    }

    /// Boot only: takes a range for hyp itself.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup_range`].
    pub fn take_for_hyp(&mut self, pa: u64, count: u64) -> Result<(), Error> {
        let range = self.lookup_range(pa, count)?;
        for page in range.pages() {
            self.set(page, State::Hyp);
        }
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
        range.pages().try_for_each(|page| self.require_host(page))
    }

    /// Gives a range to hyp for a VM.
    ///
    /// # Errors
    ///
    /// As [`Self::check_donation`]; then nothing has changed.
    pub fn donate_to_vm(&mut self, range: PageRange, vm: VmId) -> Result<(), Error> {
        self.check_donation(range)?;
        for page in range.pages() {
            self.set(page, State::Vm(vm));
        }
        Ok(())
    }

    /// Gives a page to a guest: for good if it is protected, else shared.
    ///
    /// # Errors
    ///
    /// [`Error::Shared`], [`Error::NotOwned`].
    pub fn give_to_guest(&mut self, page: Page, vm: VmId, protected: bool) -> Result<(), Error> {
        self.require_host(page)?;
        self.set(page, if protected { State::Guest(vm) } else { State::SharedWithGuest(vm) });
        Ok(())
    }

    /// The host gets a page of a dying VM back. Returns what it was.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwned`] if it was not that VM's.
    pub fn reclaim(&mut self, page: Page, vm: VmId) -> Result<State, Error> {
        let state = self.state(page);
        match state {
            State::Vm(owner)
            | State::Guest(owner)
            | State::SharedWithGuest(owner)
            | State::SharedByGuest(owner)
                if owner == vm =>
            {
                self.set(page, State::Host);
                Ok(state)
            }
            _ => Err(Error::NotOwned),
        }
    }

    /// The host takes a page back that it shared with a normal guest.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwned`] if it is not the host's to take.
    pub fn unshare_with_guest(&mut self, page: Page, vm: VmId) -> Result<(), Error> {
        self.change(page, State::SharedWithGuest(vm), State::Host, Error::NotOwned)
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
            _ => self.reclaim(page, vm),
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
        match self.state(page) {
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

    /// Each.
    pub fn pages(self) -> impl Iterator<Item = Page> {
        (0..self.count).map(move |n| Page {
            pa: self.first.pa + (n * PAGE_SIZE) as u64,
            index: self.first.index + n,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BANKS: &[(u64, u64)] =
        &[(0x4000_0000, 0x4001_0000), (0x4001_0000, 0x4002_0000), (0x8000_0000, 0x8000_4000)];

    fn table(entries: &mut [State]) -> Pages<'_> {
        Pages::new(BANKS, entries)
    }

    #[test]
    fn lookup_knows_ram_from_the_rest() {
        let mut entries = vec![State::Host; count(BANKS)];
        let pages = table(&mut entries);
        assert_eq!(count(BANKS), 36);
        assert_eq!(pages.lookup(0x4000_0001), Err(Error::Unaligned));
        assert_eq!(pages.lookup(0x3fff_f000), Err(Error::NotMemory));
        assert_eq!(pages.lookup(!0xfff), Err(Error::NotMemory));
        assert!(pages.lookup(0x8000_3000).is_ok());
        assert_eq!(pages.lookup(0x8000_4000), Err(Error::NotMemory));
        for (pa, n) in [
            (0x8000_0000, 5),
            (0x8000_0000, u64::MAX),
            (0x8000_3000, 2),
            (0x8000_0000, 0),
            (0x4000_f000, 0x4_0000),
        ] {
            assert_eq!(pages.lookup_range(pa, n), Err(Error::NotMemory), "{pa:#x} {n}");
        }
        assert_eq!(pages.lookup_range(0x8000_0000, 4).map(PageRange::count), Ok(4));
    }

    #[test]
    fn pages_from_any_address_on() {
        let mut entries = vec![State::Host; count(BANKS)];
        let pages = table(&mut entries);
        let first = |pa| pages.next_from(pa).map(Page::pa);
        assert_eq!(first(0), Some(0x4000_0000));
        assert_eq!(first(0x4000_0001), Some(0x4000_1000));
        assert_eq!(first(0x4001_f001), Some(0x8000_0000));
        assert_eq!(first(0x8000_3000), Some(0x8000_3000));
        for pa in [0x8000_3001, 0x8000_4000, u64::MAX - 4095, u64::MAX - 1, u64::MAX] {
            assert_eq!(first(pa), None, "{pa:#x}");
        }
    }

    #[test]
    fn a_refused_donation_changes_nothing() {
        let mut entries = vec![State::Host; count(BANKS)];
        let mut pages = table(&mut entries);
        let flag = pages.lookup(0x4000_2000).unwrap();
        pages.share_flag_page(flag).unwrap();
        let range = pages.lookup_range(0x4000_0000, 4).unwrap();
        assert_eq!(pages.donate_to_vm(range, 3), Err(Error::Shared));
        assert_eq!(pages.state(pages.lookup(0x4000_0000).unwrap()), State::Host);
        pages.unshare_flag_page(flag).unwrap();
        pages.donate_to_vm(range, 3).unwrap();
        assert_eq!(pages.donate_to_vm(range, 3), Err(Error::NotOwned));
        assert_eq!(pages.share_flag_page(flag), Err(Error::NotOwned));
        assert_eq!(pages.reclaim(flag, 2), Err(Error::NotOwned));
        assert_eq!(pages.reclaim(flag, 3), Ok(State::Vm(3)));
        assert_eq!(pages.reclaim(flag, 3), Err(Error::NotOwned));
    }

    #[test]
    fn reserved_memory_is_nobodys_to_give() {
        let mut entries = vec![State::Host; count(BANKS)];
        let mut pages = table(&mut entries);
        // Half pages count as whole ones; what lies outside RAM is passed over.
        pages.reserve(0x4000_1800, 0x4000_2001);
        pages.reserve(0x1000, 0x3000);
        for (pa, free) in
            [(0x4000_0000, true), (0x4000_1000, false), (0x4000_2000, false), (0x4000_3000, true)]
        {
            let range = pages.lookup_range(pa, 1).unwrap();
            let refused = if free { Ok(()) } else { Err(Error::NotMemory) };
            assert_eq!(pages.check_donation(range), refused);
            assert!(pages.state(range.first()).host_has_access());
        }
    }

    #[test]
    fn what_is_pinned_is_the_hosts_for_good() {
        let mut entries = vec![State::Host; count(BANKS)];
        let mut pages = table(&mut entries);
        pages.reserve(0x4000_1000, 0x4000_2000);
        let range = pages.lookup_range(0x4000_0000, 4).unwrap();
        let last = pages.lookup(0x4000_3000).unwrap();
        pages.share_flag_page(last).unwrap();
        assert_eq!(pages.pin(range), Err(Error::Shared));
        assert_eq!(pages.state(range.first()), State::Host, "nothing has changed");
        pages.unshare_flag_page(last).unwrap();
        assert_eq!(pages.pin(range), Ok(()));
        assert_eq!(pages.pin(range), Ok(()), "again");
        for page in range.pages() {
            assert_eq!(pages.state(page), State::Reserved);
            assert_eq!(pages.share_flag_page(page), Err(Error::NotMemory));
            assert_eq!(pages.give_to_guest(page, 1, true), Err(Error::NotMemory));
        }
        pages.take_for_hyp(0x4001_0000, 1).unwrap();
        let hyp = pages.lookup_range(0x4001_0000, 2).unwrap();
        assert_eq!(pages.pin(hyp), Err(Error::NotOwned));
    }

    #[test]
    fn a_flag_page_in_use_stays() {
        let mut entries = vec![State::Host; count(BANKS)];
        let mut pages = table(&mut entries);
        let page = pages.lookup(0x4000_2000).unwrap();
        assert_eq!(pages.pin_flag_page(page), Err(Error::NotShared));
        assert_eq!(pages.unshare_flag_page(page), Err(Error::NotShared));
        pages.share_flag_page(page).unwrap();
        assert_eq!(pages.share_flag_page(page), Err(Error::Shared));
        pages.pin_flag_page(page).unwrap();
        assert_eq!(pages.pin_flag_page(page), Err(Error::Busy));
        assert_eq!(pages.unshare_flag_page(page), Err(Error::Busy));
        pages.unpin_flag_page(page);
        assert_eq!(pages.unshare_flag_page(page), Ok(()));
    }

    proptest! {
        /// Whatever calls come, a page is never both reachable for the host and somebody else's secret,
        /// and hyp's pages stay hyp's.
        #[test]
        fn ownership_is_exclusive(calls in prop::collection::vec((0u8..7, 0u64..36, 0u8..3), 0..200)) {
            let mut entries = vec![State::Host; count(BANKS)];
            let mut pages = table(&mut entries);
            pages.take_for_hyp(0x4000_0000, 4).unwrap();
            let address = |n: u64| if n < 32 { 0x4000_0000 + n * 4096 } else { 0x8000_0000 + (n - 32) * 4096 };
            for (call, n, vm) in calls {
                let page = pages.lookup(address(n)).unwrap();
                let before = pages.state(page);
                let done = match call {
                    0 => pages.share_flag_page(page),
                    1 => pages.unshare_flag_page(page),
                    2 => pages.pin_flag_page(page),
                    3 => pages.lookup_range(page.pa(), 1).and_then(|r| pages.donate_to_vm(r, vm)),
                    4 => pages.give_to_guest(page, vm, true),
                    5 => pages.give_to_guest(page, vm, false),
                    _ => pages.reclaim(page, vm).map(|_| ()),
                };
                let after = pages.state(page);
                if done.is_err() {
                    prop_assert_eq!(before, after);
                } else {
                    prop_assert_ne!(before, State::Hyp);
                    // Only the owner of a VM's page changes by reclaim; others start from the host.
                    prop_assert!(before.host_has_access() || (call == 6 && after == State::Host));
                }
            }
            for n in 0..4 {
                prop_assert_eq!(pages.state(pages.lookup(address(n)).unwrap()), State::Hyp);
            }
        }
    }
}
