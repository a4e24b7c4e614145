//! The registers of EL1 and EL0 that every CPU has and that move at each world switch, two by two.

#![forbid(unsafe_code)]

use umbra_shared::register::system;

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

/// Their numbers, as MRS has them ([`umbra_shared::register`]): that each is its name's, a guest that reads them says
/// (`tests/payload/src/suite/one_reg.rs`).
pub const NUMBERS: [u16; 24] = [
    system(3, 0, 1, 0, 0),
    system(3, 0, 1, 0, 2),
    system(3, 0, 2, 0, 0),
    system(3, 0, 2, 0, 1),
    system(3, 0, 2, 0, 2),
    system(3, 0, 10, 2, 0),
    system(3, 0, 10, 3, 0),
    system(3, 0, 12, 0, 0),
    system(3, 0, 5, 2, 0),
    system(3, 0, 6, 0, 0),
    system(3, 0, 5, 1, 0),
    system(3, 0, 5, 1, 1),
    system(3, 0, 13, 0, 1),
    system(3, 0, 7, 4, 0),
    system(3, 0, 13, 0, 4),
    system(3, 3, 13, 0, 2),
    system(3, 3, 13, 0, 3),
    system(3, 0, 14, 1, 0),
    system(3, 0, 4, 1, 0),
    system(3, 4, 4, 1, 0),
    system(3, 0, 4, 0, 1),
    system(3, 0, 4, 0, 0),
    system(3, 2, 0, 0, 0),
    system(2, 0, 0, 2, 2),
];

const _: () = assert!(NUMBERS.len() == NAMES.len());
