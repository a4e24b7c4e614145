//! The kernel's own code at another exception level, or in another PSTATE (`excursion.S`): what a host's
//! tasks are to hyp, and what a host may be in the middle of when hyp makes an exception for it.

use core::arch::{asm, global_asm};
use umbra_host::kernel::sysreg;

global_asm!(include_str!("excursion.S"));

/// Where to, and with what. `excursion.S` knows the order.
#[repr(C)]
pub struct Start {
    /// PC.
    pub pc: u64,
    /// PSTATE, as SPSR_EL1.
    pub spsr: u64,
    /// x0.
    pub x0: u64,
    /// x1.
    pub x1: u64,
    /// SCTLR_EL1 from now on.
    pub sctlr: u64,
    /// Which fields of PSTATE this CPU has: PAN, UAO, DIT, SSBS, TCO, from bit 0 on.
    pub fields: u64,
}

/// The exception that ended it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Taken {
    /// ESR_EL1.
    pub esr: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// PSTATE in the handler, as far as it can be read.
    pub pstate: u64,
    /// Number of the vector: its offset divided by 128.
    pub vector: u64,
}

// SAFETY: the routines of excursion.S, written for these signatures; the others are only addresses.
unsafe extern "C" {
    fn umbra_excursion(start: *const Start, taken: *mut Taken);
    static umbra_excursion_load: u8;
    static umbra_excursion_store: u8;
    static umbra_excursion_smc: u8;
}

/// `LDR x0, [x1]` in the kernel's image.
pub fn load() -> usize {
    &raw const umbra_excursion_load as usize
}

/// `STR w0, [x1]` in the kernel's image.
pub fn store() -> usize {
    &raw const umbra_excursion_store as usize
}

/// `SMC #0`, then `SVC #0`, in the kernel's image.
pub fn smc() -> usize {
    &raw const umbra_excursion_smc as usize
}

/// SCTLR_EL1 now.
pub fn sctlr() -> u64 {
    let value;
    // SAFETY: reading it changes nothing.
    unsafe { asm!("mrs {}, sctlr_el1", out(reg) value, options(nostack)) };
    value
}

/// Goes, up to the exception.
pub fn go(start: &Start) -> Taken {
    let mut taken = Taken::default();
    let daif = sysreg::mask_interrupts();
    // SAFETY: what is executed is one of the routines above or can't be fetched at all. Either way an
    // exception comes back here, with the registers that the ABI keeps as they were.
    unsafe { umbra_excursion(start, &raw mut taken) };
    sysreg::restore_interrupts(daif);
    taken
}
