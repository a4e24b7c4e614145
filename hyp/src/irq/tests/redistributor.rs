//! Redistributors: tables, and what of a host's stores reaches them.

use super::sim::{HYP, PLAIN, SECRET, Sim};
use crate::irq::redistributor::{PENDING_BYTES, Redistributors, Stuck};
use crate::irq::registers::{GICR_NORMAL, Width, gicr};

const TABLE: u64 = 0x4010_0000;
/// What Linux writes.
const PROPBASER: u64 = TABLE | GICR_NORMAL | 15;

fn pending(n: u64) -> u64 {
    HYP.0 + n * PENDING_BYTES
}

fn two() -> (Sim, Redistributors) {
    let mut sim = Sim::new(PLAIN, 3);
    let mut all = Redistributors::new();
    all.set_lpi_bits(16);
    for n in 0..2 {
        all.add(&mut sim, Some(pending(n))).unwrap();
    }
    all.add(&mut sim, None).unwrap();
    (sim, all)
}

fn enable(sim: &mut Sim, all: &mut Redistributors, n: usize, propbaser: u64) -> bool {
    all.store(sim, n, gicr::PROPBASER, Width::Doubleword, propbaser);
    all.store(sim, n, gicr::PENDBASER, Width::Doubleword, 0x4020_0000 | GICR_NORMAL);
    all.store(sim, n, gicr::CTLR, Width::Word, 1);
    assert_eq!(sim.violations, Vec::<String>::new());
    sim.redistributors[n].ctlr & 1 == 1
}

#[test]
fn lpis_have_the_hosts_configuration_and_hyps_pending_table() {
    let (mut sim, mut all) = two();
    for n in 0..2 {
        assert!(enable(&mut sim, &mut all, n, PROPBASER));
        assert_eq!(sim.redistributors[n].propbaser, PROPBASER, "as it was written");
        let pendbaser = sim.redistributors[n].pendbaser;
        assert_eq!(pendbaser & gicr::PENDBASER_ADDRESS, pending(n as u64));
    }
    assert_eq!(sim.pinned.len(), 14);
    assert!(!enable(&mut sim, &mut all, 2, PROPBASER), "it has none");
    assert_eq!(sim.redistributors[2].propbaser, 0);
}

#[test]
fn r38_attack_a_pending_table_of_the_hosts() {
    let (mut sim, mut all) = two();
    for value in [SECRET, SECRET | gicr::PENDBASER_PTZ, u64::MAX] {
        all.store(&mut sim, 0, gicr::PENDBASER, Width::Doubleword, value);
        all.store(&mut sim, 0, gicr::PENDBASER + 4, Width::Word, value >> 32);
        all.store(&mut sim, 0, gicr::PENDBASER, Width::Word, value);
        let pendbaser = sim.redistributors[0].pendbaser & gicr::PENDBASER_ADDRESS;
        assert_eq!(pendbaser, pending(0));
        assert!(enable(&mut sim, &mut all, 0, PROPBASER));
        all.store(&mut sim, 0, gicr::PENDBASER, Width::Doubleword, value);
        all.store(&mut sim, 0, gicr::CTLR, Width::Word, 0);
    }
}

#[test]
fn r38_attack_a_configuration_table_over_anothers_page() {
    let (mut sim, mut all) = two();
    let attempts =
        [SECRET, SECRET - 13 * 4096, HYP.0, 0, 0x40ff_f000, 0xf_ffff_ffff_f000, 0x900_0000];
    for pa in attempts {
        assert!(!enable(&mut sim, &mut all, 0, pa | 15), "{pa:#x}");
        assert_eq!((sim.redistributors[0].propbaser, sim.pinned.len()), (0, 0), "{pa:#x}");
    }
    // What would be beyond the table with fewer bits is no matter.
    assert!(enable(&mut sim, &mut all, 0, (SECRET - 2 * 4096) | 13));
    // One that is checked and one that is not.
    all.store(&mut sim, 0, gicr::CTLR, Width::Word, 0);
    assert!(enable(&mut sim, &mut all, 0, SECRET | 15), "the last that was good");
    assert_eq!(sim.redistributors[0].propbaser & !0x1f, SECRET - 2 * 4096);
}

#[test]
fn a_configuration_table_has_no_more_bits_than_pending_tables() {
    let (mut sim, mut all) = two();
    assert!(enable(&mut sim, &mut all, 0, TABLE | 31));
    assert_eq!(sim.redistributors[0].propbaser, TABLE | 15);
    let (mut sim, mut all) = two();
    assert!(!enable(&mut sim, &mut all, 0, TABLE | 12), "none are LPIs");
}

#[test]
fn all_that_are_on_have_one_configuration_table() {
    let (mut sim, mut all) = two();
    assert!(enable(&mut sim, &mut all, 0, PROPBASER));
    for other in [0x4030_0000 | 15, TABLE | 13] {
        assert!(enable(&mut sim, &mut all, 1, other), "{other:#x}");
        assert_eq!(sim.redistributors[0].ctlr & 1, 0, "the other one is off");
        assert!(enable(&mut sim, &mut all, 0, PROPBASER));
        assert_eq!(sim.redistributors[1].ctlr & 1, 0);
    }
    assert!(enable(&mut sim, &mut all, 1, PROPBASER));
    assert_eq!(sim.redistributors[0].ctlr & 1, 1);
    // While they are on nothing of it changes.
    all.store(&mut sim, 1, gicr::PROPBASER, Width::Doubleword, 0x4030_0000 | 15);
    assert_eq!(sim.redistributors[1].propbaser, PROPBASER);
    // One that can't be turned off has the last word.
    sim.redistributors[0].sticky = true;
    all.store(&mut sim, 1, gicr::CTLR, Width::Word, 0);
    assert!(!enable(&mut sim, &mut all, 1, 0x4030_0000 | 15));
    assert!(enable(&mut sim, &mut all, 1, PROPBASER));
}

#[test]
fn a_redistributor_that_has_lost_its_registers_gets_them_back() {
    let (mut sim, mut all) = two();
    assert!(enable(&mut sim, &mut all, 0, PROPBASER));
    let before = sim.redistributors[0].propbaser;
    sim.redistributors[0] = Default::default();
    all.store(&mut sim, 0, gicr::CTLR, Width::Word, 1);
    assert_eq!(sim.violations, Vec::<String>::new());
    assert_eq!((sim.redistributors[0].ctlr, sim.redistributors[0].propbaser), (1, before));
    let pendbaser = sim.redistributors[0].pendbaser;
    assert_eq!(pendbaser & gicr::PENDBASER_ADDRESS, pending(0));
    assert_eq!(pendbaser & gicr::PENDBASER_PTZ, 0, "what is pending still is");
}

#[test]
fn a_new_pending_table_is_empty_and_an_old_one_is_not() {
    let (mut sim, mut all) = two();
    assert!(enable(&mut sim, &mut all, 0, PROPBASER));
    let again = |sim: &mut Sim, all: &mut Redistributors, pendbaser| {
        all.store(sim, 0, gicr::CTLR, Width::Word, 0);
        sim.set_byte(pending(0) + 1024, 2);
        all.store(sim, 0, gicr::PENDBASER, Width::Doubleword, pendbaser);
        all.store(sim, 0, gicr::CTLR, Width::Word, 1);
        sim.is_pending(0, 8193)
    };
    assert!(again(&mut sim, &mut all, 0x4020_0000 | GICR_NORMAL));
    assert!(!again(&mut sim, &mut all, 0x4021_0000));
    assert!(again(&mut sim, &mut all, 0x4021_0000));
    assert!(!again(&mut sim, &mut all, 0x4021_0000 | gicr::PENDBASER_PTZ));
}

#[test]
fn lpis_that_are_on_at_boot_are_turned_off_or_refused() {
    let mut sim = Sim::new(PLAIN, 2);
    let mut all = Redistributors::new();
    for (n, sticky) in [(0, false), (1, true)] {
        sim.redistributors[n].ctlr = 1;
        sim.redistributors[n].sticky = sticky;
        sim.redistributors[n].propbaser = SECRET;
    }
    assert_eq!(all.add(&mut sim, Some(HYP.0)), Ok(()));
    assert_eq!((sim.redistributors[0].ctlr, sim.redistributors[0].propbaser), (0, 0));
    assert_eq!(all.add(&mut sim, Some(HYP.0)), Err(Stuck::On));
    assert_eq!(all.add(&mut sim, None), Err(Stuck::On), "whether it has a table or not");
    sim.redistributors[1] = Default::default();
    sim.redistributors[1].ctlr = gicr::RWP;
    assert_eq!(all.add(&mut sim, Some(HYP.0)), Err(Stuck::Busy));
}

#[test]
fn lpis_that_stay_on_stay_on() {
    let (mut sim, mut all) = two();
    assert!(enable(&mut sim, &mut all, 0, PROPBASER));
    sim.redistributors[0].sticky = true;
    all.store(&mut sim, 0, gicr::CTLR, Width::Word, 0x0500_0000);
    assert_eq!(sim.redistributors[0].ctlr, 0x0500_0001);
    // What the host believes makes no difference.
    all.store(&mut sim, 0, gicr::PROPBASER, Width::Doubleword, 0x4030_0000 | 15);
    assert_eq!(sim.redistributors[0].propbaser, PROPBASER);
}

#[test]
fn of_other_registers_those_reach_it_that_name_no_memory() {
    let (mut sim, mut all) = two();
    assert!(enable(&mut sim, &mut all, 0, PROPBASER));
    sim.redistributors[0].waker = 0x8000_0004;
    all.store(&mut sim, 0, gicr::WAKER, Width::Word, 0xffff_ffff);
    assert_eq!(sim.redistributors[0].waker, 0x8000_0006);
    let passed = [gicr::STATUSR, gicr::SETLPIR, gicr::CLRLPIR, gicr::INVLPIR, gicr::INVALLR];
    for offset in (0..0x1_0000).step_by(4) {
        let before = sim.redistributors[0].stores.len();
        let width = if offset % 8 == 0 { Width::Doubleword } else { Width::Word };
        if [gicr::CTLR, gicr::WAKER].contains(&offset) {
            continue;
        }
        all.store(&mut sim, 0, offset, width, 0xffff_0000_0000_2001);
        let stored = &sim.redistributors[0].stores[before..];
        if passed.contains(&offset) {
            let value = match offset {
                gicr::STATUSR => 1,
                gicr::INVALLR => 0,
                _ => 0x2001,
            };
            assert_eq!(stored, [(offset, value)], "{offset:#x}");
        } else {
            assert_eq!(stored, [], "{offset:#x}");
        }
    }
    let before = sim.redistributors[0].stores.len();
    for intid in [0, 31, 8191, 0x1_0000, 0xffff_ffff] {
        all.store(&mut sim, 0, gicr::SETLPIR, Width::Doubleword, intid);
    }
    assert_eq!(sim.redistributors[0].stores.len(), before, "none of them an LPI");
}

#[test]
fn a_load_reaches_what_is_there_and_nothing_else() {
    let mut sim = Sim::new(PLAIN, 1);
    sim.typer |= 0x5a << 32;
    let mut all = Redistributors::new();
    all.set_lpi_bits(16);
    all.add(&mut sim, Some(pending(0))).unwrap();
    let mut word = |all: &mut Redistributors, offset| all.load(&mut sim, 0, offset, Width::Word);
    let shown = gicr::TYPER_PLPIS | gicr::TYPER_DIRECT_LPI;
    assert_eq!(word(&mut all, gicr::TYPER), shown, "no GICv4.1");
    assert_eq!(word(&mut all, gicr::TYPER + 4), 0x5a);
    let both = all.load(&mut sim, 0, gicr::TYPER, Width::Doubleword);
    assert_eq!(both, shown | 0x5a << 32);
    // What hyp has read of the hardware: registers, in their own widths.
    sim.loads.clear();
    for offset in (0..0x1_0000).step_by(4) {
        all.load(&mut sim, 0, offset, Width::Word);
        if offset % 8 == 0 {
            all.load(&mut sim, 0, offset, Width::Doubleword);
        }
    }
    let known = |offset: u32| matches!(offset, 0 | 4 | 0x10 | 0x14 | 0xc0 | 0xffd0..=0xfffc);
    for &(offset, width) in &sim.loads {
        let wide = offset & !7 == gicr::PROPBASER;
        assert!(wide || (known(offset) && width == Width::Word), "{offset:#x} {width:?}");
    }
    assert!(sim.loads.iter().any(|load| load.0 == 0xffe8));
}

#[test]
fn registers_that_are_not_there_are_not_written() {
    let stores = |typer: u64, ctlr: u32| {
        let mut sim = Sim::new(PLAIN, 1);
        sim.typer = gicr::TYPER_PLPIS | typer;
        sim.redistributors[0].ctlr = ctlr;
        let mut all = Redistributors::new();
        all.set_lpi_bits(16);
        all.add(&mut sim, Some(pending(0))).unwrap();
        sim.redistributors[0].stores.clear();
        for register in [gicr::SETLPIR, gicr::CLRLPIR, gicr::INVLPIR, gicr::INVALLR] {
            all.store(&mut sim, 0, register, Width::Doubleword, 8192);
        }
        let all = &sim.redistributors[0].stores;
        all.iter().map(|store| store.0).collect::<Vec<_>>()
    };
    assert!(stores(0, 0).is_empty());
    assert_eq!(stores(0, gicr::INVALIDATE), [gicr::INVLPIR, gicr::INVALLR]);
    assert_eq!(stores(gicr::TYPER_RVPEID, 0), [gicr::INVLPIR, gicr::INVALLR]);
    assert_eq!(stores(gicr::TYPER_DIRECT_LPI, 0).len(), 4);
}
