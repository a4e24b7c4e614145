//! The order in which a page changes hands.
//!
//! [`super::pages`] decides who may have a page; here is what then happens to it, step by step. The
//! steps are always in this order: the old owner loses the mapping, on its CPUs and for its devices, and the TLBs
//! of both are known to have lost it; the page is wiped or cleaned; the new owner gets it. Any other order shows
//! somebody what is not theirs: a page wiped while its old owner can still write it is not wiped, and one that is
//! mapped for a guest before it is clean to the point of coherency shows that guest, whose caches are
//! off at first, what memory held before (regressions r31).
//!
//! The steps themselves are behind [`Hands`]: page tables and cache maintenance on the target, a
//! memory with caches in the tests.

#![forbid(unsafe_code)]

use super::pages::{Page, PageRange, State};

/// What is done to a page while it changes hands.
pub trait Hands {
    /// The host loses it: unmapped, complete with TLB maintenance of CPUs. Of what its devices may still do there
    /// nothing is known before [`Self::devices_are_done`].
    fn take_from_host(&mut self, page: Page);

    /// The host's devices have lost what was taken from it: nothing that they began there is under way.
    fn devices_are_done(&mut self);

    /// The host can use it, and its devices.
    fn give_to_host(&mut self, page: Page);

    /// Hyp can use it.
    fn map_for_hyp(&mut self, page: Page);

    /// Hyp can't any more.
    fn unmap_for_hyp(&mut self, page: Page);

    /// Zeroes it. Only while it is mapped for hyp.
    fn wipe(&mut self, page: Page);

    /// Cleans and invalidates it to the point of coherency. Only while it is mapped for hyp.
    fn clean(&mut self, page: Page);

    /// Drops what instruction caches hold.
    fn forget_instructions(&mut self);
}

/// A page that a guest may see from now on: the only thing that a guest's memory is mapped from.
#[derive(Debug)]
pub struct Ready(Page);

impl Ready {
    /// Its physical address.
    pub const fn pa(&self) -> u64 {
        self.0.pa()
    }
}

/// Pages become hyp's for a VM: they are mapped for hyp, and hold zeroes. Devices are waited for once.
pub fn donate(hands: &mut impl Hands, pages: PageRange) {
    pages.pages().for_each(|page| hands.take_from_host(page));
    hands.devices_are_done();
    for page in pages.pages() {
        hands.map_for_hyp(page);
        hands.wipe(page);
    }
}

/// What a guest finds in a page that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A normal guest's: what the host has there, who keeps it.
    Shared,
    /// A protected guest's, while it is built: what the host had there.
    Kept,
    /// A protected guest's that is sealed: nothing of the host's choosing.
    Zeroed,
}

/// A page becomes a guest's; the host keeps it unless the guest is protected.
#[must_use]
pub fn prepare_for_guest(hands: &mut impl Hands, page: Page, arrival: Arrival) -> Ready {
    if arrival != Arrival::Shared {
        hands.take_from_host(page);
        hands.devices_are_done();
    }
    hands.map_for_hyp(page);
    // Not before the host has lost it, who would write it again.
    if arrival == Arrival::Zeroed {
        hands.wipe(page);
    }
    hands.clean(page);
    hands.unmap_for_hyp(page);
    // The host may have executed something else at this physical address.
    hands.forget_instructions();
    Ready(page)
}

/// A protected guest's page becomes the host's to use as well, with what the guest left in it.
pub fn share_with_host(hands: &mut impl Hands, page: Page) {
    // The guest may have written it with its caches off, beside older lines.
    hands.map_for_hyp(page);
    hands.clean(page);
    hands.unmap_for_hyp(page);
    hands.give_to_host(page);
}

/// It is the guest's alone again, with what is in it.
pub fn unshare_with_host(hands: &mut impl Hands, page: Page) {
    hands.take_from_host(page);
    hands.devices_are_done();
    hands.map_for_hyp(page);
    hands.clean(page);
    hands.unmap_for_hyp(page);
}

/// A page of a VM that has no translations any more becomes the host's again, without what a protected
/// guest or hyp left in it. `was` is what it has been.
pub fn reclaim(hands: &mut impl Hands, page: Page, was: State) {
    match was {
        State::Vm(_) => {}
        State::Guest(_) => hands.map_for_hyp(page),
        // The host could read it all along.
        _ => return,
    }
    hands.wipe(page);
    hands.clean(page);
    hands.unmap_for_hyp(page);
    hands.give_to_host(page);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::pages::Pages;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Content {
        Zero,
        Hosts,
        Secret,
    }

    /// One page of a memory with caches. Each step asserts what must be so before it.
    #[derive(Debug)]
    struct Memory {
        host: bool,
        /// Something that a device of the host's has begun may still arrive.
        devices: bool,
        hyp: bool,
        guest: bool,
        /// What the caches hold.
        cached: Content,
        /// What one finds with caches off.
        memory: Content,
        stale_instructions: bool,
    }

    impl Memory {
        /// A page that the host has just written, and executed from.
        const fn hosts() -> Self {
            Self {
                host: true,
                devices: true,
                hyp: false,
                guest: false,
                cached: Content::Hosts,
                memory: Content::Secret,
                stale_instructions: true,
            }
        }

        fn map_for_guest(&mut self, ready: &Ready) {
            assert_eq!(ready.pa(), PAGE);
            assert_eq!(self.memory, self.cached, "mapped for a guest before it is clean to PoC");
            assert!(!self.stale_instructions, "an instruction cache holds what was here before");
            assert_eq!(self.devices, self.host, "a device has not lost what its host has lost");
            self.guest = true;
        }
    }

    impl Hands for Memory {
        fn take_from_host(&mut self, _: Page) {
            assert!(self.host);
            self.host = false;
        }

        fn devices_are_done(&mut self) {
            self.devices = self.host;
        }

        fn give_to_host(&mut self, _: Page) {
            assert!(!self.hyp && !self.guest, "the host gets what somebody else can still use");
            assert_ne!(self.cached, Content::Secret, "the host gets what is not its own");
            assert_eq!(self.memory, self.cached, "the wipe has not reached memory");
            (self.host, self.devices) = (true, true);
        }

        fn map_for_hyp(&mut self, _: Page) {
            assert!(!self.hyp);
            self.hyp = true;
        }

        fn unmap_for_hyp(&mut self, _: Page) {
            assert!(self.hyp);
            self.hyp = false;
        }

        fn wipe(&mut self, _: Page) {
            assert!(self.hyp);
            assert!(!self.host && !self.guest, "wiped while somebody can write it");
            assert!(!self.devices, "wiped while a device can write it");
            self.cached = Content::Zero;
        }

        fn clean(&mut self, _: Page) {
            assert!(self.hyp);
            self.memory = self.cached;
        }

        fn forget_instructions(&mut self) {
            self.stale_instructions = false;
        }
    }

    const PAGE: u64 = 0x4000_1000;

    fn pages() -> PageRange {
        let mut entries = [State::Host; 4];
        Pages::new(&[(0x4000_0000, 0x4000_4000)], &mut entries).lookup_range(PAGE, 1).unwrap()
    }

    fn page() -> Page {
        pages().first()
    }

    #[test]
    fn r31_a_guest_sees_a_page_only_when_it_is_clean() {
        for arrival in [Arrival::Shared, Arrival::Kept, Arrival::Zeroed] {
            let mut memory = Memory::hosts();
            let ready = prepare_for_guest(&mut memory, page(), arrival);
            memory.map_for_guest(&ready);
            // Nothing of the host's choosing gets into a protected guest that is sealed.
            let expected = if arrival == Arrival::Zeroed { Content::Zero } else { Content::Hosts };
            assert_eq!(memory.memory, expected, "{arrival:?}");
            assert_eq!((memory.host, memory.hyp), (arrival == Arrival::Shared, false));
        }
    }

    #[test]
    fn donated_pages_are_wiped_when_the_host_has_lost_them() {
        let mut memory = Memory::hosts();
        donate(&mut memory, pages());
        assert_eq!((memory.host, memory.hyp, memory.cached), (false, true, Content::Zero));
    }

    #[test]
    fn r31_reclaimed_pages_are_wiped_in_memory() {
        for was in [State::Vm(1), State::Guest(1), State::SharedWithGuest(1)] {
            let mut memory = Memory::hosts();
            if let State::Vm(_) = was {
                donate(&mut memory, pages());
            } else {
                let ready = prepare_for_guest(
                    &mut memory,
                    page(),
                    if was == State::Guest(1) { Arrival::Kept } else { Arrival::Shared },
                );
                memory.map_for_guest(&ready);
            }
            // It is used, then its VM loses all translations.
            if was != State::SharedWithGuest(1) {
                memory.cached = Content::Secret;
            }
            memory.guest = false;
            reclaim(&mut memory, page(), was);
            assert_eq!((memory.host, memory.hyp), (true, false), "{was:?}");
        }
    }
}
