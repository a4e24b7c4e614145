//! VMs, owners, the order of hand-overs and this module's TLB rules together, on TLBs that forgive
//! nothing.

mod alias;
mod blocks;
mod junk;
mod sim;
mod story;

use self::sim::{GUEST, RAM, VMS, pa};
use self::story::{Ask, Story, asks};
use super::machine::{BLOCK_BYTES, HOST, Kind, SimTable, SimTlb, World, vmid};
use super::*;
use crate::vm::hardware::{Boot, Machine};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::rc::Rc;
use umbra_shared::call::{
    Start, UntrustedAffinity, UntrustedPa, UntrustedPages, VcpuConfig, VcpuIndex,
};
use umbra_shared::vcpu::{UntrustedFeatures, VcpuFeatures};

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
