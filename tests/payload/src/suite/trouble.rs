//! Firmware that refuses, delays and has CPUs come late, at any call (`tests/firmware/src/trouble.rs`; what
//! happens follows from the machine's seed).
//!
//! Whatever it answers: a CPU that was not turned on is off and can be turned on; one that was not turned
//! off or put to sleep is on, and works; who asked finds its registers as they were, and a guest that was
//! loaded can be loaded anywhere. Each call is made until every outcome was seen.

use super::fp_smp::{AFFINITY_INFO, CPU_ON, affinity, psci};
use crate::{
    context::{context, need_suspend},
    host,
    instruction::{self as insn, sysreg},
    puppet::{Event, Machine, Puppet},
    runner::Skip,
    tests,
    workers::{self, Resumed},
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{smp, timer},
};
use umbra_shared::error::Error;

tests![
    a_cpu_that_firmware_does_not_turn_on_is_off,
    a_cpu_that_firmware_does_not_turn_off_is_on,
    a_cpu_that_firmware_does_not_suspend_goes_on,
    nothing_that_firmware_leaves_interrupts_a_guest,
];

/// Times that a CPU is turned off and on at most, until everything was seen.
const MOST: usize = 60;

fn need_trouble() -> Result<(), Skip> {
    need_suspend()?;
    match context().machine.argument("trouble") {
        Some(_) => Ok(()),
        None => Err(Skip("firmware makes no trouble")),
    }
}

/// AFFINITY_INFO; firmware may refuse to tell it of a CPU that is off.
fn info(cpu: usize) -> i64 {
    for _ in 0..50 {
        match psci(AFFINITY_INFO, [affinity(cpu), 0, 0]) {
            -2 => {}
            answer => return answer,
        }
    }
    panic!("AFFINITY_INFO of CPU {cpu} is always refused")
}

/// Has a CPU go off, however often firmware refuses. Returns how often it did.
fn off(cpu: usize, after: impl Fn()) -> usize {
    let mut refusals = 0;
    loop {
        workers::off(cpu);
        let done = timer::wait_until(30, || workers::refused(cpu).is_some() || info(cpu) == 1);
        assert!(done, "CPU {cpu} neither goes off nor is refused");
        // Refused and off it can't be both.
        let Some(answer) = workers::refused(cpu) else { return refusals };
        assert_eq!(answer, Err(smccc::psci::Error::Denied), "CPU_OFF of CPU {cpu}");
        refusals += 1;
        assert_eq!(info(cpu), 0, "CPU {cpu} is on");
        assert_eq!(psci(CPU_ON, [affinity(cpu), smp::entry(), 7]), -4, "CPU {cpu}: ALREADY_ON");
        after();
    }
}

/// Turns a CPU on, however often firmware refuses. Returns the answers.
fn on(cpu: usize, answers: &mut [usize; 3]) {
    const REFUSALS: [i64; 3] = [-3, -6, -9];
    let arrivals = workers::arrivals();
    loop {
        let answer = psci(CPU_ON, [affinity(cpu), smp::entry(), cpu as u64]);
        if answer == 0 {
            break;
        }
        let n = REFUSALS.iter().position(|&refusal| refusal == answer);
        answers[n.unwrap_or_else(|| panic!("CPU_ON of CPU {cpu}: {answer}"))] += 1;
        assert_eq!(info(cpu), 1, "CPU {cpu} is off after CPU_ON was answered {answer}");
        assert_eq!(workers::arrivals(), arrivals, "CPU {cpu} comes although it was refused");
    }
    // It may take its time; until it is here nobody else turns it on.
    let here = timer::wait_until(30, || {
        let answer = psci(CPU_ON, [affinity(cpu), smp::entry(), cpu as u64]);
        assert!([-4, -5].contains(&answer), "CPU_ON of CPU {cpu} once more: {answer}");
        assert!([0, 2].contains(&info(cpu)), "CPU {cpu} is on its way");
        workers::arrivals() > arrivals
    });
    assert!(here, "CPU {cpu} does not come");
    assert_eq!(info(cpu), 0, "CPU {cpu} is on");
}

/// A guest with something in its registers, and loaded nowhere.
fn filled(generation: u32) -> Puppet {
    let guest = Machine::normal().started(context().largest());
    guest.fill(generation);
    guest.put();
    guest
}

fn a_cpu_that_firmware_does_not_turn_on_is_off() -> Result<(), Skip> {
    need_trouble()?;
    let guest = filled(1);
    for cpu in 1..context().cpus {
        let mut answers = [0; 3];
        for round in 0.. {
            assert!(round < MOST, "CPU {cpu}: not every refusal was seen: {answers:?}");
            off(cpu, || ());
            on(cpu, &mut answers);
            workers::on(cpu, || {
                host::check_reset();
                guest.loaded(|guest| guest.check(1));
            });
            if answers.iter().all(|&count| count > 0) {
                break;
            }
        }
    }
    Ok(())
}

fn a_cpu_that_firmware_does_not_turn_off_is_on() -> Result<(), Skip> {
    need_trouble()?;
    let guest = filled(1);
    let mut ignored = [0; 3];
    for cpu in 1..context().cpus {
        let mut refused = 0;
        for round in 0.. {
            assert!(round < MOST, "CPU {cpu}: CPU_OFF is never refused");
            workers::on(cpu, || {
                host::full_vl();
                host::fill(5);
                guest.load();
                guest.check(1);
            });
            refused += off(cpu, || {
                // It has put the guest, as if it had gone: another CPU has it.
                guest.loaded(|guest| guest.check(1));
                workers::on(cpu, || {
                    assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded), "the implicit put");
                    host::check(5);
                    guest.load();
                    guest.check(1);
                });
            });
            on(cpu, &mut ignored);
            guest.loaded(|guest| guest.check(1));
            if refused > 2 {
                break;
            }
        }
    }
    Ok(())
}

fn a_cpu_that_firmware_does_not_suspend_goes_on() -> Result<(), Skip> {
    need_trouble()?;
    let (_, power_down) = need_suspend()?;
    let guest = filled(1);
    for cpu in 1..context().cpus {
        let (mut refused, mut slept) = (0, 0);
        for round in 0.. {
            assert!(round < 2 * MOST, "CPU {cpu}: refused {refused} times, asleep {slept} times");
            workers::on(cpu, || {
                host::full_vl();
                host::fill(5);
                guest.load();
                guest.check(1);
            });
            let soon = timer::frequency() / 500;
            let resumed = workers::suspend(cpu, power_down, Some(soon)).wait();
            assert_eq!(info(cpu), 0, "CPU {cpu} is on");
            workers::on(cpu, || {
                assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded), "the implicit put");
                match resumed {
                    Resumed::Anew => host::check_reset(),
                    Resumed::Returned(answer) => {
                        assert!(answer.is_err(), "CPU_SUSPEND: {answer:?}");
                        host::check(5);
                    }
                }
            });
            guest.loaded(|guest| guest.check(1));
            match resumed {
                Resumed::Anew => slept += 1,
                Resumed::Returned(_) => refused += 1,
            }
            if refused > 2 && slept > 2 {
                break;
            }
        }
    }
    Ok(())
}

/// A CPU comes up with an interrupt in every list register and all priorities active. A guest that is
/// first to run there, and takes interrupts, finds none, and can be given one.
fn nothing_that_firmware_leaves_interrupts_a_guest() -> Result<(), Skip> {
    need_trouble()?;
    let guest = Machine::normal().started(None);
    guest.write(sysreg::ICC_PMR, 0xf8);
    guest.write(sysreg::ICC_IGRPEN1, 1);
    guest.put();
    for cpu in 1..context().cpus {
        off(cpu, || ());
        on(cpu, &mut [0; 3]);
        workers::on(cpu, || {
            guest.load();
            for n in 0..4 {
                let event = guest.attempt(insn::UNMASK_IRQ, 0);
                assert!(matches!(event, Event::Done(_)), "CPU {cpu}: {event:x?}");
                assert_eq!(guest.exec(insn::NOP, n), n);
                // ICC_HPPIR1_EL1: nothing is pending. ICC_RPR_EL1: nothing is active.
                let pending = guest.read(insn::reg(3, 0, 12, 12, 2));
                assert_eq!(pending, 1023, "CPU {cpu}: pending");
                assert_eq!(guest.read(insn::reg(3, 0, 12, 11, 3)), 0xff, "CPU {cpu}: active");
            }
            guest.put();
        });
    }
    Ok(())
}
