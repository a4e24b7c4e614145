//! The machine of the exhaustive check: five cells of registers, vector lengths of one or two quadwords,
//! a streaming vector length of one.

use crate::fp::{Access, FpHw, Svcr, TrapClass};
use umbra_shared::vl::Vq;

/// Content of a register cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cell {
    Zero,
    /// Written by its owner: the last time it wrote, or before. Owner 0 and 1 are the hosts of the CPUs,
    /// 2 and 3 the vCPUs.
    Of(u8, Age),
    /// What a reset or somebody else's memory leaves.
    Junk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Age {
    Last,
    Older,
}

/// V registers, the rest of Z, P and FFR, FPSR and FPCR, ZA.
pub(super) const LOW: usize = 0;
pub(super) const HIGH: usize = 1;
pub(super) const PRED: usize = 2;
pub(super) const STATUS: usize = 3;
pub(super) const ZA: usize = 4;
pub(super) type Cells = [Cell; 5];
/// All but ZA.
pub(super) const FILE: [usize; 4] = [LOW, HIGH, PRED, STATUS];

/// Memory of a saved register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Image {
    pub(super) cells: Cells,
    /// Quadwords of the layout that the last save of Z and P used; 0: V registers only, or nothing.
    pub(super) layout: u8,
    /// Quadwords it has room for.
    pub(super) room: u8,
}

impl Image {
    pub(super) const fn new(room: u8) -> Self {
        Self { cells: [Cell::Zero; 5], layout: room, room }
    }
}

/// One CPU's hardware.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Hw {
    /// Quadwords of its largest VL.
    pub(super) max: u8,
    /// It has SME.
    pub(super) sme: bool,
    pub(super) svcr: Svcr,
    /// FPEXC32_EL2.EN.
    pub(super) fpexc: bool,
    pub(super) cells: Cells,
    pub(super) access_written: Access,
    pub(super) access: Access,
    pub(super) clamp: u8,
    pub(super) zcr_el1: u8,
    /// Which way everything that is left open falls during this event.
    pub(super) coin: bool,
    /// This CPU's loads forget P and FFR: the fault that the check itself is tested with.
    pub(super) forgets_predicates: bool,
}

impl Hw {
    pub(super) fn vq_el2(&self) -> u8 {
        self.clamp.min(self.max)
    }

    pub(super) fn vq_el1(&self) -> u8 {
        self.vq_el2().min(self.zcr_el1 + 1)
    }

    /// The VL in force grew: what was hidden is there again, or zero.
    pub(super) fn expose(&mut self, from: u8, to: u8) {
        if to > from && self.coin {
            self.cells[HIGH] = Cell::Zero;
        }
    }

    fn require(&self, what: Access) {
        let open = self.access == Access::Full
            || self.access == what
            || (self.access != Access::Closed && what == Access::Fpsimd);
        assert!(open, "EL2 used {what:?} while {:?} was open", self.access);
    }

    pub(super) fn power_cycle(&mut self) {
        self.cells = [Cell::Junk; 5];
        self.access = Access::Closed;
        self.access_written = Access::Closed;
        self.clamp = if self.coin { 1 } else { 2 };
        self.zcr_el1 = u8::from(self.coin);
        self.svcr = if self.sme && self.coin { Svcr::all() } else { Svcr::empty() };
        self.fpexc = false;
    }

    pub(super) fn streaming(&self) -> bool {
        self.svcr.contains(Svcr::SM)
    }

    pub(super) fn set_svcr(&mut self, svcr: Svcr) {
        if (svcr ^ self.svcr).contains(Svcr::SM) {
            FILE.iter().for_each(|&cell| self.cells[cell] = Cell::Zero);
        }
        if (svcr - self.svcr).contains(Svcr::ZA) {
            self.cells[ZA] = Cell::Zero;
        }
        self.svcr = svcr;
    }

    fn require_sme(&self) {
        assert!(self.sme, "SME where there is none");
        assert!(
            matches!(self.access, Access::Sme | Access::Full),
            "EL2 used SME while {:?} was open",
            self.access
        );
    }

    pub(super) fn el1_open(&self, class: TrapClass) -> bool {
        match class {
            TrapClass::Fpsimd => self.access != Access::Closed,
            // In streaming mode they are SME's.
            TrapClass::Sve if !self.streaming() => {
                matches!(self.access, Access::Sve | Access::Full)
            }
            TrapClass::Sve | TrapClass::Sme => {
                self.sme && matches!(self.access, Access::Sme | Access::Full)
            }
        }
    }
}

impl FpHw for Hw {
    type Image = Image;

    fn has_sve(&self) -> bool {
        true
    }

    fn has_sme(&self) -> bool {
        self.sme
    }

    fn has_zt0(&self) -> bool {
        false
    }

    fn set_access(&mut self, access: Access) {
        self.access_written = access;
    }

    fn sync(&mut self) {
        self.access = self.access_written;
    }

    fn set_clamp(&mut self, clamp: Vq) {
        self.require(Access::Sve);
        let old = self.vq_el2();
        self.clamp = clamp.quadwords() as u8;
        self.expose(old, self.vq_el2());
    }

    fn vq(&mut self) -> Vq {
        self.require(Access::Sve);
        assert!(!self.streaming(), "the SVL taken for the VL");
        Vq::new(u64::from(self.vq_el2())).expect("1 or 2")
    }

    fn zcr_el1(&mut self) -> u64 {
        self.require(Access::Sve);
        u64::from(self.zcr_el1)
    }

    fn set_zcr_el1(&mut self, value: u64) {
        self.require(Access::Sve);
        self.zcr_el1 = value as u8;
    }

    fn set_streaming_clamp(&mut self, clamp: Vq) {
        self.require_sme();
        assert_eq!(clamp, Vq::MIN);
    }

    fn svq(&mut self) -> Vq {
        self.require_sme();
        Vq::MIN
    }

    fn smcr_el1(&mut self) -> u64 {
        self.require_sme();
        0
    }

    fn set_smcr_el1(&mut self, _value: u64) {
        self.require_sme();
    }

    fn svcr(&mut self) -> Svcr {
        self.require_sme();
        self.svcr
    }

    fn start(&mut self, bits: Svcr) {
        self.require_sme();
        self.set_svcr(self.svcr | bits);
    }

    fn stop(&mut self, bits: Svcr) {
        self.require_sme();
        self.set_svcr(self.svcr - bits);
    }

    fn save_streaming(&mut self, image: &mut Image) -> Vq {
        self.require_sme();
        assert!(self.streaming(), "the VL taken for the SVL");
        for cell in [LOW, PRED, STATUS] {
            image.cells[cell] = self.cells[cell];
        }
        image.layout = 1;
        Vq::MIN
    }

    fn load_streaming(&mut self, image: &Image, _svq: Vq) {
        self.require_sme();
        assert!(self.streaming(), "the VL taken for the SVL");
        for cell in [LOW, PRED, STATUS] {
            self.cells[cell] = image.cells[cell];
        }
        if image.layout != 1 {
            self.cells[PRED] = Cell::Junk;
        }
    }

    fn save_za(&mut self, image: &mut Image) {
        self.require_sme();
        assert!(self.svcr.contains(Svcr::ZA), "ZA is not there");
        image.cells[ZA] = self.cells[ZA];
    }

    fn load_za(&mut self, image: &Image) {
        self.require_sme();
        assert!(self.svcr.contains(Svcr::ZA), "ZA is not there");
        self.cells[ZA] = image.cells[ZA];
    }

    fn zero_za(&mut self) {
        self.require_sme();
        assert!(self.svcr.contains(Svcr::ZA), "ZA is not there");
        self.cells[ZA] = Cell::Zero;
    }

    fn fpexc(&mut self) -> u64 {
        self.require(Access::Fpsimd);
        u64::from(self.fpexc) << 30
    }

    fn set_fpexc(&mut self, value: u64) {
        self.require(Access::Fpsimd);
        self.fpexc = value >> 30 & 1 == 1;
    }

    fn save_sve(&mut self, image: &mut Image) -> Vq {
        self.require(Access::Sve);
        assert!(!self.streaming(), "the SVL taken for the VL");
        let vq = self.vq_el2();
        assert!(vq <= image.room, "a save behind the end of its buffer");
        for cell in [LOW, PRED, STATUS] {
            image.cells[cell] = self.cells[cell];
        }
        if vq == 2 {
            image.cells[HIGH] = self.cells[HIGH];
        }
        image.layout = vq;
        Vq::new(u64::from(vq)).expect("1 or 2")
    }

    fn load_sve(&mut self, image: &Image, in_force: Vq) {
        self.require(Access::Sve);
        assert!(!self.streaming(), "the SVL taken for the VL");
        let vq = self.vq_el2();
        assert_eq!(usize::from(vq), in_force.quadwords());
        for cell in [LOW, PRED, STATUS] {
            if cell != PRED || !self.forgets_predicates {
                self.cells[cell] = image.cells[cell];
            }
        }
        if vq == 2 {
            self.cells[HIGH] = image.cells[HIGH];
        }
        if vq != image.layout {
            // Everything behind Z0 is looked for at the wrong offset.
            self.cells[PRED] = Cell::Junk;
            self.cells[HIGH] = Cell::Junk;
        }
    }

    fn save_fpsimd(&mut self, image: &mut Image) {
        self.require(Access::Fpsimd);
        assert!(!self.streaming(), "the SVL taken for the VL");
        image.cells[LOW] = self.cells[LOW];
        image.cells[STATUS] = self.cells[STATUS];
    }

    fn load_fpsimd(&mut self, image: &Image) {
        self.require(Access::Fpsimd);
        assert!(!self.streaming(), "the SVL taken for the VL");
        self.cells[LOW] = image.cells[LOW];
        self.cells[STATUS] = image.cells[STATUS];
        if self.access != Access::Fpsimd && self.vq_el2() == 2 {
            self.cells[HIGH] = Cell::Zero;
        }
    }

    fn zero(&mut self) {
        self.require(Access::Sve);
        assert!(!self.streaming(), "the SVL taken for the VL");
        for cell in [LOW, PRED, STATUS] {
            self.cells[cell] = Cell::Zero;
        }
        if self.vq_el2() == 2 {
            self.cells[HIGH] = Cell::Zero;
        }
    }
}
