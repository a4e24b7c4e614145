//! A machine whose TLBs are as unkind as the architecture lets them be.
//!
//! What a TLB may hold is kept as a set: at every step every CPU takes into its TLB all that any walk
//! could find, under every VMID, as stage-2 entries and combined with a stage 1 (page by page), and
//! drops nothing until it must. A walk may find what a store has replaced until a barrier has made the
//! store visible, and may miss what it has written. A TLBI does nothing until the DSB behind it, and
//! several under one DSB take effect in whichever order leaves most behind, while entries are still
//! made out of those that are left. So what is in no set is in no TLB, whatever the timing: one run of
//! this machine stands for all interleavings.
//!
//! Stores that have used an entry are seen after the DSB that waited for the entry's TLBI, until another TLBI and its
//! DSB have been waited for; accesses in streaming mode until EL3 was asked (`crate::world::errata`).
//!
//! Walks keep tables, too: one that has been unlinked is in use until a TLBI has been waited for, so its place may
//! not be taken, nor may its page.
//!
//! Steps are: a store to a table, a barrier, a TLBI, a write of VTTBR_EL2. At each of them a TLB with
//! two different entries for one address is a failure (break before make), and every page that a walk
//! may miss is noted: a CPU that uses it then faults, and waits for the lock.

use super::{Entry, Leaf, Mark, PAGE_BYTES, Piece, Stage2, Table, Tlb, Vttbr};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use umbra_shared::PAGE_SIZE;

/// CPUs; hyp's code runs on number 0.
pub(super) const CPUS: usize = 2;
/// A block, smaller than a real one.
pub(super) const BLOCK_BYTES: u64 = 8 * PAGE_BYTES;
/// A protected guest's alias bit.
pub(super) const ALIAS_BIT: u64 = 1 << 39;
/// The host's VMID.
pub(super) const HOST: u8 = 0;

/// What a TLB entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Stage 2 alone: found by IPA.
    Stage2,
    /// Both stages: found by VA, so by no IPA.
    Combined,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held {
    pub(super) vmid: u8,
    pub(super) kind: Kind,
    pub(super) leaf: Leaf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drop {
    Stage2 { ipa: u64 },
    Stage1,
    Both,
    OwnStage1,
}

/// A stage 2 in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Entries {
    leaves: BTreeMap<u64, Leaf>,
    /// Replaced, but a walk may still find it.
    old: Vec<Leaf>,
    /// Written, but a walk may miss it yet.
    fresh: BTreeSet<u64>,
    marked: BTreeMap<u64, Mark>,
    /// Where tables of pages hang, by the address of their block.
    tables: BTreeSet<u64>,
    /// Where one did, and walks may still use it.
    unlinked: BTreeSet<u64>,
    /// Pages for tables, of those that are unlinked and forgotten, less those in use.
    spare: i64,
    /// No CPU has it loaded.
    idle: bool,
}

type Tlbs = [BTreeSet<Held>; CPUS];

#[derive(Debug)]
pub(super) struct World {
    tlbs: Tlbs,
    tables: BTreeMap<u8, Entries>,
    /// Pages that a store of this VMID's may still arrive at, its entry being gone.
    stores: BTreeSet<(u8, u64)>,
    /// The same for accesses in streaming mode.
    streaming: BTreeSet<(u8, u64)>,
    /// Broadcast TLBIs that were waited for.
    pub(super) broadcasts: usize,
    /// TLBIs that no DSB has waited for.
    pending: Vec<(u8, Drop)>,
    pub(super) loaded: Vttbr,
    /// Addresses that a walk may have missed since this was empty, by VMID.
    pub(super) missed: BTreeSet<(u8, u64)>,
    /// Blocks broken since this was empty, and tables unlinked: their addresses, by VMID.
    pub(super) broken: BTreeSet<(u8, u64)>,
    /// Addresses that are looked at: the host's memory; guests' addresses, and their aliases.
    ranges: [(u64, u64); 3],
}

pub(super) fn vmid(vttbr: Vttbr) -> u8 {
    (vttbr.bits() >> 48) as u8
}

fn pages(leaf: Leaf) -> impl Iterator<Item = Leaf> {
    let count = leaf.bytes / PAGE_BYTES;
    let mut n = 0;
    std::iter::from_fn(move || {
        let at = n * PAGE_BYTES;
        n += 1;
        (n <= count).then_some(Leaf { ipa: leaf.ipa + at, bytes: PAGE_BYTES, pa: leaf.pa + at })
    })
}

/// Every CPU takes in all that it can find.
fn take_in(tlbs: &mut Tlbs, tables: &BTreeMap<u8, Entries>) {
    for tlb in tlbs {
        for (&vmid, table) in tables.iter().filter(|(_, table)| !table.idle) {
            let found = table.leaves.values().chain(&table.old);
            tlb.extend(found.map(|&leaf| Held { vmid, kind: Kind::Stage2, leaf }));
        }
        let combined: Vec<_> = tlb
            .iter()
            .filter(|held| {
                held.kind == Kind::Stage2 && tables.get(&held.vmid).is_some_and(|t| !t.idle)
            })
            .flat_map(|&held| {
                pages(held.leaf).map(move |leaf| Held { kind: Kind::Combined, leaf, ..held })
            })
            .collect();
        tlb.extend(combined);
    }
}

fn apply(tlbs: &mut Tlbs, (vmid, drop): (u8, Drop)) {
    for (cpu, tlb) in tlbs.iter_mut().enumerate() {
        tlb.retain(|held| {
            let hit = match drop {
                Drop::Stage2 { ipa } => {
                    held.kind == Kind::Stage2 && (held.leaf.ipa..held.leaf.end()).contains(&ipa)
                }
                Drop::Stage1 => held.kind == Kind::Combined,
                Drop::Both => true,
                Drop::OwnStage1 => held.kind == Kind::Combined && cpu == 0,
            };
            !(hit && held.vmid == vmid)
        });
    }
}

impl World {
    pub(super) fn new(ram: (u64, u64), guests: (u64, u64)) -> Rc<RefCell<Self>> {
        let aliases = (guests.0 | ALIAS_BIT, guests.1 | ALIAS_BIT);
        Rc::new(RefCell::new(Self {
            tlbs: Default::default(),
            tables: BTreeMap::new(),
            stores: BTreeSet::new(),
            streaming: BTreeSet::new(),
            broadcasts: 0,
            pending: Vec::new(),
            loaded: Vttbr::new(HOST, 0),
            missed: BTreeSet::new(),
            broken: BTreeSet::new(),
            ranges: [ram, guests, aliases],
        }))
    }

    /// Something has happened that other CPUs may have seen.
    fn step(&mut self) {
        take_in(&mut self.tlbs, &self.tables);
        for (&vmid, table) in &self.tables {
            let ranges = if vmid == HOST { &self.ranges[..1] } else { &self.ranges[1..] };
            let pages = ranges.iter().flat_map(|&(start, end)| (start..end).step_by(PAGE_SIZE));
            for ipa in pages {
                let found = table.leaves.range(..=ipa).next_back().map(|(_, leaf)| leaf);
                let found = found.filter(|leaf| ipa < leaf.end());
                if found.is_none_or(|leaf| table.fresh.contains(&leaf.ipa)) {
                    self.missed.insert((vmid, ipa));
                }
            }
        }
        self.assert_no_conflict();
    }

    /// A TLB answers one address with one entry.
    fn assert_no_conflict(&self) {
        for (cpu, tlb) in self.tlbs.iter().enumerate() {
            // Sorted by VMID, kind and address.
            let mut last: Option<Held> = None;
            for &held in tlb {
                if let Some(last) = last.filter(|l| (l.vmid, l.kind) == (held.vmid, held.kind)) {
                    assert!(
                        last.leaf.end() <= held.leaf.ipa,
                        "CPU {cpu} holds two entries for one address: {last:x?} {held:x?}"
                    );
                }
                last = Some(held);
            }
        }
    }

    /// A DSB: TLBIs take effect, in the order that leaves most.
    fn complete(&mut self, which: impl Fn(Drop) -> bool) {
        let (now, later) = self.pending.drain(..).partition::<Vec<_>, _>(|&(_, drop)| which(drop));
        self.pending = later;
        let broadcasts = now.iter().filter(|(_, drop)| *drop != Drop::OwnStage1).count();
        if broadcasts != 0 {
            self.broadcasts += broadcasts;
            self.stores.clear();
        }
        for (vmid, drop) in &now {
            if let Some(table) = self.tables.get_mut(vmid) {
                let left = match *drop {
                    Drop::Both => BTreeSet::new(),
                    Drop::Stage2 { ipa } => {
                        let other = |&at: &u64| at != ipa & !(BLOCK_BYTES - 1);
                        table.unlinked.iter().copied().filter(other).collect()
                    }
                    Drop::Stage1 | Drop::OwnStage1 => continue,
                };
                table.unlinked = left;
            }
        }
        let mut left: Tlbs = Default::default();
        for order in orders(now) {
            let mut tlbs = self.tlbs.clone();
            for drop in order {
                apply(&mut tlbs, drop);
                take_in(&mut tlbs, &self.tables);
            }
            for (left, tlb) in left.iter_mut().zip(tlbs) {
                left.extend(tlb);
            }
        }
        let before = std::mem::replace(&mut self.tlbs, left);
        for (before, now) in before.iter().zip(&self.tlbs) {
            for held in before.difference(now) {
                for leaf in pages(held.leaf) {
                    self.stores.insert((held.vmid, leaf.pa));
                    self.streaming.insert((held.vmid, leaf.pa));
                }
            }
        }
    }

    fn stores_visible(&mut self) {
        for table in self.tables.values_mut() {
            table.old.clear();
            table.fresh.clear();
        }
    }

    /// Nothing is left for a barrier that nobody is going to execute.
    pub(super) fn assert_settled(&self) {
        assert!(self.pending.is_empty(), "TLBIs without a DSB: {:x?}", self.pending);
        for (vmid, table) in &self.tables {
            assert!(
                table.old.is_empty() && table.fresh.is_empty(),
                "VMID {vmid}: stores without a DSB"
            );
            assert!(table.unlinked.is_empty(), "VMID {vmid}: walks still use an unlinked table");
        }
    }

    /// What a CPU may hold.
    pub(super) fn held(&self, cpu: usize) -> impl Iterator<Item = Held> + '_ {
        self.tlbs[cpu].iter().copied()
    }

    /// What a walk finds, if not yet what it may miss.
    pub(super) fn walk(&self, vmid: u8, ipa: u64) -> Option<Leaf> {
        let table = self.tables.get(&vmid).filter(|table| !table.idle)?;
        let (_, &leaf) = table.leaves.range(..=ipa).next_back()?;
        (ipa < leaf.end()).then_some(leaf)
    }

    /// Tables that have become free under a VMID, less those in use.
    pub(super) fn spare(&self, vmid: u8) -> i64 {
        self.tables.get(&vmid).map_or(0, |table| table.spare)
    }

    /// Who can reach a page: by a walk, by what a TLB may hold, or by an access that has not been seen yet.
    pub(super) fn reach(&self, pa: u64) -> BTreeSet<u8> {
        let there = |leaf: &Leaf| (leaf.pa..leaf.pa + leaf.bytes).contains(&pa);
        let held = self.tlbs.iter().flatten().filter(|held| there(&held.leaf)).map(|h| h.vmid);
        let walks = self.tables.iter().filter(|(_, t)| !t.idle && t.leaves.values().any(there));
        let late = self.stores.iter().chain(&self.streaming);
        let late = late.filter(|(_, page)| (*page..*page + PAGE_BYTES).contains(&pa));
        let late = late.map(|&(vmid, _)| vmid);
        held.chain(walks.map(|(&vmid, _)| vmid)).chain(late).collect()
    }

    /// No CPU has this VM's stage 2 loaded any more.
    pub(super) fn rest(&mut self, vmid: u8) {
        if let Some(table) = self.tables.get_mut(&vmid) {
            table.idle = true;
        }
    }
}

/// Every order of them; but those of stage 2 stay together, for it makes no difference in which order they come: each
/// drops what it drops, and what combined entries are made of is there or not.
fn orders(drops: Vec<(u8, Drop)>) -> Vec<Vec<(u8, Drop)>> {
    if drops.iter().all(|(_, drop)| matches!(drop, Drop::Stage2 { .. })) {
        return vec![drops];
    }
    let mut all = Vec::new();
    for n in 0..drops.len() {
        let mut rest = drops.clone();
        let first = rest.remove(n);
        all.extend(orders(rest).into_iter().map(|mut order| {
            order.insert(0, first);
            order
        }));
    }
    all
}

/// A table of this machine's.
#[derive(Clone, Debug)]
pub(super) struct SimTable {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) vmid: u8,
}

impl SimTable {
    /// An empty table, which CPUs walk from now on.
    pub(super) fn new(world: &Rc<RefCell<World>>, vmid: u8) -> Self {
        world.borrow_mut().tables.insert(vmid, Entries::default());
        Self { world: Rc::clone(world), vmid }
    }

    /// The host's, with blocks.
    pub(super) fn host(world: &Rc<RefCell<World>>) -> Stage2<Self> {
        let table = Self::new(world, HOST);
        let [(start, end), ..] = world.borrow().ranges;
        for ipa in (start..end).step_by(BLOCK_BYTES as usize) {
            table.edit(|table| table.leaves.insert(ipa, Leaf { ipa, bytes: BLOCK_BYTES, pa: ipa }));
        }
        world.borrow_mut().missed.clear();
        Stage2::new(table, Vttbr::new(HOST, 0))
    }

    fn edit<R>(&self, f: impl FnOnce(&mut Entries) -> R) {
        let mut world = self.world.borrow_mut();
        f(world.tables.get_mut(&self.vmid).expect("made in `new`"));
        world.step();
    }
}

impl Table for SimTable {
    const BLOCK: u64 = BLOCK_BYTES;

    fn entry(&self, ipa: u64) -> Entry {
        let world = self.world.borrow();
        let table = &world.tables[&self.vmid];
        let leaf = table.leaves.range(..=ipa).next_back().map(|(_, &leaf)| leaf);
        match leaf.filter(|leaf| ipa < leaf.end()) {
            Some(leaf) => Entry::Leaf(leaf),
            None => table.marked.get(&ipa).map_or(Entry::Nothing, |&mark| Entry::Marked(mark)),
        }
    }

    fn is_free(&self, piece: Piece) -> bool {
        let all = (piece.ipa..piece.ipa + piece.bytes).step_by(PAGE_BYTES as usize);
        all.into_iter().all(|ipa| self.entry(ipa) == Entry::Nothing)
    }

    fn find(&self, piece: Piece, mark: Mark) -> Option<u64> {
        let all = (piece.ipa..piece.ipa + piece.bytes).step_by(PAGE_BYTES as usize);
        all.into_iter().find(|&ipa| self.entry(ipa) == Entry::Marked(mark))
    }

    fn has_pages(&self, ipa: u64) -> bool {
        self.world.borrow().tables[&self.vmid].tables.contains(&(ipa & !(BLOCK_BYTES - 1)))
    }

    fn clear(&mut self, piece: Piece) {
        let (block, end) = (piece.ipa & !(BLOCK_BYTES - 1), piece.ipa + piece.bytes);
        assert!(end <= block + BLOCK_BYTES, "{piece:x?} is in two blocks");
        let whole = piece.bytes == BLOCK_BYTES;
        // A table that is unlinked is one store, a page one each.
        let mut stores = Vec::new();
        {
            let world = self.world.borrow();
            let table = &world.tables[&self.vmid];
            let leaves = table.leaves.values().filter(|l| l.ipa < end && l.end() > piece.ipa);
            for leaf in leaves {
                assert!(leaf.ipa >= piece.ipa && leaf.end() <= end, "{leaf:x?} sticks out");
                stores.push(vec![*leaf]);
            }
            if whole {
                stores = vec![stores.concat()];
            }
        }
        let unlinked = whole && self.has_pages(piece.ipa);
        if whole {
            self.world.borrow_mut().broken.insert((self.vmid, block));
        }
        for leaves in stores {
            self.edit(|table| {
                for leaf in leaves {
                    table.leaves.remove(&leaf.ipa);
                    table.old.push(leaf);
                }
                if unlinked {
                    table.tables.remove(&block);
                    table.unlinked.insert(block);
                    table.marked.retain(|ipa, _| !(block..block + BLOCK_BYTES).contains(ipa));
                    table.spare += 1;
                }
            });
        }
    }

    fn mark(&mut self, ipa: u64, mark: Mark) {
        assert_eq!(self.leaf(ipa), None, "something is mapped there");
        self.edit(|table| {
            table.link(ipa);
            table.marked.insert(ipa, mark);
        });
    }

    fn unmark(&mut self, ipa: u64) {
        self.edit(|table| {
            let marked = table.marked.remove(&ipa);
            assert!(marked.is_some(), "nothing is marked there");
        });
    }

    fn fill(&mut self, ipa: u64, pa: u64, bytes: u64) {
        for leaf in pages(Leaf { ipa, bytes, pa }) {
            assert_eq!(self.entry(leaf.ipa), Entry::Nothing, "something is there");
            self.edit(|table| {
                table.link(leaf.ipa);
                table.leaves.insert(leaf.ipa, leaf);
                table.fresh.insert(leaf.ipa);
            });
        }
    }

    fn fill_block(&mut self, ipa: u64, pa: u64) {
        let leaf = Leaf { ipa, bytes: BLOCK_BYTES, pa };
        assert!(ipa.is_multiple_of(BLOCK_BYTES) && pa.is_multiple_of(BLOCK_BYTES));
        assert!(self.is_free(Piece { ipa, bytes: BLOCK_BYTES }), "something is there");
        self.edit(|table| {
            assert!(!table.tables.contains(&ipa), "a table is in the block's place");
            assert!(!table.unlinked.contains(&ipa), "walks still use the table in its place");
            table.leaves.insert(ipa, leaf);
            table.fresh.insert(ipa);
        });
    }
}

impl Entries {
    /// There is a table of pages for this address.
    fn link(&mut self, ipa: u64) {
        let block = ipa & !(BLOCK_BYTES - 1);
        if self.tables.insert(block) {
            assert!(!self.unlinked.contains(&block), "walks still use the table in its place");
            self.spare -= 1;
        }
    }
}

/// CPU 0's way to all TLBs.
#[derive(Clone, Debug)]
pub(super) struct SimTlb(pub(super) Rc<RefCell<World>>);

impl SimTlb {
    fn drop(&self, drop: Drop) {
        let mut world = self.0.borrow_mut();
        let vmid = vmid(world.loaded);
        world.pending.push((vmid, drop));
        world.step();
    }
}

impl Tlb for SimTlb {
    fn loaded(&self) -> Vttbr {
        self.0.borrow().loaded
    }

    fn load(&self, vttbr: Vttbr) {
        let mut world = self.0.borrow_mut();
        world.loaded = vttbr;
        world.step();
    }

    fn stores_done(&self) {
        let mut world = self.0.borrow_mut();
        // A DSB waits for TLBIs, too, and those take effect while old entries can still be found.
        world.complete(|_| true);
        world.stores_visible();
        world.step();
    }

    fn drop_stage2(&self, ipa: u64) {
        self.drop(Drop::Stage2 { ipa });
    }

    fn drop_stage1(&self) {
        self.drop(Drop::Stage1);
    }

    fn drop_both(&self) {
        self.drop(Drop::Both);
    }

    fn drop_own_stage1(&self) {
        self.drop(Drop::OwnStage1);
    }

    fn dropped(&self) {
        self.stores_done();
    }

    fn repeats(&self) -> bool {
        true
    }

    fn streaming_done(&self) {
        self.0.borrow_mut().streaming.clear();
    }

    fn dropped_here(&self) {
        let mut world = self.0.borrow_mut();
        world.complete(|drop| drop == Drop::OwnStage1);
        world.step();
    }
}
