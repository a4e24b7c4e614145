//! The specification of the exhaustive check: what a context must find, and what hints do to it.

use super::machine::{Age, Cell, FILE, HIGH, Hw, LOW, PRED, STATUS, ZA};
use crate::fp::{Live, Svcr};
use umbra_shared::flags::HostFlags;

/// What a context knows it must find: the specification.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mind {
    pub(super) owner: u8,
    /// `None`: its own content or zero.
    pub(super) expected: [Option<Cell>; 5],
    pub(super) zcr_el1: u8,
    pub(super) svcr: Svcr,
    /// FPEXC.EN of an AArch32 guest.
    pub(super) fpexc: bool,
}

impl Mind {
    pub(super) const fn new(owner: u8) -> Self {
        Self {
            owner,
            expected: [Some(Cell::Zero); 5],
            zcr_el1: 0,
            svcr: Svcr::empty(),
            fpexc: false,
        }
    }

    pub(super) fn sm(&self) -> bool {
        self.svcr.contains(Svcr::SM)
    }

    /// The file is given up.
    pub(super) fn give_up_file(&mut self) {
        self.give_up(&FILE);
        self.svcr.remove(Svcr::SM);
    }

    /// ZA is given up.
    pub(super) fn give_up_za(&mut self) {
        self.give_up(&[ZA]);
        self.svcr.remove(Svcr::ZA);
    }

    /// SMSTART, SMSTOP.
    pub(super) fn change_svcr(&mut self, hw: &mut Hw, bits: Svcr) {
        assert_eq!(hw.svcr, self.svcr, "SVCR of {}", self.owner);
        hw.set_svcr(self.svcr ^ bits);
        if bits.contains(Svcr::SM) {
            self.give_up(&FILE);
        }
        if bits.contains(Svcr::ZA) {
            self.give_up(&[ZA]);
        }
        self.svcr = hw.svcr;
    }

    /// It looks at ZA, then writes it.
    pub(super) fn look_at_za(&mut self, hw: &mut Hw) {
        assert_eq!(hw.svcr, self.svcr, "SVCR of {}", self.owner);
        if self.svcr.contains(Svcr::ZA) {
            assert_eq!(Some(hw.cells[ZA]), self.expected[ZA], "ZA of {}", self.owner);
            hw.cells[ZA] = Cell::Of(self.owner, Age::Last);
            self.expected[ZA] = Some(hw.cells[ZA]);
        }
    }

    /// All it had is given up; ZCR_EL1 is not.
    pub(super) fn give_up(&mut self, cells: &[usize]) {
        for &cell in cells {
            self.expected[cell] = Some(Cell::Zero);
        }
    }

    /// It looks at what it can see, then writes all of it.
    pub(super) fn look_and_write(&mut self, hw: &mut Hw, sve: bool) {
        if sve {
            assert_eq!(hw.zcr_el1, self.zcr_el1, "ZCR_EL1 of {}", self.owner);
        }
        assert_eq!(hw.streaming(), self.sm(), "PSTATE.SM of {}", self.owner);
        let wide = sve && !self.sm() && hw.vq_el1() == 2;
        let predicates = sve || self.sm();
        for (cell, visible) in [(LOW, true), (HIGH, wide), (PRED, predicates), (STATUS, true)] {
            if !visible {
                continue;
            }
            let found = hw.cells[cell];
            match self.expected[cell] {
                Some(expected) => assert_eq!(found, expected, "cell {cell} of {}", self.owner),
                None => assert!(
                    found == Cell::Zero
                        || matches!(found, Cell::Of(owner, _) if owner == self.owner),
                    "cell {cell} of {} shows {found:?}",
                    self.owner
                ),
            }
        }
        let content = Cell::Of(self.owner, Age::Last);
        for (cell, visible) in [(LOW, true), (HIGH, wide), (PRED, predicates), (STATUS, true)] {
            if visible {
                hw.cells[cell] = content;
                self.expected[cell] = Some(content);
            }
        }
        if sve && !wide && !self.sm() {
            // It wrote whole Z registers at the smaller VL.
            self.expected[HIGH] = None;
        }
    }

    pub(super) fn change_zcr(&mut self, hw: &mut Hw) {
        let old = hw.vq_el1();
        hw.zcr_el1 ^= 1;
        self.zcr_el1 = hw.zcr_el1;
        let new = hw.vq_el1();
        hw.expose(old, new);
        if new != old && !self.sm() {
            self.expected[HIGH] = None;
        }
    }
}

/// What becomes of a host when the file, or ZA, too, is taken from it.
pub(super) fn displace(host: &mut Mind, hint: HostFlags, (live, za): (Live, Live), matrix: bool) {
    let foreign = hint.contains(HostFlags::FOREIGN_FPSTATE);
    if live == Live::Host {
        if foreign {
            host.give_up_file();
            if za != Live::Host {
                host.give_up_za();
            }
        } else if hint.contains(HostFlags::SVE_DISCARDED) && !host.sm() {
            host.give_up(&[HIGH, PRED]);
        }
    }
    if matrix && za == Live::Host && foreign {
        host.give_up_za();
    }
}
