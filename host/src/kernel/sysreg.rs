//! System registers and barriers, as far as the kernel needs them.

use super::MAX_CPUS;
use core::arch::asm;

/// Reads a system register.
macro_rules! mrs {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading this register has no effect on memory or on any other state.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack));
        }
        value
    }};
}

/// Writes a system register and synchronises the context.
macro_rules! msr {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack));
    }};
}

pub(crate) use {mrs, msr};

/// Masks physical interrupts (PSTATE.I) and says what DAIF was.
pub fn mask_interrupts() -> u64 {
    let daif = mrs!("daif");
    // SAFETY: masking interrupts breaks nobody's assumptions. It is a compiler barrier on purpose.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
    daif
}

/// Puts DAIF back to what [`mask_interrupts`] returned.
pub fn restore_interrupts(daif: u64) {
    // SAFETY: the value comes from this CPU's own DAIF.
    unsafe { asm!("msr daif, {}", in(reg) daif, options(nostack)) };
}

/// Takes physical interrupts and SErrors.
pub fn unmask_interrupts() {
    // SAFETY: the vectors handle interrupts from the first instruction of the kernel on.
    unsafe { asm!("msr daifclr, #6", options(nostack)) };
}

/// The calling CPU's number, which TPIDR_EL1 holds.
pub fn cpu() -> usize {
    // The number never exceeds the number of stacks; the modulo lets the compiler know.
    mrs!("tpidr_el1") as usize % MAX_CPUS
}

/// MPIDR_EL1's affinity fields.
pub fn affinity() -> u64 {
    mrs!("mpidr_el1") & 0xff_00ff_ffff
}

/// The exception level in force.
pub fn current_el() -> u64 {
    mrs!("currentel") >> 2 & 3
}

/// Waits for an interrupt; it stays pending while masked.
pub fn wait_for_interrupt() {
    // SAFETY: WFI only waits. The DSB completes what an interrupt handler elsewhere waits for.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Cleans the lines of `[address, address + bytes)` to the point of coherency, for observers with
/// their caches off.
pub fn clean_to_poc(address: usize, bytes: usize) {
    let line = 4 << (mrs!("ctr_el0") >> 16 & 0xf);
    let mut at = address & !(line - 1);
    while at < address + bytes {
        // SAFETY: cleaning writes back what the line holds and changes no content.
        unsafe { asm!("dc cvac, {}", in(reg) at, options(nostack)) };
        at += line;
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
