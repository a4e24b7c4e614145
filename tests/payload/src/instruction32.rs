//! A32 instructions as words, for the AArch32 puppet to execute. All use r0, and r1 for addresses and second
//! registers.

/// A coprocessor's register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cp {
    coprocessor: u32,
    opc1: u32,
    crn: u32,
    crm: u32,
    opc2: u32,
}

/// Always.
const AL: u32 = 0xe << 28;

/// A register of coprocessor 15.
pub const fn cp15(crn: u32, opc1: u32, crm: u32, opc2: u32) -> Cp {
    Cp { coprocessor: 15, opc1, crn, crm, opc2 }
}

/// One of coprocessor 14.
pub const fn cp14(crn: u32, opc1: u32, crm: u32, opc2: u32) -> Cp {
    Cp { coprocessor: 14, opc1, crn, crm, opc2 }
}

impl Cp {
    const fn fields(self) -> u32 {
        0x0e00_0010
            | self.opc1 << 21
            | self.crn << 16
            | self.coprocessor << 8
            | self.opc2 << 5
            | self.crm
    }

    /// MRC to r0.
    pub const fn mrc(self) -> u32 {
        AL | self.fields() | 1 << 20
    }

    /// MCR of r0.
    pub const fn mcr(self) -> u32 {
        AL | self.fields()
    }
}

/// MRRC to r0 (low) and r1.
pub const fn mrrc(coprocessor: u32, opc1: u32, crm: u32) -> u32 {
    AL | 0x0c51_0000 | coprocessor << 8 | opc1 << 4 | crm
}

/// MCRR of r0 (low) and r1.
pub const fn mcrr(coprocessor: u32, opc1: u32, crm: u32) -> u32 {
    AL | 0x0c41_0000 | coprocessor << 8 | opc1 << 4 | crm
}

/// The instruction with this condition.
pub const fn conditional(instruction: u32, condition: u32) -> u32 {
    instruction & 0x0fff_ffff | condition << 28
}

/// MRS r0, the banked register with this number (SYSm), or with bit 5 the SPSR.
pub const fn mrs_banked(number: u32) -> u32 {
    AL | 0x0100_0200 | (number >> 5 & 1) << 22 | (number & 0xf) << 16 | (number >> 4 & 1) << 8
}

/// MSR of r0 to it.
pub const fn msr_banked(number: u32) -> u32 {
    AL | 0x0120_f200 | (number >> 5 & 1) << 22 | (number & 0xf) << 16 | (number >> 4 & 1) << 8
}

/// SPSRs by their number.
pub const SPSR_FIQ: u32 = 0x2e;
/// SPSR_irq
pub const SPSR_IRQ: u32 = 0x30;
/// SPSR_abt
pub const SPSR_ABT: u32 = 0x34;
/// SPSR_und
pub const SPSR_UND: u32 = 0x36;

/// MRS r0, SPSR: that of the mode it runs in.
pub const MRS_SPSR: u32 = 0xe14f_0000;
/// MSR SPSR_fsxc, r0
pub const MSR_SPSR: u32 = 0xe16f_f000;
/// MSR CPSR_f, r0
pub const MSR_FLAGS: u32 = 0xe128_f000;
/// NOP
pub const NOP: u32 = 0xe320_f000;
/// WFI
pub const WFI: u32 = 0xe320_f003;
/// HVC #0
pub const HVC: u32 = 0xe140_0070;
/// SMC #0
pub const SMC: u32 = 0xe160_0070;
/// BX LR
pub const BX_LR: u32 = 0xe12f_ff1e;
/// BX r0
pub const BX_R0: u32 = 0xe12f_ff10;
/// CPSIE i
pub const UNMASK_IRQ: u32 = 0xf108_0080;
/// UDF #0
pub const UDF: u32 = 0xe7f0_00f0;
/// LDRB r0, [r1]
pub const LDRB: u32 = 0xe5d1_0000;
/// LDRH r0, [r1]
pub const LDRH: u32 = 0xe1d1_00b0;
/// LDR r0, [r1]
pub const LDR: u32 = 0xe591_0000;
/// LDRSB r0, [r1]
pub const LDRSB: u32 = 0xe1d1_00d0;
/// LDRSH r0, [r1]
pub const LDRSH: u32 = 0xe1d1_00f0;
/// STRB r0, [r1]
pub const STRB: u32 = 0xe5c1_0000;
/// STRH r0, [r1]
pub const STRH: u32 = 0xe1c1_00b0;
/// STR r0, [r1]
pub const STR: u32 = 0xe581_0000;
/// LDM r1, {r0, r2}: can't be emulated from its syndrome.
pub const LDM: u32 = 0xe891_0005;
/// VMRS r0, FPEXC
pub const VMRS_FPEXC: u32 = 0xeef8_0a10;
/// VMSR FPEXC, r0
pub const VMSR_FPEXC: u32 = 0xeee8_0a10;
/// VMRS r0, FPSCR
pub const VMRS_FPSCR: u32 = 0xeef1_0a10;
/// VMRS r0, MVFR0; MVFR1 and MVFR2 have one less in CRn's place each.
pub const VMRS_MVFR0: u32 = 0xeef7_0a10;
/// VMOV s0, r0
pub const VMOV_S0: u32 = 0xee00_0a10;
/// VMOV r0, s0
pub const VMOV_R0: u32 = 0xee10_0a10;
/// VADD.I32 Q0, Q0, Q0: Advanced SIMD.
pub const VADD: u32 = 0xf220_0840;

/// Registers that more than one test uses.
pub mod reg {
    use super::{Cp, cp15};

    /// MPIDR
    pub const MPIDR: Cp = cp15(0, 0, 0, 5);
    /// SCTLR
    pub const SCTLR: Cp = cp15(1, 0, 0, 0);
    /// CPACR
    pub const CPACR: Cp = cp15(1, 0, 0, 2);
    /// ACTLR
    pub const ACTLR: Cp = cp15(1, 0, 0, 1);
    /// TTBCR
    pub const TTBCR: Cp = cp15(2, 0, 0, 2);
    /// VBAR
    pub const VBAR: Cp = cp15(12, 0, 0, 0);
    /// ICC_PMR
    pub const ICC_PMR: Cp = cp15(4, 0, 6, 0);
    /// ICC_IGRPEN1
    pub const ICC_IGRPEN1: Cp = cp15(12, 0, 12, 7);
    /// ICC_EOIR1
    pub const ICC_EOIR1: Cp = cp15(12, 0, 12, 1);
    /// ICC_SRE
    pub const ICC_SRE: Cp = cp15(12, 0, 12, 5);
    /// CNTV_CTL
    pub const CNTV_CTL: Cp = cp15(14, 0, 3, 1);
}
