//! One SMMU as hyp drives it, against [`super::sim`].

#![forbid(unsafe_code)]

use super::all::All;
use super::block::Block;
use super::examine::Facts;
use super::registers::*;
use super::sim::{Sim, leak};
use super::smmu::{Smmu, Trouble};
use super::streams::{LEVEL2_WORDS, StreamStage2, Streams};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

const FACTS: Facts =
    Facts { stream_bits: 16, output_bits: 44, commands: 19, events: 19, ats: true };
const STAGE2: StreamStage2 = StreamStage2 { vmid: 0x41, root: 0x9_0000, vtcr: 0x8004_3598 };
const PAGES: u64 = 4;

/// A machine with one SMMU, queues of `commands`, and some pages that devices may reach.
struct Machine {
    smmu: Smmu<Sim>,
    sim: Sim,
    streams: Streams,
    /// Pages in the devices' stage 2.
    there: Rc<RefCell<BTreeSet<u64>>>,
}

fn page(n: u64) -> u64 {
    0x4000_0000 + n % PAGES * 0x1000
}

impl Machine {
    fn new(commands: usize) -> Self {
        let blocks: [Block; 4] = [
            leak(0x1_0000, 1 << 8),
            leak(0x2_0000, LEVEL2_WORDS),
            leak(0x3_0000, 2 * commands),
            leak(0x4_0000, 4 * 8),
        ];
        let there: Rc<RefCell<BTreeSet<u64>>> =
            Rc::new(RefCell::new((0..PAGES).map(page).collect()));
        let table = there.clone();
        let walk =
            move |root, ipa| (root == STAGE2.root && table.borrow().contains(&ipa)).then_some(ipa);
        let sim = Sim::new(blocks.to_vec(), Box::new(walk));
        let streams = Streams::new(blocks[0], blocks[1], STAGE2);
        let smmu = Smmu::new(sim.clone(), FACTS, blocks[2], blocks[3]);
        Self { smmu, sim, streams, there }
    }

    fn started(commands: usize) -> Self {
        let mut machine = Self::new(commands);
        machine.smmu.start(&machine.streams).unwrap();
        machine
    }
}

#[test]
fn a_stream_reaches_what_is_there_and_nothing_else() {
    let machine = Machine::started(64);
    for stream in [0, 1, 0xff, 0x100, 0xffff] {
        assert!(machine.sim.begin_write(stream, page(1) + 0x123), "{stream:#x}");
        assert!(!machine.sim.begin_write(stream, page(PAGES - 1) + 0x1000), "{stream:#x}");
        assert!(!machine.sim.begin_write(stream, 0x3_0000), "its own queue");
    }
    assert!(!machine.sim.begin_write(0x1_0000, page(1)), "a stream that the table doesn't reach");
    let state = machine.sim.0.borrow();
    assert_eq!((state.bypassed, state.underway.len()), (0, 5));
    assert!(state.underway.iter().all(|write| write.pa == page(1) + 0x123));
}

#[test]
fn events_are_counted_once() {
    let mut machine = Machine::started(64);
    for _ in 0..3 {
        machine.sim.begin_write(7, 0);
    }
    assert_eq!((machine.smmu.events(), machine.smmu.events()), (3, 3));
    // More than the queue of 8 holds.
    (0..20).for_each(|_| _ = machine.sim.begin_write(7, 0));
    assert_eq!(machine.smmu.events(), 11);
    (0..2).for_each(|_| _ = machine.sim.begin_write(7, 0));
    assert_eq!(machine.smmu.events(), 13);
}

/// A device that writes before every access to a register, while the SMMU is brought up.
struct Restless(Sim);

impl super::smmu::Registers for Restless {
    fn read(&self, offset: u32) -> u32 {
        self.0.begin_write(3, 0x1000);
        self.0.read(offset)
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.0.begin_write(3, 0x1000);
        self.0.write(offset, value);
    }

    fn write64(&mut self, offset: u32, value: u64) {
        self.0.begin_write(3, 0x1000);
        self.0.write64(offset, value);
    }

    fn barrier(&self) {}
}

#[test]
fn nothing_passes_while_it_is_brought_up() {
    for (name, gbpa, cr0) in
        [("reset", 0, 0), ("firmware's", 0, CR0_SMMUEN), ("closed", GBPA_ABORT, 0)]
    {
        let machine = Machine::new(64);
        machine.sim.set(GBPA, gbpa);
        machine.sim.set(CR0, cr0);
        machine.sim.set(CR0ACK, cr0);
        let (commands, events) = (leak(0x3_0000, 128), leak(0x4_0000, 32));
        machine.sim.0.borrow_mut().use_block(commands);
        let mut smmu = Smmu::new(Restless(machine.sim.clone()), FACTS, commands, events);
        // Bypass ends with the first write of all.
        smmu.close().unwrap();
        let before = machine.sim.0.borrow().bypassed;
        smmu.start(&machine.streams).unwrap();
        assert_eq!(machine.sim.0.borrow().bypassed, before, "{name}");
        assert!(before <= 4, "{name}: {before} before it was closed");
        assert!(smmu.is_on(), "{name}");
    }
}

#[test]
fn old_streams_translations_and_errors_are_forgotten() {
    let machine = Machine::new(64);
    machine.sim.set(GERROR, GERROR_CMDQ_ERR);
    let mut smmu = machine.smmu;
    smmu.start(&machine.streams).unwrap();
    let taken =
        machine.sim.0.borrow().taken.iter().map(|command| command[0] & 0xff).collect::<Vec<_>>();
    assert_eq!(taken, [0x04, 0x46, 0x30, 0x46]);
    assert_eq!(machine.sim.get(CR2) & CR2_PTM, CR2_PTM);
    assert_eq!(machine.sim.get(IRQ_CTRL), 0);
    assert_eq!(machine.sim.get(CR0) & CR0_ATSCHK, CR0_ATSCHK);
}

#[test]
fn one_that_does_not_answer_is_told_of() {
    for (register, name) in [(GBPA, "SMMU_GBPA"), (CR0, "SMMU_CR0")] {
        let mut machine = Machine::new(64);
        if register == CR0 {
            machine.sim.set(CR0ACK, CR0_SMMUEN);
        }
        machine.sim.0.borrow_mut().deaf_to = Some(register);
        assert_eq!(machine.smmu.start(&machine.streams), Err(Trouble::Register(name)));
    }
    let mut machine = Machine::started(64);
    machine.sim.0.borrow_mut().pace = 0;
    machine.smmu.forget_page(0x41, page(0)).unwrap();
    assert_eq!(machine.smmu.settle(), Err(Trouble::Hung));
}

#[test]
fn a_command_error_is_told_of() {
    let mut machine = Machine::started(64);
    machine.sim.set(GERROR, machine.sim.get(GERROR) ^ GERROR_CMDQ_ERR);
    machine.sim.set(CMDQ_CONS, machine.sim.get(CMDQ_CONS) | 2 << 24);
    machine.smmu.forget_page(0x41, page(0)).unwrap();
    assert_eq!(machine.smmu.settle(), Err(Trouble::Command("CERROR_ABT")));
    let mut machine = Machine::started(64);
    machine.sim.set(GERROR, machine.sim.get(GERROR) ^ GERROR_SFM_ERR);
    assert_eq!(machine.smmu.settle(), Err(Trouble::Failure));
    // Nor is one started that has failed.
    assert_eq!(machine.smmu.start(&machine.streams), Err(Trouble::Failure));
    let mut machine = Machine::started(64);
    machine.sim.set(CR0ACK, CR0_CMDQEN);
    assert_eq!(machine.smmu.settle(), Err(Trouble::Off));
}

#[test]
fn one_that_has_slept_is_not_on() {
    let lost = [(CR0ACK, 0), (GBPA, 0), (CMDQ_PROD, 0), (STRTAB_BASE, 0x5000)];
    for (register, value) in lost {
        let mut machine = Machine::started(64);
        assert!(machine.smmu.is_on());
        machine.sim.set(register, value);
        assert!(!machine.smmu.is_on(), "{register:#x}");
        machine.smmu.start(&machine.streams).unwrap();
        assert!(machine.smmu.is_on());
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A device begins a write.
    Begin(u32, u64),
    /// A write arrives.
    Arrive(usize),
    /// Pages are taken away, in one go.
    Take(Vec<u64>),
    /// A page is given back.
    Give(u64),
    /// The SMMU is in a hurry or not.
    Pace(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<u16>(), any::<u64>()).prop_map(|(stream, n)| Step::Begin(stream.into(), n)),
        any::<usize>().prop_map(Step::Arrive),
        prop::collection::vec(any::<u64>(), 1..6).prop_map(Step::Take),
        any::<u64>().prop_map(Step::Give),
        (1..4u32).prop_map(Step::Pace),
    ]
}

proptest! {
    /// Once a page is taken away and the SMMU has settled, no write arrives there: not one that begins, and
    /// not one that was under way. With queues of every small size, so that they fill up.
    #[test]
    fn what_is_taken_is_out_of_reach(
        log2 in 0..4u32,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut machine = Machine::started(1 << log2);
        for step in steps {
            match step {
                Step::Begin(stream, n) => {
                    let there = machine.there.borrow().contains(&page(n));
                    prop_assert_eq!(machine.sim.begin_write(stream, page(n)), there);
                }
                Step::Arrive(n) => machine.sim.arrive(n),
                Step::Take(pages) => {
                    for &n in &pages {
                        machine.there.borrow_mut().remove(&page(n));
                        machine.smmu.forget_page(STAGE2.vmid, page(n)).unwrap();
                    }
                    machine.smmu.settle().unwrap();
                    let state = machine.sim.0.borrow();
                    for n in pages {
                        prop_assert!(state.underway.iter().all(|write| write.pa != page(n)));
                    }
                }
                Step::Give(n) => _ = machine.there.borrow_mut().insert(page(n)),
                Step::Pace(pace) => machine.sim.0.borrow_mut().pace = pace,
            }
        }
        prop_assert_eq!(machine.sim.0.borrow().bypassed, 0);
    }
}

/// Several SMMUs over one stage 2: each has streams of its own, keeps what it has walked, and can be asleep.
struct Several {
    all: All<Sim>,
    sims: Vec<Sim>,
    there: Rc<RefCell<BTreeSet<u64>>>,
}

fn several(count: u64) -> Several {
    let (level1, level2) = (leak(0x1_0000, 1 << 8), leak(0x2_0000, LEVEL2_WORDS));
    let mut all = All::new(Streams::new(level1, level2, STAGE2), STAGE2.vmid);
    let there: Rc<RefCell<BTreeSet<u64>>> = Rc::new(RefCell::new((0..PAGES).map(page).collect()));
    let mut sims = Vec::new();
    for n in 0..count {
        let queues = [leak(0x3_0000, 128), leak(0x4_0000, 32)];
        let table = there.clone();
        let walk = move |_, ipa| table.borrow().contains(&ipa).then_some(ipa);
        let sim = Sim::new(vec![level1, level2, queues[0], queues[1]], Box::new(walk));
        sims.push(sim.clone());
        let smmu = Smmu::new(sim, FACTS, queues[0], queues[1]);
        all.start(0x900_0000 + 0x2_0000 * n, smmu).unwrap();
    }
    Several { all, sims, there }
}

#[test]
fn all_smmus_forget_and_all_are_waited_for() {
    let mut machine = several(3);
    machine.sims.iter().for_each(|sim| assert!(sim.begin_write(1, page(0))));
    machine.there.borrow_mut().remove(&page(0));
    machine.all.forget_page(page(0)).unwrap();
    machine.all.settle().unwrap();
    for sim in &machine.sims {
        assert!(!sim.begin_write(1, page(0)));
        assert_eq!(sim.0.borrow().underway, []);
    }
    // One that hangs is named.
    machine.sims[1].0.borrow_mut().pace = 0;
    assert_eq!(machine.all.settle(), Err((0x902_0000, Trouble::Hung)));
}

#[test]
fn those_that_have_slept_are_all_closed_before_one_is_on() {
    let mut machine = several(3);
    assert_eq!(machine.all.wake(), Ok(0));
    for sim in &machine.sims[1..] {
        sim.set(CR0ACK, 0);
        sim.set(CR0, 0);
        sim.set(GBPA, 0);
    }
    assert_eq!(machine.all.wake(), Ok(2));
    assert!(machine.sims.iter().all(|sim| sim.begin_write(1, page(1)) && !sim.begin_write(1, 0)));
    assert_eq!(machine.all.wake(), Ok(0));
    assert_eq!(machine.all.events(), 3);
}
