//! System registers that the arm-sysregs crate lacks, and barriers.

use core::arch::asm;

/// The registers that the arm-sysregs crate has, whichever EL they belong to, under one name.
pub mod sys {
    pub use arm_sysregs::el0::accessors::*;
    pub use arm_sysregs::el1::accessors::*;
    pub use arm_sysregs::el2::accessors::*;
    pub use arm_sysregs::el2::registers::*;
}

macro_rules! gap {
    ($($(#[$doc:meta])* $read:ident $write:ident $name:literal;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $read() -> u64 {
                let value;
                // SAFETY: reading this register has no effect but to give its value.
                unsafe {
                    asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack));
                }
                value
            }

            $(#[$doc])*
            #[inline(always)]
            pub fn $write(value: u64) {
                // SAFETY: none of these registers takes part in hyp's own translation or execution:
                // they govern lower ELs, interrupts for them, and vector lengths. Not `nomem`: what
                // memory means to a lower EL may change.
                unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack)) };
            }
        )*
    };
}

gap! {
    /// ZCR_EL2: SVE vector length for EL2, EL1 and EL0.
    read_zcr_el2 write_zcr_el2 "s3_4_c1_c2_0";
    /// ZCR_EL1: SVE vector length for EL1 and EL0.
    read_zcr_el1 write_zcr_el1 "s3_0_c1_c2_0";
    /// SMCR_EL2: SME vector length, FA64 and EZT0 for EL2 and below.
    read_smcr_el2 write_smcr_el2 "s3_4_c1_c2_6";
    /// SMCR_EL1: the same for EL1 and EL0.
    read_smcr_el1 write_smcr_el1 "s3_0_c1_c2_6";
    /// FPEXC32_EL2: FPEXC of an AArch32 EL1. UNDEFINED without AArch32.
    read_fpexc32_el2 write_fpexc32_el2 "s3_4_c5_c3_0";
    /// TPIDR2_EL0 (FEAT_SME).
    read_tpidr2_el0 write_tpidr2_el0 "s3_3_c13_c0_5";
    /// VTTBR_EL2: stage-2 root and VMID.
    read_vttbr_el2 write_vttbr_el2 "vttbr_el2";
    /// VDISR_EL2 (FEAT_RAS): DISR_EL1 for a guest.
    read_vdisr_el2 write_vdisr_el2 "s3_4_c12_c1_1";
    /// VSESR_EL2 (FEAT_RAS): syndrome of a virtual SError.
    read_vsesr_el2 write_vsesr_el2 "s3_4_c5_c2_3";
    /// TRFCR_EL1 (FEAT_TRF): which ELs a trace sees.
    read_trfcr_el1 write_trfcr_el1 "s3_0_c1_c2_1";
    /// BRBCR_EL1 (FEAT_BRBE): which ELs' branches are recorded.
    read_brbcr_el1 write_brbcr_el1 "s2_1_c9_c0_0";
    /// ICH_VTR_EL2: list registers and priority bits.
    read_ich_vtr_el2 _write_ich_vtr_el2 "s3_4_c12_c11_1";
    /// ISR_EL1: physical interrupts pending.
    read_isr_el1 _write_isr_el1 "isr_el1";
    /// DCZID_EL0: what DC ZVA zeroes, and whether it may.
    read_dczid_el0 _write_dczid_el0 "dczid_el0";
    /// DISR_EL1 (FEAT_RAS): an SError that ESB has deferred.
    read_disr_el1 _write_disr_el1 "s3_0_c12_c1_1";
    /// ICC_SGI1R_EL1: interrupts for other CPUs. Write-only; a read is UNDEFINED, and nobody's.
    _read_icc_sgi1r_el1 write_icc_sgi1r_el1 "s3_0_c12_c11_5";
    /// ICH_VMCR_EL2: the guest's ICC_PMR, BPR, IGRPEN, EOImode.
    read_ich_vmcr_el2 write_ich_vmcr_el2 "s3_4_c12_c11_7";
    /// ICH_AP0R0_EL2: active priorities, group 0.
    read_ich_ap0r0_el2 write_ich_ap0r0_el2 "s3_4_c12_c8_0";
    /// ICH_AP1R0_EL2: active priorities, group 1.
    read_ich_ap1r0_el2 write_ich_ap1r0_el2 "s3_4_c12_c9_0";
    /// ICH_HCR_EL2: the virtual CPU interface's control.
    read_ich_hcr_el2 write_ich_hcr_el2 "s3_4_c12_c11_0";
    /// ICC_SRE_EL2: who may use the system register interface of the GIC.
    read_icc_sre_el2 write_icc_sre_el2 "s3_4_c12_c9_5";
    /// HPFAR_EL2: the IPA of a stage-2 fault.
    read_hpfar_el2 write_hpfar_el2 "hpfar_el2";
    /// HFGRTR_EL2: fine-grained read traps.
    read_hfgrtr_el2 write_hfgrtr_el2 "s3_4_c1_c1_4";
    /// HFGWTR_EL2: fine-grained write traps.
    read_hfgwtr_el2 write_hfgwtr_el2 "s3_4_c1_c1_5";
    /// HFGITR_EL2: fine-grained instruction traps.
    read_hfgitr_el2 write_hfgitr_el2 "s3_4_c1_c1_6";
    /// HDFGRTR_EL2: fine-grained debug read traps.
    read_hdfgrtr_el2 write_hdfgrtr_el2 "s3_4_c3_c1_4";
    /// HDFGWTR_EL2: fine-grained debug write traps.
    read_hdfgwtr_el2 write_hdfgwtr_el2 "s3_4_c3_c1_5";
    /// HAFGRTR_EL2: fine-grained activity-monitor traps.
    read_hafgrtr_el2 write_hafgrtr_el2 "s3_4_c3_c1_6";
    /// HFGRTR2_EL2 (FEAT_FGT2).
    read_hfgrtr2_el2 write_hfgrtr2_el2 "s3_4_c3_c1_2";
    /// HFGWTR2_EL2 (FEAT_FGT2).
    read_hfgwtr2_el2 write_hfgwtr2_el2 "s3_4_c3_c1_3";
    /// HFGITR2_EL2 (FEAT_FGT2).
    read_hfgitr2_el2 write_hfgitr2_el2 "s3_4_c3_c1_7";
    /// HDFGRTR2_EL2 (FEAT_FGT2).
    read_hdfgrtr2_el2 write_hdfgrtr2_el2 "s3_4_c3_c1_0";
    /// HDFGWTR2_EL2 (FEAT_FGT2).
    read_hdfgwtr2_el2 write_hdfgwtr2_el2 "s3_4_c3_c1_1";
    /// HCRX_EL2 (FEAT_HCX).
    read_hcrx_el2 write_hcrx_el2 "s3_4_c1_c2_2";
    /// MPAMIDR_EL1 (FEAT_MPAM).
    read_mpamidr_el1 _write_mpamidr_el1 "s3_0_c10_c4_4";
    /// MPAMHCR_EL2 (FEAT_MPAM, where MPAMIDR_EL1.HAS_HCR is set).
    read_mpamhcr_el2 write_mpamhcr_el2 "s3_4_c10_c4_0";
    /// MPAM2_EL2 (FEAT_MPAM).
    read_mpam2_el2 write_mpam2_el2 "s3_4_c10_c5_0";
    /// ACTLR_EL2: IMPLEMENTATION DEFINED; on cores of Arm's own, which such registers EL1 may write.
    _read_actlr_el2 write_actlr_el2 "s3_4_c1_c0_1";
    /// HACR_EL2: IMPLEMENTATION DEFINED traps.
    _read_hacr_el2 write_hacr_el2 "s3_4_c1_c1_7";
    /// TRFCR_EL2 (FEAT_TRF): whether a trace sees EL2.
    _read_trfcr_el2 write_trfcr_el2 "s3_4_c1_c2_1";
    /// TRCITECR_EL2 (FEAT_ITE): whether TRCIT is traced at EL2.
    _read_trcitecr_el2 write_trcitecr_el2 "s3_4_c1_c2_3";
    /// BRBCR_EL2 (FEAT_BRBE): whether EL2's branches are recorded.
    _read_brbcr_el2 write_brbcr_el2 "s2_4_c9_c0_0";
    /// PMSCR_EL2 (FEAT_SPE): whether EL2 is sampled.
    _read_pmscr_el2 write_pmscr_el2 "s3_4_c9_c9_0";
    /// GCSCR_EL2 (FEAT_GCS): EL2's guarded control stack.
    _read_gcscr_el2 write_gcscr_el2 "s3_4_c2_c5_0";
    /// SMPRIMAP_EL2 (FEAT_SME): priorities, while HCRX_EL2.SMPME is set.
    _read_smprimap_el2 write_smprimap_el2 "s3_4_c1_c2_5";
    /// SCXTNUM_EL2 (FEAT_CSV2_2): EL2's software context number.
    _read_scxtnum_el2 write_scxtnum_el2 "s3_4_c13_c0_7";
    /// TFSR_EL2 (FEAT_MTE2): tag check faults of EL2.
    _read_tfsr_el2 write_tfsr_el2 "s3_4_c5_c6_0";
    /// CONTEXTIDR_EL2 (FEAT_VHE).
    _read_contextidr_el2 write_contextidr_el2 "s3_4_c13_c0_1";
    /// CNTHV_CTL_EL2 (FEAT_VHE): EL2's virtual timer.
    _read_cnthv_ctl_el2 write_cnthv_ctl_el2 "s3_4_c14_c3_1";
    /// HACDBSBR_EL2 (FEAT_HACDBS): an accelerator that writes tables.
    _read_hacdbsbr_el2 write_hacdbsbr_el2 "s3_4_c2_c3_4";
    /// HSTR_EL2: AArch32 CP15 traps.
    read_hstr_el2 write_hstr_el2 "hstr_el2";
    /// VPIDR_EL2: what a lower EL reads as MIDR_EL1.
    read_vpidr_el2 write_vpidr_el2 "vpidr_el2";
    /// VMPIDR_EL2: what a lower EL reads as MPIDR_EL1.
    read_vmpidr_el2 write_vmpidr_el2 "vmpidr_el2";
    /// MDCR_EL2: debug and PMU traps.
    read_mdcr_el2 write_mdcr_el2 "mdcr_el2";
    /// CNTHCTL_EL2: counter and timer traps.
    read_cnthctl_el2 write_cnthctl_el2 "cnthctl_el2";
    /// CNTVOFF_EL2: virtual counter offset.
    read_cntvoff_el2 write_cntvoff_el2 "cntvoff_el2";
    /// CNTHP_CTL_EL2: hyp's physical timer.
    read_cnthp_ctl_el2 write_cnthp_ctl_el2 "cnthp_ctl_el2";
    /// CNTHP_CVAL_EL2: its deadline.
    read_cnthp_cval_el2 write_cnthp_cval_el2 "cnthp_cval_el2";
    /// CNTV_CTL_EL0: the virtual timer of the world that runs.
    read_cntv_ctl_el0 write_cntv_ctl_el0 "cntv_ctl_el0";
    /// CNTV_CVAL_EL0: its deadline.
    read_cntv_cval_el0 write_cntv_cval_el0 "cntv_cval_el0";
    /// SCTLR_EL1.
    read_sctlr_el1 write_sctlr_el1 "sctlr_el1";
    /// ELR_EL1.
    read_elr_el1 write_elr_el1 "elr_el1";
    /// SPSR_EL1.
    read_spsr_el1 write_spsr_el1 "spsr_el1";
    /// ESR_EL1.
    read_esr_el1 write_esr_el1 "esr_el1";
    /// FAR_EL1.
    read_far_el1 write_far_el1 "far_el1";
    /// TCR_EL1.
    read_tcr_el1 _write_tcr_el1 "tcr_el1";
    /// VBAR_EL1.
    read_vbar_el1 write_vbar_el1 "vbar_el1";
    /// PAR_EL1.
    read_par_el1 write_par_el1 "par_el1";
    /// CNTPCT_EL0: the physical counter.
    read_cntpct_el0 _write_cntpct_el0 "cntpct_el0";
    /// SPSR_abt, of an EL1 in AArch32; as all here to IFSR32_EL2 UNDEFINED if it can't be.
    read_spsr_abt write_spsr_abt "spsr_abt";
    /// SPSR_und.
    read_spsr_und write_spsr_und "spsr_und";
    /// SPSR_irq.
    read_spsr_irq write_spsr_irq "spsr_irq";
    /// SPSR_fiq.
    read_spsr_fiq write_spsr_fiq "spsr_fiq";
    /// DBGVCR32_EL2: DBGVCR.
    read_dbgvcr32_el2 write_dbgvcr32_el2 "dbgvcr32_el2";
    /// DACR32_EL2: DACR.
    read_dacr32_el2 write_dacr32_el2 "dacr32_el2";
    /// IFSR32_EL2: IFSR.
    read_ifsr32_el2 write_ifsr32_el2 "ifsr32_el2";
    /// SMIDR_EL1: which implementation of SME. UNDEFINED without SME.
    read_smidr_el1 _write_smidr_el1 "s3_1_c0_c0_6";
}

/// The ID registers of op0 3, op1 0, CRn 0: CRm 1 to 7, op2 0 to 7. Those of AArch32 (CRm 1 to 3) are UNKNOWN
/// without it; the rest reads as zero where nothing is allocated (Arm ARM D24.3, "op0==0b11, the ID registers").
pub fn read_id_registers() -> [u64; 7 * 8] {
    macro_rules! read {
        ($($crm:literal)*) => { [$(read!($crm, 0 1 2 3 4 5 6 7)),*] };
        ($crm:literal, $($op2:literal)*) => {
            [$({
                let value: u64;
                // SAFETY: reading an ID register has no effect but to give its value.
                unsafe {
                    asm!(
                        concat!("mrs {}, s3_0_c0_c", $crm, "_", $op2),
                        out(reg) value,
                        options(nomem, nostack)
                    );
                }
                value
            }),*]
        };
    }
    let rows: [[u64; 8]; 7] = read!(1 2 3 4 5 6 7);
    core::array::from_fn(|n| rows[n / 8][n % 8])
}

macro_rules! zero {
    ($($(#[$doc:meta])* $clear:ident $name:literal;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $clear() {
                // SAFETY: as those of `gap`.
                unsafe { asm!(concat!("msr ", $name, ", xzr"), options(nostack)) };
            }
        )*
    };
}

zero! {
    /// VDISR_EL2 = 0. These are here because they are in each exit: XZR takes no instruction to make.
    clear_vdisr_el2 "s3_4_c12_c1_1";
    /// ICH_HCR_EL2 = 0.
    clear_ich_hcr_el2 "s3_4_c12_c11_0";
    /// CNTVOFF_EL2 = 0.
    clear_cntvoff_el2 "cntvoff_el2";
    /// CNTHP_CTL_EL2 = 0.
    clear_cnthp_ctl_el2 "cnthp_ctl_el2";
    /// DISR_EL1 = 0 (FEAT_RAS).
    clear_disr_el1 "s3_0_c12_c1_1";
}

/// Error synchronisation barrier (ESB), and what it deferred: DISR_EL1. The CPU has FEAT_RAS, and SErrors are masked.
#[inline(always)]
pub fn deferred_serror() -> u64 {
    let disr;
    // SAFETY: a barrier, and a register that says what came of it. Not `nomem`: it is about accesses that came before.
    unsafe { asm!("hint #16", "mrs {}, s3_0_c12_c1_1", out(reg) disr, options(nostack)) };
    disr
}

/// Instruction synchronisation barrier.
#[inline(always)]
pub fn isb() {
    // SAFETY: a barrier. Not `nomem`: what was written before it is meant to be in force after it.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Data synchronisation barrier over the non-shareable domain: this CPU's own table walks, too.
#[inline(always)]
pub fn dsb_nsh() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb nsh", options(nostack, preserves_flags)) };
}

/// Data synchronisation barrier over the full system: errors of accesses that came before are known.
#[inline(always)]
pub fn dsb_sy() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Data synchronisation barrier over the inner shareable domain.
#[inline(always)]
pub fn dsb_ish() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
}
