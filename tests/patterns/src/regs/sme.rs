//! SME's registers, and FPMR.
//!
//! In streaming mode Z, P and FFR are those of [`super`]: what is different is how long they are, and
//! that without FEAT_SME_FA64 there is no FFR.

use crate::model::SM;
use core::arch::asm;
use umbra_shared::{sme::ZT0_BYTES, vl::Vq};

unsafe extern "C" {
    fn umbra_pattern_load_streaming(image: *const u8);
    fn umbra_pattern_dump_streaming(image: *mut u8);
    fn umbra_pattern_load_za(row: *const u8, number: u64);
    fn umbra_pattern_dump_za(row: *mut u8, number: u64);
    fn umbra_pattern_load_zt0(from: *const u8);
    fn umbra_pattern_dump_zt0(to: *mut u8);
}

macro_rules! registers {
    ($($(#[$doc:meta])* $read:ident $write:ident $name:literal;)*) => {
        $(
            $(#[$doc])*
            pub fn $read() -> u64 {
                let value: u64;
                // SAFETY: reading it changes nothing. The caller has it, or takes the UNDEFINED exception
                // it asked for.
                unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
                value
            }

            $(#[$doc])*
            pub fn $write(value: u64) {
                // SAFETY: no compiled code uses what it changes.
                unsafe { asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack)) };
            }
        )*
    };
}

registers! {
    /// SVCR: PSTATE.SM and PSTATE.ZA.
    svcr set_svcr "s3_3_c4_c2_2";
    /// SMCR_EL1.
    smcr set_smcr "s3_0_c1_c2_6";
    /// TPIDR2_EL0.
    tpidr2 set_tpidr2 "s3_3_c13_c0_5";
    /// FPMR.
    fpmr set_fpmr "s3_3_c4_c4_2";
}

/// SMCR_EL1.FA64
pub const FA64: u64 = 1 << 31;
/// SMCR_EL1.EZT0
pub const EZT0: u64 = 1 << 30;

macro_rules! id {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading an ID register.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

/// ID_AA64PFR1_EL1.SME: 0 without SME, 2 with ZT0.
fn version() -> u64 {
    id!("s3_0_c0_c4_1") >> 24 & 0xf
}

/// Whether the CPU has SME.
pub fn has_sme() -> bool {
    version() != 0
}

/// Whether the CPU has ZT0 (FEAT_SME2).
pub fn has_zt0() -> bool {
    version() >= 2
}

/// Whether all of A64 works in streaming mode (ID_AA64SMFR0_EL1.FA64), FFR above all.
pub fn has_fa64() -> bool {
    has_sme() && id!("s3_0_c0_c4_5") >> 63 != 0
}

/// Whether SMCR_EL1 lets streaming mode have FFR now.
pub fn ffr_is_open() -> bool {
    has_fa64() && smcr() & FA64 != 0
}

/// Whether the CPU has FPMR (ID_AA64PFR2_EL1.FPMR).
pub fn has_fpmr() -> bool {
    id!("s3_0_c0_c4_2") >> 32 & 0xf != 0
}

/// Whether PSTATE.SM is 1.
pub fn streaming() -> bool {
    svcr() & SM != 0
}

/// The SVL in force.
pub fn rdsvl() -> Vq {
    let bytes: u64;
    // SAFETY: reads the SVL. The caller has SME, or takes the UNDEFINED exception it asked for.
    unsafe {
        asm!(
            ".arch_extension sme",
            "rdsvl {}, #1",
            ".arch_extension nosme",
            out(reg) bytes,
            options(nostack)
        );
    }
    // The architecture has no other values; one quadword if it did.
    Vq::from_vl(bytes).unwrap_or(Vq::MIN)
}

/// Asks for an SVL (SMCR_EL1.LEN), with FFR and ZT0 open where there, and says which one it is.
pub fn set_svl(svq: Vq) -> Vq {
    let fa64 = if has_fa64() { FA64 } else { 0 };
    let ezt0 = if has_zt0() { EZT0 } else { 0 };
    set_smcr(svq.len_field() | fa64 | ezt0);
    rdsvl()
}

/// Fills Z and P from an image at the SVL in force. In streaming mode.
pub(super) fn load_without_ffr(image: &[u8]) {
    // SAFETY: the caller has seen that the image is large enough.
    unsafe { umbra_pattern_load_streaming(image.as_ptr()) };
}

/// Copies Z and P. In streaming mode.
pub(super) fn dump_without_ffr(image: &mut [u8]) {
    // SAFETY: the caller has seen that there is room enough.
    unsafe { umbra_pattern_dump_streaming(image.as_mut_ptr()) };
}

/// A row of ZA of the largest SVL.
#[repr(C, align(64))]
pub struct Row(pub [u8; Vq::MAX.vl_bytes()]);

impl Row {
    /// Zeroes.
    pub const fn new() -> Self {
        Self([0; Vq::MAX.vl_bytes()])
    }

    /// What of it is in force: `svq` is.
    pub fn in_force(&mut self, svq: Vq) -> &mut [u8] {
        &mut self.0[..svq.vl_bytes()]
    }

    /// The first 64 bytes.
    pub fn zt0(&mut self) -> &mut [u8; ZT0_BYTES] {
        self.0.first_chunk_mut().expect("a row is larger")
    }

    /// Fills row `number` of ZA, which exists.
    pub fn load_za(&self, number: usize) {
        // SAFETY: the routine reads one row, which is never longer than this.
        unsafe { umbra_pattern_load_za(self.0.as_ptr(), number as u64) };
    }

    /// Copies row `number` of ZA, which exists.
    pub fn dump_za(&mut self, number: usize) {
        // SAFETY: the routine writes one row, which is never longer than this.
        unsafe { umbra_pattern_dump_za(self.0.as_mut_ptr(), number as u64) };
    }

    /// Fills ZT0.
    pub fn load_zt0(&self) {
        // SAFETY: the routine reads 64 bytes.
        unsafe { umbra_pattern_load_zt0(self.0.as_ptr()) };
    }

    /// Copies ZT0.
    pub fn dump_zt0(&mut self) {
        // SAFETY: the routine writes 64 bytes.
        unsafe { umbra_pattern_dump_zt0(self.0.as_mut_ptr()) };
    }
}

impl Default for Row {
    fn default() -> Self {
        Self::new()
    }
}
