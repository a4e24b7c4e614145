//! A simulated machine that is as unkind as the architecture allows.
//!
//! It implements [`FpHw`] for the engine and, for the programs of a test, what EL1 can do to the same
//! registers. Where real machines, or QEMU, happen to be kind, it is not:
//!
//! * Bits that a growing VL or SVL exposes again, in Z, P, FFR or ZA, are kept or zeroed, as a seeded coin
//!   falls (Arm ARM B1.4.2: "CONSTRAINED UNPREDICTABLE: zero or their previous value").
//! * A change of CPTR_EL2, ZCR_EL2 or SMCR_EL2 is not seen by EL2 before [`FpHw::sync`].
//! * An access of EL2's own while its trap is closed ends the test.
//! * V writes zero the rest of a Z register only while SVE is open.
//! * Leaving reset poisons all registers and controls, SVCR included.
//! * Changing PSTATE.SM zeroes Z, P, FFR and FPMR, and sets FPSR to 0x0800_009f; setting PSTATE.ZA zeroes
//!   ZA and ZT0.
//! * A save behind the end of its buffer ends the test, and so does a load or save whose layout is not
//!   that of the VL in force, or FFR in streaming mode without FEAT_SME_FA64.
//! * In streaming mode RDVL gives the SVL.

#![forbid(unsafe_code)]

mod el2;

use super::{Access, FpHw, Svcr};
use umbra_shared::sme::{Storage, ZT0_BYTES, za_bytes};
use umbra_shared::vl::{Vq, VqSet};

/// FPSR after a change of PSTATE.SM.
pub const FPSR_AFTER_SM: u64 = 0x0800_009f;

/// What ZA and ZT0 hold after reset: nobody's.
const JUNK: u8 = 0x2a;

/// Saved registers in the simulation: bytes with a capacity, FPSR, FPCR and FPMR.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SimImage {
    /// Z, P, FFR; its length is the capacity.
    pub bytes: Vec<u8>,
    /// ZA.
    pub za: Vec<u8>,
    /// ZT0.
    pub zt0: Vec<u8>,
    /// FPSR, FPCR, FPMR.
    pub status: [u64; 3],
}

impl SimImage {
    /// An image of zeroes.
    pub fn new(storage: Storage) -> Self {
        let matrix = storage.svq.map_or(0, za_bytes);
        Self {
            bytes: vec![0; storage.file_bytes()],
            za: vec![0; matrix],
            zt0: vec![0; ZT0_BYTES],
            status: [0; 3],
        }
    }
}

/// What is in the registers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Registers {
    /// Z0-Z31.
    pub z: Vec<Vec<u8>>,
    /// P0-P15, then FFR.
    pub p: Vec<Vec<u8>>,
    /// FPSR, FPCR, FPMR.
    pub status: [u64; 3],
}

/// ZA row by row, then ZT0 as one more row.
pub type Matrix = Vec<Vec<u8>>;

/// What a CPU has.
#[derive(Clone, Copy, Debug)]
pub struct Having {
    /// Vector lengths; empty: no SVE.
    pub vqs: VqSet,
    /// Streaming vector lengths; empty: no SME.
    pub svqs: VqSet,
    /// FEAT_SME_FA64.
    pub fa64: bool,
    /// FEAT_SME2.
    pub zt0: bool,
    /// FEAT_FPMR.
    pub fpmr: bool,
}

impl Having {
    /// SVE at these lengths, and nothing newer.
    #[cfg(test)]
    pub const fn sve(vqs: VqSet) -> Self {
        Self { vqs, svqs: VqSet::EMPTY, fa64: false, zt0: false, fpmr: false }
    }
}

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

/// What an access needs to be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Fpsimd,
    Sve,
    Sme,
}

fn open(access: Access, need: Need) -> bool {
    match need {
        Need::Fpsimd => access != Access::Closed,
        Need::Sve => matches!(access, Access::Sve | Access::Full),
        Need::Sme => matches!(access, Access::Sme | Access::Full),
    }
}

/// One CPU.
#[derive(Clone, Debug)]
pub struct SimCpu {
    having: Having,
    registers: Registers,
    matrix: Matrix,
    access_written: Access,
    access: Access,
    clamp_written: Vq,
    clamp: Vq,
    streaming_clamp_written: Vq,
    streaming_clamp: Vq,
    zcr_el1: u64,
    smcr_el1: u64,
    svcr: Svcr,
    fpexc: u64,
    seed: u64,
    /// Everything that was moved, for tests of what is not moved.
    pub moves: u64,
}

impl SimCpu {
    /// A CPU that has this, out of reset. `seed` decides every choice that the architecture leaves open.
    pub fn new(having: Having, seed: u64) -> Self {
        let mut cpu = Self {
            having,
            registers: Registers { z: Vec::new(), p: Vec::new(), status: [0; 3] },
            matrix: Vec::new(),
            access_written: Access::Closed,
            access: Access::Closed,
            clamp_written: Vq::MIN,
            clamp: Vq::MIN,
            streaming_clamp_written: Vq::MIN,
            streaming_clamp: Vq::MIN,
            zcr_el1: 0,
            smcr_el1: 0,
            svcr: Svcr::empty(),
            fpexc: 0,
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

    /// Power off and on: nothing is as it was, and what it is now is anything.
    pub fn power_cycle(&mut self) {
        let max = |set: VqSet| set.max().map_or(0, Vq::vl_bytes);
        let svl = max(self.having.svqs);
        let vl = max(self.having.vqs).max(svl).max(16);
        let mut fill =
            |bytes: usize| -> Vec<u8> { (0..bytes).map(|_| self.random() as u8 | 1).collect() };
        let z = (0..32).map(|_| fill(vl)).collect();
        let p = (0..17).map(|_| fill(vl / 8)).collect();
        let fpmr = if self.having.fpmr { 0xf00d } else { 0 };
        self.registers = Registers { z, p, status: [0xdead, 0xbeef, fpmr] };
        let mut matrix: Matrix = (0..svl).map(|_| vec![JUNK; svl]).collect();
        matrix.push(vec![JUNK; ZT0_BYTES]);
        self.matrix = matrix;
        self.access = Access::Closed;
        self.access_written = Access::Closed;
        let junk = Vq::from_len(self.random());
        self.clamp_written = junk;
        self.clamp = junk;
        let junk = Vq::from_len(self.random());
        self.streaming_clamp_written = junk;
        self.streaming_clamp = junk;
        self.zcr_el1 = self.random();
        self.smcr_el1 = self.random();
        self.svcr =
            if self.has_sme() { Svcr::from_bits_truncate(self.random()) } else { Svcr::empty() };
        self.fpexc = self.random();
    }

    fn vq_at(&self, level: Level) -> Vq {
        let limit = match level {
            Level::El2 => self.clamp,
            Level::El1 => self.clamp.min(Vq::from_len(self.zcr_el1)),
        };
        self.having.vqs.effective(limit).unwrap_or(Vq::MIN)
    }

    /// Below the smallest SVL that there is, asking for less gives that (Arm ARM, SMCR_ELx.LEN).
    fn svq_at(&self, level: Level) -> Vq {
        let limit = match level {
            Level::El2 => self.streaming_clamp,
            Level::El1 => self.streaming_clamp.min(Vq::from_len(self.smcr_el1)),
        };
        let smallest = || self.having.svqs.iter().next();
        self.having.svqs.effective(limit).or_else(smallest).unwrap_or(Vq::MIN)
    }

    /// The VL that ZCR_EL1 and ZCR_EL2 give EL1.
    pub fn vq_el1(&self) -> Vq {
        self.vq_at(Level::El1)
    }

    /// The SVL that SMCR_EL1 and SMCR_EL2 give EL1.
    pub fn svq_el1(&self) -> Vq {
        self.svq_at(Level::El1)
    }

    fn streaming(&self) -> bool {
        self.svcr.contains(Svcr::SM)
    }

    /// Bytes of a Z register in force.
    fn vl_at(&self, level: Level) -> usize {
        let vq = if self.streaming() { self.svq_at(level) } else { self.vq_at(level) };
        vq.vl_bytes()
    }

    /// The length of Z changes from `old` to `new` bytes: what shrinks away and comes back later is kept or
    /// zeroed.
    fn length_changed(&mut self, old: usize, new: usize) {
        if new <= old {
            return;
        }
        for n in 0..32 {
            if self.random() & 1 == 0 {
                self.registers.z[n][old..new].fill(0);
            }
        }
        for n in 0..17 {
            if self.random() & 1 == 0 {
                self.registers.p[n][old / 8..new / 8].fill(0);
            }
        }
    }

    /// The same of ZA.
    fn square_changed(&mut self, old: usize, new: usize) {
        for row in 0..new {
            let from = if row < old { old } else { 0 };
            if from < new && self.random() & 1 == 0 {
                self.matrix[row][from..new].fill(0);
            }
        }
    }

    /// Changes whatever changes lengths.
    fn resize(&mut self, level: Level, change: impl FnOnce(&mut Self)) {
        let (length, square) = (self.vl_at(level), self.svq_at(level).vl_bytes());
        change(self);
        self.length_changed(length, self.vl_at(level));
        if self.has_sme() {
            self.square_changed(square, self.svq_at(level).vl_bytes());
        }
    }

    /// A context synchronisation event: EL2's own ISB, or an ERET.
    fn synchronise(&mut self) {
        self.access = self.access_written;
        self.resize(Level::El2, |cpu| {
            cpu.clamp = cpu.clamp_written;
            cpu.streaming_clamp = cpu.streaming_clamp_written;
        });
    }

    fn require(&self, need: Need) {
        let what = self.access;
        assert!(open(what, need), "EL2 trapped on itself: needs {need:?}, has {what:?}");
    }

    /// What Z, P and FFR need: in streaming mode they are SME's.
    fn require_file(&self) {
        self.require(if self.streaming() { Need::Sme } else { Need::Sve });
    }

    /// EL1's turn: an ERET.
    pub fn eret(&mut self) {
        self.synchronise();
    }

    /// Whether EL1 may use what would trap with this class.
    ///
    /// # Errors
    ///
    /// The trap it takes instead.
    pub fn el1_access(&self, class: super::TrapClass) -> Result<(), Trapped> {
        use super::TrapClass;
        let need = match class {
            TrapClass::Fpsimd => Need::Fpsimd,
            TrapClass::Sve => Need::Sve,
            TrapClass::Sme => Need::Sme,
        };
        if open(self.access, need) { Ok(()) } else { Err(Trapped::El2(class)) }
    }

    /// EL1 reads everything it can observe of the file: `whole` at its length, or V registers only.
    pub fn el1_read(&self, whole: bool) -> Registers {
        self.observe(Level::El1, whole)
    }

    /// Whether FFR can be reached.
    fn has_ffr(&self) -> bool {
        !self.streaming() || self.having.fa64
    }

    fn observe(&self, level: Level, whole: bool) -> Registers {
        let vl = if whole { self.vl_at(level) } else { 16 };
        let predicates = match (whole, self.has_ffr()) {
            (false, _) => 0,
            (true, false) => 16,
            (true, true) => 17,
        };
        Registers {
            z: self.registers.z.iter().map(|z| z[..vl].to_vec()).collect(),
            p: self.registers.p[..predicates].iter().map(|p| p[..vl / 8].to_vec()).collect(),
            status: self.registers.status,
        }
    }

    /// EL1 writes all it can reach. `byte(register, index)` gives the content; registers 0-31 are Z,
    /// 32-48 are P and FFR.
    pub fn el1_write(&mut self, whole: bool, status: [u64; 3], byte: impl Fn(usize, usize) -> u8) {
        let length = self.vl_at(Level::El1);
        let vl = if whole { length } else { 16 };
        for n in 0..32 {
            for i in 0..vl {
                self.registers.z[n][i] = byte(n, i);
            }
            if !whole && open(self.access, Need::Sve) {
                // With SVE open a V write zeroes the rest, up to the VL in force.
                self.registers.z[n][16..length].fill(0);
            }
        }
        if whole {
            for n in 0..if self.has_ffr() { 17 } else { 16 } {
                for i in 0..vl / 8 {
                    self.registers.p[n][i] = byte(32 + n, i);
                }
            }
        }
        self.registers.status = status;
        if !self.having.fpmr {
            self.registers.status[2] = 0;
        }
    }

    /// EL1 reads ZA at its SVL, and ZT0 where it is there, as the last row.
    pub fn el1_read_za(&self) -> Matrix {
        self.observe_za(Level::El1)
    }

    fn observe_za(&self, level: Level) -> Matrix {
        let svl = self.svq_at(level).vl_bytes();
        let mut rows: Matrix = self.matrix[..svl].iter().map(|row| row[..svl].to_vec()).collect();
        if self.having.zt0 {
            rows.push(self.matrix.last().expect("ZT0 is the last row").clone());
        }
        rows
    }

    /// EL1 writes ZA and ZT0. `byte(row, index)`; row 256 is ZT0.
    pub fn el1_write_za(&mut self, byte: impl Fn(usize, usize) -> u8) {
        let svl = self.svq_el1().vl_bytes();
        for row in 0..svl {
            for i in 0..svl {
                self.matrix[row][i] = byte(row, i);
            }
        }
        if self.having.zt0 {
            let zt0 = self.matrix.last_mut().expect("ZT0 is the last row");
            zt0.iter_mut().enumerate().for_each(|(i, b)| *b = byte(256, i));
        }
    }

    /// EL1 writes ZCR_EL1.
    pub fn el1_set_zcr(&mut self, zcr: u64) {
        self.resize(Level::El1, |cpu| cpu.zcr_el1 = zcr);
    }

    /// EL1's ZCR_EL1.
    pub fn el1_zcr(&self) -> u64 {
        self.zcr_el1
    }

    /// EL1 writes SMCR_EL1.
    pub fn el1_set_smcr(&mut self, smcr: u64) {
        self.resize(Level::El1, |cpu| cpu.smcr_el1 = smcr);
    }

    /// EL1's SMCR_EL1.
    pub fn el1_smcr(&self) -> u64 {
        self.smcr_el1
    }

    /// EL1 executes SMSTART or SMSTOP.
    pub fn el1_set_svcr(&mut self, svcr: Svcr) {
        if (svcr ^ self.svcr).contains(Svcr::SM) {
            for register in self.registers.z.iter_mut().chain(&mut self.registers.p) {
                register.fill(0);
            }
            self.registers.status[0] = FPSR_AFTER_SM;
            self.registers.status[2] = 0;
        }
        if svcr.contains(Svcr::ZA) && !self.svcr.contains(Svcr::ZA) {
            self.matrix.iter_mut().for_each(|row| row.fill(0));
        }
        self.svcr = svcr;
    }

    /// SVCR, whoever asks.
    pub fn real_svcr(&self) -> Svcr {
        self.svcr
    }

    /// FPEXC32_EL2, whoever asks.
    pub fn real_fpexc(&self) -> u64 {
        self.fpexc
    }

    /// An AArch32 EL1 writes FPEXC.
    pub fn el1_set_fpexc(&mut self, value: u64) {
        self.fpexc = value;
    }
}
