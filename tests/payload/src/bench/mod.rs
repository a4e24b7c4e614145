//! `bench` on the command line: measures what hyp costs, in executed instructions.
//!
//! With QEMU's `-icount shift=0` one instruction takes one nanosecond of virtual time, so the counter
//! (CNTVCT_EL0) counts instructions, in units of 10^9 / CNTFRQ_EL0. Emulated time says nothing of a
//! real CPU's; what is executed is what hyp has control of.
//!
//! A round trip is timed by the guest that makes it ([`guest`]); hypercalls are timed by their caller
//! ([`host`]); [`growth`] looks at what must not grow. Every measurement is printed as it was counted:
//!
//! ```text
//! @bench name=exit_to_host policy=lazy vm=normal hints=none vl=64 guest_fp=sve host_fp=none ticks=N iterations=N bytes=N saves=N loads=N exits=N
//! @bench name=machine frequency=N boot=N ...
//! ```
//!
//! Arguments: `iterations=N` (a multiple of 16); `short`: a selection; `growth`: that alone; `trace`:
//! waits for a byte on the console before anything is measured, so that QEMU can be told to log.

mod growth;
mod guest;
mod host;
mod interrupts;
mod ranges;

use crate::{
    context::{self, Counters, context},
    runner::{self, catch},
};
use core::{arch::global_asm, fmt};
use umbra_host::{
    emit,
    hypercall::{Hvc, Hypervisor},
    kernel::{console, exception, initrd, machine::Machine, power, timer},
};
use umbra_shared::call::Counter;

global_asm!(include_str!("bench.S"));

// SAFETY: the routines of bench.S, written for these signatures.
unsafe extern "C" {
    safe fn umbra_bench_row();
    safe fn umbra_bench_row_end();
    safe fn umbra_bench_begin_any();
    safe fn umbra_bench_end_any();
    fn umbra_bench_null(function: u64, iterations: u64) -> u64;
}

/// Iterations if the command line says nothing.
const ITERATIONS: u64 = 320;
/// Before a measurement: what happens once has happened.
const WARM_UP: u64 = 2;

/// What is measured.
#[derive(Clone, Copy)]
struct Plan {
    iterations: u64,
    short: bool,
}

/// What was measured.
struct Measured {
    ticks: u64,
    iterations: u64,
    moves: Moves,
}

/// What hyp's counters say meanwhile, of FP registers above all.
#[derive(Clone, Copy, Default)]
struct Moves {
    bytes: u64,
    saves: u64,
    loads: u64,
    /// Runs of guests, each of which ended with an exit.
    exits: u64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { ticks, iterations, moves: Moves { bytes, saves, loads, exits } } = self;
        write!(
            f,
            "ticks={ticks} iterations={iterations} bytes={bytes} saves={saves} loads={loads} exits={exits}"
        )
    }
}

/// Runs `f` as a row of the table: it returns the ticks of `iterations` iterations.
fn row(iterations: u64, f: impl FnOnce() -> u64) -> Measured {
    use Counter::{
        BytesMoved, GuestLoads, GuestSaves, HostLoads, HostSavesFpsimd, HostSavesFull, Runs,
    };
    let before = Counters::now();
    umbra_bench_row();
    let ticks = f();
    umbra_bench_row_end();
    let [bytes, guest_saves, full, fpsimd, guest_loads, host_loads, exits] = before.deltas([
        BytesMoved,
        GuestSaves,
        HostSavesFull,
        HostSavesFpsimd,
        GuestLoads,
        HostLoads,
        Runs,
    ]);
    let (saves, loads) = (guest_saves + full + fpsimd, guest_loads + host_loads);
    let moves = Moves { bytes, saves, loads, exits };
    Measured { ticks, iterations, moves }
}

/// Ticks that `f` takes.
fn timed(f: impl FnOnce()) -> u64 {
    let start = timer::now();
    umbra_bench_begin_any();
    f();
    umbra_bench_end_any();
    timer::now() - start
}

/// Measures, and turns the machine off.
pub fn main(machine: &'static Machine) -> ! {
    let booted = timer::now();
    exception::set_hook(runner::hook);
    if let Err(why) = catch(|| context::init(machine)) {
        emit!("@verdict failed: {why}");
        power::off()
    }
    let iterations = machine.argument("iterations").and_then(|n| n.parse().ok());
    let plan =
        Plan { iterations: iterations.unwrap_or(ITERATIONS), short: machine.has_argument("short") };
    let Some(image) = initrd::file(machine, "guest") else {
        emit!("@verdict failed: the initrd has no file `guest`");
        power::off()
    };
    if machine.has_argument("trace") {
        emit!("@ready");
        console::wait_for_input();
    }
    let result = catch(|| {
        describe(machine, booted);
        if machine.has_argument("growth") {
            growth::measure(plan, image);
        } else {
            host::measure(plan);
            guest::measure(plan, image);
            interrupts::measure(plan, image);
        }
    });
    match result {
        Ok(()) => emit!("@verdict ok"),
        Err(why) => emit!("@verdict failed: {why}"),
    }
    power::off()
}

/// What the floors and the units depend on.
fn describe(machine: &Machine, booted: u64) {
    macro_rules! id {
        ($name:literal) => {{
            let value: u64;
            // SAFETY: reads an ID register.
            unsafe {
                core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack));
            }
            value
        }};
    }
    let ram: u64 = machine.ram.iter().map(|range| range.end - range.start).sum();
    let image = Hvc.vl_info(Some(context().at_hyp(0))).expect("VL_INFO").image_bytes;
    emit!(
        "@bench name=machine cpus={} frequency={} boot_ticks={booted} host_ram={ram} \
         host_image={image} pfr0={:#x} pfr1={:#x} dfr0={:#x} isar1={:#x} isar2={:#x} mmfr0={:#x} \
         mmfr1={:#x}",
        context().cpus,
        timer::frequency(),
        id!("id_aa64pfr0_el1"),
        id!("id_aa64pfr1_el1"),
        id!("id_aa64dfr0_el1"),
        id!("id_aa64isar1_el1"),
        id!("id_aa64isar2_el1"),
        id!("id_aa64mmfr0_el1"),
        id!("id_aa64mmfr1_el1"),
    );
}
