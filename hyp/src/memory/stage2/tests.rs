//! VMs, owners, the order of hand-overs and this module's TLB rules together, on TLBs that forgive
//! nothing.

mod alias;
mod blocks;

use super::machine::{
    ALIAS_BIT, BLOCK_BYTES, CPUS, HOST, Held, Kind, SimTable, SimTlb, World, vmid,
};
use super::*;
use crate::memory::devices::{Devices, Smmus};
use crate::memory::handover::{Hands, Ready};
use crate::memory::pages::{Page, PageRange, State, VmId, count};
use crate::vm::calls::{Caller, Parting};
use crate::vm::hardware::{self, Boot, Machine, NewVcpu, There};
use crate::vm::life::Vm;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use umbra_shared::call::{
    Policy, Start, UntrustedAffinity, UntrustedIpa, UntrustedPa, UntrustedPages, VM_PAGES,
    VcpuConfig, VcpuIndex, VmConfig, VmHandle,
};
use umbra_shared::error::Error;
use umbra_shared::vcpu::{UntrustedFeatures, VcpuFeatures};
use umbra_shared::vl::VqSet;

const RAM: (u64, u64) = (0x4000_0000, 0x4000_0000 + 5 * BLOCK_BYTES);
const GUEST_BASE: u64 = 0x8000_0000;
/// Guests' addresses: two blocks, and what is behind them.
const GUEST: (u64, u64) = (GUEST_BASE, GUEST_BASE + 3 * BLOCK_BYTES);
const VMS: usize = 2;

fn pa(n: u64) -> u64 {
    RAM.0 + n * PAGE_BYTES
}

fn ipa(n: u64) -> u64 {
    GUEST_BASE + n * PAGE_BYTES
}

/// Memory as its lock guards it.
struct Memory {
    world: Rc<RefCell<World>>,
    pages: Pages<'static>,
    host: Stage2<SimTable>,
    devices: Devices<DeviceTable, SimSmmu>,
    hyp: BTreeSet<u64>,
    guests_see_caches: bool,
    /// Pages that the host got back since this was empty.
    given: BTreeSet<u64>,
    /// How often it is asked before somebody waits for the CPU.
    patience: Cell<usize>,
}

/// The devices' stage 2, page by page.
struct DeviceTable(Rc<RefCell<BTreeSet<u64>>>);

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
struct SimSmmu {
    table: Rc<RefCell<BTreeSet<u64>>>,
    kept: BTreeSet<u64>,
    forgotten: BTreeSet<u64>,
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
    fn tlb(&self) -> SimTlb {
        SimTlb(Rc::clone(&self.world))
    }

    /// Whatever a TLB holds a walk finds as well: nothing of a place where it was.
    fn nothing_is_left_in_tlbs(&self) {
        let world = self.world.borrow();
        for held in (0..CPUS).flat_map(|cpu| world.held(cpu)) {
            let Held { vmid, leaf, .. } = held;
            let found = world.walk(vmid, leaf.ipa).map(|now| now.pa + (leaf.ipa - now.ipa));
            assert_eq!(found, Some(leaf.pa), "VMID {vmid} has kept {leaf:x?}");
        }
    }

    /// Who can reach a page although its owner doesn't let them.
    fn intruders(&self, page: Page) -> BTreeSet<u8> {
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
        give_to_host(&self.pages, &mut self.host, &tlb, pages);
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
}

struct Sim {
    world: Rc<RefCell<World>>,
    memory: RefCell<Memory>,
    /// Pages for tables that each VM has been given; those in use are the machine's to know.
    tables: Cell<[i64; VMS]>,
    /// How often each VM was told that something is missing for a time.
    broken: Cell<[u32; VMS]>,
}

impl Sim {
    fn new() -> Self {
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

    fn tlb(&self) -> SimTlb {
        SimTlb(Rc::clone(&self.world))
    }

    /// Carries out a call on CPU 0 with this loaded, and judges what all CPUs could do meanwhile and
    /// can do afterwards.
    fn call<R>(&self, loaded: Vttbr, call: impl FnOnce() -> R) -> R {
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
    fn guests(&self) -> BTreeSet<(u8, u64)> {
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
    fn accessible(&self) -> BTreeSet<u64> {
        let pages = &self.memory.borrow().pages;
        let all = (RAM.0..RAM.1).step_by(PAGE_SIZE);
        all.filter(|&pa| pages.state(pages.lookup(pa).unwrap()).host_has_access()).collect()
    }

    /// CPUs that faulted there while somebody held the lock now get it.
    fn faults(&self, missed: &BTreeSet<u64>) {
        let memory = &mut *self.memory.borrow_mut();
        let tlb = memory.tlb();
        for &pa in missed {
            let page = memory.pages.lookup(pa).unwrap();
            let answer = host_fault(&memory.pages, &mut memory.host, &tlb, pa + 8);
            if memory.pages.state(page).host_has_access() {
                assert_eq!(answer, HostFault::Retry, "{pa:#x}");
                assert_eq!(memory.host.lookup(pa), Some(pa), "it would fault again");
            } else {
                assert_eq!(answer, HostFault::Abort, "{pa:#x}");
            }
        }
    }

    fn nobody_reaches_what_is_not_theirs(&self) {
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
            if state.host_has_access() {
                assert_eq!(memory.host.lookup(pa), Some(pa), "the host has lost {pa:#x}");
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

    fn reset_vcpu(&self, (): &(), _: Boot) {}

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

/// The host, its VMs, and what they may ask for.
struct Story {
    sim: Sim,
    vms: [Vm<Stage2<SimTable>, ()>; VMS],
    handles: [VmHandle; VMS],
}

#[derive(Clone, Copy, Debug)]
enum Ask {
    Create {
        page: u64,
        protected: bool,
    },
    Topup {
        page: u64,
    },
    Map {
        page: u64,
        at: u64,
        count: u64,
    },
    Unmap {
        at: u64,
        count: u64,
    },
    Share {
        at: u64,
        alias: bool,
    },
    Unshare {
        at: u64,
        alias: bool,
    },
    Relinquish {
        at: u64,
        alias: bool,
    },
    Destroy,
    Reclaim {
        page: u64,
        count: u64,
    },
    /// An interrupt waits, from now on, when it is asked about so often.
    Patience(usize),
    /// Whether guests see what is in caches.
    Coherent(bool),
}

fn asks() -> impl Strategy<Value = (usize, Ask)> {
    const BLOCK: u64 = BLOCK_BYTES / PAGE_BYTES;
    // Often where blocks begin.
    let page = prop_oneof![2 => 0..5 * BLOCK, 1 => (0..5u64).prop_map(|n| n * BLOCK)].boxed();
    let at = prop_oneof![2 => 0..2 * BLOCK + 2, 1 => (0..3u64).prop_map(|n| n * BLOCK)].boxed();
    let count = prop_oneof![1 => Just(1), 1 => 1..BLOCK, 2 => BLOCK..2 * BLOCK].boxed();
    let ask = prop_oneof![
        4 => (page.clone(), any::<bool>()).prop_map(|(page, protected)| Ask::Create { page, protected }),
        2 => page.clone().prop_map(|page| Ask::Topup { page }),
        12 => (page.clone(), at.clone(), count.clone())
            .prop_map(|(page, at, count)| Ask::Map { page, at, count }),
        6 => (at.clone(), count.clone()).prop_map(|(at, count)| Ask::Unmap { at, count }),
        6 => (at.clone(), any::<bool>()).prop_map(|(at, alias)| Ask::Share { at, alias }),
        6 => (at.clone(), any::<bool>()).prop_map(|(at, alias)| Ask::Unshare { at, alias }),
        4 => (at, any::<bool>()).prop_map(|(at, alias)| Ask::Relinquish { at, alias }),
        1 => Just(Ask::Destroy),
        8 => (page, count).prop_map(|(page, count)| Ask::Reclaim { page, count }),
        1 => (0usize..4).prop_map(Ask::Patience),
        1 => any::<bool>().prop_map(Ask::Coherent),
    ];
    (0..VMS, ask)
}

impl Story {
    fn new() -> Self {
        Self { sim: Sim::new(), vms: [Vm::new(), Vm::new()], handles: [VmHandle(0); VMS] }
    }

    /// What comes of it: of a range, how many pages were done.
    fn ask(&mut self, n: usize, ask: Ask) -> Result<u64, Error> {
        let (sim, vm, handle) = (&self.sim, &mut self.vms[n], self.handles[n]);
        let host = Vttbr::new(HOST, 0);
        // A guest's own call comes to hyp with the guest's VTTBR_EL2.
        let guest = Vttbr::new(n as u8 + 1, 0x1000 * (n as u64 + 1));
        let place = |at, alias| UntrustedIpa(ipa(at) | if alias { ALIAS_BIT } else { 0 });
        let run = |page: u64, count| UntrustedPages { start: UntrustedPa(pa(page)), count };
        match ask {
            Ask::Create { page, protected } => {
                if !vm.is_free() {
                    return Err(Error::Limit);
                }
                let config = VmConfig { policy: Policy::Lazy, protected };
                let pages = run(page, VM_PAGES);
                self.handles[n] = sim.call(host, || vm.create(sim, n as VmId, pages, config))?;
                Ok(pages.count)
            }
            Ask::Topup { page } => {
                sim.call(host, || vm.topup(sim, handle, run(page, 1))).map(|()| 1)
            }
            Ask::Map { page, at, count } => {
                sim.call(host, || vm.map(sim, handle, run(page, count), UntrustedIpa(ipa(at))))
            }
            Ask::Unmap { at, count } => sim
                .call(host, || vm.unmap(sim, handle, UntrustedIpa(ipa(at)), count))
                .map(|(_, done)| done),
            Ask::Share { at, alias } => sim
                .call(guest, || {
                    let caller = Caller { vm: n as VmId, index: 0, again: false };
                    vm.guest_share(sim, caller, place(at, alias))
                })
                .map(|()| 1),
            Ask::Unshare { at, alias } => {
                let call = |again| {
                    let caller = Caller { vm: n as VmId, index: 0, again };
                    sim.call(guest, || vm.guest_unshare(sim, caller, place(at, alias)))
                };
                Self::in_two_steps(call)
            }
            Ask::Relinquish { at, alias } => {
                let call = |again| {
                    let caller = Caller { vm: n as VmId, index: 0, again };
                    sim.call(guest, || vm.guest_relinquish(sim, caller, place(at, alias)))
                };
                Self::in_two_steps(call)
            }
            Ask::Destroy => sim.call(host, || vm.destroy(sim, handle)).map(|()| 0),
            Ask::Reclaim { page, count } => {
                sim.call(host, || vm.reclaim(sim, handle, run(page, count))).map(|(_, done)| done)
            }
            Ask::Patience(patience) => {
                sim.memory.borrow().patience.set(if patience == 3 { usize::MAX } else { patience });
                Ok(0)
            }
            Ask::Coherent(coherent) => {
                sim.memory.borrow_mut().guests_see_caches = coherent;
                Ok(0)
            }
        }
    }

    /// The host is told, and the call is made again.
    fn in_two_steps(mut call: impl FnMut(bool) -> Result<Parting, Error>) -> Result<u64, Error> {
        match call(false)? {
            Parting::Done(_) => Ok(1),
            Parting::Tell(page) => {
                assert_eq!(call(true), Ok(Parting::Done(page)));
                Ok(1)
            }
        }
    }

    fn must(&mut self, n: usize, ask: Ask) -> u64 {
        self.ask(n, ask).unwrap_or_else(|error| panic!("{ask:?}: {error:?}"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Whatever the host and its guests ask for: a page is out of everybody's reach before it is wiped,
    /// and afterwards in reach of those alone who may have it.
    #[test]
    fn no_way_to_a_page_is_left(asks in prop::collection::vec(asks(), 0..60)) {
        let mut story = Story::new();
        // So that most of what is asked is possible.
        story.must(0, Ask::Create { page: 1, protected: true });
        for (n, ask) in asks {
            // Most are refused; that must change nothing either.
            let _ = story.ask(n, ask);
        }
    }
}

/// What each kind of VM can do, once, so that the property above can't pass by refusals alone.
#[test]
fn a_life_of_each_kind_of_vm() {
    for protected in [true, false] {
        let mut story = Story::new();
        story.must(0, Ask::Create { page: 3, protected });
        story.must(1, Ask::Create { page: 20, protected: !protected });
        story.must(0, Ask::Topup { page: 8 });
        for (page, at) in [(9, 0), (12, 1), (30, 2)] {
            story.must(0, Ask::Map { page, at, count: 1 });
        }
        if protected {
            story.must(0, Ask::Share { at: 1, alias: false });
            story.must(0, Ask::Unshare { at: 1, alias: false });
            story.must(0, Ask::Share { at: 1, alias: false });
        } else {
            story.must(0, Ask::Unmap { at: 2, count: 1 });
            story.must(0, Ask::Map { page: 31, at: 2, count: 1 });
        }
        story.must(0, Ask::Relinquish { at: 1, alias: false });
        // Another page at the same address, and the old one for somebody else.
        story.must(0, Ask::Map { page: 13, at: 1, count: 1 });
        story.must(1, Ask::Map { page: 12, at: 1, count: 1 });
        story.must(0, Ask::Destroy);
        let last = if protected { 30 } else { 31 };
        for page in [3, 4, 5, 6, 8, 9, 13, last] {
            story.must(0, Ask::Reclaim { page, count: 1 });
        }
        // The VMID is used again.
        story.must(0, Ask::Create { page: 3, protected });
        story.must(0, Ask::Map { page: 9, at: 0, count: 1 });
    }
}

#[test]
fn the_rest_of_a_broken_block_is_retried() {
    let mut story = Story::new();
    story.must(0, Ask::Create { page: 0, protected: true });
    let before = story.sim.accessible();
    story.must(0, Ask::Map { page: 19, at: 0, count: 1 });
    let missed = story.sim.world.borrow().missed.clone();
    // While the block was broken, a use of any of its pages could fault; `call` has seen to it that each
    // is told to retry, but for the one that is gone.
    let block: BTreeSet<_> = (16..24).map(|n| (HOST, pa(n))).collect();
    assert!(block.is_subset(&missed), "{missed:x?}");
    let gone: Vec<_> = before.difference(&story.sim.accessible()).copied().collect();
    assert_eq!(gone, [pa(19)]);
    // A page of what are pages already: nobody else faults.
    story.must(0, Ask::Map { page: 20, at: 1, count: 1 });
    let new: Vec<_> = story.sim.world.borrow().broken.iter().copied().collect();
    assert!(new.is_empty(), "{new:x?}");
}

/// With a guest's VTTBR_EL2 loaded, it is the host that loses the page.
#[test]
fn a_guests_call_is_about_the_hosts_vmid() {
    let mut story = Story::new();
    story.must(0, Ask::Create { page: 0, protected: true });
    story.must(0, Ask::Map { page: 9, at: 0, count: 1 });
    story.must(0, Ask::Share { at: 0, alias: false });
    assert_eq!(story.sim.world.borrow().reach(pa(9)), BTreeSet::from([HOST, 1]));
    story.must(0, Ask::Unshare { at: 0, alias: false });
    assert_eq!(story.sim.world.borrow().reach(pa(9)), BTreeSet::from([1]));
}

/// Two vCPUs of a VM in turn on a CPU: the second finds nothing of the first's stage 1, and the other
/// CPU keeps what it has.
#[test]
fn a_sibling_finds_nothing_of_the_last_vcpus() {
    let mut story = Story::new();
    story.must(0, Ask::Create { page: 0, protected: true });
    story.must(0, Ask::Map { page: 9, at: 0, count: 1 });
    let (sim, handle) = (&story.sim, story.handles[0]);
    let count = VcpuFeatures::FPSIMD.pages();
    for n in 0..2 {
        let flag_page = pa(16 + n);
        let shared =
            sim.memory(|m| m.pages.lookup(flag_page).and_then(|p| m.pages.share_flag_page(p)));
        shared.unwrap();
        let pages = UntrustedPages { start: UntrustedPa(pa(24 + n * count)), count };
        let config = VcpuConfig {
            vm: handle,
            index: VcpuIndex(n),
            affinity: UntrustedAffinity(n),
            pages,
            flag_page: UntrustedPa(flag_page),
            features: UntrustedFeatures(0),
            start: if n == 0 { Start::At { entry: 0, argument: 0 } } else { Start::Off },
        };
        sim.call(Vttbr::new(HOST, 0), || story.vms[0].create_vcpu(sim, &config)).unwrap();
    }
    story.vms[0].seal(handle).unwrap();
    story.vms[0].cpu_on(&story.sim, 1, Boot::default()).unwrap();
    let (sim, handle) = (&story.sim, story.handles[0]);
    // Nothing is taken in from here on.
    sim.world.borrow_mut().rest(1);
    let stage1 = |cpu| {
        let world = sim.world.borrow();
        world.held(cpu).filter(|held| held.vmid == 1 && held.kind == Kind::Combined).count()
    };
    let mut load = |index| {
        let host = Vttbr::new(HOST, 0);
        let vm = &mut story.vms[0];
        sim.call(host, || vm.load(sim, handle, VcpuIndex(index), 0, |()| Ok(())).map(drop))
            .unwrap();
        vm.put(index as usize);
    };
    load(0);
    assert_eq!((stage1(0), stage1(1)), (1, 1));
    load(0);
    assert_eq!((stage1(0), stage1(1)), (1, 1), "the same one comes back");
    load(1);
    assert_eq!((stage1(0), stage1(1)), (0, 1));
}

/// Stores and streaming accesses are done, and nothing else: by maintenance of a VMID that nobody has.
fn settle(tlb: &SimTlb) {
    let before = tlb.loaded();
    tlb.load(Vttbr::new(VMS as u8 + 1, 0));
    tlb.drop_both();
    tlb.dropped();
    tlb.load(before);
    tlb.streaming_done();
}

/// The machine itself: each of these ways to lose a page leaves one to it.
#[test]
fn what_the_machine_does_not_forgive() {
    type Way = (&'static str, fn(&SimTlb, u64), bool);
    let ways: [Way; 9] = [
        (
            "as it is done",
            |tlb, ipa| {
                tlb.stores_done();
                tlb.drop_stage2(ipa);
                tlb.dropped();
                tlb.drop_stage1();
                tlb.dropped();
                tlb.drop_stage1();
                tlb.dropped();
                tlb.streaming_done();
            },
            false,
        ),
        (
            "all at once",
            |tlb, _| {
                tlb.stores_done();
                for _ in 0..2 {
                    tlb.drop_both();
                    tlb.dropped();
                }
                tlb.streaming_done();
            },
            false,
        ),
        (
            "once",
            |tlb, _| {
                tlb.stores_done();
                tlb.drop_both();
                tlb.dropped();
                tlb.streaming_done();
            },
            true,
        ),
        (
            "without EL3",
            |tlb, _| {
                tlb.stores_done();
                for _ in 0..2 {
                    tlb.drop_both();
                    tlb.dropped();
                }
            },
            true,
        ),
        (
            "before the store is complete",
            |tlb, ipa| {
                tlb.drop_stage2(ipa);
                tlb.drop_stage1();
                tlb.stores_done();
                settle(tlb);
            },
            true,
        ),
        (
            "stage 2 only",
            |tlb, ipa| {
                tlb.stores_done();
                tlb.drop_stage2(ipa);
                tlb.dropped();
                settle(tlb);
            },
            true,
        ),
        (
            "both under one DSB",
            |tlb, ipa| {
                tlb.stores_done();
                tlb.drop_stage2(ipa);
                tlb.drop_stage1();
                tlb.dropped();
                settle(tlb);
            },
            true,
        ),
        (
            "another VMID",
            |tlb, _| {
                tlb.stores_done();
                tlb.load(Vttbr::new(1, 0));
                tlb.drop_both();
                tlb.dropped();
                settle(tlb);
            },
            true,
        ),
        (
            "without the DSB",
            |tlb, _| {
                tlb.stores_done();
                tlb.drop_both();
            },
            true,
        ),
    ];
    for (how, way, reached) in ways {
        let world = World::new(RAM, GUEST);
        let mut table = SimTable::new(&world, HOST);
        table.fill(pa(3), pa(3), PAGE_BYTES);
        assert_eq!(vmid(world.borrow().loaded), HOST);
        table.clear(Piece { ipa: pa(3), bytes: PAGE_BYTES });
        way(&SimTlb(Rc::clone(&world)), pa(3));
        assert_eq!(!world.borrow().reach(pa(3)).is_empty(), reached, "{how}");
    }
}

/// Each step of maintenance is done twice where stores outlive one, and EL3 is asked (r42, r43).
#[test]
fn r42_r43_stores_and_streaming_accesses_outlive_a_tlbi() {
    let world = World::new(RAM, GUEST);
    let tlb = SimTlb(Rc::clone(&world));
    let mut host = SimTable::host(&world);
    host.unmap(&tlb, pa(3), PAGE_BYTES);
    assert_eq!(world.borrow().broadcasts, 4, "stage 2 and stage 1, twice each");
    assert_eq!(world.borrow().reach(pa(3)), BTreeSet::new());
    host.forget_all(&tlb);
    assert_eq!(world.borrow().broadcasts, 6, "all at once, twice");
}

/// Pages made of a block that TLBs still hold.
#[test]
#[should_panic(expected = "holds two entries for one address")]
fn the_machine_wants_break_before_make() {
    let world = World::new(RAM, GUEST);
    let host = SimTable::host(&world);
    let mut table = host.table;
    let block = table.leaf(RAM.0).unwrap();
    table.clear(Piece { ipa: block.ipa, bytes: block.bytes });
    SimTlb(Rc::clone(&world)).stores_done();
    table.fill(block.ipa, block.pa, PAGE_BYTES);
}
