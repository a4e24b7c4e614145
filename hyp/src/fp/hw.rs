//! The engine's hardware: this CPU.

use super::{Access, FpHw, Svcr};
use crate::arch::sysreg;
use crate::arch::sysreg::sys::{CptrEl2, write_cptr_el2};
use crate::world::features::{Features, Name};
use core::ptr::NonNull;
use umbra_shared::sme::{Storage, ZT0_BYTES, za_bytes};
use umbra_shared::sve::{IMAGE_ALIGN, Layout};
use umbra_shared::vl::Vq;

core::arch::global_asm!(include_str!("regs.S"));

// SAFETY: the symbols are the routines of regs.S, written for these signatures. Their callers must
// have opened FP, and must own the memory they pass.
unsafe extern "C" {
    fn umbra_fp_rdvl() -> u64;
    fn umbra_fp_rdsvl() -> u64;
    fn umbra_fp_svcr() -> u64;
    fn umbra_fp_start_sm();
    fn umbra_fp_stop_sm();
    fn umbra_fp_start_za();
    fn umbra_fp_stop_za();
    fn umbra_fp_save_sve(image: *mut u8, status: *mut u64);
    fn umbra_fp_load_sve(image: *const u8, status: *const u64);
    fn umbra_fp_save_streaming(image: *mut u8, status: *mut u64);
    fn umbra_fp_load_streaming(image: *const u8, status: *const u64);
    fn umbra_fp_zero_sve();
    fn umbra_fp_save_fpsimd(image: *mut u8, status: *mut u64);
    fn umbra_fp_load_fpsimd(image: *const u8, status: *const u64);
    fn umbra_fp_zero_fpsimd();
    fn umbra_fp_save_za(za: *mut u8);
    fn umbra_fp_load_za(za: *const u8);
    fn umbra_fp_zero_za();
    fn umbra_fp_save_zt0(zt0: *mut u8);
    fn umbra_fp_load_zt0(zt0: *const u8);
    fn umbra_fp_zero_zt0();
    fn umbra_fp_fpmr() -> u64;
    fn umbra_fp_set_fpmr(fpmr: u64);
}

/// Memory of one context's registers, that belongs to it alone, and FPSR, FPCR and FPMR.
#[derive(Debug)]
pub struct Image {
    base: NonNull<u8>,
    /// Bytes for Z, P and FFR.
    file: usize,
    /// Offset of ZA.
    za: usize,
    /// Bytes for ZA; 0: there is no room for ZT0 either.
    matrix: usize,
    /// FPSR, FPCR.
    status: [u64; 2],
    fpmr: u64,
}

// SAFETY: an `Image` owns the memory it points to, as `new` requires; nothing about it is tied to a
// CPU.
unsafe impl Send for Image {}

impl Image {
    /// Takes over [`Storage::bytes`] bytes at `base`.
    ///
    /// # Safety
    ///
    /// The memory must be mapped read-write in hyp, aligned to [`IMAGE_ALIGN`], and used by nothing
    /// else as long as the `Image` lives.
    pub const unsafe fn new(base: NonNull<u8>, storage: Storage) -> Self {
        let matrix = match storage.svq {
            Some(svq) => za_bytes(svq),
            None => 0,
        };
        Self {
            base,
            file: storage.file_bytes(),
            za: storage.za_offset(),
            matrix,
            status: [0; 2],
            fpmr: 0,
        }
    }

    /// An image that holds nothing and fits nothing.
    pub const fn empty() -> Self {
        Self { base: NonNull::dangling(), file: 0, za: 0, matrix: 0, status: [0; 2], fpmr: 0 }
    }

    /// Zeroes, as a new vCPU's.
    pub fn wipe(&mut self) {
        let zt0 = if self.matrix == 0 { 0 } else { ZT0_BYTES };
        for (offset, bytes) in [(0, self.file), (self.za, self.matrix + zt0)] {
            // SAFETY: inside the memory that `new` was given: Z, P and FFR, and ZA with ZT0 behind it.
            unsafe { self.base.add(offset).write_bytes(0, bytes) };
        }
        self.status = [0; 2];
        self.fpmr = 0;
    }

    /// Bytes of Z, P and FFR, or of V, from an offset on.
    ///
    /// # Panics
    ///
    /// If there are not as many.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset + bytes.len() <= self.file, "{offset} is outside of {} bytes", self.file);
        // SAFETY: inside the memory that `new` was given, which is the image's alone; `bytes` is no part of it.
        unsafe {
            self.base.as_ptr().add(offset).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
        };
    }

    /// The same bytes anew.
    ///
    /// # Panics
    ///
    /// If there are not as many.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.file, "{offset} is outside of {} bytes", self.file);
        // SAFETY: as above.
        unsafe {
            self.base.as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }

    /// FPSR, FPCR and FPMR.
    pub const fn status(&mut self) -> [&mut u64; 3] {
        let [fpsr, fpcr] = &mut self.status;
        [fpsr, fpcr, &mut self.fpmr]
    }

    /// The last line of defence of I3: refuses an image that the save about to run would overrun.
    fn require(&self, bytes: usize) {
        assert!(
            bytes <= self.file && self.base.addr().get().is_multiple_of(IMAGE_ALIGN),
            "FP image of {} bytes where {bytes} are needed",
            self.file
        );
    }

    /// Where ZA goes at this SVL, and ZT0; likewise.
    fn za_and_zt0(&self, svq: Vq) -> [NonNull<u8>; 2] {
        let bytes = za_bytes(svq);
        assert!(bytes <= self.matrix, "ZA of {} bytes where {bytes} are needed", self.matrix);
        // SAFETY: inside the memory that `new` was given, as there is room for ZA: ZT0 is behind it.
        [self.za, self.za + self.matrix].map(|offset| unsafe { self.base.add(offset) })
    }
}

/// This CPU's FP hardware.
#[derive(Debug)]
pub struct Cpu {
    has_sve: bool,
    has_sme: bool,
    has_fa64: bool,
    has_zt0: bool,
    has_fpmr: bool,
    /// What CPTR_EL2 is for each [`Access`], without `base`.
    values: [u64; 5],
    /// What CPTR_EL2 holds besides the three FP traps: the world's other traps.
    base: u64,
    /// What CPTR_EL2 holds: a write costs more than this comparison.
    current: u64,
}

/// CPTR_EL2 with everything closed that this machine can close, in the nVHE format: TZ without SVE
/// and TSM without SME are RES1, so they are set always.
const CLOSED: u64 =
    CptrEl2::RES1.bits() | CptrEl2::TFP.bits() | CptrEl2::TZ.bits() | CptrEl2::TSM.bits();

/// CPTR_EL2 for each [`Access`]: what the machine has not stays RES1.
const fn values(has_sve: bool, has_sme: bool) -> [u64; 5] {
    let fp = CptrEl2::TFP.bits();
    let sve = fp | if has_sve { CptrEl2::TZ.bits() } else { 0 };
    let sme = fp | if has_sme { CptrEl2::TSM.bits() } else { 0 };
    let mut values = [CLOSED; 5];
    values[Access::Fpsimd as usize] &= !fp;
    values[Access::Sve as usize] &= !sve;
    values[Access::Sme as usize] &= !sme;
    values[Access::Full as usize] &= !(sve | sme);
    values
}

/// SMCR_EL2.FA64.
const SMCR_FA64: u64 = 1 << 31;
/// SMCR_EL2.EZT0.
const SMCR_EZT0: u64 = 1 << 30;

impl Cpu {
    /// The hardware of a CPU with these features.
    pub const fn new(features: Features) -> Self {
        let (sve, sme) = (features.has(Name::Sve), features.has(Name::Sme));
        Self {
            has_sve: sve,
            has_sme: sme,
            has_fa64: features.has(Name::SmeFa64),
            has_zt0: features.has(Name::Sme2),
            has_fpmr: features.has(Name::Fpmr),
            values: values(sve, sme),
            base: 0,
            current: 0,
        }
    }

    /// Treats the CPU as one without SVE.
    pub fn hide_sve(&mut self) {
        self.has_sve = false;
        self.values = values(false, self.has_sme);
    }

    /// Treats the CPU as one without SME.
    pub fn hide_sme(&mut self) {
        self.has_sme = false;
        self.values = values(self.has_sve, false);
    }

    /// Sets the traps of the world that is about to run, other than FP's (TTA, TAM, TCPAC). Written
    /// together with the next [`FpHw::set_access`].
    #[inline]
    pub fn set_base(&mut self, base: u64) {
        self.base = base;
    }

    /// FPMR, behind a save.
    #[inline(always)]
    fn save_fpmr(&self, image: &mut Image) {
        if self.has_fpmr {
            // SAFETY: the CPU has FPMR, and FP is open.
            image.fpmr = unsafe { umbra_fp_fpmr() };
        }
    }

    /// FPMR, behind a load: what came before may have changed PSTATE.SM, which zeroes it.
    #[inline(always)]
    fn set_fpmr(&self, value: u64) {
        if self.has_fpmr {
            // SAFETY: the CPU has FPMR, and FP is open.
            unsafe { umbra_fp_set_fpmr(value) };
        }
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
    fn has_zt0(&self) -> bool {
        self.has_zt0
    }

    #[inline]
    fn set_access(&mut self, access: Access) {
        let value = self.values[access as usize] | self.base;
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

    fn set_streaming_clamp(&mut self, clamp: Vq) {
        let fa64 = if self.has_fa64 { SMCR_FA64 } else { 0 };
        let ezt0 = if self.has_zt0 { SMCR_EZT0 } else { 0 };
        sysreg::write_smcr_el2(fa64 | ezt0 | clamp.len_field());
        sysreg::isb();
    }

    fn svq(&mut self) -> Vq {
        // SAFETY: SME is open: the engine asks for the SVL only between an opening and a closing.
        let svl = unsafe { umbra_fp_rdsvl() };
        // RDSVL gives a power of two from 16 to 256 and nothing else.
        Vq::from_len(svl / 16 - 1)
    }

    fn smcr_el1(&mut self) -> u64 {
        sysreg::read_smcr_el1()
    }

    fn set_smcr_el1(&mut self, value: u64) {
        sysreg::write_smcr_el1(value);
    }

    #[inline]
    fn svcr(&mut self) -> Svcr {
        // SAFETY: the CPU has SME, and the engine asks only while it is open.
        Svcr::from_bits_truncate(unsafe { umbra_fp_svcr() })
    }

    fn start(&mut self, bits: Svcr) {
        // SAFETY: SME is open, and what the change zeroes is nobody's: the engine loads it afterwards.
        unsafe {
            if bits.contains(Svcr::ZA) {
                umbra_fp_start_za();
            }
            if bits.contains(Svcr::SM) {
                umbra_fp_start_sm();
            }
        }
    }

    fn stop(&mut self, bits: Svcr) {
        // SAFETY: SME is open, and what the change zeroes is saved or nobody's.
        unsafe {
            if bits.contains(Svcr::SM) {
                umbra_fp_stop_sm();
            }
            if bits.contains(Svcr::ZA) {
                umbra_fp_stop_za();
            }
        }
    }

    fn save_sve(&mut self, image: &mut Image) -> Vq {
        let vq = self.vq();
        image.require(Layout::new(vq).image_bytes());
        // SAFETY: SVE is open, and the image has room for the VL in force.
        unsafe { umbra_fp_save_sve(image.base.as_ptr(), image.status.as_mut_ptr()) };
        self.save_fpmr(image);
        vq
    }

    fn load_sve(&mut self, image: &Image, vq: Vq) {
        image.require(Layout::new(vq).image_bytes());
        // SAFETY: SVE is open, and the image has as many bytes as are read at the VL in force, `vq`, which
        // the engine has just read back.
        unsafe { umbra_fp_load_sve(image.base.as_ptr(), image.status.as_ptr()) };
        self.set_fpmr(image.fpmr);
    }

    fn save_streaming(&mut self, image: &mut Image) -> Vq {
        let svq = self.svq();
        image.require(Layout::new(svq).image_bytes());
        let (base, status) = (image.base.as_ptr(), image.status.as_mut_ptr());
        // SAFETY: SME is open, the CPU is in streaming mode, and the image has room for the SVL in force.
        // FFR is there with FA64, which SMCR_EL2 says.
        unsafe {
            if self.has_fa64 {
                umbra_fp_save_sve(base, status);
            } else {
                umbra_fp_save_streaming(base, status);
            }
        }
        self.save_fpmr(image);
        svq
    }

    fn load_streaming(&mut self, image: &Image, svq: Vq) {
        image.require(Layout::new(svq).image_bytes());
        let (base, status) = (image.base.as_ptr(), image.status.as_ptr());
        // SAFETY: as above, and the image has as many bytes as are read at the SVL in force, `svq`, which
        // the engine has just read back.
        unsafe {
            if self.has_fa64 {
                umbra_fp_load_sve(base, status);
            } else {
                umbra_fp_load_streaming(base, status);
            }
        }
        self.set_fpmr(image.fpmr);
    }

    fn save_fpsimd(&mut self, image: &mut Image) {
        image.require(umbra_shared::sve::FPSIMD_BYTES);
        // SAFETY: FP is open, and the image has room for V0-V31.
        unsafe { umbra_fp_save_fpsimd(image.base.as_ptr(), image.status.as_mut_ptr()) };
        self.save_fpmr(image);
    }

    fn load_fpsimd(&mut self, image: &Image) {
        image.require(umbra_shared::sve::FPSIMD_BYTES);
        // SAFETY: FP is open, and the image holds V0-V31.
        unsafe { umbra_fp_load_fpsimd(image.base.as_ptr(), image.status.as_ptr()) };
        self.set_fpmr(image.fpmr);
    }

    fn zero(&mut self) {
        // SAFETY: FP (and SVE where there is any) is open; the registers hold nothing to be kept.
        unsafe { if self.has_sve { umbra_fp_zero_sve() } else { umbra_fp_zero_fpsimd() } }
        self.set_fpmr(0);
    }

    fn save_za(&mut self, image: &mut Image) {
        let [za, zt0] = image.za_and_zt0(self.svq());
        // SAFETY: SME is open, PSTATE.ZA is 1, and there is room for ZA at the SVL in force, and for ZT0;
        // SMCR_EL2.EZT0 is set where there is ZT0.
        unsafe {
            umbra_fp_save_za(za.as_ptr());
            if self.has_zt0 {
                umbra_fp_save_zt0(zt0.as_ptr());
            }
        }
    }

    fn load_za(&mut self, image: &Image) {
        let [za, zt0] = image.za_and_zt0(self.svq());
        // SAFETY: as above: as many bytes as the SVL in force reads.
        unsafe {
            umbra_fp_load_za(za.as_ptr());
            if self.has_zt0 {
                umbra_fp_load_zt0(zt0.as_ptr());
            }
        }
    }

    fn zero_za(&mut self) {
        // SAFETY: SME is open and PSTATE.ZA is 1; ZA holds nothing to be kept.
        unsafe {
            umbra_fp_zero_za();
            if self.has_zt0 {
                umbra_fp_zero_zt0();
            }
        }
    }

    fn fpexc(&mut self) -> u64 {
        sysreg::read_fpexc32_el2()
    }

    fn set_fpexc(&mut self, value: u64) {
        sysreg::write_fpexc32_el2(value);
    }
}
