//! What EL2 does to the simulated machine's registers.

use super::{Level, Need, SimCpu, SimImage, open};
use crate::fp::{Access, FpHw, Svcr};
use umbra_shared::sme::za_bytes;
use umbra_shared::sve::{FPSIMD_BYTES, Layout};
use umbra_shared::vl::Vq;

impl SimCpu {
    fn store(&mut self, image: &mut SimImage, layout: Layout) {
        self.moves += 1;
        assert!(layout.image_bytes() <= image.bytes.len(), "a save behind the end of its buffer");
        let seen = self.observe(Level::El2, true);
        for (n, z) in seen.z.iter().enumerate() {
            image.bytes[layout.z(n)..][..layout.z_bytes()].copy_from_slice(z);
        }
        for (n, p) in seen.p.iter().enumerate() {
            let at = if n < 16 { layout.p(n) } else { layout.ffr() };
            image.bytes[at..][..layout.p_bytes()].copy_from_slice(p);
        }
        image.status = seen.status;
    }

    fn fetch(&mut self, image: &SimImage, layout: Layout) {
        self.moves += 1;
        assert!(layout.image_bytes() <= image.bytes.len(), "a load behind the end of its buffer");
        for n in 0..32 {
            self.registers.z[n][..layout.z_bytes()]
                .copy_from_slice(&image.bytes[layout.z(n)..][..layout.z_bytes()]);
        }
        for n in 0..if self.has_ffr() { 17 } else { 16 } {
            let at = if n < 16 { layout.p(n) } else { layout.ffr() };
            self.registers.p[n][..layout.p_bytes()]
                .copy_from_slice(&image.bytes[at..][..layout.p_bytes()]);
        }
        self.registers.status = image.status;
    }

    fn require_za(&self, image: &SimImage) -> usize {
        self.require(Need::Sme);
        assert!(self.svcr.contains(Svcr::ZA), "ZA is not there");
        let svq = self.svq_at(Level::El2);
        assert!(za_bytes(svq) <= image.za.len(), "ZA behind the end of its buffer");
        svq.vl_bytes()
    }
}

impl FpHw for SimCpu {
    type Image = SimImage;

    fn has_sve(&self) -> bool {
        !self.having.vqs.is_empty()
    }

    fn has_sme(&self) -> bool {
        !self.having.svqs.is_empty()
    }

    fn has_zt0(&self) -> bool {
        self.having.zt0
    }

    fn set_access(&mut self, access: Access) {
        // What the machine has not can't be opened.
        let access = match access {
            Access::Sve | Access::Full if !self.has_sve() && !self.has_sme() => Access::Fpsimd,
            Access::Full if !self.has_sve() => Access::Sme,
            Access::Sve if !self.has_sve() => Access::Fpsimd,
            Access::Full if !self.has_sme() => Access::Sve,
            access => access,
        };
        self.access_written = access;
        // Closing may take effect at once: no implementation has to wait for the ISB.
        if self.random() & 1 == 0 && access == Access::Closed {
            self.access = access;
        }
    }

    fn sync(&mut self) {
        self.synchronise();
    }

    fn set_clamp(&mut self, clamp: Vq) {
        self.require(Need::Sve);
        self.clamp_written = clamp;
        self.synchronise();
    }

    fn vq(&mut self) -> Vq {
        self.require_file();
        Vq::from_len(self.vl_at(Level::El2) as u64 / 16 - 1)
    }

    fn zcr_el1(&mut self) -> u64 {
        self.require(Need::Sve);
        self.zcr_el1
    }

    fn set_zcr_el1(&mut self, value: u64) {
        self.require(Need::Sve);
        self.zcr_el1 = value;
    }

    fn set_streaming_clamp(&mut self, clamp: Vq) {
        self.require(Need::Sme);
        self.streaming_clamp_written = clamp;
        self.synchronise();
    }

    fn svq(&mut self) -> Vq {
        self.require(Need::Sme);
        self.svq_at(Level::El2)
    }

    fn smcr_el1(&mut self) -> u64 {
        self.require(Need::Sme);
        self.smcr_el1
    }

    fn set_smcr_el1(&mut self, value: u64) {
        self.require(Need::Sme);
        self.smcr_el1 = value;
    }

    fn svcr(&mut self) -> Svcr {
        self.require(Need::Sme);
        self.svcr
    }

    fn start(&mut self, bits: Svcr) {
        self.require(Need::Sme);
        self.el1_set_svcr(self.svcr | bits);
    }

    fn stop(&mut self, bits: Svcr) {
        self.require(Need::Sme);
        self.el1_set_svcr(self.svcr - bits);
    }

    fn save_sve(&mut self, image: &mut SimImage) -> Vq {
        self.require(Need::Sve);
        assert!(!self.streaming(), "the SVL taken for the VL");
        let vq = self.vq_at(Level::El2);
        self.store(image, Layout::new(vq));
        vq
    }

    fn load_sve(&mut self, image: &SimImage, vq: Vq) {
        self.require(Need::Sve);
        assert!(!self.streaming(), "the SVL taken for the VL");
        assert_eq!(vq, self.vq_at(Level::El2), "a load at another VL than is in force");
        self.fetch(image, Layout::new(self.vq_at(Level::El2)));
    }

    fn save_streaming(&mut self, image: &mut SimImage) -> Vq {
        self.require(Need::Sme);
        assert!(self.streaming(), "the VL taken for the SVL");
        let svq = self.svq_at(Level::El2);
        self.store(image, Layout::new(svq));
        svq
    }

    fn load_streaming(&mut self, image: &SimImage, svq: Vq) {
        self.require(Need::Sme);
        assert!(self.streaming(), "the VL taken for the SVL");
        assert_eq!(svq, self.svq_at(Level::El2), "a load at another SVL than is in force");
        self.fetch(image, Layout::new(self.svq_at(Level::El2)));
    }

    fn save_fpsimd(&mut self, image: &mut SimImage) {
        self.require(Need::Fpsimd);
        self.moves += 1;
        assert!(FPSIMD_BYTES <= image.bytes.len(), "a save behind the end of its buffer");
        for n in 0..32 {
            image.bytes[16 * n..][..16].copy_from_slice(&self.registers.z[n][..16]);
        }
        image.status = self.registers.status;
    }

    fn load_fpsimd(&mut self, image: &SimImage) {
        self.require(Need::Fpsimd);
        assert!(!self.streaming(), "V registers into another's streaming mode");
        self.moves += 1;
        let vl = if open(self.access, Need::Sve) { self.vl_at(Level::El2) } else { 16 };
        for n in 0..32 {
            self.registers.z[n][..16].copy_from_slice(&image.bytes[16 * n..][..16]);
            self.registers.z[n][16..vl].fill(0);
        }
        self.registers.status = image.status;
    }

    fn zero(&mut self) {
        self.require(if self.has_sve() { Need::Sve } else { Need::Fpsimd });
        assert!(!self.streaming(), "the VL taken for the SVL");
        let vl = if self.has_sve() { self.vl_at(Level::El2) } else { 16 };
        for z in &mut self.registers.z {
            z[..vl].fill(0);
        }
        if self.has_sve() {
            for p in &mut self.registers.p {
                p[..vl / 8].fill(0);
            }
        }
        self.registers.status = [0; 3];
    }

    fn save_za(&mut self, image: &mut SimImage) {
        let svl = self.require_za(image);
        self.moves += 1;
        for row in 0..svl {
            image.za[row * svl..][..svl].copy_from_slice(&self.matrix[row][..svl]);
        }
        if self.having.zt0 {
            image.zt0.clone_from(self.matrix.last().expect("ZT0 is the last row"));
        }
    }

    fn load_za(&mut self, image: &SimImage) {
        let svl = self.require_za(image);
        self.moves += 1;
        for row in 0..svl {
            self.matrix[row][..svl].copy_from_slice(&image.za[row * svl..][..svl]);
        }
        if self.having.zt0 {
            self.matrix.last_mut().expect("ZT0 is the last row").clone_from(&image.zt0);
        }
    }

    fn zero_za(&mut self) {
        self.require(Need::Sme);
        assert!(self.svcr.contains(Svcr::ZA), "ZA is not there");
        let svl = self.svq_at(Level::El2).vl_bytes();
        self.matrix[..svl].iter_mut().for_each(|row| row[..svl].fill(0));
        self.matrix.last_mut().expect("ZT0 is the last row").fill(0);
    }

    fn fpexc(&mut self) -> u64 {
        self.require(Need::Fpsimd);
        self.fpexc
    }

    fn set_fpexc(&mut self, value: u64) {
        self.require(Need::Fpsimd);
        self.fpexc = value;
    }
}
