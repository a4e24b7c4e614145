//! A simulated machine that is as unkind as the architecture allows.
//!
//! It implements [`FpHw`] for the engine and, for the programs of a test, what EL1 can do to the same
//! registers. Where real machines, or QEMU, happen to be kind, it is not:
//!
//! * Bits that a growing VL exposes again are kept or zeroed, as a seeded coin falls (Arm ARM B1.4.2:
//!   "CONSTRAINED UNPREDICTABLE: zero or their previous value").
//! * A change of CPTR_EL2 or ZCR_EL2 is not seen by EL2 before [`FpHw::sync`].
//! * An access of EL2's own while its trap is closed ends the test.
//! * V writes zero the rest of a Z register only while SVE is open.
//! * Leaving reset poisons all registers and controls.
//! * Changing PSTATE.SM zeroes Z, P and FFR.
//! * A save behind the end of its buffer ends the test, and so does a load or save whose layout is not
//!   that of the VL in force.

#![forbid(unsafe_code)]

use super::{Access, FpHw};
use umbra_shared::sve::{FPSIMD_BYTES, Layout};
use umbra_shared::vl::{Vq, VqSet};

/// A saved register file in the simulation: bytes with a capacity, FPSR and FPCR.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SimImage {
    /// Memory; its length is the capacity.
    pub bytes: Vec<u8>,
    /// FPSR, FPCR.
    pub status: [u64; 2],
}

impl SimImage {
    /// An image of zeroes.
    pub fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity], status: [0; 2] }
    }
}

/// What is in the registers, at the full width of the CPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Registers {
    /// Z0-Z31, `max` bytes each.
    pub z: Vec<Vec<u8>>,
    /// P0-P15, then FFR, `max / 8` bytes each.
    pub p: Vec<Vec<u8>>,
    /// FPSR, FPCR.
    pub status: [u64; 2],
}

/// Who executes an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    El1,
    El2,
}

/// How an EL1 access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trapped {
    /// To EL2, with this class.
    El2(super::TrapClass),
}

/// One CPU.
#[derive(Clone, Debug)]
pub struct SimCpu {
    vqs: VqSet,
    sme: bool,
    registers: Registers,
    access_written: Access,
    access: Access,
    clamp_written: Vq,
    clamp: Vq,
    zcr_el1: u64,
    svcr: u64,
    seed: u64,
    /// Every register file that was moved, for tests of what is not moved.
    pub moves: u64,
}

impl SimCpu {
    /// A CPU with these vector lengths (empty: no SVE), out of reset. `seed` decides every choice that
    /// the architecture leaves open.
    pub fn new(vqs: VqSet, sme: bool, seed: u64) -> Self {
        let mut cpu = Self {
            vqs,
            sme,
            registers: Registers { z: Vec::new(), p: Vec::new(), status: [0; 2] },
            access_written: Access::Closed,
            access: Access::Closed,
            clamp_written: Vq::MIN,
            clamp: Vq::MIN,
            zcr_el1: 0,
            svcr: 0,
            seed: seed | 1,
            moves: 0,
        };
        cpu.power_cycle();
        cpu
    }

    /// xorshift64*: the coin for everything that is left open.
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn max_bytes(&self) -> usize {
        self.vqs.max().map_or(16, Vq::vl_bytes)
    }

    /// Power off and on: nothing is as it was, and what it is now is anything.
    pub fn power_cycle(&mut self) {
        let vl = self.max_bytes();
        let mut fill =
            |bytes: usize| -> Vec<u8> { (0..bytes).map(|_| self.random() as u8 | 1).collect() };
        let z = (0..32).map(|_| fill(vl)).collect();
        let p = (0..17).map(|_| fill(vl / 8)).collect();
        self.registers = Registers { z, p, status: [0xdead, 0xbeef] };
        self.access = Access::Closed;
        self.access_written = Access::Closed;
        let junk = Vq::from_len(self.random());
        self.clamp_written = junk;
        self.clamp = junk;
        self.zcr_el1 = self.random();
        self.svcr = 0;
    }

    /// The VL that ZCR_EL2 gives EL2.
    fn vq_el2(&self) -> Vq {
        self.vqs.effective(self.clamp).unwrap_or(Vq::MIN)
    }

    /// The VL that ZCR_EL1 and ZCR_EL2 give EL1.
    pub fn vq_el1(&self) -> Vq {
        self.vqs.effective(self.clamp.min(Vq::from_len(self.zcr_el1))).unwrap_or(Vq::MIN)
    }

    /// The effective VL changes from `old` to `new`: what shrinks away and comes back later is kept or
    /// zeroed.
    fn vl_changed(&mut self, old: Vq, new: Vq) {
        if new <= old {
            return;
        }
        for n in 0..32 {
            if self.random() & 1 == 0 {
                self.registers.z[n][old.vl_bytes()..new.vl_bytes()].fill(0);
            }
        }
        for n in 0..17 {
            if self.random() & 1 == 0 {
                self.registers.p[n][old.vl_bytes() / 8..new.vl_bytes() / 8].fill(0);
            }
        }
    }

    /// A context synchronisation event: EL2's own ISB, or an ERET.
    fn synchronise(&mut self) {
        self.access = self.access_written;
        let (old, new) = (self.vq_el2(), self.vqs.effective(self.clamp_written));
        self.clamp = self.clamp_written;
        if let Some(new) = new {
            self.vl_changed(old, new);
        }
    }

    fn has_sve_registers(&self) -> bool {
        !self.vqs.is_empty()
    }

    fn require(&self, what: Access) {
        let open = matches!(
            (what, self.access),
            (_, Access::Full) | (Access::Fpsimd, Access::Fpsimd) | (_, Access::Sve)
        ) && (what != Access::Full || self.access == Access::Full);
        assert!(open, "EL2 trapped on itself: needs {what:?}, has {:?}", self.access);
    }

    /// EL1's turn: an ERET.
    pub fn eret(&mut self) {
        self.synchronise();
    }

    /// Whether EL1 may use V registers, and SVE registers if `sve`.
    ///
    /// # Errors
    ///
    /// The trap it takes instead.
    pub fn el1_access(&self, class: super::TrapClass) -> Result<(), Trapped> {
        use super::TrapClass;
        let open = match (class, self.access) {
            (_, Access::Closed) => false,
            (TrapClass::Fpsimd, _) => true,
            (TrapClass::Sve, Access::Sve | Access::Full) => true,
            (TrapClass::Sme, Access::Full) => true,
            _ => false,
        };
        if open { Ok(()) } else { Err(Trapped::El2(class)) }
    }

    /// EL1 reads everything it can observe: at its VL, or V registers only.
    pub fn el1_read(&self, sve: bool) -> Registers {
        self.observe(Level::El1, sve)
    }

    fn observe(&self, level: Level, sve: bool) -> Registers {
        let vl = match (sve, level) {
            (false, _) => 16,
            (true, Level::El1) => self.vq_el1().vl_bytes(),
            (true, Level::El2) => self.vq_el2().vl_bytes(),
        };
        let p = if sve {
            self.registers.p.iter().map(|p| p[..vl / 8].to_vec()).collect()
        } else {
            Vec::new()
        };
        Registers {
            z: self.registers.z.iter().map(|z| z[..vl].to_vec()).collect(),
            p,
            status: self.registers.status,
        }
    }

    /// EL1 writes all it can reach. `byte(register, index)` gives the content; registers 0-31 are Z,
    /// 32-48 are P and FFR.
    pub fn el1_write(&mut self, sve: bool, status: [u64; 2], byte: impl Fn(usize, usize) -> u8) {
        let vl = if sve { self.vq_el1().vl_bytes() } else { 16 };
        for n in 0..32 {
            for i in 0..vl {
                self.registers.z[n][i] = byte(n, i);
            }
            if !sve && self.access != Access::Fpsimd {
                // With SVE open a V write zeroes the rest, up to the VL in force.
                let vl = self.vq_el1().vl_bytes().min(self.registers.z[n].len());
                self.registers.z[n][16..vl].fill(0);
            }
        }
        if sve {
            for n in 0..17 {
                for i in 0..vl / 8 {
                    self.registers.p[n][i] = byte(32 + n, i);
                }
            }
        }
        self.registers.status = status;
    }

    /// EL1 writes ZCR_EL1.
    pub fn el1_set_zcr(&mut self, zcr: u64) {
        let old = self.vq_el1();
        self.zcr_el1 = zcr;
        let new = self.vq_el1();
        self.vl_changed(old, new);
    }

    /// EL1's ZCR_EL1.
    pub fn el1_zcr(&self) -> u64 {
        self.zcr_el1
    }

    /// EL1 executes SMSTART or SMSTOP: bit 0 is PSTATE.SM, bit 1 PSTATE.ZA.
    pub fn el1_set_svcr(&mut self, svcr: u64) {
        if (svcr ^ self.svcr) & 1 == 1 {
            for z in self.registers.z.iter_mut().chain(&mut self.registers.p) {
                z.fill(0);
            }
        }
        self.svcr = svcr;
    }
}

impl FpHw for SimCpu {
    type Image = SimImage;

    fn has_sve(&self) -> bool {
        self.has_sve_registers()
    }

    fn has_sme(&self) -> bool {
        self.sme
    }

    fn set_access(&mut self, access: Access) {
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
        self.require(Access::Sve);
        self.clamp_written = clamp;
        self.synchronise();
    }

    fn vq(&mut self) -> Vq {
        self.require(Access::Sve);
        self.vq_el2()
    }

    fn zcr_el1(&mut self) -> u64 {
        self.require(Access::Sve);
        self.zcr_el1
    }

    fn set_zcr_el1(&mut self, value: u64) {
        self.require(Access::Sve);
        self.zcr_el1 = value;
    }

    fn svcr(&mut self) -> u64 {
        self.require(Access::Full);
        self.svcr
    }

    fn save_sve(&mut self, image: &mut SimImage) {
        self.require(Access::Sve);
        self.moves += 1;
        let layout = Layout::new(self.vq_el2());
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

    fn load_sve(&mut self, image: &SimImage) {
        self.require(Access::Sve);
        self.moves += 1;
        let layout = Layout::new(self.vq_el2());
        assert!(layout.image_bytes() <= image.bytes.len(), "a load behind the end of its buffer");
        for n in 0..32 {
            self.registers.z[n][..layout.z_bytes()]
                .copy_from_slice(&image.bytes[layout.z(n)..][..layout.z_bytes()]);
        }
        for n in 0..17 {
            let at = if n < 16 { layout.p(n) } else { layout.ffr() };
            self.registers.p[n][..layout.p_bytes()]
                .copy_from_slice(&image.bytes[at..][..layout.p_bytes()]);
        }
        self.registers.status = image.status;
    }

    fn save_fpsimd(&mut self, image: &mut SimImage) {
        self.require(Access::Fpsimd);
        self.moves += 1;
        assert!(FPSIMD_BYTES <= image.bytes.len(), "a save behind the end of its buffer");
        for n in 0..32 {
            image.bytes[16 * n..][..16].copy_from_slice(&self.registers.z[n][..16]);
        }
        image.status = self.registers.status;
    }

    fn load_fpsimd(&mut self, image: &SimImage) {
        self.require(Access::Fpsimd);
        self.moves += 1;
        let vl = if self.has_sve() && self.access != Access::Fpsimd {
            self.vq_el2().vl_bytes()
        } else {
            16
        };
        for n in 0..32 {
            self.registers.z[n][..16].copy_from_slice(&image.bytes[16 * n..][..16]);
            self.registers.z[n][16..vl].fill(0);
        }
        self.registers.status = image.status;
    }

    fn zero(&mut self) {
        self.require(if self.has_sve() { Access::Sve } else { Access::Fpsimd });
        let vl = if self.has_sve() { self.vq_el2().vl_bytes() } else { 16 };
        for z in &mut self.registers.z {
            z[..vl].fill(0);
        }
        if self.has_sve() {
            for p in &mut self.registers.p {
                p[..vl / 8].fill(0);
            }
        }
        self.registers.status = [0; 2];
    }
}
