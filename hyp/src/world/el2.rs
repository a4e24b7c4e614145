//! Every register of EL2's, and what becomes of it on a CPU that comes out of reset: a bit of which nobody knows
//! what it is may be a trap that nobody handles, or one that is missing.

#![forbid(unsafe_code)]

use super::features::Control;

/// What becomes of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Written whole by the features' data ([`super::controls`]), where the CPU has it.
    Control(Control),
    /// Written whole by this.
    By(&'static str),
    /// Not written, for this reason.
    Left(&'static str),
}

use Fate::{By, Left};

const SWITCH: &str = "world::switch, interrupts";
const BOOT: &str = "boot.S, before the MMU is on";
const ENGINE: &str = "the FP engine";
const STATUS: &str = "what an exception or an event leaves there; read behind one only";
const READ_ONLY: &str = "read-only";
const SECURE: &str = "of Secure EL2, which hyp is not";
const VHE_ONLY: &str = "without effect with HCR_EL2.E2H = 0";
const NESTED: &str = "without effect with HCR_EL2.NV = 0";
const NO_ENCRYPTION_CONTEXTS: &str = "without effect with TCR2_EL2.AMEC0 and VTCR_EL2's bits zero";
const NO_AMU_OFFSETS: &str = "without effect with HCR_EL2.AMVOFFEN = 0";
const NO_MPAM_MAPPING: &str = "without effect with MPAMHCR_EL2's mapping bits zero";
const NO_MASKS: &str =
    "without effect: masks of writes below EL2 need FEAT_SRMASK's bits in HCRX_EL2";
const NO_GICV5: &str = "of GICv5, which hyp doesn't run on";
const TCR2_OFF: &str = "without effect with TCR2_EL2 zero";

/// All of them, but for the indexed ones under their family's name (Arm ARM, issue L.b, D24.2 and K).
pub const REGISTERS: &[(&str, Fate)] = &[
    ("ACTLR", Fate::Control(Control::Actlr)),
    ("AFSR0", Left("IMPLEMENTATION DEFINED status")),
    ("AFSR1", Left("IMPLEMENTATION DEFINED status")),
    ("AMAIR", Left("RES0, or hints for attributes that hyp uses none of")),
    ("AMAIR2", Left(TCR2_OFF)),
    ("AMEVCNTVOFF0<n>", Left(NO_AMU_OFFSETS)),
    ("AMEVCNTVOFF1<n>", Left(NO_AMU_OFFSETS)),
    ("BRBCR", Fate::Control(Control::Brbcr)),
    ("CNTHCTL", Fate::Control(Control::Cnthctl)),
    ("CNTHP_CTL", By(SWITCH)),
    ("CNTHP_CVAL", By("written whenever CNTHP_CTL_EL2 is on")),
    ("CNTHP_TVAL", Left("a view of CNTHP_CVAL_EL2")),
    ("CNTHPS_CTL", Left(SECURE)),
    ("CNTHPS_CVAL", Left(SECURE)),
    ("CNTHPS_TVAL", Left(SECURE)),
    ("CNTHV_CTL", Fate::Control(Control::CnthvCtl)),
    ("CNTHV_CVAL", Left("without effect with CNTHV_CTL_EL2 off")),
    ("CNTHV_TVAL", Left("a view of CNTHV_CVAL_EL2")),
    ("CNTHVS_CTL", Left(SECURE)),
    ("CNTHVS_CVAL", Left(SECURE)),
    ("CNTHVS_TVAL", Left(SECURE)),
    ("CNTPOFF", Left("without effect with CNTHCTL_EL2.ECV = 0")),
    ("CNTVOFF", By(SWITCH)),
    ("CONTEXTIDR", Fate::Control(Control::Contextidr)),
    ("CPTR", Fate::Control(Control::Cptr)),
    ("DACR32", By("world::aarch32, at VCPU_LOAD of a guest that can see it")),
    ("DBGVCR32", Fate::Control(Control::Dbgvcr32)),
    ("ELR", By("what is returned to")),
    ("ESR", Left(STATUS)),
    ("FAR", Left(STATUS)),
    ("FPEXC32", By(ENGINE)),
    ("GCSCR", Fate::Control(Control::Gcscr)),
    ("GCSPR", Left("without effect with GCSCR_EL2 zero")),
    ("HACDBSBR", Fate::Control(Control::Hacdbsbr)),
    ("HACDBSCONS", Left("without effect with HACDBSBR_EL2.EN = 0")),
    ("HACR", Fate::Control(Control::Hacr)),
    ("HAFGRTR", Fate::Control(Control::Hafgrtr)),
    ("HCR", Fate::Control(Control::Hcr)),
    ("HCRX", Fate::Control(Control::Hcrx)),
    ("HDBSSBR", Left("without effect with VTCR_EL2.HDBSS = 0")),
    ("HDBSSPROD", Left("without effect with VTCR_EL2.HDBSS = 0")),
    ("HDFGRTR", Fate::Control(Control::Hdfgrtr)),
    ("HDFGRTR2", Fate::Control(Control::Hdfgrtr2)),
    ("HDFGWTR", Fate::Control(Control::Hdfgwtr)),
    ("HDFGWTR2", Fate::Control(Control::Hdfgwtr2)),
    ("HFGITR", Fate::Control(Control::Hfgitr)),
    ("HFGITR2", Fate::Control(Control::Hfgitr2)),
    ("HFGRTR", Fate::Control(Control::Hfgrtr)),
    ("HFGRTR2", Fate::Control(Control::Hfgrtr2)),
    ("HFGWTR", Fate::Control(Control::Hfgwtr)),
    ("HFGWTR2", Fate::Control(Control::Hfgwtr2)),
    ("HPFAR", Left(STATUS)),
    ("HSTR", Fate::Control(Control::Hstr)),
    ("ICC_SRE", Fate::Control(Control::IccSre)),
    ("ICH_AP0R<n>", By("interrupts::clear_virtual_interface; boot refuses more than the first")),
    ("ICH_AP1R<n>", By("interrupts::clear_virtual_interface; boot refuses more than the first")),
    ("ICH_APR", Left(NO_GICV5)),
    ("ICH_CONTEXTR", Left(NO_GICV5)),
    ("ICH_EISR", Left(READ_ONLY)),
    ("ICH_ELRSR", Left(READ_ONLY)),
    ("ICH_HCR", By("interrupts")),
    ("ICH_HFGITR", Left(NO_GICV5)),
    ("ICH_HFGRTR", Left(NO_GICV5)),
    ("ICH_HFGWTR", Left(NO_GICV5)),
    ("ICH_HPPIR", Left(NO_GICV5)),
    ("ICH_LR<n>", By("interrupts::clear_virtual_interface")),
    ("ICH_MISR", Left(READ_ONLY)),
    ("ICH_PPI_ACTIVER<n>", Left(NO_GICV5)),
    ("ICH_PPI_DVIR<n>", Left(NO_GICV5)),
    ("ICH_PPI_ENABLER<n>", Left(NO_GICV5)),
    ("ICH_PPI_HMR<n>", Left(NO_GICV5)),
    ("ICH_PPI_PENDR<n>", Left(NO_GICV5)),
    ("ICH_PPI_PRIORITYR<n>", Left(NO_GICV5)),
    ("ICH_VCTLR", Left(NO_GICV5)),
    ("ICH_VMCR", By("interrupts::clear_virtual_interface, and at VCPU_LOAD")),
    ("ICH_VTR", Left(READ_ONLY)),
    ("IFSR32", By("world::aarch32, at VCPU_LOAD of a guest that can see it")),
    ("MAIR", By(BOOT)),
    ("MAIR2", Left(TCR2_OFF)),
    ("MDCR", Fate::Control(Control::Mdcr)),
    ("MECID_A0", Left(NO_ENCRYPTION_CONTEXTS)),
    ("MECID_A1", Left(NO_ENCRYPTION_CONTEXTS)),
    ("MECID_P0", Left(NO_ENCRYPTION_CONTEXTS)),
    ("MECID_P1", Left(NO_ENCRYPTION_CONTEXTS)),
    ("MECIDR", Left(READ_ONLY)),
    ("MPAM2", Fate::Control(Control::Mpam2)),
    ("MPAMHCR", Fate::Control(Control::Mpamhcr)),
    ("MPAMVPM<n>", Left(NO_MPAM_MAPPING)),
    ("MPAMVPMV", Left(NO_MPAM_MAPPING)),
    ("PFAR", Left(STATUS)),
    ("PIR", Left(TCR2_OFF)),
    ("PIRE0", Left(TCR2_OFF)),
    ("PMSCR", Fate::Control(Control::Pmscr)),
    ("POR", Left(TCR2_OFF)),
    ("RMR", Left("asks for a reset when written")),
    ("RVBAR", Left(READ_ONLY)),
    ("S2PIR", Left("without effect with VTCR_EL2.S2PIE = 0")),
    ("SCTLR", By(BOOT)),
    ("SCTLR2", By(BOOT)),
    ("SCTLRMASK", Left(NO_MASKS)),
    ("CPTRMASK", Left(NO_MASKS)),
    ("TCRMASK", Left(NO_MASKS)),
    ("TCR2MASK", Left(NO_MASKS)),
    ("SCTLR2MASK", Left(NO_MASKS)),
    ("ACTLRMASK", Left(NO_MASKS)),
    ("SCXTNUM", Fate::Control(Control::Scxtnum)),
    ("SDER32", Left(SECURE)),
    ("SMCR", By(ENGINE)),
    ("SMPRIMAP", Fate::Control(Control::Smprimap)),
    ("SP", By(BOOT)),
    (
        "SPMACCESSR",
        Left("traps below EL2 only; guests' by HDFGxTR2_EL2, where there are such counters"),
    ),
    ("SPSR", By("what is returned to")),
    ("TCR", By(BOOT)),
    ("TCR2", By(BOOT)),
    ("TFSR", Fate::Control(Control::Tfsr)),
    ("TPIDR", By("arch::percpu")),
    ("TRCITECR", Fate::Control(Control::Trcitecr)),
    ("TRFCR", Fate::Control(Control::Trfcr)),
    ("TTBR0", By(BOOT)),
    ("TTBR1", Left(VHE_ONLY)),
    ("VBAR", By("early in boot.S, then at each switch")),
    ("VDISR", Fate::Control(Control::Vdisr)),
    ("VMECID_A", Left(NO_ENCRYPTION_CONTEXTS)),
    ("VMECID_P", Left(NO_ENCRYPTION_CONTEXTS)),
    ("VMPIDR", By(SWITCH)),
    ("VNCR", Left(NESTED)),
    ("VPIDR", By(SWITCH)),
    ("VSESR", Fate::Control(Control::Vsesr)),
    ("VSTCR", Left(SECURE)),
    ("VSTTBR", Left(SECURE)),
    ("VTCR", By("boot::bring_up::start_host")),
    ("VTTBR", By("boot::bring_up::start_host, then at each switch")),
    ("ZCR", By(ENGINE)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::layout;
    use std::collections::{BTreeMap, BTreeSet};

    /// What the Arm ARM (L.b) and the arm-sysregs crate call EL2's registers, less `_EL2`; of those that there are
    /// several of, the family.
    const NAMES: &str = "ACTLR ACTLRMASK AFSR0 AFSR1 AMAIR AMAIR2 AMEVCNTVOFF0<n> AMEVCNTVOFF1<n> BRBCR CNTHCTL \
        CNTHPS_CTL CNTHPS_CVAL CNTHPS_TVAL CNTHP_CTL CNTHP_CVAL CNTHP_TVAL CNTHVS_CTL CNTHVS_CVAL CNTHVS_TVAL \
        CNTHV_CTL CNTHV_CVAL CNTHV_TVAL CNTPOFF CNTVOFF CONTEXTIDR CPTR CPTRMASK DACR32 DBGVCR32 ELR ESR FAR \
        FPEXC32 GCSCR GCSPR HACDBSBR HACDBSCONS HACR HAFGRTR HCR HCRX HDBSSBR HDBSSPROD HDFGRTR HDFGRTR2 HDFGWTR \
        HDFGWTR2 HFGITR HFGITR2 HFGRTR HFGRTR2 HFGWTR HFGWTR2 HPFAR HSTR ICC_SRE ICH_AP0R<n> ICH_AP1R<n> ICH_APR \
        ICH_CONTEXTR ICH_EISR ICH_ELRSR ICH_HCR ICH_HFGITR ICH_HFGRTR ICH_HFGWTR ICH_HPPIR ICH_LR<n> ICH_MISR \
        ICH_PPI_ACTIVER<n> ICH_PPI_DVIR<n> ICH_PPI_ENABLER<n> ICH_PPI_HMR<n> ICH_PPI_PENDR<n> \
        ICH_PPI_PRIORITYR<n> ICH_VCTLR ICH_VMCR ICH_VTR IFSR32 MAIR MAIR2 MDCR MECIDR MECID_A0 MECID_A1 MECID_P0 \
        MECID_P1 MPAM2 MPAMHCR MPAMVPM<n> MPAMVPMV PFAR PIR PIRE0 PMSCR POR RMR RVBAR S2PIR SCTLR SCTLR2 \
        SCTLR2MASK SCTLRMASK SCXTNUM SDER32 SMCR SMPRIMAP SP SPMACCESSR SPSR TCR TCR2 TCR2MASK TCRMASK TFSR TPIDR \
        TRCITECR TRFCR TTBR0 TTBR1 VBAR VDISR VMECID_A VMECID_P VMPIDR VNCR VPIDR VSESR VSTCR VSTTBR VTCR VTTBR ZCR";

    #[test]
    fn every_register_of_el2_has_its_fate() {
        let decided: BTreeMap<_, _> = REGISTERS.iter().copied().collect();
        assert_eq!(decided.len(), REGISTERS.len(), "one is listed twice");
        let names: BTreeSet<_> = NAMES.split_whitespace().collect();
        assert_eq!(decided.keys().copied().collect::<BTreeSet<_>>(), names);
    }

    #[test]
    fn every_control_is_the_register_that_it_is_called_after() {
        let plain = |name: &str| name.replace('_', "").to_uppercase();
        for control in Control::ALL {
            let found: Vec<_> =
                REGISTERS.iter().filter(|(_, fate)| *fate == Fate::Control(control)).collect();
            assert_eq!(found.len(), 1, "{control:?}");
            assert_eq!(plain(found[0].0), plain(&format!("{control:?}")));
        }
    }

    /// KVM's exits once didn't synchronise context (r50): EIS and EOS are bits that a CPU without FEAT_ExS has as
    /// RES1 and one with it leaves UNKNOWN.
    #[test]
    fn r50_exceptions_and_returns_synchronise() {
        for sctlr in [layout::SCTLR_EL2, layout::SCTLR_EL2_BOOT] {
            assert_eq!(sctlr >> 11 & 1, 1, "EOS");
            assert_eq!(sctlr >> 22 & 1, 1, "EIS");
        }
    }
}
