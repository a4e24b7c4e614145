//! What a context must find in its registers: the specification that the engine is tested against.

use super::super::Svcr;
use super::super::sim::{FPSR_AFTER_SM, Matrix, Registers, SimCpu};
use umbra_shared::vl::Vq;

/// A byte of a context's: its owner in the top two bits.
pub(in super::super) fn byte(owner: u8, generation: u32, register: usize, index: usize) -> u8 {
    let mixed = (generation as usize)
        .wrapping_mul(0x9e37_79b9)
        .wrapping_add(register * 257 + index)
        .wrapping_mul(0x85eb_ca6b)
        >> 11;
    owner << 6 | (mixed as u8 & 0x3f)
}

/// The largest SVL of the simulated machines, in bytes.
const SVL: usize = 256;

/// What a context must find: `None` where it can't tell (bytes that a change of VL or SVL exposed).
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) owner: u8,
    z: Vec<[Option<u8>; 256]>,
    p: Vec<[Option<u8>; 32]>,
    /// FPSR, FPCR, FPMR.
    status: [u64; 3],
    /// Rows of ZA that were ever used; then ZT0.
    za: Vec<Vec<Option<u8>>>,
    zt0: Vec<Option<u8>>,
    pub(super) svcr: Svcr,
    pub(super) zcr_el1: u64,
    pub(super) smcr_el1: u64,
    generation: u32,
}

impl Expected {
    pub(super) fn reset(owner: u8) -> Self {
        Self {
            owner,
            z: vec![[Some(0); 256]; 32],
            p: vec![[Some(0); 32]; 17],
            status: [0; 3],
            za: Vec::new(),
            zt0: Vec::new(),
            svcr: Svcr::empty(),
            zcr_el1: 0,
            smcr_el1: 0,
            generation: 0,
        }
    }

    pub(super) fn sm(&self) -> bool {
        self.svcr.contains(Svcr::SM)
    }

    fn has_za(&self) -> bool {
        self.svcr.contains(Svcr::ZA)
    }

    /// Out of reset again; what it wrote before must not be taken for what it writes from now on.
    pub(super) fn start_again(&mut self) {
        *self = Self { generation: self.generation, ..Self::reset(self.owner) };
    }

    /// Looks at the file, then fills it: `whole`, or V registers only.
    pub(super) fn look_and_write(&mut self, who: &str, hw: &mut SimCpu, whole: bool) {
        self.compare(who, &hw.el1_read(whole));
        self.write(hw, whole);
    }

    fn write(&mut self, hw: &mut SimCpu, whole: bool) {
        self.generation += 1;
        let (owner, generation) = (self.owner, self.generation);
        let number = u64::from(generation);
        hw.el1_write(whole, [number << 8 | u64::from(owner), number, number], |n, i| {
            byte(owner, generation, n, i)
        });
        let now = hw.el1_read(true);
        self.status = now.status;
        let vl = if whole { now.z[0].len() } else { 16 };
        for (n, z) in self.z.iter_mut().enumerate() {
            for (i, b) in z.iter_mut().enumerate() {
                *b = (i < vl).then(|| byte(owner, generation, n, i));
            }
        }
        // V writes leave P and FFR alone, and so do those of streaming mode FFR where it is not there.
        let predicates = if whole { now.p.len() } else { 0 };
        for (n, p) in self.p[..predicates].iter_mut().enumerate() {
            for (i, b) in p.iter_mut().enumerate() {
                *b = (i < vl / 8).then(|| byte(owner, generation, 32 + n, i));
            }
        }
    }

    /// Looks at ZA and ZT0, then fills them.
    pub(super) fn look_at_za(&mut self, who: &str, hw: &mut SimCpu) {
        let rows = hw.el1_read_za();
        self.compare_za(who, &rows);
        self.generation += 1;
        let (owner, generation) = (self.owner, self.generation);
        let content = |row, i| byte(owner, generation, 64 + row, i);
        hw.el1_write_za(content);
        let svl = rows[0].len();
        self.za = (0..SVL)
            .map(|row| (0..SVL).map(|i| (row < svl && i < svl).then(|| content(row, i))).collect())
            .collect();
        self.zt0 = (0..64).map(|i| Some(content(256, i))).collect();
    }

    fn compare_za(&self, who: &str, rows: &Matrix) {
        let svl = rows[0].len();
        for (n, row) in rows.iter().enumerate() {
            for (i, &found) in row.iter().enumerate() {
                let zt0 = n == svl;
                let cell = if zt0 { self.zt0.get(i) } else { self.za.get(n).map(|row| &row[i]) };
                // Nothing written since PSTATE.ZA became 1.
                let expected = cell.copied().unwrap_or(Some(0));
                self.judge(
                    who,
                    || format!("ZA row {n} (after {svl} rows ZT0) byte {i}"),
                    expected,
                    found,
                );
            }
        }
    }

    /// SMSTART, SMSTOP.
    pub(super) fn set_svcr(&mut self, hw: &mut SimCpu, svcr: Svcr) {
        hw.el1_set_svcr(svcr);
        self.becomes(svcr, hw.el1_read(false).status[2]);
    }

    /// What a change of SVCR does.
    fn becomes(&mut self, svcr: Svcr, fpmr: u64) {
        if (svcr ^ self.svcr).contains(Svcr::SM) {
            self.zero_file();
            self.status[0] = FPSR_AFTER_SM;
            self.status[2] = 0;
        }
        assert_eq!(fpmr, self.status[2]);
        if !self.has_za() || !svcr.contains(Svcr::ZA) {
            self.za.clear();
            self.zt0.clear();
        }
        self.svcr = svcr;
    }

    fn zero_file(&mut self) {
        self.z.iter_mut().for_each(|z| z.fill(Some(0)));
        self.p.iter_mut().for_each(|p| p.fill(Some(0)));
    }

    /// It writes ZCR_EL1.
    pub(super) fn set_zcr(&mut self, hw: &mut SimCpu, zcr: u64) {
        hw.el1_set_zcr(zcr);
        self.zcr_el1 = zcr;
        if !self.sm() {
            self.forget_above(hw.vq_el1());
        }
    }

    /// It writes SMCR_EL1.
    pub(super) fn set_smcr(&mut self, hw: &mut SimCpu, smcr: u64) {
        hw.el1_set_smcr(smcr);
        self.smcr_el1 = smcr;
        let svl = hw.svq_el1().vl_bytes();
        if self.sm() {
            self.forget_above(hw.svq_el1());
        }
        for (n, row) in self.za.iter_mut().enumerate() {
            let from = if n < svl { svl } else { 0 };
            row[from..].fill(None);
        }
    }

    /// The length that EL1 sees shrank: what lies above is no longer certain.
    fn forget_above(&mut self, vq: Vq) {
        let vl = vq.vl_bytes();
        for z in &mut self.z {
            z[vl..].fill(None);
        }
        for p in &mut self.p {
            p[vl / 8..].fill(None);
        }
    }

    fn judge(&self, who: &str, what: impl Fn() -> String, expected: Option<u8>, found: u8) {
        match expected {
            Some(expected) => assert_eq!(expected, found, "{who}: {}", what()),
            None => assert!(
                found == 0 || found >> 6 == self.owner,
                "{who}: {} shows {found:#x}, owner {}",
                what(),
                found >> 6
            ),
        }
    }

    fn compare(&self, who: &str, seen: &Registers) {
        for (n, z) in seen.z.iter().enumerate() {
            for (i, &b) in z.iter().enumerate() {
                self.judge(who, || format!("Z{n} byte {i}"), self.z[n][i], b);
            }
        }
        for (n, p) in seen.p.iter().enumerate() {
            for (i, &b) in p.iter().enumerate() {
                self.judge(who, || format!("P{n} (16 is FFR) byte {i}"), self.p[n][i], b);
            }
        }
        assert_eq!(self.status, seen.status, "{who}: FPSR, FPCR, FPMR");
    }

    /// Only V0-V31, FPSR, FPCR and FPMR survive.
    pub(super) fn discard_sve(&mut self) {
        for z in &mut self.z {
            z[16..].fill(Some(0));
        }
        for p in &mut self.p {
            p.fill(Some(0));
        }
    }

    /// Z, P, FFR, the status registers and streaming mode are gone.
    pub(super) fn discard_file(&mut self) {
        self.zero_file();
        self.status = [0; 3];
        self.svcr.remove(Svcr::SM);
    }

    /// ZA is gone.
    pub(super) fn discard_za(&mut self) {
        self.za.clear();
        self.zt0.clear();
        self.svcr.remove(Svcr::ZA);
    }
}
