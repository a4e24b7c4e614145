//! The machine of the exhaustive check: four cells of registers, vector lengths of one or two quadwords.

use crate::fp::{Access, FpHw, TrapClass};
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

/// V registers, the rest of Z, P and FFR, FPSR and FPCR.
pub(super) const LOW: usize = 0;
pub(super) const HIGH: usize = 1;
pub(super) const PRED: usize = 2;
pub(super) const STATUS: usize = 3;
pub(super) type Cells = [Cell; 4];

/// Memory of a saved register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Image {
    pub(super) cells: Cells,
    /// Quadwords of the layout that the last SVE save used; 0: V registers only, or nothing.
    pub(super) layout: u8,
    /// Quadwords it has room for.
    pub(super) room: u8,
}

impl Image {
    pub(super) const fn new(room: u8) -> Self {
        Self { cells: [Cell::Zero; 4], layout: room, room }
    }
}

/// One CPU's hardware.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Hw {
    /// Quadwords of its largest VL.
    pub(super) max: u8,
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
            || (self.access == Access::Sve && what == Access::Fpsimd);
        assert!(open, "EL2 used {what:?} while {:?} was open", self.access);
    }

    pub(super) fn power_cycle(&mut self) {
        self.cells = [Cell::Junk; 4];
        self.access = Access::Closed;
        self.access_written = Access::Closed;
        self.clamp = if self.coin { 1 } else { 2 };
        self.zcr_el1 = u8::from(self.coin);
    }

    pub(super) fn el1_open(&self, class: TrapClass) -> bool {
        match class {
            TrapClass::Fpsimd => self.access != Access::Closed,
            TrapClass::Sve => matches!(self.access, Access::Sve | Access::Full),
            TrapClass::Sme => self.access == Access::Full,
        }
    }
}

impl FpHw for Hw {
    type Image = Image;

    fn has_sve(&self) -> bool {
        true
    }

    fn has_sme(&self) -> bool {
        true
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

    fn svcr(&mut self) -> u64 {
        self.require(Access::Full);
        0
    }

    fn save_sve(&mut self, image: &mut Image) {
        self.require(Access::Sve);
        let vq = self.vq_el2();
        assert!(vq <= image.room, "a save behind the end of its buffer");
        for cell in [LOW, PRED, STATUS] {
            image.cells[cell] = self.cells[cell];
        }
        if vq == 2 {
            image.cells[HIGH] = self.cells[HIGH];
        }
        image.layout = vq;
    }

    fn load_sve(&mut self, image: &Image) {
        self.require(Access::Sve);
        let vq = self.vq_el2();
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
        image.cells[LOW] = self.cells[LOW];
        image.cells[STATUS] = self.cells[STATUS];
    }

    fn load_fpsimd(&mut self, image: &Image) {
        self.require(Access::Fpsimd);
        self.cells[LOW] = image.cells[LOW];
        self.cells[STATUS] = image.cells[STATUS];
        if self.access != Access::Fpsimd && self.vq_el2() == 2 {
            self.cells[HIGH] = Cell::Zero;
        }
    }

    fn zero(&mut self) {
        self.require(Access::Sve);
        for cell in [LOW, PRED, STATUS] {
            self.cells[cell] = Cell::Zero;
        }
        if self.vq_el2() == 2 {
            self.cells[HIGH] = Cell::Zero;
        }
    }
}
