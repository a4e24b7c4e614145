//! An ITS: the host's accesses to its control frame, and its commands.
//!
//! What an ITS reads and writes is named by its registers and its commands: the queue of commands, the tables of
//! devices and of collections, and for each device an ITT. All of that is hyp's own memory. The host sees an ITS
//! whose tables are flat; what it writes into GITS_BASER is remembered and means nothing but this: if it is not
//! what it was when the ITS is enabled again, all mappings are gone, as they would be with tables of the host's.
//! Its queue is read by hyp, each command once, and done again in hyp's own words ([`super::command`]):
//!
//! - MAPD's ITT is in hyp's room for them ([`super::itts`]); MAPC, SYNC and MOVALL name redistributors that there are;
//! - an event is within its device's ITT, an interrupt an LPI within the tables of all redistributors, a collection
//!   within hyp's table.
//!
//! What is not so is an error. Of what an ITS may do about a command's error (IHI 0069, 5.3: stall, ignore it) this
//! one ignores the command and goes on. Where there is no room left for a device the command is such an error,
//! too, and nothing has changed. A queue that is not the host's memory stalls the ITS until the host asks it to
//! try again (GITS_CREADR.Stalled, GITS_CWRITER.Retry) or gives it another.
//!
//! A store to GITS_CWRITER and a load of GITS_CREADR do [`COMMANDS_A_TRAP`] commands at most, and what they did has
//! been done by the hardware when they return; so GITS_CREADR tells the truth, and whoever waits for it gets on. An ITT is
//! zeroed first: behind [`ZEROED_A_TRAP`] bytes of that no further command is begun.
//!
//! An ITS that takes no commands any more is turned off for good, and reads as zero. Only if it can't be turned off
//! ([`Hung`]) the machine ends.

#![forbid(unsafe_code)]

mod hardware;
mod start;

pub use start::{Unfit, stop};

use super::command::{self, COMMAND, Command, DeviceId, Event, EventId, Icid, Raw, RdBase, Target};
use super::itts::{CHUNK, Device, Devices, Room};
use super::machine::{Machine, Place, read32};
use super::registers::{FIRST_LPI, Width, gits, merge, part};
use thiserror::Error;

/// Commands that one access does at the most: what bounds its time.
pub const COMMANDS_A_TRAP: usize = 64;
/// Bytes zeroed behind which an access begins no further command. One command's are fewer than 1 MiB, the room there is.
pub const ZEROED_A_TRAP: u64 = 64 << 10;
/// Commands read at once.
const BATCH: usize = 16;
/// Bytes of hyp's own queue.
const QUEUE_BYTES: u64 = 4096;
/// Bytes of a page of the host's queue.
const PAGE: u64 = 4096;
/// Level-1 entries of a table of devices.
const LEVEL1: usize = 8192;

/// The hardware takes no commands any more, and can't be turned off: what it does to memory nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hung;

/// A redistributor that LPIs may be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Physical address of its RD_base frame.
    pub pa: u64,
    /// GICR_TYPER.Processor_Number.
    pub number: u16,
}

/// What the console is to be told of an ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum News {
    /// The first device for which there was none.
    #[error("no room for another device's interrupts")]
    NoRoom,
    /// It is off for good.
    #[error("it takes no commands any more and is off")]
    Dead,
}

/// Of a table of devices with two levels: entries of the first lead to pages that are made when a device first needs
/// one.
#[derive(Debug)]
struct Level2 {
    /// Bytes of a page.
    page: u64,
    /// Devices in a page.
    devices: u64,
    /// Entries that lead to one.
    present: [u64; LEVEL1 / 64],
}

/// A table that the hardware has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Table {
    /// Which GITS_BASER.
    n: usize,
    /// What it holds.
    baser: u64,
    /// Where the table is.
    pa: u64,
    /// Its bytes.
    bytes: u64,
}

/// What the host finds in the registers.
#[derive(Debug, Default)]
struct Shown {
    enabled: bool,
    typer: u64,
    cbaser: u64,
    writer: u64,
    reader: u64,
    stalled: bool,
    basers: [u64; gits::BASERS],
    /// GITS_BASER when it was last enabled.
    in_force: Option<[u64; gits::BASERS]>,
}

/// An ITS.
#[derive(Debug)]
pub struct Its<'a> {
    place: Place,
    shown: Shown,
    by_address: bool,
    event_bits: u32,
    device_bits: u32,
    lpi_bits: u32,
    collections: u32,
    itt_entry: u64,
    queue: u64,
    /// GITS_CBASER.
    cbaser: u64,
    /// Behind the last command in hyp's queue, and behind the last that the hardware has done.
    writer: u64,
    done: u64,
    /// Places in hyp's queue with a MAPD.
    about_devices: u128,
    /// Bytes that this access has zeroed.
    zeroed: u64,
    devices_table: Table,
    /// `None`: the table of devices has one level.
    level2: Option<Level2>,
    collections_table: Option<Table>,
    room: Room,
    devices: Devices<'a>,
    /// There was no room for a device.
    exhausted: bool,
    /// It is off for good.
    dead: bool,
    news: Option<News>,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The hardware has it in its queue, or there was nothing to do.
    Done,
    /// It is an error.
    Refused,
}

impl Its<'_> {
    /// The host loads a register.
    ///
    /// # Errors
    ///
    /// [`Hung`].
    pub fn load(
        &mut self,
        machine: &mut impl Machine,
        targets: &[Known],
        offset: u32,
        width: Width,
    ) -> Result<u64, Hung> {
        let register = offset & !7;
        if register == gits::CREADR {
            self.run(machine, targets)?;
        }
        if self.dead {
            return Ok(0);
        }
        let value = match register {
            gits::CTLR => {
                let ctlr = read32(machine, self.place, gits::CTLR) & gits::QUIESCENT;
                let iidr = read32(machine, self.place, gits::IIDR);
                u64::from(ctlr | u32::from(self.shown.enabled)) | u64::from(iidr) << 32
            }
            gits::TYPER => self.shown.typer,
            gits::CBASER => self.shown.cbaser,
            gits::CWRITER => self.shown.writer,
            gits::CREADR => self.shown.reader | if self.shown.stalled { gits::STALLED } else { 0 },
            _ => match (Self::baser(register), width) {
                (Some(n), _) => self.shown.basers[n],
                (None, Width::Word) if gits::IDENTIFICATION.contains(&offset) => {
                    return Ok(read32(machine, self.place, offset).into());
                }
                _ => 0,
            },
        };
        Ok(part(value, offset, width))
    }

    /// The host stores to a register.
    ///
    /// # Errors
    ///
    /// [`Hung`].
    pub fn store(
        &mut self,
        machine: &mut impl Machine,
        targets: &[Known],
        offset: u32,
        width: Width,
        value: u64,
    ) -> Result<(), Hung> {
        let register = offset & !7;
        match register {
            _ if self.dead => Ok(()),
            gits::CTLR if offset == gits::CTLR => {
                let result = self.enable(machine, value as u32 & gits::ENABLED != 0);
                self.or_dead(machine, result)?;
                self.run(machine, targets)
            }
            // RO while it is enabled.
            gits::CBASER if !self.shown.enabled => {
                let cbaser = merge(self.shown.cbaser, offset, width, value) & gits::CBASER_FIELDS;
                self.shown = Shown {
                    cbaser,
                    reader: 0,
                    writer: 0,
                    stalled: false,
                    ..core::mem::take(&mut self.shown)
                };
                Ok(())
            }
            gits::CWRITER => {
                let writer = merge(self.shown.writer, offset, width, value);
                if writer & gits::RETRY != 0 {
                    self.shown.stalled = false;
                }
                // What lies behind the queue's end is no place in it.
                if writer & gits::QUEUE_OFFSET < self.queue_bytes() {
                    self.shown.writer = writer & gits::QUEUE_OFFSET;
                }
                self.run(machine, targets)
            }
            _ => {
                if let Some(n) = Self::baser(register)
                    && !self.shown.enabled
                {
                    self.set_baser(n, offset, width, value);
                }
                Ok(())
            }
        }
    }

    /// What is to be told now, and never again.
    pub const fn take_news(&mut self) -> Option<News> {
        self.news.take()
    }

    /// Bytes of ITTs and of pages of the table of devices.
    pub fn used(&self) -> u64 {
        self.room.used()
    }

    fn baser(register: u32) -> Option<usize> {
        let n = register.checked_sub(gits::BASER)? as usize / 8;
        (n < gits::BASERS).then_some(n)
    }

    fn set_baser(&mut self, n: usize, offset: u32, width: Width, value: u64) {
        let old = self.shown.basers[n];
        // No table: RES0.
        if old & gits::BASER_FIXED == 0 {
            return;
        }
        let new = merge(old, offset, width, value) & !(gits::BASER_FIXED | gits::INDIRECT);
        self.shown.basers[n] = old & gits::BASER_FIXED | new;
    }

    const fn queue_bytes(&self) -> u64 {
        ((self.shown.cbaser & 0xff) + 1) * PAGE
    }

    /// Does commands of the host's.
    fn run(&mut self, machine: &mut impl Machine, targets: &[Known]) -> Result<(), Hung> {
        if self.dead {
            return Ok(());
        }
        let result = self.commands(machine, targets);
        self.or_dead(machine, result)
    }

    fn commands(&mut self, machine: &mut impl Machine, targets: &[Known]) -> Result<(), Hung> {
        let mut left = COMMANDS_A_TRAP;
        self.zeroed = 0;
        while left > 0
            && self.zeroed < ZEROED_A_TRAP
            && self.shown.enabled
            && self.shown.cbaser & gits::VALID != 0
            && !self.shown.stalled
            && self.shown.reader != self.shown.writer
        {
            let (reader, writer) = (self.shown.reader, self.shown.writer);
            let until = if reader < writer { writer } else { self.queue_bytes() };
            let until = until.min(reader / PAGE * PAGE + PAGE);
            let mut batch = [[0; 4]; BATCH];
            let count = (((until - reader) / COMMAND) as usize).min(BATCH).min(left);
            let batch = &mut batch[..count];
            if !machine.fetch((self.shown.cbaser & gits::CBASER_ADDRESS) + reader, batch) {
                self.shown.stalled = true;
                break;
            }
            for raw in batch {
                // What became of it is nobody's business: an error is ignored.
                let _: Outcome = self.one(machine, targets, raw)?;
                let next = self.shown.reader + COMMAND;
                self.shown.reader = if next == self.queue_bytes() { 0 } else { next };
                // Those behind it are the next access's, as they are then.
                if self.zeroed >= ZEROED_A_TRAP {
                    break;
                }
            }
            left -= count;
        }
        self.flush(machine, targets)
    }

    /// Does a command of the host's.
    fn one(
        &mut self,
        machine: &mut impl Machine,
        targets: &[Known],
        raw: &Raw,
    ) -> Result<Outcome, Hung> {
        let Some(command) = Command::decode(raw) else { return Ok(Outcome::Refused) };
        let encoded = match command {
            Command::MapDevice(id, bits) => return self.map_device(machine, targets, id, bits),
            Command::UnmapDevice(id) => return self.unmap_device(machine, targets, id),
            other => self.encode(targets, other),
        };
        match encoded {
            Some(words) => self.push(machine, targets, words).map(|()| Outcome::Done),
            None => Ok(Outcome::Refused),
        }
    }

    /// A command that names nothing but what there is, in hyp's words.
    fn encode(&self, targets: &[Known], command: Command) -> Option<Raw> {
        let target = |named| self.target(targets, named);
        Some(match command {
            Command::Movi(device, event, icid) => {
                self.event(device, event)?.moved(self.collection(icid)?)
            }
            Command::Int(device, event) => self.event(device, event)?.int(),
            Command::Clear(device, event) => self.event(device, event)?.clear(),
            Command::Inv(device, event) => self.event(device, event)?.inv(),
            Command::Discard(device, event) => self.event(device, event)?.discard(),
            Command::MapEvent(device, event, intid, icid) => {
                let event = self.event(device, event)?;
                let is_lpi = intid.0 >= FIRST_LPI && intid.0 >> self.lpi_bits == 0;
                is_lpi.then_some(event.map(intid.0, self.collection(icid)?))?
            }
            Command::Sync(named) => command::sync(target(named)?),
            Command::MapCollection(icid, named) => {
                command::map_collection(self.collection(icid)?, target(named)?)
            }
            Command::UnmapCollection(icid) => command::unmap_collection(self.collection(icid)?),
            Command::InvAll(icid) => command::inv_all(self.collection(icid)?),
            Command::MovAll(from, to) => command::mov_all(target(from)?, target(to)?),
            Command::MapDevice(..) | Command::UnmapDevice(_) => return None,
        })
    }

    /// The redistributor that the host has named.
    fn target(&self, targets: &[Known], named: RdBase) -> Option<Target> {
        targets.iter().map(|known| self.named(*known)).find(|target| target.is(named))
    }

    const fn named(&self, known: Known) -> Target {
        if self.by_address { Target::by_address(known.pa) } else { Target::by_number(known.number) }
    }

    fn collection(&self, icid: Icid) -> Option<u16> {
        (u32::from(icid.0) < self.collections).then_some(icid.0)
    }

    fn event(&self, device: DeviceId, event: EventId) -> Option<Event> {
        let known = self.devices.get(device.0)?;
        (u64::from(event.0) >> known.bits == 0)
            .then_some(Event { device: device.0, event: event.0 })
    }

    fn map_device(
        &mut self,
        machine: &mut impl Machine,
        targets: &[Known],
        id: DeviceId,
        bits: u32,
    ) -> Result<Outcome, Hung> {
        let id = id.0;
        if bits > self.event_bits || u64::from(id) >> self.device_bits != 0 {
            return Ok(Outcome::Refused);
        }
        let bytes = (self.itt_entry << bits).next_multiple_of(CHUNK);
        let old = self.devices.get(id);
        let has_place = self.devices.has_place_for(id) && self.make_level2(machine, id);
        // With no room for both, the new one may lie where the old one was.
        let new = has_place.then(|| self.room.take(bytes)).flatten();
        let (itt, bytes) = match (new, old) {
            (Some(itt), _) => (itt, bytes),
            (None, Some(old)) if has_place && old.bytes >= bytes => (old.itt, old.bytes),
            _ => {
                if !core::mem::replace(&mut self.exhausted, true) {
                    self.news = Some(News::NoRoom);
                }
                return Ok(Outcome::Refused);
            }
        };
        if let Some(old) = old {
            self.push(machine, targets, command::unmap_device(id))?;
            self.flush(machine, targets)?;
            if old.itt != itt {
                self.room.give_back(old.itt, old.bytes);
            }
        }
        machine.zero(itt, bytes);
        self.zeroed += bytes;
        self.devices.put(Device { id, bits, itt, bytes });
        self.push(machine, targets, command::map_device(id, itt, bits))?;
        Ok(Outcome::Done)
    }

    fn unmap_device(
        &mut self,
        machine: &mut impl Machine,
        targets: &[Known],
        id: DeviceId,
    ) -> Result<Outcome, Hung> {
        // That of none is no error, and nothing.
        if let Some(old) = self.devices.remove(id.0) {
            self.push(machine, targets, command::unmap_device(id.0))?;
            // The hardware has done with the ITT before it is another device's.
            self.flush(machine, targets)?;
            self.room.give_back(old.itt, old.bytes);
        }
        Ok(Outcome::Done)
    }

    /// There is a page for a device's entry. `false`: no room for it.
    fn make_level2(&mut self, machine: &mut impl Machine, id: u32) -> bool {
        let Some(Level2 { page, devices, present }) = &mut self.level2 else { return true };
        // Within the table: the device's number was checked.
        let n = (u64::from(id) / *devices) as usize;
        let Some(word) = present.get_mut(n / 64) else { return false };
        if *word >> (n % 64) & 1 == 1 {
            return true;
        }
        let Some(pa) = self.room.take_page(*page) else { return false };
        machine.zero(pa, *page);
        self.zeroed += *page;
        machine.store(self.devices_table.pa + 8 * n as u64, &[gits::VALID | pa]);
        *word |= 1 << (n % 64);
        true
    }
}
