//! The end, as it is decided: one CPU ends the machine, all others stop for it.
//!
//! Whoever is first claims the end; nobody can take it back. A CPU that asks too, or comes by, stops
//! and says so. The one that ends the machine waits for those that are at hyp or below it: what a CPU
//! does at EL2 it ends with a return to EL1, where nothing is mapped any more (`arch::end`), so it is
//! back at once. It doesn't wait for ever: a CPU that sleeps at EL1 and that nothing wakes has no
//! memory to read or to write.

#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering};

/// Who claims the end: a CPU's number, or nothing yet if it is so early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who(u64);

impl Who {
    /// This CPU.
    pub const fn new(cpu: Option<usize>) -> Self {
        match cpu {
            Some(cpu) => Self(cpu as u64 + 2),
            None => Self(1),
        }
    }

    /// Its bit in a set of CPUs.
    const fn bit(self) -> u64 {
        if self.0 >= 2 { 1 << (self.0 - 2) } else { 0 }
    }
}

/// What comes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The end is this CPU's, from now on.
    Mine,
    /// It was already: something went wrong while it ended the machine.
    Again,
    /// It is another's: stop.
    Anothers,
}

/// The state of the end.
#[derive(Debug)]
pub struct Stopping {
    /// Who has claimed it; zero: nobody.
    who: AtomicU64,
    /// CPUs that are at hyp or below it, and not in firmware.
    here: AtomicU64,
    /// CPUs that have stopped.
    stopped: AtomicU64,
}

impl Stopping {
    /// Nobody has claimed the end, no CPU is here.
    #[must_use]
    pub const fn new() -> Self {
        Self { who: AtomicU64::new(0), here: AtomicU64::new(0), stopped: AtomicU64::new(0) }
    }

    /// Claims the end.
    pub fn claim(&self, me: Who) -> Claim {
        match self.who.compare_exchange(0, me.0, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Claim::Mine,
            Err(who) if who == me.0 => Claim::Again,
            Err(_) => Claim::Anothers,
        }
    }

    /// Whether another CPU ends the machine.
    pub fn must_stop(&self, me: Who) -> bool {
        let who = self.who.load(Ordering::SeqCst);
        who != 0 && who != me.0
    }

    /// A CPU has come from firmware; then it asks whether it [must stop](Self::must_stop). Either the
    /// one that ends the machine sees it here, or it sees that the machine ends.
    pub fn arrive(&self, cpu: usize) {
        self.here.fetch_or(1 << cpu, Ordering::SeqCst);
    }

    /// A CPU goes to firmware, and writes nothing any more until it [arrives](Self::arrive) again.
    pub fn leave(&self, cpu: usize) {
        self.here.fetch_and(!(1 << cpu), Ordering::SeqCst);
    }

    /// A CPU has stopped: it writes nothing any more.
    pub fn stop(&self, me: Who) {
        self.stopped.fetch_or(me.bit(), Ordering::SeqCst);
    }

    /// CPUs that the one that ends the machine waits for.
    pub fn awaited(&self, me: Who) -> u64 {
        self.here.load(Ordering::SeqCst) & !self.stopped.load(Ordering::SeqCst) & !me.bit()
    }
}

impl Default for Stopping {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: Who = Who::new(None);

    fn cpu(n: usize) -> Who {
        Who::new(Some(n))
    }

    #[test]
    fn the_first_ends_the_machine() {
        let stopping = Stopping::new();
        assert!(!stopping.must_stop(cpu(0)) && !stopping.must_stop(EARLY));
        assert_eq!(stopping.claim(cpu(3)), Claim::Mine);
        assert_eq!(stopping.claim(cpu(0)), Claim::Anothers);
        assert_eq!(stopping.claim(EARLY), Claim::Anothers);
        assert_eq!(stopping.claim(cpu(3)), Claim::Again, "it died over its last words");
        assert!(stopping.must_stop(cpu(0)) && stopping.must_stop(EARLY));
        assert!(!stopping.must_stop(cpu(3)));
    }

    #[test]
    fn it_waits_for_those_that_are_here() {
        let stopping = Stopping::new();
        (0..4).chain([63]).for_each(|n| stopping.arrive(n));
        stopping.leave(2);
        assert_eq!(stopping.claim(cpu(1)), Claim::Mine);
        assert_eq!(stopping.awaited(cpu(1)), 1 << 63 | 0b1001);
        stopping.stop(cpu(0));
        stopping.stop(cpu(63));
        assert_eq!(stopping.awaited(cpu(1)), 0b1000);
        // Out of firmware, in the middle of it.
        stopping.arrive(2);
        assert!(stopping.must_stop(cpu(2)));
        assert_eq!(stopping.awaited(cpu(1)), 0b1100);
        stopping.stop(cpu(2));
        stopping.stop(cpu(3));
        assert_eq!(stopping.awaited(cpu(1)), 0);
        stopping.stop(EARLY);
    }

    #[test]
    fn racing_claims_have_one_winner_and_the_others_stop() {
        for _ in 0..200 {
            let stopping = Stopping::new();
            (0..4).for_each(|n| stopping.arrive(n));
            let wins = std::thread::scope(|scope| {
                let claim = |n| {
                    let stopping = &stopping;
                    scope.spawn(move || match stopping.claim(cpu(n)) {
                        Claim::Mine => {
                            while stopping.awaited(cpu(n)) != 0 {
                                std::thread::yield_now();
                            }
                            1
                        }
                        Claim::Anothers => {
                            assert!(stopping.must_stop(cpu(n)));
                            stopping.stop(cpu(n));
                            0
                        }
                        Claim::Again => panic!("claimed once"),
                    })
                };
                let threads: Vec<_> = (0..4).map(claim).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
            });
            assert_eq!(wins, 1);
        }
    }

    /// Whoever arrives sees that the machine ends, or is waited for.
    #[test]
    fn nobody_slips_through() {
        for _ in 0..500 {
            let stopping = Stopping::new();
            stopping.arrive(0);
            std::thread::scope(|scope| {
                let comes = scope.spawn(|| {
                    stopping.arrive(1);
                    stopping.must_stop(cpu(1))
                });
                stopping.claim(cpu(0));
                let awaited = stopping.awaited(cpu(0)) == 0b10;
                assert!(comes.join().unwrap() || awaited);
            });
        }
    }
}
