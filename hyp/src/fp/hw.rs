//! The engine's hardware: this CPU.

use super::{Access, FpHw};
use crate::arch::sysreg;
use crate::arch::sysreg::sys::{CptrEl2, write_cptr_el2};
use core::arch::asm;
use core::ptr::NonNull;
use umbra_shared::sve::{IMAGE_ALIGN, Layout};
use umbra_shared::vl::Vq;

core::arch::global_asm!(include_str!("regs.S"));

// SAFETY: the symbols are the routines of regs.S, written for these signatures. Their callers must
// have opened FP, and must own the memory they pass.
unsafe extern "C" {
    fn umbra_fp_stop_streaming();
    fn umbra_fp_rdvl() -> u64;
    fn umbra_fp_save_sve(image: *mut u8, status: *mut u64);
    fn umbra_fp_load_sve(image: *const u8, status: *const u64);
    fn umbra_fp_zero_sve();
    fn umbra_fp_save_fpsimd(image: *mut u8, status: *mut u64);
    fn umbra_fp_load_fpsimd(image: *const u8, status: *const u64);
    fn umbra_fp_zero_fpsimd();
}

/// Memory of one saved register file: `bytes` bytes that belong to it alone, and FPSR and FPCR.
#[derive(Debug)]
pub struct Image {
    base: NonNull<u8>,
    bytes: usize,
    /// FPSR, FPCR.
    status: [u64; 2],
}

// SAFETY: an `Image` owns the memory it points to, as `new` requires; nothing about it is tied to a
// CPU.
unsafe impl Send for Image {}

impl Image {
    /// Takes over `bytes` bytes at `base`.
    ///
    /// # Safety
    ///
    /// The memory must be mapped read-write in hyp, aligned to [`IMAGE_ALIGN`], and used by nothing
    /// else as long as the `Image` lives.
    pub const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes, status: [0; 2] }
    }

    /// An image that holds nothing and fits nothing.
    pub const fn empty() -> Self {
        Self { base: NonNull::dangling(), bytes: 0, status: [0; 2] }
    }

    /// Bytes of memory.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last line of defence of I3: refuses an image that the save about to run would overrun.
    fn require(&self, bytes: usize) {
        assert!(
            bytes <= self.bytes && self.base.addr().get().is_multiple_of(IMAGE_ALIGN),
            "FP image of {} bytes where {bytes} are needed",
            self.bytes
        );
    }
}

/// This CPU's FP hardware.
#[derive(Debug)]
pub struct Cpu {
    has_sve: bool,
    has_sme: bool,
    /// The traps that are open with all that the machine has.
    full: u64,
    /// What CPTR_EL2 holds besides the three FP traps: the world's other traps.
    base: u64,
    /// What CPTR_EL2 holds: a write costs more than this comparison.
    current: u64,
}

/// CPTR_EL2 with everything closed that this machine can close, in the nVHE format: TZ without SVE
/// and TSM without SME are RES1, so they are set always.
const CLOSED: u64 =
    CptrEl2::RES1.bits() | CptrEl2::TFP.bits() | CptrEl2::TZ.bits() | CptrEl2::TSM.bits();

/// TFP, and TZ and TSM where they trap anything.
const fn full(has_sve: bool, has_sme: bool) -> u64 {
    CptrEl2::TFP.bits()
        | if has_sve { CptrEl2::TZ.bits() } else { 0 }
        | if has_sme { CptrEl2::TSM.bits() } else { 0 }
}

impl Cpu {
    /// The hardware of a CPU with these features.
    pub const fn new(has_sve: bool, has_sme: bool) -> Self {
        Self { has_sve, has_sme, full: full(has_sve, has_sme), base: 0, current: 0 }
    }

    /// Treats the CPU as one without SVE.
    pub fn hide_sve(&mut self) {
        self.has_sve = false;
        self.full = full(false, self.has_sme);
    }

    /// Leaves streaming mode and gives up ZA, on a CPU that comes up: what was there is nobody's.
    pub fn stop_streaming(&mut self) {
        if self.has_sme {
            // SAFETY: the CPU has SME, and the caller has opened it.
            unsafe { umbra_fp_stop_streaming() };
        }
    }

    /// Sets the traps of the world that is about to run, other than FP's (TTA, TAM, TCPAC). Written
    /// together with the next [`FpHw::set_access`].
    #[inline]
    pub fn set_base(&mut self, base: u64) {
        self.base = base;
    }
}

impl FpHw for Cpu {
    type Image = Image;

    #[inline]
    fn has_sve(&self) -> bool {
        self.has_sve
    }

    #[inline]
    fn has_sme(&self) -> bool {
        self.has_sme
    }

    #[inline]
    fn set_access(&mut self, access: Access) {
        let open = match access {
            Access::Closed => 0,
            Access::Fpsimd => CptrEl2::TFP.bits(),
            Access::Sve => CptrEl2::TFP.bits() | CptrEl2::TZ.bits(),
            Access::Full => self.full,
        };
        let value = (CLOSED & !open) | self.base;
        if value != self.current {
            self.current = value;
            // SAFETY: CPTR_EL2 only decides what traps; hyp touches FP registers only in the routines
            // below, behind an open trap.
            unsafe { write_cptr_el2(CptrEl2::from_bits_retain(value)) };
        }
    }

    #[inline]
    fn sync(&mut self) {
        sysreg::isb();
    }

    fn set_clamp(&mut self, clamp: Vq) {
        sysreg::write_zcr_el2(clamp.len_field());
        sysreg::isb();
    }

    fn vq(&mut self) -> Vq {
        // SAFETY: SVE is open: the engine asks for the VL only between an opening and a closing.
        let vl = unsafe { umbra_fp_rdvl() };
        // RDVL gives a multiple of 16 from 16 to 256 and nothing else.
        Vq::from_len(vl / 16 - 1)
    }

    fn zcr_el1(&mut self) -> u64 {
        sysreg::read_zcr_el1()
    }

    fn set_zcr_el1(&mut self, value: u64) {
        sysreg::write_zcr_el1(value);
    }

    #[inline]
    fn svcr(&mut self) -> u64 {
        let svcr;
        // SAFETY: reads a register; S3_3_C4_C2_2 is SVCR, and SME is open while the host is live.
        unsafe { asm!("mrs {}, s3_3_c4_c2_2", out(reg) svcr, options(nomem, nostack)) };
        svcr
    }

    fn save_sve(&mut self, image: &mut Image) {
        image.require(Layout::new(self.vq()).image_bytes());
        // SAFETY: SVE is open, and the image has room for the VL in force.
        unsafe { umbra_fp_save_sve(image.base.as_ptr(), image.status.as_mut_ptr()) };
    }

    fn load_sve(&mut self, image: &Image) {
        image.require(Layout::new(self.vq()).image_bytes());
        // SAFETY: SVE is open, and the image has as many bytes as the VL in force reads.
        unsafe { umbra_fp_load_sve(image.base.as_ptr(), image.status.as_ptr()) };
    }

    fn save_fpsimd(&mut self, image: &mut Image) {
        image.require(umbra_shared::sve::FPSIMD_BYTES);
        // SAFETY: FP is open, and the image has room for V0-V31.
        unsafe { umbra_fp_save_fpsimd(image.base.as_ptr(), image.status.as_mut_ptr()) };
    }

    fn load_fpsimd(&mut self, image: &Image) {
        image.require(umbra_shared::sve::FPSIMD_BYTES);
        // SAFETY: FP is open, and the image holds V0-V31.
        unsafe { umbra_fp_load_fpsimd(image.base.as_ptr(), image.status.as_ptr()) };
    }

    fn zero(&mut self) {
        // SAFETY: FP (and SVE where there is any) is open; the registers hold nothing to be kept.
        unsafe { if self.has_sve { umbra_fp_zero_sve() } else { umbra_fp_zero_fpsimd() } }
    }
}
