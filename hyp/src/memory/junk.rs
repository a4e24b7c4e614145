//! Junk: what a host's kernel finds where it accesses memory that is a guest's alone, of VMs for which it has asked for that
//! ([`umbra_shared::call::VmConfig::junk`]).
//!
//! A kernel reads and writes for its users what they have mapped, copies pinned pages when a process forks, looks through pages for
//! equal ones. That some of them are a guest's it does not know, and an abort in the middle of that is its end. So such an access finds
//! another page: hyp maps one of its own in the place of the guest's, and the kernel goes on. What it writes there is lost, what it
//! reads is nothing: each page is wiped before it is mapped, so nobody finds there what somebody else has written for another one.
//!
//! There are two for each CPU, since an access lies in two pages at the most (a copy of FEAT_MOPS's goes on where it was), and a CPU
//! replaces none but its own: whatever other CPUs do, it gets on. They stay where they are until their CPU needs them elsewhere, or the page becomes the host's: before that
//! is mapped, junk in its place is gone.
//!
//! Devices find none. Nor do the host's users by their own accesses, nor its fetches and its walks of translation tables: those are
//! aborts, as far as no junk is in that place already.

#![forbid(unsafe_code)]

use super::pages::{Page, PageRange, VmId};
use super::stage2::{Stage2, Table, Tlb};
use crate::arch::MAX_CPUS;
use arrayvec::ArrayVec;
use umbra_shared::PAGE_SIZE;

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// Pages that an access lies in at the most: across the end of one.
pub const PER_CPU: usize = 2;

/// A page of hyp's, and in which page's place it is mapped for the host.
#[derive(Clone, Copy, Debug)]
struct Sheet {
    pa: u64,
    place: Option<u64>,
}

/// All CPUs' junk. Guarded by the lock of the host's stage 2.
#[derive(Debug)]
pub struct Junk {
    sheets: ArrayVec<Sheet, { PER_CPU * MAX_CPUS }>,
    /// Of each CPU, which of its sheets is to be replaced next.
    next: [u8; MAX_CPUS],
    /// VMs whose pages it may be in the place of, by their numbers.
    vms: [u64; 4],
}

const _: () = assert!(VmId::MAX as usize / 64 < 4);

impl Junk {
    /// Pages of hyp's, [`PER_CPU`] for each CPU, which are used for nothing else.
    pub fn new(pages: impl Iterator<Item = u64>) -> Self {
        let sheets = pages.map(|pa| Sheet { pa, place: None }).collect();
        Self { sheets, next: [0; MAX_CPUS], vms: [0; 4] }
    }

    /// A VM begins: whether its host's kernel finds junk in its memory's place.
    pub fn set(&mut self, vm: VmId, junk: bool) {
        let (word, bit) = (&mut self.vms[usize::from(vm / 64)], 1 << (vm % 64));
        if junk {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    /// Whether it does.
    pub fn is_for(&self, vm: VmId) -> bool {
        self.vms[usize::from(vm / 64)] >> (vm % 64) & 1 != 0
    }

    /// Puts some in the place of a page that is not the host's, for an access of this CPU's. `wipe` is given a page that nobody has
    /// mapped but hyp. False: there is none.
    pub fn put<T: Table>(
        &mut self,
        host: &mut Stage2<T>,
        tlb: &impl Tlb,
        (cpu, page): (usize, Page),
        wipe: impl FnOnce(u64),
    ) -> bool {
        let place = page.pa();
        if host.lookup(place).is_some() {
            // Another CPU's, which comes and goes as that needs it.
            return true;
        }
        let Some(next) = self.next.get_mut(cpu) else { return false };
        let Some(sheet) = self.sheets.get_mut(cpu * PER_CPU + usize::from(*next)) else {
            return false;
        };
        *next = (*next + 1) % PER_CPU as u8;
        if let Some(before) = sheet.place.replace(place) {
            host.unmap(tlb, before, PAGE_BYTES);
        }
        wipe(sheet.pa);
        host.map(tlb, place, sheet.pa, PAGE_BYTES);
        true
    }

    /// Nothing is in the place of these pages any more, which become the host's.
    pub fn leave<T: Table>(&mut self, host: &mut Stage2<T>, tlb: &impl Tlb, pages: PageRange) {
        let range = pages.start()..pages.start() + pages.bytes();
        for sheet in &mut self.sheets {
            if let Some(place) = sheet.place.take_if(|place| range.contains(place)) {
                host.unmap(tlb, place, PAGE_BYTES);
            }
        }
    }
}
