//! What becomes of the simulated ITS behind hyp's back.

use super::Sim;

impl Sim {
    /// The ITS's power was off: its registers are as at reset.
    pub fn lose_its(&mut self) {
        (self.ctlr, self.cbaser, self.writer, self.reader) = (0, 0, 0, 0);
        self.stalled = false;
        self.basers = self.model.basers;
    }

    /// Firmware brings it back, from what it has saved: its queue begins again. `on`: enabled as it was, too.
    pub fn restore_its(&mut self, on: bool) {
        let saved = (self.ctlr, self.cbaser, self.writer, self.basers);
        self.lose_its();
        (_, self.cbaser, self.writer, self.basers) = saved;
        self.ctlr = if on { saved.0 } else { 0 };
    }

    /// Somebody gives it a table, or turns it on, behind hyp's back.
    pub fn give_table(&mut self, n: usize, baser: u64) {
        self.basers[n] = self.model.basers[n] | baser;
    }

    pub const fn switch_its_on(&mut self) {
        self.ctlr = 1;
    }

    pub const fn is_its_on(&self) -> bool {
        self.ctlr & 1 == 1
    }
}
