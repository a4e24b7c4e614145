//! An EL1 that can be AArch32. Without it some registers of EL2's are UNDEFINED.
//!
//! A guest is AArch64 or AArch32 at both EL1 and EL0. Its other registers are those of AArch64: R8-R14 of all
//! modes in X8-X30, SPSR_svc in SPSR_EL1, TTBCR in TCR_EL1, PRRR and NMRR in MAIR_EL1, DFSR in ESR_EL1, DFAR and
//! IFAR in FAR_EL1, and so on (Arm ARM, "Mapping of the System registers between the Execution states"), and its
//! coprocessor accesses trap by the same controls.

#![forbid(unsafe_code)]

use super::Control::Dbgvcr32;
use super::id::Field;
use super::id::IdRegister::{
    Aa64Pfr0, Dfr0, Isar0, Isar1, Isar2, Isar3, Isar4, Isar5, Isar6, Mmfr0, Mmfr1, Mmfr2, Mmfr3,
    Mmfr4, Mmfr5, Mvfr0, Mvfr1, Mvfr2, Pfr0, Pfr1, Pfr2,
};
use super::id::Level;
use super::id::Shown::{AsIs, AtMost, Hidden, Is};
use super::{Feature, How, Name, Relied, register};

const LOADED: &str = "`Aarch32Regs`, from VCPU_LOAD to VCPU_PUT: no other EL1 can reach them";
const DEBUG: &str =
    "MDCR_EL2.TDA, TDOSA, TDRA (read as zero, writes ignored); DBGVCR32_EL2 is zero";

pub(super) const FEATURE: Feature = Feature {
    is_there: |id| id.field(Aa64Pfr0, 4) == 2,
    levels: &[Level { of: Aa64Pfr0, low: 4, without: 1 }],
    fields: &[
        Field::new(Pfr0, 0, "State0", AsIs),
        Field::new(Pfr0, 4, "State1", AsIs),
        Field::new(Pfr0, 8, "State2", AsIs),
        Field::new(Pfr0, 12, "State3", Hidden),
        // Without what comes with SCXTNUM.
        Field::new(Pfr0, 16, "CSV2", AtMost(1)),
        Field::new(Pfr0, 20, "AMU", Hidden),
        Field::new(Pfr0, 24, "DIT", AsIs),
        Field::new(Pfr0, 28, "RAS", Hidden),
        Field::new(Pfr1, 0, "ProgMod", AsIs),
        Field::new(Pfr1, 4, "Security", Hidden),
        Field::new(Pfr1, 8, "MProgMod", Hidden),
        Field::new(Pfr1, 12, "Virtualization", Hidden),
        Field::new(Pfr1, 16, "GenTimer", AsIs),
        // In the absence of EL2 and EL3, of what they brought there are VBAR, and banked registers by MRS and
        // MSR.
        Field::new(Pfr1, 20, "Sec_frac", Is(1)),
        Field::new(Pfr1, 24, "Virt_frac", Is(1)),
        Field::new(Pfr1, 28, "GIC", AsIs),
        // The architecture needs a debug version; nothing else is there.
        Field::new(Dfr0, 0, "CopDbg", Is(6)),
        Field::new(Dfr0, 4, "CopSDbg", Hidden),
        Field::new(Dfr0, 8, "MMapDbg", Hidden),
        Field::new(Dfr0, 12, "CopTrc", Hidden),
        Field::new(Dfr0, 16, "MMapTrc", Hidden),
        Field::new(Dfr0, 20, "MProfDbg", Hidden),
        Field::new(Dfr0, 24, "PerfMon", Hidden),
        Field::new(Dfr0, 28, "TraceFilt", Hidden),
        Field::new(Mmfr0, 0, "VMSA", AsIs),
        Field::new(Mmfr0, 4, "PMSA", Hidden),
        Field::new(Mmfr0, 8, "OuterShr", AsIs).exact(),
        Field::new(Mmfr0, 12, "ShareLvl", AsIs),
        Field::new(Mmfr0, 16, "TCM", Hidden),
        Field::new(Mmfr0, 20, "AuxReg", AsIs),
        Field::new(Mmfr0, 24, "FCSE", Hidden),
        Field::new(Mmfr0, 28, "InnerShr", AsIs).exact(),
        // By MVA and set and way, of Armv6.
        Field::new(Mmfr1, 0, "L1HvdVA to L1TstCln", Hidden).wide(28),
        Field::new(Mmfr1, 28, "BPred", AsIs),
        Field::new(Mmfr2, 0, "L1HvdFG to HvdTLB", Hidden).wide(16),
        Field::new(Mmfr2, 16, "UniTLB", AsIs),
        Field::new(Mmfr2, 20, "MemBarr", AsIs),
        Field::new(Mmfr2, 24, "WFIStall", AsIs),
        Field::new(Mmfr2, 28, "HWAccFlg", Hidden),
        // Cache and branch predictor maintenance, PAN, CohWalk, CMemSz.
        Field::new(Mmfr3, 0, "CMaintVA to CMemSz", AsIs).wide(28),
        // 0: there are supersections.
        Field::new(Mmfr3, 28, "Supersec", AsIs).inverse(),
        Field::new(Mmfr4, 0, "SpecSEI", AsIs).inverse(),
        Field::new(Mmfr4, 4, "AC2", Hidden),
        Field::new(Mmfr4, 8, "XNX", AsIs),
        Field::new(Mmfr4, 12, "CnP", AsIs),
        Field::new(Mmfr4, 16, "HPDS", AsIs),
        Field::new(Mmfr4, 20, "LSM", AsIs),
        Field::new(Mmfr4, 24, "CCIDX", AsIs),
        Field::new(Mmfr4, 28, "EVT", Hidden),
        Field::new(Mmfr5, 0, "ETS", AsIs),
        Field::new(Mmfr5, 4, "nTLBPA", AsIs),
        // Instructions without state.
        Field::new(Isar0, 0, "ISAR0", AsIs).wide(32),
        Field::new(Isar1, 0, "ISAR1", AsIs).wide(32),
        Field::new(Isar2, 0, "ISAR2", AsIs).wide(32),
        Field::new(Isar3, 0, "ISAR3", AsIs).wide(32),
        Field::new(Isar4, 0, "Unpriv to Writeback", AsIs).wide(12),
        Field::new(Isar4, 12, "SMC", Hidden),
        Field::new(Isar4, 16, "Barrier to SWP_frac", AsIs).wide(16),
        Field::new(Isar5, 0, "ISAR5", AsIs).wide(32),
        Field::new(Isar6, 0, "ISAR6", AsIs).wide(32),
        Field::new(Mvfr0, 0, "MVFR0", AsIs).wide(32),
        Field::new(Mvfr1, 0, "MVFR1", AsIs).wide(32),
        Field::new(Mvfr2, 0, "MVFR2", AsIs).wide(32),
        Field::new(Pfr2, 0, "CSV3", AsIs),
        Field::new(Pfr2, 4, "SSBS", AsIs),
        Field::new(Pfr2, 8, "RAS_frac", Hidden),
    ],
    owns: &[Dbgvcr32],
    registers: &[
        register(
            "SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq, DACR32_EL2, IFSR32_EL2",
            How::SwitchedBy(LOADED),
        ),
        register(
            "TCMTR, TLBTR, REVIDR, AIDR; ACTLR, ACTLR2",
            How::Trapped("HCR_EL2.TID1, TACR (read as zero)"),
        ),
        register(
            "IMPLEMENTATION DEFINED registers of CRn 9 to 11; all of CRn 15",
            How::Trapped("HCR_EL2.TIDCP; HSTR_EL2.T15, from VCPU_LOAD to VCPU_PUT"),
        ),
        register("MVFR0, MVFR1, MVFR2", How::Trapped("HCR_EL2.TID3")),
        register("DBGVCR and the rest of the debug registers in AArch32", How::Trapped(DEBUG)),
        register("FPSID, JIDR, FCSEIDR, NSACR", How::Constant),
    ],
    relied_on: Relied::InAarch32,
    ..Feature::new(Name::Aarch32, "AArch32 at EL1")
};
