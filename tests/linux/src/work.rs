//! What has to happen before the stress is over, and what of it is still missing.
//!
//! The stress ends by work, not by time: how much a second is worth is up to the neighbours of the
//! machine that emulates this one. Each vector length that Linux offers has to be used so often by the
//! processes of each CPU, on that CPU; each thing that can come between filling and looking has to have
//! come there so often; each CPU but the first has to have gone and come so often. Nothing else ends it
//! well. What ends it badly is no clock either but [`Watch`]: init's own turns, in which a process, or
//! the whole, did not get on.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use crate::filled::{Filled, Offer};
use crate::say::{Text, text};
use crate::stress::{MAX_CPUS, MAX_WORKERS, shared};
use crate::worker::{Between, Counts};

/// Turns of init in which something must have got on. Each takes a sleep, so that this is a minute at
/// least, and longer where the machine that emulates this one is slow: then init's turns are, too.
const PATIENCE: u64 = 2000;

/// Of what is missing, as much is named.
const NAMED: usize = 4;

/// All that has to be done.
pub struct Work {
    /// CPUs.
    pub cpus: u32,
    /// Processes, dealt out to the CPUs in turn.
    pub count: usize,
    /// What there is to fill, and what can happen meanwhile.
    pub offer: Offer,
    /// How often each thing has to happen.
    pub times: u64,
}

/// A thing that has to happen.
enum Thing {
    /// A pattern.
    Filled(Filled),
    Between(Between),
    /// A signal, whenever it came.
    Signal,
    /// A process lost its CPU to another one.
    Preemption,
    HotPlug,
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filled(filled) => filled.fmt(f),
            Self::Between(between) => write!(f, "{between:?}"),
            Self::Signal => f.write_str("signals"),
            Self::Preemption => f.write_str("preemptions"),
            Self::HotPlug => f.write_str("off and on"),
        }
    }
}

impl Work {
    /// What the processes of one CPU have done.
    pub fn of_cpu(&self, cpu: u32) -> impl Iterator<Item = &'static Counts> {
        let (cpus, count) = (self.cpus, self.count);
        (0..count)
            .filter(move |&index| home(index, cpus) == cpu)
            .map(|index| &shared().workers[index].counts)
    }

    /// Calls `f` with each thing that has to happen on each CPU, and how often it has.
    fn each(&self, plugged: &[u64; MAX_CPUS], f: &mut dyn FnMut(u32, Thing, u64)) {
        for cpu in 0..self.cpus {
            for filled in self.offer.patterns() {
                let at = filled.number();
                let sum = self.of_cpu(cpu).map(|counts| counts.patterns[at].load(Relaxed)).sum();
                f(cpu, Thing::Filled(filled), sum);
            }
            for between in self.offer.ways() {
                let at = between as usize;
                let sum = self.of_cpu(cpu).map(|counts| counts.between[at].load(Relaxed)).sum();
                f(cpu, Thing::Between(between), sum);
            }
            let signals = self.of_cpu(cpu).map(|counts| counts.signals.load(Relaxed)).sum();
            f(cpu, Thing::Signal, signals);
            // A process that has a CPU for itself need not lose it.
            if self.count > self.cpus as usize {
                let lost = self.of_cpu(cpu).map(|counts| counts.preemptions.load(Relaxed)).sum();
                f(cpu, Thing::Preemption, lost);
            }
            if cpu > 0 {
                f(cpu, Thing::HotPlug, plugged[cpu as usize]);
            }
        }
    }

    /// How much is done, of how much.
    pub fn progress(&self, plugged: &[u64; MAX_CPUS]) -> (u64, u64) {
        let (mut done, mut total) = (0, 0);
        self.each(plugged, &mut |_, _, times| {
            done += times.min(self.times);
            total += self.times;
        });
        (done, total)
    }

    /// What is still missing.
    pub fn missing(&self, plugged: &[u64; MAX_CPUS]) -> Text {
        let mut list = Text::new();
        let mut missing = 0;
        self.each(plugged, &mut |cpu, thing, times| {
            if times < self.times {
                missing += 1;
                if missing <= NAMED {
                    // What doesn't fit is cut.
                    let _ = write!(list, "CPU {cpu}: {thing} {times} of {} times, ", self.times);
                }
            }
        });
        match missing.saturating_sub(NAMED) {
            0 => text(format_args!("{}", list.trim_end_matches(", "))),
            more => text(format_args!("{list}and {more} things more")),
        }
    }
}

/// The CPU that a process asks for.
pub const fn home(index: usize, cpus: u32) -> u32 {
    index as u32 % cpus
}

/// Sees whether all get on, by init's turns.
pub struct Watch {
    /// What each process had begun when it was last seen to get on, and when that was.
    seen: [(u64, u64); MAX_WORKERS],
    /// The same of the whole.
    whole: (u64, u64),
}

/// Who doesn't get on.
pub enum Stuck {
    /// This process.
    Process(usize),
    /// All work, but not at what is missing.
    Whole,
}

impl Watch {
    pub const fn new() -> Self {
        Self { seen: [(0, 0); MAX_WORKERS], whole: (0, 0) }
    }

    /// Who has not got on for too long, if this is turn `turn` and so much of so much is done.
    pub fn look(&mut self, count: usize, (done, total): (u64, u64), turn: u64) -> Option<Stuck> {
        let late = |seen: &mut (u64, u64), now: u64| {
            if seen.0 != now {
                *seen = (now, turn);
            }
            turn - seen.1 > PATIENCE
        };
        for (index, seen) in self.seen[..count].iter_mut().enumerate() {
            if late(seen, shared().workers[index].counts.rounds.load(Relaxed)) {
                return Some(Stuck::Process(index));
            }
        }
        (late(&mut self.whole, done) && done < total).then_some(Stuck::Whole)
    }
}
