//! The model against a register file that keeps every promise of the architecture.

use super::*;
use crate::pattern::{expected, expected_fpsimd, expected_za, expected_zt0};
use proptest::prelude::*;

/// A register file that keeps every promise of the architecture, in either of the ways it allows.
#[derive(Clone)]
struct Machine {
    vq: Vq,
    svq: Vq,
    svcr: u64,
    fa64: bool,
    /// What is out of reach survives.
    retains: bool,
    /// At the largest VL.
    image: Vec<u8>,
    status: (u32, u32),
    fpmr: u64,
    /// Rows of the largest SVL.
    array: Vec<[u8; ROW]>,
    zt0: [u8; ZT0_BYTES],
}

const LARGE: Layout = Layout::new(Vq::MAX);
const ROW: usize = Vq::MAX.vl_bytes();
const HAS: Has = Has { fpmr: true, fa64: false, zt0: true };

/// (place at this VL, place at the largest, bytes) of every register.
fn registers(layout: Layout) -> impl Iterator<Item = (usize, usize, usize)> {
    let z = (0..32).map(move |n| (layout.z(n), LARGE.z(n), layout.z_bytes()));
    let p = (0..16).map(move |n| (layout.p(n), LARGE.p(n), layout.p_bytes()));
    z.chain(p).chain([(layout.ffr(), LARGE.ffr(), layout.p_bytes())])
}

impl Machine {
    fn new(retains: bool) -> Self {
        Self {
            vq: Vq::MAX,
            svq: Vq::MAX,
            svcr: 0,
            fa64: HAS.fa64,
            retains,
            image: vec![0; LARGE.image_bytes()],
            status: (0, 0),
            fpmr: 0,
            array: vec![[0; ROW]; ROW],
            zt0: [0; ZT0_BYTES],
        }
    }

    fn in_force(&self) -> Vq {
        if self.svcr & SM != 0 { self.svq } else { self.vq }
    }

    fn set_status(&mut self, tag: Tag) {
        self.status = (fpsr(tag), fpcr(tag));
        self.fpmr = fpmr(tag);
    }

    fn set_svcr(&mut self, svcr: u64) {
        let changed = self.svcr ^ svcr;
        self.svcr = svcr;
        if changed & SM != 0 {
            self.image.fill(0);
            self.status.0 = FPSR_AFTER_SM;
            self.fpmr = 0;
        }
        if changed & ZA != 0 {
            self.zero_array();
        }
    }

    fn zero_array(&mut self) {
        self.array.fill([0; ROW]);
        self.zt0.fill(0);
    }

    fn load_za(&mut self, tag: Tag) {
        let bytes = self.svq.vl_bytes();
        for (n, row) in self.array.iter_mut().take(bytes).enumerate() {
            expected_za(tag, n, &mut row[..bytes]);
        }
        expected_zt0(tag, &mut self.zt0);
    }

    fn set_svq(&mut self, svq: Vq) {
        self.svq = svq;
        let bytes = svq.vl_bytes();
        if self.retains {
            return;
        }
        for (n, row) in self.array.iter_mut().enumerate() {
            row[if n < bytes { bytes } else { 0 }..].fill(0);
        }
        if self.svcr & SM != 0 {
            self.zero_above(bytes, bytes / 8);
        }
    }

    fn load(&mut self, tag: Tag) {
        let layout = Layout::new(self.in_force());
        let mut small = vec![0; layout.image_bytes()];
        expected(tag, layout, &mut small);
        let count = if self.svcr & SM != 0 && !self.fa64 { 48 } else { 49 };
        for (from, to, bytes) in registers(layout).take(count) {
            self.image[to..to + bytes].copy_from_slice(&small[from..from + bytes]);
        }
        self.set_status(tag);
    }

    fn load_fpsimd(&mut self, tag: Tag) {
        let mut v = [0; FPSIMD_BYTES];
        expected_fpsimd(tag, &mut v);
        for n in 0..32 {
            let bytes = self.in_force().vl_bytes();
            let z = &mut self.image[LARGE.z(n)..][..bytes];
            z.fill(0);
            z[..16].copy_from_slice(&v[16 * n..16 * n + 16]);
        }
        self.set_status(tag);
    }

    fn set_vq(&mut self, vq: Vq) {
        self.vq = vq;
        if !self.retains && self.svcr & SM == 0 {
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
        let layout = Layout::new(self.in_force());
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
    SetSvq(Vq),
    SetSvcr(u64),
    FillZa,
    Discard(bool),
    Lose(bool),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Fill),
        2 => Just(Step::FillFpsimd),
        4 => (1u64..17).prop_map(|n| Step::SetVq(Vq::new(n).unwrap())),
        3 => (1u64..17).prop_map(|n| Step::SetSvq(Vq::new(n).unwrap())),
        3 => (0u64..4).prop_map(Step::SetSvcr),
        3 => Just(Step::FillZa),
        1 => any::<bool>().prop_map(Step::Discard),
        1 => any::<bool>().prop_map(Step::Lose),
        1 => Just(Step::Reset),
    ]
}

fn run(steps: &[Step], retains: bool) -> (Machine, Model) {
    let mut machine = Machine::new(retains);
    let mut model = Model::new(0x123, Some(Vq::MAX)).having(Some(Vq::MAX), HAS);
    for step in steps {
        match *step {
            Step::Fill => machine.load(model.fill()),
            Step::FillFpsimd => machine.load_fpsimd(model.fill_fpsimd()),
            Step::SetVq(vq) => {
                machine.set_vq(vq);
                model.set_vq(vq);
            }
            Step::SetSvq(svq) => {
                machine.set_svq(svq);
                model.set_svq(svq);
            }
            Step::SetSvcr(svcr) => {
                machine.set_svcr(svcr);
                model.set_svcr(svcr);
            }
            Step::FillZa => {
                // Its owner looks first.
                model.check_svcr(machine.svcr).unwrap();
                if machine.svcr & ZA != 0 {
                    machine.load_za(model.fill_za());
                }
            }
            Step::Discard(really) => {
                model.discard();
                if really && machine.svcr & SM == 0 {
                    machine.zero_above(16, 0);
                }
            }
            Step::Lose(really) => {
                model.lose();
                if really {
                    machine.svcr = 0;
                    machine.image.fill(0);
                    machine.status = (0, 0);
                    machine.fpmr = 0;
                    machine.zero_array();
                }
                model.check_svcr(machine.svcr).unwrap();
            }
            Step::Reset => {
                machine = Machine::new(retains);
                model.reset(Some(Vq::MAX), Some(Vq::MAX));
            }
        }
    }
    (machine, model)
}

fn judge(machine: &Machine, model: &Model) -> Result<(), Mismatch> {
    assert_eq!(model.svcr(), machine.svcr);
    model.check_status(machine.status)?;
    model.check_fpmr(machine.fpmr)?;
    model.check(Layout::new(machine.in_force()), &machine.dump())?;
    if machine.svcr & ZA != 0 {
        let bytes = machine.svq.vl_bytes();
        for (n, row) in machine.array.iter().take(bytes).enumerate() {
            model.check_za(n, &row[..bytes])?;
        }
        model.check_zt0(&machine.zt0)?;
    }
    Ok(())
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
        let n = seed % (machine.in_force().vl_bytes() / 8);
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
    fn nor_in_za(
        steps in proptest::collection::vec(step(), 0..40),
        retains: bool,
        owner in 0x200u16..0x300,
        row: usize,
        seed: usize,
    ) {
        let (mut machine, mut model) = run(&steps, retains);
        let all = machine.svcr | ZA;
        machine.set_svcr(all);
        model.set_svcr(all);
        let bytes = machine.svq.vl_bytes();
        let (row, n) = (row % bytes, seed % (bytes / 8));
        let tag = Tag { owner, generation: 7 };
        let stray = lane(tag, Register::Za(row as u8), n as u8);
        machine.array[row][8 * n..8 * n + 8].copy_from_slice(&stray.to_le_bytes());
        let mismatch = judge(&machine, &model).unwrap_err();
        prop_assert_eq!((mismatch.register, mismatch.byte / 8), (Register::Za(row as u8), n));
        prop_assert!(matches!(mismatch.whose, Found::Known(origin) if origin.tag == tag));
    }

    #[test]
    fn za_is_not_lost_with_the_rest(seed: usize, svcr in 2u64..4) {
        let (mut machine, mut model) =
            run(&[Step::Fill, Step::SetSvcr(svcr), Step::FillZa, Step::Discard(true)], true);
        prop_assert_eq!(judge(&machine, &model), Ok(()));
        // A change of SM alone does not touch it.
        machine.set_svcr(svcr ^ SM);
        model.set_svcr(svcr ^ SM);
        prop_assert_eq!(judge(&machine, &model), Ok(()));
        let mut lost = machine.clone();
        lost.array[seed % ROW][seed / ROW % ROW] ^= 1;
        prop_assert!(judge(&lost, &model).is_err());
        lost = machine.clone();
        lost.zt0[seed % ZT0_BYTES] ^= 1;
        prop_assert_eq!(judge(&lost, &model).unwrap_err().register, Register::Zt0);
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

#[test]
fn a_change_of_mode_is_noticed() {
    let (mut machine, model) = run(&[Step::Fill, Step::SetSvcr(SM)], true);
    assert_eq!(judge(&machine, &model), Ok(()));
    for wrong in [0, ZA, SM | ZA] {
        let mismatch = model.clone().check_svcr(wrong).unwrap_err();
        assert_eq!((mismatch.register, mismatch.found), (Register::Svcr, wrong));
    }
    // What was there before is not there any more.
    let tag = Tag { owner: 0x123, generation: 1 };
    machine.image[LARGE.z(3)..][..8].copy_from_slice(&lane(tag, Register::Z(3), 0).to_le_bytes());
    assert_eq!(judge(&machine, &model).unwrap_err().register, Register::Z(3));
}

#[test]
fn fpmr_is_its_owners_and_zero_after_a_change_of_mode() {
    let (mut machine, model) = run(&[Step::SetSvcr(SM), Step::Fill], true);
    assert_eq!(judge(&machine, &model), Ok(()));
    machine.fpmr = 0;
    assert_eq!(judge(&machine, &model).unwrap_err().register, Register::Fpmr);
    let (mut machine, model) = run(&[Step::Fill, Step::SetSvcr(SM)], true);
    assert_eq!(machine.fpmr, 0);
    machine.fpmr = 1;
    assert_eq!(judge(&machine, &model).unwrap_err().register, Register::Fpmr);
}
