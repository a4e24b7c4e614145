//! Pages that change hands while a VM lives: a protected guest shares its memory with its host and
//! takes it back, guests give memory back for good, and the host takes a normal guest's.

use super::{
    memory::{assert_content, assert_hidden, fill},
    pages::assert_ours,
};
use crate::{
    context::{context, need_cpus},
    instruction as insn,
    ledger::{self, PAGE},
    puppet::{BASE, Event, MEMORY_PAGES, Machine, NOWHERE, PROTECTED, Puppet, Routine},
    runner::Skip,
    tests, workers,
};
use core::sync::atomic::{AtomicBool, Ordering};
use umbra_host::{
    hypercall::{Exit, Hvc, Hypervisor},
    kernel::{
        exception::{probe_read, probe_write},
        mmu, sysreg, timer,
    },
};
use umbra_shared::{
    call::VmConfig,
    error::{Error, SUCCESS},
    exit::{ExitInfo, Reason, RunFlags},
    guest::{GuestFunction, INVALID_PARAMETER, NOT_SUPPORTED, UID},
};

tests![
    a_protected_guest_shares_and_unshares,
    what_is_unshared_is_gone_on_every_cpu,
    guest_calls_are_checked,
    a_protected_guest_finds_kvms_calls,
    a_call_for_memory_that_is_not_there_yet_is_tried_again,
    a_normal_guest_is_shown_none_of_it,
    the_host_cannot_give_away_what_a_guest_shares,
    shared_memory_comes_back_at_the_end,
    relinquished_memory_is_wiped_and_the_hosts,
    unmap_takes_a_page_from_a_normal_guest,
    unmap_reaches_a_guest_that_runs,
];

const SECRET: u64 = 0x5ec2_e700_5ec2_e700;

/// A call of the guest's; its x0 afterwards.
#[track_caller]
pub fn call(puppet: &Puppet, function: GuestFunction, ipa: u64) -> i64 {
    puppet.answered(Routine::Hvc, function.id(), [ipa, 0, 0])[0] as i64
}

#[track_caller]
pub fn share(puppet: &Puppet, ipa: u64) -> i64 {
    call(puppet, GuestFunction::MemShare, ipa)
}

/// Of a page that is shared: in two steps.
#[track_caller]
pub fn unshare(puppet: &Puppet, ipa: u64) -> i64 {
    puppet.unshare(Routine::Hvc, ipa, puppet.physical(ipa))[0] as i64
}

/// Of one that is not: in one.
#[track_caller]
fn unshare_at_once(puppet: &Puppet, ipa: u64) -> i64 {
    call(puppet, GuestFunction::MemUnshare, ipa)
}

/// The guest gives a page back; its x0 is in the next exit.
#[track_caller]
fn relinquish(puppet: &Puppet, ipa: u64, shared: bool) {
    let mut event = puppet.smccc(Routine::Hvc, GuestFunction::MemRelinquish.id(), [ipa, 0, 0]);
    if shared {
        event = puppet.told(event, ipa, puppet.physical(ipa));
    }
    let exit = event.exit(Reason::Relinquished);
    assert_eq!(exit.data[..2], [ipa, puppet.physical(ipa)], "which page it was");
    match puppet.resume(Default::default(), [0x77; 4]) {
        Event::Done(x) => assert_eq!(x[0], SUCCESS as u64, "the call was answered by hyp"),
        event => panic!("after MEM_RELINQUISH: {event:x?}"),
    }
}

/// A guest with tables to spare.
pub fn with_tables(config: VmConfig) -> Puppet {
    let puppet = Machine::new(config).started(None);
    Hvc.vm_topup(puppet.machine.vm, ledger::take(8), 8).expect("VM_TOPUP");
    puppet
}

/// The whole of what the host is told: a page, and nothing of what the guest was about to do in it.
#[track_caller]
pub fn is_bare(exit: Exit, page: u64) {
    assert_eq!(exit.info.register() & !ExitInfo::VTIMER, Reason::Fault as u64, "{exit:x?}");
    assert_eq!(exit.data, [page, 0, 0, 0, 0, 0]);
}

/// The host writes to a page that it may write, and a guest with its caches off finds it.
#[track_caller]
pub fn host_writes(pa: u64, value: u64) {
    // SAFETY: a page of the test's, or one that the guest shares.
    assert_eq!(unsafe { probe_write(pa, value) }, Ok(()));
    sysreg::clean_to_poc(mmu::linear::<u64>(pa) as usize, size_of::<u64>());
}

pub fn store(puppet: &Puppet, ipa: u64, value: u64) {
    puppet.at(ipa).exec(insn::STR64, value);
}

pub fn load(puppet: &Puppet, ipa: u64) -> u64 {
    puppet.at(ipa).exec(insn::LDR64, 0)
}

fn a_protected_guest_shares_and_unshares() -> Result<(), Skip> {
    let puppet = Machine::new(PROTECTED).started(context().largest());
    let ipa = puppet.scratch();
    let page = puppet.physical(ipa);
    for round in 0..3 {
        store(&puppet, ipa, SECRET + round);
        assert_hidden(page);
        assert_eq!(share(&puppet, ipa), SUCCESS);
        assert_eq!(probe_read(page), Ok(SECRET + round), "what the guest wrote");
        host_writes(page + 8, round);
        assert_eq!(load(&puppet, ipa + 8), round, "what the host wrote");
        // Its neighbours are as secret as before.
        assert_hidden(page + PAGE);
        assert_eq!(unshare(&puppet, ipa), SUCCESS);
        assert_hidden(page);
        assert_eq!(load(&puppet, ipa), SECRET + round, "unsharing changes no content");
        assert_eq!(load(&puppet, ipa + 8), round);
    }
    puppet.put();
    Ok(())
}

/// Every CPU has used the page, so every TLB has had it.
fn what_is_unshared_is_gone_on_every_cpu() -> Result<(), Skip> {
    need_cpus(2)?;
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    let page = puppet.physical(ipa);
    for _ in 0..4 {
        assert_eq!(share(&puppet, ipa), SUCCESS);
        workers::on_all(|_| assert!(probe_read(page).is_ok()));
        assert_eq!(unshare(&puppet, ipa), SUCCESS);
        workers::on_all(|_| assert_hidden(page));
    }
    puppet.put();
    Ok(())
}

fn guest_calls_are_checked() -> Result<(), Skip> {
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    for &function in GuestFunction::ALL.iter().filter(|function| function.arguments() == 1) {
        for ipa in [ipa + 8, ipa + 1, 1 << 47, !0 << 12] {
            assert_eq!(call(&puppet, function, ipa), INVALID_PARAMETER, "{function:?} {ipa:#x}");
        }
        // Reserved arguments.
        for args in [[ipa, 1, 0], [ipa, 0, 1], [ipa, 1 << 63, 0]] {
            let x0 = puppet.answered(Routine::Hvc, function.id(), args)[0] as i64;
            assert_eq!(x0, INVALID_PARAMETER, "{function:?} {args:x?}");
        }
    }
    for ipa in [NOWHERE, BASE + MEMORY_PAGES * PAGE] {
        assert_eq!(unshare_at_once(&puppet, ipa), INVALID_PARAMETER);
        assert_eq!(call(&puppet, GuestFunction::MemRelinquish, ipa), INVALID_PARAMETER);
    }
    assert_eq!(call(&puppet, GuestFunction::MmioGuard, ipa), INVALID_PARAMETER, "it is memory");
    assert_eq!(unshare_at_once(&puppet, ipa), INVALID_PARAMETER, "it is not shared");
    assert_eq!(share(&puppet, ipa), SUCCESS);
    assert_eq!(share(&puppet, ipa), INVALID_PARAMETER, "it is shared");
    assert_eq!(unshare(&puppet, ipa), SUCCESS);
    assert_eq!(unshare_at_once(&puppet, ipa), INVALID_PARAMETER);
    assert_hidden(puppet.physical(ipa));
    puppet.put();
    Ok(())
}

/// As Linux's `pkvm_init_hyp_services` asks: by HVC, and by SMC.
fn a_protected_guest_finds_kvms_calls() -> Result<(), Skip> {
    let puppet = Machine::new(PROTECTED).started(None);
    for how in [Routine::Hvc, Routine::Smc] {
        let ask = |function: u64, args| puppet.answered(how, function, args);
        assert_eq!(ask(0x8600_ff01, [0; 3]), UID.map(u64::from), "UID");
        let words = ask(0x8600_0000, [7; 3]);
        // FEATURES, HYP_MEMINFO, MEM_SHARE, MEM_UNSHARE, MMIO_GUARD; MEM_RELINQUISH as Android has it.
        assert_eq!(words, [0x9d | 1 << 9, 0, 0, 0], "FEATURES");
        assert_eq!(ask(0xc600_0002, [0; 3])[0], PAGE, "HYP_MEMINFO");
        assert_eq!(ask(0xc600_0002, [1, 0, 0])[0] as i64, INVALID_PARAMETER);
        let ipa = puppet.scratch();
        for _ in 0..2 {
            // What a call doesn't answer in is as it was.
            assert_eq!(ask(0xc600_0003, [ipa, 0, 0]), [0, ipa, 0, 0], "MEM_SHARE");
            let event = puppet.smccc(how, 0xc600_0004, [ipa, 0, 0]);
            match puppet.told(event, ipa, puppet.physical(ipa)) {
                Event::Done([x0, x1, x2, x3, _]) => assert_eq!([x0, x1, x2, x3], [0, ipa, 0, 0]),
                event => panic!("MEM_UNSHARE: {event:x?}"),
            }
        }
        // PTP, what is reserved for pKVM, the host's functions of the same range, SMC32's IDs.
        for function in
            [0xc600_0001, 0xc600_0005, 0xc600_0008, 0xc600_0026, 0xc600_0041, 0x8600_0003]
        {
            let x0 = ask(function, [ipa, 0, 0])[0] as i64;
            assert_eq!(x0, NOT_SUPPORTED, "{function:#x}");
        }
    }
    puppet.put();
    Ok(())
}

/// What a call needs that the host hasn't given yet the host is asked for, and the guest never knows.
fn a_call_for_memory_that_is_not_there_yet_is_tried_again() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(None);
    Hvc.vm_topup(machine.vm, ledger::take(4), 4).expect("VM_TOPUP");
    for (n, how) in [Routine::Hvc, Routine::Smc].into_iter().enumerate() {
        let ipa = NOWHERE + n as u64 * PAGE;
        let ask = || puppet.smccc(how, GuestFunction::MemShare.id(), [ipa, 0, 0]);
        for _ in 0..2 {
            assert_eq!(ask().exit(Reason::Fault).data, [ipa, 0, 0, 0, 0, 0]);
            // And again, for as long as there is nothing; then the host says that there will be nothing.
            let again = puppet.resume(RunFlags::empty(), [0x77; 4]).exit(Reason::Fault);
            assert_eq!(again.data, [ipa, 0, 0, 0, 0, 0]);
            let Event::Done([x0, x1, ..]) = puppet.resume(RunFlags::ABORT, [0x77; 4]) else {
                panic!("the call has failed, and the guest goes on");
            };
            assert_eq!((x0 as i64, x1), (INVALID_PARAMETER, ipa));
        }
        ask().exit(Reason::Fault);
        let page = ledger::take(1);
        Hvc.vm_map(machine.vm, page, ipa).expect("VM_MAP");
        assert_hidden(page);
        assert!(matches!(puppet.resume(RunFlags::empty(), [0x77; 4]), Event::Done([0, ..])));
        assert_eq!(probe_read(page), Ok(0), "it is shared, and empty");
    }
    puppet.put();
    Ok(())
}

fn a_normal_guest_is_shown_none_of_it() -> Result<(), Skip> {
    let puppet = Machine::normal().started(None);
    let ipa = puppet.scratch();
    for &function in GuestFunction::ALL {
        let event = puppet.smccc(Routine::Hvc, function.id(), [ipa, 0, 0]);
        let exit = event.exit(Reason::Hvc);
        assert_eq!(exit.data[..2], [function.id(), ipa], "{function:?} is its host's");
        puppet.resume(Default::default(), [0; 4]);
        let x0 = puppet.answered(Routine::Smc, function.id(), [ipa, 0, 0])[0] as i64;
        assert_eq!(x0, NOT_SUPPORTED, "{function:?} by SMC");
    }
    puppet.put();
    Ok(())
}

fn the_host_cannot_give_away_what_a_guest_shares() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(None);
    let page = puppet.physical(puppet.scratch());
    assert_eq!(share(&puppet, puppet.scratch()), SUCCESS);
    let other = Machine::normal();
    assert_eq!(Hvc.vm_map(other.vm, page, 0x9000_0000), Err(Error::Shared));
    assert_eq!(Hvc.vm_topup(other.vm, page, 1), Err(Error::Shared));
    assert_eq!(Hvc.share_flag_page(page), Err(Error::Shared));
    assert_eq!(Hvc.unshare_flag_page(page), Err(Error::NotShared));
    assert_eq!(Hvc.vm_unmap(machine.vm, puppet.scratch()), Err(Error::NotOwned));
    assert_eq!(Hvc.vm_reclaim(machine.vm, page), Err(Error::NotDying));
    assert_eq!(unshare(&puppet, puppet.scratch()), SUCCESS);
    assert_hidden(page);
    puppet.put();
    Ok(())
}

fn shared_memory_comes_back_at_the_end() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(None);
    let page = puppet.physical(puppet.scratch());
    store(&puppet, puppet.scratch(), SECRET);
    assert_eq!(share(&puppet, puppet.scratch()), SUCCESS);
    puppet.put();
    assert_eq!(Hvc.vm_destroy(machine.vm), Ok(()));
    // Shared is shared until it is reclaimed; then it is the host's.
    assert_eq!(probe_read(page), Ok(SECRET));
    assert_eq!(Hvc.share_flag_page(page), Err(Error::Shared));
    assert_eq!(ledger::destroy(machine.vm), 0);
    assert_ours(page);
    Ok(())
}

fn relinquished_memory_is_wiped_and_the_hosts() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(context().largest());
    for shared in [false, true] {
        let ipa = puppet.scratch() + if shared { PAGE } else { 0 };
        let page = puppet.physical(ipa);
        store(&puppet, ipa + 16, SECRET);
        if shared {
            assert_eq!(share(&puppet, ipa), SUCCESS);
        }
        relinquish(&puppet, ipa, shared);
        if !shared {
            assert_content(page, false);
        }
        assert_ours(page);
        // The guest finds nothing there any more.
        let exit = puppet.at(ipa + 8).attempt(insn::LDR64, 0).exit(Reason::Fault);
        assert_eq!(exit.data[0], ipa);
        assert!(matches!(puppet.resume(RunFlags::ABORT, [0; 4]), Event::Exception(_)));
        assert_eq!(unshare_at_once(&puppet, ipa), INVALID_PARAMETER);
    }
    puppet.put();
    // The books balance: what came back before is not waited for.
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}

fn unmap_takes_a_page_from_a_normal_guest() -> Result<(), Skip> {
    const IPA: u64 = 0x9000_0000;
    let machine = Machine::normal();
    let puppet = machine.started(None);
    let page = ledger::take(1);
    fill(page);
    Hvc.vm_map(machine.vm, page, IPA).expect("VM_MAP");
    assert_ne!(load(&puppet, IPA), 0);
    for (ipa, error) in
        [(IPA + 1, Error::Unaligned), (1 << 47, Error::BadIpa), (IPA + PAGE, Error::NotMapped)]
    {
        assert_eq!(Hvc.vm_unmap(machine.vm, ipa), Err(error));
    }
    assert_eq!(Hvc.vm_unmap(machine.vm, IPA), Ok(page));
    assert_content(page, true);
    assert_ours(page);
    puppet.at(IPA).attempt(insn::LDR64, 0).exit(Reason::Mmio);
    assert_eq!(Hvc.vm_unmap(machine.vm, IPA), Err(Error::NotMapped));
    // There is room for another one, which the guest finds without further ado.
    let other = ledger::take(1);
    Hvc.vm_map(machine.vm, other, IPA).expect("VM_MAP where something was before");
    let flags = RunFlags::RETRY;
    assert!(matches!(puppet.resume(flags, [0; 4]), Event::Done([0, ..])));
    puppet.put();
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}

/// The guest's CPU has the translation in its TLB, and uses it all the time.
fn unmap_reaches_a_guest_that_runs() -> Result<(), Skip> {
    need_cpus(2)?;
    const IPA: u64 = 0x9000_0000;
    let machine = Machine::normal();
    let puppet = machine.vcpu(None);
    let page = ledger::take(1);
    Hvc.vm_map(machine.vm, page, IPA).expect("VM_MAP");
    let unmapped = AtomicBool::new(false);
    workers::on_all(|cpu| match cpu {
        0 => {
            let counts = timer::wait_until(60, || probe_read(page).is_ok_and(|n| n > 1000));
            assert!(counts, "the guest does not count");
            assert_eq!(Hvc.vm_unmap(machine.vm, IPA), Ok(page));
            unmapped.store(true, Ordering::SeqCst);
            let last = probe_read(page).expect("the host's own page");
            // Nothing comes after what the unmapping has waited for.
            for _ in 0..1000 {
                assert_eq!(probe_read(page), Ok(last), "the guest still writes to the page");
            }
        }
        1 => {
            puppet.load();
            puppet.start();
            let exit = puppet.begin(Routine::Spin, [IPA, 0, 0]).exit(Reason::Mmio);
            assert_eq!(exit.data[0], IPA);
            puppet.put();
        }
        _ => {}
    });
    assert!(unmapped.load(Ordering::SeqCst));
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}
