//! The engine, exhaustively: every interleaving of 2 CPUs, 2 vCPUs and all events, in every reachable
//! state, checked with stateright.
//!
//! The code under test is the engine itself. The machine is one more [`FpHw`], as unkind as
//! [`super::sim`] but small: a register file of four cells, vector lengths of one or two quadwords,
//! contents that name their owner and one of two generations. Whatever the architecture leaves open is
//! a coin, and both sides of it are tried.
//!
//! An event is atomic, as it is on hardware: EL2 runs with interrupts masked, and the engine's state
//! is private to its CPU. What interleaves is the order of events on the two CPUs.
//!
//! # The specification
//!
//! Who must find what, in [`Mind`]:
//!
//! * a context finds in every cell what it wrote there last, or what may have become of it when its
//!   own VL shrank and grew: its own content or zero;
//! * a context that never wrote, or that gave its content up with a hint or a reset, finds zero;
//! * nobody ever finds anything of anybody else's, or junk.

#![forbid(unsafe_code)]

mod machine;

use super::{Access, CpuFp, FpHw, GuestTrap, HostImage, Live, TrapClass, VcpuFp};
use crate::stats::Stats;
use machine::{Age, Cell, Cells, HIGH, Hw, Image, LOW, PRED, STATUS};
use stateright::{Checker, Model, Property};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use umbra_shared::call::Policy;
use umbra_shared::flags::HostFlags;
use umbra_shared::vl::{Vq, VqSet};

/// What a context knows it must find: the specification.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Mind {
    owner: u8,
    /// `None`: its own content or zero.
    expected: [Option<Cell>; 4],
    zcr_el1: u8,
}

impl Mind {
    const fn new(owner: u8) -> Self {
        Self { owner, expected: [Some(Cell::Zero); 4], zcr_el1: 0 }
    }

    /// All it had is given up; ZCR_EL1 is not.
    fn give_up(&mut self, cells: &[usize]) {
        for &cell in cells {
            self.expected[cell] = Some(Cell::Zero);
        }
    }

    /// It looks at what it can see, then writes all of it.
    fn look_and_write(&mut self, hw: &mut Hw, sve: bool) {
        if sve {
            assert_eq!(hw.zcr_el1, self.zcr_el1, "ZCR_EL1 of {}", self.owner);
        }
        let wide = sve && hw.vq_el1() == 2;
        for (cell, visible) in [(LOW, true), (HIGH, wide), (PRED, sve), (STATUS, true)] {
            if !visible {
                continue;
            }
            let found = hw.cells[cell];
            match self.expected[cell] {
                Some(expected) => assert_eq!(found, expected, "cell {cell} of {}", self.owner),
                None => assert!(
                    found == Cell::Zero
                        || matches!(found, Cell::Of(owner, _) if owner == self.owner),
                    "cell {cell} of {} shows {found:?}",
                    self.owner
                ),
            }
        }
        let content = Cell::Of(self.owner, Age::Last);
        for (cell, visible) in [(LOW, true), (HIGH, wide), (PRED, sve), (STATUS, true)] {
            if visible {
                hw.cells[cell] = content;
                self.expected[cell] = Some(content);
            }
        }
        if sve && !wide {
            // It wrote whole Z registers at the smaller VL.
            self.expected[HIGH] = None;
        }
    }

    fn change_zcr(&mut self, hw: &mut Hw) {
        let old = hw.vq_el1();
        hw.zcr_el1 ^= 1;
        self.zcr_el1 = hw.zcr_el1;
        let new = hw.vq_el1();
        hw.expose(old, new);
        if new != old {
            self.expected[HIGH] = None;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CpuState {
    hw: Hw,
    fp: CpuFp<Image>,
    host: Mind,
    loaded: Option<usize>,
    /// In the guest, under this hint.
    running: Option<HostFlags>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GuestState {
    fp: VcpuFp<Image>,
    mind: Mind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    cpus: [CpuState; 2],
    guests: [GuestState; 2],
    /// What went wrong.
    violation: Option<Box<str>>,
}

impl State {
    /// Everything that `owner` wrote so far is old now: it is about to write.
    fn age(&mut self, owner: u8) {
        let age = |cells: &mut Cells| {
            for cell in cells {
                if *cell == Cell::Of(owner, Age::Last) {
                    *cell = Cell::Of(owner, Age::Older);
                }
            }
        };
        let expect = |mind: &mut Mind| {
            for cell in mind.expected.iter_mut().flatten() {
                if *cell == Cell::Of(owner, Age::Last) {
                    *cell = Cell::Of(owner, Age::Older);
                }
            }
        };
        for cpu in &mut self.cpus {
            age(&mut cpu.hw.cells);
            age(&mut cpu.fp.buffer_mut().cells);
            expect(&mut cpu.host);
        }
        for guest in &mut self.guests {
            age(&mut guest.fp.image_mut().cells);
            expect(&mut guest.mind);
        }
    }

    /// Memory and registers whose content must not matter hold junk: whoever uses them is noticed, and
    /// states that differ in nothing else are one.
    fn forget_the_dead(&mut self) {
        for cpu in &mut self.cpus {
            let dead: &[usize] = match cpu.fp.host_image() {
                HostImage::None => &[LOW, HIGH, PRED, STATUS],
                HostImage::Fpsimd => &[HIGH, PRED],
                HostImage::Full(Vq::MIN) => &[HIGH],
                HostImage::Full(_) => &[],
            };
            for &cell in dead {
                cpu.fp.buffer_mut().cells[cell] = Cell::Junk;
            }
            // The engine keeps the hint of the running entry, and so does the specification; once the
            // host is displaced it has had its effect.
            if cpu.fp.live() != Live::Host {
                *cpu.fp.hint_mut() = HostFlags::empty();
                cpu.running = cpu.running.map(|_| HostFlags::empty());
            } else if cpu.running.is_none() {
                *cpu.fp.hint_mut() = HostFlags::empty();
            }
            if cpu.fp.live() == Live::Nobody {
                cpu.hw.cells = [Cell::Junk; 4];
            } else if cpu.hw.vq_el2() == 1 {
                cpu.hw.cells[HIGH] = Cell::Junk;
            }
            if let (Live::Guest, Some(v)) = (cpu.fp.live(), cpu.loaded) {
                self.guests[v].fp.image_mut().cells = [Cell::Junk; 4];
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    HostUses,
    HostChangesZcr,
    Load(usize),
    Put,
    Enter(u64),
    GuestUses(Class),
    GuestChangesZcr,
    Exit,
    PowerCycle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Class {
    Fpsimd,
    Sve,
    Sme,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Step {
    cpu: usize,
    event: Event,
    coin: bool,
}

/// A machine: each CPU's largest VL in quadwords; each vCPU's, and its policy.
#[derive(Clone, Copy, Debug)]
struct Machine {
    cpus: [u8; 2],
    guests: [(Option<u8>, Policy); 2],
    /// With a fault on CPU 1.
    faulty: bool,
}

fn vq(quadwords: u8) -> Vq {
    Vq::new(u64::from(quadwords)).expect("1 or 2")
}

impl CpuState {
    fn host_opens(&mut self, guests: &mut [GuestState], stats: &Stats) {
        if !self.hw.el1_open(TrapClass::Sve) {
            assert_ne!(self.fp.live(), Live::Host, "closed to its owner");
            let loaded = self.loaded.map(|v| &mut guests[v].fp);
            self.fp.host_trap(&mut self.hw, loaded, stats);
            self.hw.sync();
        }
        assert_eq!(self.fp.live(), Live::Host, "open to the host, not live");
        assert!(self.hw.el1_open(TrapClass::Sme));
    }

    fn guest_uses(&mut self, guest: &mut GuestState, class: TrapClass, stats: &Stats) -> bool {
        if !self.hw.el1_open(class) {
            let was = self.fp.live();
            match self.fp.guest_trap(&mut self.hw, &mut guest.fp, class, stats) {
                GuestTrap::Undefined => {
                    assert_eq!(self.fp.live(), was);
                    assert!(class == TrapClass::Sme || guest.fp.vq().is_none());
                    self.hw.sync();
                    return false;
                }
                GuestTrap::Opened => {
                    let hint = self.running.expect("it runs");
                    if was == Live::Host && hint.contains(HostFlags::FOREIGN_FPSTATE) {
                        self.host.give_up(&[LOW, HIGH, PRED, STATUS]);
                    } else if was == Live::Host && hint.contains(HostFlags::SVE_DISCARDED) {
                        self.host.give_up(&[HIGH, PRED]);
                    }
                    self.hw.sync();
                }
            }
        }
        assert_eq!(self.fp.live(), Live::Guest, "open to the guest, not live");
        assert!(!self.hw.el1_open(TrapClass::Sme), "SME open to a guest");
        assert_eq!(self.hw.el1_open(TrapClass::Sve), guest.fp.vq().is_some());
        if let Some(clamp) = guest.fp.vq() {
            assert_eq!(usize::from(self.hw.vq_el2()), clamp.quadwords(), "I4");
        }
        true
    }

    fn put(&mut self, guests: &mut [GuestState], stats: &Stats) {
        if let Some(v) = self.loaded.take() {
            self.fp.put(&mut self.hw, &mut guests[v].fp, stats);
            self.hw.sync();
        }
    }

    fn perform(&mut self, guests: &mut [GuestState], event: Event) {
        let stats = &Stats::new();
        match event {
            Event::HostUses => {
                self.host_opens(guests, stats);
                self.host.look_and_write(&mut self.hw, true);
            }
            Event::HostChangesZcr => {
                self.host_opens(guests, stats);
                self.host.change_zcr(&mut self.hw);
            }
            Event::Load(v) => self.loaded = Some(v),
            Event::Put => self.put(guests, stats),
            Event::Enter(hint) => {
                let hint = HostFlags::from_bits_truncate(hint);
                let guest = &mut guests[self.loaded.expect("loaded")];
                if self.fp.live() != Live::Host && hint.contains(HostFlags::FOREIGN_FPSTATE) {
                    self.host.give_up(&[LOW, HIGH, PRED, STATUS]);
                }
                self.fp.enter(&mut self.hw, &guest.fp, hint, stats).expect("SVCR is zero");
                self.running = Some(hint);
                self.hw.sync();
            }
            Event::GuestUses(class) => {
                let class = match class {
                    Class::Fpsimd => TrapClass::Fpsimd,
                    Class::Sve => TrapClass::Sve,
                    Class::Sme => TrapClass::Sme,
                };
                let guest = &mut guests[self.loaded.expect("loaded")];
                if self.guest_uses(guest, class, stats) {
                    let sve = guest.fp.vq().is_some();
                    guest.mind.look_and_write(&mut self.hw, sve);
                }
            }
            Event::GuestChangesZcr => {
                let guest = &mut guests[self.loaded.expect("loaded")];
                if self.guest_uses(guest, TrapClass::Sve, stats) {
                    guest.mind.change_zcr(&mut self.hw);
                }
            }
            Event::Exit => {
                let guest = &mut guests[self.loaded.expect("loaded")];
                self.fp.exit(&mut self.hw, &mut guest.fp, stats);
                self.running = None;
                self.hw.sync();
            }
            Event::PowerCycle => {
                self.put(guests, stats);
                self.hw.power_cycle();
                let max = vq(self.hw.max);
                self.fp.reset(&mut self.hw, Some(max));
                self.hw.sync();
                self.host.give_up(&[LOW, HIGH, PRED, STATUS]);
                self.host.zcr_el1 = 0;
            }
        }
    }
}

impl Model for Machine {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let largest = self.cpus[0].max(self.cpus[1]);
        let cpus = [0, 1].map(|n| {
            let max = self.cpus[n];
            let mut hw = Hw {
                max,
                cells: [Cell::Junk; 4],
                access_written: Access::Closed,
                access: Access::Closed,
                clamp: 1,
                zcr_el1: 1,
                coin: false,
                forgets_predicates: self.faulty && n == 1,
            };
            let mut fp = CpuFp::new(Image::new(largest));
            fp.reset(&mut hw, Some(vq(max)));
            hw.sync();
            CpuState { hw, fp, host: Mind::new(n as u8), loaded: None, running: None }
        });
        let guests = [0, 1].map(|n| {
            let (max, policy) = self.guests[n];
            GuestState {
                fp: VcpuFp::new(Image::new(max.unwrap_or(1)), max.map(vq), policy),
                mind: Mind::new(2 + n as u8),
            }
        });
        vec![State { cpus, guests, violation: None }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        if state.violation.is_some() {
            return;
        }
        for (n, cpu) in state.cpus.iter().enumerate() {
            let mut add = |event, coins: &[bool]| {
                actions.extend(coins.iter().map(|&coin| Step { cpu: n, event, coin }));
            };
            let (open, closed) = ([false, true], [false]);
            // Where nothing is left open both sides of the coin are one.
            let guest_open = if cpu.fp.live() == Live::Guest { &closed[..] } else { &open };
            let host_open = if cpu.fp.live() == Live::Host { &closed[..] } else { &open };
            if cpu.running.is_some() {
                add(Event::GuestUses(Class::Fpsimd), guest_open);
                add(Event::GuestUses(Class::Sve), guest_open);
                add(Event::GuestUses(Class::Sme), &closed);
                add(Event::GuestChangesZcr, &open);
                add(Event::Exit, host_open);
                continue;
            }
            add(Event::HostUses, host_open);
            if cpu.hw.max > 1 {
                add(Event::HostChangesZcr, &open);
            }
            add(Event::PowerCycle, &open);
            if cpu.loaded.is_some() {
                add(Event::Put, &closed);
                for hint in 0..4 {
                    add(Event::Enter(hint), &closed);
                }
                continue;
            }
            for (v, guest) in state.guests.iter().enumerate() {
                let vqs = VqSet::from_bits((1 << cpu.hw.max) - 1);
                let free = state.cpus.iter().all(|c| c.loaded != Some(v));
                if free && CpuFp::check_load(&guest.fp, vqs).is_ok() {
                    add(Event::Load(v), &closed);
                }
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match (step.event, state.cpus[step.cpu].loaded) {
            (Event::HostUses, _) => state.age(step.cpu as u8),
            (Event::GuestUses(_), Some(v)) => state.age(2 + v as u8),
            _ => {}
        }
        let State { cpus, guests, .. } = &mut state;
        let cpu = &mut cpus[step.cpu];
        cpu.hw.coin = step.coin;
        let done = catch_unwind(AssertUnwindSafe(|| cpu.perform(guests, step.event)));
        cpu.hw.coin = false;
        if let Err(panic) = done {
            let text = panic.downcast_ref::<String>().map_or("panic", |text| text);
            state.violation = Some(text.into());
        } else {
            state.forget_the_dead();
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("everybody finds what they left, and nothing else", |_, s: &State| {
                s.violation.is_none()
            }),
            Property::sometimes("both guests are live at once", |_, s: &State| {
                s.cpus.iter().all(|c| c.fp.live() == Live::Guest)
            }),
            Property::sometimes("a guest runs with the host live", |_, s: &State| {
                s.cpus.iter().any(|c| c.fp.live() == Live::Host && c.running.is_some())
            }),
        ]
    }
}

/// Visits every reachable state of a machine. Returns how many there are, or the way to the first
/// violation.
fn explore(machine: Machine) -> Result<usize, String> {
    // The engine's assertions are findings here, not noise; the hook is one for all threads.
    static HOOK: Mutex<()> = Mutex::new(());
    let _alone = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let checker = machine.checker().threads(2).spawn_bfs().join();
    std::panic::set_hook(hook);
    let found = checker.discovery("everybody finds what they left, and nothing else");
    match found {
        None => Ok(checker.unique_state_count()),
        Some(path) => {
            let violation = path.last_state().violation.clone().unwrap_or_default();
            let steps = path.into_actions();
            let lines: Vec<_> =
                steps.iter().map(|s| format!("  CPU {}: {:?}", s.cpu, s.event)).collect();
            Err(format!("{violation}, by\n{}", lines.join("\n")))
        }
    }
}

#[test]
fn every_state_of_every_policy() {
    let mut total = 0;
    for (cpus, guests) in [
        ([2, 1], [(Some(1), Policy::Lazy), (None, Policy::Lazy)]),
        ([2, 1], [(Some(1), Policy::Eager), (None, Policy::Scrub)]),
    ] {
        let machine = Machine { cpus, guests, faulty: false };
        match explore(machine) {
            Ok(states) => {
                println!("{machine:?}: {states} states");
                total += states;
            }
            Err(trace) => panic!("{machine:?}: {trace}"),
        }
    }
    println!("{total} states in all");
}

/// The check finds a fault, and the way to it can be read.
#[test]
fn a_fault_is_found_and_its_trace_is_readable() {
    let machine = Machine {
        cpus: [2, 1],
        guests: [(Some(1), Policy::Lazy), (None, Policy::Lazy)],
        faulty: true,
    };
    let trace = explore(machine).expect_err("CPU 1 forgets P and FFR");
    println!("{trace}");
    assert!(trace.contains("cell 2 of"), "{trace}");
    let last = trace.lines().last().unwrap_or_default();
    assert!(last.starts_with("  CPU 1: ") && last.contains("Use"), "{trace}");
}
