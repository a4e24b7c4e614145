//! What the decisions about VMs are put into effect with here: owners, hand-overs, the machine's TLBs and a device's.

use super::super::machine::{ALIAS_BIT, BLOCK_BYTES, CPUS, HOST, Held, SimTable, SimTlb, World};
use super::super::*;
use crate::memory::devices::{Devices, Smmus};
use crate::memory::handover::{Hands, Ready};
use crate::memory::junk::{Junk, PER_CPU};
use crate::memory::pages::{Page, PageRange, State, VmId, count};
use crate::vm::hardware::{self, Boot, Machine, NewVcpu, There};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use umbra_shared::call::Policy;
use umbra_shared::vl::VqSet;

pub(super) const RAM: (u64, u64) = (0x4000_0000, 0x4000_0000 + 5 * BLOCK_BYTES);
/// Behind it, hyp's.
pub(super) const JUNK: u64 = RAM.1;
const GUEST_BASE: u64 = 0x8000_0000;
/// Guests' addresses: two blocks, and what is behind them.
pub(super) const GUEST: (u64, u64) = (GUEST_BASE, GUEST_BASE + 3 * BLOCK_BYTES);
pub(super) const VMS: usize = 2;

pub(super) fn pa(n: u64) -> u64 {
    RAM.0 + n * PAGE_BYTES
}

pub(super) fn ipa(n: u64) -> u64 {
    GUEST_BASE + n * PAGE_BYTES
}

/// Memory as its lock guards it.
pub(super) struct Memory {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) pages: Pages<'static>,
    pub(super) host: Stage2<SimTable>,
    pub(super) junk: Junk,
    pub(super) devices: Devices<DeviceTable, SimSmmu>,
    pub(super) hyp: BTreeSet<u64>,
    pub(super) guests_see_caches: bool,
    /// Pages that the host got back since this was empty.
    pub(super) given: BTreeSet<u64>,
    /// How often it is asked before somebody waits for the CPU.
    pub(super) patience: Cell<usize>,
}

/// The devices' stage 2, page by page.
pub(super) struct DeviceTable(Rc<RefCell<BTreeSet<u64>>>);

impl Table for DeviceTable {
    const BLOCK: u64 = BLOCK_BYTES;

    fn entry(&self, ipa: u64) -> Entry {
        let page = ipa & !(PAGE_BYTES - 1);
        if self.0.borrow().contains(&page) {
            Entry::Leaf(Leaf { ipa: page, bytes: PAGE_BYTES, pa: page })
        } else {
            Entry::Nothing
        }
    }

    fn is_free(&self, _: Piece) -> bool {
        unreachable!("devices' pages come and go with the host's")
    }

    fn find(&self, _: Piece, _: Mark) -> Option<u64> {
        unreachable!("nothing is marked")
    }

    fn has_pages(&self, _: u64) -> bool {
        unreachable!("they are pages, always")
    }

    fn clear(&mut self, piece: Piece) {
        for page in (piece.ipa..piece.ipa + piece.bytes).step_by(PAGE_SIZE) {
            assert!(self.0.borrow_mut().remove(&page));
        }
    }

    fn mark(&mut self, ipa: u64, mark: Mark) {
        panic!("{ipa:#x} is {mark:?} for devices");
    }

    fn unmark(&mut self, ipa: u64) {
        panic!("{ipa:#x} was never marked");
    }

    fn fill(&mut self, ipa: u64, pa: u64, bytes: u64) {
        assert_eq!(ipa, pa, "nothing moved");
        for page in (ipa..ipa + bytes).step_by(PAGE_SIZE) {
            assert!(self.0.borrow_mut().insert(page), "{page:#x} is there already");
        }
    }

    fn fill_block(&mut self, ipa: u64, _: u64) {
        panic!("{ipa:#x}: a block, of which a device would miss the rest when it is broken");
    }
}

/// An SMMU that has kept a translation of every page there has been, and writes with each of them until it has
/// forgotten it and settled.
pub(super) struct SimSmmu {
    pub(super) table: Rc<RefCell<BTreeSet<u64>>>,
    pub(super) kept: BTreeSet<u64>,
    pub(super) forgotten: BTreeSet<u64>,
}

impl Smmus for SimSmmu {
    fn stores_done(&self) {}

    fn forget_page(&mut self, ipa: u64) {
        assert!(!self.table.borrow().contains(&ipa), "a walk finds {ipa:#x} again");
        self.forgotten.insert(ipa);
    }

    fn forget_everything(&mut self) {
        let table = self.table.borrow();
        self.forgotten = self.kept.iter().filter(|ipa| !table.contains(ipa)).copied().collect();
    }

    fn settle(&mut self) {
        self.kept.extend(self.table.borrow().iter());
        self.kept.retain(|ipa| !self.forgotten.contains(ipa) || self.table.borrow().contains(ipa));
        self.forgotten.clear();
    }
}

impl Memory {
    pub(super) fn tlb(&self) -> SimTlb {
        SimTlb(Rc::clone(&self.world))
    }

    /// Whatever a TLB holds a walk finds as well: nothing of a place where it was.
    pub(super) fn nothing_is_left_in_tlbs(&self) {
        let world = self.world.borrow();
        for held in (0..CPUS).flat_map(|cpu| world.held(cpu)) {
            let Held { vmid, leaf, .. } = held;
            let found = world.walk(vmid, leaf.ipa).map(|now| now.pa + (leaf.ipa - now.ipa));
            assert_eq!(found, Some(leaf.pa), "VMID {vmid} has kept {leaf:x?}");
        }
    }

    /// Who can reach a page although its owner doesn't let them.
    pub(super) fn intruders(&self, page: Page) -> BTreeSet<u8> {
        let state = self.pages.state(page);
        let mut reach = self.world.borrow().reach(page.pa());
        reach.retain(|&vmid| match (vmid, state) {
            (HOST, _) => !state.host_has_access(),
            (vmid, State::Guest(vm) | State::SharedWithGuest(vm) | State::SharedByGuest(vm)) => {
                vmid != vm + 1
            }
            _ => true,
        });
        reach
    }
}

impl Hands for Memory {
    const STRETCH: usize = 3;

    fn take_from_host(&mut self, pages: PageRange) {
        let tlb = self.tlb();
        self.host.unmap(&tlb, pages.start(), pages.bytes());
        self.devices.take(pages.start(), pages.bytes());
    }

    fn devices_are_done(&mut self) {
        self.devices.settle();
    }

    fn give_to_host(&mut self, pages: PageRange) {
        assert!(pages.pages().all(|page| !self.hyp.contains(&page.pa())));
        self.nothing_is_left_in_tlbs();
        let tlb = self.tlb();
        give_to_host(&self.pages, &mut self.host, &mut self.junk, &tlb, pages);
        self.given.extend(pages.pages().map(Page::pa));
        self.devices.give(pages.start(), pages.bytes());
        self.devices.smmus().kept.extend(pages.pages().map(Page::pa));
    }

    fn leave_to_host(&mut self, pages: PageRange) {
        let tlb = self.tlb();
        make_whole(&self.pages, &mut self.host, &tlb, pages);
    }

    fn map_for_hyp(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(self.hyp.insert(page.pa()));
        }
    }

    fn unmap_for_hyp(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(self.hyp.remove(&page.pa()));
        }
    }

    fn wipe(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(self.hyp.contains(&page.pa()));
            let reach = self.world.borrow().reach(page.pa());
            assert!(reach.is_empty(), "{:#x} is wiped while {reach:?} can write it", page.pa());
            let device = self.devices.smmus().kept.contains(&page.pa());
            assert!(!device, "{:#x} is wiped while a device can write it", page.pa());
        }
    }

    fn clean(&mut self, pages: PageRange) {
        for page in pages.pages() {
            assert!(self.hyp.contains(&page.pa()));
            let intruders = self.intruders(page);
            assert!(intruders.is_empty(), "{:#x} is cleaned under {intruders:?}", page.pa());
            let state = self.pages.state(page);
            let device = self.devices.smmus().kept.contains(&page.pa());
            // What goes to the host, to or fro, is in its new state already.
            let may = !device || state.host_has_access();
            assert!(may, "{:#x} is cleaned under a device", page.pa());
        }
    }

    fn digest(&mut self, page: Page) -> umbra_shared::measurement::Value {
        let reach = self.world.borrow().reach(page.pa());
        assert!(reach.is_empty(), "{:#x} is measured while {reach:?} can write it", page.pa());
        assert!(!self.devices.smmus().kept.contains(&page.pa()), "or a device");
        [0; 32]
    }

    fn write(&mut self, page: Page, _: usize, _: impl Iterator<Item = u64>) {
        assert!(self.hyp.contains(&page.pa()));
    }

    fn read(&mut self, page: Page, _: usize, _: &mut [u64]) {
        assert!(self.hyp.contains(&page.pa()));
    }

    fn forget_instructions(&mut self) {}

    fn guests_see_caches(&self) -> bool {
        self.guests_see_caches
    }

    fn is_waited_for(&self) -> bool {
        let left = self.patience.get();
        self.patience.set(left.saturating_sub(1));
        left == 0
    }
}

impl hardware::Memory for Memory {
    fn pages(&mut self) -> &mut Pages<'static> {
        &mut self.pages
    }

    fn set_junk(&mut self, vm: VmId, junk: bool) {
        self.junk.set(vm, junk);
    }
}

pub(super) struct Sim {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) memory: RefCell<Memory>,
    /// Pages for tables that each VM has been given; those in use are the machine's to know.
    pub(super) tables: Cell<[i64; VMS]>,
    /// How often each VM was told that something is missing for a time.
    pub(super) broken: Cell<[u32; VMS]>,
}

impl Sim {
    pub(super) fn new() -> Self {
        let banks: &[(u64, u64)] = &[RAM];
        let world = World::new(RAM, GUEST);
        let entries = Box::leak(vec![State::Host; count(banks)].into_boxed_slice());
        let ram: BTreeSet<u64> = (RAM.0..RAM.1).step_by(PAGE_SIZE).collect();
        let table = Rc::new(RefCell::new(ram.clone()));
        let smmu = SimSmmu { table: Rc::clone(&table), kept: ram, forgotten: BTreeSet::new() };
        let memory = Memory {
            world: Rc::clone(&world),
            devices: Devices::new(DeviceTable(table), smmu),
            pages: Pages::new(banks, entries),
            host: SimTable::host(&world),
            junk: Junk::new((0..(CPUS * PER_CPU) as u64).map(|n| JUNK + n * PAGE_BYTES)),
            hyp: BTreeSet::new(),
            guests_see_caches: false,
            given: BTreeSet::new(),
            patience: Cell::new(usize::MAX),
        };
        Self {
            world,
            memory: RefCell::new(memory),
            tables: Cell::default(),
            broken: Cell::default(),
        }
    }

    pub(super) fn tlb(&self) -> SimTlb {
        SimTlb(Rc::clone(&self.world))
    }

    /// Carries out a call on CPU 0 with this loaded, and judges what all CPUs could do meanwhile and
    /// can do afterwards.
    pub(super) fn call<R>(&self, loaded: Vttbr, call: impl FnOnce() -> R) -> R {
        let accessible = self.accessible();
        {
            let mut world = self.world.borrow_mut();
            world.loaded = loaded;
            world.missed.clear();
            world.broken.clear();
        }
        self.broken.set([0; VMS]);
        self.memory.borrow_mut().given.clear();
        let guests = self.guests();
        let result = call();
        let (missed, broken) = {
            let world = self.world.borrow();
            world.assert_settled();
            assert_eq!(world.loaded, loaded, "VTTBR_EL2 is not what it was");
            (world.missed.clone(), world.broken.clone())
        };
        let mut still: BTreeSet<_> = self.accessible().into_iter().map(|pa| (HOST, pa)).collect();
        still.extend(self.guests());
        let before = accessible.into_iter().map(|pa| (HOST, pa)).chain(guests);
        for (vmid, at) in before.filter(|it| still.contains(it) && missed.contains(it)) {
            let block = at & !(BLOCK_BYTES - 1);
            let back = vmid == HOST && self.memory.borrow().given.contains(&at);
            let cause = back || broken.contains(&(vmid, block));
            assert!(cause, "{at:#x}: a fault, and no block was broken");
            // A guest that faults there asks again, for it was told that something is missing for a time.
            if vmid != HOST {
                assert_ne!(self.broken.get()[usize::from(vmid - 1)], 0, "{at:#x}: not told");
            }
        }
        let missed = missed.into_iter().filter(|&(vmid, _)| vmid == HOST).map(|(_, pa)| pa);
        self.faults(&missed.collect());
        self.nobody_reaches_what_is_not_theirs();
        result
    }

    /// The pages that guests have.
    pub(super) fn guests(&self) -> BTreeSet<(u8, u64)> {
        let world = self.world.borrow();
        let mut all = BTreeSet::new();
        for vmid in 1..=VMS as u8 {
            let pages = (GUEST.0..GUEST.1).step_by(PAGE_SIZE);
            let pages = pages.flat_map(|ipa| [ipa, ipa | ALIAS_BIT]);
            all.extend(pages.filter(|&ipa| world.walk(vmid, ipa).is_some()).map(|ipa| (vmid, ipa)));
        }
        all
    }

    /// The pages that the host may use.
    pub(super) fn accessible(&self) -> BTreeSet<u64> {
        let pages = &self.memory.borrow().pages;
        let all = (RAM.0..RAM.1).step_by(PAGE_SIZE);
        all.filter(|&pa| pages.state(pages.lookup(pa).unwrap()).host_has_access()).collect()
    }

    /// CPUs that faulted there while somebody held the lock now get it.
    pub(super) fn faults(&self, missed: &BTreeSet<u64>) {
        for &pa in missed {
            self.fault(Fault { pa: pa + 8, kernel_on: None });
        }
    }

    /// One of them, which is judged.
    pub(super) fn fault(&self, fault: Fault) -> HostFault {
        let memory = &mut *self.memory.borrow_mut();
        let (world, tlb) = (Rc::clone(&memory.world), memory.tlb());
        let Memory { pages, host, junk, .. } = memory;
        let answer = host_fault(pages, host, junk, &tlb, fault, |pa| {
            let reach = world.borrow().reach(pa);
            assert!(reach.is_empty(), "junk at {pa:#x} is wiped while {reach:?} can write it");
        });
        let pa = fault.pa & !(PAGE_BYTES - 1);
        let state = pages.state(pages.lookup(pa).unwrap());
        let is_junk =
            fault.kernel_on.is_some() && matches!(state, State::Guest(vm) if junk.is_for(vm));
        let (should, there) = match (state.host_has_access(), is_junk) {
            (true, _) => (HostFault::Retry, host.lookup(pa) == Some(pa)),
            (false, true) => (HostFault::Junk, host.lookup(pa).is_some_and(|pa| pa >= JUNK)),
            (false, false) => (HostFault::Abort, true),
        };
        assert_eq!((answer, there), (should, true), "{fault:x?}, of {state:?}");
        answer
    }

    pub(super) fn nobody_reaches_what_is_not_theirs(&self) {
        let memory = &mut *self.memory.borrow_mut();
        for pa in (RAM.0..RAM.1).step_by(PAGE_SIZE) {
            let page = memory.pages.lookup(pa).unwrap();
            let smmu = memory.devices.smmus();
            let devices = (smmu.table.borrow().contains(&pa), smmu.kept.contains(&pa));
            let host = memory.pages.state(page).host_has_access();
            assert_eq!(devices, (host, host), "devices reach what the host does: {pa:#x}");
            let (state, intruders) = (memory.pages.state(page), memory.intruders(page));
            assert!(
                intruders.is_empty(),
                "{pa:#x} is {state:?} and VMIDs {intruders:?} can reach it"
            );
            assert_eq!(
                memory.hyp.contains(&pa),
                matches!(state, State::Vm(_)),
                "{pa:#x} {state:?}"
            );
            let there = memory.host.lookup(pa);
            match state {
                _ if state.host_has_access() => {
                    assert_eq!(there, Some(pa), "the host has lost {pa:#x}");
                }
                State::Guest(vm) if memory.junk.is_for(vm) => {
                    assert!(there.is_none_or(|pa| pa >= JUNK), "{pa:#x} is in its own place");
                }
                _ => assert_eq!(there, None, "something is in the place of {pa:#x}, {state:?}"),
            }
            let whole = memory.pages.whole_host_block(page, BLOCK_BYTES).is_some();
            let block = memory.host.table.leaf(pa).is_some_and(|leaf| leaf.bytes == BLOCK_BYTES);
            assert_eq!(block, whole, "{pa:#x}: all of its block is the host's, to keep");
        }
    }
}

impl Machine for Sim {
    type Memory = Memory;
    type Tables = Stage2<SimTable>;
    type Vcpu = ();

    fn memory<R>(&self, f: impl FnOnce(&mut Memory) -> R) -> R {
        f(&mut self.memory.borrow_mut())
    }

    fn ipa_bits(&self) -> u32 {
        40
    }

    fn alias_bit(&self) -> u64 {
        ALIAS_BIT
    }

    fn guest_vqs(&self) -> VqSet {
        VqSet::EMPTY
    }

    fn guest_svqs(&self) -> VqSet {
        VqSet::EMPTY
    }

    fn aarch32(&self) -> bool {
        false
    }

    fn protects(&self) -> bool {
        true
    }

    fn protected_policy(&self) -> Policy {
        Policy::Scrub
    }

    fn now(&self) -> u64 {
        0
    }

    fn add_tables(&self, vm: VmId, pages: PageRange) {
        let mut tables = self.tables.get();
        tables[usize::from(vm)] += pages.count() as i64;
        self.tables.set(tables);
    }

    fn tables_left(&self, vm: VmId) -> usize {
        let left = self.tables.get()[usize::from(vm)] + self.world.borrow().spare(vm + 1);
        usize::try_from(left).expect("more tables are in use than there are")
    }

    fn tables_for_one(&self) -> usize {
        1
    }

    fn block_pages(&self) -> u64 {
        BLOCK_BYTES / PAGE_BYTES
    }

    fn new_tables(&self, vm: VmId) -> Stage2<SimTable> {
        let vmid = vm + 1;
        for cpu in 0..CPUS {
            let left = self.world.borrow().held(cpu).find(|held| held.vmid == vmid);
            assert_eq!(left, None, "CPU {cpu} holds something of an earlier VM of this VMID");
        }
        Stage2::new(SimTable::new(&self.world, vmid), Vttbr::new(vmid, 0x1000 * u64::from(vmid)))
    }

    fn drop_tables(&self, vm: VmId, tables: Stage2<SimTable>) {
        self.world.borrow_mut().rest(vm + 1);
        tables.forget_all(&self.tlb());
        let mut given = self.tables.get();
        given[usize::from(vm)] = 0;
        self.tables.set(given);
    }

    fn lookup(&self, tables: &Stage2<SimTable>, ipa: u64) -> There {
        match tables.entry(ipa) {
            Entry::Nothing => There::Nothing,
            Entry::Marked(Mark::Enrolled) => There::Device,
            Entry::Marked(Mark::Aliased) => There::Aliased,
            Entry::Leaf(leaf) => There::Memory(leaf.pa + (ipa - leaf.ipa)),
        }
    }

    fn enrol(&self, tables: &mut Stage2<SimTable>, ipa: u64) {
        tables.mark(ipa, Mark::Enrolled);
    }

    fn hide(&self, tables: &mut Stage2<SimTable>, ipa: u64) {
        tables.mark(ipa, Mark::Aliased);
    }

    fn unhide(&self, tables: &mut Stage2<SimTable>, ipa: u64) {
        tables.unmark(ipa);
    }

    fn next_hidden(&self, tables: &Stage2<SimTable>, ipa: u64, count: u64) -> Option<u64> {
        tables.find(ipa, count * PAGE_BYTES, Mark::Aliased)
    }

    fn reset_vcpu(&self, (): &(), _: Boot) {}

    fn is_broken(&self, _: &Self::Vcpu) -> bool {
        false
    }

    fn set_stopped(&self, _: VmId, _: usize, _: bool) {}

    fn is_free(&self, tables: &Stage2<SimTable>, ipa: u64, count: u64) -> bool {
        tables.is_free(ipa, count * PAGE_BYTES)
    }

    fn run(&self, tables: &Stage2<SimTable>, ipa: u64, count: u64) -> Option<(u64, u64)> {
        tables.run(ipa, count * PAGE_BYTES)
    }

    fn tables_to_unmap(&self, tables: &Stage2<SimTable>, ipa: u64, count: u64) -> usize {
        usize::from(tables.cuts_a_block(ipa, count * PAGE_BYTES))
    }

    fn map(&self, tables: &mut Stage2<SimTable>, ipa: u64, ready: Ready) {
        let pages = ready.pages();
        tables.map(&self.tlb(), ipa, pages.start(), pages.bytes());
    }

    fn unmap(&self, tables: &mut Stage2<SimTable>, ipa: u64, count: u64) {
        let mut broken = self.broken.get();
        broken[usize::from(tables.vttbr().vmid() - 1)] += 1;
        self.broken.set(broken);
        tables.unmap(&self.tlb(), ipa, count * PAGE_BYTES);
    }

    fn new_vcpu(&self, _: &Stage2<SimTable>, _: &NewVcpu) {}

    fn forget_sibling(&self, tables: &Stage2<SimTable>) {
        tables.forget_sibling(&self.tlb());
    }
}
