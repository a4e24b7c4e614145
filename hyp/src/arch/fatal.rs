//! The end: an exception or a panic in hyp itself.
//!
//! Says what, where and on which CPU, as `@pc hyp ADDRESS` lines that `cargo xtask` turns into
//! functions and source lines, and resets the machine: a hypervisor that has lost track must not go
//! on guarding anything. All other CPUs are stopped first, before a word is said, and nothing of what
//! was guarded is left behind ([`super::end`]).

use crate::arch::console::emergency;
use crate::arch::end;
use crate::arch::layout::{STACK_BYTES, STACKS_BASE};
use crate::arch::percpu::PerCpu;
use crate::arch::stop::Claim;
use crate::arch::sysreg::sys::{read_elr_el2, read_esr_el2, read_far_el2, read_spsr_el2};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

/// X0-X30 as `fatal_common` stores them.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct FatalFrame {
    x: [u64; 32],
}

fn begin() {
    // At EL1 there is nothing to stop and nothing to guard yet.
    if HVC.load(Ordering::Relaxed) {
        return;
    }
    match end::claim() {
        Claim::Mine => end::stop_others(),
        // It died again over its last words: those must wait, the reset must not.
        _ => reset(),
    }
}

fn cpu_index() -> i64 {
    // At EL1 there is no TPIDR_EL2 to ask.
    if HVC.load(Ordering::Relaxed) {
        return -1;
    }
    PerCpu::current_index().map_or(-1, |n| n as i64)
}

/// Firmware is called with HVC: hyp is at EL1, and about to say so.
static HVC: AtomicBool = AtomicBool::new(false);

/// The reset at the end goes through HVC.
pub fn reset_through_hvc() {
    HVC.store(true, Ordering::Relaxed);
}

fn end() -> ! {
    emergency(format_args!("umbra: resetting the machine\n"));
    reset()
}

/// SYSTEM_RESET.
const SYSTEM_RESET: u64 = 0x8400_0009;

fn reset() -> ! {
    if HVC.load(Ordering::Relaxed) {
        // It returns only if firmware refuses; then there is nothing left but to wait.
        let _ = smccc::psci::system_reset::<smccc::Hvc>();
        loop {
            crate::arch::lock::wait_for_event();
        }
    }
    end::finish([SYSTEM_RESET, 0, 0, 0])
}

/// Return addresses by frame pointer, as far as they stay in stack memory.
fn backtrace(mut frame: u64) {
    for _ in 0..32 {
        let in_stack = (STACKS_BASE as u64..STACKS_BASE as u64 + (256 * 2 * STACK_BYTES) as u64)
            .contains(&frame);
        if !in_stack || !frame.is_multiple_of(16) {
            return;
        }
        // SAFETY: an aligned address in the stack region that the frame chain led to; if the chain
        // is broken so badly that this faults, the nested exception resets the machine in `begin`.
        let [next, pc] = unsafe { (frame as *const [u64; 2]).read() };
        if pc == 0 {
            return;
        }
        emergency(format_args!("@pc hyp {:#x}\n", pc - 4));
        if next <= frame {
            return;
        }
        frame = next;
    }
}

const KINDS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];

// Called by fatal_common (vectors.S).
#[unsafe(no_mangle)]
extern "C" fn umbra_fatal_exception(frame: &FatalFrame, kind: u64) -> ! {
    begin();
    let from = match kind % 16 / 4 {
        0 => "EL2 with SP_EL0",
        1 => "EL2",
        2 => "a lower EL",
        _ => "a lower EL in AArch32",
    };
    let world = if kind < 16 { "host" } else { "guest" };
    let pc = read_elr_el2().bits();
    emergency(format_args!(
        "\numbra: fatal: {} from {from} on CPU {}, {world} vectors\n\
         umbra: ESR_EL2 {:#x} FAR_EL2 {:#x} SPSR_EL2 {:#x}\n@pc hyp {pc:#x}\n",
        KINDS[kind as usize % 4],
        cpu_index(),
        read_esr_el2().bits(),
        read_far_el2().bits(),
        read_spsr_el2().bits(),
    ));
    for (n, pair) in frame.x[..30].chunks(2).enumerate() {
        emergency(format_args!("umbra: x{:<2} {:#018x} {:#018x}\n", 2 * n, pair[0], pair[1]));
    }
    emergency(format_args!("@pc hyp {:#x}\n", frame.x[30].wrapping_sub(4)));
    backtrace(frame.x[29]);
    end()
}

// Called by fatal_no_stack (vectors.S) on the emergency stack.
#[unsafe(no_mangle)]
extern "C" fn umbra_stack_overflow(sp: u64, kind: u64) -> ! {
    begin();
    emergency(format_args!(
        "\numbra: fatal: stack overflow on CPU {} (SP {sp:#x}, vector {kind})\n\
         umbra: ESR_EL2 {:#x} FAR_EL2 {:#x}\n@pc hyp {:#x}\n",
        cpu_index(),
        read_esr_el2().bits(),
        read_far_el2().bits(),
        read_elr_el2().bits(),
    ));
    end()
}

/// What the panic handler of the binary calls.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    begin();
    emergency(format_args!("\numbra: fatal: {info} on CPU {}\n", cpu_index()));
    let frame: u64;
    // SAFETY: reads the frame pointer.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack)) };
    backtrace(frame);
    end()
}

/// Ends the boot with a message: nothing is wrong with hyp, but it can't run here.
pub fn refuse(message: core::fmt::Arguments<'_>) -> ! {
    begin();
    emergency(format_args!("umbra: can't run on this machine: {message}\n"));
    end()
}
