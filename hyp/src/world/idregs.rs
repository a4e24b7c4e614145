//! What a guest reads from the ID registers (HCR_EL2.TID3 traps them).
//!
//! An allow-list: a field is shown only if a guest can use the feature, which means that its state is
//! switched by [the world switch](crate) or that it has none. Everything else reads as zero, fields
//! of later architectures included. Registers that tell instructions only (ISAR, ZFR0, SMFR0, FPFR0 and
//! AArch32's) are shown whole but for what is named.
//!
//! AArch64's and AArch32's registers have one numbering. A guest finds those of its own execution state;
//! the others read as zero.

#![forbid(unsafe_code)]

use crate::world::cpufeatures::{AARCH32_REGISTERS, IdRegisters, field};
use umbra_shared::vcpu::VcpuFeatures;

/// Op0, Op1, CRn, CRm, Op2 of a trapped access, packed as in ISS for EC 0x18 (Arm ARM D24.2.37):
/// only CRm and Op2 vary among the ID registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRegister {
    /// CRm, 1..=7.
    pub crm: u8,
    /// Op2, 0..=7.
    pub op2: u8,
}

/// What one guest may use, of what the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// What it has.
    pub features: VcpuFeatures,
    /// Bits of its physical address space, as ID_AA64MMFR0_EL1.PARange encodes them.
    pub pa_range: u64,
}

const fn keep(register: u64, fields: &[u32]) -> u64 {
    let (mut mask, mut i) = (0, 0);
    while i < fields.len() {
        mask |= 0xf << fields[i];
        i += 1;
    }
    register & mask
}

/// Registers of a [`table`]: CRm 1 to 7, op2 0 to 7.
pub const REGISTERS: usize = 7 * 8;

/// What the guest reads from each of them, in the order of [`crate::guest::syndrome::IdRead::index`].
pub fn table(id: &IdRegisters, guest: Guest) -> [u64; REGISTERS] {
    core::array::from_fn(|n| {
        let n = n as u8;
        read(id, guest, IdRegister { crm: n / 8 + 1, op2: n % 8 })
    })
}

/// The value that the guest reads.
pub fn read(id: &IdRegisters, guest: Guest, register: IdRegister) -> u64 {
    if guest.features.aarch32 {
        read_aarch32(id, register)
    } else {
        read_aarch64(id, guest, register)
    }
}

fn read_aarch64(id: &IdRegisters, guest: Guest, register: IdRegister) -> u64 {
    let (sve, sme) = (guest.features.vq.is_some(), guest.features.svq.is_some());
    match (register.crm, register.op2) {
        // ID_AA64PFR0_EL1: EL0 and EL1 in AArch64 only, no EL2 or EL3; FP, AdvSIMD, GIC, DIT, CSV2
        // (without the numbers of FEAT_CSV2_2), CSV3; SVE if it has it. Not RAS, MPAM, AMU, RME.
        (4, 0) => {
            0x11 | keep(id.pfr0, &[16, 20, 24, 48, 60])
                | field(id.pfr0, 56).min(1) << 56
                | if sve { keep(id.pfr0, &[32]) } else { 0 }
        }
        // ID_AA64PFR1_EL1: BT, SSBS; SME if it has it. Not MTE, RAS_frac, MPAM_frac, CSV2_frac, NMI, GCS...
        (4, 1) => keep(id.pfr1, &[0, 4]) | if sme { keep(id.pfr1, &[24]) } else { 0 },
        // ID_AA64PFR2_EL1: FPMR. Not MTEPERM, MTESTOREONLY, MTEFAR, UINJ.
        (4, 2) => keep(id.pfr2, &[32]),
        // ID_AA64ZFR0_EL1: for streaming mode, too.
        (4, 4) if sve || sme => id.zfr0,
        // ID_AA64SMFR0_EL1; FA64, which is SVE's instructions in streaming mode, with SVE only.
        (4, 5) if sme => id.smfr0 & if sve { u64::MAX } else { !(1 << 63) },
        // ID_AA64FPFR0_EL1, whose instructions need FPMR.
        (4, 7) if field(id.pfr2, 32) != 0 => id.fpfr0,
        // ID_AA64DFR0_EL1: the architecture needs a debug version; nothing else is there.
        (5, 0) => 6,
        // ID_AA64ISAR0_EL1: instructions without state. Not TME.
        (6, 0) => id.isar0 & !(0xf << 24),
        // ID_AA64ISAR1_EL1: not LS64 (ACCDATA_EL1).
        (6, 1) => id.isar1 & !(0xf << 60),
        // ID_AA64ISAR2_EL1: RPRES, GPA3, APA3, MOPS, BC, PAC_frac, CLRBHB, RPRFM, CSSC.
        // Not WFxT: an exit doesn't carry the deadline.
        (6, 2) => keep(id.isar2, &[4, 8, 12, 16, 20, 24, 28, 48, 52]),
        // ID_AA64MMFR0_EL1: not ECV, FGT, ExS.
        (7, 0) => keep(id.mmfr0, &[4, 8, 12, 16, 20, 24, 28, 32, 36, 40]) | guest.pa_range,
        // ID_AA64MMFR1_EL1: HAFDBS, VMIDBits, HPDS, PAN, SpecSEI, XNX, ETS, AFP, nTLBPA, CMOW.
        // Not VH, LO, TWED, HCX, TIDCP1; HAFDBS without HAFT, which needs TCR2_EL1.
        (7, 1) => field(id.mmfr1, 0).min(2) | keep(id.mmfr1, &[4, 12, 20, 24, 28, 36, 44, 48, 56]),
        // ID_AA64MMFR2_EL1: not NV, FWB, EVT.
        (7, 2) => keep(id.mmfr2, &[0, 4, 8, 12, 16, 20, 28, 32, 36, 48, 52, 60]),
        // The AArch32 registers, and what is to come.
        _ => 0,
    }
}

fn read_aarch32(id: &IdRegisters, register: IdRegister) -> u64 {
    let index = 8 * (usize::from(register.crm) - 1) + usize::from(register.op2);
    if index >= AARCH32_REGISTERS {
        return 0;
    }
    let value = id.aarch32[index] & 0xffff_ffff;
    match (register.crm, register.op2) {
        // ID_PFR0: A32, T32, Jazelle (trivial), DIT, CSV2 without what comes with SCXTNUM. Not T32EE, AMU,
        // RAS.
        (1, 0) => keep(value, &[0, 4, 8, 24]) | field(value, 16).min(1) << 16,
        // ID_PFR1: ProgMod, GenTimer, GIC. No EL2 and no EL3; of what they brought there are VBAR
        // (Sec_frac), and banked registers by MRS and MSR (Virt_frac).
        (1, 1) => keep(value, &[0, 16, 28]) | 1 << 20 | 1 << 24,
        // ID_DFR0: the architecture needs a debug version; nothing else is there.
        (1, 2) => 6,
        // ID_MMFR0: VMSA, OuterShr, ShareLvl, AuxReg, InnerShr.
        (1, 4) => keep(value, &[0, 8, 12, 20, 28]),
        // ID_MMFR1: BPred.
        (1, 5) => keep(value, &[28]),
        // ID_MMFR2: UniTLB, MemBarr, WFIStall.
        (1, 6) => keep(value, &[16, 20, 24]),
        // ID_MMFR3: cache and branch predictor maintenance, PAN, CohWalk, CMemSz, Supersec.
        (1, 7) => value,
        // ID_ISAR0 to 3, and 5: instructions without state.
        (2, 0..=3 | 5) => value,
        // ID_ISAR4: not SMC.
        (2, 4) => value & !(0xf << 12),
        // ID_MMFR4: SpecSEI, XNX, CnP, HPDS, LSM, CCIDX. Not AC2, EVT.
        (2, 6) => keep(value, &[0, 8, 12, 16, 20, 24]),
        // ID_ISAR6.
        (2, 7) => value,
        // MVFR0, MVFR1, MVFR2.
        (3, 0..=2) => value,
        // ID_PFR2: CSV3, SSBS.
        (3, 4) => keep(value, &[0, 4]),
        // ID_MMFR5: ETS, nTLBPA.
        (3, 6) => keep(value, &[0, 4]),
        // ID_AFR0, ID_DFR1, and what is to come.
        _ => 0,
    }
}

/// What a guest with SME reads from SMIDR_EL1: implementer and revision. Not SMPS, for the priorities are
/// the host's, nor which CPUs share an SMCU.
pub const fn smidr(id: &IdRegisters) -> u64 {
    id.smidr & 0xffff_0000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use umbra_shared::vl::Vq;

    const PFR0: IdRegister = IdRegister { crm: 4, op2: 0 };
    const PFR1: IdRegister = IdRegister { crm: 4, op2: 1 };

    fn everything() -> IdRegisters {
        let f = 0x1111_1111_1111_1111;
        IdRegisters {
            pfr0: f | 0x2000_0000_0000_0000 | 2 << 56,
            pfr1: f,
            pfr2: f,
            zfr0: f,
            smfr0: f,
            fpfr0: f,
            smidr: f,
            dfr0: f,
            isar0: f,
            isar1: f,
            isar2: f,
            mmfr0: f,
            mmfr1: f,
            mmfr2: f,
            pmcr_n: 6,
            aarch32: [f; AARCH32_REGISTERS],
        }
    }

    const AARCH64: Guest = Guest { features: VcpuFeatures::FPSIMD, pa_range: 2 };
    const AARCH32: Guest = Guest { features: VcpuFeatures::AARCH32, pa_range: 2 };

    #[test]
    fn what_is_trapped_is_hidden() {
        let id = everything();
        let guest = AARCH64;
        let pfr0 = read(&id, guest, PFR0);
        for (low, name) in
            [(8, "EL2"), (12, "EL3"), (28, "RAS"), (32, "SVE"), (40, "MPAM"), (44, "AMU")]
        {
            assert_eq!(field(pfr0, low), 0, "{name}");
        }
        assert_eq!(field(pfr0, 56), 1, "CSV2 without SCXTNUM");
        let pfr1 = read(&id, guest, PFR1);
        for (low, name) in
            [(8, "MTE"), (12, "RAS_frac"), (24, "SME"), (44, "GCS"), (32, "CSV2_frac")]
        {
            assert_eq!(field(pfr1, low), 0, "{name}");
        }
        let dfr0 = read(&id, guest, IdRegister { crm: 5, op2: 0 });
        assert_eq!(dfr0, 6, "no PMU, SPE, trace");
        assert_eq!(field(read(&id, guest, IdRegister { crm: 7, op2: 0 }), 0), 2);
        assert_eq!(field(read(&id, guest, IdRegister { crm: 6, op2: 1 }), 60), 0, "LS64");
        assert_eq!(field(read(&id, guest, IdRegister { crm: 7, op2: 1 }), 8), 0, "VH");
    }

    #[test]
    fn sve_and_sme_are_shown_to_those_who_have_them() {
        let id = everything();
        let register = |op2| IdRegister { crm: 4, op2 };
        for vq in [None, Some(Vq::MIN)] {
            for svq in [None, Some(Vq::MIN)] {
                let features = VcpuFeatures { vq, svq, aarch32: false };
                let guest = Guest { features, pa_range: 2 };
                let (sve, sme) = (vq.is_some(), svq.is_some());
                assert_eq!(field(read(&id, guest, PFR0), 32) != 0, sve);
                assert_eq!(field(read(&id, guest, PFR1), 24) != 0, sme);
                assert_eq!(read(&id, guest, register(4)) != 0, sve || sme);
                assert_eq!(read(&id, guest, register(5)) != 0, sme);
            }
        }
        assert_eq!(smidr(&id), 0x1111_0000);
    }

    #[test]
    fn fpmr_is_shown_where_it_is() {
        let guest = Guest { features: VcpuFeatures::FPSIMD, pa_range: 2 };
        for fpmr in [0, 1] {
            let id = IdRegisters { pfr2: fpmr << 32 | 0xf, fpfr0: 7 << 29, ..everything() };
            assert_eq!(read(&id, guest, IdRegister { crm: 4, op2: 2 }), fpmr << 32);
            let fpfr0 = read(&id, guest, IdRegister { crm: 4, op2: 7 });
            assert_eq!(fpfr0, if fpmr == 1 { 7 << 29 } else { 0 });
        }
    }

    #[test]
    fn a_guest_finds_its_own_execution_state() {
        let id = everything();
        for n in 0..REGISTERS as u8 {
            let register = IdRegister { crm: n / 8 + 1, op2: n % 8 };
            let aarch32 = register.crm < 4;
            assert!(!aarch32 || read(&id, AARCH64, register) == 0, "{register:?}");
            assert!(aarch32 || read(&id, AARCH32, register) == 0, "{register:?}");
        }
    }

    #[test]
    fn what_is_trapped_is_hidden_in_aarch32() {
        let id = everything();
        let shown = |crm, op2, low| field(read(&id, AARCH32, IdRegister { crm, op2 }), low);
        for (crm, op2, low, name) in [
            (1, 0, 12, "T32EE"),
            (1, 0, 20, "AMU"),
            (1, 0, 28, "RAS"),
            (1, 1, 4, "Security"),
            (1, 1, 12, "Virtualization"),
            (1, 2, 24, "PerfMon"),
            (1, 2, 12, "CopTrc"),
            (1, 2, 28, "TraceFilt"),
            (2, 4, 12, "SMC"),
            (2, 6, 28, "EVT"),
            (3, 4, 8, "RAS_frac"),
            (3, 5, 0, "MTPMU"),
        ] {
            assert_eq!(shown(crm, op2, low), 0, "{name}");
        }
        for (crm, op2, low, name) in
            [(1, 0, 0, "A32"), (1, 1, 16, "GenTimer"), (3, 0, 0, "SIMDReg"), (3, 1, 8, "SIMDLS")]
        {
            assert_eq!(shown(crm, op2, low), 1, "{name}");
        }
    }

    proptest! {
        #[test]
        fn an_aarch32_guest_is_never_shown_more_than_the_machine_has(
            crm in 1u8..8, op2 in 0u8..8, aarch32: [u64; AARCH32_REGISTERS],
        ) {
            let id = IdRegisters { aarch32, ..Default::default() };
            let shown = read(&id, AARCH32, IdRegister { crm, op2 });
            let index = 8 * (usize::from(crm) - 1) + usize::from(op2);
            let machine = match (crm, op2) {
                // CSV2 may be lowered within its field.
                (1, 0) => aarch32[index] | 0xf << 16,
                // What EL2 and EL3 are called in their absence.
                (1, 1) => aarch32[index] | 1 << 20 | 1 << 24,
                (1, 2) => 6,
                (1..=3, _) => aarch32[index],
                _ => 0,
            };
            prop_assert_eq!(shown & !(machine & 0xffff_ffff), 0);
        }

        #[test]
        fn a_guest_is_never_shown_more_than_the_machine_has(
            crm in 1u8..8, op2 in 0u8..8, sve: bool, sme: bool, pfr0: u64, pfr1: u64, pfr2: u64, isar1: u64, isar2: u64,
            mmfr1: u64, mmfr2: u64,
        ) {
            let id = IdRegisters { pfr0, pfr1, pfr2, isar1, isar2, mmfr1, mmfr2, ..Default::default() };
            let length = |has: bool| has.then_some(Vq::MIN);
            let features = VcpuFeatures { vq: length(sve), svq: length(sme), aarch32: false };
            let shown = read(&id, Guest { features, pa_range: 0 }, IdRegister { crm, op2 });
            let machine = match (crm, op2) {
                // CSV2 may be lowered within its field; EL0 and EL1 are always there.
                (4, 0) => pfr0 | 0x11 | 0xf << 56,
                (4, 1) => pfr1,
                (4, 2) => pfr2,
                (5, 0) => 6,
                (6, 1) => isar1,
                (6, 2) => isar2,
                // HAFDBS may be lowered within its field.
                (7, 1) => mmfr1 | 0xf,
                (7, 2) => mmfr2,
                _ => 0,
            };
            prop_assert_eq!(shown & !machine, 0);
        }
    }
}
