//! One ITS: what becomes of a host's registers and commands.

use super::sim::{HYP, MODELS, Model, PLAIN, RD, SECRET, Sim};
use crate::irq::command::Raw;
use crate::irq::its::{COMMANDS_A_TRAP, Hung, Its, Known, News, Unfit};
use crate::irq::itts::Device;
use crate::irq::machine::Place;
use crate::irq::redistributor::Redistributors;
use crate::irq::registers::{Width, gicr, gits};

pub const CPUS: usize = 3;
pub const QUEUE: u64 = 0x4020_0000;
const HERE: Place = Place::Its(0);

/// A host and its GIC.
pub struct Host {
    pub sim: Sim,
    pub its: Its<'static>,
    pub redistributors: Redistributors,
    pub targets: Vec<Known>,
    writer: u64,
}

pub fn start(sim: &mut Sim, devices: usize, bytes: u64) -> Result<Its<'static>, Unfit> {
    let devices = Vec::leak(vec![Device::default(); devices]);
    let area = (HYP.0 + 0x10_0000, HYP.0 + 0x10_0000 + bytes);
    Its::start(sim, HERE, area, devices, 16)
}

impl Host {
    pub fn new(model: Model) -> Self {
        Self::with(model, 64, 1 << 20)
    }

    pub fn with(model: Model, devices: usize, bytes: u64) -> Self {
        let mut sim = Sim::new(model, CPUS);
        let mut redistributors = Redistributors::new();
        redistributors.set_lpi_bits(16);
        for n in 0..CPUS as u64 {
            redistributors.add(&mut sim, Some(HYP.0 + n * 0x1_0000)).unwrap();
        }
        let its = start(&mut sim, devices, bytes).unwrap();
        let known = |n| Known { pa: RD + n * 0x2_0000, number: n as u16 };
        let targets = (0..CPUS as u64).map(known).collect();
        let mut host = Self { sim, its, redistributors, targets, writer: 0 };
        for n in 0..CPUS {
            let store = |host: &mut Self, offset, value| {
                host.redistributors.store(&mut host.sim, n, offset, Width::Doubleword, value);
            };
            store(&mut host, gicr::PROPBASER, 0x4010_0000 | 15);
            store(&mut host, gicr::CTLR, 1);
        }
        host
    }

    /// As most hosts begin.
    pub fn enabled(model: Model) -> Self {
        let mut host = Self::new(model);
        host.enable();
        host
    }

    pub fn enable(&mut self) {
        self.store(gits::CBASER, gits::VALID | QUEUE);
        self.store(gits::CWRITER, 0);
        self.writer = 0;
        self.store(gits::CTLR, 1);
    }

    pub fn try_store(&mut self, offset: u32, width: Width, value: u64) -> Result<(), Hung> {
        self.its.store(&mut self.sim, &self.targets, offset, width, value)
    }

    pub fn store(&mut self, offset: u32, value: u64) {
        self.try_store(offset, Width::Doubleword, value).unwrap();
    }

    pub fn load(&mut self, offset: u32) -> u64 {
        self.its.load(&mut self.sim, &self.targets, offset, Width::Doubleword).unwrap()
    }

    /// Puts commands into the queue, and returns what the hardware was given.
    pub fn send(&mut self, commands: &[Raw]) -> Vec<Raw> {
        self.sim.done.clear();
        for raw in commands {
            self.sim.host_store(QUEUE + self.writer, raw);
            self.writer = (self.writer + 32) % 4096;
        }
        self.store(gits::CWRITER, self.writer);
        for _ in 0..100 {
            if self.load(gits::CREADR) == self.writer {
                break;
            }
        }
        assert_eq!(self.load(gits::CREADR), self.writer);
        assert_eq!(self.sim.violations, Vec::<String>::new());
        self.sim.done.clone()
    }

    pub fn rd(&self, cpu: u64) -> u64 {
        if self.sim.model.typer >> 19 & 1 == 1 { RD + cpu * 0x2_0000 } else { cpu << 16 }
    }

    /// A device with an event, at a CPU.
    pub fn map(&mut self, device: u64, event: u64, intid: u64, cpu: u64) -> usize {
        let icid = cpu + 1;
        let mapc = [0x09, 0, 1 << 63 | self.rd(cpu) | icid, 0];
        let mapd = mapd(device, 4, SECRET);
        let mapti = [device << 32 | 0x0a, intid << 32 | event, icid, 0];
        self.send(&[mapc, mapd, mapti, [0x05, 0, self.rd(cpu), 0]]).len()
    }

    pub fn pending(&self, intid: u64) -> Vec<usize> {
        (0..CPUS).filter(|&cpu| self.sim.is_pending(cpu, intid)).collect()
    }
}

pub fn mapd(device: u64, bits: u64, itt: u64) -> Raw {
    [device << 32 | 0x08, bits - 1, 1 << 63 | itt, 0]
}

pub fn event(command: u64, device: u64, event: u64) -> Raw {
    [device << 32 | command, event, 0, 0]
}

#[test]
fn interrupts_arrive_on_every_kind_of_its() {
    for model in MODELS {
        let mut host = Host::enabled(model);
        for cpu in 0..CPUS as u64 {
            assert_eq!(host.map(7 + cpu, 3, 8200 + cpu, cpu), 4, "{model:?}");
            host.send(&[event(0x03, 7 + cpu, 3)]);
            assert_eq!(host.pending(8200 + cpu), [cpu as usize], "INT, {model:?}");
        }
        host.send(&[[7 << 32 | 0x01, 3, 3, 0]]);
        assert_eq!(host.pending(8200), [2], "MOVI");
        host.send(&[event(0x04, 7, 3)]);
        assert!(host.pending(8200).is_empty(), "CLEAR");
        host.send(&[event(0x03, 7, 3), [0x0e, 0, host.rd(2), host.rd(0)]]);
        assert_eq!(host.pending(8200), [0], "MOVALL");
        assert_eq!(host.send(&[event(0x0c, 8, 3), [0x0d, 0, 2, 0]]).len(), 2, "INV and INVALL");
        host.send(&[event(0x0f, 8, 3), event(0x03, 8, 3)]);
        assert!(host.pending(8201).is_empty(), "DISCARD");
        host.send(&[[7 << 32 | 0x08, 0, 0, 0]]);
        assert!(host.send(&[event(0x03, 7, 3)]).is_empty(), "MAPD without V");
    }
}

#[test]
fn r38_attack_every_address_that_a_command_names() {
    for model in MODELS {
        let mut host = Host::enabled(model);
        host.map(7, 0, 8192, 0);
        for pa in [SECRET, HYP.0, 0, 0xf_ffff_ffff_0000, RD + 0x1_0000, 3 << 16] {
            for valid in [0, 1 << 63] {
                host.send(&[
                    mapd(7, 16, pa),
                    [0x09, 0, valid | pa | 1, 0],
                    [0x05, 0, pa, 0],
                    [0x0e, 0, pa, 0],
                    [0x0e, 0, host.rd(1), pa],
                    event(0x03, 7, 0),
                ]);
            }
        }
    }
}

#[test]
fn what_is_out_of_range_is_an_error_and_ignored() {
    for model in MODELS {
        let mut host = Host::enabled(model);
        let typer = host.load(gits::TYPER);
        let devices = 1 << ((typer >> 13 & 0x1f) + 1);
        let collections = 1 << ((typer >> 32 & 0xf) + 1);
        assert_eq!(typer >> 36 & 1, 1);
        host.map(7, 0, 8192, 0);
        let mapti = |event, intid: u64, icid| [7 << 32 | 0x0a, intid << 32 | event, icid, 0];
        let bad = [
            mapd(devices, 4, 0),
            mapd(0xffff_ffff, 4, 0),
            mapd(8, 17, 0),
            mapd(8, 32, 0),
            mapti(16, 8192, 1),
            mapti(0xffff_ffff, 8192, 1),
            mapti(0, 8191, 1),
            mapti(0, 31, 1),
            mapti(0, 0x1_0000, 1),
            mapti(0, 0xffff_ffff, 1),
            mapti(0, 8192, collections),
            mapti(0, 8192, 0xffff),
            [7 << 32 | 0x0b, 1, 1, 0],
            [7 << 32 | 0x01, 0, collections, 0],
            [0x09, 0, 1 << 63 | collections, 0],
            [0x09, 0, collections, 0],
            [0x0d, 0, collections, 0],
            event(0x03, 9, 0),
            event(0x0c, 7, 16),
        ];
        for raw in bad {
            assert_eq!(host.send(&[raw]), Vec::<Raw>::new(), "{raw:x?} {model:?}");
        }
        // The largest of each.
        assert_eq!(host.send(&[mapd(devices - 1, 10, 0)]).len(), 1);
        if model.indirect {
            assert_eq!(host.send(&[mapd(6, (typer >> 8 & 0x1f) + 1, 0)]).len(), 1);
        }
        assert_eq!(host.send(&[mapti(15, 0xffff, collections - 1)]).len(), 1, "{model:?}");
    }
}

#[test]
fn r38_attack_commands_about_virtual_interrupts() {
    let mut host = Host::enabled(PLAIN);
    host.map(7, 0, 8192, 0);
    let words = [7 << 32, 1 << 63 | 0xffff, u64::MAX, u64::MAX];
    for command in (0..=0xff).filter(|n| !(1..=0xf).contains(n) || [2, 6, 7].contains(n)) {
        let raw = [words[0] | command, words[1], words[2], words[3]];
        assert_eq!(host.send(&[raw]), Vec::<Raw>::new(), "{command:#x}");
    }
    let typer = host.load(gits::TYPER);
    assert_eq!(typer & (1 << 1 | 1 << 37 | 1 << 39 | 1 << 40), 0);
}

#[test]
fn r38_attack_registers_are_remembered_and_nothing_else() {
    for model in MODELS {
        let mut host = Host::new(model);
        let before: Vec<_> = (0..8).map(|n| host.sim_baser(n)).collect();
        for n in 0..8 {
            let register = gits::BASER + 8 * n as u32;
            let fixed = host.load(register) & gits::BASER_FIXED;
            let written = gits::VALID | gits::INDIRECT | SECRET | 1 << 10 | 7 << 59;
            host.store(register, written);
            let expected = if fixed == 0 { 0 } else { written & !gits::INDIRECT | fixed };
            assert_eq!(host.load(register), expected, "{n} {model:?}");
        }
        host.store(gits::CBASER, gits::VALID | SECRET | 5);
        assert_eq!(host.load(gits::CBASER), gits::VALID | SECRET | 5);
        assert_eq!((0..8).map(|n| host.sim_baser(n)).collect::<Vec<_>>(), before);
        host.enable();
        // RO from here on.
        for offset in [gits::CBASER, gits::BASER, gits::BASER + 8] {
            let before = host.load(offset);
            host.store(offset, SECRET);
            assert_eq!(host.load(offset), before);
        }
        host.map(1, 0, 8192, 0);
        assert_eq!(host.send(&[event(0x03, 1, 0)]).len(), 1);
    }
}

impl Host {
    fn sim_baser(&mut self, n: usize) -> u64 {
        use crate::irq::machine::{Machine, Place};
        self.sim.read(Place::Its(0), gits::BASER + 8 * n as u32, Width::Doubleword)
    }
}

#[test]
fn r38_attack_a_queue_that_is_not_the_hosts() {
    for at in [SECRET, HYP.0, 0, 0x900_0000, 0xf_ffff_ffff_f000] {
        let mut host = Host::new(PLAIN);
        host.store(gits::CBASER, gits::VALID | at);
        host.store(gits::CTLR, 1);
        host.sim.done.clear();
        host.store(gits::CWRITER, 64);
        assert_eq!(host.load(gits::CREADR), gits::STALLED, "{at:#x}");
        host.store(gits::CWRITER, 64 | gits::RETRY);
        assert_eq!(host.load(gits::CREADR), gits::STALLED);
        assert_eq!((host.sim.done.len(), host.sim.violations.len()), (0, 0));
        // With another queue it goes on.
        host.store(gits::CTLR, 0);
        host.enable();
        assert_eq!(host.map(1, 0, 8192, 0), 4);
    }
    // The page was given away while commands lay there.
    let mut host = Host::new(PLAIN);
    host.store(gits::CBASER, gits::VALID | (SECRET - 4096) | 1);
    host.store(gits::CTLR, 1);
    host.store(gits::CWRITER, 4096 + 64);
    let seen = [0; 3].map(|_| host.load(gits::CREADR));
    assert_eq!(seen, [4096, 4097, 4097], "as far as it is the host's");
}

#[test]
fn work_is_bounded_and_the_reader_tells_the_truth() {
    let mut host = Host::enabled(PLAIN);
    for n in 0..127 {
        host.sim.host_store(QUEUE + 32 * n, &[0x05, 0, 0, 0]);
    }
    host.sim.fetched = 0;
    host.store(gits::CWRITER, 127 * 32);
    assert_eq!(host.sim.fetched, COMMANDS_A_TRAP);
    let read = host.load(gits::CREADR);
    assert_eq!((host.sim.fetched, read), (127, 127 * 32), "a load goes on");
    assert_eq!(host.sim.done.len(), 127);
    // Around the end of the queue, each command once.
    for n in 0..300 {
        assert_eq!(host.send(&[[0x05, 0, host.rd(n % 3), 0]]).len(), 1);
    }
    // Beyond the queue there is no place.
    let before = host.load(gits::CWRITER);
    host.store(gits::CWRITER, 4096);
    assert_eq!(host.load(gits::CWRITER), before);
}

#[test]
fn without_room_a_device_is_an_error_and_nothing_changes() {
    for (devices, bytes) in [(4, 1 << 20), (64, 0x8000)] {
        let mut host = Host::with(PLAIN, devices, bytes);
        host.enable();
        let mut mapped = 0;
        while mapped < 200 && !host.send(&[mapd(mapped, 5, 0)]).is_empty() {
            mapped += 1;
        }
        assert!((4..200).contains(&mapped), "{mapped}");
        assert_eq!([host.its.take_news(), host.its.take_news()], [Some(News::NoRoom), None]);
        let used = host.its.used();
        assert!(host.send(&[mapd(mapped, 5, 0)]).is_empty());
        assert!(devices == 4 || host.send(&[mapd(1, 12, 0)]).is_empty());
        assert_eq!(host.its.used(), used);
        assert_eq!(host.its.take_news(), None, "told once");
        // The others are as they were, and one that goes makes room for one.
        host.send(&[
            [0x09, 0, 1 << 63 | 1, 0],
            [1 << 32 | 0x0a, 8192 << 32, 1, 0],
            event(0x03, 1, 0),
        ]);
        assert_eq!(host.pending(8192), [0]);
        assert_eq!(host.send(&[[2 << 32 | 0x08, 0, 0, 0], mapd(mapped, 5, 0)]).len(), 2);
    }
}

#[test]
fn a_device_that_is_mapped_again_has_a_new_itt() {
    let mut host = Host::enabled(PLAIN);
    host.map(7, 0, 8192, 0);
    let used = host.its.used();
    let again = host.send(&[mapd(7, 4, 0), event(0x03, 7, 0)]);
    assert_eq!(again.len(), 3, "unmapped, mapped, and an event of which nothing is known any more");
    assert_eq!((host.pending(8192), host.its.used()), (vec![], used));
    host.send(&[mapd(7, 6, 0)]);
    assert!(host.its.used() > used);
    host.send(&[[7 << 32 | 0x08, 0, 0, 0]]);
    let empty = host.its.used();
    assert!(empty < used, "what is left is a page of the table of devices");
    // Where there is room for one of them only.
    let mut host = Host::with(PLAIN, 4, 0x1000 * 2 + 0x2000 + 0x1000);
    host.enable();
    assert_eq!(host.send(&[mapd(7, 8, 0)]).len(), 1);
    assert_eq!(host.send(&[mapd(7, 8, 0)]).len(), 2);
    assert_eq!(host.send(&[mapd(7, 7, 0)]).len(), 2);
    assert!(host.send(&[mapd(7, 9, 0)]).is_empty());
    assert!(host.send(&[event(0x03, 7, 128)]).is_empty());
}

#[test]
fn tables_that_are_given_anew_are_empty() {
    for model in MODELS {
        let mut host = Host::enabled(model);
        let n =
            host.sim.model.basers.iter().position(|b| gits::table(*b) == gits::DEVICES).unwrap();
        let register = gits::BASER + 8 * n as u32;
        host.map(7, 0, 8192, 0);
        host.store(gits::CTLR, 0);
        assert_eq!(host.load(gits::CTLR) as u32, gits::QUIESCENT);
        host.enable();
        host.send(&[event(0x03, 7, 0)]);
        assert_eq!(host.pending(8192), [0], "the same as before");
        host.send(&[event(0x04, 7, 0)]);
        host.store(gits::CTLR, 0);
        host.store(register, gits::VALID | 0x4050_0000);
        host.enable();
        assert!(host.send(&[event(0x03, 7, 0)]).is_empty());
        let pages = host.its.used();
        let two_levels = host.sim_baser(n) & gits::INDIRECT != 0;
        assert_eq!(pages != 0, two_levels, "{model:?}");
        host.map(7, 0, 8192, 1);
        assert!(host.its.used() - pages <= 0x200, "the page is there already");
        host.send(&[event(0x03, 7, 0)]);
        assert_eq!(host.pending(8192), [1]);
    }
}

#[test]
fn a_command_that_the_hardware_stalls_on_stops_nobody() {
    let mut host = Host::enabled(Model { stalls: true, ..PLAIN });
    host.send(&[mapd(7, 4, 0)]);
    // Sound as far as hyp can tell: neither the event nor the collection is mapped.
    for raw in [event(0x03, 7, 3), event(0x0c, 7, 3), [0x0d, 0, 9, 0]] {
        let done = host.send(&[raw, raw]);
        assert!(done.iter().all(|raw| raw[0] == 0x05), "{done:x?}");
    }
    assert_eq!(host.map(7, 0, 8192, 2), 5);
}

#[test]
fn halves_of_registers_and_what_has_none() {
    let mut host = Host::new(PLAIN);
    let word = |host: &mut Host, offset| {
        host.its.load(&mut host.sim, &host.targets, offset, Width::Word).unwrap()
    };
    host.try_store(gits::CBASER, Width::Word, QUEUE).unwrap();
    host.try_store(gits::CBASER + 4, Width::Word, 1 << 31).unwrap();
    assert_eq!(host.load(gits::CBASER), gits::VALID | QUEUE);
    assert_eq!(word(&mut host, gits::CBASER + 4), 1 << 31);
    assert_eq!((word(&mut host, gits::PIDR2), word(&mut host, gits::IIDR)), (0x3b, 0x43b));
    let known = [0x0, 0x4, 0x8, 0xc, 0x80, 0x84, 0x88, 0x90, 0x100, 0x104, 0x108, 0x10c, 0xffe8];
    for offset in (0..0x1_0000).step_by(4) {
        host.try_store(offset, Width::Word, 0).unwrap();
        if !known.contains(&offset) {
            assert_eq!(word(&mut host, offset), 0, "{offset:#x}");
        }
    }
}

#[test]
fn an_its_that_does_not_fit_is_told_and_has_no_tables() {
    let unfit = |model: Model, bytes| {
        let mut sim = Sim::new(model, 1);
        let error = start(&mut sim, 4, bytes).err();
        sim.violations.is_empty().then_some(error).flatten()
    };
    assert_eq!(unfit(Model { typer: PLAIN.typer & !1, ..PLAIN }, 1 << 20), Some(Unfit::NoLpis));
    assert_eq!(unfit(Model { basers: [0; 8], ..PLAIN }, 1 << 20), Some(Unfit::NoDevices));
    let [devices, ..] = PLAIN.basers;
    let basers = [devices, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(unfit(Model { basers, ..PLAIN }, 1 << 20), Some(Unfit::NoCollections));
    assert_eq!(unfit(PLAIN, 0x1000), Some(Unfit::NoRoom));
}
