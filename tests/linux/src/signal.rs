//! Signals: a handler that uses every register, looks at what it interrupted, and may change it.
//!
//! A process has one thread and signals interrupt it at any instruction, so what handler and program
//! tell each other is in atomics.

use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use umbra_patterns::model::ZA;
use umbra_patterns::pattern::Kept;
use umbra_patterns::regs::{Bench, Width, sme};
use umbra_patterns::tag::Tag;

use crate::clock;
use crate::fail;
use crate::filled::Filled;
use crate::frame::Frame;
use crate::say::{Text, text};
use crate::sys::{self, Signal};
use crate::worker::{KNOWN, displace, handler_owner, owner};

/// Which worker this process is.
static WORKER: AtomicUsize = AtomicUsize::new(0);
/// What the program has filled, by its number.
static FILLED: AtomicUsize = AtomicUsize::new(0);
/// Streaming mode has FFR.
static FA64: AtomicBool = AtomicBool::new(false);
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// The program's registers are full, and it has made no system call since.
static FULL: AtomicBool = AtomicBool::new(false);
/// The handler is to put other patterns into its frame.
static REWRITE: AtomicBool = AtomicBool::new(false);
/// Signals taken while the registers were full.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// All signals taken.
static ALL: AtomicU64 = AtomicU64::new(0);

/// Lets the handler know who it works for: this process, or the next that it makes.
pub fn begin(worker: usize) -> Result<(), Text> {
    WORKER.store(worker, SeqCst);
    for signal in [sys::SIGALRM, sys::SIGUSR1] {
        if let Err(error) = sys::handle(signal, handler) {
            return Err(text(format_args!("no handler for signal {signal}: {error:?}")));
        }
    }
    Ok(())
}

/// Signals taken so far.
pub fn count() -> u64 {
    ALL.load(SeqCst)
}

/// The registers are full now, with this generation of the worker's pattern.
pub fn full(generation: u32, filled: Filled, fa64: bool, rewrite: bool) {
    GENERATION.store(generation, SeqCst);
    FILLED.store(filled.number(), SeqCst);
    FA64.store(fa64, SeqCst);
    REWRITE.store(rewrite, SeqCst);
    TAKEN.store(0, SeqCst);
    FULL.store(true, SeqCst);
}

/// They may change from now on. Returns the generation that they hold.
pub fn done() -> u32 {
    FULL.store(false, SeqCst);
    GENERATION.load(SeqCst)
}

/// Whether a signal came while the registers were full.
pub fn taken() -> bool {
    TAKEN.load(SeqCst) != 0
}

/// The handler. What it finds wrong ends the process.
extern "C" fn handler(signal: Signal, _info: *const u8, context: *mut u8) {
    let worker = WORKER.load(SeqCst);
    ALL.fetch_add(1, SeqCst);
    let result = if FULL.load(SeqCst) {
        TAKEN.fetch_add(1, SeqCst);
        // SAFETY: this handler's own frame.
        unsafe { Frame::new(context) }.and_then(|frame| look(frame, worker))
    } else {
        if signal == sys::SIGALRM {
            // Too early for the program: once more.
            sys::alarm(1000);
        }
        Ok(())
    };
    if let Err(why) = result.and_then(|()| use_registers(worker)) {
        crate::worker::fail(worker, &why);
    }
}

fn look(mut frame: Frame<'_>, worker: usize) -> Result<(), Text> {
    let generation = GENERATION.load(SeqCst);
    let tag = Tag { owner: owner(worker), generation };
    frame.check(tag, Filled::numbered(FILLED.load(SeqCst)), FA64.load(SeqCst), &KNOWN)?;
    if REWRITE.load(SeqCst) {
        let generation = generation + 1;
        GENERATION.store(generation, SeqCst);
        frame.fill(Tag { generation, ..tag });
    }
    Ok(())
}

/// The handler's own patterns, for long enough to be interrupted.
fn use_registers(worker: usize) -> Result<(), Text> {
    let tag = Tag { owner: handler_owner(worker), generation: ALL.load(SeqCst) as u32 };
    let filled = Filled::numbered(FILLED.load(SeqCst));
    let width = if let Filled::Sve(_) = filled { Width::Sve } else { Width::Fpsimd };
    let streaming = matches!(filled, Filled::Streaming(_));
    let mut bench = Bench::new();
    if streaming {
        // Linux begins a handler with neither.
        let mode = sme::svcr();
        if mode != 0 {
            fail!("a signal handler begins with SVCR {mode:#x}");
        }
        sme::set_svcr(ZA);
        bench.fill_za(tag);
    }
    bench.fill(tag, width);
    displace();
    clock::spin(50);
    let found = bench.check(tag, width, Kept::All, &KNOWN);
    let found = found.and_then(|()| if streaming { bench.check_za(tag, &KNOWN) } else { Ok(()) });
    if streaming {
        sme::set_svcr(0);
    }
    found.map_err(|mismatch| text(format_args!("in a signal handler, {filled}: {mismatch}")))
}
