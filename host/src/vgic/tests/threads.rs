//! Several CPUs at once: nothing is lost, and nothing is in the list registers of two.
//!
//! Devices raise edges and levels and wait until each is handled; vCPUs run with few list registers, leave when
//! they are kicked, and wait for a kick when they have nothing to do; software changes routes, enables, priorities and
//! who is one of the N. A kick that is not sent, or an interrupt that is dropped, is a device that waits for ever.

use super::{edge, running, spis, vcpus};
use crate::vgic::{Events, Line, Vgic, registers::Width};
use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};
use umbra_shared::interrupt::{Entry, Signalled, State, States};

const VCPUS: usize = 3;
const ROUNDS: u32 = 30_000;
/// Edges, levels, and both with 1 of N.
const SPIS: [u16; 6] = [32, 33, 34, 35, 36, 37];
/// What takes so long is lost.
const BOUND: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Shared {
    kicked: [AtomicBool; 4],
    /// vCPUs in whose list registers it is.
    holders: [AtomicUsize; SPIS.len()],
    /// How often it was handled.
    handled: [AtomicU32; SPIS.len()],
    /// Devices that are still at it.
    devices: AtomicUsize,
    /// Somebody has failed.
    failed: AtomicBool,
}

/// What everybody tells.
struct Kicks<'a>(&'a Shared);

impl Events for Kicks<'_> {
    fn kick(&mut self, vcpu: usize) {
        self.0.kicked[vcpu].store(true, SeqCst);
    }
    fn resample(&mut self, _vcpu: usize, _intid: u16) {}
}

impl Shared {
    fn over(&self) -> bool {
        self.devices.load(SeqCst) == 0 || self.failed.load(SeqCst)
    }
}

/// A generator of small numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// What a guest does with an interrupt that is in a list register, as far as it gets before it is left.
fn guest(vgic: &Vgic<'_>, shared: &Shared, intid: u16, old: State, dice: &mut Dice) -> State {
    let stays = dice.below(4) == 0;
    match old {
        State::Pending if dice.below(8) != 0 => {
            if intid % 2 == 1 {
                vgic.set_line(Line::Spi(intid), false, &mut Kicks(shared)).unwrap();
            }
            shared.handled[usize::from(intid - 32)].fetch_add(1, SeqCst);
            if stays { State::Active } else { State::Done }
        }
        State::Active if !stays => State::Done,
        State::PendingActive if !stays => State::Pending,
        state => state,
    }
}

/// Whether a maintenance interrupt stops the guest.
fn maintenance(listed: &[Entry], states: States, underflow: bool) -> bool {
    let done = |n: &usize| states.get(*n) == State::Done;
    let ended = (0..listed.len()).filter(done);
    let valid = listed.len() - ended.clone().count();
    underflow && valid <= 1 || ended.into_iter().any(|n| listed[n].contains(Entry::EOI))
}

/// Nothing stops a guest but a kick or a maintenance interrupt.
fn vcpu(vgic: &Vgic<'_>, shared: &Shared, v: usize) {
    let told = &mut Kicks(shared);
    let mut entries = [Entry::default(); 2];
    let mut dice = Dice(v as u64);
    let kicked = || shared.kicked[v].load(SeqCst) || shared.over();
    while !shared.over() {
        shared.kicked[v].store(false, SeqCst);
        let Some(flushed) = vgic.flush(v, &mut entries, told).unwrap() else { continue };
        // Hyp would refuse it.
        if flushed.underflow && flushed.count < 2 {
            shared.failed.store(true, SeqCst);
            panic!("underflow is asked for with {} in list registers", flushed.count);
        }
        let listed = &entries[..flushed.count];
        let mut states = States::default();
        for (n, entry) in listed.iter().enumerate() {
            let holders = &shared.holders[usize::from(entry.intid() - 32)];
            if holders.fetch_add(1, SeqCst) != 0 {
                shared.failed.store(true, SeqCst);
                panic!("{} is in list registers of two vCPUs", entry.intid());
            }
            states = states.with(n, entry.state());
        }
        let waits = listed.is_empty() && dice.below(2) == 0;
        while !waits && !kicked() && !maintenance(listed, states, flushed.underflow) {
            for (n, entry) in listed.iter().enumerate() {
                let state = guest(vgic, shared, entry.intid(), states.get(n), &mut dice);
                states = states.with(n, state);
            }
            thread::yield_now();
        }
        for entry in listed {
            shared.holders[usize::from(entry.intid() - 32)].fetch_sub(1, SeqCst);
        }
        vgic.sync(v, listed, states, told).unwrap();
        while waits && !kicked() && !vgic.has_interrupt(v, Signalled::ALL) {
            thread::yield_now();
        }
    }
}

/// One whose INTID is odd has a level, the others edges.
fn device(vgic: &Vgic<'_>, shared: &Shared, intid: u16) {
    let told = &mut Kicks(shared);
    let handled = || shared.handled[usize::from(intid - 32)].load(SeqCst);
    for round in 1..=ROUNDS {
        match intid % 2 {
            0 => vgic.pulse(Line::Spi(intid), told).unwrap(),
            _ => vgic.set_line(Line::Spi(intid), true, told).unwrap(),
        }
        let raised = Instant::now();
        while handled() < round && !shared.failed.load(SeqCst) {
            if raised.elapsed() > BOUND {
                shared.failed.store(true, SeqCst);
                panic!("{intid} is lost in round {round}");
            }
            thread::yield_now();
        }
        if handled() > round {
            shared.failed.store(true, SeqCst);
            panic!("{intid} was handled twice");
        }
    }
    shared.devices.fetch_sub(1, SeqCst);
}

/// Software that changes what it can, all the time, and leaves everything so that it arrives.
fn software(vgic: &Vgic<'_>, shared: &Shared) {
    let told = &mut Kicks(shared);
    let mut dice = Dice(99);
    let word = Width::Word;
    while !shared.over() {
        let intid = 32 + dice.below(SPIS.len() as u64);
        let v = dice.below(VCPUS as u64) as usize;
        match dice.below(6) {
            0 | 1 => {
                let affinity = u64::from(super::AFFINITIES[v]);
                let route = if dice.below(3) == 0 { 1 << 31 } else { affinity };
                vgic.write_distributor(0x6000 + 8 * intid, word, route, told);
            }
            2 => {
                vgic.write_distributor(0x184, word, 1 << (intid - 32), told);
                vgic.write_distributor(0x104, word, 1 << (intid - 32), told);
            }
            3 => {
                let priority = 0x40 * dice.below(4);
                vgic.write_distributor(0x400 + intid, Width::Byte, priority, told);
            }
            4 => {
                vgic.write_redistributor(v, 0, word, 3 << 24, told);
                thread::yield_now();
                vgic.write_redistributor(v, 0, word, 0, told);
            }
            _ => {
                vgic.write_distributor(0, word, 0, told);
                vgic.write_distributor(0, word, 2, told);
            }
        }
        thread::yield_now();
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_at_two() {
    let (vcpus, spis) = (vcpus(), spis());
    let vgic = running(&vcpus, &spis);
    let shared = Shared::default();
    shared.devices.store(SPIS.len(), SeqCst);
    SPIS.into_iter().filter(|intid| intid % 2 == 0).for_each(|intid| edge(&vgic, intid));
    // The last one runs on no thread.
    vgic.set_power(VCPUS, false, &mut Kicks(&shared)).unwrap();
    thread::scope(|scope| {
        let (vgic, shared) = (&vgic, &shared);
        for v in 0..VCPUS {
            scope.spawn(move || vcpu(vgic, shared, v));
        }
        for intid in SPIS {
            scope.spawn(move || device(vgic, shared, intid));
        }
        scope.spawn(move || software(vgic, shared));
    });
    assert!(!shared.failed.load(SeqCst));
    for intid in SPIS {
        assert_eq!(shared.handled[usize::from(intid - 32)].load(SeqCst), ROUNDS);
    }
}
