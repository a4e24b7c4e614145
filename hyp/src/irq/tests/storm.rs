//! Whatever a host stores to whichever register, and whatever lies in its queue: the GIC touches no memory but
//! hyp's tables for it and configuration tables that are the host's for good, and hyp goes on.

use super::its::{CPUS, Host, QUEUE};
use super::sim::{HOST, HYP, MODELS, RD, SECRET, Sim};
use crate::irq::registers::{Width, gicr, gits};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Its(u32, bool, u64),
    LoadIts(u32, bool),
    Redistributor(usize, u32, bool, u64),
    /// A command in a place of the queue.
    Command(u64, [u64; 4]),
    /// GITS_CWRITER, to a place of it.
    Go(u64),
    Enable(bool),
    /// A redistributor's registers are lost.
    Reset(usize),
    /// The ITS's are, and perhaps restored by firmware; a CPU is back.
    Sleep(Option<bool>),
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(SECRET),
        Just(HYP.0),
        Just(QUEUE),
        Just(0x4010_0000),
        Just(RD),
        (0u64..0x1000).prop_map(|page| HOST.0 + page * 4096),
        any::<u64>(),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        (address(), 0u64..32).prop_map(|(pa, bits)| pa | bits),
        (address(), 0u64..4).prop_map(|(pa, flags)| pa | flags << 62),
        0u64..2,
        any::<u64>(),
    ]
}

fn its_register() -> impl Strategy<Value = u32> {
    prop_oneof![
        prop::sample::select(vec![gits::CTLR, gits::CBASER, gits::CWRITER, gits::CREADR]),
        (0u32..16).prop_map(|n| gits::BASER + 4 * n),
        (0u32..0x4000).prop_map(|n| 4 * n),
    ]
}

fn gicr_register() -> impl Strategy<Value = u32> {
    prop_oneof![
        prop::sample::select(vec![gicr::CTLR, gicr::PROPBASER, gicr::PENDBASER, gicr::SETLPIR]),
        (0u32..0x40).prop_map(|n| 4 * n),
        (0u32..0x4000).prop_map(|n| 4 * n),
    ]
}

/// Commands as they may make sense, and such that don't.
fn command() -> impl Strategy<Value = [u64; 4]> {
    let small = |n: u64| prop_oneof![4 => 0..n, 1 => any::<u32>().prop_map(u64::from)];
    let intid = prop_oneof![4 => 8192u64..8200, 1 => any::<u32>().prop_map(u64::from)];
    let target = prop_oneof![
        4 => (0..CPUS as u64).prop_map(|n| n << 16),
        4 => (0..CPUS as u64).prop_map(|n| RD + n * 0x2_0000),
        2 => address(),
    ];
    let sensible =
        (0u64..0x10, small(8), small(20), intid, target, 0u64..5, any::<bool>(), small(8))
            .prop_map(|(command, device, event, intid, target, icid, valid, size)| {
                let second = if command == 8 { size } else { event | intid << 32 };
                [device << 32 | command, second, u64::from(valid) << 63 | target | icid, target]
            });
    prop_oneof![8 => sensible, 1 => any::<[u64; 4]>(), 1 => (0u64..0x40, value(), value(), value()).prop_map(|(c, a, b, d)| [c, a, b, d])]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (its_register(), any::<bool>(), value()).prop_map(|(r, w, v)| Step::Its(r, w, v)),
        1 => (its_register(), any::<bool>()).prop_map(|(r, w)| Step::LoadIts(r, w)),
        3 => (0..CPUS, gicr_register(), any::<bool>(), value())
            .prop_map(|(n, r, w, v)| Step::Redistributor(n, r, w, v)),
        8 => (0u64..128, command()).prop_map(|(n, raw)| Step::Command(n, raw)),
        4 => (0u64..128).prop_map(Step::Go),
        2 => any::<bool>().prop_map(Step::Enable),
        1 => (0..CPUS).prop_map(Step::Reset),
        1 => any::<Option<bool>>().prop_map(Step::Sleep),
    ]
}

fn width(offset: u32, wide: bool) -> Width {
    if wide && offset.is_multiple_of(8) { Width::Doubleword } else { Width::Word }
}

fn take(host: &mut Host, step: Step) {
    (host.sim.fetched, host.sim.zeroed) = (0, 0);
    let result = match step {
        Step::Its(offset, wide, value) => host.try_store(offset, width(offset, wide), value),
        Step::LoadIts(offset, wide) => {
            let width = width(offset, wide);
            host.its.load(&mut host.sim, &host.targets, offset, width).map(drop)
        }
        Step::Redistributor(n, offset, wide, value) => {
            let width = width(offset, wide);
            host.redistributors.store(&mut host.sim, n, offset, width, value);
            Ok(())
        }
        Step::Command(n, raw) => {
            host.sim.host_store(QUEUE + 32 * n, &raw);
            Ok(())
        }
        Step::Go(n) => host.try_store(gits::CWRITER, Width::Doubleword, 32 * n),
        Step::Enable(on) => {
            if !on {
                let _ = host.try_store(gits::CBASER, Width::Doubleword, gits::VALID | QUEUE);
            }
            host.try_store(gits::CTLR, Width::Word, on.into())
        }
        Step::Reset(n) => {
            host.sim.redistributors[n] = Default::default();
            Ok(())
        }
        Step::Sleep(restored) => {
            match restored {
                None => host.sim.lose_its(),
                Some(on) => host.sim.restore_its(on),
            }
            host.its.wake(&mut host.sim).map(drop)
        }
    };
    assert_eq!(result, Ok(()));
    assert!(host.sim.fetched <= crate::irq::its::COMMANDS_A_TRAP);
    assert_eq!(host.sim.violations, Vec::<String>::new(), "{step:x?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn r38_the_gic_touches_nothing_but_its_tables(
        model in 0..MODELS.len(),
        steps in prop::collection::vec(step(), 1..250),
    ) {
        let mut host = Host::enabled(MODELS[model]);
        host.sim.set_byte(SECRET, 0x5a);
        for step in steps {
            take(&mut host, step);
        }
        prop_assert!(host.sim.pinned.iter().all(|&page| Sim::is_hosts(page)));
        prop_assert_eq!(host.sim.byte(SECRET), 0x5a);
        prop_assert_eq!((1..4096).find(|n| host.sim.byte(SECRET + n) != 0), None);
        // It works as before for a host that begins anew.
        let cpu = CPUS as u64 - 1;
        for (offset, value) in [(gits::CTLR, 0), (gits::BASER, 0), (gits::BASER + 8, 0)] {
            host.store(offset, value);
        }
        for n in 0..CPUS {
            for (offset, value) in [(gicr::CTLR, 0), (gicr::PROPBASER, 0x4010_0000 | 15), (gicr::CTLR, 1)] {
                host.redistributors.store(&mut host.sim, n, offset, Width::Doubleword, value);
            }
        }
        host.enable();
        host.map(3, 1, 9000, cpu);
        host.send(&[super::its::event(0x03, 3, 1)]);
        prop_assert_eq!(host.pending(9000), [cpu as usize]);
    }

    /// Every register, with every value, from whichever state the one before has left.
    #[test]
    fn r38_every_register_takes_any_value(model in 0..MODELS.len(), values in prop::collection::vec(value(), 32)) {
        let mut host = Host::enabled(MODELS[model]);
        host.map(3, 1, 9000, 0);
        for n in 0..0x4000u32 {
            let value = values[n as usize % values.len()].rotate_left(n);
            take(&mut host, Step::Its(4 * n, n % 3 == 0, value));
            take(&mut host, Step::Redistributor(n as usize % CPUS, 4 * n, n % 5 == 0, value));
        }
    }
}
