//! The on-target tests: an EL1 kernel that boots above hyp as any host does, runs every test it has,
//! and says how each ended (`tools/src/console.rs` reads it).
//!
//! A test is a function that panics if something is wrong and returns [`Skip`](runner::Skip) if the machine can't do
//! what it is about. [`runner`] runs one after the other; when a test is over, however it ended, the
//! books of [`ledger`] are settled: every vCPU put, every VM destroyed, every page back with the host
//! and readable. A test that leaves something behind at hyp has failed.
//!
//! With `end=WAY` on its command line it keeps a secret and ends the machine ([`remains`]).
//! With `fuzz` on its command line it carries out random programs instead ([`fuzz`]), with `bench` it
//! measures ([`bench`]).
//!
//! Most tests script a *puppet* ([`puppet`]): a guest that executes one instruction or routine at a
//! time as the host tells it, so that a test reads from top to bottom although two worlds take part.

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "why something failed is a line of text, and there is no heap"
)]

mod bench;
mod context;
mod dma;
mod excursion;
mod fuzz;
mod gic_guest;
mod host;
mod instruction;
mod instruction32;
mod interrupted;
mod junk;
mod ledger;
mod lpi;
mod own_gic;
mod puppet;
mod puppet32;
mod remains;
mod runner;
mod streaming;
mod suite;
mod task;
mod window;
mod workers;

use umbra_host::kernel::machine::Machine;

umbra_host::kernel_main!(main);

fn main(machine: &'static Machine) -> ! {
    if machine.has_argument("bench") {
        bench::main(machine);
    }
    if machine.has_argument("fuzz") {
        fuzz::main(machine);
    }
    if let Some(way) = machine.argument("end") {
        remains::main(machine, way);
    }
    runner::main(machine, suite::ALL)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    runner::panicked(info)
}
