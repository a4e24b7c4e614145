//! What AArch32 adds to an EL1, in registers of EL2's.

#![forbid(unsafe_code)]

use crate::arch::sysreg::*;

/// HSTR_EL2: coprocessor 15, CRn 15.
const HSTR_T15: u64 = 1 << 15;

/// SCTLR of an AArch32 EL1 after reset, as SCTLR_EL1: RES1 bits, nTWE, nTWI, CP15BEN, LSMAOE, nTLSMD. A32,
/// little-endian, vectors at VBAR.
pub const SCTLR_RESET: u64 = 0x00c5_0878;

/// PSTATE of an AArch32 EL1 that starts: Supervisor mode, A32, A, I and F masked.
pub const PSTATE_SVC_MASKED: u64 = 0x1d3;

/// PSTATE.T: T32.
pub const PSTATE_T32: u64 = 1 << 5;

/// PSTATE.E: data accesses are big-endian.
pub const PSTATE_E: u64 = 1 << 9;

/// What an AArch32 EL1 has in registers of EL2's, which are UNDEFINED on a CPU without it.
#[derive(Clone, Debug, Default)]
pub struct Aarch32Regs {
    spsr_abt: u64,
    spsr_und: u64,
    spsr_irq: u64,
    spsr_fiq: u64,
    dacr32_el2: u64,
    ifsr32_el2: u64,
}

impl Aarch32Regs {
    /// SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq, DACR32_EL2 and IFSR32_EL2, while they are in no CPU's registers.
    pub fn registers(&mut self) -> [&mut u64; 6] {
        [
            &mut self.spsr_abt,
            &mut self.spsr_und,
            &mut self.spsr_irq,
            &mut self.spsr_fiq,
            &mut self.dacr32_el2,
            &mut self.ifsr32_el2,
        ]
    }

    /// The vCPU is bound to this CPU, which has AArch32: its registers go into place.
    pub fn load(&self) {
        write_spsr_abt(self.spsr_abt);
        write_spsr_und(self.spsr_und);
        write_spsr_irq(self.spsr_irq);
        write_spsr_fiq(self.spsr_fiq);
        write_dacr32_el2(self.dacr32_el2);
        write_ifsr32_el2(self.ifsr32_el2);
        write_hstr_el2(HSTR_T15);
    }

    /// It is unbound.
    pub fn put(&mut self) {
        self.spsr_abt = read_spsr_abt();
        self.spsr_und = read_spsr_und();
        self.spsr_irq = read_spsr_irq();
        self.spsr_fiq = read_spsr_fiq();
        self.dacr32_el2 = read_dacr32_el2();
        self.ifsr32_el2 = read_ifsr32_el2();
        write_hstr_el2(0);
    }
}
