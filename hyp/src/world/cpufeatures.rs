//! What a CPU has, as far as hyp must know it: read once per CPU from its ID registers.
//!
//! The decoding is pure, so that it is tested on any machine; [`IdRegisters`] is what the hardware
//! (or a test) supplies.

#![forbid(unsafe_code)]

use bitflags::bitflags;

/// Raw ID registers.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are the Arm ARM's register names")]
pub struct IdRegisters {
    pub pfr0: u64,
    pub pfr1: u64,
    pub pfr2: u64,
    pub zfr0: u64,
    pub smfr0: u64,
    pub fpfr0: u64,
    /// Where there is SME.
    pub smidr: u64,
    pub dfr0: u64,
    pub isar0: u64,
    pub isar1: u64,
    pub isar2: u64,
    pub mmfr0: u64,
    pub mmfr1: u64,
    pub mmfr2: u64,
    /// PMCR_EL0.N, where there is a PMU.
    pub pmcr_n: u64,
    /// AArch32's ID registers, where EL1 can be AArch32: CRm 1 to 3, op2 0 to 7. Zero elsewhere.
    pub aarch32: [u64; AARCH32_REGISTERS],
}

/// AArch32's ID registers.
pub const AARCH32_REGISTERS: usize = 3 * 8;

/// ID registers that the sysreg crate lacks.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are the Arm ARM's register names")]
pub struct Gaps {
    pub zfr0: u64,
    pub smfr0: u64,
    pub fpfr0: u64,
    pub smidr: u64,
}

#[cfg(any(test, target_os = "none"))]
impl IdRegisters {
    /// Those of the CPU that executes this; `gaps` are the registers that the sysreg crate lacks. In tests
    /// the registers are the crate's fakes.
    pub fn read(gaps: Gaps) -> Self {
        use arm_sysregs::{el0::accessors as el0, el1::accessors as el1};
        let dfr0 = el1::read_id_aa64dfr0_el1().bits();
        // PMCR_EL0 exists only with an architected PMU.
        let pmu = !matches!(field(dfr0, 8), 0 | 0xf);
        Self {
            pfr0: el1::read_id_aa64pfr0_el1().bits(),
            pfr1: el1::read_id_aa64pfr1_el1().bits(),
            pfr2: el1::read_id_aa64pfr2_el1().bits(),
            zfr0: gaps.zfr0,
            smfr0: gaps.smfr0,
            fpfr0: gaps.fpfr0,
            smidr: gaps.smidr,
            dfr0,
            isar0: el1::read_id_aa64isar0_el1().bits(),
            isar1: el1::read_id_aa64isar1_el1().bits(),
            isar2: el1::read_id_aa64isar2_el1().bits(),
            mmfr0: el1::read_id_aa64mmfr0_el1().bits(),
            mmfr1: el1::read_id_aa64mmfr1_el1().bits(),
            mmfr2: el1::read_id_aa64mmfr2_el1().bits(),
            pmcr_n: if pmu { el0::read_pmcr_el0().bits() >> 11 & 0x1f } else { 0 },
            // Only where they are known to exist, by the caller.
            aarch32: [0; AARCH32_REGISTERS],
        }
    }
}

/// A four-bit ID field.
pub const fn field(register: u64, low_bit: u32) -> u64 {
    register >> low_bit & 0xf
}

bitflags! {
    /// What a guest with FP registers is shown that CPUs may differ in, beside lengths.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FpExtras: u8 {
        /// FEAT_SME2.
        const ZT0 = 1 << 0;
        /// FEAT_SME_FA64.
        const FA64 = 1 << 1;
        /// FEAT_FPMR.
        const FPMR = 1 << 2;
    }
}

impl IdRegisters {
    /// As of a CPU that has no more of these than others have.
    #[must_use]
    pub const fn with_fp_extras(mut self, common: FpExtras) -> Self {
        if !common.contains(FpExtras::ZT0) {
            // SME without SMEver.
            let sme = if field(self.pfr1, 24) != 0 { 1 << 24 } else { 0 };
            self.pfr1 = self.pfr1 & !(0xf << 24) | sme;
            self.smfr0 &= !(0xf << 56);
        }
        if !common.contains(FpExtras::FA64) {
            self.smfr0 &= !(1 << 63);
        }
        if !common.contains(FpExtras::FPMR) {
            self.pfr2 &= !(0xf << 32);
            self.fpfr0 = 0;
        }
        self
    }
}

/// What hyp decides by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME.
    pub sme: bool,
    /// EL1 can be AArch32. If it can't, some registers of EL2's are UNDEFINED.
    pub aarch32: bool,
    /// FEAT_PAuth, of either algorithm.
    pub pauth: bool,
    /// FEAT_MTE2 or later.
    pub mte: bool,
    /// FEAT_CSV2_2: SCXTNUM_ELx.
    pub csv2_2: bool,
    /// FEAT_RASv1p1: fault injection registers.
    pub ras_fault_injection: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_FGT2.
    pub fgt2: bool,
    /// FEAT_MPAM.
    pub mpam: bool,
    /// FEAT_AMUv1: activity monitors, and with FEAT_FGT their trap register.
    pub amu: bool,
    /// FEAT_RAS: DISR_EL1, which is VDISR_EL2 for a guest.
    pub ras: bool,
    /// FEAT_SME2: ZT0.
    pub sme2: bool,
    /// FEAT_SME_FA64: all instructions, and FFR, in streaming mode.
    pub sme_fa64: bool,
    /// FEAT_FPMR.
    pub fpmr: bool,
    /// FEAT_TRF: TRFCR_EL1.
    pub trace_filter: bool,
    /// FEAT_BRBE: branch records.
    pub brbe: bool,
    /// FEAT_PMUv3p1 or later: MDCR_EL2.HPMD.
    pub pmu_hpmd: bool,
    /// The GIC's system registers.
    pub gic_sysregs: bool,
    /// PMCR_EL0.N: event counters, for MDCR_EL2.HPMN.
    pub pmu_counters: u64,
    /// Physical address bits, 32..=48 (what lies above 48 is not used).
    pub pa_bits: u32,
}

impl CpuFeatures {
    /// What of [`FpExtras`] it has.
    pub fn fp_extras(&self) -> FpExtras {
        let mut extras = FpExtras::empty();
        extras.set(FpExtras::ZT0, self.sme2);
        extras.set(FpExtras::FA64, self.sme_fa64);
        extras.set(FpExtras::FPMR, self.fpmr);
        extras
    }

    /// Decodes ID registers.
    pub fn new(id: &IdRegisters) -> Self {
        let pmu = field(id.dfr0, 8);
        Self {
            sve: field(id.pfr0, 32) != 0,
            sme: field(id.pfr1, 24) != 0,
            aarch32: field(id.pfr0, 4) == 2,
            pauth: field(id.isar1, 4) != 0 // APA
                || field(id.isar1, 8) != 0 // API
                || field(id.isar2, 12) != 0, // APA3
            mte: field(id.pfr1, 8) >= 2,
            csv2_2: field(id.pfr0, 56) >= 2,
            ras_fault_injection: field(id.pfr0, 28) >= 2
                || (field(id.pfr0, 28) == 1 && field(id.pfr1, 12) >= 1),
            hcx: field(id.mmfr1, 40) != 0,
            fgt: field(id.mmfr0, 56) != 0,
            fgt2: field(id.mmfr0, 56) >= 2,
            mpam: field(id.pfr0, 40) != 0 || field(id.pfr1, 16) != 0,
            ras: field(id.pfr0, 28) != 0,
            sme2: field(id.pfr1, 24) >= 2,
            sme_fa64: id.smfr0 >> 63 != 0,
            fpmr: field(id.pfr2, 32) != 0,
            trace_filter: field(id.dfr0, 40) != 0,
            brbe: field(id.dfr0, 52) != 0,
            pmu_hpmd: (4..0xf).contains(&pmu),
            amu: field(id.pfr0, 44) != 0,
            gic_sysregs: field(id.pfr0, 24) != 0,
            pmu_counters: if pmu == 0 || pmu == 0xf { 0 } else { id.pmcr_n },
            pa_bits: match field(id.mmfr0, 0) {
                0 => 32,
                1 => 36,
                2 => 40,
                3 => 42,
                4 => 44,
                _ => 48,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_register_is_read_into_its_own_field() {
        use arm_sysregs::{el0, el1};
        {
            let mut fakes = el1::fake::SYSREGS.lock().unwrap();
            fakes.id_aa64pfr0_el1 = el1::registers::IdAa64pfr0El1::from_bits_retain(1);
            fakes.id_aa64pfr1_el1 = el1::registers::IdAa64pfr1El1::from_bits_retain(2);
            fakes.id_aa64isar1_el1 = el1::registers::IdAa64isar1El1::from_bits_retain(3);
            fakes.id_aa64isar2_el1 = el1::registers::IdAa64isar2El1::from_bits_retain(4);
            fakes.id_aa64mmfr0_el1 = el1::registers::IdAa64mmfr0El1::from_bits_retain(5);
            fakes.id_aa64mmfr1_el1 = el1::registers::IdAa64mmfr1El1::from_bits_retain(6);
            fakes.id_aa64mmfr2_el1 = el1::registers::IdAa64mmfr2El1::from_bits_retain(7);
            el0::fake::SYSREGS.lock().unwrap().pmcr_el0 =
                el0::registers::PmcrEl0::from_bits_retain(6 << 11 | 1);
        }
        let dfr0 = |pmu: u64| {
            el1::fake::SYSREGS.lock().unwrap().id_aa64dfr0_el1 =
                el1::registers::IdAa64dfr0El1::from_bits_retain(pmu << 8);
            IdRegisters::read(Gaps { zfr0: 8, smfr0: 9, fpfr0: 10, smidr: 11 })
        };
        let id = dfr0(4);
        assert_eq!(
            [id.pfr0, id.pfr1, id.isar1, id.isar2, id.mmfr0, id.mmfr1, id.mmfr2, id.zfr0],
            [1, 2, 3, 4, 5, 6, 7, 8]
        );
        assert_eq!([id.smfr0, id.fpfr0, id.smidr], [9, 10, 11]);
        assert_eq!(id.pmcr_n, 6);
        // No PMU, or one of the implementer's own: PMCR_EL0 is not to be read.
        assert_eq!((dfr0(0).pmcr_n, dfr0(0xf).pmcr_n), (0, 0));
    }

    #[test]
    fn aarch32_at_el0_is_not_enough() {
        for (pfr0, expected) in [(0x11, false), (0x12, false), (0x22, true)] {
            let id = IdRegisters { pfr0, ..Default::default() };
            assert_eq!(CpuFeatures::new(&id).aarch32, expected, "{pfr0:#x}");
        }
    }

    #[test]
    fn what_another_cpu_lacks_is_hidden() {
        let id = IdRegisters {
            pfr1: 2 << 24 | 0x10,
            pfr2: 1 << 32 | 1,
            smfr0: 1 << 63 | 1 << 56 | 5,
            fpfr0: 7 << 29,
            ..Default::default()
        };
        let all = CpuFeatures::new(&id).fp_extras();
        assert_eq!(all, FpExtras::all());
        assert_eq!(id.with_fp_extras(all).smfr0, id.smfr0);
        for common in (0..8).map(FpExtras::from_bits_truncate) {
            let shown = id.with_fp_extras(common);
            let features = CpuFeatures::new(&shown);
            assert_eq!(features.fp_extras(), common);
            assert!(features.sme && shown.smfr0 & 0xff == 5 && shown.pfr1 & 0xf0 == 0x10);
            assert_eq!(shown.fpfr0 != 0, common.contains(FpExtras::FPMR));
        }
    }

    #[test]
    fn a57_and_max() {
        let a57 = CpuFeatures::new(&IdRegisters {
            pfr0: 0x0100_2222,
            mmfr0: 0x1124,
            dfr0: 0x1030_5106,
            pmcr_n: 6,
            ..Default::default()
        });
        assert!(!a57.sve && !a57.sme && !a57.pauth && a57.gic_sysregs && a57.aarch32);
        assert_eq!((a57.pa_bits, a57.pmu_counters), (44, 6));
        let max = CpuFeatures::new(&IdRegisters {
            pfr0: 1 << 32 | 2 << 28 | 1 << 24,
            pfr1: 1 << 24 | 3 << 8,
            isar1: 5 << 4,
            mmfr0: 6,
            mmfr1: 1 << 40,
            dfr0: 0xf << 8,
            pmcr_n: 9,
            ..Default::default()
        });
        assert!(max.sve && max.sme && max.pauth && max.mte && max.hcx && max.ras_fault_injection);
        // An IMPLEMENTATION DEFINED PMU has no HPMN to speak of.
        assert_eq!((max.pa_bits, max.pmu_counters), (48, 0));
    }
}
