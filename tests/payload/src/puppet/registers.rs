//! What is in a puppet's V, Z, P and FFR: filled and checked as the test says.

use super::{IMAGE, OTHER_IMAGE, Puppet, Routine};
use crate::host::KNOWN;
use umbra_host::kernel::sysreg;
use umbra_patterns::{
    pattern::{self, Kept, Mismatch},
    tag::{Register, Tag},
};
use umbra_shared::{
    sve::{FPSIMD_BYTES, Layout},
    vl::Vq,
};

impl Puppet {
    /// ZCR_EL1.LEN; returns the VL that it gave.
    #[track_caller]
    pub fn set_len(&self, len: u64) -> Vq {
        let vl = self.call(Routine::SetZcr, [len, 0, 0])[0];
        Vq::from_vl(vl).expect("a vector length")
    }

    /// The VL in force.
    #[track_caller]
    pub fn rdvl(&self) -> Vq {
        Vq::from_vl(self.call(Routine::Rdvl, [0; 3])[0]).expect("a vector length")
    }

    /// The tag of its registers.
    pub fn tag(&self, generation: u32) -> Tag {
        Tag { owner: self.owner, generation }
    }

    /// Fills its registers with what was prepared ([`Machine::with_images`]).
    #[track_caller]
    pub fn fill_prepared(&self) {
        let (at, tag) = (self.area() + IMAGE, self.machine.tag);
        if self.vq.is_some() {
            assert_eq!(Some(self.set_len(15)), self.vq);
            self.call(Routine::FillSve, [at, 0, 0]);
        } else {
            self.call(Routine::FillFpsimd, [at, 0, 0]);
        }
        let (fpsr, fpcr) = (pattern::fpsr(tag), pattern::fpcr(tag));
        self.call(Routine::SetStatus, [fpsr.into(), fpcr.into(), 0]);
    }

    /// They are still so; the guest compares.
    #[track_caller]
    pub fn check_prepared(&self) {
        let (at, to, tag) = (self.area() + IMAGE, self.area() + OTHER_IMAGE, self.machine.tag);
        let [fpsr, fpcr, ..] = self.call(Routine::Status, [0; 3]);
        let expected = (pattern::fpsr(tag).into(), pattern::fpcr(tag).into());
        assert_eq!((fpsr, fpcr), expected, "guest: FPSR, FPCR");
        let count = match self.vq {
            Some(vq) => {
                self.call(Routine::DumpSve, [to, 0, 0]);
                Layout::new(vq).image_bytes()
            }
            None => {
                self.call(Routine::DumpFpsimd, [to, 0, 0]);
                FPSIMD_BYTES
            }
        };
        let same = self.call(Routine::Compare, [at, to, count as u64])[0];
        assert_eq!(same, count as u64, "guest: first byte of its image that differs");
    }

    /// Selects its largest VL and fills its registers.
    #[track_caller]
    pub fn fill(&self, generation: u32) {
        if self.vq.is_some() {
            self.set_len(15);
        }
        self.fill_here(generation);
    }

    /// Fills its registers at the VL in force.
    #[track_caller]
    pub fn fill_here(&self, generation: u32) {
        assert!(!self.machine.protected, "a protected guest's images can't be written");
        let tag = self.tag(generation);
        let at = self.area() + IMAGE;
        if self.vq.is_some() {
            let layout = Layout::new(self.rdvl());
            let image = self.memory(at, layout.image_bytes());
            pattern::expected(tag, layout, image);
            sysreg::clean_to_poc(image.as_ptr() as usize, image.len());
            self.call(Routine::FillSve, [at, 0, 0]);
        } else {
            let image = self.memory(at, FPSIMD_BYTES);
            pattern::expected_fpsimd(tag, image.first_chunk_mut().expect("as large"));
            sysreg::clean_to_poc(image.as_ptr() as usize, image.len());
            self.call(Routine::FillFpsimd, [at, 0, 0]);
        }
        let (fpsr, fpcr) = (pattern::fpsr(tag), pattern::fpcr(tag));
        self.call(Routine::SetStatus, [fpsr.into(), fpcr.into(), 0]);
    }

    /// The image that they make at its largest VL, and FPSR and FPCR.
    pub fn expected_image<'b>(&self, generation: u32, buffer: &'b mut [u8]) -> &'b [u8] {
        let tag = self.tag(generation);
        match self.vq {
            Some(vq) => {
                let image = &mut buffer[..Layout::new(vq).image_bytes()];
                pattern::expected(tag, Layout::new(vq), image);
                image
            }
            None => {
                let image = &mut buffer[..FPSIMD_BYTES];
                pattern::expected_fpsimd(tag, image.first_chunk_mut().expect("as large"));
                image
            }
        }
    }

    /// FPSR and FPCR.
    pub fn expected_status(&self, generation: u32) -> (u64, u64) {
        let tag = self.tag(generation);
        (pattern::fpsr(tag).into(), pattern::fpcr(tag).into())
    }

    /// Its registers are as [`Puppet::fill`] left them.
    #[track_caller]
    pub fn check(&self, generation: u32) {
        self.check_kept(generation, Kept::All);
    }

    /// So much of them is.
    #[track_caller]
    pub fn check_kept(&self, generation: u32, kept: Kept) {
        if let Err(mismatch) = self.find(generation, kept) {
            panic!("guest: {mismatch}");
        }
    }

    /// What is not as it should be.
    #[track_caller]
    pub fn find(&self, generation: u32, kept: Kept) -> Result<(), Mismatch> {
        let tag = self.tag(generation);
        let [fpsr, fpcr, ..] = self.call(Routine::Status, [0; 3]);
        for (register, expected, found) in
            [(Register::Fpsr, pattern::fpsr(tag), fpsr), (Register::Fpcr, pattern::fpcr(tag), fpcr)]
        {
            pattern::compare_status(register, expected, found as u32)?;
        }
        let (to, expected) = (self.area() + OTHER_IMAGE, self.area() + IMAGE);
        if self.vq.is_some() {
            let layout = Layout::new(self.rdvl());
            self.memory(to, layout.image_bytes());
            self.call(Routine::DumpSve, [to, 0, 0]);
            let found = self.memory(to, layout.image_bytes());
            let expected = self.memory(expected, layout.image_bytes());
            pattern::expected(tag, layout, expected);
            pattern::compare_kept(layout, kept, expected, found, &KNOWN)
        } else {
            self.memory(to, FPSIMD_BYTES);
            self.call(Routine::DumpFpsimd, [to, 0, 0]);
            let found = self.memory(to, FPSIMD_BYTES).first_chunk().expect("as large");
            let mut expected = [0; FPSIMD_BYTES];
            pattern::expected_fpsimd(tag, &mut expected);
            pattern::compare_fpsimd_kept(kept, &mut expected, found, &KNOWN)
        }
    }

    /// Its registers hold zeroes, FPSR and FPCR included: the reset state. For all of its VL.
    #[track_caller]
    pub fn check_reset(&self) {
        let [fpsr, fpcr, ..] = self.call(Routine::Status, [0; 3]);
        assert_eq!((fpsr, fpcr), (0, 0), "FPSR, FPCR after reset");
        let to = self.area() + OTHER_IMAGE;
        let count = match self.vq {
            Some(vq) => {
                assert_eq!(self.set_len(15), vq);
                let count = Layout::new(vq).image_bytes();
                self.memory(to, count).fill(0xee);
                self.memory(to, count);
                self.call(Routine::DumpSve, [to, 0, 0]);
                count
            }
            None => {
                self.memory(to, FPSIMD_BYTES).fill(0xee);
                self.memory(to, FPSIMD_BYTES);
                self.call(Routine::DumpFpsimd, [to, 0, 0]);
                FPSIMD_BYTES
            }
        };
        let found = self.memory(to, count);
        let stray = found.iter().position(|&byte| byte != 0);
        assert_eq!(stray, None, "byte of the image that is not zero after reset");
    }
}
