//! Streaming mode, ZA, ZT0 and FPMR of the host: preserved across guests of every kind, at no cost where
//! nobody else wants the registers.

use super::POLICIES;
use crate::{
    context::{Counters, context, effective_streaming, need_cpus, need_fpmr, need_sme},
    host, instruction as insn,
    instruction::sysreg,
    ledger,
    puppet::{Event, Machine, Puppet, Routine},
    runner::Skip,
    streaming::{self, Guest, MODES, host_fills, host_finds, host_switches, with_host},
    tests, workers,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{sync::Lock, timer},
};
use umbra_patterns::{
    model::{SM, ZA},
    pattern::Kept,
    regs::{self, sme},
};
use umbra_shared::{
    call::{Counter, Policy},
    exit::Reason,
    flags::{HostFlags, HypFlags},
    sve::Layout,
    vcpu::VcpuFeatures,
    vl::{Vq, VqSet},
};

tests![
    svl_info_is_what_rdsvl_says,
    host_svls_are_those_it_may_have,
    modes_and_lengths_without_a_guest,
    r01_host_images_hold_streaming_mode,
    r11_every_mode_survives_every_kind_of_guest,
    r11_every_pair_of_lengths,
    r11_za_stays_in_place_for_guests_without_sme,
    r11_streaming_mode_costs_one_image,
    r11_za_moves_once_in_each_direction,
    r11_entry_with_an_interrupt_pending,
    r11_interrupts_at_any_moment,
    r11_put_and_migration,
    r11_new_modes_are_not_overwritten,
    r11_ffr_of_streaming_mode,
    r11_first_access_is_a_change_of_mode,
    r11_streaming_mode_with_sve_closed_at_el1,
    r11_hints,
    r11_lying_hints_harm_no_guest,
    smcr_and_tpidr2_are_the_hosts,
    no_guest_runs_in_the_hosts_streaming_mode,
    r12_the_host_never_sees_a_guests_za,
    hyps_word_tells_the_truth_of_streaming_hosts,
    r24_a_cpu_comes_back_without_modes,
    r06_fpmr_of_both_worlds,
    r21_r22_status_after_a_displaced_streaming_mode,
];

use Counter::{
    GuestFpTraps, GuestZaLoads, GuestZaSaves, HostFpTraps, HostLoads, HostLoadsAvoided,
    HostSavesFull, HostZaLoads, HostZaSaves, Runs,
};

/// What a guest does, and what it must have for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Nothing,
    Fp,
    Sve,
    Streaming,
    Za,
    Everything,
}

/// A small SVL.
const SMALL: Vq = Vq::from_len(3);

const USES: [Use; 6] = [Use::Nothing, Use::Fp, Use::Sve, Use::Streaming, Use::Za, Use::Everything];

impl Use {
    fn features(self) -> VcpuFeatures {
        let all = context().everything();
        match self {
            Self::Nothing | Self::Fp => VcpuFeatures::FPSIMD,
            Self::Sve => VcpuFeatures::sve(all.vq),
            Self::Streaming | Self::Za | Self::Everything => all,
        }
    }

    fn guest(self, policy: Policy) -> Guest {
        Guest::started(&streaming::machine(policy), self.features())
    }

    /// The same with a small ZA, for tests of many turns.
    fn small_guest(self, policy: Policy) -> Guest {
        let mut features = self.features();
        if features.svq.is_some() {
            let small = context().common_streaming.iter().filter(|&svq| svq <= SMALL);
            features.svq = small.last().or(features.svq);
        }
        Guest::started(&streaming::machine(policy), features)
    }

    fn begin(self, guest: &mut Guest) {
        match self {
            Self::Nothing => {
                guest.puppet.exec(insn::NOP, 0);
            }
            Self::Fp | Self::Sve => guest.fill(),
            Self::Streaming => {
                guest.switch(SM);
                guest.fill();
            }
            Self::Za => {
                guest.switch(ZA);
                guest.fill_za();
            }
            Self::Everything => {
                guest.switch(SM | ZA);
                guest.fill();
            }
        }
    }

    fn check(self, guest: &mut Guest) {
        match self {
            Self::Nothing => {
                guest.puppet.exec(insn::NOP, 0);
            }
            _ => guest.check(),
        }
    }
}

/// What a CPU's registers can select.
fn selectable() -> VqSet {
    let found = (0..16).map(|len| sme::set_svl(Vq::from_len(len)));
    let found = found.fold(VqSet::EMPTY, VqSet::with);
    sme::set_svl(Vq::MAX);
    found
}

fn svl_info_is_what_rdsvl_says() -> Result<(), Skip> {
    if !sme::has_sme() {
        return Err(Skip("no SME"));
    }
    workers::on_all(|cpu| {
        let found = selectable();
        assert_eq!(found, context().host_svqs(cpu), "streaming vector lengths of CPU {cpu}");
        for len in 0..16 {
            let asked = Vq::from_len(len);
            assert_eq!(Some(sme::set_svl(asked)), effective_streaming(found, asked), "LEN {len}");
        }
        sme::set_svl(Vq::MAX);
    });
    let booted = (0..context().cpus).filter(|cpu| !context().late.contains(cpu));
    let all = VqSet::common(booted.map(|cpu| context().svqs[cpu]));
    assert_eq!(all, context().guests_streaming);
    Ok(())
}

fn host_svls_are_those_it_may_have() -> Result<(), Skip> {
    need_sme()?;
    let mut wider = 0;
    for cpu in 0..context().cpus {
        let hardware = context().svqs[cpu].max();
        workers::on(cpu, || {
            let may = context().host_svqs(cpu).max();
            for smcr in [0xf, 0x1ff, sme::FA64 | sme::EZT0 | 0xf, u64::MAX] {
                sme::set_smcr(smcr);
                assert_eq!(Some(sme::rdsvl()), may, "SMCR_EL1 = {smcr:#x} on CPU {cpu}");
                // Streaming or not.
                sme::set_svcr(SM);
                assert_eq!(Some(sme::rdsvl()), may);
                assert_eq!(Some(regs::rdvl()), may);
                sme::set_svcr(0);
            }
        });
        wider += usize::from(hardware > context().host_svqs(cpu).max());
    }
    let all_alike = context().svqs[..context().cpus].iter().all(|&s| s == context().svqs[0]);
    assert!(
        !context().host_vl_common() || all_alike || wider > 0,
        "a machine on which the option changes nothing shows nothing"
    );
    Ok(())
}

/// Nobody between: what the model says is what the CPU does, and what the tests below find is hyp's doing.
fn modes_and_lengths_without_a_guest() -> Result<(), Skip> {
    if !sme::has_sme() {
        return Err(Skip("no SME"));
    }
    for cpu in 0..context().cpus.min(2) {
        workers::on(cpu, || {
            streaming::host(0);
            for large in selectable().iter() {
                for small in selectable().iter().filter(|&small| small <= large) {
                    for (from, to) in MODES.into_iter().zip(MODES.into_iter().cycle().skip(1)) {
                        with_host(|registers| registers.set_svq(large));
                        host_switches(from);
                        host_finds();
                        host_fills();
                        with_host(|registers| registers.set_svq(small));
                        host_finds();
                        if large != small {
                            with_host(|registers| registers.set_svq(large));
                            host_finds();
                        }
                        host_switches(to);
                        host_finds();
                    }
                }
            }
        });
    }
    Ok(())
}

fn r01_host_images_hold_streaming_mode() -> Result<(), Skip> {
    need_sme()?;
    workers::on_all(|cpu| {
        let info = Hvc.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO");
        assert_eq!(info.image_bytes, context().image_bytes(), "CPU {cpu}");
        let svq = selectable().max().expect("SME");
        let saved = umbra_shared::sme::Storage::new(None, Some(svq)).bytes();
        assert!(info.image_bytes >= saved as u64, "CPU {cpu}: saves {saved}");
    });
    Ok(())
}

fn r11_every_mode_survives_every_kind_of_guest() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        for what in USES {
            let mut guest = what.guest(policy);
            for svcr in MODES {
                streaming::host(svcr);
                what.begin(&mut guest);
                assert_eq!(sme::svcr(), svcr, "{policy:?}, {what:?}");
                host_finds();
                // With the host live again, and with the guest live all the time.
                for _ in 0..2 {
                    what.check(&mut guest);
                    host_finds();
                }
                host_fills();
                what.check(&mut guest);
                what.check(&mut guest);
                host_finds();
            }
            guest.puppet.put();
            host_finds();
            guest.destroy();
        }
    }
    Ok(())
}

fn r11_every_pair_of_lengths() -> Result<(), Skip> {
    need_sme()?;
    for cpu in 0..context().cpus {
        let guests = [Use::Sve, Use::Everything].map(|what| {
            let mut guest = what.guest(Policy::Lazy);
            what.begin(&mut guest);
            guest.puppet.put();
            guest
        });
        let vms = guests.each_ref().map(|guest| guest.puppet.machine.vm);
        let guests = Lock::new(guests);
        workers::on(cpu, || {
            let mut guests = guests.lock();
            let mut turn = 0;
            for svq in context().host_svqs(cpu).iter() {
                // Without SVE there is one turn, at the only length there is.
                let vqs = context().host_vqs(cpu).with(Vq::MIN);
                for vq in vqs.iter().filter(|vq| vq.quadwords().is_power_of_two()) {
                    streaming::host_at(MODES[turn % 4], vq, svq);
                    for guest in guests.iter_mut() {
                        guest.loaded(Guest::check);
                        host_finds();
                    }
                    turn += 1;
                }
            }
        });
        for vm in vms {
            assert_eq!(ledger::destroy(vm), 0);
        }
    }
    Ok(())
}

/// A guest that uses FP or SVE displaces Z and P, and ZA stays where it is.
fn r11_za_stays_in_place_for_guests_without_sme() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        for what in [Use::Nothing, Use::Fp, Use::Sve, Use::Streaming] {
            let mut guest = what.guest(policy);
            // Outside streaming mode, or it would be left at each entry.
            streaming::host(ZA);
            let before = Counters::now();
            what.begin(&mut guest);
            for _ in 0..3 {
                host_finds();
                what.check(&mut guest);
            }
            host_finds();
            let moved = before.deltas([HostZaSaves, HostZaLoads, GuestZaSaves, GuestZaLoads]);
            if what != Use::Streaming {
                assert_eq!(moved, [0; 4], "{policy:?}, {what:?}: moves of ZA");
            } else {
                assert_eq!(moved[2..], [0; 2], "{policy:?}: the guest has no ZA to move");
            }
            if what == Use::Nothing {
                let moved = before.deltas([HostFpTraps, GuestFpTraps, HostLoads, HostSavesFull]);
                assert_eq!(moved, [0; 4], "{policy:?}: traps, loads and saves");
            }
            guest.puppet.put();
            guest.destroy();
        }
    }
    Ok(())
}

/// Streaming mode is left at each entry and comes back at each exit: one save and one load, no trap. ZA
/// stays where it is.
fn r11_streaming_mode_costs_one_image() -> Result<(), Skip> {
    need_sme()?;
    for svcr in [SM, SM | ZA] {
        let guest = Use::Nothing.guest(Policy::Lazy);
        streaming::host(svcr);
        let before = Counters::now();
        for n in 1..=4 {
            guest.puppet.exec(insn::NOP, n);
            let runs = before.since(Runs);
            assert!(runs >= n, "{runs} entries");
            host_finds();
            host_finds();
            let moved = before.deltas([HostSavesFull, HostLoads, HostLoadsAvoided]);
            assert_eq!(moved, [runs, runs, 0], "SVCR {svcr}, {runs} entries");
            let traps = before.deltas([HostFpTraps, GuestFpTraps, HostZaSaves, HostZaLoads]);
            assert_eq!(traps, [0; 4], "SVCR {svcr}: traps and moves of ZA");
        }
        guest.puppet.put();
        host_finds();
        assert_eq!(before.deltas([HostSavesFull, HostFpTraps]), [before.since(Runs), 0]);
        guest.destroy();
    }
    Ok(())
}

fn r11_za_moves_once_in_each_direction() -> Result<(), Skip> {
    need_sme()?;
    let mut guest = Use::Za.guest(Policy::Lazy);
    streaming::host(ZA);
    let before = Counters::now();
    let za = || before.deltas([HostZaSaves, HostZaLoads, GuestZaSaves, GuestZaLoads]);
    guest.switch(ZA);
    guest.fill_za();
    for n in 0..4 {
        guest.puppet.exec(insn::NOP, n);
        guest.puppet.exec(insn::RDSVL, n);
    }
    assert_eq!(za()[..2], [1, 0], "the guest's ZA in the host's place");
    host_finds();
    let [saves, loads, guest_saves, _] = za();
    assert_eq!((saves, loads, guest_saves), (1, 1, 1), "and back");
    host_finds();
    guest.puppet.exec(insn::NOP, 0);
    host_finds();
    assert_eq!(za()[..3], [1, 1, 1], "nothing moves without need");
    guest.check();
    assert_eq!(za()[..1], [2]);
    guest.puppet.put();
    host_finds();
    assert_eq!(za()[..3], [2, 2, 2], "put saves what is live");
    guest.destroy();
    Ok(())
}

fn r11_entry_with_an_interrupt_pending() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Use::Everything.guest(policy);
        Use::Everything.begin(&mut guest);
        for svcr in MODES {
            guest.puppet.attempt(insn::WFI, 0).exit(Reason::Wfi);
            streaming::host(svcr);
            let daif = host::pend_interrupt();
            for _ in 0..3 {
                guest.puppet.enter(Default::default(), [0; 4]).exit(Reason::Irq);
                host_finds();
                host_fills();
                guest.puppet.enter(Default::default(), [0; 4]).exit(Reason::Irq);
                guest.puppet.enter(Default::default(), [0; 4]).exit(Reason::Irq);
                host_finds();
            }
            host::release_interrupt(daif);
            assert!(matches!(guest.puppet.resume(Default::default(), [0; 4]), Event::Done(_)));
            guest.check();
            host_finds();
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

fn r11_interrupts_at_any_moment() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Use::Everything.guest(policy);
        Use::Everything.begin(&mut guest);
        let mut rounds = 0;
        streaming::host(SM | ZA);
        timer::set_tick(timer::frequency() / 4999);
        let before = timer::ticks(0);
        while timer::ticks(0) < before + 40 {
            guest.check();
            host_finds();
            rounds += 1;
            assert!(rounds < 100_000, "no ticks");
        }
        timer::set_tick(0);
        guest.puppet.put();
        host_finds();
        guest.destroy();
    }
    Ok(())
}

fn r11_put_and_migration() -> Result<(), Skip> {
    need_sme()?;
    need_cpus(2)?;
    for policy in POLICIES {
        let mut guest = Use::Everything.guest(policy);
        Use::Everything.begin(&mut guest);
        guest.puppet.put();
        let guest = Lock::new(guest);
        for svcr in MODES {
            // Every CPU's host in another mode.
            for turn in 0..3 {
                for cpu in 0..context().cpus.min(3) {
                    workers::on(cpu, || {
                        let mut guest = guest.lock();
                        if turn == 0 {
                            streaming::host(svcr ^ MODES[cpu % 4]);
                        }
                        guest.puppet.load();
                        guest.check();
                        if turn == 1 {
                            host_finds();
                            guest.fill();
                        }
                        guest.puppet.put();
                        if turn == 2 {
                            host_finds();
                        }
                    });
                }
            }
            for cpu in 0..context().cpus.min(3) {
                workers::on(cpu, host_finds);
            }
        }
        let vm = guest.lock().puppet.machine.vm;
        ledger::destroy(vm);
    }
    Ok(())
}

/// r05, with modes: what the host does between two runs counts.
fn r11_new_modes_are_not_overwritten() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Use::Everything.guest(policy);
        Use::Everything.begin(&mut guest);
        streaming::host(0);
        for from in MODES {
            for to in MODES {
                host_switches(from);
                host_fills();
                guest.check();
                host_switches(to);
                host_finds();
                guest.puppet.exec(insn::NOP, 0);
                host_finds();
                guest.check();
                host_finds();
            }
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

/// With FEAT_SME_FA64 streaming mode has an FFR, whether SMCR_EL1.FA64 lets the host at it now or not.
fn r11_ffr_of_streaming_mode() -> Result<(), Skip> {
    need_sme()?;
    if !sme::has_fa64() {
        return Err(Skip("no FFR in streaming mode"));
    }
    for what in USES {
        let mut guest = what.guest(Policy::Lazy);
        for svq in context().host_svqs(0).iter() {
            streaming::host_at(SM | ZA, Vq::MAX, svq);
            let open = sme::smcr();
            sme::set_smcr(open & !sme::FA64);
            what.begin(&mut guest);
            assert_eq!(sme::smcr() & !sme::FA64, open & !sme::FA64, "SMCR_EL1");
            sme::set_smcr(open);
            host_finds();
            // The other way round: closed when it comes back.
            what.check(&mut guest);
            sme::set_smcr(open & !sme::FA64);
            what.check(&mut guest);
            sme::set_smcr(open);
            host_finds();
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

/// With a guest live, the host's first access is an SMSTART or an SMSTOP: it must trap, for it would
/// wipe the guest's registers. A host in streaming mode has its own back by then, and no trap to wait for.
fn r11_first_access_is_a_change_of_mode() -> Result<(), Skip> {
    need_sme()?;
    for what in [Use::Fp, Use::Sve, Use::Streaming, Use::Za, Use::Everything] {
        let mut guest = what.guest(Policy::Lazy);
        what.begin(&mut guest);
        for from in MODES {
            for to in MODES {
                streaming::host(from);
                what.check(&mut guest);
                let traps = host::traps(|| {
                    // Without a look before it.
                    sme::set_svcr(to);
                    assert_eq!(sme::svcr(), to);
                });
                assert_eq!(traps, u64::from(from & SM == 0), "{what:?}: {from} to {to}");
                with_host(|registers| registers.model().set_svcr(to));
                host_finds();
                what.check(&mut guest);
                host_finds();
            }
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

/// In streaming mode SVE's instructions are open by CPACR_EL1.SMEN, whatever ZEN says; so they are when they
/// are the first access after a guest.
fn r11_streaming_mode_with_sve_closed_at_el1() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        for what in USES {
            let mut guest = what.guest(policy);
            for svcr in [SM, SM | ZA] {
                streaming::host(svcr);
                let svl = sme::rdsvl();
                regs::enable_all_but_sve();
                what.begin(&mut guest);
                assert_eq!(regs::rdvl(), svl, "{policy:?}, {what:?}");
                what.check(&mut guest);
                assert_eq!(regs::rdvl(), svl, "{policy:?}, {what:?}: once more");
                regs::enable();
                host_finds();
            }
            guest.puppet.put();
            guest.destroy();
        }
    }
    Ok(())
}

fn r11_hints() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        for what in USES {
            let mut guest = what.small_guest(policy);
            for svcr in MODES {
                for word in 0..4 {
                    let hint = HostFlags::from_bits_retain(word);
                    guest.puppet.hint(HostFlags::empty());
                    streaming::host_at(svcr, Vq::MAX, SMALL);
                    guest.puppet.hint(hint);
                    with_host(|registers| {
                        if hint.contains(HostFlags::FOREIGN_FPSTATE) {
                            registers.model().lose();
                        } else if hint.contains(HostFlags::SVE_DISCARDED) {
                            // Says nothing of ZA, and nothing at all in streaming mode.
                            registers.model().discard();
                        }
                    });
                    what.begin(&mut guest);
                    host_finds();
                    guest.puppet.hint(HostFlags::empty());
                    what.check(&mut guest);
                    host_finds();
                    if hint.contains(HostFlags::FOREIGN_FPSTATE) && what == Use::Everything {
                        assert_eq!(sme::svcr(), 0, "{policy:?}: what was given up is gone");
                        sme::set_svcr(ZA);
                        with_host(|registers| registers.model().set_svcr(ZA));
                        host_finds();
                    }
                    host_switches(0);
                }
            }
            guest.puppet.put();
            guest.destroy();
        }
    }
    Ok(())
}

fn r11_lying_hints_harm_no_guest() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        let mut guest = Use::Everything.small_guest(policy);
        Use::Everything.begin(&mut guest);
        for svcr in MODES {
            for word in 0..4 {
                for then in 0..4 {
                    guest.puppet.hint(HostFlags::empty());
                    streaming::host_at(svcr, Vq::MAX, SMALL);
                    with_host(|registers| registers.model().lose());
                    guest.puppet.hint(HostFlags::from_bits_retain(word | word << 40));
                    guest.puppet.exec(insn::FP, 0);
                    guest.model.set_svcr(guest.model.svcr() ^ SM);
                    guest.puppet.call(Routine::SetSvcr, [guest.model.svcr(), 0, 0]);
                    guest.fill();
                    guest.puppet.hint(HostFlags::from_bits_retain(then));
                    guest.check();
                    host_finds();
                    guest.check();
                    guest.puppet.put();
                    host_finds();
                    guest.puppet.load();
                    guest.check();
                }
            }
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

fn smcr_and_tpidr2_are_the_hosts() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        for what in USES {
            let mut guest = what.guest(policy);
            let has_sme = guest.puppet.svq.is_some();
            for n in 0..18 {
                let value = if n < 16 { n } else { sme::FA64 | sme::EZT0 | ((n & 1) * 0xf) };
                sme::set_smcr(value);
                let taken = sme::smcr();
                assert_eq!(taken & 0xf, value & 0xf);
                sme::set_tpidr2(0x7d2_0000 + n);
                let svl = sme::rdsvl();
                what.begin(&mut guest);
                if has_sme {
                    guest.puppet.write(sysreg::TPIDR2, !n);
                    guest.puppet.write(sysreg::SMCR, 15 - (n & 15));
                }
                assert_eq!(sme::tpidr2(), 0x7d2_0000 + n, "{what:?}: TPIDR2_EL0");
                assert_eq!(sme::smcr(), taken, "{what:?}: SMCR_EL1");
                assert_eq!(sme::rdsvl(), svl, "{what:?}: the SVL");
                if has_sme {
                    assert_eq!(guest.puppet.read(sysreg::TPIDR2), !n);
                    assert_eq!(guest.puppet.read(sysreg::SMCR) & 0xf, 15 - (n & 15));
                    guest.set_svq(Vq::MAX);
                }
            }
            guest.puppet.put();
            guest.destroy();
        }
    }
    Ok(())
}

/// What is illegal in streaming mode works in a guest that is not in it, whatever the host's mode is.
fn no_guest_runs_in_the_hosts_streaming_mode() -> Result<(), Skip> {
    need_sme()?;
    for what in [Use::Fp, Use::Sve, Use::Everything] {
        let mut guest = what.guest(Policy::Lazy);
        let puppet = guest.puppet;
        for svcr in MODES {
            streaming::host(svcr);
            puppet.exec(insn::ADVSIMD, 0);
            if let Some(vq) = puppet.vq {
                assert_eq!(puppet.rdvl(), vq, "the VL, not the host's SVL");
            }
            if puppet.svq.is_some() {
                assert_eq!(puppet.call(Routine::Svcr, [0; 3])[0], 0, "host {svcr}");
            }
            host_finds();
            guest.fill();
            puppet.exec(insn::NOP, 0);
            guest.check();
            host_finds();
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

/// The host turns ZA and streaming mode on after a guest that used them, at all its lengths: zeroes.
fn r12_the_host_never_sees_a_guests_za() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        for svq in context().common_streaming.iter() {
            let features = VcpuFeatures::sme(context().largest(), svq);
            let mut guest = Guest::started(&streaming::machine(policy), features);
            let host_svqs = || context().host_svqs(0).iter();
            let (smallest, largest) = (host_svqs().next(), host_svqs().last());
            for host_svq in
                host_svqs().filter(|&at| [smallest, Some(svq), largest].contains(&Some(at)))
            {
                for foreign in [false, true] {
                    for svcr in [ZA, SM] {
                        streaming::host_at(0, Vq::MAX, host_svq);
                        let mut hint = HostFlags::empty();
                        hint.set(HostFlags::FOREIGN_FPSTATE, foreign);
                        guest.puppet.hint(hint);
                        guest.switch(SM | ZA);
                        guest.fill();
                        if foreign {
                            with_host(|registers| registers.model().lose());
                        }
                        // New registers of the host's, of which the model knows that they are zero.
                        host_switches(svcr);
                        host_finds();
                        with_host(|registers| registers.set_svq(Vq::MAX));
                        host_finds();
                        guest.check();
                        guest.switch(0);
                    }
                }
            }
            guest.puppet.put();
            guest.destroy();
        }
    }
    Ok(())
}

fn hyps_word_tells_the_truth_of_streaming_hosts() -> Result<(), Skip> {
    need_sme()?;
    let (loaded, preserved) = (HypFlags::GUEST_FP_LOADED, HypFlags::HOST_FP_PRESERVED);
    // A guest in streaming mode is saved at each exit.
    for (what, live) in [(Use::Za, loaded), (Use::Everything, HypFlags::empty())] {
        let mut guest = what.guest(Policy::Lazy);
        let flags = guest.puppet.flags;
        for svcr in MODES {
            guest.puppet.hint(HostFlags::empty());
            streaming::host(svcr);
            guest.puppet.exec(insn::NOP, 0);
            assert_eq!(flags.sync(), preserved, "host {svcr}: saved or where it was");
            what.begin(&mut guest);
            let (at_exit, traps) = match svcr & SM {
                // Its registers are back already: nobody else's are live.
                SM => (preserved, 0),
                _ => (live | preserved, 1),
            };
            assert_eq!(flags.sync(), at_exit, "{what:?}, host {svcr}");
            assert_eq!(host::traps(host_finds), traps, "{what:?}, host {svcr}");
            assert_eq!(flags.sync(), preserved, "{what:?}, host {svcr}: it has them");
            guest.puppet.hint(HostFlags::FOREIGN_FPSTATE);
            what.begin(&mut guest);
            assert_eq!(flags.sync(), live, "{what:?}, host {svcr}: nothing of it is kept");
            guest.puppet.put();
            assert_eq!(flags.sync(), HypFlags::empty());
            guest.puppet.load();
        }
        guest.puppet.put();
    }
    Ok(())
}

/// A CPU that goes off in streaming mode, with ZA and a guest live on it, comes back without any.
fn r24_a_cpu_comes_back_without_modes() -> Result<(), Skip> {
    need_sme()?;
    need_cpus(2)?;
    for policy in [Policy::Lazy, Policy::Scrub] {
        for host_is_live in [false, true] {
            let mut guest = Use::Everything.guest(policy);
            guest.puppet.put();
            let guest = Lock::new(&mut guest);
            workers::on(1, || {
                let mut guest = guest.lock();
                streaming::host(SM | ZA);
                guest.puppet.load();
                Use::Everything.begin(&mut guest);
                if host_is_live {
                    host_finds();
                }
            });
            workers::off(1);
            assert!(timer::wait_until(30, || super::fp_smp::is_off(1)), "CPU 1 does not go off");
            guest.lock().loaded(Guest::check);
            workers::on_again(1);
            workers::on(1, || {
                assert_eq!(sme::svcr(), 0, "SVCR after CPU_ON");
                host::full_vl();
                host::check_zero();
                // The model begins with zeroes.
                streaming::check_fresh();
                assert_eq!(selectable(), context().host_svqs(1), "after CPU_ON");
                streaming::host(SM | ZA);
                guest.lock().loaded(Guest::check);
                host_finds();
            });
            let vm = guest.lock().puppet.machine.vm;
            ledger::destroy(vm);
        }
    }
    Ok(())
}

fn r06_fpmr_of_both_worlds() -> Result<(), Skip> {
    need_fpmr()?;
    const HOST: u64 = 0x15_5a2a_4049;
    const GUEST: u64 = 0x2a_a555_8000;
    for policy in POLICIES {
        for features in [VcpuFeatures::FPSIMD, context().everything()] {
            let guest: Puppet = Machine::with_policy(policy).vcpu_with(features);
            guest.load();
            guest.start();
            assert_eq!(guest.read(sysreg::PFR2) >> 32 & 0xf, 1, "ID_AA64PFR2_EL1.FPMR");
            assert_eq!(guest.read(sysreg::FPMR), 0, "after reset");
            host::fill(1);
            sme::set_fpmr(HOST);
            guest.write(sysreg::FPMR, GUEST);
            assert_eq!(sme::fpmr(), HOST, "{policy:?}: the host's");
            assert_eq!(guest.read(sysreg::FPMR), GUEST, "{policy:?}: the guest's");
            guest.put();
            assert_eq!(sme::fpmr(), HOST, "{policy:?}: after put");
            guest.load();
            assert_eq!(guest.read(sysreg::FPMR), GUEST);
            // What a hint says of SVE says nothing of FPMR.
            guest.hint(HostFlags::SVE_DISCARDED);
            host::fill(2);
            sme::set_fpmr(HOST >> 1 & HOST);
            guest.exec(insn::FP, 0);
            assert_eq!(sme::fpmr(), HOST >> 1 & HOST);
            host::check_kept(2, Kept::Fpsimd);
            guest.hint(HostFlags::FOREIGN_FPSTATE);
            guest.write(sysreg::FPMR, GUEST);
            let found = sme::fpmr();
            assert_eq!(found, 0, "{policy:?}: given up");
            guest.put();
            assert_eq!(ledger::destroy(guest.machine.vm), 0);
        }
    }
    Ok(())
}

/// Going back into streaming mode sets FPSR and zeroes FPMR, Z and P; so they are restored behind it, and
/// saved before it is left.
fn r21_r22_status_after_a_displaced_streaming_mode() -> Result<(), Skip> {
    need_sme()?;
    for policy in POLICIES {
        for what in USES {
            let mut guest = what.guest(policy);
            for (n, svcr) in [SM, SM | ZA].into_iter().enumerate() {
                streaming::host(svcr);
                let (fpsr, fpcr) = (1 << 27 | 1 << n, 3 << 22);
                regs::set_status(fpsr, fpcr);
                if sme::has_fpmr() {
                    sme::set_fpmr(0x40 << n);
                }
                what.begin(&mut guest);
                assert_eq!(regs::status(), (fpsr, fpcr), "{policy:?}, {what:?}: FPSR, FPCR");
                if sme::has_fpmr() {
                    assert_eq!(sme::fpmr(), 0x40 << n, "{policy:?}, {what:?}: FPMR");
                }
                assert_eq!(sme::svcr(), svcr);
                let svl = sme::rdsvl();
                let mut image = [0; umbra_patterns::pattern::MAX_IMAGE_BYTES];
                if sme::has_fa64() {
                    assert_eq!(regs::dump(&mut image), svl);
                    let zero = image[..Layout::new(svl).image_bytes()].iter().all(|&b| b == 0);
                    assert!(!zero, "{policy:?}, {what:?}: wiped behind the restore");
                }
                what.check(&mut guest);
            }
            guest.puppet.put();
            guest.destroy();
        }
    }
    Ok(())
}
