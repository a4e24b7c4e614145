//! A simulated GIC: redistributors and an ITS that do what their registers and commands say, whatever address that
//! is. Each access of theirs to memory is judged: they read and write tables of hyp's, and read configuration tables
//! whose pages are pinned.

mod power;

use crate::irq::command::Raw;
use crate::irq::machine::{Machine, Place};
use crate::irq::registers::{Width, gicr, gits, merge, part};
use std::collections::{BTreeMap, BTreeSet};

/// What hyp gives the GIC.
pub const HYP: (u64, u64) = (0x8000_0000, 0x8040_0000);
/// RAM of the host's.
pub const HOST: (u64, u64) = (0x4000_0000, 0x4100_0000);
/// A page of RAM that is a protected guest's.
pub const SECRET: u64 = 0x4080_0000;
/// Redistributors' frames.
pub const RD: u64 = 0x80a_0000;

/// What an ITS is like.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// GITS_TYPER.
    pub typer: u64,
    /// GITS_BASER as it is at reset: type and size of entries, and the page size that it has.
    pub basers: [u64; 8],
    /// It takes pages of one size only.
    pub one_page_size: bool,
    /// Tables may have two levels.
    pub indirect: bool,
    /// An error stalls it.
    pub stalls: bool,
    /// It shares no caches.
    pub non_coherent: bool,
}

const DEVICE: u64 = 1 << 56 | 7 << 48;
const COLLECTION: u64 = 4 << 56 | 7 << 48;
const TYPER: u64 = 1 | 11 << 4 | 15 << 8 | 15 << 13;

/// As QEMU's is.
pub const PLAIN: Model = Model {
    typer: TYPER | 1 << 36 | 15 << 32,
    basers: [DEVICE | 2 << 8, COLLECTION | 2 << 8, 0, 0, 0, 0, 0, 0],
    one_page_size: false,
    indirect: true,
    stalls: false,
    non_coherent: false,
};

/// ITSs of all kinds.
pub const MODELS: [Model; 5] = [
    PLAIN,
    Model { stalls: true, typer: PLAIN.typer | 1 << 19, ..PLAIN },
    Model {
        one_page_size: true,
        non_coherent: true,
        basers: [0, COLLECTION | 2 << 8, DEVICE | 2 << 8, 2 << 56 | 7 << 48, 0, 0, 0, 0],
        typer: 1 | 1 << 1 | 7 << 4 | 15 << 8 | 19 << 13 | 1 << 37 | 1 << 39,
        ..PLAIN
    },
    Model { indirect: false, stalls: true, ..PLAIN },
    Model {
        basers: [DEVICE | 1 << 8, 0, 0, 0, 0, 0, 0, 0],
        typer: 1 | 3 << 4 | 9 << 8 | 7 << 13 | 16 << 24,
        ..PLAIN
    },
];

/// A redistributor.
#[derive(Clone, Debug, Default)]
pub struct SimRedistributor {
    pub ctlr: u32,
    pub waker: u32,
    pub propbaser: u64,
    pub pendbaser: u64,
    /// EnableLPIs can't be cleared.
    pub sticky: bool,
    /// Stores that reached it, of registers beside these.
    pub stores: Vec<(u32, u64)>,
}

#[derive(Debug)]
pub struct Sim {
    pub model: Model,
    memory: BTreeMap<u64, u8>,
    pub redistributors: Vec<SimRedistributor>,
    /// Pages that nobody gives away any more.
    pub pinned: BTreeSet<u64>,
    /// GICR_TYPER of all redistributors.
    pub typer: u64,
    /// Loads of their registers, in order.
    pub loads: Vec<(u32, Width)>,
    /// What the GIC did that it must not.
    pub violations: Vec<String>,
    /// Commands that hyp has read since somebody asked.
    pub fetched: usize,
    /// Commands that the hardware has done.
    pub done: Vec<Raw>,
    /// The hardware has stopped taking commands.
    pub hung: bool,
    /// It isn't quiescent, ever.
    pub restless: bool,
    /// A MAPD is an error.
    pub refuses_devices: bool,
    /// Bytes that hyp has zeroed since somebody asked.
    pub zeroed: u64,
    /// Behind the last byte of an ITT that a MAPD has named; the first byte that was a page of the table of devices.
    itts_end: u64,
    pages_start: u64,
    ctlr: u32,
    cbaser: u64,
    writer: u64,
    reader: u64,
    stalled: bool,
    basers: [u64; 8],
}

/// An error in a command.
struct Bad;

impl Sim {
    pub fn new(model: Model, cpus: usize) -> Self {
        Self {
            model,
            memory: BTreeMap::new(),
            redistributors: vec![SimRedistributor::default(); cpus],
            pinned: BTreeSet::new(),
            loads: Vec::new(),
            typer: gicr::TYPER_PLPIS | gicr::TYPER_DIRECT_LPI | gicr::TYPER_RVPEID,
            violations: Vec::new(),
            fetched: 0,
            done: Vec::new(),
            hung: false,
            restless: false,
            refuses_devices: false,
            zeroed: 0,
            itts_end: 0,
            pages_start: u64::MAX,
            ctlr: 0,
            cbaser: 0,
            writer: 0,
            reader: 0,
            stalled: false,
            basers: model.basers,
        }
    }

    pub fn byte(&self, pa: u64) -> u8 {
        self.memory.get(&pa).copied().unwrap_or(0)
    }

    pub fn set_byte(&mut self, pa: u64, value: u8) {
        if value == 0 {
            self.memory.remove(&pa);
        } else {
            self.memory.insert(pa, value);
        }
    }

    fn word(&self, pa: u64, bytes: u64) -> u64 {
        (0..bytes.min(8)).map(|n| u64::from(self.byte(pa.wrapping_add(n))) << (8 * n)).sum()
    }

    fn set_word(&mut self, pa: u64, bytes: u64, value: u64) {
        for n in 0..bytes.min(8) {
            self.set_byte(pa.wrapping_add(n), (value >> (8 * n)) as u8);
        }
    }

    pub fn host_store(&mut self, pa: u64, words: &[u64]) {
        for (n, word) in words.iter().enumerate() {
            self.set_word(pa + 8 * n as u64, 8, *word);
        }
    }

    fn is_hyps(pa: u64, bytes: u64) -> bool {
        pa >= HYP.0 && pa.checked_add(bytes).is_some_and(|end| end <= HYP.1)
    }

    fn gic_read(&mut self, what: &str, pa: u64, bytes: u64) -> u64 {
        if !Self::is_hyps(pa, bytes) {
            self.violations.push(format!("{what} read at {pa:#x}"));
        }
        self.word(pa, bytes)
    }

    fn gic_write(&mut self, what: &str, pa: u64, bytes: u64, value: u64) {
        if !Self::is_hyps(pa, bytes) {
            self.violations.push(format!("{what} written at {pa:#x}"));
        }
        self.set_word(pa, bytes, value);
    }

    pub fn is_hosts(pa: u64) -> bool {
        pa >= HOST.0 && pa < HOST.1 && pa & !0xfff != SECRET
    }

    /// Whether an LPI is pending there.
    pub fn is_pending(&self, cpu: usize, intid: u64) -> bool {
        let table = self.redistributors[cpu].pendbaser & gicr::PENDBASER_ADDRESS;
        self.byte(table + intid / 8) >> (intid % 8) & 1 == 1
    }

    fn set_pending(&mut self, cpu: usize, intid: u64, pending: bool) {
        let redistributor = &self.redistributors[cpu];
        if redistributor.ctlr & gicr::ENABLE_LPIS == 0 {
            return;
        }
        let bits = (redistributor.propbaser & 0x1f) + 1;
        if intid >> bits != 0 || intid < 8192 {
            return;
        }
        let configuration = (redistributor.propbaser & gicr::PROPBASER_ADDRESS) + intid - 8192;
        let table = (redistributor.pendbaser & gicr::PENDBASER_ADDRESS) + intid / 8;
        if !self.pinned.contains(&(configuration & !0xfff)) {
            self.violations.push(format!("configuration read at {configuration:#x}"));
        }
        let old = self.gic_read("pending table", table, 1);
        let bit = 1 << (intid % 8);
        let new = if pending { old | bit } else { old & !bit };
        self.gic_write("pending table", table, 1, new);
    }

    fn baser(&self, kind: u64) -> Option<u64> {
        self.basers
            .into_iter()
            .find(|&baser| gits::table(baser) == kind && baser & gits::VALID != 0)
    }

    /// Where an entry of a table is.
    fn entry(&mut self, kind: u64, n: u64) -> Result<u64, Bad> {
        let baser = self.baser(kind).ok_or(Bad)?;
        let (page, entry) = (gits::page_bytes(baser), gits::entry_bytes(baser));
        let mut base = baser & 0xffff_ffff_f000;
        if page == 64 << 10 {
            base = baser & 0xffff_ffff_0000;
        }
        let bytes = ((baser & 0xff) + 1) * page;
        if baser & gits::INDIRECT == 0 {
            return if (n + 1) * entry <= bytes { Ok(base + n * entry) } else { Err(Bad) };
        }
        let per_page = page / entry;
        if (n / per_page + 1) * 8 > bytes {
            return Err(Bad);
        }
        let first = self.gic_read("level 1", base + n / per_page * 8, 8);
        if first & gits::VALID == 0 {
            return Err(Bad);
        }
        self.pages_start = self.pages_start.min(first & 0xf_ffff_ffff_f000);
        Ok((first & 0xf_ffff_ffff_f000) + n % per_page * entry)
    }

    /// Entries: of a device the ITT, its bits and valid (bit 0 to 7); of an event its interrupt and collection, and
    /// valid.
    fn device(&mut self, id: u64) -> Result<(u64, u64), Bad> {
        let at = self.entry(gits::DEVICES, id)?;
        let entry = self.gic_read("table of devices", at, 8);
        if entry & 0x80 == 0 { Err(Bad) } else { Ok((entry & !0xff, entry & 0x3f)) }
    }

    fn itt_entry_bytes(&self) -> u64 {
        (self.model.typer >> 4 & 0xf) + 1
    }

    fn event(&mut self, raw: &Raw) -> Result<(u64, u64, u64), Bad> {
        let (itt, bits) = self.device(raw[0] >> 32)?;
        let event = raw[1] & 0xffff_ffff;
        if event >> bits != 0 {
            return Err(Bad);
        }
        let at = itt + event * self.itt_entry_bytes();
        // 16 bits of interrupt, 15 of collection, valid.
        let entry = self.gic_read("ITT", at, 4);
        Ok((at, entry, entry >> 31))
    }

    fn target(&mut self, field: u64) -> Result<usize, Bad> {
        let by_address = self.model.typer >> 19 & 1 == 1;
        let field = field & 0xf_ffff_ffff_0000;
        let cpu = if by_address { field.wrapping_sub(RD) / 0x2_0000 } else { field >> 16 };
        let aligned = !by_address || field.wrapping_sub(RD).is_multiple_of(0x2_0000);
        if !aligned || cpu >= self.redistributors.len() as u64 {
            self.violations.push(format!("a redistributor at {field:#x}"));
            return Err(Bad);
        }
        Ok(cpu as usize)
    }

    /// Collections: in hardware as many as HCC, beyond in a table.
    fn collection_at(&mut self, icid: u64) -> Result<u64, Bad> {
        if self.baser(gits::COLLECTIONS).is_none() {
            let count = self.model.typer >> 24 & 0xff;
            // Somewhere in the hardware.
            return if icid < count { Ok(HYP.1 - 0x1000 + 8 * icid) } else { Err(Bad) };
        }
        self.entry(gits::COLLECTIONS, icid)
    }

    fn collection(&mut self, icid: u64) -> Result<usize, Bad> {
        let at = self.collection_at(icid)?;
        let entry = self.gic_read("table of collections", at, 8);
        if entry & 0x80 == 0 { Err(Bad) } else { Ok((entry & 0x7f) as usize) }
    }

    fn command(&mut self, raw: &Raw) -> Result<(), Bad> {
        let valid = raw[2] >> 63 == 1;
        let icid = raw[2] & 0xffff;
        match raw[0] & 0xff {
            0x08 if self.refuses_devices => return Err(Bad),
            0x08 => {
                let at = self.entry(gits::DEVICES, raw[0] >> 32)?;
                let entry = if valid {
                    raw[2] & 0xf_ffff_ffff_ff00 | 0x80 | ((raw[1] & 0x1f) + 1)
                } else {
                    0
                };
                self.gic_write("table of devices", at, 8, entry);
                if valid {
                    let bytes = self.itt_entry_bytes() << ((raw[1] & 0x1f) + 1);
                    self.itts_end = self.itts_end.max((raw[2] & 0xf_ffff_ffff_ff00) + bytes);
                }
                if self.itts_end > self.pages_start {
                    self.violations.push(format!("an ITT where devices are at {at:#x}"));
                }
            }
            0x09 => {
                let at = self.collection_at(icid)?;
                let entry = if valid { 0x80 | self.target(raw[2])? as u64 } else { 0 };
                self.gic_write("table of collections", at, 8, entry);
            }
            0x0a => {
                let (at, ..) = self.event(raw)?;
                self.collection_at(icid)?;
                let entry = 1 << 31 | icid << 16 | raw[1] >> 32 & 0xffff;
                if raw[1] >> 48 != 0 || raw[1] >> 32 < 8192 {
                    self.violations.push(format!("interrupt {:#x} is mapped", raw[1] >> 32));
                }
                self.gic_write("ITT", at, 4, entry);
            }
            command @ (0x01 | 0x03 | 0x04 | 0x0c | 0x0f) => {
                let (at, entry, mapped) = self.event(raw)?;
                if mapped == 0 {
                    return Err(Bad);
                }
                let (intid, cpu) = (entry & 0xffff, self.collection(entry >> 16 & 0x7fff)?);
                match command {
                    0x01 => {
                        let to = self.collection(icid)?;
                        let pending = self.is_pending(cpu, intid);
                        self.set_pending(cpu, intid, false);
                        self.set_pending(to, intid, pending);
                        self.gic_write("ITT", at, 4, 1 << 31 | icid << 16 | intid);
                    }
                    0x03 => self.set_pending(cpu, intid, true),
                    0x0c => {}
                    _ => {
                        self.set_pending(cpu, intid, false);
                        if command == 0x0f {
                            self.gic_write("ITT", at, 4, 0);
                        }
                    }
                }
            }
            0x0d => {
                self.collection(icid)?;
            }
            0x05 => {
                self.target(raw[2])?;
            }
            0x0e => {
                let (from, to) = (self.target(raw[2])?, self.target(raw[3])?);
                for intid in 8192..8192 + 64 {
                    if self.is_pending(from, intid) {
                        self.set_pending(from, intid, false);
                        self.set_pending(to, intid, true);
                    }
                }
            }
            other => self.violations.push(format!("command {other:#x}")),
        }
        Ok(())
    }

    fn run(&mut self) {
        let size = ((self.cbaser & 0xff) + 1) * 4096;
        while self.ctlr & 1 == 1
            && self.cbaser & gits::VALID != 0
            && !self.stalled
            && !self.hung
            && self.reader != self.writer
        {
            let at = (self.cbaser & gits::CBASER_ADDRESS) + self.reader;
            let raw = core::array::from_fn(|n| self.gic_read("queue", at + 8 * n as u64, 8));
            if self.command(&raw).is_err() && self.model.stalls {
                self.stalled = true;
                return;
            }
            self.done.push(raw);
            self.reader = (self.reader + 32) % size;
        }
    }

    fn read_its(&self, offset: u32) -> u64 {
        match offset {
            gits::CTLR => {
                let quiescent = if self.restless { 0 } else { gits::QUIESCENT };
                u64::from(self.ctlr | quiescent) | 0x43b << 32
            }
            gits::TYPER => self.model.typer,
            gits::CBASER => self.cbaser,
            gits::CWRITER => self.writer,
            gits::CREADR => self.reader | u64::from(self.stalled),
            0xffe8 => 0x3b,
            0x100..=0x138 => self.basers[(offset as usize - 0x100) / 8],
            _ => 0,
        }
    }

    fn write_its(&mut self, offset: u32, width: Width, value: u64) {
        let register = offset & !7;
        let new = merge(self.read_its(register), offset, width, value);
        // Without coherency, whatever is asked for.
        let unshared = if self.model.non_coherent { !(3 << 10) } else { u64::MAX };
        match register {
            gits::CTLR if offset == 0 => self.ctlr = value as u32 & 1,
            gits::CBASER if self.ctlr & 1 == 0 => (self.cbaser, self.reader) = (new & unshared, 0),
            gits::CWRITER => {
                self.writer = new & gits::QUEUE_OFFSET;
                if new & gits::RETRY != 0 {
                    self.stalled = false;
                }
            }
            0x100..=0x138 if self.ctlr & 1 == 0 => {
                let n = (register as usize - 0x100) / 8;
                let fixed =
                    gits::BASER_FIXED | if self.model.one_page_size { gits::PAGE_SIZE } else { 0 };
                let fixed =
                    if self.model.basers[n] & gits::BASER_FIXED == 0 { u64::MAX } else { fixed };
                let indirect = if self.model.indirect { u64::MAX } else { !gits::INDIRECT };
                self.basers[n] = self.model.basers[n] & fixed | new & !fixed & unshared & indirect;
            }
            _ => {}
        }
        self.run();
    }
}

impl Machine for Sim {
    fn read(&mut self, place: Place, offset: u32, width: Width) -> u64 {
        match place {
            Place::Its(_) => part(self.read_its(offset & !7), offset, width),
            Place::Redistributor(n) => {
                self.loads.push((offset, width));
                let this = &self.redistributors[n];
                let register = match offset & !7 {
                    0 => u64::from(this.ctlr),
                    8 => self.typer,
                    0x10 => u64::from(this.waker) << 32,
                    gicr::PROPBASER => this.propbaser,
                    gicr::PENDBASER => this.pendbaser,
                    _ => 0,
                };
                part(register, offset, width)
            }
        }
    }

    fn write(&mut self, place: Place, offset: u32, width: Width, value: u64) {
        let Place::Redistributor(n) = place else { return self.write_its(offset, width, value) };
        let this = &mut self.redistributors[n];
        match offset & !7 {
            0 if offset == 0 => {
                let sticky = if this.sticky { this.ctlr & 1 } else { 0 };
                this.ctlr = value as u32 & 0x0700_0001 | sticky;
                if this.ctlr & 1 == 1 {
                    // What it reads at once.
                    let (pending, configuration) = (
                        this.pendbaser & gicr::PENDBASER_ADDRESS,
                        this.propbaser & gicr::PROPBASER_ADDRESS,
                    );
                    let bits = (this.propbaser & 0x1f) + 1;
                    self.gic_read("pending table", pending, 1 << bits >> 3);
                    let pages = (1u64 << bits).saturating_sub(8192).div_ceil(4096);
                    for page in (0..pages).map(|n| configuration + 4096 * n) {
                        if !self.pinned.contains(&page) {
                            self.violations.push(format!("configuration table at {page:#x}"));
                        }
                    }
                }
            }
            0x10 if offset == gicr::WAKER => this.waker = value as u32,
            gicr::PROPBASER => this.propbaser = merge(this.propbaser, offset, width, value),
            gicr::PENDBASER => this.pendbaser = merge(this.pendbaser, offset, width, value),
            _ => this.stores.push((offset, value)),
        }
    }

    fn zero(&mut self, pa: u64, bytes: u64) {
        assert!(Self::is_hyps(pa, bytes), "hyp zeroes {pa:#x}");
        self.zeroed += bytes;
        self.memory.retain(|at, _| !(pa..pa + bytes).contains(at));
    }

    fn store(&mut self, pa: u64, words: &[u64]) {
        assert!(Self::is_hyps(pa, 8 * words.len() as u64), "hyp stores to {pa:#x}");
        self.host_store(pa, words);
    }

    fn fetch(&mut self, pa: u64, commands: &mut [Raw]) -> bool {
        self.fetched += commands.len();
        let last = pa + 32 * commands.len() as u64 - 1;
        assert_eq!(pa & !0xfff, last & !0xfff, "in one page");
        if !Self::is_hosts(pa) {
            return false;
        }
        for (n, word) in commands.as_flattened_mut().iter_mut().enumerate() {
            *word = self.word(pa + 8 * n as u64, 8);
        }
        true
    }

    fn pin(&mut self, pa: u64, pages: u64) -> bool {
        let all = (0..pages).map(|n| pa + 4096 * n);
        let hosts = all.clone().all(Self::is_hosts);
        if hosts {
            self.pinned.extend(all);
        }
        hosts
    }
}
