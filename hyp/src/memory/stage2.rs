//! Stage 2 as it changes: which entry is written when, and what the TLBs have to forget.
//!
//! A page is gone for its old owner when no walk finds it and no TLB holds it. The second half is the
//! harder one, and it is the half that an emulator forgives: QEMU drops all of EL1&0 whenever the VMID
//! changes. So the decisions are here, where a machine in the tests can be less kind:
//!
//! - EL1&0 maintenance is for the VMID in VTTBR_EL2, whatever the CPU happened to run before it came to
//!   hyp: a guest that shares or gives back memory has its own there. The VMID of the stage 2 that has
//!   changed is loaded first, and what was loaded comes back.
//! - The store is complete before the TLBI (DSB ISH), or a walk refills from the old entry behind it.
//!   That barrier also ends walks that this CPU began for the VMID that is about to be replaced (Arm
//!   ARM, out-of-context translation regimes).
//! - TLBI IPAS2E1IS drops stage-2 entries only. Entries that combine both stages are found by VA,
//!   which hyp doesn't know, so all of stage 1 goes too (VMALLE1IS), and not before the first is
//!   complete: else a combined entry is made again from a stage-2 entry that is still there (Arm ARM
//!   D8.17.6.3).
//! - On many cores a store that has used an entry may be seen after the DSB that waited for the entry's TLBI; then
//!   both are done again. Accesses in streaming mode outlive even that on some, and EL3 must be asked to wait
//!   ([`crate::world::errata`]).
//! - A block that loses some pages is broken before the rest is made as pages: TLBs that hold a block and
//!   a page for the same address may answer with either, or abort. The same the other way round: a block is made of
//!   pages when all of them are gone, their table with them, which walks keep as well. In between other CPUs fault
//!   on the rest of it. They wait for the lock that whoever breaks the block holds, then [`host_fault`] looks
//!   again and lets them retry; a guest's fault is looked at again by whoever takes it (`guest::access`).
//! - Many pages are lost in one go: all entries are invalid, then TLBs are told once. More than a few of them aren't
//!   named one by one, everything under the VMID goes (VMALLS12E1IS): that is as many broadcasts for 512 pages as
//!   for one.
//!
//! What comes before and behind all that (who may have the page, when it is wiped) is decided in
//! [`super::pages`] and [`super::handover`].

#![forbid(unsafe_code)]

use super::junk::Junk;
use super::pages::{PageRange, Pages, State};
use arrayvec::ArrayVec;
use umbra_shared::PAGE_SIZE;

#[cfg(test)]
mod machine;
#[cfg(test)]
mod tests;

const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// VTTBR_EL2: which stage 2, under which VMID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vttbr(u64);

impl Vttbr {
    /// A VMID and the physical address of a root table.
    pub const fn new(vmid: u8, root: u64) -> Self {
        Self((vmid as u64) << 48 | root)
    }

    /// What a register holds.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The VMID.
    pub const fn vmid(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// The register's value.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// An entry of the last level of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaf {
    /// First address translated.
    pub ipa: u64,
    /// Bytes translated.
    pub bytes: u64,
    /// Where they are.
    pub pa: u64,
}

impl Leaf {
    /// The address behind the last one.
    pub const fn end(self) -> u64 {
        self.ipa + self.bytes
    }
}

/// What is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Nothing,
    /// Nothing for walks, and nothing else comes there.
    Marked(Mark),
    /// Memory.
    Leaf(Leaf),
}

/// Why nothing comes to a page's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mark {
    /// A guest has enrolled the page as a device's.
    Enrolled,
    /// What was there is shared at its alias.
    Aliased,
}

/// Pages and blocks that are named to TLBs one by one, at the most.
const NAMED: usize = 4;

/// A part of an address space that lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first address.
    pub ipa: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// A range, cut where blocks of `block` bytes end.
pub fn cut(ipa: u64, bytes: u64, block: u64) -> impl Iterator<Item = Piece> + Clone {
    let end = ipa + bytes;
    let next = move |at: u64| end.min(at - at % block + block);
    core::iter::successors(Some(ipa), move |&at| Some(next(at)))
        .take_while(move |&at| at < end)
        .map(move |at| Piece { ipa: at, bytes: next(at) - at })
}

/// A stage 2 in memory. Nothing here tells a TLB anything.
pub trait Table {
    /// Bytes of a block.
    const BLOCK: u64;

    /// What is at an address.
    fn entry(&self, ipa: u64) -> Entry;

    /// Whether there is nothing in all of a piece, neither memory nor a mark.
    fn is_free(&self, piece: Piece) -> bool;

    /// Whether a table of pages hangs at the block around an address, whatever is in it.
    fn has_pages(&self, ipa: u64) -> bool;

    /// The first page of a piece with this mark.
    fn find(&self, piece: Piece, mark: Mark) -> Option<u64>;

    /// What translates an address.
    fn leaf(&self, ipa: u64) -> Option<Leaf> {
        match self.entry(ipa) {
            Entry::Leaf(leaf) => Some(leaf),
            Entry::Nothing | Entry::Marked(_) => None,
        }
    }

    /// The physical address of a piece's first page, and how many pages lie one behind the other from there on.
    fn run(&self, piece: Piece) -> Option<(u64, u64)> {
        let end = piece.ipa + piece.bytes;
        let pa = |leaf: Leaf, at| leaf.pa + (at - leaf.ipa);
        let first = pa(self.leaf(piece.ipa)?, piece.ipa);
        let mut at = piece.ipa;
        while at < end {
            match self.leaf(at) {
                Some(leaf) if pa(leaf, at).wrapping_sub(first) == at - piece.ipa => at = leaf.end(),
                _ => break,
            }
        }
        Some((first, (at.min(end) - piece.ipa) / PAGE_BYTES))
    }

    /// Makes every entry of a piece invalid, which no leaf sticks out of. A table of pages that the piece is all of
    /// is unlinked, and free for what comes next.
    fn clear(&mut self, piece: Piece);

    /// Writes down of a page where nothing is mapped why nothing comes there: an entry that is invalid for walks.
    /// There are tables for it.
    fn mark(&mut self, ipa: u64, mark: Mark);

    /// Takes that back.
    fn unmark(&mut self, ipa: u64);

    /// Maps Normal memory as pages where nothing is mapped. There are tables for it.
    fn fill(&mut self, ipa: u64, pa: u64, bytes: u64);

    /// Maps Normal memory as a block where nothing is mapped and no table hangs. There are tables for it.
    fn fill_block(&mut self, ipa: u64, pa: u64);
}

/// TLBs of the EL1&0 regime, and VTTBR_EL2, which says whose entries an instruction is about.
pub trait Tlb {
    /// VTTBR_EL2.
    fn loaded(&self) -> Vttbr;

    /// Writes VTTBR_EL2; ISB.
    fn load(&self, vttbr: Vttbr);

    /// DSB ISH: this CPU's stores to tables are what every walk finds from here on.
    fn stores_done(&self);

    /// TLBI IPAS2E1IS.
    fn drop_stage2(&self, ipa: u64);

    /// TLBI VMALLE1IS.
    fn drop_stage1(&self);

    /// TLBI VMALLS12E1IS.
    fn drop_both(&self);

    /// TLBI VMALLE1; IC IALLU: this CPU only.
    fn drop_own_stage1(&self);

    /// DSB ISH: the maintenance before it has been done, on all CPUs.
    fn dropped(&self);

    /// DSB NSH; ISB: on this one.
    fn dropped_here(&self);

    /// Whether a store may outlive maintenance and the DSB behind it ([`crate::world::errata`]).
    fn repeats(&self) -> bool;

    /// Where accesses in streaming mode outlive both: they have been done when this returns.
    fn streaming_done(&self);
}

/// A stage 2 and the VMID that TLBs know it by.
#[derive(Debug)]
pub struct Stage2<T> {
    table: T,
    vttbr: Vttbr,
}

impl<T: Table> Stage2<T> {
    /// This table, under this VTTBR_EL2.
    pub const fn new(table: T, vttbr: Vttbr) -> Self {
        Self { table, vttbr }
    }

    /// VTTBR_EL2.
    pub const fn vttbr(&self) -> Vttbr {
        self.vttbr
    }

    /// What is at an address.
    pub fn entry(&self, ipa: u64) -> Entry {
        self.table.entry(ipa)
    }

    /// The physical address of what is mapped at an address.
    pub fn lookup(&self, ipa: u64) -> Option<u64> {
        self.table.leaf(ipa).map(|leaf| leaf.pa + (ipa - leaf.ipa))
    }

    /// Whether there is nothing in all of a range, neither memory nor marks.
    pub fn is_free(&self, ipa: u64, bytes: u64) -> bool {
        cut(ipa, bytes, T::BLOCK).all(|piece| self.table.is_free(piece))
    }

    /// The first page of a range in one block that has this mark.
    pub fn find(&self, ipa: u64, bytes: u64, mark: Mark) -> Option<u64> {
        self.table.find(Piece { ipa, bytes }, mark)
    }

    /// What is mapped at an address, and how many pages from there on lie one behind the other in memory, as far as
    /// `bytes` goes, which ends in the same block.
    pub fn run(&self, ipa: u64, bytes: u64) -> Option<(u64, u64)> {
        self.table.run(Piece { ipa, bytes })
    }

    /// Whether a range cuts a block, so that taking it away takes a table.
    pub fn cuts_a_block(&self, ipa: u64, bytes: u64) -> bool {
        let end = ipa + bytes;
        let sticks_out = |leaf: Leaf| leaf.ipa < ipa || leaf.end() > end;
        [ipa, end - PAGE_BYTES].into_iter().any(|at| self.table.leaf(at).is_some_and(sticks_out))
    }

    /// Maps a range where nothing is mapped, as blocks where both addresses allow it. Nothing was, so no TLB holds
    /// anything of it; but where pages have been walks keep their table, which is in a block's place.
    pub fn map(&mut self, tlb: &impl Tlb, ipa: u64, pa: u64, bytes: u64) {
        for piece in cut(ipa, bytes, T::BLOCK) {
            let pa = pa + (piece.ipa - ipa);
            if piece.bytes == T::BLOCK && pa.is_multiple_of(T::BLOCK) {
                if self.table.has_pages(piece.ipa) {
                    self.table.clear(piece);
                    self.forget_everything(tlb);
                }
                self.table.fill_block(piece.ipa, pa);
            } else {
                self.table.fill(piece.ipa, pa, piece.bytes);
            }
        }
        // Visible to all walks before anybody relies on it.
        tlb.stores_done();
    }

    /// Makes a block of what there is at its addresses, pages of it or nothing.
    pub fn join(&mut self, tlb: &impl Tlb, ipa: u64, pa: u64) {
        let piece = Piece { ipa, bytes: T::BLOCK };
        if self.table.has_pages(ipa) {
            self.table.clear(piece);
            self.forget_everything(tlb);
        }
        if self.table.is_free(piece) {
            self.table.fill_block(ipa, pa);
            tlb.stores_done();
        }
    }

    /// Marks a page where nothing is mapped, so that a fault there is known for what it is and nothing else comes there.
    /// To walks and TLBs nothing changes.
    pub fn mark(&mut self, ipa: u64, mark: Mark) {
        self.table.mark(ipa, mark);
    }

    /// Takes that back: there is nothing, and something can be mapped there.
    pub fn unmark(&mut self, ipa: u64) {
        self.table.unmark(ipa);
    }

    /// Takes a range away: no CPU can reach it through this stage 2 any more. The rest of blocks around
    /// its ends stays.
    pub fn unmap(&mut self, tlb: &impl Tlb, ipa: u64, bytes: u64) {
        let end = ipa + bytes;
        // One at each end.
        let mut rest = [None; 2];
        // An address of each entry, as long as they are few.
        let mut named = Some(ArrayVec::<u64, NAMED>::new());
        for piece in cut(ipa, bytes, T::BLOCK) {
            let pages = match self.table.leaf(piece.ipa) {
                Some(block) if block.bytes > PAGE_BYTES => {
                    self.table.clear(Piece { ipa: block.ipa, bytes: block.bytes });
                    rest[usize::from(block.ipa >= ipa)] = Some(block);
                    1
                }
                _ => {
                    self.table.clear(piece);
                    piece.bytes / PAGE_BYTES
                }
            };
            let mut entries = (0..pages).map(|n| piece.ipa + n * PAGE_BYTES);
            named = named.filter(|list| pages <= list.remaining_capacity() as u64);
            if let Some(list) = &mut named {
                list.extend(&mut entries);
            }
        }
        match named {
            Some(named) => self.forget(tlb, &named),
            None => self.forget_everything(tlb),
        }
        // What was invalid is in no TLB, so making the pages needs no maintenance.
        let mut filled = false;
        for block in rest.into_iter().flatten() {
            for (from, to) in [(block.ipa, ipa), (end, block.end())] {
                if from < to {
                    self.table.fill(from, block.pa + (from - block.ipa), to - from);
                    filled = true;
                }
            }
        }
        if filled {
            tlb.stores_done();
        }
    }

    /// The end of this stage 2, which no CPU has loaded: no TLB holds anything of it.
    pub fn forget_all(&self, tlb: &impl Tlb) {
        self.forget_everything(tlb);
    }

    /// Another vCPU runs on this CPU than the one that ran here last. They share the VMID, but not
    /// stage 1: what this CPU keeps of that, and of instructions, is the other's.
    pub fn forget_sibling(&self, tlb: &impl Tlb) {
        tlb.stores_done();
        self.loaded(tlb, || {
            tlb.drop_own_stage1();
            tlb.dropped_here();
        });
    }

    /// Entries that translated these addresses are gone from all TLBs, with all that was made of them. One
    /// address is enough for a block: TLBs that keep one in pieces drop all of them.
    fn forget(&self, tlb: &impl Tlb, entries: &[u64]) {
        tlb.stores_done();
        self.loaded(tlb, || {
            Self::everywhere(tlb, || entries.iter().for_each(|&ipa| tlb.drop_stage2(ipa)));
            Self::everywhere(tlb, || tlb.drop_stage1());
        });
        tlb.streaming_done();
    }

    /// All entries that there were are gone, those of both stages and what walks keep of tables.
    fn forget_everything(&self, tlb: &impl Tlb) {
        tlb.stores_done();
        self.loaded(tlb, || Self::everywhere(tlb, || tlb.drop_both()));
        tlb.streaming_done();
    }

    /// Maintenance on all CPUs, complete: where the first DSB doesn't wait for stores that used what is dropped,
    /// the second one does.
    fn everywhere(tlb: &impl Tlb, maintenance: impl Fn()) {
        maintenance();
        tlb.dropped();
        if tlb.repeats() {
            maintenance();
            tlb.dropped();
        }
    }

    /// Does something with this VMID loaded.
    fn loaded<L: Tlb>(&self, tlb: &L, f: impl FnOnce()) {
        let before = tlb.loaded();
        if before != self.vttbr {
            tlb.load(self.vttbr);
        }
        f();
        if before != self.vttbr {
            tlb.load(before);
        }
    }
}

/// The host can use pages again, which are its own already: as pages, or, where nothing else is missing there, the
/// blocks that they complete.
pub fn give_to_host<T: Table>(
    pages: &Pages<'_>,
    host: &mut Stage2<T>,
    junk: &mut Junk,
    tlb: &impl Tlb,
    range: PageRange,
) {
    junk.leave(host, tlb, range);
    for piece in range.cut_at(T::BLOCK) {
        if !complete(pages, host, tlb, piece) {
            host.map(tlb, piece.start(), piece.start(), piece.bytes());
        }
    }
}

/// Pages that the host has are its own to keep: blocks that they complete are made again.
pub fn make_whole<T: Table>(
    pages: &Pages<'_>,
    host: &mut Stage2<T>,
    tlb: &impl Tlb,
    range: PageRange,
) {
    for piece in range.cut_at(T::BLOCK) {
        if host.table.has_pages(piece.start()) {
            complete(pages, host, tlb, piece);
        }
    }
}

/// Makes the block again that pages are in, if all of it is the host's. Whether it is.
fn complete<T: Table>(
    pages: &Pages<'_>,
    host: &mut Stage2<T>,
    tlb: &impl Tlb,
    piece: PageRange,
) -> bool {
    let block = pages.whole_host_block(piece.first(), T::BLOCK);
    if let Some(block) = block {
        host.join(tlb, block.start(), block.start());
    }
    block.is_some()
}

/// What to do about a host's stage-2 translation fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostFault {
    /// The host may access the page: let it try again.
    Retry,
    /// It may not, but its kernel finds junk there: let it try again.
    Junk,
    /// It may not: an abort.
    Abort,
}

/// A stage-2 translation fault of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub pa: u64,
    /// The CPU, if it was the host's EL1 that accessed data.
    pub kernel_on: Option<usize>,
}

/// What becomes of a fault of the host's. The caller holds the lock that every change of
/// the host's stage 2 is made under, so nobody is half-way through one: looking again tells a fault on
/// a broken block from one on somebody else's page. `wipe` is as for [`Junk::put`].
pub fn host_fault<T: Table>(
    pages: &Pages<'_>,
    host: &mut Stage2<T>,
    junk: &mut Junk,
    tlb: &impl Tlb,
    fault: Fault,
    wipe: impl FnOnce(u64),
) -> HostFault {
    let pa = fault.pa & !(PAGE_BYTES - 1);
    match pages.lookup(pa) {
        Ok(page) if pages.state(page).host_has_access() => {
            if host.lookup(pa).is_none() {
                host.map(tlb, pa, pa, PAGE_BYTES);
            }
            HostFault::Retry
        }
        Ok(page) => match (pages.state(page), fault.kernel_on) {
            (State::Guest(vm), Some(cpu))
                if junk.is_for(vm) && junk.put(host, tlb, (cpu, page), wipe) =>
            {
                HostFault::Junk
            }
            _ => HostFault::Abort,
        },
        Err(_) if host.lookup(pa).is_some() => HostFault::Retry,
        Err(_) => HostFault::Abort,
    }
}
