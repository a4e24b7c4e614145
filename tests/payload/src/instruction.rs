//! Instructions as words, for the puppet to execute. All use x0, memory accesses [x1].

/// A system register by its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SysReg {
    /// Op0
    pub op0: u32,
    /// Op1
    pub op1: u32,
    /// CRn
    pub crn: u32,
    /// CRm
    pub crm: u32,
    /// Op2
    pub op2: u32,
}

/// A system register.
pub const fn reg(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> SysReg {
    SysReg { op0, op1, crn, crm, op2 }
}

impl SysReg {
    const fn fields(self) -> u32 {
        self.op0 << 19 | self.op1 << 16 | self.crn << 12 | self.crm << 8 | self.op2 << 5
    }

    /// MRS x0, this.
    pub const fn mrs(self) -> u32 {
        0xd520_0000 | self.fields()
    }

    /// MSR this, x0.
    pub const fn msr(self) -> u32 {
        0xd500_0000 | self.fields()
    }
}

/// NOP
pub const NOP: u32 = 0xd503_201f;
/// WFI
pub const WFI: u32 = 0xd503_207f;
/// HVC #0
pub const HVC: u32 = 0xd400_0002;
/// SMC #0
pub const SMC: u32 = 0xd400_0003;
/// MSR DAIFClr, #2
pub const UNMASK_IRQ: u32 = 0xd503_42ff;
/// MSR DAIFSet, #2
pub const MASK_IRQ: u32 = 0xd503_42df;
/// FMOV D0, X0, and X0, D0.
pub const FMOV_D0_X0: u32 = 0x9e67_0000;
pub const FMOV_X0_D0: u32 = 0x9e66_0000;
/// FMOV D0, XZR: an Advanced SIMD and floating-point instruction.
pub const FP: u32 = 0x9e67_03e0;
/// RDVL X0, #1
pub const RDVL: u32 = 0x04bf_5020;
/// PTRUE P0.B: an SVE instruction.
pub const SVE: u32 = 0x2518_e3e0;
/// SMSTART SM (MSR SVCRSM, #1)
pub const SMSTART_SM: u32 = 0xd503_437f;
/// SMSTART ZA
pub const SMSTART_ZA: u32 = 0xd503_457f;
/// SMSTOP
pub const SMSTOP: u32 = 0xd503_467f;
/// RDSVL X0, #1
pub const RDSVL: u32 = 0x04bf_5820;
/// ZERO {ZA}
pub const ZERO_ZA: u32 = 0xc008_00ff;
/// ADD V0.4S, V0.4S, V0.4S: illegal in streaming mode without FEAT_SME_FA64.
pub const ADVSIMD: u32 = 0x4ea0_8400;
/// BR x0: with x0 an address that can't be fetched, an instruction abort there.
pub const BR: u32 = 0xd61f_0000;
/// LDRB w0, [x1]
pub const LDRB: u32 = 0x3940_0020;
/// LDRH w0, [x1]
pub const LDRH: u32 = 0x7940_0020;
/// LDR w0, [x1]
pub const LDR32: u32 = 0xb940_0020;
/// LDR x0, [x1]
pub const LDR64: u32 = 0xf940_0020;
/// LDRSB w0, [x1]
pub const LDRSB32: u32 = 0x39c0_0020;
/// LDRSB x0, [x1]
pub const LDRSB64: u32 = 0x3980_0020;
/// LDRSH w0, [x1]
pub const LDRSH32: u32 = 0x79c0_0020;
/// LDRSH x0, [x1]
pub const LDRSH64: u32 = 0x7980_0020;
/// LDRSW x0, [x1]
pub const LDRSW: u32 = 0xb980_0020;
/// STRB w0, [x1]
pub const STRB: u32 = 0x3900_0020;
/// STRH w0, [x1]
pub const STRH: u32 = 0x7900_0020;
/// STR w0, [x1]
pub const STR32: u32 = 0xb900_0020;
/// STR x0, [x1]
pub const STR64: u32 = 0xf900_0020;
/// LDR xzr, [x1]
pub const LDR64_XZR: u32 = 0xf940_003f;
/// STR xzr, [x1]
pub const STR64_XZR: u32 = 0xf900_003f;
/// STP x0, x2, [x1]: can't be emulated from its syndrome.
pub const STP: u32 = 0xa900_0820;
/// LDP x0, x2, [x1]: can't be emulated from its syndrome.
pub const LDP: u32 = 0xa940_0820;

/// Registers that more than one test uses.
pub mod sysreg {
    use super::{SysReg, reg};

    /// CNTV_CTL_EL0
    pub const CNTV_CTL: SysReg = reg(3, 3, 14, 3, 1);
    /// CNTV_CVAL_EL0
    pub const CNTV_CVAL: SysReg = reg(3, 3, 14, 3, 2);
    /// CNTVCT_EL0
    pub const CNTVCT: SysReg = reg(3, 3, 14, 0, 2);
    /// ICC_PMR_EL1
    pub const ICC_PMR: SysReg = reg(3, 0, 4, 6, 0);
    /// ICC_IGRPEN1_EL1
    pub const ICC_IGRPEN1: SysReg = reg(3, 0, 12, 12, 7);
    /// ICC_IGRPEN0_EL1
    pub const ICC_IGRPEN0: SysReg = reg(3, 0, 12, 12, 6);
    /// ICC_IAR0_EL1
    pub const ICC_IAR0: SysReg = reg(3, 0, 12, 8, 0);
    /// ICC_EOIR0_EL1
    pub const ICC_EOIR0: SysReg = reg(3, 0, 12, 8, 1);
    /// ICC_BPR1_EL1
    pub const ICC_BPR1: SysReg = reg(3, 0, 12, 12, 3);
    /// ICC_IAR1_EL1
    pub const ICC_IAR1: SysReg = reg(3, 0, 12, 12, 0);
    /// ICC_RPR_EL1
    pub const ICC_RPR: SysReg = reg(3, 0, 12, 11, 3);
    /// ICC_DIR_EL1
    pub const ICC_DIR: SysReg = reg(3, 0, 12, 11, 1);
    /// ICC_CTLR_EL1
    pub const ICC_CTLR: SysReg = reg(3, 0, 12, 12, 4);
    /// ICC_EOIR1_EL1
    pub const ICC_EOIR1: SysReg = reg(3, 0, 12, 12, 1);
    /// ICC_SGI1R_EL1
    pub const ICC_SGI1R: SysReg = reg(3, 0, 12, 11, 5);
    /// MPIDR_EL1
    pub const MPIDR: SysReg = reg(3, 0, 0, 0, 5);
    /// ZCR_EL1
    pub const ZCR: SysReg = reg(3, 0, 1, 2, 0);
    /// SMCR_EL1
    pub const SMCR: SysReg = reg(3, 0, 1, 2, 6);
    /// SVCR
    pub const SVCR: SysReg = reg(3, 3, 4, 2, 2);
    /// FPMR
    pub const FPMR: SysReg = reg(3, 3, 4, 4, 2);
    /// TPIDR2_EL0
    pub const TPIDR2: SysReg = reg(3, 3, 13, 0, 5);
    /// SMIDR_EL1
    pub const SMIDR: SysReg = reg(3, 1, 0, 0, 6);
    /// SMPRI_EL1
    pub const SMPRI: SysReg = reg(3, 0, 1, 2, 4);
    /// ID_AA64PFR1_EL1
    pub const PFR1: SysReg = reg(3, 0, 0, 4, 1);
    /// ID_AA64PFR2_EL1
    pub const PFR2: SysReg = reg(3, 0, 0, 4, 2);
    /// ID_AA64SMFR0_EL1
    pub const SMFR0: SysReg = reg(3, 0, 0, 4, 5);
}
