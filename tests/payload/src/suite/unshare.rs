//! A protected guest takes a page back, or gives it up, that it shares: its host is told first, and has the page until it
//! goes on.

use super::{
    memory::assert_hidden,
    pages::assert_ours,
    sharing::{host_writes, load, share, store, unshare},
};
use crate::{
    context::{context, need_cpus},
    instruction::{self as insn, sysreg as sysregs},
    ledger::{self, PAGE},
    puppet::{Event, Machine, PROTECTED, Puppet, Routine},
    runner::Skip,
    tests, workers,
};
use core::sync::atomic::{AtomicBool, Ordering};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{exception::probe_read, smp::cpu, sysreg, timer},
};
use umbra_shared::{
    error::{Error, SUCCESS},
    exit::{Reason, RunFlags},
    guest::{GuestFunction, INVALID_PARAMETER},
    interrupt::{Entry, State},
};

tests![
    the_host_has_a_page_until_it_goes_on,
    a_host_that_goes_on_accessing_gets_an_abort,
    a_host_can_let_unshare_fail,
    two_vcpus_unshare_one_page,
    what_the_host_was_told_is_forgotten_with_another_call,
    what_the_host_was_told_is_forgotten_when_the_guest_leaves,
    a_vm_ends_while_it_unshares,
];

const SECRET: u64 = 0x5ec2_e70b_5ec2_e70b;

/// The first step of MEM_UNSHARE, or of MEM_RELINQUISH: the exit.
#[track_caller]
fn first_step(puppet: &Puppet, function: GuestFunction, ipa: u64) {
    let exit = puppet.smccc(Routine::Hvc, function.id(), [ipa, 0, 0]).exit(Reason::Unshare);
    assert_eq!(exit.data, [ipa, puppet.physical(ipa), 0, 0, 0, 0]);
}

fn the_host_has_a_page_until_it_goes_on() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(context().largest());
    let ipa = puppet.scratch();
    let page = puppet.physical(ipa);
    store(&puppet, ipa, SECRET);
    for function in [GuestFunction::MemUnshare, GuestFunction::MemRelinquish] {
        assert_eq!(share(&puppet, ipa), SUCCESS);
        first_step(&puppet, function, ipa);
        // Everything is as it was: for this CPU, for others, and whatever the host does with the vCPU but run it.
        workers::on_all(|_| assert_eq!(probe_read(page), Ok(SECRET)));
        puppet.put();
        host_writes(page + 8, 5);
        puppet.load();
        assert_eq!(probe_read(page), Ok(SECRET));
        match function {
            // Whatever the answer.
            GuestFunction::MemUnshare => {
                let event = puppet.resume(RunFlags::RETRY, [SECRET; 4]);
                assert!(matches!(event, Event::Done([0, x1, ..]) if x1 == ipa), "{event:x?}");
                workers::on_all(|_| assert_hidden(page));
                assert_eq!(load(&puppet, ipa + 8), 5, "its content stays");
            }
            _ => {
                let exit = puppet.resume(RunFlags::empty(), [0; 4]).exit(Reason::Relinquished);
                assert_eq!(exit.data[..2], [ipa, page]);
                assert!(matches!(puppet.resume(RunFlags::empty(), [0; 4]), Event::Done([0, ..])));
                assert_ours(page);
            }
        }
    }
    puppet.put();
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}

/// Another CPU reads the page all the time, and takes nothing away.
fn a_host_that_goes_on_accessing_gets_an_abort() -> Result<(), Skip> {
    need_cpus(2)?;
    let machine = Machine::new(PROTECTED);
    let puppet = machine.vcpu(None);
    let page = puppet.physical(puppet.scratch());
    let (began, reads) = (AtomicBool::new(false), AtomicBool::new(false));
    workers::on_all(|cpu| match cpu {
        0 => {
            puppet.load();
            puppet.start();
            let ipa = puppet.scratch();
            store(&puppet, ipa, SECRET);
            assert_eq!(share(&puppet, ipa), SUCCESS);
            began.store(true, Ordering::SeqCst);
            assert!(timer::wait_until(60, || reads.load(Ordering::SeqCst)));
            first_step(&puppet, GuestFunction::MemUnshare, ipa);
            assert_eq!(probe_read(page), Ok(SECRET), "it is still there");
            assert!(matches!(puppet.resume(RunFlags::empty(), [0; 4]), Event::Done([0, ..])));
            store(&puppet, ipa, !SECRET);
            puppet.put();
        }
        1 => {
            assert!(timer::wait_until(60, || began.load(Ordering::SeqCst)));
            let gone = timer::wait_until(60, || {
                let found = probe_read(page);
                reads.store(true, Ordering::SeqCst);
                // Never what the guest writes when it has the page to itself.
                assert!(found.is_err() || found == Ok(SECRET), "{found:x?}");
                found.is_err()
            });
            assert!(gone, "the host reads on and on");
        }
        _ => {}
    });
    assert_hidden(page);
    Ok(())
}

fn a_host_can_let_unshare_fail() -> Result<(), Skip> {
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    let page = puppet.physical(ipa);
    store(&puppet, ipa, SECRET);
    assert_eq!(share(&puppet, ipa), SUCCESS);
    for function in [GuestFunction::MemUnshare, GuestFunction::MemRelinquish] {
        first_step(&puppet, function, ipa);
        let event = puppet.resume(RunFlags::ABORT, [0x77; 4]);
        let Event::Done([x0, x1, ..]) = event else { panic!("{function:?}: {event:x?}") };
        assert_eq!((x0 as i64, x1), (INVALID_PARAMETER, ipa));
        assert_eq!(probe_read(page), Ok(SECRET), "nothing has changed");
    }
    // The guest asks again, and the host is told again.
    assert_eq!(unshare(&puppet, ipa), SUCCESS);
    assert_hidden(page);
    puppet.put();
    Ok(())
}

fn two_vcpus_unshare_one_page() -> Result<(), Skip> {
    need_cpus(2)?;
    let machine = Machine::new(PROTECTED);
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    let ipa = a.scratch();
    let page = a.physical(ipa);
    let told = |puppet: &Puppet| first_step(puppet, GuestFunction::MemUnshare, ipa);
    let done = |puppet: &Puppet| match puppet.resume(RunFlags::empty(), [0; 4]) {
        Event::Done([x0, ..]) => x0 as i64,
        event => panic!("{event:x?}"),
    };
    a.load();
    a.start();
    workers::on(1, || {
        b.load();
        b.start();
    });
    for round in 0..3 {
        store(&a, ipa, SECRET + round);
        assert_eq!(share(&a, ipa), SUCCESS);
        // Both tell, and the second finds it done.
        told(&a);
        workers::on(1, || told(&b));
        assert_eq!(probe_read(page), Ok(SECRET + round));
        assert_eq!(done(&a), SUCCESS);
        assert_hidden(page);
        workers::on(1, || assert_eq!(done(&b), INVALID_PARAMETER));
        // It has been shared anew in between: that the host was not told about.
        assert_eq!(share(&a, ipa), SUCCESS);
        told(&a);
        workers::on(1, || {
            assert_eq!(unshare(&b, ipa), SUCCESS);
            assert_hidden(page);
            assert_eq!(share(&b, ipa), SUCCESS);
        });
        let exit = a.resume(RunFlags::empty(), [0; 4]).exit(Reason::Unshare);
        assert_eq!(exit.data[..2], [ipa, page]);
        assert_eq!(probe_read(page), Ok(SECRET + round));
        assert_eq!(done(&a), SUCCESS);
        assert_hidden(page);
        assert_eq!(load(&a, ipa), SECRET + round);
    }
    // At the same time, with nobody in between: one of them has it, and nothing is lost.
    for round in 0..20 {
        assert_eq!(share(&a, ipa), SUCCESS);
        store(&a, ipa, SECRET + round);
        let both = [AtomicBool::new(false), AtomicBool::new(false)];
        workers::on_all(|cpu| {
            let (puppet, did) = match cpu {
                0 => (&a, &both[0]),
                1 => (&b, &both[1]),
                _ => return,
            };
            let id = GuestFunction::MemUnshare.id();
            let mut event = puppet.smccc(Routine::Hvc, id, [ipa, 0, 0]);
            if let Event::Exit(exit) = event {
                assert_eq!(exit.info.reason(), Some(Reason::Unshare));
                event = puppet.resume(RunFlags::empty(), [0; 4]);
            }
            let Event::Done([x0, ..]) = event else { panic!("{event:x?}") };
            did.store(x0 as i64 == SUCCESS, Ordering::SeqCst);
        });
        let both = both.map(|did| did.load(Ordering::SeqCst));
        assert!(both[0] != both[1], "one of them unshares it: {both:?}");
        assert_hidden(page);
        assert_eq!(load(&a, ipa), SECRET + round);
    }
    workers::on(1, || b.put());
    a.put();
    Ok(())
}

/// An interrupt takes the guest somewhere else before it has called again: what it says to its host there may have that
/// use the page once more.
fn what_the_host_was_told_is_forgotten_with_another_call() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(None);
    let (ipa, other) = (puppet.scratch(), puppet.scratch() + PAGE);
    for ipa in [ipa, other] {
        assert_eq!(share(&puppet, ipa), SUCCESS);
    }
    puppet.write(sysregs::ICC_PMR, 0xf8);
    puppet.write(sysregs::ICC_IGRPEN1, 1);
    puppet.exec(insn::UNMASK_IRQ, 0);
    first_step(&puppet, GuestFunction::MemUnshare, ipa);
    let interrupt = [Entry::new(40, 0x20, State::Pending)];
    let daif = sysreg::mask_interrupts();
    let entered = Hvc.vcpu_run_with(RunFlags::empty(), [0; 4], &interrupt);
    sysreg::restore_interrupts(daif);
    let mut event = Event::new(entered.expect("VCPU_RUN").0);
    while let Event::Exit(exit) = event
        && exit.info.reason() == Some(Reason::Irq)
    {
        let daif = sysreg::mask_interrupts();
        let entered = Hvc.vcpu_run_with(RunFlags::empty(), [0; 4], &interrupt);
        sysreg::restore_interrupts(daif);
        event = Event::new(entered.expect("VCPU_RUN").0);
    }
    // The handler calls its host, and the loop again; what was to be called is not called.
    assert_eq!(event, Event::Interrupt { intid: 40 });
    puppet.start();
    assert!(probe_read(puppet.physical(ipa)).is_ok());
    first_step(&puppet, GuestFunction::MemUnshare, ipa);
    // That another page's call has failed is nothing to this one.
    assert!(matches!(puppet.resume(RunFlags::ABORT, [0; 4]), Event::Done(_)));
    assert_eq!(unshare(&puppet, other), SUCCESS);
    assert_hidden(puppet.physical(other));
    assert_eq!(unshare(&puppet, ipa), SUCCESS);
    assert_hidden(puppet.physical(ipa));
    puppet.put();
    Ok(())
}

/// An interrupt of the host's stops the guest before it has called again. For all that its host knows it has, and the page is anybody's
/// to map once more: it is told anew.
fn what_the_host_was_told_is_forgotten_when_the_guest_leaves() -> Result<(), Skip> {
    for function in [GuestFunction::MemUnshare, GuestFunction::MemRelinquish] {
        let puppet = Machine::new(PROTECTED).started(None);
        let ipa = puppet.scratch();
        assert_eq!(share(&puppet, ipa), SUCCESS);
        for finishes_first in [false, true] {
            first_step(&puppet, function, ipa);
            let daif = sysreg::mask_interrupts();
            if finishes_first {
                // That is no run.
                let exit = Hvc.vcpu_run(RunFlags::FINISH_ONLY, [0; 4]).expect("VCPU_RUN");
                assert_eq!(exit.info.reason(), Some(Reason::Irq));
            }
            workers::interrupt(cpu(), workers::POKE);
            let exit = Hvc.vcpu_run(RunFlags::empty(), [0; 4]).expect("VCPU_RUN");
            sysreg::restore_interrupts(daif);
            assert_eq!(exit.info.reason(), Some(Reason::Irq), "before it has called");
            let exit = puppet.resume(RunFlags::empty(), [0; 4]).exit(Reason::Unshare);
            assert_eq!(exit.data[..2], [ipa, puppet.physical(ipa)]);
            assert!(probe_read(puppet.physical(ipa)).is_ok(), "{function:?}");
            // Nor is it in any later run but the next.
            assert!(matches!(puppet.resume(RunFlags::ABORT, [0; 4]), Event::Done(_)));
        }
        assert_eq!(unshare(&puppet, ipa), SUCCESS);
        assert_hidden(puppet.physical(ipa));
        puppet.put();
    }
    Ok(())
}

fn a_vm_ends_while_it_unshares() -> Result<(), Skip> {
    for function in [GuestFunction::MemUnshare, GuestFunction::MemRelinquish] {
        let machine = Machine::new(PROTECTED);
        let puppet = machine.started(None);
        let ipa = puppet.scratch();
        let page = puppet.physical(ipa);
        store(&puppet, ipa, SECRET);
        assert_eq!(share(&puppet, ipa), SUCCESS);
        first_step(&puppet, function, ipa);
        assert_eq!(Hvc.vm_destroy(machine.vm), Err(Error::Busy));
        puppet.put();
        assert_eq!(Hvc.vm_destroy(machine.vm), Ok(()));
        assert_eq!(probe_read(page), Ok(SECRET), "it was shared, and is");
        assert_eq!(ledger::destroy(machine.vm), 0, "every page comes back");
        assert_ours(page);
        // A VM in the same slot is told nothing of it: it begins with the first step.
        let next = Machine::new(PROTECTED).started(None);
        assert_eq!(share(&next, next.scratch()), SUCCESS);
        assert_eq!(unshare(&next, next.scratch()), SUCCESS);
        next.put();
    }
    Ok(())
}
