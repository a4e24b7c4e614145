//! One process of the stress: fills its registers, lets things happen to it, looks again.
//!
//! Linux keeps all registers across interrupts, preemption and signals, and V0-V31, FPSR and FPCR
//! across system calls, behind which the rest is what it was or zero.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};

use umbra_patterns::model::{SM, ZA};
use umbra_patterns::pattern::Kept;
use umbra_patterns::regs::{self, Bench, Width, rdvl, sme};
use umbra_patterns::tag::{HUNTED, HUNTED_OWNERS, Tag};

use crate::cipher::Cipher;
use crate::clock;
use crate::filled::{Filled, Offer};
use crate::say::{Text, text};
use crate::stress::{MAX_WORKERS, shared};
use crate::sys::{self, Ended};
use crate::{fail, signal, tagged};

/// The owner in a worker's patterns.
pub fn owner(worker: usize) -> u16 {
    if tagged::is() { hunted_owner(worker) } else { plain_owner(worker) }
}

const fn plain_owner(worker: usize) -> u16 {
    0x100 + worker as u16
}

/// In a guest whose registers nobody else may find.
const fn hunted_owner(worker: usize) -> u16 {
    HUNTED | (worker as u16 % HUNTED_OWNERS)
}

/// That of its signal handler's.
pub const fn handler_owner(worker: usize) -> u16 {
    0x200 + worker as u16
}

/// That of its children's.
const fn child_owner(worker: usize) -> u16 {
    0x300 + worker as u16
}

/// Everybody: a mismatch says whose the registers are. Only the owners matter.
pub static KNOWN: [Tag; 4 * MAX_WORKERS] = {
    let mut known = [Tag { owner: 0, generation: 0 }; 4 * MAX_WORKERS];
    let mut n = 0;
    while n < MAX_WORKERS {
        known[4 * n].owner = plain_owner(n);
        known[4 * n + 1].owner = handler_owner(n);
        known[4 * n + 2].owner = child_owner(n);
        known[4 * n + 3].owner = hunted_owner(n);
        n += 1;
    }
    known
};

/// What happens between filling and looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// The CPU is busy; others want it too.
    Preemption,
    /// With `umbra.displace` hyp takes the registers away.
    Displacement,
    /// A signal, whose frame is looked at.
    Signal,
    /// A signal whose handler changes the frame.
    Rewrite,
    /// System calls that give the CPU away.
    Yield,
    /// A child that uses the registers too.
    Fork,
    /// Another CPU, and back.
    Migration,
    /// The kernel uses the registers itself, in a system call.
    Cipher,
}

impl Between {
    /// All of them, by their numbers.
    pub const KINDS: [Self; 8] = [
        Self::Preemption,
        Self::Displacement,
        Self::Signal,
        Self::Rewrite,
        Self::Yield,
        Self::Fork,
        Self::Migration,
        Self::Cipher,
    ];

    /// Whether Linux may forget what is above V0-V31.
    fn has_system_calls(self) -> bool {
        matches!(self, Self::Yield | Self::Fork | Self::Migration | Self::Cipher)
    }
}

/// What a worker has done, for its parent to read.
#[derive(Debug)]
pub struct Counts {
    /// Patterns filled in and found again.
    pub fills: AtomicU64,
    /// Of these, those filled in on the worker's own CPU, by what was filled.
    pub patterns: [AtomicU64; Filled::COUNT],
    /// The same, by what happened in between.
    pub between: [AtomicU64; Between::KINDS.len()],
    /// Rounds begun.
    pub rounds: AtomicU64,
    /// What the round begun last has in between, and what it fills.
    pub round: [AtomicU32; 2],
    /// Signals taken.
    pub signals: AtomicU64,
    /// Children.
    pub forks: AtomicU64,
    /// Preemptions.
    pub preemptions: AtomicU64,
    /// Times it found itself on another CPU than the one it asked for, or asked for another.
    pub migrations: AtomicU64,
}

/// As large as DC ZVA's block can be.
#[repr(C, align(2048))]
struct Block(UnsafeCell<[u8; 2048]>);

// SAFETY: nobody reads what is in it.
unsafe impl Sync for Block {}

/// DC ZVA. With `umbra.displace` it traps to hyp, which takes the registers away.
pub fn displace() {
    static BLOCK: Block = Block(UnsafeCell::new([1; 2048]));
    // SAFETY: zeroes a part of the block, which is for nothing else.
    unsafe { asm!("dc zva, {}", in(reg) BLOCK.0.get(), options(nostack)) };
}

struct Worker {
    index: usize,
    /// The CPU it asks for.
    home: u32,
    cpus: u32,
    offer: Offer,
    cipher: Option<Cipher>,
    generation: u32,
    random: u64,
    bench: Bench,
}

/// What a failing worker or its handler does.
pub fn fail(index: usize, why: &Text) -> ! {
    shared().workers[index].fail(why);
    sys::exit(1)
}

/// The life of worker `index`, until the stress is over.
pub fn live(index: usize, home: u32, cpus: u32, offer: Offer) -> ! {
    let cipher = match offer.ciphers.then(Cipher::new).transpose() {
        Ok(cipher) => cipher,
        Err(why) => fail(index, &why),
    };
    let mut worker = Worker {
        index,
        home,
        cpus,
        offer,
        cipher,
        generation: 0,
        random: 0x9e37_79b9_7f4a_7c15 ^ (index as u64 + 1) << 32,
        bench: Bench::new(),
    };
    while !shared().stop.load(SeqCst) {
        if let Err(why) = worker.step() {
            fail(index, &why);
        }
    }
    sys::exit(0)
}

impl Worker {
    fn random(&mut self, below: u64) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn step(&mut self) -> Result<(), Text> {
        let counts = &shared().workers[self.index].counts;
        // The CPU may be off just now: Linux then runs this process elsewhere.
        let at_home = sys::set_affinity(1 << self.home).is_ok() && sys::cpu() == self.home;
        if !at_home {
            counts.migrations.fetch_add(1, Relaxed);
        }
        // Everything in turn, each with whatever happens to come.
        let turn = self.generation as usize % self.offer.patterns().count();
        let filled = self.offer.patterns().nth(turn).unwrap_or(Filled::Fpsimd);
        let way = self.random(self.offer.ways().count() as u64) as usize;
        let between = self.offer.ways().nth(way).unwrap_or(Between::Yield);
        counts.round[0].store(between as u32, Relaxed);
        counts.round[1].store(filled.number() as u32, Relaxed);
        counts.rounds.fetch_add(1, Relaxed);
        self.round(between, filled)?;
        counts.fills.fetch_add(1, Relaxed);
        if at_home {
            counts.patterns[filled.number()].fetch_add(1, Relaxed);
            counts.between[between as usize].fetch_add(1, Relaxed);
        }
        counts.signals.store(signal::count(), Relaxed);
        counts.preemptions.store(sys::preemptions(), Relaxed);
        Ok(())
    }

    /// The lengths, and the mode, that the registers are filled in.
    fn prepare(&self, filled: Filled, between: Between) -> Result<(), Text> {
        let (asked, given, found) = match filled {
            Filled::Fpsimd => return Ok(()),
            Filled::Sve(vq) => (vq, sys::set_vl(vq.vl_bytes()), rdvl()),
            Filled::Streaming(vq) => (vq, sys::set_svl(vq.vl_bytes()), sme::rdsvl()),
        };
        match given {
            Ok(vl) if vl == asked.vl_bytes() && found == asked => {}
            Ok(vl) => fail!("asked for {filled}, got {vl}, and found {}", found.vl_bytes()),
            Err(error) => fail!("{filled} refused: {error:?}"),
        }
        if let Filled::Streaming(_) = filled {
            // A system call ends streaming mode, and leaves ZA.
            sme::set_svcr(if between.has_system_calls() { ZA } else { SM | ZA });
        }
        Ok(())
    }

    fn round(&mut self, between: Between, filled: Filled) -> Result<(), Text> {
        let micros = 200 + self.random(3000);
        // Before streaming mode is on: a system call ends it. If it comes too early the handler asks for another.
        if matches!(between, Between::Signal | Between::Rewrite) {
            sys::alarm(1 + self.random(2000));
        }
        self.prepare(filled, between)?;
        self.generation += 1;
        let begun = self.generation;
        let tag = Tag { owner: owner(self.index), generation: self.generation };
        self.fill(tag, filled, between);
        if !between.has_system_calls() {
            signal::full(self.generation, filled, self.offer.fa64, between == Between::Rewrite);
        }
        match between {
            Between::Preemption => {
                displace();
                match tagged::is() {
                    true => tagged::hold(tag, micros)?,
                    false => clock::spin(micros),
                }
            }
            Between::Displacement => {
                for _ in 0..4 {
                    displace();
                    clock::spin(micros / 8);
                    // The first use of FP brings them back.
                    regs::status();
                    clock::spin(micros / 8);
                }
            }
            // Init sees it if none comes.
            Between::Signal | Between::Rewrite => while !signal::taken() {},
            Between::Yield => {
                sys::yield_now();
                sys::sleep_micros(1 + micros / 4);
            }
            Between::Fork => self.fork(filled)?,
            Between::Migration => {
                let other = self.random(self.cpus.into()) as u32;
                // It may be off.
                if sys::set_affinity(1 << other).is_ok() {
                    shared().workers[self.index].counts.migrations.fetch_add(1, Relaxed);
                }
                clock::spin(micros / 4);
            }
            Between::Cipher => {
                if let Some(cipher) = &mut self.cipher {
                    cipher.use_it()?;
                }
            }
        }
        // Only a rewriting handler changes the generation.
        self.generation = if between.has_system_calls() { self.generation } else { signal::done() };
        let tag = Tag { generation: self.generation, ..tag };
        self.check(tag, filled, between, begun).map_err(|mismatch| {
            text(format_args!("{filled}, generation {}, {between:?}: {mismatch}", tag.generation))
        })
    }

    fn fill(&mut self, tag: Tag, filled: Filled, between: Between) {
        match filled {
            Filled::Fpsimd => self.bench.fill(tag, Width::Fpsimd),
            Filled::Sve(_) => self.bench.fill(tag, Width::Sve),
            Filled::Streaming(_) => {
                self.bench.fill_za(tag);
                sme::set_tpidr2(u64::from(tag.generation));
                match between.has_system_calls() {
                    true => self.bench.fill(tag, Width::Fpsimd),
                    false => self.bench.fill_streaming(tag, self.offer.fa64),
                }
            }
        }
    }

    /// `begun`: the generation that was filled in, which TPIDR2_EL0 keeps.
    fn check(
        &mut self,
        tag: Tag,
        filled: Filled,
        between: Between,
        begun: u32,
    ) -> Result<(), Text> {
        let calls = between.has_system_calls();
        let kept = if calls { Kept::Fpsimd } else { Kept::All };
        let found = match filled {
            Filled::Fpsimd => self.bench.check(tag, Width::Fpsimd, kept, &KNOWN),
            Filled::Sve(_) => self.bench.check(tag, Width::Sve, kept, &KNOWN),
            Filled::Streaming(_) => {
                let (mode, wanted) = (sme::svcr(), if calls { ZA } else { SM | ZA });
                if mode != wanted {
                    fail!("SVCR is {mode:#x}, not {wanted:#x}");
                }
                let generation = sme::tpidr2();
                let found = match calls {
                    true => self.bench.check(tag, Width::Fpsimd, Kept::All, &KNOWN),
                    false => self.bench.check_streaming(tag, self.offer.fa64, &KNOWN),
                };
                let found = found.and_then(|()| self.bench.check_za(tag, &KNOWN));
                // What follows is not in streaming mode.
                sme::set_svcr(0);
                if found.is_ok() && generation != u64::from(begun) {
                    fail!("TPIDR2_EL0 is {generation}, not {begun}");
                }
                found
            }
        };
        found.map_err(|mismatch| text(format_args!("{mismatch}")))
    }

    /// A child finds its parent's V0-V31, and uses the registers for itself.
    fn fork(&mut self, filled: Filled) -> Result<(), Text> {
        let width = if let Filled::Sve(_) = filled { Width::Sve } else { Width::Fpsimd };
        let parents = Tag { owner: owner(self.index), generation: self.generation };
        match sys::fork() {
            Err(error) => fail!("fork: {error:?}"),
            Ok(Some(child)) => match sys::wait(child) {
                Ok(Ended::Exit(0)) => {
                    shared().workers[self.index].counts.forks.fetch_add(1, Relaxed);
                    Ok(())
                }
                Ok(ended) => {
                    let said = shared().workers[self.index].message();
                    fail!("child: {ended:?} {}", said.as_deref().unwrap_or(""))
                }
                Err(error) => fail!("wait: {error:?}"),
            },
            Ok(None) => {
                let tag = Tag { owner: child_owner(self.index), ..parents };
                if let Filled::Streaming(_) = filled {
                    // Whether a child has its parent's ZA has changed from one Linux to another.
                    sme::set_svcr(0);
                }
                let result =
                    self.bench.check(parents, width, Kept::Fpsimd, &KNOWN).and_then(|()| {
                        self.bench.fill(tag, width);
                        clock::spin(300);
                        displace();
                        self.bench.check(tag, width, Kept::All, &KNOWN)
                    });
                match result {
                    Ok(()) => sys::exit(0),
                    Err(mismatch) => {
                        fail(self.index, &text(format_args!("after fork: {mismatch}")))
                    }
                }
            }
        }
    }
}
