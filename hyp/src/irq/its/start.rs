//! An ITS when the machine boots: how large its tables are, and that it has no others than hyp's.

#![forbid(unsafe_code)]

use super::{Its, LEVEL1, Level2, QUEUE_BYTES, Shown, Table};
use crate::irq::itts::{Device, Devices, Room};
use crate::irq::machine::{Machine, Place, read32, read64, wait, write32, write64};
use crate::irq::registers::{ITS_CACHEABILITY, ITS_NON_CACHEABLE, ITS_NORMAL, SHAREABILITY, gits};
use thiserror::Error;

/// Bytes of a table of devices with one level, where there could be two.
const FLAT: u64 = 64 << 10;
/// Bytes of one where there could not.
const FLAT_ONLY: u64 = 512 << 10;

/// Why hyp can't serve an ITS. The host finds nothing there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Unfit {
    #[error("there is no ITS")]
    NoIts,
    #[error("it does not stop")]
    Restless,
    #[error("it has no physical LPIs")]
    NoLpis,
    #[error("it has no table of devices that hyp knows")]
    NoDevices,
    #[error("it has no collections")]
    NoCollections,
    #[error("it does not take the tables that hyp gives it")]
    Stubborn,
    #[error("its tables need more memory than hyp has set aside")]
    NoRoom,
}

/// Memory that is handed out from its start.
struct Area {
    next: u64,
    end: u64,
}

impl Area {
    fn take(&mut self, bytes: u64, align: u64) -> Result<u64, Unfit> {
        let start = self.next.next_multiple_of(align);
        let end = start.checked_add(bytes).filter(|&end| end <= self.end).ok_or(Unfit::NoRoom)?;
        self.next = end;
        Ok(start)
    }
}

/// Takes an ITS away from whoever had it, for good.
///
/// # Errors
///
/// If it goes on translating.
pub fn stop(machine: &mut impl Machine, place: Place) -> Result<(), Unfit> {
    write32(machine, place, gits::CTLR, 0);
    let stopped = |ctlr| ctlr & gits::ENABLED == 0 && ctlr & gits::QUIESCENT != 0;
    if wait(machine, place, gits::CTLR, stopped) { Ok(()) } else { Err(Unfit::Restless) }
}

/// Writes a table's register; what the hardware makes of it. Where it doesn't share caches it is told not to use any.
fn set(machine: &mut impl Machine, place: Place, register: u32, value: u64) -> u64 {
    write64(machine, place, register, value | ITS_NORMAL);
    let found = read64(machine, place, register);
    if found & SHAREABILITY != 0 {
        return found;
    }
    let value = value & !SHAREABILITY & !ITS_CACHEABILITY | ITS_NON_CACHEABLE;
    write64(machine, place, register, value);
    read64(machine, place, register)
}

/// Bits that counting up to `n` takes, at most `limit`.
const fn bits_within(n: u64, limit: u32) -> u32 {
    let bits = n.ilog2();
    if bits < limit { bits } else { limit }
}

impl<'a> Its<'a> {
    /// Starts one: stopped, with tables of hyp's own in `area` (which is zero), as many devices as `devices` has
    /// places, LPIs of `lpi_bits` bits.
    ///
    /// # Errors
    ///
    /// If hyp can't serve it. Then it is stopped if that is possible ([`Unfit::Restless`] if not), and has no
    /// table.
    pub fn start(
        machine: &mut impl Machine,
        place: Place,
        area: (u64, u64),
        devices: &'a mut [Device],
        lpi_bits: u32,
    ) -> Result<Self, Unfit> {
        if !matches!(read32(machine, place, gits::PIDR2) >> 4 & 0xf, 3 | 4) {
            return Err(Unfit::NoIts);
        }
        stop(machine, place)?;
        // Whatever tables there are, and the queue, are nobody's from now on.
        let registers: [u32; gits::BASERS] = core::array::from_fn(|n| gits::BASER + 8 * n as u32);
        for register in registers {
            write64(machine, place, register, 0);
        }
        write64(machine, place, gits::CBASER, 0);
        let typer = read64(machine, place, gits::TYPER);
        if typer & 1 == 0 {
            return Err(Unfit::NoLpis);
        }
        let find = |machine: &mut _, kind| {
            registers
                .into_iter()
                .enumerate()
                .map(|(n, register)| (n, read64(machine, place, register)))
                .find(|(_, baser)| gits::table(*baser) == kind)
        };
        let mut area = Area { next: area.0, end: area.1 };
        let queue = area.take(QUEUE_BYTES, QUEUE_BYTES)?;
        let (devices_table, level2, device_bits) = {
            let (n, fixed) = find(machine, gits::DEVICES).ok_or(Unfit::NoDevices)?;
            Self::device_table(
                machine,
                place,
                n,
                fixed,
                &mut area,
                (typer >> 13 & 0x1f) as u32 + 1,
            )?
        };
        let collection_bits =
            if typer >> 36 & 1 == 1 { (typer >> 32 & 0xf) as u32 + 1 } else { 16 };
        let in_hardware = typer >> 24 & 0xff;
        let (collections_table, entries) = match find(machine, gits::COLLECTIONS) {
            Some((n, fixed)) => {
                let table = Self::table(machine, place, n, &mut area, 1, 0)?;
                let entries = table.bytes / gits::entry_bytes(fixed);
                (Some(table), entries)
            }
            None => (None, in_hardware),
        };
        if entries < 2 {
            return Err(Unfit::NoCollections);
        }
        let collection_bits = bits_within(entries, collection_bits);
        let value = gits::VALID | queue;
        let cbaser = set(machine, place, gits::CBASER, value);
        if cbaser & (gits::VALID | gits::CBASER_ADDRESS) != value {
            return Err(Unfit::Stubborn);
        }
        write64(machine, place, gits::CWRITER, 0);
        let event_bits = ((typer >> 8 & 0x1f) as u32 + 1).min(lpi_bits);
        // Physical, CCT, ITT_entry_size, SEIS, PTA, HCC as they are.
        let kept = typer & (1 | 1 << 2 | 0xf << 4 | 1 << 18 | 1 << 19 | 0xff << 24);
        let shown = kept
            | u64::from(event_bits - 1) << 8
            | u64::from(device_bits - 1) << 13
            | 1 << 36
            | u64::from(collection_bits - 1) << 32;
        let mut basers = [0; gits::BASERS];
        for table in [Some(devices_table), collections_table].into_iter().flatten() {
            basers[table.n] = table.baser & gits::BASER_FIXED;
        }
        let room = Room::new(area.next.next_multiple_of(QUEUE_BYTES), {
            area.end.saturating_sub(area.next.next_multiple_of(QUEUE_BYTES))
        });
        Ok(Self {
            place,
            shown: Shown { typer: shown, basers, ..Shown::default() },
            by_address: typer >> 19 & 1 == 1,
            event_bits,
            device_bits,
            lpi_bits,
            collections: 1 << collection_bits,
            itt_entry: (typer >> 4 & 0xf) + 1,
            queue,
            cbaser,
            writer: 0,
            done: 0,
            about_devices: 0,
            zeroed: 0,
            devices_table,
            level2,
            collections_table,
            room,
            devices: Devices::new(devices),
            exhausted: false,
            dead: false,
            news: None,
        })
    }

    /// Gives the hardware a table of `pages` pages, of the smallest size that it takes.
    fn table(
        machine: &mut impl Machine,
        place: Place,
        n: usize,
        area: &mut Area,
        pages: u64,
        indirect: u64,
    ) -> Result<Table, Unfit> {
        let register = gits::BASER + 8 * n as u32;
        let size = read64(machine, place, register) & gits::PAGE_SIZE;
        let page = gits::page_bytes(size);
        let bytes = pages * page;
        let pa = area.take(bytes, page)?;
        let value = gits::VALID | indirect | pa | size | (pages - 1);
        let baser = set(machine, place, register, value);
        let asked = gits::VALID | gits::INDIRECT | 0xffff_ffff_f000 | gits::PAGE_SIZE | 0xff;
        if (baser ^ value) & asked != 0 {
            write64(machine, place, register, 0);
            return Err(Unfit::Stubborn);
        }
        Ok(Table { n, baser, pa, bytes })
    }

    /// The table of devices, for as many as `bits` bits number, or fewer.
    fn device_table(
        machine: &mut impl Machine,
        place: Place,
        n: usize,
        fixed: u64,
        area: &mut Area,
        bits: u32,
    ) -> Result<(Table, Option<Level2>, u32), Unfit> {
        let register = gits::BASER + 8 * n as u32;
        write64(machine, place, register, gits::INDIRECT);
        let found = read64(machine, place, register);
        write64(machine, place, register, 0);
        let (page, entry) = (gits::page_bytes(found), gits::entry_bytes(fixed));
        let two = found & gits::INDIRECT != 0 && entry << bits > FLAT;
        if !two {
            let limit = if found & gits::INDIRECT != 0 { FLAT } else { FLAT_ONLY };
            let bits = bits_within(limit / entry, bits);
            let pages = (entry << bits).div_ceil(page);
            let table = Self::table(machine, place, n, area, pages, 0)?;
            return Ok((table, None, bits));
        }
        let devices = page / entry;
        let bits = bits_within(devices * LEVEL1 as u64, bits);
        let pages = ((1u64 << bits).div_ceil(devices) * 8).div_ceil(page);
        let table = Self::table(machine, place, n, area, pages, gits::INDIRECT)?;
        let level2 = Level2 { page, devices, present: [0; LEVEL1 / 64] };
        Ok((table, Some(level2), bits))
    }
}
