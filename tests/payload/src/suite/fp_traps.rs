//! When FP traps and when registers move, by hyp's counters; and what the host's hints do to that.

use super::POLICIES;
use crate::{
    context::{Counters, context, need_sve},
    host, instruction as insn,
    puppet::{Event, Machine, Puppet, Routine},
    runner::Skip,
    tests, workers,
};
use umbra_patterns::{pattern::Kept, regs};
use umbra_shared::{
    call::{Counter, Policy, VmConfig},
    exit::RunFlags,
    flags::{FlagShadowPage, HostFlags, HypFlags},
    vl::Vq,
};

tests![
    r10_a_guest_without_fp_costs_nothing,
    r10_lazy_moves_once_in_each_direction,
    r10_eager_brings_the_host_back_at_exit,
    r10_scrub_takes_the_guest_out_at_exit,
    r12_attack_a_policy_for_somebody_elses_registers,
    r17_hints_do_not_make_a_vcpu_what_it_is_not,
    foreign_avoids_the_save,
    discarded_saves_fpsimd_and_zeroes_the_rest,
    reserved_bits_of_the_hint_mean_nothing,
    lying_hints_harm_no_guest,
    hints_that_change_while_a_guest_runs,
    i8_the_hint_is_read_once_per_entry,
    hyps_word_tells_the_truth,
    i4_no_guest_exceeds_its_clamp,
    zcr_takes_any_value,
];

use Counter::{
    GuestFpTraps, GuestLoads, GuestSaves, HostFpTraps, HostLoads, HostSavesAvoided,
    HostSavesFpsimd, HostSavesFull,
};

/// What moves registers.
const MOVES: [Counter; 5] = [GuestFpTraps, HostFpTraps, GuestLoads, GuestSaves, HostLoads];

fn guest(policy: Policy) -> Puppet {
    let guest = Machine::with_policy(policy).started(context().largest());
    guest.hint(HostFlags::empty());
    guest
}

fn saves() -> Counter {
    if context().sve() { HostSavesFull } else { HostSavesFpsimd }
}

fn r10_a_guest_without_fp_costs_nothing() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = guest(policy);
        host::fill(1);
        let before = Counters::now();
        for n in 0..16 {
            guest.exec(insn::NOP, n);
            host::check(1);
        }
        guest.put();
        guest.load();
        host::check(1);
        assert_eq!(before.deltas(MOVES), [0; 5], "{policy:?}: traps, loads and saves");
        guest.put();
    }
    Ok(())
}

fn r10_lazy_moves_once_in_each_direction() -> Result<(), Skip> {
    let guest = guest(Policy::Lazy);
    host::make_live();
    let start = Counters::now();
    guest.exec(insn::FP, 0);
    assert_eq!(start.deltas(MOVES), [1, 0, 1, 0, 0], "the guest's first FP instruction");
    assert_eq!(start.since(saves()), 1);
    for n in 0..8 {
        guest.exec(insn::FP, n);
        guest.exec(insn::NOP, n);
    }
    assert_eq!(start.deltas(MOVES), [1, 0, 1, 0, 0], "exits while the guest is live");
    host::make_live();
    assert_eq!(start.deltas(MOVES), [1, 1, 1, 1, 1], "the host's first FP instruction");
    host::make_live();
    guest.exec(insn::NOP, 0);
    host::make_live();
    assert_eq!(start.deltas(MOVES), [1, 1, 1, 1, 1], "and those after it");
    guest.exec(insn::FP, 0);
    guest.put();
    assert_eq!(start.deltas(MOVES), [2, 1, 2, 2, 1], "put saves what is live");
    guest.load();
    guest.exec(insn::NOP, 0);
    guest.put();
    assert_eq!(start.deltas(MOVES), [2, 1, 2, 2, 1], "and nothing else");
    host::make_live();
    assert_eq!(start.deltas(MOVES), [2, 2, 2, 2, 2]);
    Ok(())
}

fn r10_eager_brings_the_host_back_at_exit() -> Result<(), Skip> {
    let guest = guest(Policy::Eager);
    host::make_live();
    let start = Counters::now();
    guest.exec(insn::FP, 0);
    assert_eq!(start.deltas(MOVES), [1, 0, 1, 1, 1]);
    host::make_live();
    assert_eq!(start.deltas(MOVES), [1, 0, 1, 1, 1], "the host does not trap");
    guest.exec(insn::NOP, 0);
    assert_eq!(start.deltas(MOVES), [1, 0, 1, 1, 1], "nothing was live at this exit");
    guest.put();
    Ok(())
}

fn r10_scrub_takes_the_guest_out_at_exit() -> Result<(), Skip> {
    let guest = guest(Policy::Scrub);
    host::make_live();
    let start = Counters::now();
    guest.exec(insn::FP, 0);
    assert_eq!(start.deltas(MOVES), [1, 0, 1, 1, 0]);
    assert!(!guest.flags.sync().contains(HypFlags::GUEST_FP_LOADED));
    guest.exec(insn::FP, 0);
    assert_eq!(start.deltas(MOVES), [2, 0, 2, 2, 0], "it comes back");
    host::make_live();
    assert_eq!(start.deltas(MOVES), [2, 1, 2, 2, 1]);
    guest.put();
    Ok(())
}

/// What once worked: the host asked for a protected VM whose registers stay on the CPU while it runs
/// itself, closed to it, but not to speculation.
fn r12_attack_a_policy_for_somebody_elses_registers() -> Result<(), Skip> {
    let expected = match context().protected_policy() {
        // The first use costs a trap and a load, and the registers stay.
        Policy::Lazy => ([1, 0, 1, 0, 0], [1, 0, 1, 0, 0]),
        _ => ([1, 0, 1, 1, 0], [2, 0, 2, 2, 0]),
    };
    for policy in POLICIES {
        let machine = Machine::new(VmConfig { policy, protected: true, ..VmConfig::normal() });
        let guest = machine.started(context().largest());
        guest.hint(HostFlags::empty());
        host::make_live();
        let start = Counters::now();
        guest.exec(insn::FP, 0);
        assert_eq!(start.deltas(MOVES), expected.0, "{policy:?} asked for");
        let stays = guest.flags.sync().contains(HypFlags::GUEST_FP_LOADED);
        assert_eq!(stays, context().protected_policy() == Policy::Lazy, "{policy:?} asked for");
        guest.exec(insn::FP, 0);
        assert_eq!(start.deltas(MOVES), expected.1, "{policy:?} asked for");
        guest.put();
    }
    Ok(())
}

fn r17_hints_do_not_make_a_vcpu_what_it_is_not() -> Result<(), Skip> {
    need_sve()?;
    let machine = Machine::normal();
    for (vq, hints) in [(None, HostFlags::all()), (context().largest(), HostFlags::SVE_DISCARDED)] {
        let guest = machine.started(vq);
        guest.fill(1);
        guest.hint(hints);
        host::make_live();
        if vq.is_none() {
            guest.undefined(insn::SVE);
        } else {
            guest.exec(insn::SVE, 0);
            guest.fill(1);
        }
        host::make_live();
        guest.check(1);
        guest.put();
    }
    Ok(())
}

fn foreign_avoids_the_save() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = guest(policy);
        host::full_vl();
        // Hyp's buffer holds an older state of the host's, which must not come back.
        host::fill(7);
        guest.exec(insn::FP, 0);
        host::check(7);
        guest.hint(HostFlags::FOREIGN_FPSTATE);
        host::fill(1);
        let before = Counters::now();
        guest.exec(insn::FP, 0);
        let counters = [HostSavesAvoided, HostSavesFull, HostSavesFpsimd];
        assert_eq!(before.deltas(counters), [1, 0, 0], "{policy:?}");
        host::check_kept(1, Kept::Nothing);
        let (fpsr, fpcr) = regs::status();
        assert_eq!((fpsr, fpcr), (0, 0), "the reset state");
        guest.put();
    }
    Ok(())
}

fn discarded_saves_fpsimd_and_zeroes_the_rest() -> Result<(), Skip> {
    need_sve()?;
    for policy in POLICIES {
        let guest = guest(policy);
        guest.hint(HostFlags::SVE_DISCARDED);
        for vq in context().host_vqs(0).iter() {
            regs::set_vl(vq);
            host::fill(1);
            let before = Counters::now();
            guest.fill(2);
            assert_eq!(before.since(HostSavesFull), 0, "{policy:?}");
            assert!(before.since(HostSavesFpsimd) > 0, "{policy:?}");
            assert_eq!(regs::rdvl(), vq, "ZCR_EL1 is kept whatever the hint says");
            host::check_kept(1, Kept::Fpsimd);
            host::full_vl();
            let mut image = [0; umbra_patterns::pattern::MAX_IMAGE_BYTES];
            let full = regs::dump(&mut image);
            let layout = umbra_shared::sve::Layout::new(full);
            for n in 0..32 {
                let z = &image[layout.z(n) + 16..layout.z(n) + layout.z_bytes()];
                assert!(z.iter().all(|&b| b == 0), "Z{n} above bit 127");
            }
            assert!(image[layout.p(0)..layout.image_bytes()].iter().all(|&b| b == 0), "P, FFR");
        }
        guest.put();
    }
    Ok(())
}

fn reserved_bits_of_the_hint_mean_nothing() -> Result<(), Skip> {
    let guest = guest(Policy::Lazy);
    for bit in 2..64 {
        guest.hint(HostFlags::from_bits_retain(1 << bit));
        host::fill(bit);
        guest.fill(bit);
        host::check(bit);
        guest.check(bit);
    }
    host::make_live();
    guest.hint(HostFlags::from_bits_retain(!HostFlags::all().bits()));
    host::fill(1);
    guest.exec(insn::FP, 0);
    host::check(1);
    Ok(())
}

fn lying_hints_harm_no_guest() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = guest(policy);
        for word in 0..4 {
            for then in 0..4 {
                guest.hint(HostFlags::from_bits_retain(word));
                host::fill(1);
                guest.fill(2);
                guest.hint(HostFlags::from_bits_retain(then));
                guest.check(2);
                // Whatever the host finds is its own or nothing.
                host::check_kept(1, Kept::Nothing);
                guest.check(2);
                guest.put();
                host::check_kept(1, Kept::Nothing);
                guest.load();
                guest.check(2);
            }
        }
        guest.put();
    }
    Ok(())
}

fn hints_that_change_while_a_guest_runs() -> Result<(), Skip> {
    crate::context::need_cpus(2)?;
    use core::sync::atomic::{AtomicBool, Ordering};
    let machine = Machine::normal();
    let guest = machine.vcpu(context().largest());
    let flags: &FlagShadowPage = guest.flags;
    let stop = AtomicBool::new(false);
    workers::on_all(|cpu| match cpu {
        0 => {
            guest.loaded(|guest| guest.start());
            guest.load();
            for _ in 0..24 {
                host::fill(1);
                guest.fill(2);
                host::check_kept(1, Kept::Nothing);
                guest.check(2);
            }
            guest.put();
            stop.store(true, Ordering::Release);
        }
        1 => {
            let mut word = 0u64;
            while !stop.load(Ordering::Acquire) {
                word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                flags.flush(HostFlags::from_bits_retain(word >> 20));
            }
        }
        _ => {}
    });
    Ok(())
}

/// The host says that it has something to keep, then, with the guest running but before it uses FP,
/// another CPU says the opposite. What counts is what was said at the entry.
fn i8_the_hint_is_read_once_per_entry() -> Result<(), Skip> {
    crate::context::need_cpus(2)?;
    use core::sync::atomic::{AtomicBool, Ordering};
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).vcpu(context().largest());
        let stop = AtomicBool::new(false);
        let word = || guest.memory(guest.scratch(), 8).as_mut_ptr().cast::<u64>();
        let set = |value: u64| {
            // SAFETY: a word of the test's, which the guest and two CPUs use in turn.
            unsafe { word().write_volatile(value) };
            // To where the guest looks.
            word();
        };
        workers::on_all(|cpu| match cpu {
            0 => {
                guest.load();
                guest.start();
                // An interrupt makes two entries of one; then it is tried again.
                let found = (0..100).find_map(|n| {
                    host::fill(n);
                    guest.hint(HostFlags::empty());
                    set(0);
                    let args = [Routine::Meet.address(), guest.scratch(), 0, 0];
                    match guest.enter(RunFlags::empty(), args) {
                        Event::Done(_) => Some(host::find(n, Kept::All)),
                        _ => {
                            guest.resume(RunFlags::empty(), [0; 4]);
                            None
                        }
                    }
                });
                stop.store(true, Ordering::Release);
                if let Err(mismatch) = found.expect("an entry without an interrupt") {
                    panic!("host: {mismatch}");
                }
                guest.put();
            }
            1 => {
                while !stop.load(Ordering::Acquire) {
                    // SAFETY: as above.
                    if unsafe { word().read_volatile() } == 1 {
                        guest.hint(HostFlags::all());
                        set(2);
                    }
                }
            }
            _ => {}
        });
    }
    Ok(())
}

fn hyps_word_tells_the_truth() -> Result<(), Skip> {
    let guest = guest(Policy::Lazy);
    let (loaded, preserved) = (HypFlags::GUEST_FP_LOADED, HypFlags::HOST_FP_PRESERVED);
    host::make_live();
    guest.exec(insn::NOP, 0);
    assert_eq!(guest.flags.sync(), preserved, "nobody has displaced the host");
    guest.exec(insn::FP, 0);
    assert_eq!(guest.flags.sync(), loaded | preserved);
    host::make_live();
    assert_eq!(guest.flags.sync(), preserved, "after a trap of the host");
    guest.hint(HostFlags::FOREIGN_FPSTATE);
    guest.exec(insn::FP, 0);
    assert_eq!(guest.flags.sync(), loaded, "nothing of the host is kept");
    guest.put();
    assert_eq!(guest.flags.sync(), HypFlags::empty());
    guest.load();
    guest.exec(insn::NOP, 0);
    assert_eq!(guest.flags.sync(), HypFlags::empty());
    host::make_live();
    guest.exec(insn::NOP, 0);
    assert_eq!(guest.flags.sync(), preserved);
    // What the host writes there is not read back.
    Ok(())
}

fn i4_no_guest_exceeds_its_clamp() -> Result<(), Skip> {
    need_sve()?;
    for vq in context().common.iter() {
        let machine = Machine::normal();
        let guest = machine.vcpu(Some(vq));
        for cpu in 0..context().cpus {
            workers::on(cpu, || {
                host::make_live();
                guest.load();
                if cpu == 0 {
                    guest.start();
                }
                for len in (0..16).chain([0x1ff, u64::MAX]) {
                    let asked = Vq::from_len(len).min(vq);
                    let given = guest.set_len(len);
                    assert_eq!(Some(given), context().vqs[cpu].effective(asked), "LEN {len:#x}");
                    assert!(given <= vq, "clamp {vq}, given {given}");
                }
                assert_eq!(guest.set_len(15), vq, "the clamp itself");
                guest.put();
            });
        }
        crate::ledger::destroy(machine.vm);
    }
    Ok(())
}

fn zcr_takes_any_value() -> Result<(), Skip> {
    need_sve()?;
    let guest = guest(Policy::Lazy);
    for len in 0..16 {
        guest.call(Routine::SetZcr, [len, 0, 0]);
        host::make_live();
        assert_eq!(guest.read(insn::sysreg::ZCR) & 0xf, len, "ZCR_EL1.LEN across a switch");
    }
    Ok(())
}
