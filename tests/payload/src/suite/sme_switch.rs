//! SME state of guests across exits, interrupts, switches and CPUs, under every policy.

use super::POLICIES;
use crate::{
    context::{Counters, context, effective_streaming, need_cpus, need_sme, need_suspend},
    host::{self, GUEST_OWNER},
    instruction as insn, ledger,
    puppet::{Event, Machine, Routine},
    runner::Skip,
    streaming::{self, Guest, MODES, host_finds},
    tests,
    workers::{self, Resumed},
};
use umbra_host::kernel::{sync::Lock, timer};
use umbra_patterns::{
    model::{SM, ZA},
    tag::Tag,
};
use umbra_shared::{
    call::{Counter, Policy, VmConfig},
    exit::Reason,
    sme::{ZT0_BYTES, za_bytes},
    vcpu::VcpuFeatures,
    vl::Vq,
};

tests![
    r03_streaming_through_every_kind_of_exit,
    r02_every_pair_of_lengths_of_a_guest,
    r08_streaming_entry_with_an_interrupt_pending,
    streaming_guests_and_a_sibling_in_turn,
    streaming_interrupts_at_any_moment,
    put_saves_za_and_load_brings_it_back,
    r12_no_guest_sees_anothers_za,
    a_protected_guests_za_survives,
    r19_streaming_migration_at_every_length,
    streaming_on_all_cpus_at_once,
    r24_cpu_off_with_a_live_za,
    r24_suspend_with_a_live_za,
    a_guest_that_leaves_za_alone_moves_none,
    r31_za_is_wiped_before_its_pages_come_back,
];

fn r03_streaming_through_every_kind_of_exit() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Guest::new(policy);
        for svcr in MODES {
            guest.switch(svcr);
            guest.fill();
            streaming::host(svcr ^ (SM | ZA));
            guest.puppet.attempt(insn::WFI, 0).exit(Reason::Wfi);
            host_finds();
            assert!(matches!(guest.puppet.resume(Default::default(), [0; 4]), Event::Done(_)));
            guest.check();
            guest.puppet.at(crate::puppet::NOWHERE);
            guest.puppet.attempt(insn::LDR64, 0).exit(Reason::Mmio);
            streaming::host(svcr);
            assert!(matches!(guest.puppet.resume(Default::default(), [5; 4]), Event::Done(_)));
            guest.check();
            host_finds();
            guest.puppet.undefined(0);
            guest.check();
            host_finds();
            // Nobody looks between two of them.
            for n in 0..4 {
                guest.puppet.exec(insn::NOP, n);
            }
            guest.check();
            guest.check();
            host_finds();
        }
        guest.puppet.put();
        host_finds();
        guest.destroy();
    }
    Ok(())
}

fn r02_every_pair_of_lengths_of_a_guest() -> Result<(), Skip> {
    need_sme()?;
    let vqs = || context().common.iter().filter(|vq| vq.quadwords().is_power_of_two());
    for svq in context().common_streaming.iter() {
        for vq in vqs().map(Some).chain([None]) {
            let machine = streaming::machine(Policy::Lazy);
            let mut guest = Guest::started(&machine, VcpuFeatures::sme(vq, svq));
            for (n, svcr) in MODES.into_iter().enumerate() {
                streaming::host_at(MODES[3 - n], Vq::MAX, svq);
                guest.switch(svcr);
                guest.fill();
                host_finds();
                guest.check();
            }
            guest.puppet.put();
            host_finds();
            guest.loaded(Guest::check);
            guest.destroy();
        }
    }
    Ok(())
}

fn r08_streaming_entry_with_an_interrupt_pending() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Guest::new(policy);
        for svcr in MODES {
            guest.switch(svcr);
            guest.fill();
            guest.puppet.attempt(insn::WFI, 0).exit(Reason::Wfi);
            // The guest live, then the host.
            for host_is_live in [false, true] {
                let daif = host::pend_interrupt();
                for _ in 0..2 {
                    guest.puppet.enter(Default::default(), [0; 4]).exit(Reason::Irq);
                    if host_is_live {
                        host::make_live();
                    }
                }
                host::release_interrupt(daif);
            }
            assert!(matches!(guest.puppet.resume(Default::default(), [0; 4]), Event::Done(_)));
            guest.check();
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

fn streaming_guests_and_a_sibling_in_turn() -> Result<(), Skip> {
    need_sme()?;
    let everything = context().everything();
    let smallest = context().common_streaming.iter().next();
    let (a, b) = (streaming::machine(Policy::Lazy), streaming::machine(Policy::Scrub));
    let plan = [
        (&a, everything),
        (&b, VcpuFeatures { svq: smallest, vq: None, ..everything }),
        (&a, VcpuFeatures::sve(context().largest())),
    ];
    let mut guests = plan.map(|(machine, features)| {
        let mut guest = Guest::started(machine, features);
        guest.puppet.put();
        guest.fill_something(0);
        guest
    });
    for (round, &mode) in MODES.iter().enumerate() {
        streaming::host(mode);
        for (n, guest) in guests.iter_mut().enumerate() {
            guest.fill_something(round + n);
        }
        for _ in 0..2 {
            for guest in &mut guests {
                guest.loaded(Guest::check);
            }
            host_finds();
        }
    }
    Ok(())
}

impl Guest {
    /// Loads it, fills it in one of its modes, puts it.
    fn fill_something(&mut self, turn: usize) {
        self.loaded(|guest| {
            if guest.puppet.svq.is_some() {
                guest.switch(MODES[turn % 4]);
            }
            guest.fill();
        });
    }
}

fn streaming_interrupts_at_any_moment() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Guest::new(policy);
        guest.switch(SM | ZA);
        guest.fill();
        // Ticks that come often and never at the same place.
        timer::set_tick(timer::frequency() / 9973);
        let before = timer::ticks(0);
        let mut rounds = 0;
        while timer::ticks(0) < before + 60 {
            guest.check();
            rounds += 1;
            if rounds % 3 == 0 {
                host::make_live();
            }
            if rounds % 5 == 0 {
                guest.switch(MODES[rounds / 5 % 4]);
                guest.fill();
            }
            assert!(rounds < 100_000, "no ticks");
        }
        timer::set_tick(0);
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

fn put_saves_za_and_load_brings_it_back() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Guest::new(policy);
        for svcr in MODES {
            guest.switch(svcr);
            guest.fill();
            guest.puppet.put();
            streaming::host(SM | ZA);
            for _ in 0..2 {
                guest.loaded(|_| ());
                guest.loaded(Guest::check);
            }
            host_finds();
            guest.puppet.load();
            guest.check();
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

/// A guest that turns ZA on after another one, or streaming mode, or its largest length: zeroes.
fn r12_no_guest_sees_anothers_za() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        for svq in context().common_streaming.iter() {
            let machine = streaming::machine(policy);
            let mut writer = Guest::started(&machine, context().everything());
            writer.switch(SM | ZA);
            writer.fill();
            writer.puppet.put();
            let other = streaming::machine(policy);
            for machine in [&machine, &other] {
                let features = VcpuFeatures::sme(context().largest(), svq);
                let mut reader = Guest::started(machine, features);
                for svcr in [ZA, 0, SM | ZA, SM] {
                    reader.puppet.put();
                    writer.loaded(Guest::check);
                    reader.puppet.load();
                    reader.switch(svcr);
                    reader.check();
                }
                reader.puppet.put();
            }
            for machine in [machine, other] {
                assert_eq!(ledger::destroy(machine.vm), 0);
            }
        }
    }
    Ok(())
}

/// It fills ZA from what was there before its memory was its own, and compares by itself.
fn a_protected_guests_za_survives() -> Result<(), Skip> {
    let svq = need_sme()?;
    for policy in POLICIES {
        let tag = Tag { owner: GUEST_OWNER + 15, generation: 9 };
        let config = VmConfig { policy, protected: true, ..VmConfig::normal() };
        let machine = Machine::with_za_images(config, tag, context().largest(), svq);
        let guest = machine.vcpu_with(context().everything());
        guest.load();
        guest.start();
        let ezt0 = u64::from(streaming::has().zt0) << 30;
        guest.call(Routine::SetSmcr, [15 | ezt0, 0, 0]);
        guest.fill_prepared();
        guest.call(Routine::SetSvcr, [ZA, 0, 0]);
        let rows = za_bytes(svq) as u64;
        guest.call(Routine::FillZa, [guest.za(false), 0, 0]);
        if streaming::has().zt0 {
            guest.call(Routine::FillZt0, [guest.za(false) + rows, 0, 0]);
        }
        let check = || {
            guest.check_prepared();
            guest.call(Routine::DumpZa, [guest.za(true), 0, 0]);
            let mut count = rows;
            if streaming::has().zt0 {
                guest.call(Routine::DumpZt0, [guest.za(true) + rows, 0, 0]);
                count += ZT0_BYTES as u64;
            }
            let same = guest.call(Routine::Compare, [guest.za(false), guest.za(true), count])[0];
            assert_eq!(same, count, "guest: first byte of its ZA that differs");
        };
        for svcr in MODES {
            streaming::host(svcr);
            check();
            host_finds();
        }
        guest.put();
        host_finds();
        guest.load();
        check();
        guest.put();
    }
    Ok(())
}

fn r19_streaming_migration_at_every_length() -> Result<(), Skip> {
    need_sme()?;
    need_cpus(2)?;
    for svq in context().common_streaming.iter() {
        for (n, policy) in POLICIES.into_iter().enumerate() {
            let machine = streaming::machine(policy);
            let features = VcpuFeatures::sme(context().largest(), svq);
            let mut guest = Guest::started(&machine, features);
            guest.switch(MODES[1 + n]);
            guest.fill();
            guest.puppet.put();
            let guest = Lock::new(guest);
            for turn in 0..context().cpus + 2 {
                // What stays behind on a CPU is stale from then on.
                workers::on(turn % context().cpus, || {
                    let mut guest = guest.lock();
                    streaming::host(MODES[turn % 4]);
                    guest.loaded(|guest| {
                        guest.check();
                        if turn % 2 == 0 {
                            guest.switch(MODES[(turn + n) % 4]);
                            guest.fill();
                        }
                    });
                    host_finds();
                });
            }
            for cpu in 0..context().cpus {
                workers::on(cpu, host_finds);
            }
            assert_eq!(ledger::destroy(machine.vm), 0);
        }
    }
    Ok(())
}

fn streaming_on_all_cpus_at_once() -> Result<(), Skip> {
    need_sme()?;
    need_cpus(2)?;
    let machines = POLICIES.map(streaming::machine);
    let puppets: [_; 8] = core::array::from_fn(|cpu| {
        let machine = &machines[cpu % 3];
        (cpu < context().cpus).then(|| machine.vcpu_with(context().everything()))
    });
    workers::on_all(|cpu| {
        let puppet = puppets[cpu].expect("one for each");
        puppet.load();
        puppet.start();
        let mut guest = Guest::of(puppet);
        timer::set_tick(timer::frequency() / 2003);
        for round in 0..4 {
            streaming::host(MODES[(cpu + round) % 4]);
            guest.switch(MODES[round]);
            guest.fill();
            host_finds();
            guest.check();
        }
        timer::set_tick(0);
        puppet.put();
        host_finds();
    });
    Ok(())
}

fn r24_cpu_off_with_a_live_za() -> Result<(), Skip> {
    need_sme()?;
    need_cpus(2)?;
    for svcr in [SM, ZA, SM | ZA] {
        let mut guest = Guest::new(Policy::Lazy);
        guest.puppet.put();
        let guest = Lock::new(&mut guest);
        workers::on(1, || {
            let mut guest = guest.lock();
            streaming::host(svcr);
            guest.puppet.load();
            guest.switch(svcr);
            guest.fill();
        });
        workers::off(1);
        assert!(timer::wait_until(30, || super::fp_smp::is_off(1)), "CPU 1 does not go off");
        guest.lock().loaded(Guest::check);
        workers::on_again(1);
        workers::on(1, || {
            streaming::host(svcr);
            let mut guest = guest.lock();
            guest.loaded(Guest::check);
            check_control(&mut guest);
            host_finds();
        });
        guest.lock().loaded(Guest::check);
        let vm = guest.lock().puppet.machine.vm;
        assert_eq!(ledger::destroy(vm), 0);
    }
    Ok(())
}

/// The clamp is in force on this CPU.
fn check_control(guest: &mut Guest) {
    guest.loaded(|guest| {
        for len in (0..16).rev() {
            let given = guest.puppet.call(Routine::SetSmcr, [len, 0, 0])[0];
            let asked = Vq::from_len(len).min(guest.puppet.svq.expect("SME"));
            let expected = effective_streaming(context().common_streaming, asked);
            assert_eq!(Vq::from_vl(given), expected, "LEN {len}");
            if let Some(svq) = expected {
                guest.model.set_svq(svq);
            }
        }
        guest.set_svq(Vq::MAX);
        guest.check();
        guest.fill();
    });
}

fn r24_suspend_with_a_live_za() -> Result<(), Skip> {
    const SLEEPER: usize = 1;
    need_sme()?;
    let (standby, power_down) = need_suspend()?;
    for policy in POLICIES {
        for (n, svcr) in [SM, ZA, SM | ZA].into_iter().enumerate() {
            let mut guest = Guest::new(policy);
            guest.puppet.put();
            let guest = Lock::new(&mut guest);
            for (state, expected) in [(power_down, true), (standby, false)] {
                for host_is_live in [false, true] {
                    workers::on(SLEEPER, || {
                        let mut guest = guest.lock();
                        streaming::host(MODES[n + 1]);
                        guest.puppet.load();
                        guest.switch(svcr);
                        guest.fill();
                        if host_is_live {
                            host_finds();
                        }
                    });
                    let soon = timer::frequency() / 500;
                    let resumed = workers::suspend(SLEEPER, state, Some(soon)).wait();
                    assert_eq!(resumed == Resumed::Anew, expected, "{state:#x}");
                    workers::on(SLEEPER, || {
                        let mut guest = guest.lock();
                        if expected {
                            host::full_vl();
                            streaming::check_fresh();
                            guest.loaded(Guest::check);
                        } else {
                            guest.check();
                            host_finds();
                            guest.check();
                            guest.puppet.put();
                            host_finds();
                        }
                        check_control(&mut guest);
                    });
                    guest.lock().loaded(Guest::check);
                }
            }
            let vm = guest.lock().puppet.machine.vm;
            assert_eq!(ledger::destroy(vm), 0);
        }
    }
    Ok(())
}

fn a_guest_that_leaves_za_alone_moves_none() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Guest::new(policy);
        guest.fill();
        streaming::host(ZA);
        let before = Counters::now();
        for _ in 0..4 {
            guest.puppet.exec(insn::FP, 0);
            host::make_live();
        }
        let za = [Counter::HostZaSaves, Counter::HostZaLoads];
        assert_eq!(before.deltas(za), [0; 2], "{policy:?}: the host's ZA is nobody's matter");
        guest.puppet.put();
        host_finds();
        guest.destroy();
    }
    Ok(())
}

/// The pages that ZA was saved to come back as zeroes.
fn r31_za_is_wiped_before_its_pages_come_back() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let machine = streaming::machine(policy);
        let (flags, _) = crate::puppet::flag_page();
        let features = context().everything();
        let (count, first) = (features.pages(), ledger::take(features.pages()));
        let puppet = machine.vcpu_of(features, first, flags);
        puppet.load();
        puppet.start();
        let mut guest = Guest::of(puppet);
        guest.switch(SM | ZA);
        guest.fill();
        guest.puppet.put();
        assert_eq!(ledger::destroy(machine.vm), 0);
        for page in ledger::each(first, count) {
            for at in (0..ledger::PAGE).step_by(8) {
                let word = umbra_host::kernel::exception::probe_read(page + at);
                assert_eq!(word, Ok(0), "{:#x}", page + at);
            }
        }
    }
    Ok(())
}
