//! What one owner's registers must hold after everything it has done with them.
//!
//! A [`Model`] follows an owner through any sequence of fills, uses of V alone, changes of its vector
//! length and losses it has agreed to, and judges what is found in the registers then. Three kinds of
//! bytes exist:
//!
//! - what the owner wrote last and has had in reach ever since: it must be there;
//! - what a use of V alone zeroed: it must be zero;
//! - what was out of reach in between, because the vector length was smaller (Arm ARM B1.4.2: zero, or
//!   what was there before), or what the owner gave up: it is zero or the owner's own from before.
//!
//! Nothing else is acceptable anywhere, least of all what belongs to somebody else.

use crate::{
    pattern::{Found, Mismatch, ffr_byte, fpcr, fpsr, whose_of},
    tag::{Register, Tag, lane},
};
use arrayvec::ArrayVec;
use umbra_shared::{
    sve::{FPSIMD_BYTES, Layout},
    vl::Vq,
};

/// One use of the registers: whose pattern, written at which VL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    generation: u32,
    vq: Vq,
}

/// Z registers, or P registers and FFR: sizes are in bytes of a Z register, P counts an eighth.
#[derive(Clone, Debug)]
struct Layer {
    /// What was written last; `None`: nothing since reset.
    last: Option<Written>,
    /// Bytes that must hold it.
    must: usize,
    /// Bytes `[from, to)` that must be zero.
    zero: (usize, usize),
    /// What may still be behind it, the larger VL first: each reaches further than the one after it.
    older: ArrayVec<Written, 16>,
}

impl Layer {
    const fn reset() -> Self {
        Self { last: None, must: 0, zero: (0, usize::MAX), older: ArrayVec::new_const() }
    }

    /// Something new is in all bytes that `reach` reaches.
    fn write(&mut self, written: Written, reach: Vq) {
        if let Some(last) = self.last.take() {
            self.older.push(last);
        }
        self.older.retain(|older| older.vq > reach);
        self.last = Some(written);
        self.must = written.vq.vl_bytes();
        self.zero = (written.vq.vl_bytes(), reach.vl_bytes());
    }

    fn keep(&mut self, bytes: usize) {
        self.must = self.must.min(bytes);
    }
}

/// An owner.
#[derive(Clone, Debug)]
pub struct Model {
    owner: u16,
    generation: u32,
    /// The VL in force; `None`: it has V registers only.
    vq: Option<Vq>,
    z: Layer,
    p: Layer,
    /// Generation of FPSR and FPCR; `None`: zero.
    status: Option<u32>,
    /// Whether they may be zero all the same.
    status_lost: bool,
}

impl Model {
    /// Registers in the reset state: all zero. `vq`: the VL in force; `None`: V registers only.
    pub const fn new(owner: u16, vq: Option<Vq>) -> Self {
        Self {
            owner,
            generation: 0,
            vq,
            z: Layer::reset(),
            p: Layer::reset(),
            status: None,
            status_lost: false,
        }
    }

    /// Names the owner, who has not used the registers yet.
    pub fn set_owner(&mut self, owner: u16) {
        self.owner = owner;
    }

    /// The CPU came out of reset.
    pub fn reset(&mut self, vq: Option<Vq>) {
        *self = Self { generation: self.generation, ..Self::new(self.owner, vq) };
    }

    /// The VL in force.
    pub const fn vq(&self) -> Option<Vq> {
        self.vq
    }

    /// The tag of a new content.
    fn next(&mut self) -> Tag {
        self.generation += 1;
        self.status = Some(self.generation);
        self.status_lost = false;
        Tag { owner: self.owner, generation: self.generation }
    }

    /// Everything is about to be written: with this tag, at the VL in force.
    pub fn fill(&mut self) -> Tag {
        let tag = self.next();
        let vq = self.vq.unwrap_or(Vq::MIN);
        let written = Written { generation: tag.generation, vq };
        self.z.write(written, vq);
        if self.vq.is_some() {
            self.p.write(written, vq);
        }
        tag
    }

    /// V0-V31, FPSR and FPCR are about to be written, which zeroes the rest of each Z register that is
    /// in reach.
    pub fn fill_fpsimd(&mut self) -> Tag {
        let tag = self.next();
        let written = Written { generation: tag.generation, vq: Vq::MIN };
        self.z.write(written, self.vq.unwrap_or(Vq::MIN));
        tag
    }

    /// Another VL is in force.
    pub fn set_vq(&mut self, vq: Vq) {
        self.vq = Some(vq);
        self.z.keep(vq.vl_bytes());
        self.p.keep(vq.vl_bytes());
    }

    /// The owner has said that only V0-V31, FPSR and FPCR are live.
    pub fn discard(&mut self) {
        self.z.keep(16);
        self.p.keep(0);
    }

    /// The owner has said that nothing is.
    pub fn lose(&mut self) {
        self.z.keep(0);
        self.p.keep(0);
        self.status_lost = true;
    }

    fn tag(&self, written: Written) -> Tag {
        Tag { owner: self.owner, generation: written.generation }
    }

    fn byte(&self, register: Register, written: Written, n: usize) -> u8 {
        match register {
            Register::Ffr => ffr_byte(self.tag(written), written.vq.vl_bytes(), n),
            _ => lane(self.tag(written), register, (n / 8) as u8).to_le_bytes()[n % 8],
        }
    }

    /// The expected byte, and whether `found` will do. `scale`: bytes of a Z register for each byte of
    /// this one.
    fn judge(
        &self,
        layer: &Layer,
        register: Register,
        n: usize,
        scale: usize,
        found: u8,
    ) -> (u8, bool) {
        let at = n * scale;
        let last = layer.last.map(|last| (last, self.byte(register, last, n)));
        if let Some((_, byte)) = last
            && at < layer.must
        {
            return (byte, byte == found);
        }
        if (layer.zero.0..layer.zero.1).contains(&at) {
            return (0, found == 0);
        }
        let own = |written: &Written| {
            at < written.vq.vl_bytes() && self.byte(register, *written, n) == found
        };
        let acceptable = found == 0 || layer.last.iter().chain(&layer.older).any(own);
        (last.map_or(0, |(_, byte)| byte), acceptable)
    }

    fn check_register(
        &self,
        layer: &Layer,
        register: Register,
        scale: usize,
        found: &[u8],
    ) -> Result<(), Mismatch> {
        for (n, chunk) in found.chunks(8).enumerate() {
            let start = 8 * n;
            if let (Some(last), true) = (layer.last, (start + chunk.len()) * scale <= layer.must)
                && register != Register::Ffr
            {
                let content = lane(self.tag(last), register, n as u8).to_le_bytes();
                if chunk == &content[..chunk.len()] {
                    continue;
                }
            }
            let mut expected = [0; 8];
            let mut wrong = None;
            for (i, &byte) in chunk.iter().enumerate() {
                let (should, fine) = self.judge(layer, register, start + i, scale, byte);
                expected[i] = should;
                if !fine {
                    wrong.get_or_insert(start + i);
                }
            }
            if let Some(byte) = wrong {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                let found = u64::from_le_bytes(word);
                return Err(Mismatch {
                    register,
                    byte,
                    expected: u64::from_le_bytes(expected),
                    found,
                    whose: if chunk.len() == 8 { whose_of(found) } else { Found::Unknown },
                });
            }
        }
        Ok(())
    }

    /// Judges FPSR and FPCR.
    pub fn check_status(&self, (found_fpsr, found_fpcr): (u32, u32)) -> Result<(), Mismatch> {
        let tag = self.status.map(|generation| Tag { owner: self.owner, generation });
        let expected = tag.map_or((0, 0), |tag| (fpsr(tag), fpcr(tag)));
        for (register, expected, found) in
            [(Register::Fpsr, expected.0, found_fpsr), (Register::Fpcr, expected.1, found_fpcr)]
        {
            if found != expected && !(self.status_lost && found == 0) {
                let whose = if found == 0 { Found::Zero } else { Found::Unknown };
                let (expected, found) = (expected.into(), found.into());
                return Err(Mismatch { register, byte: 0, expected, found, whose });
            }
        }
        Ok(())
    }

    /// Judges an image taken at the VL in force, `layout.image_bytes()` long.
    pub fn check(&self, layout: Layout, image: &[u8]) -> Result<(), Mismatch> {
        for n in 0..32 {
            let found = &image[layout.z(n)..layout.z(n) + layout.z_bytes()];
            self.check_register(&self.z, Register::Z(n as u8), 1, found)?;
        }
        for n in 0..16 {
            let found = &image[layout.p(n)..layout.p(n) + layout.p_bytes()];
            self.check_register(&self.p, Register::P(n as u8), 8, found)?;
        }
        self.check_register(&self.p, Register::Ffr, 8, &image[layout.ffr()..layout.image_bytes()])
    }

    /// Judges V0-V31.
    pub fn check_fpsimd(&self, image: &[u8; FPSIMD_BYTES]) -> Result<(), Mismatch> {
        for (n, found) in image.chunks(16).enumerate() {
            self.check_register(&self.z, Register::Z(n as u8), 1, found)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::{expected, expected_fpsimd};
    use proptest::prelude::*;

    /// A register file that keeps every promise of the architecture, in either of the ways it allows.
    #[derive(Clone)]
    struct Machine {
        vq: Vq,
        /// What is out of reach survives.
        retains: bool,
        /// At the largest VL.
        image: Vec<u8>,
        status: (u32, u32),
    }

    const LARGE: Layout = Layout::new(Vq::MAX);

    /// (place at this VL, place at the largest, bytes) of every register.
    fn registers(layout: Layout) -> impl Iterator<Item = (usize, usize, usize)> {
        let z = (0..32).map(move |n| (layout.z(n), LARGE.z(n), layout.z_bytes()));
        let p = (0..16).map(move |n| (layout.p(n), LARGE.p(n), layout.p_bytes()));
        z.chain(p).chain([(layout.ffr(), LARGE.ffr(), layout.p_bytes())])
    }

    impl Machine {
        fn new(retains: bool) -> Self {
            Self { vq: Vq::MAX, retains, image: vec![0; LARGE.image_bytes()], status: (0, 0) }
        }

        fn set_status(&mut self, tag: Tag) {
            self.status = (fpsr(tag), fpcr(tag));
        }

        fn load(&mut self, tag: Tag) {
            let layout = Layout::new(self.vq);
            let mut small = vec![0; layout.image_bytes()];
            expected(tag, layout, &mut small);
            for (from, to, bytes) in registers(layout) {
                self.image[to..to + bytes].copy_from_slice(&small[from..from + bytes]);
            }
            self.set_status(tag);
        }

        fn load_fpsimd(&mut self, tag: Tag) {
            let mut v = [0; FPSIMD_BYTES];
            expected_fpsimd(tag, &mut v);
            for n in 0..32 {
                let z = &mut self.image[LARGE.z(n)..][..self.vq.vl_bytes()];
                z.fill(0);
                z[..16].copy_from_slice(&v[16 * n..16 * n + 16]);
            }
            self.set_status(tag);
        }

        fn set_vq(&mut self, vq: Vq) {
            self.vq = vq;
            if !self.retains {
                self.zero_above(vq.vl_bytes(), vq.vl_bytes() / 8);
            }
        }

        fn zero_above(&mut self, z: usize, p: usize) {
            for (_, at, bytes) in registers(LARGE) {
                let keep = if bytes == 256 { z } else { p };
                self.image[at + keep..at + bytes].fill(0);
            }
        }

        fn dump(&self) -> Vec<u8> {
            let layout = Layout::new(self.vq);
            let mut small = vec![0; layout.image_bytes()];
            for (to, from, bytes) in registers(layout) {
                small[to..to + bytes].copy_from_slice(&self.image[from..from + bytes]);
            }
            small
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Fill,
        FillFpsimd,
        SetVq(Vq),
        Discard(bool),
        Lose(bool),
        Reset,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Fill),
            2 => Just(Step::FillFpsimd),
            4 => (1u64..17).prop_map(|n| Step::SetVq(Vq::new(n).unwrap())),
            1 => any::<bool>().prop_map(Step::Discard),
            1 => any::<bool>().prop_map(Step::Lose),
            1 => Just(Step::Reset),
        ]
    }

    fn run(steps: &[Step], retains: bool) -> (Machine, Model) {
        let mut machine = Machine::new(retains);
        let mut model = Model::new(0x123, Some(Vq::MAX));
        for step in steps {
            match *step {
                Step::Fill => machine.load(model.fill()),
                Step::FillFpsimd => machine.load_fpsimd(model.fill_fpsimd()),
                Step::SetVq(vq) => {
                    machine.set_vq(vq);
                    model.set_vq(vq);
                }
                Step::Discard(really) => {
                    model.discard();
                    if really {
                        machine.zero_above(16, 0);
                    }
                }
                Step::Lose(really) => {
                    model.lose();
                    if really {
                        machine.image.fill(0);
                        machine.status = (0, 0);
                    }
                }
                Step::Reset => {
                    machine = Machine::new(retains);
                    model.reset(Some(Vq::MAX));
                }
            }
        }
        (machine, model)
    }

    fn judge(machine: &Machine, model: &Model) -> Result<(), Mismatch> {
        model.check_status(machine.status)?;
        model.check(Layout::new(machine.vq), &machine.dump())
    }

    proptest! {
        #[test]
        fn what_the_architecture_allows_is_accepted(
            steps in proptest::collection::vec(step(), 0..40),
            retains: bool,
        ) {
            let (machine, model) = run(&steps, retains);
            prop_assert_eq!(judge(&machine, &model), Ok(()));
        }

        #[test]
        fn somebody_elses_lane_is_never_accepted(
            steps in proptest::collection::vec(step(), 0..40),
            retains: bool,
            owner in 0x200u16..0x300,
            generation in 1u32..50,
            register in 0u8..32,
            seed: usize,
        ) {
            let (mut machine, model) = run(&steps, retains);
            let n = seed % (machine.vq.vl_bytes() / 8);
            let tag = Tag { owner, generation };
            let stray = lane(tag, Register::Z(register), n as u8);
            let at = LARGE.z(register.into()) + 8 * n;
            machine.image[at..at + 8].copy_from_slice(&stray.to_le_bytes());
            let mismatch = judge(&machine, &model).unwrap_err();
            prop_assert_eq!(mismatch.register, Register::Z(register));
            let Found::Known(origin) = mismatch.whose else { panic!("{mismatch}") };
            prop_assert_eq!(origin.tag, tag);
        }

        #[test]
        fn a_lost_byte_is_never_accepted_where_it_must_be(at: usize, bit in 0u32..8, n in 1u64..17) {
            let vq = Vq::new(n).unwrap();
            let (mut machine, model) = run(&[Step::Fill, Step::SetVq(vq)], true);
            let places: Vec<_> = registers(Layout::new(vq)).collect();
            let (_, from, bytes) = places[at % places.len()];
            machine.image[from + at / places.len() % bytes] ^= 1 << bit;
            prop_assert!(judge(&machine, &model).is_err());
        }

        #[test]
        fn an_older_content_is_not_taken_for_the_last(retains: bool, n in 1u64..17) {
            let vq = Vq::new(n).unwrap();
            let (old, _) = run(&[Step::SetVq(vq), Step::Fill], retains);
            let (mut machine, model) = run(&[Step::SetVq(vq), Step::Fill, Step::Fill], retains);
            machine.image = old.image;
            prop_assert!(judge(&machine, &model).is_err());
        }
    }

    #[test]
    fn what_a_v_register_zeroed_stays_zero() {
        let (mut machine, model) = run(&[Step::Fill, Step::FillFpsimd], true);
        assert_eq!(judge(&machine, &model), Ok(()));
        let tag = Tag { owner: 0x123, generation: 1 };
        machine.image[LARGE.z(7) + 40..][..8]
            .copy_from_slice(&lane(tag, Register::Z(7), 5).to_le_bytes());
        assert!(judge(&machine, &model).is_err());
        // P registers are another matter.
        machine.image[LARGE.z(7) + 40..][..8].fill(0);
        machine.image[LARGE.p(3)] ^= 1;
        assert!(judge(&machine, &model).is_err());
    }

    #[test]
    fn after_reset_all_is_zero() {
        let (mut machine, model) = run(&[Step::Fill, Step::Reset], true);
        assert_eq!(judge(&machine, &model), Ok(()));
        machine.status.0 = 1;
        assert!(judge(&machine, &model).is_err());
        machine.status.0 = 0;
        machine.image[LARGE.ffr() + 3] = 1;
        assert!(judge(&machine, &model).is_err());
    }
}
