//! Which registers a CPU has, and what EL3 must open for lower ELs to reach them.
//!
//! An enable that is left out shows as a trap to EL3 at the first use; one that is set for what the
//! CPU lacks is RES0 and does nothing but say something wrong to whoever reads it.

/// The ID registers that decide.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the architecture's names")]
pub struct IdRegisters {
    pub pfr0: u64,
    pub pfr1: u64,
    pub pfr2: u64,
    pub dfr0: u64,
    pub isar1: u64,
    pub isar2: u64,
    pub mmfr0: u64,
    pub mmfr1: u64,
    pub mmfr3: u64,
    pub smfr0: u64,
}

/// FEAT_SVE is there.
pub const SVE: u64 = 1 << 0;
/// FEAT_SME is there.
pub const SME: u64 = 1 << 1;
/// FEAT_FGT is there.
pub const FGT: u64 = 1 << 2;
/// FEAT_FGT2 is there.
pub const FGT2: u64 = 1 << 3;
/// FEAT_HCX is there.
pub const HCX: u64 = 1 << 4;
/// FEAT_FGT and the activity monitors are there.
pub const FGT_AMU: u64 = 1 << 5;
/// FEAT_SME2 is there.
pub const SME2: u64 = 1 << 6;
/// FEAT_FPMR is there.
pub const FPMR: u64 = 1 << 7;
/// FEAT_PAuth is there.
pub const PAUTH: u64 = 1 << 8;
/// FEAT_RAS is there.
pub const RAS: u64 = 1 << 9;
/// EL1 can be AArch32.
pub const AARCH32: u64 = 1 << 10;
/// FEAT_CSV2_2 is there: SCXTNUM_ELx.
pub const SCXT: u64 = 1 << 11;
/// FEAT_VHE is there.
pub const VHE: u64 = 1 << 12;
/// FEAT_TRF is there.
pub const TRF: u64 = 1 << 13;
/// FEAT_PMUv3 is there.
pub const PMU: u64 = 1 << 14;

const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xf
}

impl IdRegisters {
    /// Whether the CPU has SVE.
    pub const fn has_sve(&self) -> bool {
        field(self.pfr0, 32) >= 1
    }

    /// Whether the CPU has SME.
    pub const fn has_sme(&self) -> bool {
        field(self.pfr1, 24) >= 1
    }

    /// Whether the CPU has ZT0.
    pub const fn has_sme2(&self) -> bool {
        field(self.pfr1, 24) >= 2
    }

    /// Whether the CPU has FPMR.
    pub const fn has_fpmr(&self) -> bool {
        field(self.pfr2, 32) >= 1
    }

    const fn has_pauth(&self) -> bool {
        field(self.isar1, 4) != 0
            || field(self.isar1, 8) != 0
            || field(self.isar1, 24) != 0
            || field(self.isar1, 28) != 0
            || field(self.isar2, 8) != 0
            || field(self.isar2, 12) != 0
    }

    const fn has_csv2_2(&self) -> bool {
        field(self.pfr0, 56) >= 2 || field(self.pfr1, 32) >= 2
    }

    /// SCR_EL3 for a non-secure AArch64 EL2 that may use all that the CPU has. FIQ: Group 0
    /// interrupts are EL3's own, by which it wakes CPUs.
    pub const fn scr_el3(&self) -> u64 {
        const NS: u64 = 1 << 0;
        const FIQ: u64 = 1 << 2;
        const RES1: u64 = 3 << 4;
        const HCE: u64 = 1 << 8;
        const RW: u64 = 1 << 10;
        const APK_API: u64 = 3 << 16;
        let permissions = field(self.mmfr3, 8)
            | field(self.mmfr3, 12)
            | field(self.mmfr3, 16)
            | field(self.mmfr3, 20);
        NS | FIQ
            | RES1
            | HCE
            | RW
            | if self.has_pauth() { APK_API } else { 0 }
            | enable(field(self.pfr0, 28) >= 2 || field(self.pfr1, 12) >= 1, 21) // FIEN
            | enable(self.has_csv2_2(), 25) // EnSCXT
            | enable(field(self.pfr1, 8) >= 2, 26) // ATA
            | enable(field(self.mmfr0, 56) >= 1, 27) // FGTEn
            | enable(field(self.mmfr0, 60) >= 2, 28) // ECVEn
            | enable(field(self.pfr0, 44) >= 2, 35) // AMVOFFEN
            | enable(field(self.isar1, 60) >= 3, 36) // EnAS0
            | enable(field(self.isar1, 60) >= 3, 37) // ADEn
            | enable(field(self.mmfr1, 40) >= 1, 38) // HXEn
            | enable(field(self.pfr1, 44) >= 1, 39) // GCSEn
            | enable(self.has_sme(), 41) // EnTP2
            | enable(field(self.mmfr3, 0) >= 1, 43) // TCR2En
            | enable(field(self.mmfr3, 4) >= 1, 44) // SCTLR2En
            | enable(permissions != 0, 45) // PIEn
            | enable(field(self.mmfr3, 24) >= 1, 46) // AIEn
            | enable(self.has_fpmr(), 50) // EnFPM
            | enable(field(self.mmfr0, 56) >= 2, 59) // FGTEn2
    }

    /// CPTR_EL3: SVE (EZ) and SME (ESM) for all, nothing trapped.
    pub const fn cptr_el3(&self) -> u64 {
        enable(self.has_sve(), 8) | enable(self.has_sme(), 12)
    }

    /// MDCR_EL3: nothing trapped; the statistical profiling and trace buffers, where there are any,
    /// belong to non-secure EL2 and EL1.
    pub const fn mdcr_el3(&self) -> u64 {
        let spe = if field(self.dfr0, 32) >= 1 { 3 << 12 } else { 0 };
        let trbe = if field(self.dfr0, 44) >= 1 { 3 << 24 } else { 0 };
        spe | trbe
    }

    /// SMCR_EL3 without LEN: FA64 and EZT0 where there.
    pub const fn smcr_el3(&self) -> u64 {
        enable(self.smfr0 >> 63 != 0, 31) | enable(self.has_sme2(), 30)
    }

    /// What there is to fill with junk: [`SVE`], [`SME`], ...
    pub const fn present(&self) -> u64 {
        let fgt = field(self.mmfr0, 56);
        let amu = field(self.pfr0, 44) >= 1;
        (if self.has_sve() { SVE } else { 0 })
            | (if self.has_sme() { SME } else { 0 })
            | (if self.has_sme2() { SME2 } else { 0 })
            | (if self.has_fpmr() { FPMR } else { 0 })
            | (if fgt >= 1 { FGT } else { 0 })
            | (if fgt >= 2 { FGT2 } else { 0 })
            | (if field(self.mmfr1, 40) >= 1 { HCX } else { 0 })
            | (if fgt >= 1 && amu { FGT_AMU } else { 0 })
            | (if self.has_pauth() { PAUTH } else { 0 })
            | (if field(self.pfr0, 28) >= 1 { RAS } else { 0 })
            | (if field(self.pfr0, 4) == 2 { AARCH32 } else { 0 })
            | (if self.has_csv2_2() { SCXT } else { 0 })
            | (if field(self.mmfr1, 8) >= 1 { VHE } else { 0 })
            | (if field(self.dfr0, 40) >= 1 { TRF } else { 0 })
            | (if !matches!(field(self.dfr0, 8), 0 | 0xf) { PMU } else { 0 })
    }
}

const fn enable(present: bool, bit: u32) -> u64 {
    (present as u64) << bit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_cpu_gets_nothing_it_lacks() {
        let id = IdRegisters::default();
        assert_eq!(id.scr_el3(), 0x535);
        assert_eq!((id.cptr_el3(), id.mdcr_el3(), id.smcr_el3(), id.present()), (0, 0, 0, 0));
    }

    #[test]
    fn each_feature_opens_its_own() {
        let scr = |id: IdRegisters| id.scr_el3() & !0x535;
        let none = IdRegisters::default();
        assert_eq!(scr(IdRegisters { isar2: 1 << 12, ..none }), 3 << 16);
        assert_eq!(scr(IdRegisters { pfr1: 2 << 8, ..none }), 1 << 26);
        // MTE at EL0 only has no tags in memory.
        assert_eq!(scr(IdRegisters { pfr1: 1 << 8, ..none }), 0);
        assert_eq!(scr(IdRegisters { mmfr0: 2 << 56, ..none }), 1 << 27 | 1 << 59);
        assert_eq!(scr(IdRegisters { mmfr0: 1 << 60, ..none }), 0);
        let sme2 = IdRegisters { pfr1: 2 << 24, pfr0: 1 << 32, smfr0: 1 << 63, ..none };
        assert_eq!(scr(sme2), 1 << 41);
        assert_eq!(sme2.cptr_el3(), 1 << 8 | 1 << 12);
        assert_eq!(sme2.smcr_el3(), 3 << 30);
        assert_eq!(sme2.present(), SVE | SME | SME2);
        let fpmr = IdRegisters { pfr2: 1 << 32, ..none };
        assert_eq!((scr(fpmr), fpmr.present()), (1 << 50, FPMR));
        let old = IdRegisters { pfr0: 1 << 28 | 2 << 4, dfr0: 1 << 40 | 4 << 8, ..none };
        assert_eq!(old.present(), RAS | AARCH32 | TRF | PMU);
        // An IMPLEMENTATION DEFINED PMU has other registers.
        let other = IdRegisters { dfr0: 0xf << 8, mmfr1: 1 << 8, isar1: 1 << 4, ..none };
        assert_eq!(other.present(), VHE | PAUTH);
    }
}
