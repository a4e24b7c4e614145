//! Interrupts and time of guests, and the host's own while a guest runs.

use crate::{
    context::need_cpus,
    host,
    instruction::{self as insn, reg, sysreg},
    interrupted::Interrupted,
    puppet::{Event, Machine, Routine},
    runner::Skip,
    tests, workers,
};
use core::sync::atomic::{AtomicBool, Ordering};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{gic, smp, timer},
};
use umbra_shared::{
    error::Error,
    exit::{NO_DEADLINE, Reason, RunFlags},
    interrupt::{Entry, State},
};

tests![
    an_injected_interrupt_is_taken_once,
    an_active_interrupt_stays_with_its_vcpu,
    completion_stops_the_guest,
    every_intid_arrives,
    sgi_is_the_hosts_to_deliver,
    wfi_says_what_the_interface_signals,
    wfi_says_when_the_timer_is_due,
    virtual_timer_fires,
    guest_clock_begins_near_zero,
    host_tick_is_not_lost_while_a_guest_spins,
    host_timer_is_untouched_by_runs,
    host_timer_in_every_state_stops_a_guest_if_it_fires,
    an_interrupt_from_another_cpu_stops_the_guest,
];

/// The guest of a host that has interrupts for it.
fn guest() -> Interrupted {
    Interrupted::new()
}

/// A level interrupt, as a host has it for a device.
fn level(intid: u16) -> Entry {
    Entry::new(intid, 0xa0, State::Pending) | Entry::EOI
}

fn an_injected_interrupt_is_taken_once() -> Result<(), Skip> {
    let guest = guest();
    guest.offer(level(42));
    assert_eq!(guest.take(), 42);
    assert_eq!(guest.left()[..], [(42, State::Active)]);
    guest.write(sysreg::ICC_EOIR1, 42);
    // Unmasked from here on: nothing more comes.
    guest.exec(insn::UNMASK_IRQ, 0);
    for n in 0..8 {
        assert_eq!(guest.exec(insn::NOP, n), n);
    }
    assert_eq!(guest.read(sysreg::ICC_IAR1), 1023, "spurious");
    Ok(())
}

/// Each time after another: what is active keeps out what is no more urgent, and a vCPU that was put meanwhile has it
/// still.
fn an_active_interrupt_stays_with_its_vcpu() -> Result<(), Skip> {
    let guest = guest();
    guest.offer(level(40));
    assert_eq!(guest.take(), 40);
    guest.puppet().put();
    let sibling = Interrupted::new();
    assert_eq!(sibling.read(sysreg::ICC_RPR), 0xff, "it is the other's");
    sibling.puppet().put();
    guest.puppet().load();
    guest.offer(level(41));
    guest.exec(insn::UNMASK_IRQ, 0);
    assert_eq!(guest.read(sysreg::ICC_RPR), 0xa0, "active, loaded again");
    assert_eq!(guest.read(sysreg::ICC_IAR1), 1023, "no more urgent");
    guest.exec(insn::MASK_IRQ, 0);
    guest.write(sysreg::ICC_EOIR1, 40);
    assert_eq!(guest.take(), 41);
    guest.write(sysreg::ICC_EOIR1, 41);
    assert!(guest.left().is_empty());
    Ok(())
}

fn completion_stops_the_guest() -> Result<(), Skip> {
    let guest = guest();
    guest.offer(level(50));
    assert_eq!(guest.take(), 50);
    guest.stops();
    // The EOI raises the maintenance interrupt, which stops the guest: a line that is still up is to go in again.
    guest.write(sysreg::ICC_EOIR1, 50);
    assert!(guest.stops() >= 1, "no exit for the completion");
    assert!(guest.left().is_empty());
    Ok(())
}

/// The answer that makes the puppet execute an instruction, for a test that counts its own entries.
fn exec(args: [u64; 3]) -> [u64; 4] {
    [Routine::Exec.address(), args[0], args[1], args[2]]
}

fn every_intid_arrives() -> Result<(), Skip> {
    let guest = guest();
    for intid in [0, 1, 15, 16, 27, 31, 32, 33, 255, 256, 511, 987, 1019] {
        guest.offer(level(intid));
        assert_eq!(guest.take(), u64::from(intid));
        guest.write(sysreg::ICC_EOIR1, intid.into());
    }
    Ok(())
}

fn sgi_is_the_hosts_to_deliver() -> Result<(), Skip> {
    let guest = guest().puppet();
    // ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1.
    for which in 0..3 {
        let value = 7 << 24 | 0x5 | u64::from(which) << 48;
        let written = reg(3, 0, 12, 11, 5 + which).msr();
        let exit = guest.attempt(written, value).exit(Reason::Sgi);
        assert_eq!(exit.data[..2], [value, which.into()]);
        assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done(_)));
    }
    // ICC_SRE_EL1 is fixed.
    assert_eq!(guest.read(reg(3, 0, 12, 12, 5)), 7, "ICC_SRE_EL1");
    guest.write(reg(3, 0, 12, 12, 5), 0);
    assert_eq!(guest.read(reg(3, 0, 12, 12, 5)), 7, "ICC_SRE_EL1 after a write");
    Ok(())
}

/// A vCPU in WFI sleeps on what its interface doesn't signal, and its GIC is the host's: the exit says what it does.
fn wfi_says_what_the_interface_signals() -> Result<(), Skip> {
    let guest = guest().puppet();
    for (priority, enables) in [(0, 0), (0xf0, 0b10), (0x80, 0b01), (0xf8, 0b11), (0x08, 0b10)] {
        guest.write(sysreg::ICC_PMR, priority);
        guest.write(sysreg::ICC_IGRPEN0, enables & 1);
        guest.write(sysreg::ICC_IGRPEN1, enables >> 1);
        let exit = guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
        assert_eq!(exit.data[0], priority << 24 | enables);
        assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done(_)));
    }
    Ok(())
}

/// And when its timer is due, which is the host's to wait for.
fn wfi_says_when_the_timer_is_due() -> Result<(), Skip> {
    let guest = guest().puppet();
    let due = |ctl, cval| {
        guest.write(sysreg::CNTV_CVAL, cval);
        guest.write(sysreg::CNTV_CTL, ctl);
        let exit = guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
        assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done(_)));
        exit.data[1]
    };
    let before = timer::now();
    let count = guest.read(sysreg::CNTVCT);
    let offset = before.wrapping_sub(count)..=timer::now().wrapping_sub(count);
    let far = count + (1 << 40);
    assert!(offset.contains(&(due(1, far) - far)), "in the host's time");
    for (ctl, cval) in [(0, far), (2, far), (3, far)] {
        assert_eq!(due(ctl, cval), NO_DEADLINE, "CNTV_CTL_EL0 {ctl}, CNTV_CVAL_EL0 {cval:#x}");
    }
    Ok(())
}

fn virtual_timer_fires() -> Result<(), Skip> {
    let guest = guest().puppet();
    // The physical PPI would stop the guest again and again: masked, as a run loop does.
    gic::enable(gic::VIRTUAL_TIMER, false);
    guest.write(sysreg::CNTV_CTL, 0);
    guest.write(sysreg::CNTV_CVAL, 0);
    let exit = guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
    assert!(!exit.info.vtimer(), "off");
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done(_)));
    guest.write(sysreg::CNTV_CTL, 1);
    let exit = guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
    assert!(exit.info.vtimer(), "due");
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done(_)));
    assert_eq!(guest.read(sysreg::CNTV_CTL) & 7, 5, "ISTATUS");
    guest.write(sysreg::CNTV_CTL, 3);
    let exit = guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
    assert!(!exit.info.vtimer(), "masked by the guest");
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done(_)));
    guest.write(sysreg::CNTV_CTL, 0);
    // Enabled, it stops a guest that does nothing but count; the host's own timer is off.
    let ticks = timer::ticks(smp::cpu());
    let deadline = guest.read(sysreg::CNTVCT) + timer::frequency() / 100;
    guest.write(sysreg::CNTV_CVAL, deadline);
    guest.write(sysreg::CNTV_CTL, 1);
    // Not before: it may be due already.
    gic::enable(gic::VIRTUAL_TIMER, true);
    let spin = [Routine::Spin.address(), guest.scratch(), 0, 0];
    let exit = loop {
        let exit = guest.try_enter(RunFlags::empty(), spin).expect("VCPU_RUN");
        assert_eq!(exit.info.reason(), Some(Reason::Irq));
        if exit.info.vtimer() {
            break exit;
        }
    };
    assert!(exit.info.vtimer());
    // It was the guest's line, not the host's: the host's handler found no tick of its own due.
    assert!(timer::ticks(smp::cpu()) <= ticks + 1);
    Ok(())
}

fn guest_clock_begins_near_zero() -> Result<(), Skip> {
    let before = timer::now();
    let machine = Machine::normal();
    let guest = machine.started(None);
    let first = guest.read(sysreg::CNTVCT);
    let elapsed = timer::now() - before;
    assert!(first <= elapsed, "guest clock {first}, the host has counted {elapsed}");
    // It goes on while the guest doesn't, and a sibling has the same clock.
    guest.put();
    let sibling = machine.started(None);
    let second = sibling.read(sysreg::CNTVCT);
    assert!(second >= first && second <= timer::now() - before);
    sibling.put();
    Ok(())
}

fn host_tick_is_not_lost_while_a_guest_spins() -> Result<(), Skip> {
    let guest = guest().puppet();
    let cpu = smp::cpu();
    let spin = [Routine::Spin.address(), guest.scratch(), 0, 0];
    let before = timer::ticks(cpu);
    timer::set_tick(timer::frequency() / 1000);
    let exit = guest.try_enter(RunFlags::empty(), spin).expect("VCPU_RUN");
    assert_eq!(exit.info.reason(), Some(Reason::Irq));
    let mut entries = 1;
    while timer::ticks(cpu) < before + 10 {
        let exit = guest.try_enter(RunFlags::empty(), [0; 4]).expect("VCPU_RUN");
        assert_eq!(exit.info.reason(), Some(Reason::Irq));
        assert!(!exit.info.vtimer(), "the guest's timer is off");
        entries += 1;
        assert!(entries < 10_000, "the guest is stopped but no tick comes");
    }
    timer::set_tick(0);
    let count = guest.memory(guest.scratch(), 8);
    assert_ne!(count, [0; 8], "the guest has run");
    Ok(())
}

fn host_timer_is_untouched_by_runs() -> Result<(), Skip> {
    let guest = guest().puppet();
    let daif = umbra_host::kernel::sysreg::mask_interrupts();
    // Far, but not so far that an emulator overflows when it computes the nanoseconds.
    for (deadline, control) in [(1 << 50, 1), (77, 2), (1 << 49, 0)] {
        host::set_timer(deadline, control);
        for _ in 0..4 {
            guest.write(sysreg::CNTV_CVAL, 0x1234_5678_0000);
            guest.write(sysreg::CNTV_CTL, 3);
        }
        let (found, ctl): (u64, u64);
        // SAFETY: reads the timer's registers.
        unsafe {
            core::arch::asm!(
                "mrs {}, cntv_cval_el0", "mrs {}, cntv_ctl_el0", out(reg) found, out(reg) ctl
            );
        }
        assert_eq!((found, ctl & 3), (deadline, control));
        let (before, clock, after): (u64, u64, u64);
        // SAFETY: reads counters.
        unsafe {
            core::arch::asm!(
                "isb", "mrs {}, cntpct_el0", "isb", "mrs {}, cntvct_el0", "isb", "mrs {}, cntpct_el0",
                out(reg) before, out(reg) clock, out(reg) after
            );
        }
        assert!((before..=after).contains(&clock), "the host's virtual clock is the physical one");
    }
    host::release_interrupt(daif);
    Ok(())
}

/// The host's timer on and off, masked and open, expired, about to, and far away, beside a guest's timer in
/// the same states: a guest is stopped by the host's at its time if it fires, and by nothing else.
fn host_timer_in_every_state_stops_a_guest_if_it_fires() -> Result<(), Skip> {
    let guest = guest().puppet();
    let daif = umbra_host::kernel::sysreg::mask_interrupts();
    // The guest's own line is closed: it is not what stops it here.
    gic::enable(gic::VIRTUAL_TIMER, false);
    let soon = timer::frequency() / 500;
    for control in 0..4 {
        for (when, distance) in [("expired", None), ("soon", Some(soon)), ("far", Some(1 << 40))] {
            for guests in [0, 1, 2, 3] {
                let what = (control, when, guests);
                host::set_timer(0, 0);
                guest.write(sysreg::CNTV_CVAL, 0);
                guest.write(sysreg::CNTV_CTL, guests);
                let deadline = distance.map_or(7, |ticks| timer::now() + ticks);
                host::set_timer(deadline, control);
                let fires = control == 1 && when != "far";
                if fires {
                    let nop = exec([guest.instruction_address(), insn::NOP.into(), 0]);
                    let wait = [Routine::Meet.address(), guest.scratch(), 0, 0];
                    let answer = if when == "soon" { wait } else { nop };
                    let exit = guest.try_enter(RunFlags::empty(), answer).expect("VCPU_RUN");
                    assert_eq!(exit.info.reason(), Some(Reason::Irq), "{what:?}");
                    assert!(timer::now() >= deadline, "{what:?}: too early");
                    assert_eq!(exit.info.vtimer(), guests == 1, "{what:?}: the guest's line");
                    check_host_timer(deadline, control, true);
                    // Its routine ends once it has begun and then found the word changed.
                    loop {
                        guest.write_words(guest.scratch(), &[2, 0]);
                        host::set_timer(timer::now() + soon, 1);
                        match guest.enter(RunFlags::empty(), [0; 4]) {
                            Event::Done(_) => break,
                            event => event.exit(Reason::Irq),
                        };
                    }
                } else {
                    // Longer than until `soon`.
                    let end = timer::now() + 2 * soon;
                    loop {
                        let nop = exec([guest.instruction_address(), insn::NOP.into(), 0]);
                        let event = guest.enter(RunFlags::empty(), nop);
                        assert!(matches!(event, Event::Done(_)), "{what:?}: stopped: {event:x?}");
                        if when != "soon" || timer::now() >= end {
                            break;
                        }
                    }
                    check_host_timer(deadline, control, control & 1 == 1 && when != "far");
                }
            }
        }
    }
    host::set_timer(0, 0);
    guest.write(sysreg::CNTV_CTL, 0);
    gic::enable(gic::VIRTUAL_TIMER, true);
    umbra_host::kernel::sysreg::restore_interrupts(daif);
    Ok(())
}

/// The host finds its timer as it left it, and with this ISTATUS.
#[track_caller]
fn check_host_timer(deadline: u64, control: u64, expired: bool) {
    let read = || {
        let (cval, ctl): (u64, u64);
        // SAFETY: reads the timer's registers.
        unsafe {
            core::arch::asm!(
                "mrs {}, cntv_cval_el0", "mrs {}, cntv_ctl_el0", out(reg) cval, out(reg) ctl
            );
        }
        (cval, ctl)
    };
    let (cval, ctl) = read();
    assert_eq!((cval, ctl & 3), (deadline, control), "CNTV_CVAL_EL0, CNTV_CTL_EL0");
    // An emulator sees a deadline when it gets round to it.
    let status = || control & 1 == 1 && read().1 & 4 != 0;
    let right = if expired { timer::wait_until(30, status) } else { !status() };
    assert!(right, "ISTATUS for control {control} is not {expired}");
}

fn an_interrupt_from_another_cpu_stops_the_guest() -> Result<(), Skip> {
    need_cpus(2)?;
    let machine = Machine::normal();
    let puppet = machine.vcpu(None);
    let stopped = AtomicBool::new(false);
    let given_up = AtomicBool::new(false);
    workers::on_all(|cpu| match cpu {
        0 => {
            let spin = [Routine::Spin.address(), puppet.scratch(), 0, 0];
            puppet.load();
            puppet.start();
            // The timer is far away: only so that a guest which nobody stops comes back at all. It does
            // not count; that it fires, too, may be for want of a CPU to emulate this one.
            timer::set_tick(20 * timer::frequency());
            let mut answer = spin;
            let mut stops = 0;
            while stops < 10 && !given_up.load(Ordering::Acquire) {
                let ticks = timer::ticks(0);
                let exit = puppet.try_enter(RunFlags::empty(), answer).expect("VCPU_RUN");
                assert_eq!(exit.info.reason(), Some(Reason::Irq));
                answer = [0; 4];
                stops += usize::from(timer::ticks(0) == ticks);
            }
            timer::set_tick(0);
            stopped.store(stops == 10, Ordering::Release);
            puppet.put();
        }
        1 => {
            let done = timer::wait_until(30, || {
                workers::wake(0);
                stopped.load(Ordering::Acquire)
            });
            given_up.store(true, Ordering::Release);
            assert!(done, "the guest is not stopped");
        }
        _ => {}
    });
    assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded));
    Ok(())
}
