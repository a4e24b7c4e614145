//! The program that is carried out, and whose turn it is.
//!
//! In replay mode exactly one CPU is on turn; it passes the turn on when its step is done. The others
//! wait in WFI, so that under counted instructions nothing but the program decides what is executed
//! when. In storm mode everybody is always on turn.

use super::{Mode, STEPS, Step};
use crate::{context::context, runner::Message, workers};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use umbra_host::kernel::{MAX_CPUS, power, smp, sync::Lock, sysreg, timer};

/// Seconds that anything may take.
const PATIENCE: u64 = 100;

struct Program {
    mode: Mode,
    steps: ArrayVec<Step, STEPS>,
}

static PROGRAM: Lock<Program> =
    Lock::new(Program { mode: Mode::Replay, steps: ArrayVec::new_const() });

/// Replay: the step on turn.
static TURN: AtomicUsize = AtomicUsize::new(0);
/// Storm: where each CPU is.
static PLACES: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
/// Replay: a CPU that had the turn and is going off; nothing goes on until it is off.
static DEPARTING: AtomicUsize = AtomicUsize::new(NOBODY);
const NOBODY: usize = usize::MAX;
/// CPUs that have turned themselves off.
static OFF: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
/// CPUs that have done all their steps.
static FINISHED: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];
static STOPPED: AtomicBool = AtomicBool::new(false);
static FAILURE: Lock<Option<(Option<usize>, Message)>> = Lock::new(None);
static DIGEST: AtomicU64 = AtomicU64::new(0);
static STARTED: AtomicU64 = AtomicU64::new(0);

/// A new program.
pub fn clear(mode: Mode) {
    let mut program = PROGRAM.lock();
    program.mode = mode;
    program.steps.clear();
}

/// Its next step.
pub fn push(step: Step) -> Result<(), ()> {
    PROGRAM.lock().steps.try_push(step).map_err(|_| ())
}

/// How many there are.
pub fn steps() -> usize {
    PROGRAM.lock().steps.len()
}

fn mode() -> Mode {
    PROGRAM.lock().mode
}

/// Whether this is a storm: then what other CPUs do can't be known.
pub fn is_storm() -> bool {
    mode() == Mode::Storm
}

/// From the beginning.
pub fn start() {
    TURN.store(0, Ordering::SeqCst);
    DEPARTING.store(NOBODY, Ordering::SeqCst);
    for cpu in 0..MAX_CPUS {
        PLACES[cpu].store(0, Ordering::SeqCst);
        FINISHED[cpu].store(false, Ordering::SeqCst);
        OFF[cpu].store(false, Ordering::SeqCst);
    }
    STOPPED.store(false, Ordering::SeqCst);
    *FAILURE.lock() = None;
    DIGEST.store(0xcbf2_9ce4_8422_2325, Ordering::SeqCst);
    STARTED.store(timer::now(), Ordering::SeqCst);
}

/// A failure: everybody stops. The first one counts.
pub fn fail(step: Option<usize>, why: Message) {
    FAILURE.lock().get_or_insert((step, why));
    STOPPED.store(true, Ordering::SeqCst);
    wake_all();
}

/// Why the program failed, and at which step.
pub fn failure() -> Option<(Option<usize>, Message)> {
    *FAILURE.lock()
}

/// Whether there is a failure anywhere.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// A number that two runs of one program share if they were the same run: made of what each step
/// led to and when it was over, in ticks of the counter from the start.
pub fn digest() -> u64 {
    DIGEST.load(Ordering::SeqCst)
}

fn digest_add(value: u64) {
    for byte in value.to_le_bytes() {
        let digest = DIGEST.load(Ordering::SeqCst);
        let digest = (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        DIGEST.store(digest, Ordering::SeqCst);
    }
}

fn wake_all() {
    for (cpu, off) in OFF[..context().cpus].iter().enumerate() {
        if cpu != smp::cpu() && !off.load(Ordering::SeqCst) {
            workers::wake(cpu);
        }
    }
}

/// The next step of this CPU and its number, when it is on turn; `None`: there is none.
pub fn next(cpu: usize) -> Option<(usize, Step)> {
    loop {
        if stopped() {
            return None;
        }
        let daif = sysreg::mask_interrupts();
        {
            let program = PROGRAM.lock();
            let from = match program.mode {
                Mode::Storm => PLACES[cpu].load(Ordering::SeqCst),
                Mode::Replay => TURN.load(Ordering::SeqCst),
            };
            let here = |step: &Step| usize::from(step.cpu) == cpu;
            let found = match program.mode {
                Mode::Storm => (from..).zip(&program.steps[from..]).find(|(_, step)| here(step)),
                Mode::Replay => {
                    program.steps.get(from).filter(|step| here(step)).map(|s| (from, s))
                }
            };
            if let Some((n, step)) = found {
                let step = *step;
                drop(program);
                sysreg::restore_interrupts(daif);
                let departing = DEPARTING.swap(NOBODY, Ordering::SeqCst);
                if departing != NOBODY && departing != cpu && OFF[departing].load(Ordering::SeqCst)
                {
                    wait_for_off(departing);
                }
                return Some((n, step));
            }
            let Some(step) = program.steps.get(from).filter(|_| program.mode == Mode::Replay)
            else {
                drop(program);
                sysreg::restore_interrupts(daif);
                return None;
            };
            let target = usize::from(step.cpu);
            drop(program);
            // Whoever had the turn may have gone off itself.
            if cpu == 0 && turn_on(target) {
                sysreg::restore_interrupts(daif);
                continue;
            }
        }
        // Masked, so that a call that comes before the WFI ends it.
        sysreg::wait_for_interrupt();
        sysreg::restore_interrupts(daif);
    }
}

/// Step `n` is done, with this outcome. The turn passes on.
pub fn done(cpu: usize, n: usize, outcome: u64) {
    if is_storm() {
        PLACES[cpu].store(n + 1, Ordering::SeqCst);
        return;
    }
    digest_add(n as u64);
    digest_add(outcome);
    digest_add(timer::now() - STARTED.load(Ordering::SeqCst));
    let next = PROGRAM.lock().steps.get(n + 1).map(|step| usize::from(step.cpu));
    TURN.store(n + 1, Ordering::SeqCst);
    match next {
        None => wake_all(),
        Some(next) if next != cpu => {
            // A program that lost the line which turns a CPU on is still a program.
            if !turn_on(next) {
                workers::wake(next);
            }
        }
        // It has just gone off: the boot CPU turns it on again.
        Some(next) if OFF[next].load(Ordering::SeqCst) => workers::wake(0),
        Some(_) => {}
    }
}

/// This CPU is about to turn itself off.
pub fn going_off(cpu: usize) {
    OFF[cpu].store(true, Ordering::SeqCst);
    if !is_storm() {
        DEPARTING.store(cpu, Ordering::SeqCst);
    }
}

fn wait_for_off(cpu: usize) {
    let affinity = context().machine.cpus[cpu];
    let gone = timer::wait_until(PATIENCE, || {
        power::affinity_info(affinity) == Ok(smccc::psci::AffinityState::Off)
    });
    assert!(gone, "CPU {cpu} does not go off");
}

/// Turns a CPU on if it has turned itself off.
pub fn turn_on(cpu: usize) -> bool {
    let was = OFF[cpu].compare_exchange(true, false, Ordering::SeqCst, Ordering::SeqCst);
    if was.is_err() {
        return false;
    }
    wait_for_off(cpu);
    let on = power::cpu_on(context().machine.cpus[cpu], smp::entry(), cpu as u64);
    assert!(on.is_ok(), "CPU_ON of CPU {cpu}: {on:?}");
    true
}

/// This CPU has no step left. The boot CPU waits for the others, and turns on who is off.
pub fn finish(cpu: usize) {
    FINISHED[cpu].store(true, Ordering::SeqCst);
    if cpu != 0 {
        return;
    }
    let all = timer::wait_until(PATIENCE, || {
        let waiting = |&cpu: &usize| !FINISHED[cpu].load(Ordering::SeqCst);
        match (0..context().cpus).find(waiting) {
            None => true,
            Some(cpu) => {
                turn_on(cpu);
                false
            }
        }
    });
    assert!(all, "a CPU does not finish");
}
