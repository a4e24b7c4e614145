//! An ITS or a redistributor that loses its state, an ITS that takes no commands; and how long a host can keep hyp busy.

use super::its::{Host, QUEUE, event, mapd};
use super::sim::{HYP, MODELS, Model, PLAIN, SECRET};
use crate::irq::command::Raw;
use crate::irq::its::{Hung, News, ZEROED_A_TRAP};
use crate::irq::registers::{GICR_NORMAL, Width, gicr, gits};

/// The interrupt of the event that [`Host::map`] has mapped arrives.
fn works(host: &mut Host, what: &str) {
    host.send(&[event(0x03, 7, 0)]);
    assert_eq!(host.pending(8192), [0], "{what}");
    host.send(&[event(0x04, 7, 0)]);
    assert!(host.pending(8192).is_empty());
}

#[test]
fn r38_attack_a_queue_that_begins_again() {
    for model in MODELS {
        // Enabled again, without anybody having looked in between.
        let mut host = Host::enabled(model);
        host.map(7, 0, 8192, 0);
        host.store(gits::CTLR, 0);
        host.sim.restore_its(false);
        host.sim.done.clear();
        host.enable();
        assert_eq!(host.sim.done, Vec::<Raw>::new(), "{model:?}");
        assert_eq!(host.send(&[[0x05, 0, host.rd(1), 0]]).len(), 1, "{model:?}");
        works(&mut host, "enabled again");
        // A CPU comes back while the host has it enabled.
        host.sim.restore_its(false);
        host.sim.done.clear();
        assert_eq!(host.its.wake(&mut host.sim), Ok(true));
        assert_eq!(host.its.wake(&mut host.sim), Ok(false));
        assert_eq!(host.sim.done, Vec::<Raw>::new(), "{model:?}");
        works(&mut host, "woken");
    }
}

#[test]
fn an_its_that_has_lost_its_registers_has_them_again() {
    for model in MODELS {
        let mut host = Host::enabled(model);
        host.map(7, 0, 8192, 0);
        assert_eq!(host.its.wake(&mut host.sim), Ok(false), "as it was");
        host.sim.lose_its();
        assert_eq!(host.its.wake(&mut host.sim), Ok(true));
        works(&mut host, "woken");
        host.store(gits::CTLR, 0);
        host.sim.lose_its();
        host.enable();
        works(&mut host, "enabled again");
        // While the host has it off it stays off.
        host.store(gits::CTLR, 0);
        host.sim.lose_its();
        assert_eq!(host.its.wake(&mut host.sim), Ok(true));
        assert!(!host.sim.is_its_on());
        host.enable();
        works(&mut host, "woken and enabled");
        // Somebody has given it a table that hyp knows nothing of.
        if let Some(n) = model.basers.iter().position(|&baser| gits::table(baser) == 2) {
            host.store(gits::CTLR, 0);
            host.sim.give_table(n, gits::VALID | 0x4000_0000);
            assert_eq!(host.its.wake(&mut host.sim), Ok(true));
            assert_eq!(host.its.wake(&mut host.sim), Ok(false));
        }
    }
}

/// Turned off, told of once, and nothing for the host from now on.
fn is_dead(host: &mut Host) {
    assert_eq!([host.its.take_news(), host.its.take_news()], [Some(News::Dead), None]);
    assert!(!host.sim.is_its_on());
    host.sim.done.clear();
    for offset in (0..0x1_0000).step_by(8) {
        assert_eq!(host.load(offset), 0, "{offset:#x}");
        host.store(offset, u64::MAX);
    }
    assert!(!host.sim.is_its_on());
    assert_eq!(host.its.wake(&mut host.sim), Ok(false));
    host.sim.switch_its_on();
    assert_eq!(host.its.wake(&mut host.sim), Ok(true));
    assert!(!host.sim.is_its_on());
    assert_eq!((host.its.take_news(), host.sim.done.len()), (None, 0));
}

#[test]
fn an_its_that_takes_no_commands_is_off_for_good() {
    for at in [gits::CWRITER, gits::CTLR] {
        let mut host = Host::enabled(PLAIN);
        host.map(7, 0, 8192, 0);
        let writer = host.load(gits::CREADR);
        host.sim.host_store(QUEUE + writer, &[0x05, 0, 0, 0]);
        host.sim.hung = true;
        if at == gits::CTLR {
            host.store(gits::CTLR, 0);
        }
        host.store(gits::CWRITER, writer + 32);
        if at == gits::CTLR {
            host.store(gits::CTLR, 1);
        }
        is_dead(&mut host);
    }
}

#[test]
fn an_its_that_neither_takes_commands_nor_stops_ends_the_machine() {
    let mut host = Host::enabled(PLAIN);
    (host.sim.hung, host.sim.restless) = (true, true);
    host.sim.host_store(QUEUE, &[0x05, 0, 0, 0]);
    assert_eq!(host.try_store(gits::CWRITER, Width::Doubleword, 32), Err(Hung));
}

#[test]
fn an_its_that_takes_no_tables_is_off_for_good() {
    let mut host = Host::enabled(PLAIN);
    host.store(gits::CTLR, 0);
    host.sim.lose_its();
    host.sim.model.basers = [0; 8];
    host.sim.lose_its();
    host.store(gits::CTLR, 1);
    is_dead(&mut host);
}

#[test]
fn r38_attack_a_device_that_the_hardware_does_not_take() {
    let mut host = Host::enabled(Model { stalls: true, ..PLAIN });
    host.map(7, 0, 8192, 0);
    let writer = host.load(gits::CREADR);
    host.sim.host_store(QUEUE + writer, &mapd(8, 4, 0));
    host.sim.refuses_devices = true;
    host.store(gits::CWRITER, writer + 32);
    is_dead(&mut host);
}

#[test]
fn r38_attack_large_itts_in_one_access() {
    let mut host = Host::enabled(PLAIN);
    for n in 0..64 {
        host.sim.host_store(QUEUE + 32 * n, &mapd(7, 16, 0));
    }
    host.sim.zeroed = 0;
    host.store(gits::CWRITER, 64 * 32);
    let mut accesses = 1;
    loop {
        let one = 12 << 16;
        assert!(host.sim.zeroed <= ZEROED_A_TRAP + one, "{:#x} bytes at once", host.sim.zeroed);
        host.sim.zeroed = 0;
        let before = host.sim.done.len();
        if host.load(gits::CREADR) == 64 * 32 {
            break;
        }
        assert!(host.sim.done.len() > before, "each gets on");
        accesses += 1;
    }
    assert_eq!(accesses, 63, "one each");
    // The first, and each of the others with one before it that unmaps.
    assert_eq!(host.sim.done.len(), 1 + 63 * 2);
    assert_eq!(host.sim.violations, Vec::<String>::new());
}

#[test]
fn r38_attack_a_redistributor_that_comes_back_with_other_tables() {
    for table in [gicr::PENDBASER, gicr::PROPBASER] {
        let mut host = Host::enabled(PLAIN);
        host.map(7, 0, 8192, 1);
        assert_eq!(host.redistributors.wake(&mut host.sim), Ok(0), "as they were");
        let (pendbaser, propbaser) =
            (host.sim.redistributors[1].pendbaser, host.sim.redistributors[1].propbaser);
        assert_eq!(pendbaser & gicr::PENDBASER_ADDRESS, HYP.0 + 0x1_0000);
        for other in [0, SECRET | GICR_NORMAL, SECRET | 15, 0x4010_0000 | 14] {
            for sticky in [false, true] {
                let this = &mut host.sim.redistributors[1];
                (this.ctlr, this.sticky) = (gicr::ENABLE_LPIS, sticky);
                (this.pendbaser, this.propbaser) = (pendbaser, propbaser);
                if table == gicr::PENDBASER {
                    this.pendbaser = other;
                } else {
                    this.propbaser = other;
                }
                let expected = if sticky { Err(1) } else { Ok(1) };
                assert_eq!(host.redistributors.wake(&mut host.sim), expected, "{other:#x}");
                assert_eq!(host.sim.redistributors[1].ctlr, u32::from(sticky));
                assert!(sticky || host.sim.violations.is_empty());
                // What one that stays on reads is why the machine ends.
                host.sim.violations.clear();
            }
        }
        // With them off, it is what the next that turns them on gives it.
        host.sim.redistributors[1].sticky = false;
        host.sim.redistributors[1].ctlr = 0;
        assert_eq!(host.redistributors.wake(&mut host.sim), Ok(0));
        host.redistributors.store(&mut host.sim, 1, gicr::CTLR, Width::Word, 1);
        assert_eq!(host.redistributors.wake(&mut host.sim), Ok(0));
        host.send(&[event(0x03, 7, 0)]);
        assert_eq!(host.pending(8192), [1]);
    }
}
