//! Processes on every CPU, patterns in all of their registers, CPUs that go and come: until all of it
//! has happened often enough ([`crate::work`]), and for as long as a person asks for.

use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64};

use umbra_shared::vl::{Vq, VqSet};

use crate::cipher;
use crate::clock::{self, Deadline};
use crate::filled::{Filled, Offer};
use crate::say::{self, CText, Text};
use crate::start::Start;
use crate::sys::{self, Ended, File, Pid};
use crate::work::{Stuck, Watch, Work, home};
use crate::worker::{self, Between, Counts};
use crate::{fail, signal};

/// Processes at most.
pub const MAX_WORKERS: usize = 64;
/// CPUs at most.
pub const MAX_CPUS: usize = 16;
/// Between two things that init does to the others, in microseconds.
const PACE_MICROS: u64 = 30_000;
/// CPU hot-plug every so many of those.
const HOTPLUG_EVERY: u64 = 4;
/// How far we are is said every so many of those.
const TELL_EVERY: u64 = 16;

/// What all processes see.
pub struct Shared {
    /// Everybody is to end.
    pub stop: AtomicBool,
    /// Each worker's.
    pub workers: [Slot; MAX_WORKERS],
}

/// What a worker tells.
pub struct Slot {
    /// What it did.
    pub counts: Counts,
    /// Bytes of the message; zero: none.
    length: AtomicU32,
    message: UnsafeCell<[u8; 400]>,
}

// SAFETY: the message is written before its length is, by one process (`fail` ends it), and read after.
unsafe impl Sync for Slot {}

impl Slot {
    /// Says why the worker ends.
    pub fn fail(&self, why: &Text) {
        // A child's message stays: its parent fails because of it.
        if self.length.load(SeqCst) != 0 {
            return;
        }
        let bytes = why.as_bytes();
        // SAFETY: nobody reads the message before its length is there, and nobody else writes it: a
        // worker waits while its child lives.
        let message = unsafe { &mut *self.message.get() };
        message[..bytes.len()].copy_from_slice(bytes);
        self.length.store(bytes.len() as u32, SeqCst);
    }

    /// What it said.
    pub fn message(&self) -> Option<Text> {
        let length = self.length.load(SeqCst) as usize;
        // SAFETY: a length means that the message is complete and stays.
        let message = unsafe { &*self.message.get() };
        (length != 0).then(|| {
            let text = core::str::from_utf8(message.get(..length)?).ok()?;
            Text::from(text).ok()
        })?
    }
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(core::ptr::null_mut());

/// What all processes see.
pub fn shared() -> &'static Shared {
    // SAFETY: set by `run` before the first worker, to memory that stays mapped in all of them; zeroes
    // are valid, and everything in it is shared by atomics.
    unsafe { &*SHARED.load(SeqCst) }
}

/// The vector lengths that Linux has to offer.
pub fn vector_lengths(start: &Start) -> Result<VqSet, Text> {
    let mut set = VqSet::EMPTY;
    if start.has_sve() {
        for n in 1..=16 {
            let Some(vq) = Vq::new(n) else { continue };
            match sys::set_vl(vq.vl_bytes()) {
                Ok(vl) if vl == vq.vl_bytes() => set = set.with(vq),
                Ok(_) => {}
                Err(error) => fail!("PR_SVE_SET_VL {}: {error:?}", vq.vl_bytes()),
            }
        }
    }
    Ok(set)
}

/// The same in streaming mode: none without SME.
pub fn streaming_lengths(start: &Start) -> Result<VqSet, Text> {
    let mut set = VqSet::EMPTY;
    if start.has_sme() {
        for n in [1, 2, 4, 8, 16] {
            let Some(vq) = Vq::new(n) else { continue };
            match sys::set_svl(vq.vl_bytes()) {
                Ok(vl) if vl == vq.vl_bytes() => set = set.with(vq),
                Ok(_) => {}
                Err(error) => fail!("PR_SME_SET_VL {}: {error:?}", vq.vl_bytes()),
            }
        }
    }
    Ok(set)
}

/// A CPU off or on.
pub fn plug(cpu: u32, on: bool) -> Result<(), Text> {
    let path = CText::new(format_args!("/sys/devices/system/cpu/cpu{cpu}/online"))?;
    let written = File::write_only(&path).and_then(|file| file.write(if on { b"1" } else { b"0" }));
    match written {
        Ok(_) => Ok(()),
        Err(error) => {
            fail!("CPU {cpu} can't be turned {}: {error:?}", if on { "on" } else { "off" })
        }
    }
}

/// The stress, and its table.
pub fn run(start: &Start) -> Result<(), Text> {
    let cpus = start.number("cpus").unwrap_or(1).clamp(1, MAX_CPUS as u64) as u32;
    let per_cpu = start.number("processes").unwrap_or(2) as usize;
    let count = (cpus as usize * per_cpu).clamp(1, MAX_WORKERS);
    let offer = Offer {
        sve: vector_lengths(start)?,
        sme: streaming_lengths(start)?,
        fa64: start.has_fa64(),
        ciphers: start.has("ciphers"),
    };
    if offer.ciphers {
        cipher::check()?;
    }
    let work = Work { cpus, count, offer, times: start.number("times").unwrap_or(1) };
    match sys::shared_memory(size_of::<Shared>()) {
        Ok(memory) => SHARED.store(memory.cast(), SeqCst),
        Err(error) => fail!("no shared memory: {error:?}"),
    }
    let mut pids = [0; MAX_WORKERS];
    for (index, pid) in pids[..count].iter_mut().enumerate() {
        // Before it is there: a signal may come before it does anything.
        signal::begin(index)?;
        match sys::fork() {
            Ok(None) => worker::live(index, home(index, cpus), cpus, offer),
            Ok(Some(child)) => *pid = child,
            Err(error) => fail!("fork: {error:?}"),
        }
    }
    let mut plugged = [0; MAX_CPUS];
    let seconds = start.number("seconds").unwrap_or(0);
    let result = disturb(&pids[..count], &work, seconds, &mut plugged);
    if let Ok(Some(stuck)) = result {
        // Not to be waited for.
        table(&work, &plugged);
        fail!("{}; missing: {}", who(&stuck, &pids), work.missing(&plugged));
    }
    shared().stop.store(true, SeqCst);
    let ended = collect(&pids[..count]);
    table(&work, &plugged);
    result.map(drop).and(ended)
}

/// Sends signals and takes CPUs away, until all is done and so many seconds are over, or somebody is
/// stuck.
fn disturb(
    pids: &[Pid],
    work: &Work,
    seconds: u64,
    plugged: &mut [u64; MAX_CPUS],
) -> Result<Option<Stuck>, Text> {
    let end = Deadline::in_micros(seconds * 1_000_000);
    let begin = clock::ticks();
    let cpus = work.cpus;
    let mut watch = Watch::new();
    let mut turn = 0u64;
    loop {
        sys::sleep_micros(PACE_MICROS);
        sys::kill(pids[turn as usize % pids.len()], sys::SIGUSR1);
        if cpus > 1 && turn.is_multiple_of(HOTPLUG_EVERY) {
            let cpu = 1 + (turn / HOTPLUG_EVERY) as u32 % (cpus - 1);
            plug(cpu, false)?;
            sys::sleep_micros(PACE_MICROS);
            plug(cpu, true)?;
            plugged[cpu as usize] += 1;
        }
        if shared().workers.iter().any(|slot| slot.length.load(SeqCst) != 0) {
            // The worker says more when it is waited for.
            return Ok(None);
        }
        turn += 1;
        let (done, total) = work.progress(plugged);
        if turn.is_multiple_of(TELL_EVERY) {
            // Whichever of the two takes longer.
            let passed = ((clock::ticks() - begin) / clock::frequency()).min(seconds);
            let time_is_last = passed * total < done * seconds;
            let (now, all) = if time_is_last { (passed, seconds) } else { (done, total) };
            say::line(format_args!("@progress {now} {all}"));
        }
        if done == total && end.is_over() {
            return Ok(None);
        }
        let stuck = watch.look(work.count, (done, total), turn);
        if stuck.is_some() {
            return Ok(stuck);
        }
    }
}

/// Who is stuck, and at what.
fn who(stuck: &Stuck, pids: &[Pid]) -> Text {
    let &Stuck::Process(index) = stuck else {
        return say::text(format_args!("all processes get on, but not with what is missing"));
    };
    let ended = sys::has_ended(pids[index]);
    let [between, length] = &shared().workers[index].counts.round;
    let between = Between::KINDS[between.load(Relaxed) as usize];
    let filled = Filled::numbered(length.load(Relaxed) as usize);
    say::text(format_args!("process {index} is stuck in {between:?} with {filled} ({ended:?})"))
}

/// Waits for the workers: the first that failed.
fn collect(pids: &[Pid]) -> Result<(), Text> {
    let mut result = Ok(());
    for (index, &pid) in pids.iter().enumerate() {
        let why = match sys::wait(pid) {
            Ok(Ended::Exit(0)) => continue,
            Ok(ended) => {
                let said = shared().workers[index].message();
                let said = said.as_deref().unwrap_or("without a word");
                say::text(format_args!("process {index}: {said} ({ended:?})"))
            }
            Err(error) => say::text(format_args!("process {index}: {error:?}")),
        };
        say::line(format_args!("{why}"));
        result = result.and(Err(why));
    }
    result
}

fn table(work: &Work, plugged: &[u64; MAX_CPUS]) {
    for cpu in 0..work.cpus {
        let of = |field: fn(&Counts) -> &AtomicU64| -> u64 {
            work.of_cpu(cpu).map(|counts| field(counts).load(Relaxed)).sum()
        };
        say::line(format_args!(
            "@task cpu={cpu} processes={} fills={} signals={} forks={} preemptions={} \
             migrations={} hotplugs={}",
            work.of_cpu(cpu).count(),
            of(|counts| &counts.fills),
            of(|counts| &counts.signals),
            of(|counts| &counts.forks),
            of(|counts| &counts.preemptions),
            of(|counts| &counts.migrations),
            plugged[cpu as usize],
        ));
    }
}
