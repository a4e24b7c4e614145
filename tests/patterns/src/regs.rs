//! The registers themselves.
//!
//! On a soft-float target the compiler leaves V, Z, P, FFR, FPSR and FPCR alone: what these routines put
//! there stays until other code of this module, another context or a hypervisor changes it. That is
//! also why they need not be `unsafe`: no Rust code depends on what the registers hold.

pub mod sme;

use crate::{
    model::{Has, Model, SM, ZA},
    pattern::{
        Kept, MAX_IMAGE_BYTES, Mismatch, compare_fpsimd_kept, compare_kept, compare_status,
        compare_za, expected, expected_fpsimd, expected_za, expected_zt0, fpcr, fpmr, fpsr,
    },
    tag::{Register, Tag},
};
use core::arch::{asm, global_asm};
use umbra_shared::{
    sve::{FPSIMD_BYTES, Layout},
    vl::Vq,
};

#[cfg(target_feature = "neon")]
compile_error!("patterns live in the FP registers: build for a soft-float target");

global_asm!(include_str!("regs.S"));

unsafe extern "C" {
    fn umbra_pattern_load_sve(image: *const u8);
    fn umbra_pattern_dump_sve(image: *mut u8);
    fn umbra_pattern_load_fpsimd(image: *const u8);
    fn umbra_pattern_dump_fpsimd(image: *mut u8);
}

/// How much of the register file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// V0-V31, FPSR and FPCR.
    Fpsimd,
    /// Z0-Z31, P0-P15, FFR, FPSR and FPCR.
    Sve,
}

/// Whether the CPU has SVE (ID_AA64PFR0_EL1.SVE).
pub fn has_sve() -> bool {
    let value: u64;
    // SAFETY: reading an ID register.
    unsafe { asm!("mrs {}, id_aa64pfr0_el1", out(reg) value, options(nomem, nostack)) };
    value >> 32 & 0xf != 0
}

/// Opens FP and, if the CPU has them, SVE and SME at EL1 (CPACR_EL1.FPEN, ZEN, SMEN).
pub fn enable() {
    open(has_sve());
}

/// The same but SVE, which is open in streaming mode only then.
pub fn enable_all_but_sve() {
    open(false);
}

/// Does something with everything open at EL1, and leaves CPACR_EL1 as it was.
pub fn with_everything_open<R>(f: impl FnOnce() -> R) -> R {
    let value: u64;
    // SAFETY: reads CPACR_EL1.
    unsafe { asm!("mrs {}, cpacr_el1", out(reg) value, options(nomem, nostack)) };
    enable();
    let result = f();
    // SAFETY: the value that it had; the compiler doesn't use what it opens and closes.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) value, options(nostack)) };
    result
}

fn open(sve: bool) {
    const FPEN: u64 = 0b11 << 20;
    const ZEN: u64 = 0b11 << 16;
    const SMEN: u64 = 0b11 << 24;
    let zen = if sve { ZEN } else { 0 };
    let smen = if sme::has_sme() { SMEN } else { 0 };
    let value = FPEN | zen | smen;
    // SAFETY: it only opens registers that the compiler doesn't use.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) value, options(nostack)) };
}

/// The VL in force.
pub fn rdvl() -> Vq {
    let bytes: u64;
    // SAFETY: reads the VL. The caller has SVE, or takes the UNDEFINED exception it asked for.
    unsafe {
        asm!(
            ".arch_extension sve",
            "rdvl {}, #1",
            ".arch_extension nosve",
            out(reg) bytes,
            options(nostack)
        );
    }
    // The architecture has no other values; one quadword if it did.
    Vq::from_vl(bytes).unwrap_or(Vq::MIN)
}

/// Asks for a VL (ZCR_EL1.LEN) and says which one it is. A smaller one leaves the upper parts of the
/// registers out of reach, a larger one makes them zero or what they were.
pub fn set_vl(vq: Vq) -> Vq {
    // SAFETY: ZCR_EL1 changes nothing but the VL.
    unsafe { asm!("msr S3_0_C1_C2_0, {}", "isb", in(reg) vq.len_field(), options(nostack)) };
    rdvl()
}

/// ZCR_EL1.
pub fn zcr() -> u64 {
    let value: u64;
    // SAFETY: reads ZCR_EL1.
    unsafe { asm!("mrs {}, S3_0_C1_C2_0", out(reg) value, options(nostack)) };
    value
}

/// FPSR and FPCR.
pub fn status() -> (u32, u32) {
    let (fpsr, fpcr): (u64, u64);
    // SAFETY: reads them.
    unsafe {
        asm!(
            ".arch_extension fp",
            "mrs {}, fpsr",
            "mrs {}, fpcr",
            out(reg) fpsr,
            out(reg) fpcr,
            options(nostack)
        );
    }
    (fpsr as u32, fpcr as u32)
}

/// Sets FPSR and FPCR.
pub fn set_status(fpsr: u32, fpcr: u32) {
    // SAFETY: no compiled code does floating-point arithmetic.
    unsafe {
        asm!(
            ".arch_extension fp",
            "msr fpsr, {:x}",
            "msr fpcr, {:x}",
            in(reg) u64::from(fpsr),
            in(reg) u64::from(fpcr),
            options(nostack)
        );
    }
}

/// Copies the register file at the VL in force into `out`, and says what VL that is.
pub fn dump(out: &mut [u8]) -> Vq {
    let vq = rdvl();
    assert!(out.len() >= Layout::new(vq).image_bytes());
    // SAFETY: the routine writes one image at the VL in force, and there is room for it.
    unsafe { umbra_pattern_dump_sve(out.as_mut_ptr()) };
    vq
}

/// Fills the register file from an image at the VL in force.
pub fn load(image: &[u8]) {
    assert!(image.len() >= Layout::new(rdvl()).image_bytes());
    // SAFETY: the routine reads one image at the VL in force.
    unsafe { umbra_pattern_load_sve(image.as_ptr()) };
}

/// Copies V0-V31.
pub fn dump_fpsimd(out: &mut [u8; FPSIMD_BYTES]) {
    // SAFETY: the routine writes 512 bytes.
    unsafe { umbra_pattern_dump_fpsimd(out.as_mut_ptr()) };
}

/// Fills V0-V31; the upper parts of Z become zero.
pub fn load_fpsimd(image: &[u8; FPSIMD_BYTES]) {
    // SAFETY: the routine reads 512 bytes.
    unsafe { umbra_pattern_load_fpsimd(image.as_ptr()) };
}

#[repr(C, align(16))]
struct Image([u8; MAX_IMAGE_BYTES]);

/// Room to fill and to check the registers: what they should hold, and what they do.
#[repr(C)]
pub struct Bench {
    expected: Image,
    found: Image,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

fn fpsimd_part(image: &mut Image) -> &mut [u8; FPSIMD_BYTES] {
    image.0.first_chunk_mut().expect("an image is larger")
}

impl Bench {
    /// Zeroed.
    pub const fn new() -> Self {
        Self { expected: Image([0; MAX_IMAGE_BYTES]), found: Image([0; MAX_IMAGE_BYTES]) }
    }

    /// Fills the registers.
    pub fn fill(&mut self, tag: Tag, width: Width) {
        match width {
            Width::Sve => {
                expected(tag, Layout::new(rdvl()), &mut self.expected.0);
                load(&self.expected.0);
            }
            Width::Fpsimd => {
                let v = fpsimd_part(&mut self.expected);
                expected_fpsimd(tag, v);
                load_fpsimd(v);
            }
        }
        set_status(fpsr(tag), fpcr(tag));
    }

    /// Checks the registers against what [`Bench::fill`] put there at this VL.
    pub fn check(
        &mut self,
        tag: Tag,
        width: Width,
        kept: Kept,
        known: &[Tag],
    ) -> Result<(), Mismatch> {
        check_status(tag, kept)?;
        match width {
            Width::Sve => {
                let layout = Layout::new(dump(&mut self.found.0));
                expected(tag, layout, &mut self.expected.0);
                compare_kept(layout, kept, &mut self.expected.0, &self.found.0, known)
            }
            Width::Fpsimd => {
                let (e, f) = (fpsimd_part(&mut self.expected), fpsimd_part(&mut self.found));
                expected_fpsimd(tag, e);
                dump_fpsimd(f);
                compare_fpsimd_kept(kept, e, f, known)
            }
        }
    }

    /// Fills Z and P in streaming mode, FFR as well if it is there (`ffr`: FEAT_SME_FA64, and SMCR_EL1 lets it), at the
    /// SVL in force.
    pub fn fill_streaming(&mut self, tag: Tag, ffr: bool) {
        if ffr {
            return self.fill(tag, Width::Sve);
        }
        let layout = Layout::new(sme::rdsvl());
        expected(tag, layout, &mut self.expected.0);
        sme::load_without_ffr(&self.expected.0[..layout.image_bytes()]);
        set_status(fpsr(tag), fpcr(tag));
    }

    /// Checks what [`Bench::fill_streaming`] put there.
    pub fn check_streaming(&mut self, tag: Tag, ffr: bool, known: &[Tag]) -> Result<(), Mismatch> {
        if ffr {
            return self.check(tag, Width::Sve, Kept::All, known);
        }
        check_status(tag, Kept::All)?;
        let layout = Layout::new(sme::rdsvl());
        expected(tag, layout, &mut self.expected.0);
        sme::dump_without_ffr(&mut self.found.0[..layout.image_bytes()]);
        let ffr = layout.ffr()..layout.ffr() + layout.p_bytes();
        self.expected.0[ffr.clone()].copy_from_slice(&self.found.0[ffr]);
        compare_kept(layout, Kept::All, &mut self.expected.0, &self.found.0, known)
    }

    /// Fills ZA at the SVL in force. PSTATE.ZA is 1.
    pub fn fill_za(&mut self, tag: Tag) {
        load_za(tag, sme::rdsvl(), &mut sme::Row::new());
    }

    /// Checks what [`Bench::fill_za`] put there.
    pub fn check_za(&mut self, tag: Tag, known: &[Tag]) -> Result<(), Mismatch> {
        let (svq, mut row, mut wanted) = (sme::rdsvl(), sme::Row::new(), sme::Row::new());
        for number in 0..svq.vl_bytes() {
            row.dump_za(number);
            expected_za(tag, number, wanted.in_force(svq));
            compare_za(number, wanted.in_force(svq), row.in_force(svq), known)?;
        }
        Ok(())
    }

    /// Checks that Z, P and FFR, or V, hold zeroes.
    pub fn check_zero(&mut self, width: Width, known: &[Tag]) -> Result<(), Mismatch> {
        self.expected.0.fill(0);
        match width {
            Width::Sve => {
                let layout = Layout::new(dump(&mut self.found.0));
                compare_kept(layout, Kept::All, &mut self.expected.0, &self.found.0, known)
            }
            Width::Fpsimd => {
                let (e, f) = (fpsimd_part(&mut self.expected), fpsimd_part(&mut self.found));
                dump_fpsimd(f);
                compare_fpsimd_kept(Kept::All, e, f, known)
            }
        }
    }

    /// The registers as the last check found them.
    pub fn found(&self) -> &[u8] {
        &self.found.0
    }
}

/// Fills ZA. PSTATE.ZA is 1.
fn load_za(tag: Tag, svq: Vq, row: &mut sme::Row) {
    for number in 0..svq.vl_bytes() {
        expected_za(tag, number, row.in_force(svq));
        row.load_za(number);
    }
}

fn check_status(tag: Tag, kept: Kept) -> Result<(), Mismatch> {
    let (found_fpsr, found_fpcr) = status();
    for (register, expected, found) in
        [(Register::Fpsr, fpsr(tag), found_fpsr), (Register::Fpcr, fpcr(tag), found_fpcr)]
    {
        if kept != Kept::Nothing || found != 0 {
            compare_status(register, expected, found)?;
        }
    }
    Ok(())
}

/// One owner's use of the registers of the CPU it runs on, and what must be in them.
#[repr(C)]
pub struct Registers {
    image: Image,
    row: sme::Row,
    model: Model,
    /// What was wrong with SVCR when something was to be done in its mode.
    wrong_mode: Option<Mismatch>,
}

impl Registers {
    /// Registers in the reset state. `vq`: the VL in force; `None`: V registers only.
    pub const fn new(owner: u16, vq: Option<Vq>) -> Self {
        let (image, row) = (Image([0; MAX_IMAGE_BYTES]), sme::Row::new());
        Self { image, row, model: Model::new(owner, vq), wrong_mode: None }
    }

    /// What must be there.
    pub fn model(&mut self) -> &mut Model {
        &mut self.model
    }

    /// Fills everything at the VL in force.
    pub fn fill(&mut self) {
        self.find_mode();
        let tag = self.model.fill();
        match self.model.vq() {
            Some(vq) => {
                expected(tag, Layout::new(vq), &mut self.image.0);
                if self.model.ffr() {
                    load(&self.image.0);
                } else {
                    sme::load_without_ffr(&self.image.0);
                }
            }
            None => {
                let v = fpsimd_part(&mut self.image);
                expected_fpsimd(tag, v);
                load_fpsimd(v);
            }
        }
        self.set_status(tag);
    }

    /// The mode, where hyp may have dropped what was given up.
    fn find_mode(&mut self) {
        if self.model.svq().is_some() && self.model.mode_lost() {
            let found = self.model.check_svcr(sme::svcr());
            self.wrong_mode = self.wrong_mode.or(found.err());
        }
    }

    fn set_status(&self, tag: Tag) {
        set_status(fpsr(tag), fpcr(tag));
        if self.model.has().fpmr {
            sme::set_fpmr(fpmr(tag));
        }
    }

    /// Fills ZA and ZT0, at the SVL in force. PSTATE.ZA becomes 1 if it is not.
    pub fn fill_za(&mut self) {
        self.find_mode();
        if self.model.svcr() & ZA == 0 {
            let with = self.model.svcr() | ZA;
            self.wrong_mode = self.wrong_mode.or(self.set_svcr(with).err());
        }
        let tag = self.model.fill_za();
        let Some(svq) = self.model.svq() else { return };
        load_za(tag, svq, &mut self.row);
        if self.model.has().zt0 {
            expected_zt0(tag, self.row.zt0());
            self.row.load_zt0();
        }
    }

    /// Fills V0-V31.
    pub fn fill_fpsimd(&mut self) {
        self.find_mode();
        let tag = self.model.fill_fpsimd();
        let v = fpsimd_part(&mut self.image);
        expected_fpsimd(tag, v);
        load_fpsimd(v);
        self.set_status(tag);
    }

    /// What there is beside V, Z and P registers. The SVL is the one in force.
    pub fn discover(&mut self) {
        let has = Has { fpmr: sme::has_fpmr(), fa64: sme::has_fa64(), zt0: sme::has_zt0() };
        let svq = sme::has_sme().then(sme::rdsvl);
        self.model = self.model.clone().having(svq, has);
    }

    /// Asks for an SVL and returns the one that it gave.
    pub fn set_svq(&mut self, svq: Vq) -> Vq {
        let given = sme::set_svl(svq);
        self.model.set_svq(given);
        given
    }

    /// Sets PSTATE.SM and PSTATE.ZA. Looks first whether they are as they must be.
    pub fn set_svcr(&mut self, svcr: u64) -> Result<(), Mismatch> {
        self.model.check_svcr(sme::svcr())?;
        sme::set_svcr(svcr);
        self.model.set_svcr(svcr);
        Ok(())
    }

    /// Whether the owner is in streaming mode: there a VL can be asked for, but which one is given does
    /// not show.
    pub fn streaming(&mut self) -> bool {
        self.find_mode();
        self.model.svcr() & SM != 0
    }

    /// Asks for a VL and returns the one that it gave. Not in streaming mode.
    pub fn set_vq(&mut self, vq: Vq) -> Vq {
        let given = set_vl(vq);
        self.model.set_vq(given);
        given
    }

    /// Everything is as it must be.
    pub fn check(&mut self) -> Result<(), Mismatch> {
        self.wrong_mode.take().map_or(Ok(()), Err)?;
        if let Some(svq) = self.model.svq() {
            self.model.check_svcr(sme::svcr())?;
            assert_eq!(sme::rdsvl(), svq, "the streaming vector length in force");
        }
        self.model.check_status(status())?;
        if self.model.has().fpmr {
            self.model.check_fpmr(sme::fpmr())?;
        }
        self.check_file()?;
        self.check_za()
    }

    fn check_file(&mut self) -> Result<(), Mismatch> {
        match self.model.vq() {
            Some(vq) => {
                // A VL that changed behind its owner's back shows here.
                assert_eq!(rdvl(), vq, "the vector length in force");
                if self.model.ffr() {
                    dump(&mut self.image.0);
                } else {
                    sme::dump_without_ffr(&mut self.image.0);
                }
                self.model.check(Layout::new(vq), &self.image.0)
            }
            None => {
                let v = fpsimd_part(&mut self.image);
                dump_fpsimd(v);
                self.model.check_fpsimd(v)
            }
        }
    }

    fn check_za(&mut self) -> Result<(), Mismatch> {
        let Some(svq) = self.model.svq().filter(|_| self.model.svcr() & ZA != 0) else {
            return Ok(());
        };
        for row in 0..svq.vl_bytes() {
            self.row.dump_za(row);
            self.model.check_za(row, self.row.in_force(svq))?;
        }
        if self.model.has().zt0 {
            self.row.dump_zt0();
            self.model.check_zt0(self.row.zt0())?;
        }
        Ok(())
    }
}

/// The register file of a task that kernel-mode FP displaces, streaming mode included. ZA stays.
#[repr(C)]
pub struct Displaced {
    image: Image,
    status: (u32, u32),
    svcr: u64,
    fpmr: u64,
}

impl Default for Displaced {
    fn default() -> Self {
        Self::new()
    }
}

impl Displaced {
    /// Nothing.
    pub const fn new() -> Self {
        Self { image: Image([0; MAX_IMAGE_BYTES]), status: (0, 0), svcr: 0, fpmr: 0 }
    }

    /// Takes the registers out, and leaves streaming mode (Linux: `kernel_neon_begin`).
    pub fn save(&mut self, width: Width) {
        self.status = status();
        self.fpmr = if sme::has_fpmr() { sme::fpmr() } else { 0 };
        self.svcr = if sme::has_sme() { sme::svcr() } else { 0 };
        if self.svcr & SM != 0 {
            if sme::ffr_is_open() {
                dump(&mut self.image.0);
            } else {
                sme::dump_without_ffr(&mut self.image.0);
            }
            sme::set_svcr(self.svcr & !SM);
            return;
        }
        match width {
            Width::Sve => {
                dump(&mut self.image.0);
            }
            Width::Fpsimd => dump_fpsimd(fpsimd_part(&mut self.image)),
        }
    }

    /// Puts them back.
    pub fn restore(&mut self, width: Width) {
        if self.svcr & SM != 0 {
            sme::set_svcr(self.svcr);
            if sme::ffr_is_open() {
                load(&self.image.0);
            } else {
                sme::load_without_ffr(&self.image.0);
            }
        } else {
            match width {
                Width::Sve => load(&self.image.0),
                Width::Fpsimd => load_fpsimd(fpsimd_part(&mut self.image)),
            }
        }
        // Last: a change of mode changes them.
        set_status(self.status.0, self.status.1);
        if sme::has_fpmr() {
            sme::set_fpmr(self.fpmr);
        }
    }
}
