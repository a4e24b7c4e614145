//! What each vCPU's thread passes before it enters the guest, and where it waits while the machine is paused.
//!
//! Who closes the gate kicks the threads then: whoever is in the guest leaves it, and whoever is about to enter finds
//! that out by KVM's `immediate_exit`. So all of them come here.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is wanted of all vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Run,
    Pause,
    Stop,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    /// Threads that have not ended.
    live: usize,
    /// Those of them that wait here.
    waiting: usize,
}

/// That a thread has not ended. It goes with the thread's stack, however that is left.
#[derive(Debug)]
pub struct Live(Arc<Gate>);

impl Live {
    /// One of the threads that this gate is for.
    pub fn new(gate: Arc<Gate>) -> Self {
        Self(gate)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The gate.
#[derive(Debug)]
pub struct Gate {
    /// Nobody has to look any closer.
    open: AtomicBool,
    stopping: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// One that is open for so many threads.
    pub fn new(threads: usize) -> Self {
        Self {
            open: true.into(),
            stopping: false.into(),
            state: Mutex::new(State { wanted: Wanted::Run, live: threads, waiting: 0 }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        // Nothing comes after the end.
        if state.wanted != Wanted::Stop {
            state.wanted = wanted;
            self.open.store(wanted == Wanted::Run, SeqCst);
            self.stopping.store(wanted == Wanted::Stop, SeqCst);
            self.changed.notify_all();
        }
    }

    /// A thread waits until it may enter the guest. Returns whether it may, or is to end.
    pub fn pass(&self) -> bool {
        if self.open.load(SeqCst) {
            return true;
        }
        let mut state = self.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while state.wanted == Wanted::Pause {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        state.wanted == Wanted::Run
    }

    /// A thread ends.
    fn leave(&self) {
        self.lock().live -= 1;
        self.changed.notify_all();
    }

    /// Closes it, kicks, and waits until all threads are here. Returns whether they were within `patience`; if not it is open again.
    pub fn pause(&self, kick: impl Fn(), patience: Duration) -> bool {
        self.want(Wanted::Pause);
        kick();
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while state.waiting < state.live {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                drop(state);
                self.resume();
                return false;
            };
            state = self
                .changed
                .wait_timeout(state, left)
                .map_or_else(|error| error.into_inner().0, |(state, _)| state);
        }
        true
    }

    /// Opens it.
    pub fn resume(&self) {
        self.want(Wanted::Run);
    }

    /// Closes it for good: who comes here is to end. Who is in the guest has to be kicked.
    pub fn stop(&self) {
        self.want(Wanted::Stop);
    }

    /// Whether it is closed for good.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn nobody_moves_while_it_is_closed() {
        let (gate, moves) = (Gate::new(3), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while gate.pass() {
                        moves.fetch_add(1, SeqCst);
                        thread::yield_now();
                    }
                    gate.leave();
                });
            }
            for _ in 0..100 {
                assert!(gate.pause(|| {}, PATIENCE));
                let before = moves.load(SeqCst);
                thread::yield_now();
                assert_eq!(moves.load(SeqCst), before);
                gate.resume();
            }
            gate.pause(|| {}, PATIENCE);
            gate.stop();
        });
        assert!(gate.is_stopping());
        // Who has ended isn't waited for, and the end stays.
        assert!(gate.pause(|| {}, PATIENCE));
        gate.resume();
        assert!(!gate.pass());
    }

    #[test]
    fn who_panics_is_not_waited_for() {
        let gate = Arc::new(Gate::new(1));
        let live = Live::new(gate.clone());
        let thread = thread::spawn(move || {
            let _live = live;
            panic!("of this test");
        });
        assert!(thread.join().is_err());
        assert!(gate.pause(|| {}, PATIENCE));
    }

    #[test]
    fn patience_ends() {
        let gate = Gate::new(1);
        assert!(!gate.pause(|| {}, Duration::from_millis(1)));
        assert!(gate.pass());
    }
}
