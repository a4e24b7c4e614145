//! The log of a test build (feature `transition-log`): every transition, numbered while the lock is
//! held that makes it one step, with the state that it touched ([`umbra_shared::record`]). It lies in
//! hyp's own memory; whoever reads it has the machine's RAM from outside.
//!
//! Without the feature all of this is nothing.

use umbra_shared::call::Args;
#[cfg(not(feature = "transition-log"))]
use umbra_shared::record::FpState;
use umbra_shared::record::Kind;

/// A transition as its handler knows it.
#[derive(Clone, Copy, Debug)]
pub struct Transition {
    /// What it is.
    pub kind: Kind,
    /// See [`umbra_shared::record::Record`].
    pub function: u64,
    /// See there.
    pub args: Args,
    /// See there.
    pub result: u64,
    /// See there.
    pub results: [u64; 3],
}

impl Transition {
    /// One without a result.
    pub const fn new(kind: Kind, args: Args) -> Self {
        Self { kind, function: 0, args, result: 0, results: [0; 3] }
    }
}

#[cfg(feature = "transition-log")]
pub use real::{forget, locked, note, touched, write};

/// A lock has been taken that the transition of this CPU takes effect under.
#[cfg(not(feature = "transition-log"))]
#[inline(always)]
pub fn locked() {}

/// The transition is over: `cpu` says what the CPU's FP state is now, and which vCPU is loaded there.
#[cfg(not(feature = "transition-log"))]
#[inline(always)]
pub fn write(_: impl FnOnce() -> (FpState, u64), _: impl FnOnce() -> Transition) {}

/// A transition begins.
#[cfg(not(feature = "transition-log"))]
#[inline(always)]
pub fn forget() {}

#[cfg(feature = "transition-log")]
mod real {
    use super::Transition;
    use crate::arch::MAX_CPUS;
    use crate::arch::percpu::PerCpu;
    use core::cell::UnsafeCell;
    use core::sync::atomic::{AtomicU64, Ordering};
    use umbra_shared::record::{Change, FpState, Kind, Record, TOUCHED};

    /// Records that fit. When the log is full the rest is not written, only counted.
    const RECORDS: usize = 1 << 16;

    /// The log. Its symbols are how a reader outside finds it.
    #[repr(transparent)]
    struct Log(UnsafeCell<[Record; RECORDS]>);

    // SAFETY: each record is written once, by the CPU that took its index.
    unsafe impl Sync for Log {}

    const EMPTY: Record = Record {
        number: 0,
        what: 0,
        function: 0,
        args: [0; 7],
        result: 0,
        results: [0; 3],
        fp: 0,
        loaded: 0,
        changes: 0,
        touched: [0; TOUCHED],
    };

    // SAFETY: no other symbol of this name exists.
    #[unsafe(no_mangle)]
    static UMBRA_LOG: Log = Log(UnsafeCell::new([EMPTY; RECORDS]));

    /// Records taken, those that no longer fitted included.
    // SAFETY: no other symbol of this name exists.
    #[unsafe(no_mangle)]
    static UMBRA_LOG_COUNT: AtomicU64 = AtomicU64::new(0);

    static NUMBER: AtomicU64 = AtomicU64::new(0);

    /// What a CPU's transition has collected so far.
    struct Pending {
        number: AtomicU64,
        changes: AtomicU64,
        touched: [AtomicU64; TOUCHED],
    }

    static PENDING: [Pending; MAX_CPUS] = [const {
        Pending {
            number: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            touched: [const { AtomicU64::new(0) }; TOUCHED],
        }
    }; MAX_CPUS];

    fn pending() -> Option<&'static Pending> {
        PerCpu::current_index().and_then(|cpu| PENDING.get(cpu))
    }

    fn next() -> u64 {
        NUMBER.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// A lock has been taken that the transition of this CPU takes effect under.
    pub fn locked() {
        if let Some(pending) = pending() {
            pending.number.store(next(), Ordering::Relaxed);
        }
    }

    /// A transition begins.
    pub fn forget() {
        if let Some(pending) = pending() {
            pending.number.store(0, Ordering::Relaxed);
            pending.changes.store(0, Ordering::Relaxed);
        }
    }

    /// The page states that the transition has changed, while memory's lock is held.
    pub fn touched(changes: impl Iterator<Item = Change>) {
        let Some(pending) = pending() else { return };
        let mut count = pending.changes.load(Ordering::Relaxed) as usize;
        for change in changes {
            if let Some(place) = pending.touched.get(count) {
                place.store(change.encode(), Ordering::Relaxed);
            }
            count += 1;
        }
        pending.changes.store(count as u64, Ordering::Relaxed);
    }

    /// The transition is over: `cpu` says what the CPU's FP state is now, and which vCPU is loaded there.
    pub fn write(cpu: impl FnOnce() -> (FpState, u64), transition: impl FnOnce() -> Transition) {
        let (Some(pending), Some(number_of_cpu)) = (pending(), PerCpu::current_index()) else {
            return;
        };
        let Transition { kind, function, args, result, results } = transition();
        let (fp, loaded) = cpu();
        let number = match pending.number.load(Ordering::Relaxed) {
            // No lock was needed: whatever order it has among others is right.
            0 => next(),
            number => number,
        };
        let changes = pending.changes.load(Ordering::Relaxed);
        let mut touched = [0; TOUCHED];
        for (to, from) in touched.iter_mut().zip(&pending.touched).take(changes as usize) {
            *to = from.load(Ordering::Relaxed);
        }
        forget();
        put(Record {
            number,
            what: kind as u64 | (number_of_cpu as u64) << 8,
            function,
            args,
            result,
            results,
            fp: fp.encode(),
            loaded,
            changes,
            touched,
        });
    }

    fn put(record: Record) {
        let index = UMBRA_LOG_COUNT.fetch_add(1, Ordering::SeqCst) as usize;
        if index < RECORDS {
            // SAFETY: the index is ours alone and inside; no reference to the array is ever made.
            unsafe { UMBRA_LOG.0.get().cast::<Record>().add(index).write(record) };
        }
    }

    /// A record that no CPU's transition is behind: what there is at first.
    pub fn note(kind: Kind, args: [u64; 7]) {
        put(Record { number: next(), what: kind as u64, args, ..EMPTY });
    }
}
