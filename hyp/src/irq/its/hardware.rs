//! An ITS's hardware: it is given its tables and its queue, does what lies there, and is turned off if it doesn't.
//!
//! Whoever turns the machine's power off, or a part's of it, may take an ITS's registers with it; and firmware that
//! brings them back (from what it has saved) writes GITS_CBASER, which begins the queue again, at commands that are long
//! done and name ITTs that are others' now. So an ITS has all of its registers written anew whenever it is enabled, and
//! each is looked at when a CPU comes back, before the host runs there.

#![forbid(unsafe_code)]

use super::{Hung, Its, Known, News, QUEUE_BYTES, Table, stop};
use crate::irq::command::{self, COMMAND, Raw};
use crate::irq::machine::{LOOKS, Machine, read32, read64, write32, write64};
use crate::irq::registers::gits;

impl Its<'_> {
    /// A CPU is back that may have slept with the rest of the machine: an ITS that isn't as hyp has left it is brought
    /// up again, before the host runs there. Returns whether it was.
    ///
    /// # Errors
    ///
    /// [`Hung`].
    pub fn wake(&mut self, machine: &mut impl Machine) -> Result<bool, Hung> {
        let on = read32(machine, self.place, gits::CTLR) & gits::ENABLED != 0;
        let sound = self.dead || self.is_established(machine);
        if sound && on == (self.shown.enabled && !self.dead) {
            return Ok(false);
        }
        stop(machine, self.place).map_err(|_| Hung)?;
        if !self.dead {
            let result = self.establish(machine);
            self.or_dead(machine, result)?;
        }
        if self.shown.enabled && !self.dead {
            write32(machine, self.place, gits::CTLR, gits::ENABLED);
        }
        Ok(true)
    }

    /// GITS_CTLR.Enabled is the hardware's, too: while the host has its ITS off nothing is translated.
    pub(super) fn enable(&mut self, machine: &mut impl Machine, on: bool) -> Result<(), Hung> {
        if on == self.shown.enabled {
            return Ok(());
        }
        if on {
            // What is still busy may be asked again.
            if stop(machine, self.place).is_err() {
                return Ok(());
            }
            if self.shown.in_force.is_some_and(|before| before != self.shown.basers) {
                self.forget_mappings(machine);
            }
            self.shown.in_force = Some(self.shown.basers);
            self.establish(machine)?;
        }
        write32(machine, self.place, gits::CTLR, u32::from(on));
        self.shown.enabled = on;
        Ok(())
    }

    /// The table that a GITS_BASER has.
    fn table_of(&self, n: usize) -> Option<Table> {
        [Some(self.devices_table), self.collections_table]
            .into_iter()
            .flatten()
            .find(|table| table.n == n)
    }

    /// Gives the hardware, which is quiescent, its tables and an empty queue, whatever it has.
    fn establish(&mut self, machine: &mut impl Machine) -> Result<(), Hung> {
        for n in 0..gits::BASERS {
            let baser = self.table_of(n).map_or(0, |table| table.baser);
            write64(machine, self.place, gits::BASER + 8 * n as u32, baser);
        }
        // GITS_CREADR is 0 behind this.
        write64(machine, self.place, gits::CBASER, self.cbaser);
        write64(machine, self.place, gits::CWRITER, 0);
        (self.writer, self.done) = (0, 0);
        if self.is_established(machine) { Ok(()) } else { Err(Hung) }
    }

    /// The hardware has hyp's tables and no others, and is where hyp takes it to be in hyp's queue.
    fn is_established(&self, machine: &mut impl Machine) -> bool {
        let mut read = |register| read64(machine, self.place, register);
        read(gits::CBASER) == self.cbaser
            && read(gits::CREADR) & (gits::QUEUE_OFFSET | gits::STALLED) == self.done
            && read(gits::CWRITER) & gits::QUEUE_OFFSET == self.writer
            && (0..gits::BASERS).all(|n| {
                let baser = read(gits::BASER + 8 * n as u32);
                self.table_of(n).map_or(baser & gits::VALID == 0, |table| table.baser == baser)
            })
    }

    /// The host has given its ITS other tables: none of its devices is mapped. While the hardware is quiescent, and
    /// before it is given its tables.
    fn forget_mappings(&mut self, machine: &mut impl Machine) {
        for table in [Some(self.devices_table), self.collections_table].into_iter().flatten() {
            let register = gits::BASER + 8 * table.n as u32;
            // With Valid gone it keeps nothing of the table.
            write64(machine, self.place, register, table.baser & !gits::VALID);
            // What leads to pages of devices goes on leading there.
            if table.baser & gits::INDIRECT == 0 {
                machine.zero(table.pa, table.bytes);
            }
        }
        let (start, bytes) = self.room.pages();
        machine.zero(start, bytes);
        self.devices.clear();
        self.room.clear();
    }

    /// If it takes no commands any more it is off for good, and nothing that it was given is anybody else's, ever.
    pub(super) fn or_dead(
        &mut self,
        machine: &mut impl Machine,
        result: Result<(), Hung>,
    ) -> Result<(), Hung> {
        if result.is_err() {
            stop(machine, self.place).map_err(|_| Hung)?;
            self.dead = true;
            self.news = Some(News::Dead);
        }
        Ok(())
    }

    /// Puts a command into hyp's queue. Others may be before it that the hardware hasn't been told of.
    pub(super) fn push(
        &mut self,
        machine: &mut impl Machine,
        targets: &[Known],
        words: Raw,
    ) -> Result<(), Hung> {
        machine.store(self.queue + self.writer, &words);
        let bit = 1 << (self.writer / COMMAND);
        if command::is_about_device(&words) {
            self.about_devices |= bit;
        } else {
            self.about_devices &= !bit;
        }
        self.writer = (self.writer + COMMAND) % QUEUE_BYTES;
        // One place stays empty: a full queue would look like an empty one.
        if (self.writer + COMMAND) % QUEUE_BYTES == self.done {
            self.flush(machine, targets)?;
        }
        Ok(())
    }

    /// The hardware has done all that is in hyp's queue.
    pub(super) fn flush(
        &mut self,
        machine: &mut impl Machine,
        targets: &[Known],
    ) -> Result<(), Hung> {
        // Off, it takes no commands; and none was put there.
        if self.done == self.writer {
            return Ok(());
        }
        write64(machine, self.place, gits::CWRITER, self.writer);
        let mut looks = LOOKS;
        loop {
            let reader = read64(machine, self.place, gits::CREADR);
            let at = reader & gits::QUEUE_OFFSET;
            if at == self.writer {
                self.done = at;
                return Ok(());
            }
            if reader & gits::STALLED != 0 {
                let at = at % QUEUE_BYTES;
                // Which ITT a device has is hyp's to say: if the hardware takes it to be another, it is whose?
                if self.about_devices >> (at / COMMAND) & 1 == 1 {
                    return Err(Hung);
                }
                // The command is sound as far as hyp can tell and is an error to the hardware: an event that isn't
                // mapped, say. In its place comes one that is none.
                let first = targets.first().ok_or(Hung)?;
                machine.store(self.queue + at, &command::sync(self.named(*first)));
                write64(machine, self.place, gits::CWRITER, self.writer | gits::RETRY);
            }
            looks = looks.checked_sub(1).ok_or(Hung)?;
        }
    }
}
