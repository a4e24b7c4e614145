//! Pages and their owners.

use std::collections::BTreeMap;

use umbra_shared::PAGE_SIZE;
use umbra_shared::call::UntrustedPages;
use umbra_shared::error::Error;
use umbra_shared::record::PageState;

const PAGE: u64 = PAGE_SIZE as u64;

/// State of a page, and of which VM it is if the state has one (else 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The state.
    pub state: PageState,
    /// The VM's slot.
    pub vm: u8,
}

impl Owner {
    /// The host's alone.
    pub const HOST: Self = Self::of(PageState::Host, 0);

    /// A state of a VM's page.
    pub const fn of(state: PageState, vm: u8) -> Self {
        Self { state, vm }
    }

    /// Whether the host may access the page.
    pub const fn host_has_access(self) -> bool {
        !matches!(self.state, PageState::Hyp | PageState::Vm | PageState::Guest)
    }
}

/// RAM. Pages are named by their number, address over page size.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Runs of pages as they were at boot: number of the first, how many, owner.
    boot: Vec<(u64, u64, Owner)>,
    /// Those that are otherwise now.
    now: BTreeMap<u64, Owner>,
}

/// Changes of states, by page.
pub type Changes = BTreeMap<u64, Owner>;

impl Memory {
    /// At boot, these pages are in this state.
    pub fn add(&mut self, first: u64, count: u64, owner: Owner) {
        self.boot.push((first, count, owner));
    }

    /// A page's owner; `None`: it is not RAM.
    pub fn get(&self, page: u64) -> Option<Owner> {
        let at_boot = || {
            let run =
                self.boot.iter().find(|(first, count, _)| (*first..first + count).contains(&page));
            run.map(|(_, _, owner)| *owner)
        };
        self.now.get(&page).copied().or_else(at_boot)
    }

    /// Carries changes out.
    pub fn apply(&mut self, changes: &Changes) {
        self.now.extend(changes.iter().map(|(&page, &owner)| (page, owner)));
    }

    /// The page at an address.
    pub fn lookup(&self, pa: u64) -> Result<u64, Error> {
        if !pa.is_multiple_of(PAGE) {
            return Err(Error::Unaligned);
        }
        self.get(pa / PAGE).map(|_| pa / PAGE).ok_or(Error::NotMemory)
    }

    /// Several from an address on: all of them RAM.
    pub fn range(&self, pages: UntrustedPages) -> Result<std::ops::Range<u64>, Error> {
        let first = self.lookup(pages.start.0)?;
        if pages.count == 0 || pages.count > 1 << 40 {
            return Err(Error::NotMemory);
        }
        let range = first..first + pages.count;
        if range.clone().all(|page| self.get(page).is_some()) {
            Ok(range)
        } else {
            Err(Error::NotMemory)
        }
    }

    /// The page must be the host's alone.
    pub fn require_host(&self, page: u64) -> Result<(), Error> {
        match self.get(page).map(|owner| owner.state) {
            Some(PageState::Host) => Ok(()),
            None | Some(PageState::Reserved) => Err(Error::NotMemory),
            Some(
                PageState::FlagPage
                | PageState::FlagPageUsed
                | PageState::SharedWithGuest
                | PageState::SharedByGuest,
            ) => Err(Error::Shared),
            Some(PageState::Hyp | PageState::Vm | PageState::Guest) => Err(Error::NotOwned),
        }
    }

    /// The page must be a flag-shadow page that no vCPU uses.
    pub fn require_free_flag_page(&self, page: u64) -> Result<(), Error> {
        match self.get(page).map(|owner| owner.state) {
            Some(PageState::FlagPage) => Ok(()),
            Some(PageState::FlagPageUsed) => Err(Error::Busy),
            Some(PageState::Host | PageState::SharedWithGuest | PageState::SharedByGuest) => {
                Err(Error::NotShared)
            }
            _ => Err(Error::NotOwned),
        }
    }

    /// A donation of pages to hyp for a VM.
    pub fn donate(&self, pages: UntrustedPages, vm: u8) -> Result<Changes, Error> {
        let range = self.range(pages)?;
        range.clone().try_for_each(|page| self.require_host(page))?;
        Ok(range.map(|page| (page, Owner::of(PageState::Vm, vm))).collect())
    }
}
