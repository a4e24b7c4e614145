//! Redistributors when a CPU comes back that may have slept with the rest of the machine.

#![forbid(unsafe_code)]

use super::{Redistributor, Redistributors, turn_off};
use crate::irq::machine::{Machine, Place, read32, read64};
use crate::irq::registers::gicr;

impl Redistributor {
    /// It has hyp's pending table and the configuration table that was checked.
    fn has_its_tables(&self, machine: &mut impl Machine, n: usize) -> bool {
        let mut read = |register| read64(machine, Place::Redistributor(n), register);
        let fields = gicr::PROPBASER_ADDRESS | gicr::PROPBASER_IDBITS;
        let pending = read(gicr::PENDBASER) & gicr::PENDBASER_ADDRESS;
        let configuration = read(gicr::PROPBASER) & fields;
        self.pending == Some(pending)
            && self.configuration.is_some_and(|known| known.register & fields == configuration)
    }
}

impl Redistributors {
    /// Before the host runs on a CPU that is back: of those that have LPIs on, whoever turned them on, each has the tables
    /// that hyp has given it, or else has its LPIs off (the host finds that in GICR_CTLR). Returns how many hadn't.
    ///
    /// # Errors
    ///
    /// If LPIs of this one can't be turned off.
    pub fn wake(&mut self, machine: &mut impl Machine) -> Result<usize, usize> {
        let mut strange = 0;
        for (n, this) in self.all.iter().enumerate() {
            // Those that hyp has no table for, too.
            let on = read32(machine, Place::Redistributor(n), gicr::CTLR) & gicr::ENABLE_LPIS != 0;
            if on && !this.has_its_tables(machine, n) {
                turn_off(machine, Place::Redistributor(n)).map_err(|_| n)?;
                strange += 1;
            }
        }
        Ok(strange)
    }
}
