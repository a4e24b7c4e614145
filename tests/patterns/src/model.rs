//! What one owner's registers must hold after everything it has done with them.
//!
//! A [`Model`] follows an owner through any sequence of fills, uses of V alone, changes of its vector
//! lengths, of PSTATE.SM and PSTATE.ZA, and losses it has agreed to, and judges what is found in the
//! registers then. Three kinds of bytes exist:
//!
//! - what the owner wrote last and has had in reach ever since: it must be there;
//! - what a use of V alone zeroed, or a change of PSTATE.SM or PSTATE.ZA: it must be zero;
//! - what was out of reach in between, because the vector length was smaller (Arm ARM B1.4.2: zero, or
//!   what was there before), or what the owner gave up: it is zero or the owner's own from before.
//!
//! Nothing else is acceptable anywhere, least of all what belongs to somebody else.

mod layer;
#[cfg(test)]
mod tests;

use crate::{
    pattern::{Found, Mismatch, fpcr, fpmr, fpsr, whose_of},
    tag::{Register, Tag, lane},
};
use layer::{Layer, Written};
use umbra_shared::{
    sme::ZT0_BYTES,
    sve::{FPSIMD_BYTES, Layout},
    vl::Vq,
};

/// SVCR.SM
pub const SM: u64 = 1 << 0;
/// SVCR.ZA
pub const ZA: u64 = 1 << 1;

/// FPSR after a change of PSTATE.SM.
const FPSR_AFTER_SM: u32 = 0x0800_009f;

/// What an owner has beside the registers that everybody has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Has {
    /// FPMR.
    pub fpmr: bool,
    /// FFR in streaming mode.
    pub fa64: bool,
    /// ZT0.
    pub zt0: bool,
}

/// A register of its own (FPSR, FPCR, FPMR).
#[derive(Clone, Copy, Debug)]
struct Single {
    /// Its generation; `None`: zero.
    last: Option<u32>,
    /// It may be zero all the same.
    lost: bool,
    /// PSTATE.SM has changed since it was written.
    changed: bool,
}

impl Single {
    const RESET: Self = Self { last: None, lost: false, changed: false };

    const fn written(generation: u32) -> Self {
        Self { last: Some(generation), lost: false, changed: false }
    }
}

/// An owner.
#[derive(Clone, Debug)]
pub struct Model {
    owner: u16,
    generation: u32,
    /// The VL in force outside streaming mode; `None`: it has V registers only there.
    vq: Option<Vq>,
    /// The SVL in force; `None`: it has no streaming mode.
    svq: Option<Vq>,
    has: Has,
    sm: bool,
    za: bool,
    /// PSTATE.SM and PSTATE.ZA may have become 0.
    mode_lost: bool,
    z: Layer,
    p: Layer,
    array: Layer,
    zt0: Single,
    /// FPSR and FPCR.
    status: Single,
    fpmr: Single,
}

impl Model {
    /// Registers in the reset state: all zero. `vq`: the VL in force; `None`: V registers only.
    pub const fn new(owner: u16, vq: Option<Vq>) -> Self {
        Self {
            owner,
            generation: 0,
            vq,
            svq: None,
            has: Has { fpmr: false, fa64: false, zt0: false },
            sm: false,
            za: false,
            mode_lost: false,
            z: Layer::zero(),
            p: Layer::zero(),
            array: Layer::zero(),
            zt0: Single::RESET,
            status: Single::RESET,
            fpmr: Single::RESET,
        }
    }

    /// The same with more registers. `svq`: the SVL in force; `None`: no streaming mode.
    #[must_use]
    pub const fn having(self, svq: Option<Vq>, has: Has) -> Self {
        // Not `..self`: what has a destructor can't be moved out of in part here.
        let mut model = self;
        model.svq = svq;
        model.has = has;
        model
    }

    /// Names the owner, who has not used the registers yet.
    pub fn set_owner(&mut self, owner: u16) {
        self.owner = owner;
    }

    /// The CPU came out of reset.
    pub fn reset(&mut self, vq: Option<Vq>, svq: Option<Vq>) {
        let generation = self.generation;
        *self = Self { generation, ..Self::new(self.owner, vq).having(svq, self.has) };
    }

    /// The VL in force: in streaming mode it is the SVL.
    pub const fn vq(&self) -> Option<Vq> {
        if self.sm { self.svq } else { self.vq }
    }

    /// The SVL in force; `None`: no streaming mode.
    pub const fn svq(&self) -> Option<Vq> {
        self.svq
    }

    /// What it has.
    pub const fn has(&self) -> Has {
        self.has
    }

    /// SVCR as it must be.
    pub const fn svcr(&self) -> u64 {
        (if self.sm { SM } else { 0 }) | (if self.za { ZA } else { 0 })
    }

    /// Whether PSTATE.SM and PSTATE.ZA may have become 0: SVCR is to be looked at before anything is done
    /// to the registers.
    pub const fn mode_lost(&self) -> bool {
        self.mode_lost
    }

    /// Whether FFR can be used now.
    pub const fn ffr(&self) -> bool {
        !self.sm || self.has.fa64
    }

    /// The tag of a new content.
    fn next(&mut self) -> Tag {
        self.generation += 1;
        Tag { owner: self.owner, generation: self.generation }
    }

    fn next_with_status(&mut self) -> Tag {
        let tag = self.next();
        self.status = Single::written(tag.generation);
        self.fpmr = self.status;
        tag
    }

    /// Everything but ZA and ZT0 is about to be written: with this tag, at the VL in force.
    pub fn fill(&mut self) -> Tag {
        let tag = self.next_with_status();
        let vq = self.vq().unwrap_or(Vq::MIN);
        let written = Written { generation: tag.generation, vq };
        self.z.write(written, vq);
        if self.vq().is_some() {
            self.p.write(written, vq);
        }
        tag
    }

    /// V0-V31, FPSR, FPCR and FPMR are about to be written, which zeroes the rest of each Z register that
    /// is in reach.
    pub fn fill_fpsimd(&mut self) -> Tag {
        let tag = self.next_with_status();
        let written = Written { generation: tag.generation, vq: Vq::MIN };
        self.z.write(written, self.vq().unwrap_or(Vq::MIN));
        tag
    }

    /// ZA and ZT0 are about to be written, at the SVL in force. PSTATE.ZA is 1.
    pub fn fill_za(&mut self) -> Tag {
        assert!(self.za, "ZA is out of reach");
        let tag = self.next();
        let vq = self.svq.unwrap_or(Vq::MIN);
        self.array.write(Written { generation: tag.generation, vq }, vq);
        self.zt0 = Single::written(tag.generation);
        tag
    }

    /// Another VL is in force outside streaming mode.
    pub fn set_vq(&mut self, vq: Vq) {
        self.vq = Some(vq);
        if !self.sm {
            self.z.keep(vq.vl_bytes());
            self.p.keep(vq.vl_bytes());
        }
    }

    /// Another SVL is in force.
    pub fn set_svq(&mut self, svq: Vq) {
        self.svq = Some(svq);
        if self.sm {
            self.z.keep(svq.vl_bytes());
            self.p.keep(svq.vl_bytes());
        }
        self.array.keep(svq.vl_bytes());
    }

    /// PSTATE.SM and PSTATE.ZA are written. What changes is zeroed (Arm ARM B1.4.6).
    pub fn set_svcr(&mut self, svcr: u64) {
        let (sm, za) = (svcr & SM != 0, svcr & ZA != 0);
        if sm != self.sm {
            self.sm = sm;
            (self.z, self.p) = (Layer::zero(), Layer::zero());
            self.status.changed = true;
            self.fpmr = Single::RESET;
        }
        if za != self.za {
            self.za = za;
            (self.array, self.zt0) = (Layer::zero(), Single::RESET);
        }
        self.mode_lost = false;
    }

    /// The owner has said that only V0-V31, FPSR, FPCR and FPMR are live, of all but ZA and ZT0. In
    /// streaming mode that means nothing.
    pub fn discard(&mut self) {
        if !self.sm {
            self.z.keep(16);
            self.p.keep(0);
        }
    }

    /// The owner has said that nothing is.
    pub fn lose(&mut self) {
        self.z.keep(0);
        self.p.keep(0);
        self.array.keep(0);
        self.zt0.lost = true;
        self.status.lost = true;
        self.fpmr.lost = true;
        self.mode_lost = true;
    }

    /// Judges SVCR. Of what the owner gave up, PSTATE.SM and PSTATE.ZA are what they were or 0, from then
    /// on: to be called before any of the other checks.
    pub fn check_svcr(&mut self, found: u64) -> Result<(), Mismatch> {
        let expected = self.svcr();
        if found == expected {
            self.mode_lost = false;
        } else if self.mode_lost && found & !expected == 0 {
            let (status, fpmr) = (self.status, self.fpmr);
            self.set_svcr(found);
            // Whether they came to zero by the change or before is the same.
            self.status = Single { changed: self.status.changed, ..status };
            self.fpmr = fpmr;
        } else {
            let whose = if found == 0 { Found::Zero } else { Found::Unknown };
            return Err(Mismatch { register: Register::Svcr, byte: 0, expected, found, whose });
        }
        Ok(())
    }

    /// Judges FPSR and FPCR.
    pub fn check_status(&self, (found_fpsr, found_fpcr): (u32, u32)) -> Result<(), Mismatch> {
        let Single { last, lost, changed } = self.status;
        let tag = last.map(|generation| Tag { owner: self.owner, generation });
        let expected = tag.map_or((0, 0), |tag| (fpsr(tag), fpcr(tag)));
        // A change of PSTATE.SM sets FPSR and leaves FPCR; QEMU before 9.1 leaves FPSR and clears FPCR.
        let fpsr_fits = found_fpsr == expected.0 || changed && found_fpsr == FPSR_AFTER_SM;
        let fpcr_fits = found_fpcr == expected.1 || changed && found_fpcr == 0;
        for (register, fits, expected, found) in [
            (Register::Fpsr, fpsr_fits, expected.0, found_fpsr),
            (Register::Fpcr, fpcr_fits, expected.1, found_fpcr),
        ] {
            if !(fits || lost && found == 0) {
                let whose = if found == 0 { Found::Zero } else { Found::Unknown };
                let (expected, found) = (expected.into(), found.into());
                return Err(Mismatch { register, byte: 0, expected, found, whose });
            }
        }
        Ok(())
    }

    /// Judges FPMR.
    pub fn check_fpmr(&self, found: u64) -> Result<(), Mismatch> {
        let tag = self.fpmr.last.map(|generation| Tag { owner: self.owner, generation });
        let expected = tag.map_or(0, fpmr);
        if found == expected || self.fpmr.lost && found == 0 {
            return Ok(());
        }
        let whose = if found == 0 { Found::Zero } else { Found::Unknown };
        Err(Mismatch { register: Register::Fpmr, byte: 0, expected, found, whose })
    }

    /// Judges an image taken at the VL in force, `layout.image_bytes()` long.
    pub fn check(&self, layout: Layout, image: &[u8]) -> Result<(), Mismatch> {
        for n in 0..32 {
            let found = &image[layout.z(n)..layout.z(n) + layout.z_bytes()];
            self.z.check(self.owner, Register::Z(n as u8), found, |n| n)?;
        }
        for n in 0..16 {
            let found = &image[layout.p(n)..layout.p(n) + layout.p_bytes()];
            self.p.check(self.owner, Register::P(n as u8), found, |n| 8 * n)?;
        }
        if !self.ffr() {
            return Ok(());
        }
        let found = &image[layout.ffr()..layout.image_bytes()];
        self.p.check(self.owner, Register::Ffr, found, |n| 8 * n)
    }

    /// Judges V0-V31.
    pub fn check_fpsimd(&self, image: &[u8; FPSIMD_BYTES]) -> Result<(), Mismatch> {
        for (n, found) in image.chunks(16).enumerate() {
            self.z.check(self.owner, Register::Z(n as u8), found, |n| n)?;
        }
        Ok(())
    }

    /// Judges a row of ZA, taken at the SVL in force.
    pub fn check_za(&self, row: usize, found: &[u8]) -> Result<(), Mismatch> {
        self.array.check(self.owner, Register::Za(row as u8), found, |n| n.max(row))
    }

    /// Judges ZT0.
    pub fn check_zt0(&self, found: &[u8; ZT0_BYTES]) -> Result<(), Mismatch> {
        let tag = self.zt0.last.map(|generation| Tag { owner: self.owner, generation });
        for (n, chunk) in found.chunks(8).enumerate() {
            let expected = tag.map_or(0, |tag| lane(tag, Register::Zt0, n as u8));
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            let found = u64::from_le_bytes(word);
            if found != expected && !(self.zt0.lost && found == 0) {
                let register = Register::Zt0;
                return Err(Mismatch {
                    register,
                    byte: 8 * n,
                    expected,
                    found,
                    whose: whose_of(found),
                });
            }
        }
        Ok(())
    }
}
