//! Carries random programs out (`umbra_fuzz`), and judges what comes of them.
//!
//! Every context has its own model of what its registers must hold: the host of each CPU, its
//! kernel-mode FP in a task and in interrupt handlers, and each vCPU, which keeps its own where nobody
//! else can look (`tests/guest`, driven). So a loss or a leak is noticed by the context that suffers
//! it, and is named by the tags of the patterns.
//!
//! Hypercalls that the program names one by one ([`calls`]) are judged by the specification, from outside.
//!
//! [`order`] decides who is on turn, [`cpu`] carries events out on a CPU, [`vms`] keeps the VMs,
//! [`kernel_fp`] is the host's kernel-mode FP. What is said on the console (`tools/src/fuzz`):
//!
//! ```text
//! @fuzz begin SEED
//! @fuzz ok SEED STEPS DIGEST
//! @fuzz failed SEED STEP WHY           the step's number in the program, or - for none
//! @cover KIND LIVE HOST-VL GUEST-VL COUNT
//! ```

mod calls;
mod cpu;
mod device;
mod guest32;
mod kernel_fp;
mod order;
mod vms;

use crate::{
    context::{self, context},
    host, ledger,
    runner::{self, catch},
    workers,
};
use core::sync::atomic::{AtomicU32, Ordering};
use umbra_fuzz::{
    coverage::Pair,
    program::{BLOCK, Line, Mode, PAGES, STEPS, Step},
};
use umbra_host::{
    emit,
    kernel::{exception, gic, initrd, machine::Machine, pages, power, timer},
};
use umbra_shared::call::MAX_PAGES_PER_CALL;

/// Pages that hypercalls with random arguments may do anything with: those that calls can name, and as
/// many as one call can take behind the last of them.
pub const JUNK_PAGES: u64 = PAGES as u64 + MAX_PAGES_PER_CALL;

static COVERAGE: [AtomicU32; Pair::COUNT] = [const { AtomicU32::new(0) }; Pair::COUNT];

/// An event has met a state.
fn cover(pair: Pair) {
    COVERAGE[pair.number()].fetch_add(1, Ordering::Relaxed);
}

/// Runs the programs in the initrd's file `programs`, until one fails.
pub fn main(machine: &'static Machine) -> ! {
    exception::set_hook(runner::hook);
    if let Err(why) = catch(|| context::init(machine)) {
        emit!("@verdict failed: {why}");
        power::off()
    }
    gic::set_handler(kernel_fp::interrupt);
    let verdict = match (initrd::file(machine, "programs"), initrd::file(machine, "guest")) {
        (Some(programs), Some(guest)) => all(programs, guest),
        _ => Err("the initrd has no files `programs` and `guest`"),
    };
    for (number, count) in COVERAGE.iter().enumerate() {
        let count = count.load(Ordering::Relaxed);
        if let (Some(pair), 1..) = (Pair::from_number(number), count) {
            emit!("@cover {pair} {count}");
        }
    }
    match verdict {
        Ok(()) => emit!("@verdict ok"),
        Err(why) => emit!("@verdict failed: {why}"),
    }
    power::off()
}

fn all(programs: &[u8], guest: &'static [u8]) -> Result<(), &'static str> {
    let text = core::str::from_utf8(programs).map_err(|_| "the programs are no text")?;
    let mut current = None;
    for line in text.lines() {
        match Line::parse(line) {
            Ok(Line::Program { seed, mode }) => {
                if let Some(seed) = current.replace(seed) {
                    one(seed, guest)?;
                }
                order::clear(mode);
            }
            Ok(Line::Step(step)) if usize::from(step.cpu) < context().cpus => {
                order::push(step).map_err(|()| "a program has too many steps")?;
            }
            // The machine has fewer CPUs than the program was made for.
            Ok(Line::Step(_) | Line::Machine(_) | Line::Blank) => {}
            Err(_) => return Err("a line is no step of a program"),
        }
    }
    match current {
        Some(seed) => one(seed, guest),
        None => Err("there is no program"),
    }
}

/// Runs the program that [`order`] has.
fn one(seed: u64, guest: &'static [u8]) -> Result<(), &'static str> {
    emit!("@fuzz begin {seed:#x}");
    let free = pages::free_count();
    let result = catch(|| {
        device::begin();
        let junk = ledger::take(JUNK_PAGES);
        vms::begin(guest);
        calls::begin(junk, ledger::aligned(u64::from(BLOCK), usize::from(BLOCK)));
        workers::on_all(|cpu| cpu::begin(cpu, junk));
        order::start();
        workers::on_all(cpu::run);
    });
    let failure = order::failure().or_else(|| result.err().map(|why| (None, why)));
    let failure = failure.or_else(|| {
        let settled = catch(|| {
            vms::check_and_destroy();
            workers::on_all(cpu::end);
        });
        settled
            .and_then(|()| workers::settle())
            .and_then(|()| catch(|| ledger::settle(free)))
            .err()
            .map(|why| (None, why))
    });
    host::settle();
    match failure {
        None => {
            emit!("@fuzz ok {seed:#x} {} {:#x}", order::steps(), order::digest());
            Ok(())
        }
        Some((step, why)) => {
            match step {
                Some(step) => emit!("@fuzz failed {seed:#x} {step} {why}"),
                None => emit!("@fuzz failed {seed:#x} - {why}"),
            }
            Err("a program failed")
        }
    }
}

/// Nanoseconds of the counter as ticks: at least one.
fn ticks(nanoseconds: u64) -> u64 {
    (nanoseconds * timer::frequency() / 1_000_000_000).max(1)
}

const _: () = assert!(umbra_fuzz::program::CPUS >= umbra_host::kernel::MAX_CPUS);
