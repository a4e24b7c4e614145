//! The world switch: what belongs to whoever runs at EL1 and EL0 changes hands, and EL2's controls with it.
//!
//! Which registers there are and what becomes of each is data ([`super::features`], [`super::el1`]; the table is
//! in [`super`]'s description); here it is put into effect.

use super::aarch32;
use super::controls::{CONSTANT, Controls, walk};
use super::el1::{NUMBERS, el1_registers};
use super::features::id::REGISTERS;
use super::features::{
    CONTROLS, Control, Features, HCR_API_APK, HCR_RW, Name, OPTIONAL, OPTIONAL_OF, Optional,
};
use crate::arch::exception::{self, set_guest_vectors, set_host_vectors};
use crate::arch::sysreg::sys::{self, HcrEl2, write_hcr_el2};
use crate::arch::sysreg::*;
use crate::world::interrupts::clear_virtual_interface;
use core::mem::offset_of;
use static_assertions::const_assert;

// SAFETY: the routines made below, written for these signatures.
unsafe extern "C" {
    fn umbra_switch_el1(save: *mut El1Regs, load: *const El1Regs);
    fn umbra_switch_pauth(save: *mut PauthKeys, load: *const PauthKeys);
}

/// A routine that exchanges registers two by two: x0 is where the outgoing world's go, x1 where the incoming
/// world's come from.
macro_rules! routine {
    ($name:literal, $extension:literal, $($a:ident $b:ident,)*) => {
        core::arch::global_asm!(concat!(
            ".text\n.global ", $name, "\n", $name, ":\n", $extension, "\n",
            $(
                "mrs x2, ", stringify!($a), "\nmrs x3, ", stringify!($b),
                "\nldp x4, x5, [x1], #16\nstp x2, x3, [x0], #16",
                "\nmsr ", stringify!($a), ", x4\nmsr ", stringify!($b), ", x5\n",
            )*
            "ret\n"
        ));
    };
}

macro_rules! el1_regs {
    ($($a:ident $b:ident,)*) => {
        /// EL1's registers, as `umbra_switch_el1` moves them.
        #[derive(Clone, Debug, Default)]
        #[repr(C)]
        #[allow(missing_docs, reason = "the fields are the Arm ARM's register names")]
        pub struct El1Regs {
            $(pub $a: u64, pub $b: u64,)*
        }

        impl El1Regs {
            /// One of them, by its place in [`super::el1::NAMES`].
            fn place(&mut self, n: usize) -> Option<&mut u64> {
                [$(&mut self.$a, &mut self.$b,)*].into_iter().nth(n)
            }
        }

        routine!("umbra_switch_el1", "", $($a $b,)*);
    };
}

el1_registers!(el1_regs);

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
    /// The ID registers ([`super::idregs::table`]).
    pub id: [u64; REGISTERS],
}

const_assert!(offset_of!(GuestRegs, x) == 0);

impl GuestRegs {
    /// Xn; 31 is XZR.
    #[inline]
    pub fn x(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }

    /// Writes Xn; XZR takes nothing.
    #[inline]
    pub fn set_x(&mut self, n: u8, value: u64) {
        if let Some(x) = self.x.get_mut(usize::from(n)) {
            *x = value;
        }
    }
}

/// FEAT_PAuth's keys, low and high halves of IA, IB, DA, DB, GA.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct PauthKeys([u64; 10]);

routine!(
    "umbra_switch_pauth",
    ".arch_extension pauth",
    apiakeylo_el1 apiakeyhi_el1,
    apibkeylo_el1 apibkeyhi_el1,
    apdakeylo_el1 apdakeyhi_el1,
    apdbkeylo_el1 apdbkeyhi_el1,
    apgakeylo_el1 apgakeyhi_el1,
);

/// Everything at EL1 and EL0 that is moved by plain copying.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct El1Context {
    /// The registers that every CPU has.
    pub regs: El1Regs,
    pauth: PauthKeys,
    /// Those that not every CPU has; of a guest's, what it can't reach stays zero.
    optional: [u64; OPTIONAL],
}

impl El1Context {
    /// A guest's EL1 after reset: MMU and caches off, everything else zero (Arm ARM: SCTLR_EL1's
    /// reset value, with its RES1 bits).
    pub fn reset() -> Self {
        Self::with_sctlr(SCTLR_EL1_RESET)
    }

    /// The same of an AArch32 EL1.
    pub fn reset_aarch32() -> Self {
        Self::with_sctlr(aarch32::SCTLR_RESET)
    }

    /// The register that MRS calls so, of those that move at each switch, while no CPU has them.
    pub fn register(&mut self, number: u16) -> Option<&mut u64> {
        let n = NUMBERS.iter().position(|&other| other == number)?;
        self.regs.place(n)
    }

    /// Half a key of pointer authentication: APIA, APIB, APDA, APDB and APGA, lower and upper.
    pub fn key(&mut self, n: usize) -> Option<&mut u64> {
        self.pauth.0.get_mut(n)
    }

    /// TPIDR2_EL0.
    pub fn tpidr2_el0(&mut self) -> &mut u64 {
        &mut self.optional[Optional::Tpidr2El0 as usize]
    }

    fn with_sctlr(sctlr_el1: u64) -> Self {
        Self { regs: El1Regs { sctlr_el1, ..El1Regs::default() }, ..Self::default() }
    }
}

/// SCTLR_EL1 after reset: RES1 bits only.
pub const SCTLR_EL1_RESET: u64 = 0x30d0_0980;

/// SCTLR_EL1.EE, in AArch32 SCTLR.EE: exceptions to EL1 are taken big-endian, and its walks are.
pub const SCTLR_EE: u64 = 1 << 25;

/// PSTATE for an EL1 that starts: EL1h, DAIF masked.
pub const PSTATE_EL1H_MASKED: u64 = 0x3c5;

const HCR_TDZ: u64 = 1 << 28;
/// ISR_EL1: a physical SError.
const ISR_A: u64 = 1 << 8;

/// Whether the EL1 of a guest with this HCR_EL2 is AArch32.
#[inline]
pub const fn is_aarch32(hcr: u64) -> bool {
    hcr & HCR_RW == 0
}

/// EL2's controls for the two worlds on this CPU.
#[derive(Clone, Debug, Default)]
pub struct World {
    controls: Controls,
    features: Features,
    mpidr: u64,
}

impl World {
    /// The controls for a CPU with these features, this PMCR_EL0.N and this MPIDR_EL1.
    pub fn new(features: Features, pmcr_n: u64, mpidr: u64) -> Self {
        Self { controls: Controls::new(features, pmcr_n), features, mpidr }
    }

    /// Sets everything of EL2 that a host runs under, whole: on a CPU that comes out of reset, no bit
    /// is taken over from there.
    pub fn init_host(&self) {
        self.host_controls();
        write_cntvoff_el2(0);
        write_cnthp_ctl_el2(0);
        isb();
        write_ich_hcr_el2(0);
        clear_virtual_interface();
        for control in CONSTANT {
            if control.exists(self.features) {
                write(control, self.controls.host[control as usize]);
            }
        }
        // What was there before is nobody's error, and no guest's.
        if self.features.has(Name::Ras) {
            clear_disr_el1();
        }
        write_vpidr_el2(sys::read_midr_el1().bits());
        isb();
    }

    /// Traps the host's WFI, and DC ZVA if `zva`: for `umbra.displace`.
    pub fn trap_host_displacement(&mut self, zva: bool) {
        let hcr = &mut self.controls.host[Control::Hcr as usize];
        *hcr &= !HCR_TDZ;
        *hcr |= HcrEl2::TWI.bits() | if zva { HCR_TDZ } else { 0 };
        set_hcr(*hcr);
    }

    #[inline(always)]
    fn host_controls(&self) {
        set_hcr(self.controls.host[Control::Hcr as usize]);
        write_controls(&self.controls.host, self.features);
        write_vmpidr_el2(self.mpidr);
        set_host_vectors();
    }

    /// EL2's controls for the guest with this HCR_EL2, VMPIDR_EL2 and VTTBR_EL2.
    #[inline(always)]
    pub fn enter_guest(&self, hcr: u64, vmpidr: u64, vttbr: u64) {
        set_hcr(hcr);
        write_controls(&self.controls.guest, self.features);
        // A guest writes it, although RAS is hidden: it carries nothing from one to another.
        if self.features.has(Name::Ras) {
            clear_vdisr_el2();
        }
        write_vmpidr_el2(vmpidr);
        write_vttbr_el2(vttbr);
        set_guest_vectors();
    }

    /// The reverse.
    #[inline(always)]
    pub fn leave_guest(&self, host_vttbr: u64) {
        self.host_controls();
        write_vttbr_el2(host_vttbr);
    }

    /// Whether an error of the host's waits: an SError that it has masked, or one that it has deferred (DISR_EL1)
    /// and not looked at yet.
    #[inline(always)]
    pub fn host_error_waits(&self) -> bool {
        read_isr_el1() & ISR_A != 0 || self.features.has(Name::Ras) && read_disr_el1() != 0
    }

    /// Whether an SError waits that the guest has caused: what becomes of it is its own, whoever's turn is next.
    /// Returns DISR_EL1, or 0 in it where there is no FEAT_RAS; none waits afterwards.
    #[inline(always)]
    pub fn take_serror(&self) -> Option<u64> {
        if self.features.has(Name::Ras) {
            let disr = deferred_serror();
            if disr == 0 {
                return None;
            }
            clear_disr_el1();
            return Some(disr);
        }
        Self::take_serror_without_ras()
    }

    /// Where there is no ESB: a DSB waits for the guest's accesses; what is pending then is taken at EL2.
    #[inline(never)]
    fn take_serror_without_ras() -> Option<u64> {
        dsb_sy();
        isb();
        if read_isr_el1() & ISR_A == 0 {
            return None;
        }
        exception::take_pending_serror();
        Some(0)
    }

    /// HCR_EL2 of a guest that has used pointer authentication, on a CPU that has it.
    pub fn hcr_with_pauth(&self, hcr: u64) -> Option<u64> {
        let first = self.features.has(Name::Pauth) && hcr & HCR_API_APK == 0;
        first.then_some(hcr | HCR_API_APK)
    }

    /// CPTR_EL2's bits besides FP for a guest.
    #[inline]
    pub const fn cptr_guest(&self) -> u64 {
        self.controls.guest[Control::Cptr as usize]
    }
}

#[inline(always)]
fn write_controls(values: &[u64; CONTROLS], features: Features) {
    walk(features, |control| write(control, values[control as usize]));
}

#[inline(always)]
fn write(control: Control, value: u64) {
    match control {
        Control::Mdcr => write_mdcr_el2(value),
        Control::Cnthctl => write_cnthctl_el2(value),
        Control::IccSre => write_icc_sre_el2(value),
        Control::Hstr => write_hstr_el2(value),
        Control::Vdisr => write_vdisr_el2(value),
        Control::Vsesr => write_vsesr_el2(value),
        Control::Dbgvcr32 => write_dbgvcr32_el2(value),
        Control::Hcrx => write_hcrx_el2(value),
        Control::Hfgrtr => write_hfgrtr_el2(value),
        Control::Hfgwtr => write_hfgwtr_el2(value),
        Control::Hfgitr => write_hfgitr_el2(value),
        Control::Hdfgrtr => write_hdfgrtr_el2(value),
        Control::Hdfgwtr => write_hdfgwtr_el2(value),
        Control::Hafgrtr => write_hafgrtr_el2(value),
        Control::Hfgrtr2 => write_hfgrtr2_el2(value),
        Control::Hfgwtr2 => write_hfgwtr2_el2(value),
        Control::Hfgitr2 => write_hfgitr2_el2(value),
        Control::Hdfgrtr2 => write_hdfgrtr2_el2(value),
        Control::Hdfgwtr2 => write_hdfgwtr2_el2(value),
        Control::Mpam2 => write_mpam2_el2(value),
        Control::Mpamhcr => write_mpamhcr_el2(value),
        Control::Actlr => write_actlr_el2(value),
        Control::Hacr => write_hacr_el2(value),
        Control::Trfcr => write_trfcr_el2(value),
        Control::Trcitecr => write_trcitecr_el2(value),
        Control::Brbcr => write_brbcr_el2(value),
        Control::Pmscr => write_pmscr_el2(value),
        Control::Gcscr => write_gcscr_el2(value),
        Control::Smprimap => write_smprimap_el2(value),
        Control::Scxtnum => write_scxtnum_el2(value),
        Control::Tfsr => write_tfsr_el2(value),
        Control::Contextidr => write_contextidr_el2(value),
        Control::CnthvCtl => write_cnthv_ctl_el2(value),
        Control::Hacdbsbr => write_hacdbsbr_el2(value),
        // The vCPU's, and the FP engine's.
        Control::Hcr | Control::Cptr => {}
    }
}

#[inline(always)]
fn exchange(register: Optional, value: u64) -> u64 {
    macro_rules! exchange {
        ($read:ident $write:ident) => {{
            let old = $read();
            $write(value);
            old
        }};
    }
    match register {
        Optional::Tpidr2El0 => exchange!(read_tpidr2_el0 write_tpidr2_el0),
        Optional::TrfcrEl1 => exchange!(read_trfcr_el1 write_trfcr_el1),
        Optional::BrbcrEl1 => exchange!(read_brbcr_el1 write_brbcr_el1),
    }
}

/// Exchanges EL1's registers, all but the keys ([`switch_pauth`]): the running world's to `save`, the next
/// one's from `load`.
#[inline(always)]
pub fn switch_el1(world: &World, save: &mut El1Context, load: &El1Context) {
    // SAFETY: both pointers come from references; EL1's registers take no part in EL2's execution.
    unsafe { umbra_switch_el1(&raw mut save.regs, &raw const load.regs) };
    let features = world.features;
    // Written out: a loop stays one.
    let mut optional = |register: Optional| {
        let n = register as usize;
        if features.has(OPTIONAL_OF[n]) {
            save.optional[n] = exchange(register, load.optional[n]);
        }
    };
    const { assert!(OPTIONAL == 3) };
    optional(Optional::Tpidr2El0);
    optional(Optional::TrfcrEl1);
    optional(Optional::BrbcrEl1);
}

/// Exchanges the keys of pointer authentication, where there are any.
pub fn switch_pauth(world: &World, save: &mut El1Context, load: &El1Context) {
    if world.features.has(Name::Pauth) {
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
