//! The GIC works on memory, where it is told to: no address that a host names in its registers or in commands gets it
//! to anybody else's, and a driver finds what it expects all the same.

use super::pages::hyp_page;
use crate::{
    context::context,
    instruction as insn,
    junk::Random,
    ledger::{self, PAGE, each},
    lpi::{
        CLEAR, DISCARD, Driver, INT, INV, VALID, driver, event, gicr, gits, mapd, mapti, read,
        read32, taken, taken_on, write, write32,
    },
    puppet::{BASE, Machine, PROTECTED, Puppet},
    runner::Skip,
    tests, workers,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    call::{Policy, VmConfig},
    error::Error,
};

tests![
    r38_attack_a_table_of_devices_over_a_protected_page,
    r38_attack_a_table_of_collections_over_a_protected_page,
    r38_attack_a_queue_in_a_protected_page,
    r38_attack_an_itt_over_a_protected_page,
    r38_attack_a_pending_table_over_a_protected_page,
    r38_attack_a_configuration_table_over_a_protected_page,
    r38_attack_a_configuration_table_that_is_given_away,
    r38_attack_a_queue_that_is_given_away,
    r38_attack_a_collection_at_somebody_elses_registers,
    a_storm_of_accesses_on_all_cpus,
];

/// Where the victim has the page.
const IPA: u64 = 0x9000_0000;
/// The words of it that are looked at.
const WORDS: u64 = 48;

/// A protected guest with a page that somebody is after.
struct Victim {
    puppet: Puppet,
    /// The page's address: page 1 of 64 KiB, so that it can be part of tables with an alignment.
    page: u64,
}

impl Victim {
    fn new() -> Self {
        let page = ledger::aligned(16, 16) + PAGE;
        let machine = Machine::new(PROTECTED);
        let puppet = machine.started(context().largest());
        Hvc.vm_map(machine.vm, page, IPA).expect("VM_MAP");
        let victim = Self { puppet, page };
        for n in 0..WORDS {
            victim.puppet.at(IPA + 8 * n).exec(insn::STR64, Self::secret(n));
        }
        victim
    }

    /// Bytes that would each be a configuration (enabled) and a command.
    const fn secret(n: u64) -> u64 {
        0x4141_4141_4141_4100 | (n % 4 * 2 + 3)
    }

    #[track_caller]
    fn check(&self) {
        for n in 0..WORDS {
            let found = self.puppet.at(IPA + 8 * n).exec(insn::LDR64, 0);
            assert_eq!(found, Self::secret(n), "word {n} of the protected page");
        }
    }
}

/// A device with an event mapped to an LPI of a CPU's.
pub(super) fn map(driver: &Driver, device: u64, intid: u64, cpu: usize) {
    driver.configure(intid, true);
    let icid = cpu as u64;
    driver.send(&[
        driver.mapc(icid, cpu),
        mapd(device, driver.itt),
        mapti(device, 1, intid, icid),
        event(INV, device, 1),
    ]);
}

fn r38_attack_a_table_of_devices_over_a_protected_page() -> Result<(), Skip> {
    let driver = driver()?;
    let victim = Victim::new();
    for page in [victim.page, hyp_page()] {
        driver.begin_with(page, driver.configuration, ledger::take(1));
        driver.begin_with(page, driver.configuration, driver.queue());
        for device in 0..8 {
            driver.send(&[mapd(device, driver.itt)]);
        }
        victim.check();
    }
    Ok(())
}

fn r38_attack_a_table_of_collections_over_a_protected_page() -> Result<(), Skip> {
    let driver = driver()?;
    let victim = Victim::new();
    for page in [victim.page, hyp_page()] {
        driver.begin_with(driver.configuration, page, driver.queue());
        for icid in 0..8 {
            driver.send(&[driver.mapc(icid, 0)]);
        }
        victim.check();
    }
    Ok(())
}

/// Its words are taken for commands, and GITS_CREADR tells how many there were.
fn r38_attack_a_queue_in_a_protected_page() -> Result<(), Skip> {
    let driver = driver()?;
    let victim = Victim::new();
    for page in [victim.page, hyp_page(), context().machine.gicd.start] {
        driver.begin_with(driver.configuration, driver.configuration + PAGE, page);
        for retry in [0, 1] {
            write(driver.its(gits::CWRITER), 64 | retry);
            let reader = read(driver.its(gits::CREADR));
            assert_eq!(reader, 1, "nothing read, and stalled: {page:#x}");
        }
        victim.check();
    }
    // With a queue of its own it goes on.
    driver.begin();
    driver.send(&[driver.mapc(0, 0)]);
    Ok(())
}

fn r38_attack_an_itt_over_a_protected_page() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    let victim = Victim::new();
    for page in [victim.page, hyp_page()] {
        driver.send(&[driver.mapc(0, 0), mapd(3, page)]);
        for number in 0..16 {
            driver.send(&[mapti(3, number, 8192 + number, 0)]);
        }
        for number in 0..16 {
            driver.send(&[event(DISCARD, 3, number)]);
        }
        victim.check();
    }
    Ok(())
}

fn r38_attack_a_pending_table_over_a_protected_page() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    let victim = Victim::new();
    let (ctlr, pendbaser) = (driver.rd(0, gicr::CTLR), driver.rd(0, gicr::PENDBASER));
    for page in [victim.page, hyp_page()] {
        driver.begin();
        write32(ctlr, read32(ctlr) & !1);
        write(pendbaser, page & !0xffff);
        write32(ctlr, read32(ctlr) | 1);
        // The bit of the first is in the page's first byte.
        for intid in (0x1000 * 8..).step_by(8).take(16) {
            driver.configure(intid, false);
            driver.send(&[
                driver.mapc(0, 0),
                mapd(3, driver.itt),
                mapti(3, 1, intid, 0),
                event(INT, 3, 1),
            ]);
            victim.check();
            driver.send(&[event(CLEAR, 3, 1)]);
            victim.check();
        }
    }
    Ok(())
}

/// A byte of the page is an LPI's priority and says whether it is enabled.
fn r38_attack_a_configuration_table_over_a_protected_page() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    let victim = Victim::new();
    let (ctlr, propbaser) = (driver.rd(0, gicr::CTLR), driver.rd(0, gicr::PROPBASER));
    let before = read(propbaser);
    for page in [victim.page, victim.page - 13 * PAGE, hyp_page(), 0] {
        for cpu in 0..context().cpus {
            let ctlr = driver.rd(cpu, gicr::CTLR);
            write32(ctlr, read32(ctlr) & !1);
            write(driver.rd(cpu, gicr::PROPBASER), page | 15);
        }
        assert_eq!(read(propbaser), before, "{page:#x}");
        write32(ctlr, read32(ctlr) | 1);
        driver.send(&[driver.mapc(0, 0), mapd(3, driver.itt)]);
        for intid in 8192..8200 {
            driver.send(&[mapti(3, 1, intid, 0), event(INT, 3, 1), event(INV, 3, 1)]);
            assert_eq!(taken(5), None, "what is at {page:#x} has enabled {intid}");
            driver.send(&[event(CLEAR, 3, 1)]);
        }
    }
    driver.enable_lpis();
    Ok(())
}

fn r38_attack_a_configuration_table_that_is_given_away() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    let vms = [false, true].map(|protected| {
        ledger::vm(VmConfig { policy: Policy::Lazy, protected, ..VmConfig::normal() })
    });
    for page in each(driver.configuration, 14) {
        for vm in vms {
            assert_eq!(Hvc.vm_map(vm, page, BASE), Err(Error::NotMemory), "{page:#x}");
            assert_eq!(Hvc.vm_topup(vm, page, 1), Err(Error::NotMemory), "{page:#x}");
        }
        assert_eq!(Hvc.share_flag_page(page), Err(Error::NotMemory), "{page:#x}");
    }
    // The rest of the 64 KiB is no part of the table.
    let behind = driver.configuration + 14 * PAGE;
    Hvc.share_flag_page(behind).and_then(|()| Hvc.unshare_flag_page(behind)).expect("shared");
    Ok(())
}

/// The queue was the host's when it was named, and with commands in it becomes a guest's.
fn r38_attack_a_queue_that_is_given_away() -> Result<(), Skip> {
    let driver = driver()?;
    let queue = ledger::take(1);
    driver.begin_with(driver.configuration, driver.configuration + PAGE, queue);
    write(driver.its(gits::CWRITER), 32);
    assert_eq!(read(driver.its(gits::CREADR)), 32);
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(context().largest());
    Hvc.vm_map(machine.vm, queue, IPA).expect("VM_MAP");
    puppet.at(IPA + 32).exec(insn::STR64, 0x05);
    write(driver.its(gits::CWRITER), 96);
    assert_eq!(read(driver.its(gits::CREADR)), 33, "stalled where it was");
    driver.begin();
    Ok(())
}

/// RDbase is where a redistributor is told of an LPI: somebody's registers.
fn r38_attack_a_collection_at_somebody_elses_registers() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    map(driver, 3, 8192, 0);
    let victim = Victim::new();
    let nowhere = (context().cpus as u64) << 16;
    for target in [victim.page & !0xffff, hyp_page() & !0xffff, nowhere, driver.rd(0, 0) + 0x1_0000]
    {
        if target == driver.target(0) {
            continue;
        }
        driver.send(&[[0x09, 0, VALID | target, 0], [0x05, 0, target, 0], event(INT, 3, 1)]);
        assert_eq!(taken(1000), Some(8192), "the collection is where it was: {target:#x}");
        driver.send(&[[0x0e, 0, driver.target(0), target], [0x0e, 0, target, driver.target(0)]]);
    }
    victim.check();
    Ok(())
}

/// Any value in any register, from all CPUs at once, and a queue of anything. What a host owns itself is no address
/// in it: its own pages a host may make the GIC read.
fn a_storm_of_accesses_on_all_cpus() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    let victim = Victim::new();
    let places =
        [victim.page, victim.page & !0xffff, hyp_page(), driver.configuration, 0x800_0000, 0];
    log::info!("seed {SEED:#x}");
    workers::on_all(|cpu| {
        let mut random = Random(SEED + cpu as u64);
        let value = |random: &mut Random| {
            let place = places[random.below(places.len() as u64) as usize];
            match random.below(4) {
                0 => place | VALID | random.below(32),
                1 => place | random.below(32) | random.below(4) << 62,
                2 => random.below(2),
                // Not below 2^52: no page of the host's.
                _ => random.next() | 0xf << 48,
            }
        };
        for _ in 0..1500 {
            let offset = match random.below(4) {
                0 => [gits::CTLR, gits::CBASER, gits::CWRITER, gits::CREADR]
                    [random.below(4) as usize],
                1 => gits::BASER + 8 * random.below(8),
                2 => [gicr::PROPBASER, gicr::PENDBASER, gicr::INVLPIR][random.below(3) as usize],
                _ => 8 * random.below(0x2000),
            };
            let value = value(&mut random);
            match random.below(8) {
                0 | 1 => write(driver.its(offset), value),
                2 => write32(driver.its(offset + 4 * random.below(2)), value as u32),
                3 => _ = read(driver.its(offset)),
                4 => driver.scribble(random.below(128), random.below(4), value),
                // Not its own sleep: it takes interrupts.
                5 if offset != 0x10 => write(driver.rd(cpu, offset), value),
                6 if offset != 0x10 => {
                    write32(
                        driver.rd(random.below(context().cpus as u64) as usize, offset),
                        value as u32,
                    );
                }
                _ => _ = read(driver.rd(cpu, offset)),
            }
        }
    });
    victim.check();
    // Whatever it was left with, a driver begins anew.
    for cpu in 0..context().cpus {
        let ctlr = driver.rd(cpu, gicr::CTLR);
        write32(ctlr, 0);
    }
    driver.enable_lpis();
    for cpu in 0..context().cpus {
        while taken_on(cpu, 2).is_some() {}
    }
    super::its::its_interrupts_arrive_on_every_cpu()
}

/// The storm begins here.
const SEED: u64 = 0x617c;
