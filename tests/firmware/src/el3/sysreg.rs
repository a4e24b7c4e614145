//! System registers of EL3 and of what it sets up.

use super::IdRegisters;
use core::arch::asm;

macro_rules! readable {
    ($($(#[$doc:meta])* $read:ident $name:literal;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $read() -> u64 {
                let value;
                // SAFETY: reading this register has no effect on memory or on what EL3 runs with.
                unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
                value
            }
        )*
    };
}

macro_rules! writable {
    ($($(#[$doc:meta])* $write:ident $name:literal;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $write(value: u64) {
                // SAFETY: none of these registers takes part in EL3's own translation or execution.
                unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack)) };
            }
        )*
    };
}

readable! {
    /// CTR_EL0: cache line sizes.
    read_ctr_el0 "ctr_el0";
    /// ISR_EL1: pending physical interrupts.
    read_isr_el1 "isr_el1";
    /// CNTFRQ_EL0: hertz of the system counter.
    read_cntfrq_el0 "cntfrq_el0";
    /// CNTPCT_EL0: the system counter.
    read_cntpct_el0 "cntpct_el0";
    /// ICC_IAR0_EL1: acknowledges a Group 0 interrupt.
    read_icc_iar0_el1 "s3_0_c12_c8_0";
    read_pfr0 "s3_0_c0_c4_0";
    read_pfr1 "s3_0_c0_c4_1";
    read_pfr2 "s3_0_c0_c4_2";
    read_smfr0 "s3_0_c0_c4_5";
    read_dfr0 "s3_0_c0_c5_0";
    read_isar1 "s3_0_c0_c6_1";
    read_isar2 "s3_0_c0_c6_2";
    read_mmfr0 "s3_0_c0_c7_0";
    read_mmfr1 "s3_0_c0_c7_1";
    read_mmfr3 "s3_0_c0_c7_3";
}

writable! {
    /// CNTFRQ_EL0: hertz of the system counter.
    write_cntfrq_el0 "cntfrq_el0";
    /// ELR_EL3: where whoever called goes on.
    write_elr_el3 "elr_el3";
    /// SCR_EL3.
    write_scr_el3 "scr_el3";
    /// CPTR_EL3.
    write_cptr_el3 "cptr_el3";
    /// MDCR_EL3.
    write_mdcr_el3 "mdcr_el3";
    /// ZCR_EL3: the most that SVE's vector length may be on this CPU.
    write_zcr_el3 "s3_6_c1_c2_0";
    /// SMCR_EL3: likewise for streaming mode.
    write_smcr_el3 "s3_6_c1_c2_6";
    /// SCTLR_EL2.
    write_sctlr_el2 "sctlr_el2";
    /// CNTVOFF_EL2.
    write_cntvoff_el2 "cntvoff_el2";
    /// ICC_SRE_EL3.
    write_icc_sre_el3 "s3_6_c12_c12_5";
    /// ICC_PMR_EL1.
    write_icc_pmr_el1 "s3_0_c4_c6_0";
    /// ICC_IGRPEN0_EL1.
    write_icc_igrpen0_el1 "s3_0_c12_c12_6";
    /// ICC_IGRPEN1_EL3: bit 0 for the non-secure world.
    write_icc_igrpen1_el3 "s3_6_c12_c12_7";
    /// ICC_EOIR0_EL1.
    write_icc_eoir0_el1 "s3_0_c12_c8_1";
    /// ICC_SGI0R_EL1: sends a Group 0 SGI.
    write_icc_sgi0r_el1 "s3_0_c12_c11_7";
    /// ICC_AP0R0_EL1.
    write_icc_ap0r0_el1 "s3_0_c12_c8_4";
    /// ICC_AP1R0_EL1.
    write_icc_ap1r0_el1 "s3_0_c12_c9_0";
}

/// The ID registers that say what there is to set up.
pub fn id_registers() -> IdRegisters {
    IdRegisters {
        pfr0: read_pfr0(),
        pfr1: read_pfr1(),
        pfr2: read_pfr2(),
        dfr0: read_dfr0(),
        isar1: read_isar1(),
        isar2: read_isar2(),
        mmfr0: read_mmfr0(),
        mmfr1: read_mmfr1(),
        mmfr3: read_mmfr3(),
        smfr0: read_smfr0(),
    }
}

/// The vector length in force, in bytes. Only with SVE, and open.
pub fn rdvl() -> u64 {
    let vl;
    // SAFETY: the caller has opened SVE for EL3; RDVL only writes its result.
    unsafe {
        asm!(
            ".arch_extension sve",
            "rdvl {}, #1",
            ".arch_extension nosve",
            out(reg) vl,
            options(nomem, nostack)
        );
    }
    vl
}

/// The streaming vector length in force, in bytes. Only with SME, and open.
pub fn rdsvl() -> u64 {
    let svl;
    // SAFETY: the caller has opened SME for EL3; RDSVL only writes its result.
    unsafe {
        asm!(
            ".arch_extension sme",
            "rdsvl {}, #1",
            ".arch_extension nosme",
            out(reg) svl,
            options(nomem, nostack)
        );
    }
    svl
}

/// Instruction synchronisation barrier.
#[inline(always)]
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Data synchronisation barrier over the whole system.
#[inline(always)]
pub fn dsb() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}
