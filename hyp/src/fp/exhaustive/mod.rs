//! The engine, exhaustively: every interleaving of 2 CPUs, 2 vCPUs and all events, in every reachable
//! state, checked with stateright; with SME and AArch32, which make many more, of one CPU or one vCPU.
//!
//! The code under test is the engine itself. The machine is one more [`FpHw`], as unkind as
//! [`super::sim`] but small: a register file of five cells, vector lengths of one or two quadwords,
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
mod mind;

use super::{Access, CpuFp, FpHw, GuestTrap, HostImage, Live, Svcr, TrapClass, VcpuFp};
use crate::arch::stats::Stats;
use machine::{Age, Cell, Cells, FILE, HIGH, Hw, Image, PRED, ZA};
use mind::{Mind, displace};
use stateright::{Checker, Model, Property};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use umbra_shared::call::Policy;
use umbra_shared::flags::HostFlags;
use umbra_shared::sme::Storage;
use umbra_shared::vcpu::VcpuFeatures;
use umbra_shared::vl::{Vq, VqSet};

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
    cpus: Vec<CpuState>,
    guests: Vec<GuestState>,
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
                HostImage::None => &FILE,
                HostImage::Fpsimd => &[HIGH, PRED],
                HostImage::Full(Vq::MIN) | HostImage::Streaming(_) => &[HIGH],
                HostImage::Full(_) => &[],
            };
            for &cell in dead {
                cpu.fp.buffer_mut().cells[cell] = Cell::Junk;
            }
            if cpu.fp.host_za().is_none() {
                cpu.fp.buffer_mut().cells[ZA] = Cell::Junk;
            }
            // The engine keeps the hint of the running entry, and so does the specification; once the
            // host is displaced it has had its effect.
            let displaced = cpu.fp.live() != Live::Host && cpu.fp.za() != Live::Host;
            if displaced || cpu.running.is_none() {
                *cpu.fp.hint_mut() = HostFlags::empty();
            }
            if displaced {
                cpu.running = cpu.running.map(|_| HostFlags::empty());
            }
            if cpu.fp.live() == Live::Host {
                cpu.fp.host_zcr_el1 = 0;
            }
            if cpu.fp.live() == Live::Nobody {
                FILE.iter().for_each(|&cell| cpu.hw.cells[cell] = Cell::Junk);
            } else if cpu.hw.streaming() || cpu.hw.vq_el2() == 1 {
                cpu.hw.cells[HIGH] = Cell::Junk;
            }
            if !cpu.hw.svcr.contains(Svcr::ZA) {
                cpu.hw.cells[ZA] = Cell::Junk;
            }
            let Some(v) = cpu.loaded else { continue };
            let vcpu = &mut self.guests[v].fp;
            if cpu.fp.live() == Live::Guest {
                FILE.iter().for_each(|&cell| vcpu.image_mut().cells[cell] = Cell::Junk);
                vcpu.svcr.remove(Svcr::SM);
                vcpu.zcr_el1 = 0;
            }
            if cpu.fp.za() == Live::Guest {
                vcpu.image_mut().cells[ZA] = Cell::Junk;
                vcpu.svcr.remove(Svcr::ZA);
            }
        }
        for guest in &mut self.guests {
            if !guest.mind.svcr.contains(Svcr::ZA) {
                guest.fp.image_mut().cells[ZA] = Cell::Junk;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    HostUses,
    HostChangesZcr,
    HostChangesSvcr(Svcr),
    HostUsesZa,
    Load(usize),
    Put,
    Enter(u64),
    GuestUses(Class),
    GuestChangesZcr,
    GuestChangesSvcr(Svcr),
    GuestUsesZa,
    GuestChangesFpexc,
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

/// A vCPU: its largest VL in quadwords, whether it has SME, whether it is AArch32, its policy.
#[derive(Clone, Copy, Debug)]
struct Kind {
    vq: Option<u8>,
    sme: bool,
    aarch32: bool,
    policy: Policy,
}

impl Kind {
    const fn sve(vq: Option<u8>, policy: Policy) -> Self {
        Self { vq, sme: false, aarch32: false, policy }
    }

    const fn sme(vq: Option<u8>, policy: Policy) -> Self {
        Self { vq, sme: true, aarch32: false, policy }
    }

    const fn aarch32(policy: Policy) -> Self {
        Self { vq: None, sme: false, aarch32: true, policy }
    }
}

/// A machine: each CPU's largest VL in quadwords, whether they have SME, and the vCPUs.
#[derive(Clone, Debug)]
struct Machine {
    cpus: Vec<u8>,
    sme: bool,
    guests: Vec<Kind>,
    /// The hosts leave SME to the vCPUs.
    quiet: bool,
    /// With a fault on the last CPU.
    faulty: bool,
}

fn vq(quadwords: u8) -> Vq {
    Vq::new(u64::from(quadwords)).expect("1 or 2")
}

impl CpuState {
    fn host_opens(&mut self, guests: &mut [GuestState], class: TrapClass, stats: &Stats) {
        assert_eq!(self.hw.streaming(), self.host.sm(), "PSTATE.SM while the host runs");
        if !self.hw.el1_open(class) {
            assert!(self.fp.host_opens(class), "closed to its owner");
            let loaded = self.loaded.map(|v| &mut guests[v].fp);
            self.fp.host_trap(&mut self.hw, loaded, class, stats);
            self.hw.sync();
        }
        assert_eq!(self.fp.live(), Live::Host, "open to the host, not live");
        assert!(self.hw.el1_open(class));
        assert_eq!(self.hw.el1_open(TrapClass::Sme), self.fp.za() == Live::Host);
    }

    fn guest_uses(&mut self, guest: &mut GuestState, class: TrapClass, stats: &Stats) -> bool {
        assert_eq!(self.hw.streaming(), guest.mind.sm(), "PSTATE.SM while a guest runs");
        if guest.fp.aarch32() && self.fp.live() != Live::Guest {
            assert!(self.hw.fpexc, "FPEXC.EN while FP is closed");
        }
        if !self.hw.el1_open(class) {
            let was = (self.fp.live(), self.fp.za());
            match self.fp.guest_trap(&mut self.hw, &mut guest.fp, class, stats) {
                GuestTrap::Undefined => {
                    assert_eq!((self.fp.live(), self.fp.za()), was);
                    assert!(match class {
                        TrapClass::Fpsimd => false,
                        TrapClass::Sve => guest.fp.vq().is_none(),
                        TrapClass::Sme => guest.fp.svq().is_none(),
                    });
                    self.hw.sync();
                    return false;
                }
                GuestTrap::Opened => {
                    let hint = self.running.expect("it runs");
                    let taken = self.fp.za() == Live::Guest;
                    displace(&mut self.host, hint, was, taken);
                    self.hw.sync();
                }
            }
        }
        assert_eq!(self.fp.live(), Live::Guest, "open to the guest, not live");
        assert_eq!(self.hw.el1_open(TrapClass::Sme), self.fp.za() == Live::Guest);
        if !self.hw.streaming() {
            assert_eq!(self.hw.el1_open(TrapClass::Sve), guest.fp.vq().is_some());
        }
        if let Some(clamp) = guest.fp.vq() {
            assert_eq!(usize::from(self.hw.vq_el2()), clamp.quadwords(), "I4");
        }
        if guest.fp.aarch32() {
            assert_eq!(self.hw.fpexc, guest.mind.fpexc, "FPEXC.EN while FP is open");
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
                self.host_opens(guests, TrapClass::Sve, stats);
                self.host.look_and_write(&mut self.hw, true);
            }
            Event::HostChangesZcr => {
                self.host_opens(guests, TrapClass::Sve, stats);
                self.host.change_zcr(&mut self.hw);
            }
            Event::HostChangesSvcr(bits) => {
                self.host_opens(guests, TrapClass::Sme, stats);
                self.host.change_svcr(&mut self.hw, bits);
            }
            Event::HostUsesZa => {
                self.host_opens(guests, TrapClass::Sme, stats);
                self.host.look_at_za(&mut self.hw);
            }
            Event::Load(v) => self.loaded = Some(v),
            Event::Put => self.put(guests, stats),
            Event::Enter(hint) => {
                let hint = HostFlags::from_bits_truncate(hint);
                let guest = &mut guests[self.loaded.expect("loaded")];
                let foreign = hint.contains(HostFlags::FOREIGN_FPSTATE);
                let (live, za) = (self.fp.live(), self.fp.za());
                if live != Live::Host && foreign {
                    self.host.give_up_file();
                    if za != Live::Host {
                        self.host.give_up_za();
                    }
                }
                self.fp.enter(&mut self.hw, &guest.fp, hint, stats);
                let taken = za == Live::Host && self.fp.za() != Live::Host;
                if live == Live::Host && self.fp.live() != Live::Host {
                    displace(&mut self.host, hint, (live, za), taken);
                } else if taken && foreign {
                    self.host.give_up_za();
                }
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
                    if guest.fp.aarch32() && !guest.mind.fpexc {
                        // UNDEFINED in its own EL1.
                        return;
                    }
                    let sve = guest.fp.vq().is_some();
                    guest.mind.look_and_write(&mut self.hw, sve);
                }
            }
            Event::GuestChangesSvcr(bits) => {
                let guest = &mut guests[self.loaded.expect("loaded")];
                if self.guest_uses(guest, TrapClass::Sme, stats) {
                    guest.mind.change_svcr(&mut self.hw, bits);
                }
            }
            Event::GuestUsesZa => {
                let guest = &mut guests[self.loaded.expect("loaded")];
                if self.guest_uses(guest, TrapClass::Sme, stats) {
                    guest.mind.look_at_za(&mut self.hw);
                }
            }
            Event::GuestChangesFpexc => {
                let guest = &mut guests[self.loaded.expect("loaded")];
                if self.guest_uses(guest, TrapClass::Fpsimd, stats) {
                    guest.mind.fpexc = !guest.mind.fpexc;
                    self.hw.fpexc = guest.mind.fpexc;
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
                let lengths = lengths(self.hw.max, self.hw.sme);
                self.fp.reset(&mut self.hw, lengths);
                self.hw.sync();
                self.host.give_up_file();
                self.host.give_up_za();
                self.host.zcr_el1 = 0;
            }
        }
    }
}

fn lengths(max: u8, sme: bool) -> Storage {
    Storage::new(Some(vq(max)), sme.then_some(Vq::MIN))
}

impl Model for Machine {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let largest = self.cpus.iter().copied().max().expect("a machine has CPUs");
        let cpu = |(n, &max): (usize, &u8)| {
            let mut hw = Hw {
                max,
                sme: self.sme,
                svcr: Svcr::empty(),
                fpexc: false,
                cells: [Cell::Junk; 5],
                access_written: Access::Closed,
                access: Access::Closed,
                clamp: 1,
                zcr_el1: 1,
                coin: false,
                forgets_predicates: self.faulty && n + 1 == self.cpus.len(),
            };
            let mut fp = CpuFp::new(Image::new(largest));
            fp.reset(&mut hw, lengths(max, self.sme));
            hw.sync();
            CpuState { hw, fp, host: Mind::new(n as u8), loaded: None, running: None }
        };
        let guest = |(n, kind): (usize, &Kind)| {
            let features = VcpuFeatures {
                vq: kind.vq.map(vq),
                svq: kind.sme.then_some(Vq::MIN),
                aarch32: kind.aarch32,
            };
            GuestState {
                fp: VcpuFp::new(Image::new(kind.vq.unwrap_or(1)), features, kind.policy),
                mind: Mind::new(2 + n as u8),
            }
        };
        let cpus = self.cpus.iter().enumerate().map(cpu).collect();
        let guests = self.guests.iter().enumerate().map(guest).collect();
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
            let svcr = [Svcr::SM, Svcr::ZA];
            if cpu.running.is_some() {
                let guest = &state.guests[cpu.loaded.expect("it runs")].fp;
                add(Event::GuestUses(Class::Fpsimd), guest_open);
                add(Event::Exit, host_open);
                if guest.aarch32() {
                    add(Event::GuestChangesFpexc, guest_open);
                    continue;
                }
                add(Event::GuestUses(Class::Sve), guest_open);
                add(Event::GuestUses(Class::Sme), &closed);
                add(Event::GuestChangesZcr, &open);
                if guest.svq().is_some() {
                    svcr.iter().for_each(|&bits| add(Event::GuestChangesSvcr(bits), guest_open));
                    add(Event::GuestUsesZa, guest_open);
                }
                continue;
            }
            add(Event::HostUses, host_open);
            if cpu.hw.max > 1 {
                add(Event::HostChangesZcr, &open);
            }
            if self.sme && !self.quiet {
                svcr.iter().for_each(|&bits| add(Event::HostChangesSvcr(bits), host_open));
                add(Event::HostUsesZa, host_open);
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
                if free && guest.fp.check_load(vqs, VqSet::from_bits(1)).is_ok() {
                    add(Event::Load(v), &closed);
                }
            }
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match (step.event, state.cpus[step.cpu].loaded) {
            (Event::HostUses | Event::HostUsesZa, _) => state.age(step.cpu as u8),
            (Event::GuestUses(_) | Event::GuestUsesZa, Some(v)) => state.age(2 + v as u8),
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

fn visit(machines: &[Machine]) {
    let mut total = 0;
    for machine in machines {
        match explore(machine.clone()) {
            Ok(states) => {
                println!("{machine:?}: {states} states");
                total += states;
            }
            Err(trace) => panic!("{machine:?}: {trace}"),
        }
    }
    println!("{total} states in all");
}

fn machine(cpus: &[u8], sme: bool, guests: &[Kind]) -> Machine {
    Machine { cpus: cpus.into(), sme, guests: guests.into(), quiet: false, faulty: false }
}

fn quiet(cpus: &[u8], guests: &[Kind]) -> Machine {
    Machine { quiet: true, ..machine(cpus, true, guests) }
}

const LAZY: [Kind; 2] = [Kind::sve(Some(1), Policy::Lazy), Kind::sve(None, Policy::Lazy)];

#[test]
fn every_state_of_every_policy() {
    let others = [Kind::sve(Some(1), Policy::Eager), Kind::sve(None, Policy::Scrub)];
    visit(&[machine(&[2, 1], false, &LAZY), machine(&[2, 1], false, &others)]);
}

#[test]
fn every_state_with_sme() {
    let (lazy, scrub, eager) = (Policy::Lazy, Policy::Scrub, Policy::Eager);
    visit(&[
        machine(&[2], true, &[Kind::sme(Some(2), lazy)]),
        machine(&[2], true, &[Kind::sme(Some(1), scrub)]),
        machine(&[1], true, &[Kind::sme(Some(1), lazy), Kind::sve(None, eager)]),
        quiet(&[1], &[Kind::sme(None, eager), Kind::sme(None, scrub)]),
        quiet(&[2, 1], &[Kind::sme(None, lazy)]),
    ]);
}

#[test]
fn every_state_with_aarch32() {
    let (lazy, scrub, eager) = (Policy::Lazy, Policy::Scrub, Policy::Eager);
    visit(&[
        machine(&[2], true, &[Kind::aarch32(lazy), Kind::sve(None, eager)]),
        machine(&[1], true, &[Kind::aarch32(scrub), Kind::sme(None, lazy)]),
    ]);
}

/// The check finds a fault, and the way to it can be read.
#[test]
fn a_fault_is_found_and_its_trace_is_readable() {
    let trace = explore(Machine { faulty: true, ..machine(&[2, 1], false, &LAZY) })
        .expect_err("CPU 1 forgets P and FFR");
    println!("{trace}");
    assert!(trace.contains("cell 2 of"), "{trace}");
    let last = trace.lines().last().unwrap_or_default();
    assert!(last.starts_with("  CPU 1: ") && last.contains("Use"), "{trace}");
}
