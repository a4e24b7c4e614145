//! The registers of EL1 and EL0 that every CPU has and that move at each world switch, two by two.

#![forbid(unsafe_code)]

/// Calls a macro with them, in pairs: the one place where they are listed.
macro_rules! el1_registers {
    ($with:ident) => {
        $with! {
            sctlr_el1 cpacr_el1,
            ttbr0_el1 ttbr1_el1,
            tcr_el1 mair_el1,
            amair_el1 vbar_el1,
            esr_el1 far_el1,
            afsr0_el1 afsr1_el1,
            contextidr_el1 par_el1,
            tpidr_el1 tpidr_el0,
            tpidrro_el0 cntkctl_el1,
            sp_el0 sp_el1,
            elr_el1 spsr_el1,
            csselr_el1 mdscr_el1,
        }
    };
}

#[cfg(target_os = "none")]
pub(super) use el1_registers;

macro_rules! names {
    ($($a:ident $b:ident,)*) => { &[$(stringify!($a), stringify!($b),)*] };
}

/// Their names.
pub const NAMES: &[&str] = el1_registers!(names);
