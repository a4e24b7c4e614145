//! The order in which a page changes hands.
//!
//! [`super::pages`] decides who may have a page; here is what then happens to it, step by step. The
//! steps are always in this order: the old owner loses the mapping, on its CPUs and for its devices, and the TLBs
//! of both are known to have lost it; the page is wiped or cleaned; the new owner gets it. Any other order shows
//! somebody what is not theirs: a page wiped while its old owner can still write it is not wiped, and one that is
//! mapped for a guest before it is clean to the point of coherency shows that guest, whose caches are
//! off at first, what memory held before (regressions r31).
//!
//! Pages change hands in ranges. What costs the same for many as for one is done once for all: the old owner loses
//! them all, and TLBs and devices are waited for once. What costs as much for each is done in stretches of
//! [`Hands::STRETCH`]: behind each it is asked whether somebody waits for the CPU, and what is left then goes back
//! to whom it was taken from. So the time without interrupts doesn't grow with the range, and who asked for
//! it asks again for the rest. Nor does it grow where a VM's pages lie side by side that were different things to it:
//! each change of what they were counts as a page.
//!
//! The steps themselves are behind [`Hands`]: page tables and cache maintenance on the target, a
//! memory with caches in the tests.

#![forbid(unsafe_code)]

use super::pages::{Page, PageRange, State};
use umbra_shared::measurement::Value;

/// What is done to pages while they change hands.
pub trait Hands {
    /// Pages that are wiped or cleaned, at the most, before it is asked whether somebody waits.
    const STRETCH: usize;

    /// The host loses them: unmapped, complete with TLB maintenance of CPUs. Of what its devices may still do there
    /// nothing is known before [`Self::devices_are_done`].
    fn take_from_host(&mut self, pages: PageRange);

    /// The host's devices have lost what was taken from it: nothing that they began there is under way.
    fn devices_are_done(&mut self);

    /// The host can use them, and its devices.
    fn give_to_host(&mut self, pages: PageRange);

    /// Pages that the host has had all along, and its devices, are its alone again.
    fn leave_to_host(&mut self, pages: PageRange);

    /// Hyp can use them.
    fn map_for_hyp(&mut self, pages: PageRange);

    /// Hyp can't any more.
    fn unmap_for_hyp(&mut self, pages: PageRange);

    /// Zeroes them. Only while they are mapped for hyp.
    fn wipe(&mut self, pages: PageRange);

    /// Cleans and invalidates them to the point of coherency. Only while they are mapped for hyp.
    fn clean(&mut self, pages: PageRange);

    /// SHA-256 of what is in a page. Only while it is mapped for hyp, and nobody else can write it.
    fn digest(&mut self, page: Page) -> Value;

    /// Stores words from a byte of a page on, a multiple of 8. Only while it is mapped for hyp; a guest may have it.
    fn write(&mut self, page: Page, at: usize, words: impl Iterator<Item = u64>);

    /// Loads words likewise.
    fn read(&mut self, page: Page, at: usize, words: &mut [u64]);

    /// Drops what instruction caches hold.
    fn forget_instructions(&mut self);

    /// Whether a guest finds what is in caches, whatever attributes it uses, with its own off, too.
    fn guests_see_caches(&self) -> bool;

    /// Whether something waits for this CPU that can't wait for long.
    fn is_waited_for(&self) -> bool;
}

/// Pages that a guest may see from now on: the only thing that a guest's memory is mapped from.
#[derive(Debug)]
pub struct Ready(PageRange);

impl Ready {
    /// Which.
    pub const fn pages(&self) -> PageRange {
        self.0
    }
}

/// Pages become hyp's for a VM: they are mapped for hyp, and hold zeroes.
pub fn donate(hands: &mut impl Hands, pages: PageRange) {
    hands.take_from_host(pages);
    hands.devices_are_done();
    hands.map_for_hyp(pages);
    hands.wipe(pages);
}

/// What a guest finds in pages that it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A normal guest's: what the host has there, who keeps it.
    Shared,
    /// A protected guest's, while it is built: what the host had there.
    Kept,
    /// A protected guest's that is sealed: nothing of the host's choosing.
    Zeroed,
}

/// Pages become a guest's, as many from the beginning as there is time for, one at least; the host keeps them unless
/// the guest is protected. `own` enters the new owner of some of them. What keeps its content is measured, page by page:
/// `measured` is told of each.
#[must_use]
pub fn prepare_for_guest<H: Hands>(
    hands: &mut H,
    pages: PageRange,
    arrival: Arrival,
    mut own: impl FnMut(&mut H, PageRange),
    mut measured: impl FnMut(Page, Value),
) -> Ready {
    let taken = arrival != Arrival::Shared;
    if taken {
        hands.take_from_host(pages);
        hands.devices_are_done();
    }
    let untouched = !taken && hands.guests_see_caches();
    let stretch = match arrival {
        _ if untouched => pages.count(),
        // To measure one takes as long as to wipe many.
        Arrival::Kept => 1,
        Arrival::Shared | Arrival::Zeroed => H::STRETCH,
    };
    let mut done = 0;
    while done < pages.count() {
        let part = pages.split_at(done).1.split_at(stretch).0;
        own(hands, part);
        if !untouched {
            hands.map_for_hyp(part);
            // Not before the host has lost it, who would write it again.
            if arrival == Arrival::Zeroed {
                hands.wipe(part);
            }
            // Nor this, or what is measured is not what is there.
            if arrival == Arrival::Kept {
                part.pages().for_each(|page| measured(page, hands.digest(page)));
            }
            hands.clean(part);
            hands.unmap_for_hyp(part);
        }
        done += part.count();
        if hands.is_waited_for() {
            break;
        }
    }
    let (ready, rest) = pages.split_at(done);
    if taken && rest.count() != 0 {
        hands.give_to_host(rest);
    }
    // The host may have executed something else at these physical addresses.
    hands.forget_instructions();
    Ready(ready)
}

/// What becomes of the content of a page that a protected guest shares, or takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// Whoever gets the page gets it.
    Kept,
    /// Nobody does.
    Wiped,
}

/// A protected guest's page becomes the host's to use as well. The guest has it as before, or where it is mapped from
/// what is returned.
pub fn share_with_host(hands: &mut impl Hands, page: Page, passing: Passing) -> Ready {
    pass(hands, page, passing);
    hands.give_to_host(page.alone());
    Ready(page.alone())
}

/// It is the guest's alone again: as before, or where it is mapped from what is returned.
pub fn unshare_with_host(hands: &mut impl Hands, page: Page, passing: Passing) -> Ready {
    hands.take_from_host(page.alone());
    hands.devices_are_done();
    pass(hands, page, passing);
    Ready(page.alone())
}

/// Whoever has had it alone can do nothing with it meanwhile, unless its content is kept.
fn pass(hands: &mut impl Hands, page: Page, passing: Passing) {
    hands.map_for_hyp(page.alone());
    if passing == Passing::Wiped {
        hands.wipe(page.alone());
    }
    // The guest may have written it with its caches off, beside older lines, or may be about to read it so.
    hands.clean(page.alone());
    hands.unmap_for_hyp(page.alone());
}

/// A guest's page, which it has meanwhile, holds these words from a byte on.
pub fn write(hands: &mut impl Hands, page: Page, at: usize, words: impl Iterator<Item = u64>) {
    hands.map_for_hyp(page.alone());
    // What the guest has written with its caches off is what the rest of a line is.
    hands.clean(page.alone());
    hands.write(page, at, words);
    hands.clean(page.alone());
    hands.unmap_for_hyp(page.alone());
}

/// What there is in a guest's page from a byte on, which it has meanwhile.
pub fn read(hands: &mut impl Hands, page: Page, at: usize, words: &mut [u64]) {
    hands.map_for_hyp(page.alone());
    // It may have written it with its caches off.
    hands.clean(page.alone());
    hands.read(page, at, words);
    hands.unmap_for_hyp(page.alone());
}

/// A page that a VM has no translation of any more becomes the host's again, without what a protected
/// guest or hyp left in it. `was` is what it has been.
pub fn give_back(hands: &mut impl Hands, page: Page, was: State) {
    if wipe_for_host(hands, page.alone(), was) {
        hands.give_to_host(page.alone());
    } else {
        hands.leave_to_host(page.alone());
    }
}

/// Pages of a VM that has no translations any more become the host's again, as many from the beginning as there is
/// time for. `own` makes the host the owner of some from the beginning of what it is given, and says what those
/// have been; `None`: the first is not the VM's. Returns how many are the host's now.
pub fn reclaim<H: Hands>(
    hands: &mut H,
    pages: PageRange,
    mut own: impl FnMut(&mut H, PageRange) -> Option<(State, PageRange)>,
) -> usize {
    let mut done = 0;
    // Wiped, and not yet given.
    let mut wiped: Option<PageRange> = None;
    'all: while done < pages.count() {
        let mut left = H::STRETCH;
        while left != 0 && done < pages.count() {
            let rest = pages.split_at(done).1.split_at(left).0;
            let Some((was, part)) = own(hands, rest) else { break 'all };
            done += part.count();
            left = left.saturating_sub(part.count() + 1);
            if wipe_for_host(hands, part, was) {
                wiped = Some(wiped.map_or(part, |wiped| wiped.and(part)));
            } else {
                if let Some(wiped) = wiped.take() {
                    hands.give_to_host(wiped);
                }
                hands.leave_to_host(part);
            }
        }
        if hands.is_waited_for() {
            break;
        }
    }
    if let Some(wiped) = wiped {
        hands.give_to_host(wiped);
    }
    done
}

/// Nothing is left of whose pages these were. False if the host could read them all along.
fn wipe_for_host(hands: &mut impl Hands, pages: PageRange, was: State) -> bool {
    match was {
        State::Vm(_) => {}
        State::Guest(_) => hands.map_for_hyp(pages),
        _ => return false,
    }
    hands.wipe(pages);
    hands.clean(pages);
    hands.unmap_for_hyp(pages);
    true
}

#[cfg(test)]
mod tests;
