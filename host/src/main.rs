//! The demonstration: an EL1 kernel, on as many CPUs as there are (up to eight), with two VMs of one
//! vCPU per CPU. On each CPU the host runs a vCPU of either VM in turn; they move from CPU to CPU. The
//! guests compute over every FP/SVE register and leave them by hypercall, MMIO and timer interrupt,
//! while the host keeps patterns of its own live in the same registers. At the end everything is taken
//! down and every page must be back.
//!
//! What it prints for programs (lines beginning with `@`):
//!
//! ```text
//! @progress DONE TOTAL
//! @cpu cpu=N mpidr=HEX vls=BYTES,.. image=BYTES runs=N ..        hyp's counters
//! @vcpu vm=N vcpu=N vl=BYTES verified=N migrations=N hvc=N mmio=N timer=N
//! @verdict ok
//! @verdict failed: WHY
//! ```

#![no_std]
#![no_main]

mod demo;

use umbra_host::kernel::{die, machine::Machine, power};

umbra_host::kernel_main!(main);

fn main(machine: &'static Machine) -> ! {
    demo::run(machine);
    power::off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    die(info)
}
