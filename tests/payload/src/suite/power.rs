//! CPUs that sleep (PSCI CPU_SUSPEND) and CPUs that come late.
//!
//! A power-down loses the register file and EL2's own registers, and wakes up wherever firmware was
//! told to go, at EL2. So there are three ways to get it wrong: a guest's state that was live is gone,
//! the host finds what somebody left, or the host wakes up as the hypervisor. The CPU that sleeps is a
//! worker, on its own stack's top: it comes back as from CPU_ON.
//!
//! A late CPU comes up when host images have their size and guests their vector lengths.

use super::{
    POLICIES,
    fp_smp::{AFFINITY_INFO, CPU_ON, affinity, psci},
};
use crate::{
    context::{context, need_suspend},
    host,
    puppet::{Machine, Puppet},
    runner::Skip,
    tests,
    workers::{self, Resumed},
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{power, smp, timer},
};
use umbra_patterns::regs;
use umbra_shared::{
    call::Policy,
    error::Error,
    exit::RunFlags,
    sve::Layout,
    vl::{Vq, VqSet},
};

tests![
    r24_suspend_power_down_with_live_states,
    suspend_standby_changes_nothing,
    suspend_in_the_other_format_is_not_an_escape,
    suspended_cpu_is_on,
    a_late_cpu_is_held_to_the_images,
    a_late_cpu_runs_guests_of_its_lengths,
    a_late_cpu_lacks_a_guests_length,
];

/// The CPU that sleeps.
const SLEEPER: usize = 1;

/// Ticks of a short sleep.
fn soon() -> u64 {
    timer::frequency() / 500
}

/// The calling CPU is as after a reset: what a test finds right after it came back.
fn check_fresh() {
    assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded), "the implicit put");
    let run = Hvc.vcpu_run(RunFlags::empty(), [0; 4]);
    assert_eq!(run.map(|_| ()), Err(Error::NotLoaded));
    assert_eq!(host::traps(host::check_reset), 1, "the host's first access traps, once");
    if context().sve() {
        let vqs = context().host_vqs(smp::cpu());
        assert_eq!(Some(regs::rdvl()), vqs.max(), "the host's VL");
        for len in (0..16).rev() {
            let asked = Vq::from_len(len);
            assert_eq!(Some(regs::set_vl(asked)), vqs.effective(asked), "VL for LEN {len}");
        }
        host::full_vl();
    }
}

/// Traps and clamps are in force for both worlds.
fn check_control(guest: &Puppet, policy: Policy, generation: u32) {
    host::fill(generation);
    if let Some(vq) = guest.vq {
        assert_eq!(guest.set_len(15), vq, "I4");
        assert_eq!(guest.set_len(0), Vq::MIN);
        assert_eq!(guest.set_len(15), vq);
        assert_eq!(guest.read(crate::instruction::sysreg::ZCR) & 0xf, 15);
    } else {
        guest.undefined(crate::instruction::RDVL);
        guest.attempt(crate::instruction::FP, 0);
    }
    // An eager exit has brought the host's registers back.
    let expected = u64::from(policy != Policy::Eager);
    assert_eq!(host::traps(|| host::check(generation)), expected, "the host's traps");
}

fn r24_suspend_power_down_with_live_states() -> Result<(), Skip> {
    let (_, power_down) = need_suspend()?;
    for policy in POLICIES {
        for vq in [context().largest(), None] {
            let guest = Machine::with_policy(policy).started(vq);
            guest.put();
            // First with the guest's state live, then with the host's.
            for (round, host_is_live) in [(1, false), (2, true)] {
                workers::on(SLEEPER, || {
                    host::full_vl();
                    guest.load();
                    host::fill(10 + round);
                    guest.fill(round);
                    if host_is_live {
                        host::check(10 + round);
                    }
                });
                let sleeper = workers::suspend(SLEEPER, power_down, Some(soon()));
                assert_eq!(sleeper.wait(), Resumed::Anew, "out of power-down");
                workers::on(SLEEPER, || {
                    check_fresh();
                    guest.load();
                    guest.check(round);
                    check_control(&guest, policy, 20 + round);
                    guest.fill(round);
                    guest.put();
                });
                // And elsewhere.
                guest.loaded(|guest| guest.check(round));
            }
            crate::ledger::destroy(guest.machine.vm);
        }
    }
    Ok(())
}

fn suspend_standby_changes_nothing() -> Result<(), Skip> {
    let (standby, _) = need_suspend()?;
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        guest.put();
        workers::on(SLEEPER, || {
            host::full_vl();
            guest.load();
            for (round, host_is_live) in [(1, false), (2, true)] {
                host::fill(10 + round);
                guest.fill(round);
                if host_is_live {
                    host::check(10 + round);
                }
                let vl = context().sve().then(regs::rdvl);
                let daif = umbra_host::kernel::sysreg::mask_interrupts();
                host::set_timer(timer::now() + soon(), 1);
                // An entry point where nothing is: nobody must look at it.
                let returned = power::cpu_suspend(standby, 3, 0);
                host::release_interrupt(daif);
                assert_eq!(returned, Ok(()));
                assert_eq!(context().sve().then(regs::rdvl), vl);
                host::check(10 + round);
                guest.check(round);
                host::check(10 + round);
                check_control(&guest, policy, 20 + round);
            }
            guest.put();
        });
        crate::ledger::destroy(guest.machine.vm);
    }
    Ok(())
}

fn suspend_in_the_other_format_is_not_an_escape() -> Result<(), Skip> {
    let (_, power_down) = need_suspend()?;
    let guest = Machine::normal().started(context().largest());
    guest.fill(1);
    guest.put();
    let mut anew = 0;
    for power_state in [1 << 16, 1 << 30, 1 << 16 | 1 << 30, 1 << 31, u32::MAX, 0x0100_0000] {
        workers::on(SLEEPER, || {
            host::full_vl();
            host::fill(3);
            guest.load();
            guest.check(1);
        });
        // Where it comes back anew, a worker has seen that it is at EL1.
        let resumed = workers::suspend(SLEEPER, power_state, Some(soon())).wait();
        workers::on(SLEEPER, || {
            if resumed == Resumed::Anew {
                check_fresh();
            } else {
                host::check(3);
                // Still loaded, unless hyp took the state for one that powers down.
                let _ = Hvc.vcpu_put();
            }
            guest.load();
            guest.check(1);
            check_control(&guest, Policy::Lazy, 4);
            // Its shorter VL has cost it the rest.
            guest.fill(1);
            guest.put();
        });
        if power_state == power_down {
            assert_eq!(resumed, Resumed::Anew, "{power_state:#x}");
        }
        anew += usize::from(resumed == Resumed::Anew);
    }
    assert!(anew > 0);
    guest.loaded(|guest| guest.check(1));
    Ok(())
}

fn suspended_cpu_is_on() -> Result<(), Skip> {
    let (_, power_down) = need_suspend()?;
    let guest = Machine::normal().started(context().largest());
    guest.fill(1);
    guest.put();
    let is_on = || {
        assert_eq!(psci(AFFINITY_INFO, [affinity(SLEEPER), 0, 0]), 0, "ON");
        let answer = psci(CPU_ON, [affinity(SLEEPER), smp::entry(), 7]);
        assert_eq!(answer, -4, "ALREADY_ON");
    };
    workers::on(SLEEPER, || guest.load());
    let sleeper = workers::suspend(SLEEPER, power_down, None);
    // On its way there it is on, too. That the vCPU can be had is that hyp has put it, on the way.
    let here = timer::wait_until(30, || {
        is_on();
        Hvc.vcpu_load(guest.machine.vm, guest.index).is_ok()
    });
    assert!(here, "CPU {SLEEPER} does not go to sleep");
    guest.check(1);
    guest.put();
    for _ in 0..1000 {
        is_on();
    }
    assert_eq!(sleeper.resumed(), None, "nobody woke it");
    workers::wake(SLEEPER);
    assert_eq!(sleeper.wait(), Resumed::Anew);
    is_on();
    workers::on(SLEEPER, || {
        check_fresh();
        guest.loaded(|guest| guest.check(1));
    });
    Ok(())
}

/// Calls `f` for every late CPU.
fn on_late(f: impl Fn(usize) + Sync) -> Result<(), Skip> {
    if context().late.is_empty() {
        return Err(Skip("no CPU comes late"));
    }
    for &cpu in &context().late {
        workers::on(cpu, || f(cpu));
    }
    Ok(())
}

fn a_late_cpu_is_held_to_the_images() -> Result<(), Skip> {
    on_late(|cpu| {
        let info = Hvc.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO");
        assert!(info.online, "it is here");
        assert_ne!(info.vqs, VqSet::EMPTY, "and hyp has looked");
        let held = context().host_vqs(cpu).max();
        host::full_vl();
        assert_eq!(Some(regs::rdvl()), held, "the host's VL");
        let images = context().image_vq().expect("late CPUs come with SVE");
        assert!(held <= info.vqs.effective(images), "never more than the images hold");
        let image = held.map_or(0, |vq| Layout::new(vq).image_bytes());
        assert!(info.image_bytes >= image as u64, "its image holds that");
        let guest = Machine::normal().vcpu(context().largest());
        host::fill(1);
        guest.loaded(|guest| {
            guest.start();
            guest.fill(1);
            host::check(1);
            guest.check(1);
        });
        host::check(1);
    })
}

fn a_late_cpu_runs_guests_of_its_lengths() -> Result<(), Skip> {
    for vq in context().common.iter() {
        let guest = Machine::normal().started(Some(vq));
        guest.fill(1);
        guest.put();
        on_late(|_| {
            host::full_vl();
            host::fill(2);
            guest.load();
            guest.check(1);
            check_control(&guest, Policy::Lazy, 3);
            guest.fill(1);
            guest.put();
            host::check(3);
        })?;
        guest.loaded(|guest| guest.check(1));
        crate::ledger::destroy(guest.machine.vm);
    }
    on_late(|_| ())
}

fn a_late_cpu_lacks_a_guests_length() -> Result<(), Skip> {
    on_late(|_| ())?;
    let mut lacking = 0;
    for vq in context().guests.iter() {
        for &cpu in context().late.iter().filter(|&&cpu| !context().vqs[cpu].contains(vq)) {
            lacking += 1;
            let guest = Machine::normal().started(Some(vq));
            guest.fill(1);
            guest.put();
            workers::on(cpu, || {
                host::full_vl();
                host::fill(2);
                let load = Hvc.vcpu_load(guest.machine.vm, guest.index);
                assert_eq!(load, Err(Error::VlMismatch), "{vq} on CPU {cpu}");
                assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded));
                host::check(2);
            });
            guest.loaded(|guest| guest.check(1));
            crate::ledger::destroy(guest.machine.vm);
        }
    }
    if lacking == 0 { Err(Skip("late CPUs have all lengths of guests")) } else { Ok(()) }
}
