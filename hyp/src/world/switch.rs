//! The world switch: what belongs to whoever runs at EL1 and EL0, and how it changes hands.
//!
//! Every EL0/EL1 register of the machine is in one of three classes. What is in none is a bug.
//!
//! **Switched** (each world has its own):
//!
//! | registers | where | by |
//! |---|---|---|
//! | X0-X30, PC, PSTATE | [`GuestRegs`], the host's on hyp's stack | `umbra_guest_enter` |
//! | SP_EL0, SP_EL1, ELR_EL1, SPSR_EL1, SCTLR, CPACR, TTBR0, TTBR1, TCR, MAIR, AMAIR, VBAR, ESR, FAR, AFSR0, AFSR1, CONTEXTIDR, PAR, TPIDR_EL1, TPIDR_EL0, TPIDRRO_EL0, CNTKCTL, CSSELR, MDSCR | [`El1Regs`] | `umbra_switch_el1` |
//! | APIAKey, APIBKey, APDAKey, APDBKey, APGAKey (FEAT_PAuth) | [`PauthKeys`] | [`switch_pauth`], from the guest's first use of pointer authentication on; until then it is trapped (HCR_EL2.API, APK) and the host's stay where they are |
//! | SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq, DACR32_EL2, IFSR32_EL2, if the guest's EL1 is AArch32 | [`Aarch32Regs`]; no other EL1 can reach them, so they stay in place from VCPU_LOAD to VCPU_PUT | [`Aarch32Regs::load`], [`Aarch32Regs::put`] |
//! | TPIDR2_EL0 (FEAT_SME) | [`El1Context`] | [`switch_el1`] |
//! | TRFCR_EL1 (FEAT_TRF), BRBCR_EL1 (FEAT_BRBE): the host's; zero while a guest runs, so that no trace shows what it does | [`El1Context`] | [`switch_el1`] |
//! | CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVOFF_EL2 | [`Timer`](crate::world::interrupts::Timer) | [`crate::world::interrupts`] |
//! | ICC_PMR, ICC_BPRn, ICC_IGRPENn, ICC_CTLR.EOImode, ICC_APnRn, ICC_IAR/EOIR/HPPIR/RPR | the virtual CPU interface ([`VirtualGic`](crate::world::interrupts::VirtualGic)), while HCR_EL2.{IMO,FMO} are set; the host has the physical one, so the guest's stays in place from VCPU_LOAD to VCPU_PUT | [`crate::world::interrupts`] |
//! | V0-V31, FPSR, FPCR, FPMR, Z, P, FFR, ZCR_EL1, SVCR, ZA, ZT0, SMCR_EL1, FPEXC32_EL2 | the FP engine | [`crate::fp`] |
//! | MPIDR_EL1 (VMPIDR_EL2), stage 2 and VMID (VTTBR_EL2) | vCPU | [`World::enter_guest`] |
//!
//! **Trapped, and hidden in the ID registers that a guest reads** (HCR_EL2.TID3, see
//! [`crate::world::idregs`]):
//!
//! | registers | trap |
//! |---|---|
//! | SVE, ZCR_EL1; SME, SMCR_EL1, SVCR: of guests that do not have them | CPTR_EL2.TZ, TSM |
//! | SMPRI_EL1 | HFGxTR_EL2.nSMPRI_EL1 = 0 (FEAT_SME comes with FEAT_FGT; QEMU 7.2, which lacks it, has a constant zero there) |
//! | SMIDR_EL1, REVIDR_EL1, AIDR_EL1 | HCR_EL2.TID1 |
//! | ACTLR_EL1, IMPLEMENTATION DEFINED registers | HCR_EL2.TACR, TIDCP |
//! | CNTP_* | CNTHCTL_EL2.EL1PCEN = 0 |
//! | breakpoints, watchpoints, OS lock, debug communication | MDCR_EL2.TDA, TDOSA, TDRA (read as zero, writes ignored) |
//! | PMU, SPE, trace, trace filter, activity monitors | MDCR_EL2.TPM, TPMCR, TPMS, TTRF; CPTR_EL2.TTA, TAM |
//! | GCR_EL1, RGSR_EL1, TFSR*_EL1 (MTE) | HCR_EL2.ATA = 0 |
//! | SCXTNUM_ELx | HCR_EL2.EnSCXT = 0 |
//! | ERR*, ERXxxx (RAS) | HCR_EL2.TERR |
//! | LORegions | HCR_EL2.TLOR |
//! | ICC_SRE_EL1, ICC_SGIxR_EL1 | ICC_SRE_EL2.Enable = 0; HCR_EL2.IMO, FMO |
//! | TCR2_EL1, SCTLR2_EL1, GCS*, ACCDATA_EL1 | HCRX_EL2 enables = 0, which also makes the host's values ineffective |
//! | PIR*_EL1, POR_ELx, MAIR2, AMAIR2, S2POR, BRB* | HFGxTR_EL2 n-bits = 0, but for nTPIDR2_EL0 (every CPU that has them has FEAT_FGT) |
//! | MPAM0_EL1, MPAM1_EL1; MPAMSM_EL1; MPAMIDR_EL1 | MPAM2_EL2.TRAPMPAMxEL1; EnMPAMSM = 0; MPAMHCR_EL2.TRAP_MPAMIDR_EL1 (a CPU without MPAMHCR_EL2 can't hide it: a constant) |
//!
//! An AArch32 guest has the rest of its registers in those above: R8-R14 of all modes in X8-X30, SPSR_svc in
//! SPSR_EL1, TTBCR in TCR_EL1, PRRR and NMRR in MAIR_EL1, DFSR in ESR_EL1, DFAR and IFAR in FAR_EL1, and so on
//! (Arm ARM, "Mapping of the System registers between the Execution states"). Its coprocessor accesses
//! trap by the same controls as the AArch64 registers do, and beside those:
//!
//! | registers | trap |
//! |---|---|
//! | TCMTR, TLBTR, REVIDR, AIDR; ACTLR, ACTLR2 (read as zero, writes ignored) | HCR_EL2.TID1, TACR |
//! | what is IMPLEMENTATION DEFINED in CRn 9 to 11; all of CRn 15 | HCR_EL2.TIDCP; HSTR_EL2.T15, from VCPU_LOAD to VCPU_PUT |
//! | MVFR0, MVFR1, MVFR2 | HCR_EL2.TID3 |
//! | DBGVCR and the rest of the debug registers (read as zero, writes ignored) | MDCR_EL2.TDA, TDOSA, TDRA; DBGVCR32_EL2 is zero |
//!
//! **Constant** (the same for everybody, read-only to EL1): MIDR_EL1, CTR_EL0, CLIDR_EL1, CCSIDR_EL1,
//! DCZID_EL0, CNTFRQ_EL0, CNTPCT_EL0, RNDR, RNDRRS, ISR_EL1; in AArch32 FPSID, JIDR, FCSEIDR, NSACR, too.
//!
//! DISR_EL1 is VDISR_EL2 for a guest (HCR_EL2.AMO), which it can write although RAS is hidden: zero at
//! each entry, so that it carries nothing from one guest to another.
//!
//! EL2's own controls, per world:
//!
//! | register | host | guest |
//! |---|---|---|
//! | HSTR_EL2 | 0 | 0; T15 with an AArch32 guest loaded |
//! | HCR_EL2 | RW, VM, TSC, API, APK, and ATA, EnSCXT, FIEN as implemented; TWI, TDZ with `umbra.displace` | [`HCR_GUEST`]; API, APK once used; without RW if its EL1 is AArch32 |
//! | CPTR_EL2 | FP by the engine, nothing else trapped | FP by the engine, TTA, TAM |
//! | MDCR_EL2 | HPMN, HPMD | HPMN, HPMD, TDA, TDOSA, TDRA, TPM, TPMCR, TPMS, TTRF |
//! | CNTHCTL_EL2 | EL1PCTEN, EL1PCEN | EL1PCTEN |
//! | CNTHP_CTL_EL2 | off | armed with the host's CNTV deadline, so that its tick is not lost |
//! | ICC_SRE_EL2 | SRE, DFB, DIB, Enable | SRE, DFB, DIB |
//! | ICH_HCR_EL2 | 0 | En |
//! | HCRX_EL2, HFG*_EL2, MPAM2_EL2, MPAMHCR_EL2 (where present) | everything open | MSCEn, EnFPM; n-bits 0; traps |
//! | VBAR_EL2 | host vectors | guest vectors |

use crate::arch::exception::{set_guest_vectors, set_host_vectors};
use crate::arch::sysreg::sys::{self, HcrEl2, HcrxEl2, MdcrEl2, write_hcr_el2};
use crate::arch::sysreg::*;
use crate::world::cpufeatures::CpuFeatures;
use crate::world::interrupts::clear_virtual_interface;
use bitflags::bitflags;
use core::mem::offset_of;
use static_assertions::const_assert;

core::arch::global_asm!(include_str!("switch.S"));

// SAFETY: the routines of switch.S, written for these signatures.
unsafe extern "C" {
    fn umbra_switch_el1(save: *mut El1Regs, load: *const El1Regs);
    fn umbra_switch_pauth(save: *mut PauthKeys, load: *const PauthKeys);
}

/// A guest's general-purpose registers, PC and PSTATE, and what it reads from ID registers: all that a
/// trap which hyp answers by itself needs. `umbra_guest_enter` knows the offsets of `x`.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct GuestRegs {
    /// X0-X30.
    pub x: [u64; 31],
    /// Where it goes on.
    pub pc: u64,
    /// With which PSTATE.
    pub pstate: u64,
    /// The ID registers ([`crate::world::idregs::table`]).
    pub id: [u64; crate::world::idregs::REGISTERS],
}

const_assert!(offset_of!(GuestRegs, x) == 0);

/// EL1's registers in the order of `umbra_switch_el1`.
#[derive(Clone, Debug, Default)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are the Arm ARM's register names")]
pub struct El1Regs {
    pub sctlr_el1: u64,
    pub cpacr_el1: u64,
    pub ttbr0_el1: u64,
    pub ttbr1_el1: u64,
    pub tcr_el1: u64,
    pub mair_el1: u64,
    pub amair_el1: u64,
    pub vbar_el1: u64,
    pub esr_el1: u64,
    pub far_el1: u64,
    pub afsr0_el1: u64,
    pub afsr1_el1: u64,
    pub contextidr_el1: u64,
    pub par_el1: u64,
    pub tpidr_el1: u64,
    pub tpidr_el0: u64,
    pub tpidrro_el0: u64,
    pub cntkctl_el1: u64,
    pub sp_el0: u64,
    pub sp_el1: u64,
    pub elr_el1: u64,
    pub spsr_el1: u64,
    pub csselr_el1: u64,
    pub mdscr_el1: u64,
}

const_assert!(size_of::<El1Regs>() == 24 * 8);
const_assert!(offset_of!(El1Regs, ttbr0_el1) == 16);
const_assert!(offset_of!(El1Regs, esr_el1) == 64);
const_assert!(offset_of!(El1Regs, tpidr_el1) == 112);
const_assert!(offset_of!(El1Regs, sp_el0) == 144);
const_assert!(offset_of!(El1Regs, csselr_el1) == 176);

/// FEAT_PAuth's keys, low and high halves of IA, IB, DA, DB, GA.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct PauthKeys([u64; 10]);

/// Everything at EL1 and EL0 that is moved by plain copying.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct El1Context {
    /// The registers that every CPU has.
    pub regs: El1Regs,
    pauth: PauthKeys,
    tpidr2_el0: u64,
    trfcr_el1: u64,
    brbcr_el1: u64,
}

impl El1Context {
    /// A guest's EL1 after reset: MMU and caches off, everything else zero (Arm ARM: SCTLR_EL1's
    /// reset value, with its RES1 bits).
    pub fn reset() -> Self {
        Self::with_sctlr(SCTLR_EL1_RESET)
    }

    /// The same of an AArch32 EL1.
    pub fn reset_aarch32() -> Self {
        Self::with_sctlr(SCTLR_AARCH32_RESET)
    }

    fn with_sctlr(sctlr_el1: u64) -> Self {
        Self { regs: El1Regs { sctlr_el1, ..El1Regs::default() }, ..Self::default() }
    }
}

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

/// HSTR_EL2: coprocessor 15, CRn 15.
const HSTR_T15: u64 = 1 << 15;

/// SCTLR_EL1 after reset: RES1 bits only.
pub const SCTLR_EL1_RESET: u64 = 0x30d0_0980;

/// SCTLR of an AArch32 EL1 after reset, as SCTLR_EL1: RES1 bits, nTWE, nTWI, CP15BEN, LSMAOE, nTLSMD. A32,
/// little-endian, vectors at VBAR.
pub const SCTLR_AARCH32_RESET: u64 = 0x00c5_0878;

/// PSTATE of an AArch32 EL1 that starts: Supervisor mode, A32, A, I and F masked.
pub const PSTATE_SVC_MASKED: u64 = 0x1d3;

/// PSTATE for an EL1 that starts: EL1h, DAIF masked.
pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

const HCR_API_APK: u64 = 1 << 41 | 1 << 40;
const HCR_TDZ: u64 = 1 << 28;
const HCR_FIEN: u64 = 1 << 47;
const HCR_ENSCXT: u64 = 1 << 53;
const HCR_ATA: u64 = 1 << 56;

/// HCR_EL2 for a guest whose EL1 is AArch32.
pub const HCR_GUEST_AARCH32: u64 = HCR_GUEST & !HcrEl2::RW.bits();

/// Whether the EL1 of a guest with this HCR_EL2 is AArch32.
#[inline]
pub const fn is_aarch32(hcr: u64) -> bool {
    hcr & HcrEl2::RW.bits() == 0
}

/// HCR_EL2 for a guest, without pointer authentication.
pub const HCR_GUEST: u64 = HcrEl2::VM.bits()
    | HcrEl2::SWIO.bits()
    | HcrEl2::PTW.bits()
    | HcrEl2::FMO.bits()
    | HcrEl2::IMO.bits()
    | HcrEl2::AMO.bits()
    | HcrEl2::FB.bits()
    | 1 << 10 // BSU: barriers act on the inner shareable domain at least
    | HcrEl2::TWI.bits()
    | HcrEl2::TID1.bits()
    | HcrEl2::TID3.bits()
    | HcrEl2::TSC.bits()
    | HcrEl2::TIDCP.bits()
    | HcrEl2::TACR.bits()
    | HcrEl2::TSW.bits()
    | HcrEl2::RW.bits()
    | HcrEl2::TLOR.bits()
    | HcrEl2::TERR.bits();

/// CPTR_EL2 for a guest besides FP: trace (nVHE: TTA is bit 20) and activity monitors.
const CPTR_GUEST: u64 = 1 << 20 | 1 << 30;

const MDCR_GUEST: u64 = MdcrEl2::TDA.bits()
    | MdcrEl2::TDOSA.bits()
    | MdcrEl2::TDRA.bits()
    | MdcrEl2::TPM.bits()
    | MdcrEl2::TPMCR.bits()
    | MdcrEl2::TPMS.bits()
    | MdcrEl2::TTRF.bits();

const CNTHCTL_HOST: u64 = 3;
const CNTHCTL_GUEST: u64 = 1;

const SRE_HOST: u64 = 0xf;
const SRE_GUEST: u64 = 0x7;

/// nTPIDR2_EL0: the register is switched, so a guest may have it, as on CPUs that can't trap it.
const HFG_GUEST: u64 = 1 << 55;
/// HFGITR2_EL2: nDCCIVAPS; the other bit traps if set.
const HFGI2_HOST: u64 = 1 << 1;

/// MDCR_EL2.HPMD: the host's counters don't count hyp.
const MDCR_HPMD: u64 = 1 << 17;

/// MPAM2_EL2: EnMPAMSM, RES0 without SME. MPAMEN (63) belongs to EL3 or is read-only here.
const MPAM2_HOST: u64 = 1 << 50;
/// TRAPMPAM0EL1, TRAPMPAM1EL1; and MPAMSM_EL1 without EnMPAMSM.
const MPAM2_GUEST: u64 = 3 << 48;
/// MPAMHCR_EL2: TRAP_MPAMIDR_EL1.
const MPAMHCR_GUEST: u64 = 1 << 31;
/// MPAMIDR_EL1.HAS_HCR.
const MPAMIDR_HAS_HCR: u64 = 1 << 17;

/// Bits 63:50 of HFGRTR_EL2 and HFGWTR_EL2 except 51: "n" bits, 1 = no trap.
const HFG_HOST: u64 = 0xfff4 << 48;
/// HFGITR_EL2's n-bits: BRBIALL, BRBINJ, GCS*.
const HFGI_HOST: u64 = 0x1f << 55;
/// HDFGxTR_EL2's n-bits: PMSNEVFR, BRB*.
const HDFG_HOST: u64 = 0xf << 59;

/// EL2's controls for the two worlds on this machine, computed once per CPU.
#[derive(Clone, Debug, Default)]
pub struct World {
    hcr_host: u64,
    mdcr_host: u64,
    hcrx_host: u64,
    hcrx_guest: u64,
    optional: Optional,
    mpidr: u64,
}

bitflags! {
    /// What not every CPU has, and what there is to do about it at each switch.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Optional: u32 {
        const PAUTH = 1 << 0;
        const SME = 1 << 1;
        const HCX = 1 << 2;
        const FGT = 1 << 3;
        const FGT2 = 1 << 4;
        const MPAM = 1 << 5;
        const MPAM_HCR = 1 << 10;
        const AMU = 1 << 6;
        const RAS = 1 << 7;
        const TRACE_FILTER = 1 << 8;
        const BRBE = 1 << 9;
        const AARCH32 = 1 << 10;
    }
}

impl Optional {
    fn new(f: &CpuFeatures) -> Self {
        let mut optional = Self::empty();
        for (flag, has) in [
            (Self::PAUTH, f.pauth),
            (Self::SME, f.sme),
            (Self::HCX, f.hcx),
            (Self::FGT, f.fgt),
            (Self::FGT2, f.fgt2),
            (Self::MPAM, f.mpam),
            (Self::AMU, f.amu),
            (Self::RAS, f.ras),
            (Self::TRACE_FILTER, f.trace_filter),
            (Self::BRBE, f.brbe),
            (Self::AARCH32, f.aarch32),
        ] {
            optional.set(flag, has);
        }
        optional
    }

    /// What only a register that not every CPU has can tell.
    fn of_this_cpu(f: &CpuFeatures) -> Self {
        let hcr = f.mpam && read_mpamidr_el1() & MPAMIDR_HAS_HCR != 0;
        if hcr { Self::MPAM_HCR } else { Self::empty() }
    }
}

impl World {
    /// The controls for a CPU with these features and this MPIDR_EL1.
    pub fn new(f: &CpuFeatures, mpidr: u64) -> Self {
        let pauth = if f.pauth { HCR_API_APK } else { 0 };
        Self {
            hcr_host: HcrEl2::RW.bits()
                | HcrEl2::VM.bits()
                | HcrEl2::TSC.bits()
                | pauth
                | if f.mte { HCR_ATA } else { 0 }
                | if f.csv2_2 { HCR_ENSCXT } else { 0 }
                | if f.ras_fault_injection { HCR_FIEN } else { 0 },
            mdcr_host: f.pmu_counters | if f.pmu_hpmd { MDCR_HPMD } else { 0 },
            // Open what exists; a bit for what doesn't exist is RES0 and ignored.
            hcrx_host: (HcrxEl2::ENAS0
                | HcrxEl2::ENALS
                | HcrxEl2::ENASR
                | HcrxEl2::MSCEN
                | HcrxEl2::TCR2EN
                | HcrxEl2::SCTLR2EN
                | HcrxEl2::D128EN
                | HcrxEl2::ENSNERR
                | HcrxEl2::ENSDERR
                | HcrxEl2::ENIDCP128
                | HcrxEl2::GCSEN
                | HcrxEl2::ENFPM
                | HcrxEl2::PACMEN)
                .bits(),
            hcrx_guest: (HcrxEl2::MSCEN | HcrxEl2::ENFPM).bits(),
            optional: Optional::new(f) | Optional::of_this_cpu(f),
            mpidr,
        }
    }

    /// Sets everything of EL2 that a host runs under, whole: on a CPU that comes out of reset, no bit
    /// is taken over from there.
    pub fn init_host(&self) {
        self.host_controls();
        write_hstr_el2(0);
        write_cntvoff_el2(0);
        write_cnthp_ctl_el2(0);
        isb();
        write_ich_hcr_el2(0);
        clear_virtual_interface();
        if self.optional.contains(Optional::RAS) {
            write_vdisr_el2(0);
            write_vsesr_el2(0);
        }
        if self.optional.contains(Optional::AARCH32) {
            write_dbgvcr32_el2(0);
        }
        write_vpidr_el2(sys::read_midr_el1().bits());
        if self.optional.contains(Optional::FGT | Optional::AMU) {
            write_hafgrtr_el2(0);
        }
        isb();
    }

    /// Traps the host's WFI, and DC ZVA if `zva`: for `umbra.displace`.
    pub fn trap_host_displacement(&mut self, zva: bool) {
        self.hcr_host &= !HCR_TDZ;
        self.hcr_host |= HcrEl2::TWI.bits() | if zva { HCR_TDZ } else { 0 };
        set_hcr(self.hcr_host);
    }

    #[inline(always)]
    fn host_controls(&self) {
        set_hcr(self.hcr_host);
        write_mdcr_el2(self.mdcr_host);
        write_cnthctl_el2(CNTHCTL_HOST);
        write_icc_sre_el2(SRE_HOST);
        write_vmpidr_el2(self.mpidr);
        set_host_vectors();
        self.optional_controls(true);
    }

    /// EL2's controls for the guest with this HCR_EL2, VMPIDR_EL2 and VTTBR_EL2.
    #[inline]
    pub fn enter_guest(&self, hcr: u64, vmpidr: u64, vttbr: u64) {
        set_hcr(hcr);
        write_mdcr_el2(self.mdcr_host | MDCR_GUEST);
        write_cnthctl_el2(CNTHCTL_GUEST);
        write_icc_sre_el2(SRE_GUEST);
        write_vmpidr_el2(vmpidr);
        write_vttbr_el2(vttbr);
        set_guest_vectors();
        self.optional_controls(false);
    }

    /// The reverse.
    #[inline]
    pub fn leave_guest(&self, host_vttbr: u64) {
        self.host_controls();
        write_vttbr_el2(host_vttbr);
    }

    /// Controls that not every CPU has.
    #[inline(always)]
    fn optional_controls(&self, host: bool) {
        // Read once: each register that is written may be anything to the compiler.
        let optional = self.optional;
        if optional.contains(Optional::RAS) && !host {
            write_vdisr_el2(0);
        }
        if optional.contains(Optional::HCX) {
            write_hcrx_el2(if host { self.hcrx_host } else { self.hcrx_guest });
        }
        if optional.contains(Optional::FGT) {
            fine_grained(host);
            if optional.contains(Optional::FGT2) {
                fine_grained_2(host);
            }
        }
        if optional.contains(Optional::MPAM) {
            write_mpam2_el2(if host { MPAM2_HOST } else { MPAM2_GUEST });
            if optional.contains(Optional::MPAM_HCR) {
                write_mpamhcr_el2(if host { 0 } else { MPAMHCR_GUEST });
            }
        }
    }

    /// HCR_EL2 of a guest that has used pointer authentication, on a CPU that has it.
    pub fn hcr_with_pauth(&self, hcr: u64) -> Option<u64> {
        let first = self.optional.contains(Optional::PAUTH) && hcr & HCR_API_APK == 0;
        first.then_some(hcr | HCR_API_APK)
    }

    /// CPTR_EL2's bits besides FP for a guest.
    pub const fn cptr_guest(&self) -> u64 {
        CPTR_GUEST
    }
}

#[inline]
fn fine_grained(host: bool) {
    let if_host = |bits| if host { bits } else { 0 };
    write_hfgrtr_el2(if host { HFG_HOST } else { HFG_GUEST });
    write_hfgwtr_el2(if host { HFG_HOST } else { HFG_GUEST });
    write_hfgitr_el2(if_host(HFGI_HOST));
    write_hdfgrtr_el2(if_host(HDFG_HOST));
    write_hdfgwtr_el2(if_host(HDFG_HOST));
}

#[cold]
fn fine_grained_2(host: bool) {
    let if_host = |bits| if host { bits } else { 0 };
    // All bits of these but one are n-bits.
    write_hfgrtr2_el2(if_host(u64::MAX));
    write_hfgwtr2_el2(if_host(u64::MAX));
    write_hfgitr2_el2(if_host(HFGI2_HOST));
    write_hdfgrtr2_el2(if_host(u64::MAX));
    write_hdfgwtr2_el2(if_host(u64::MAX));
}

/// Exchanges EL1's registers, all but the keys ([`switch_pauth`]): the running world's to `save`, the next
/// one's from `load`.
#[inline]
pub fn switch_el1(world: &World, save: &mut El1Context, load: &El1Context) {
    // SAFETY: both pointers come from references; EL1's registers take no part in EL2's execution.
    unsafe { umbra_switch_el1(&raw mut save.regs, &raw const load.regs) };
    let optional = world.optional;
    if optional.contains(Optional::SME) {
        save.tpidr2_el0 = read_tpidr2_el0();
        write_tpidr2_el0(load.tpidr2_el0);
    }
    if optional.contains(Optional::TRACE_FILTER) {
        save.trfcr_el1 = read_trfcr_el1();
        write_trfcr_el1(load.trfcr_el1);
    }
    if optional.contains(Optional::BRBE) {
        save.brbcr_el1 = read_brbcr_el1();
        write_brbcr_el1(load.brbcr_el1);
    }
}

/// Exchanges the keys of pointer authentication, where there are any.
pub fn switch_pauth(world: &World, save: &mut El1Context, load: &El1Context) {
    if world.optional.contains(Optional::PAUTH) {
        // SAFETY: both pointers come from references, the CPU has the keys, and hyp uses none.
        unsafe { umbra_switch_pauth(&raw mut save.pauth, &raw const load.pauth) };
    }
}

/// Whether a guest with this HCR_EL2 has keys of its own in use, which are to be switched.
#[inline]
pub const fn uses_pauth(hcr: u64) -> bool {
    hcr & HCR_API_APK != 0
}

/// HCR_EL2.
#[inline]
pub fn set_hcr(value: u64) {
    // SAFETY: both worlds' values keep E2H and TGE clear, so EL2's own regime stays as it is.
    unsafe { write_hcr_el2(HcrEl2::from_bits_retain(value)) };
}
