//! The test guest: fills every FP/SVE register with its own tagged patterns, exits in all ways it
//! knows, and looks whether each byte is still there.
//!
//! One image serves all vCPUs of a VM ([`umbra_patterns::protocol`]). It runs at EL1 with the MMU off,
//! so its memory is Device: every access aligned, no exclusives, and so no atomics that need them;
//! each vCPU writes to its own part only.
//!
//! One iteration is: select a VL (all values of ZCR_EL1.LEN in turn, those above the clamp included, for
//! they must give exactly the clamp), fill, exit, check. Every turn through the VLs ends with a shrink:
//! fill at the largest VL, select a smaller one, exit, select the largest again, check.
//!
//! That is [`Mode::Verify`]; in [`Mode::Driven`] the host says what comes next, and in [`Mode::Bench`] what is
//! to be measured.

#![no_std]
#![no_main]

mod bench;
mod driven;
mod gic;
mod machine;
mod work;

use core::{
    arch::{asm, global_asm},
    sync::atomic::AtomicU64,
};
use umbra_patterns::protocol::{Argument, Failure, MAX_VCPUS, Mode};

global_asm!(
    include_str!("guest.S"),
    MAX_VCPUS = const MAX_VCPUS,
    STACK_BYTES = const 16384,
    main = sym main,
    irq = sym gic::irq,
    exception = sym exception,
);

/// PSCI CPU_OFF.
const CPU_OFF: u64 = 0x8400_0002;

/// Timer interrupts each vCPU has handled. Plain loads and stores only.
static TIMER_INTERRUPTS: [AtomicU64; MAX_VCPUS] = [const { AtomicU64::new(0) }; MAX_VCPUS];

/// HVC #0 with x0-x5; returns x0.
fn hvc(x: [u64; 6]) -> u64 {
    hvc2(x)[0]
}

/// HVC #0 with x0-x5; returns x0 and x1.
fn hvc2(x: [u64; 6]) -> [u64; 2] {
    let (x0, x1);
    // SAFETY: SMCCC: x0-x17 are clobbered. The host writes no memory of ours.
    unsafe {
        asm!(
            "hvc #0",
            inout("x0") x[0] => x0,
            inout("x1") x[1] => x1, inout("x2") x[2] => _, inout("x3") x[3] => _,
            inout("x4") x[4] => _, inout("x5") x[5] => _,
            out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack),
        );
    }
    [x0, x1]
}

fn off() -> ! {
    loop {
        hvc([CPU_OFF, 0, 0, 0, 0, 0]);
    }
}

fn fail(failure: Failure) -> ! {
    let [a, b, c, d, e] = failure.encode();
    loop {
        hvc([umbra_patterns::protocol::FAIL, a, b, c, d, e]);
    }
}

fn vcpu() -> usize {
    let vcpu: u64;
    // SAFETY: reads the number that the entry code put there.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) vcpu, options(nomem, nostack)) };
    vcpu as usize
}

extern "C" fn main(argument: u64) -> ! {
    let Some(argument) = Argument::decode(argument) else {
        fail(Failure::Garbled(argument));
    };
    umbra_patterns::regs::enable();
    if argument.vcpu == 0 {
        machine::begin(argument.mode);
    }
    match argument.mode {
        Mode::Verify => {
            gic::begin_vcpu();
            work::run(&argument)
        }
        Mode::Driven => {
            enable_interrupts();
            driven::run(&argument)
        }
        Mode::Bench => bench::run(&argument),
    }
}

fn enable_interrupts() {
    // SAFETY: system registers of the virtual CPU interface; the vectors are in place. SRE, all
    // priorities, group 1.
    unsafe {
        asm!(
            "msr S3_0_C12_C12_5, {one}", // ICC_SRE_EL1
            "isb",
            "msr S3_0_C4_C6_0, {all}", // ICC_PMR_EL1
            "msr S3_0_C12_C12_7, {one}", // ICC_IGRPEN1_EL1
            "isb",
            "msr daifclr, #2",
            one = in(reg) 1u64,
            all = in(reg) 0xffu64,
            options(nostack),
        );
    }
}

extern "C" fn exception(esr: u64, elr: u64, far: u64) -> ! {
    fail(Failure::Exception { esr, elr, far })
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    fail(Failure::Garbled(u64::from_le_bytes(*b"panicked")))
}
