//! Signals: a handler that uses every register, looks at what it interrupted, and may change it.
//!
//! A process has one thread and signals interrupt it at any instruction, so what handler and program
//! tell each other is in atomics.

use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use umbra_patterns::pattern::Kept;
use umbra_patterns::regs::{Bench, Width, rdvl};
use umbra_patterns::tag::Tag;
use umbra_shared::vl::Vq;

use crate::clock;
use crate::frame::Frame;
use crate::say::{Text, text};
use crate::sys::{self, Signal};
use crate::worker::{KNOWN, displace, handler_owner, owner};

/// Which worker this process is.
static WORKER: AtomicUsize = AtomicUsize::new(0);
/// VL in the program's patterns; zero: V0-V31 only.
static VL: AtomicUsize = AtomicUsize::new(0);
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
pub fn full(generation: u32, vl: Option<Vq>, rewrite: bool) {
    GENERATION.store(generation, SeqCst);
    VL.store(vl.map_or(0, Vq::vl_bytes), SeqCst);
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
    let vq = Vq::from_vl(VL.load(SeqCst) as u64);
    let width = if vq.is_some() { Width::Sve } else { Width::Fpsimd };
    frame.check(tag, width, vq.unwrap_or(Vq::MIN), &KNOWN)?;
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
    let sve = VL.load(SeqCst) != 0;
    let width = if sve { Width::Sve } else { Width::Fpsimd };
    let mut bench = Bench::new();
    bench.fill(tag, width);
    displace();
    clock::spin(50);
    bench.check(tag, width, Kept::All, &KNOWN).map_err(|mismatch| {
        let vl = if sve { rdvl().vl_bytes() } else { 16 };
        text(format_args!("in a signal handler, VL {vl}: {mismatch}"))
    })
}
