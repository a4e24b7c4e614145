//! Pages that a protected guest shares at their aliases: private at one address or shared at another, never both. The
//! rest of that half of its addresses is a device.

use super::{
    blocks::map_all,
    memory::assert_hidden,
    pages::assert_ours,
    sharing::{call, host_writes, is_bare, load, share, store, with_tables},
};
use crate::{
    context::need_cpus,
    instruction::{self as insn, SysReg, reg},
    ledger::{self, PAGE},
    puppet::{Event, Machine, NOWHERE, PROTECTED, Puppet, Routine},
    runner::Skip,
    tests, workers,
};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{exception::probe_read, timer},
};
use umbra_shared::{
    call::BLOCK_PAGES,
    error::{Error, SUCCESS},
    exit::{Reason, RunFlags},
    guest::{GuestFunction, INVALID_PARAMETER},
};

tests![
    alias_a_page_is_private_or_shared,
    alias_the_private_address_is_an_abort,
    alias_the_upper_half_is_a_device,
    alias_calls_are_checked,
    alias_no_memory_of_the_hosts_choice,
    alias_one_page_of_a_block,
    alias_tables_come_from_the_host,
    alias_memory_comes_from_the_host,
    alias_what_is_given_up_is_the_hosts,
    alias_a_vm_ends_with_pages_there,
    alias_two_vcpus_at_once,
    alias_a_normal_guest_has_none,
    alias_the_host_knows_the_bit,
];

const SECRET: u64 = 0x5ec2_e7a1_5ec2_e7a1;
/// ID_AA64MMFR0_EL1
const MMFR0: SysReg = reg(3, 0, 0, 7, 0);
/// FSC of a synchronous external abort that is on no walk.
const EXTERNAL: u64 = 0x10;

/// The alias bit, as a guest finds it.
fn alias_bit(guest: &Puppet) -> u64 {
    match guest.read(MMFR0) & 0xf {
        0 => 1 << 31,
        1 => 1 << 35,
        2 => 1 << 39,
        range => panic!("a guest is shown PARange {range}"),
    }
}

/// Its host is told the same.
fn alias_the_host_knows_the_bit() -> Result<(), Skip> {
    let (guest, bit) = guest();
    assert_eq!(Hvc.version().map(|version| version.alias_bit), Ok(bit));
    guest.put();
    Ok(())
}

/// With tables for the upper half; and its alias bit.
pub fn guest() -> (Puppet, u64) {
    let guest = with_tables(PROTECTED);
    let bit = alias_bit(&guest);
    (guest, bit)
}

/// An access at an address is the guest's own external abort, of which nobody hears.
#[track_caller]
pub fn assert_aborts(guest: &Puppet, address: u64, instruction: u32, class: u64) {
    let event = guest.at(address).attempt(instruction, SECRET);
    let Event::Exception(e) = event else { panic!("at {address:#x}: {event:x?}") };
    assert_eq!((e.class(), e.esr & 0x3f, e.far), (class, EXTERNAL, address));
    guest.start();
}

/// A store leaves with its data.
#[track_caller]
fn assert_device(guest: &Puppet, address: u64) {
    let exit = guest.at(address).attempt(insn::STR64, SECRET).exit(Reason::Mmio);
    let access = exit.info.mmio_access();
    assert_eq!((access.bytes, access.write), (8, true));
    assert_eq!(exit.data, [address, SECRET, 0, 0, 0, 0]);
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done([SECRET, ..])));
    let exit = guest.at(address).attempt(insn::LDR64, 0).exit(Reason::Mmio);
    assert_eq!((exit.info.mmio_access().write, exit.data), (false, [address, 0, 0, 0, 0, 0]));
    assert!(matches!(guest.resume(RunFlags::empty(), [7; 4]), Event::Done([7, ..])));
}

fn alias_a_page_is_private_or_shared() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let ipa = guest.scratch();
    let page = guest.physical(ipa);
    for round in 0..3 {
        store(&guest, ipa, SECRET + round);
        assert_hidden(page);
        let lookup = || Hvc.vm_lookup(guest.machine.vm, ipa);
        assert_eq!(lookup(), Ok((page, false)));
        assert_device(&guest, ipa | bit);
        assert_eq!(share(&guest, ipa | bit), SUCCESS);
        assert_eq!(lookup(), Ok((page, true)), "found where it was");
        assert_eq!(Hvc.vm_lookup(guest.machine.vm, ipa | bit), Err(Error::BadIpa));
        assert_eq!(load(&guest, ipa | bit), SECRET + round, "its content has moved with it");
        assert_eq!(probe_read(page), Ok(SECRET + round), "and is the host's to read");
        host_writes(page + 8, round);
        assert_eq!(load(&guest, (ipa + 8) | bit), round, "what the host wrote");
        store(&guest, (ipa + 16) | bit, round + 1);
        assert_hidden(page + PAGE);
        // Told, at the address where it is shared; the host has it until it goes on.
        let unshare = GuestFunction::MemUnshare.id();
        let event = guest.smccc(Routine::Hvc, unshare, [ipa | bit, 0, 0]);
        assert_eq!(event.exit(Reason::Unshare).data, [ipa | bit, page, 0, 0, 0, 0]);
        assert_eq!(probe_read(page), Ok(SECRET + round));
        assert_eq!(lookup(), Ok((page, true)), "until it goes on");
        assert!(matches!(guest.resume(RunFlags::empty(), [9; 4]), Event::Done([0, ..])));
        assert_eq!(lookup(), Ok((page, false)));
        workers::on_all(|_| assert_hidden(page));
        assert_device(&guest, ipa | bit);
        for (offset, value) in [(0, SECRET + round), (8, round), (16, round + 1)] {
            assert_eq!(load(&guest, ipa + offset), value, "unsharing changes no content");
        }
    }
    guest.put();
    Ok(())
}

fn alias_the_private_address_is_an_abort() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let ipa = guest.scratch();
    store(&guest, ipa, SECRET);
    assert_eq!(share(&guest, ipa | bit), SUCCESS);
    for instruction in [insn::STR64, insn::LDR64, insn::STP, insn::LDP, insn::LDRB] {
        assert_aborts(&guest, ipa + 16, instruction, 0x25);
    }
    // A fetch.
    let event = guest.attempt(insn::BR, ipa + 0x40);
    let Event::Exception(e) = event else { panic!("a fetch: {event:x?}") };
    assert_eq!((e.class(), e.esr & 0x3f, e.elr, e.far), (0x21, EXTERNAL, ipa + 0x40, ipa + 0x40));
    guest.start();
    // Nothing of it was done, and it ends with the sharing.
    assert_eq!(load(&guest, ipa | bit), SECRET);
    assert_eq!(load(&guest, (ipa + 16) | bit), 0);
    assert_eq!(guest.unshare(Routine::Smc, ipa | bit, guest.physical(ipa))[0], 0);
    assert_eq!(load(&guest, ipa), SECRET);
    guest.put();
    Ok(())
}

fn alias_the_upper_half_is_a_device() -> Result<(), Skip> {
    let (guest, bit) = guest();
    // Where there is memory below, and where there is not.
    for ipa in [guest.scratch(), NOWHERE, 0, bit - PAGE] {
        for offset in [0, 8, 0xff8] {
            assert_device(&guest, (ipa + offset) | bit);
        }
        // What can't be emulated.
        for instruction in [insn::STP, insn::LDP] {
            let exit = guest.at((ipa + 16) | bit).attempt(instruction, SECRET).exit(Reason::Fault);
            is_bare(exit, ipa | bit);
            guest.resume(RunFlags::ABORT, [0; 4]);
        }
        is_bare(guest.attempt(insn::BR, (ipa + 0x40) | bit).exit(Reason::Fault), ipa | bit);
        guest.resume(RunFlags::ABORT, [0; 4]);
    }
    // The lower half is none.
    let exit = guest.at(NOWHERE + 8).attempt(insn::STR64, SECRET).exit(Reason::Fault);
    is_bare(exit, NOWHERE);
    guest.resume(RunFlags::ABORT, [0; 4]);
    guest.put();
    Ok(())
}

fn alias_calls_are_checked() -> Result<(), Skip> {
    use GuestFunction::{MemRelinquish, MemShare, MemUnshare, MmioGuard};
    let (guest, bit) = guest();
    let (ipa, other) = (guest.scratch(), guest.scratch() + PAGE);
    let refuse = |function, ipa| {
        assert_eq!(call(&guest, function, ipa), INVALID_PARAMETER, "{function:?} {ipa:#x}");
    };
    // Nothing is there, and of the host nothing is asked.
    for function in [MemUnshare, MemRelinquish, MmioGuard] {
        refuse(function, NOWHERE | bit);
    }
    for function in [MemShare, MemUnshare, MemRelinquish, MmioGuard] {
        refuse(function, (ipa + 8) | bit);
    }
    for function in [MemUnshare, MemRelinquish, MmioGuard] {
        refuse(function, ipa | bit);
    }
    // Enrolled below.
    assert_eq!(call(&guest, MmioGuard, NOWHERE), SUCCESS);
    refuse(MemShare, NOWHERE | bit);
    // Shared in place.
    store(&guest, other, SECRET);
    assert_eq!(share(&guest, other), SUCCESS);
    for function in [MemShare, MemUnshare, MemRelinquish] {
        refuse(function, other | bit);
    }
    assert_eq!(load(&guest, other), SECRET, "it is where it was");
    // At its alias.
    store(&guest, ipa, SECRET);
    assert_eq!(share(&guest, ipa | bit), SUCCESS);
    for function in [MemShare, MemUnshare, MemRelinquish, MmioGuard] {
        refuse(function, ipa);
    }
    refuse(MemShare, ipa | bit);
    refuse(MmioGuard, ipa | bit);
    assert_eq!(load(&guest, ipa | bit), SECRET, "it is where it was");
    guest.put();
    Ok(())
}

fn alias_no_memory_of_the_hosts_choice() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let vm = guest.machine.vm;
    let ipa = guest.scratch();
    let page = ledger::take(1);
    for ipa in [NOWHERE | bit, ipa | bit, bit, bit + bit - PAGE] {
        assert_eq!(Hvc.vm_map(vm, page, ipa), Err(Error::BadIpa), "{ipa:#x}");
    }
    assert_eq!(share(&guest, ipa | bit), SUCCESS);
    // Nor where the guest's own has been.
    assert_eq!(Hvc.vm_map(vm, page, ipa), Err(Error::IpaInUse));
    assert_eq!(Hvc.vm_map(vm, page, ipa | bit), Err(Error::BadIpa));
    assert_ours(page);
    guest.put();
    Ok(())
}

fn alias_one_page_of_a_block() -> Result<(), Skip> {
    const IPA: u64 = 0x9000_0000;
    let (guest, bit) = guest();
    let memory = ledger::aligned(BLOCK_PAGES, BLOCK_PAGES as usize);
    map_all(guest.machine.vm, memory, BLOCK_PAGES, IPA);
    let mark = |n: u64| SECRET + n;
    for n in 0..BLOCK_PAGES {
        store(&guest, IPA + n * PAGE, mark(n));
    }
    for n in [0, 200, BLOCK_PAGES - 1] {
        let (ipa, page) = (IPA + n * PAGE, memory + n * PAGE);
        assert_eq!(share(&guest, ipa | bit), SUCCESS);
        assert_eq!(probe_read(page), Ok(mark(n)));
        assert_eq!(load(&guest, ipa | bit), mark(n));
        assert_aborts(&guest, ipa, insn::LDR64, 0x25);
        for n in (0..BLOCK_PAGES).filter(|&other| other != n) {
            assert_eq!(load(&guest, IPA + n * PAGE), mark(n), "page {n} of the block");
        }
        assert_hidden(memory + (n ^ 1) * PAGE);
        assert_eq!(guest.unshare(Routine::Hvc, ipa | bit, page)[0], 0);
        assert_hidden(page);
        assert_eq!(load(&guest, ipa), mark(n));
        assert_device(&guest, ipa | bit);
    }
    guest.put();
    assert_eq!(ledger::destroy(guest.machine.vm), 0);
    Ok(())
}

/// A guest that shares all over its address space takes tables; it never hears that there are none.
fn alias_tables_come_from_the_host() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let vm = machine.vm;
    // Each in a gigabyte of its own, with what that takes and not much more.
    Hvc.vm_topup(vm, ledger::take(12), 12).expect("VM_TOPUP");
    let gigabytes = [4, 5, 6, 9, 17, 30u64].map(|n| n << 30);
    let pages = gigabytes.map(|ipa| {
        let page = ledger::take(1);
        Hvc.vm_map(vm, page, ipa).expect("VM_MAP");
        page
    });
    let guest = machine.started(None);
    let bit = alias_bit(&guest);
    let (mut asked, mut given) = (0, 0);
    for (n, (ipa, page)) in gigabytes.into_iter().zip(pages).enumerate() {
        store(&guest, ipa, SECRET);
        let how = if n % 2 == 0 { Routine::Hvc } else { Routine::Smc };
        let mut event = guest.smccc(how, GuestFunction::MemShare.id(), [ipa | bit, 0, 0]);
        let mut failed = false;
        while let Event::Exit(exit) = event {
            assert_eq!(exit.info.reason(), Some(Reason::Tables));
            assert_eq!(exit.data, [0; 6], "the host learns no address");
            // Nothing has changed before there are some.
            assert_hidden(page);
            asked += 1;
            if !failed {
                failed = true;
                event = guest.resume(RunFlags::ABORT, [0; 4]);
                let Event::Done([x0, ..]) = event else { panic!("{event:x?}") };
                assert_eq!(x0 as i64, INVALID_PARAMETER);
                assert_eq!(load(&guest, ipa), SECRET, "it is where it was");
                event = guest.smccc(how, GuestFunction::MemShare.id(), [ipa | bit, 0, 0]);
                continue;
            }
            Hvc.vm_topup(vm, ledger::take(1), 1).expect("VM_TOPUP");
            given += 1;
            event = guest.resume(RunFlags::empty(), [5; 4]);
        }
        assert!(matches!(event, Event::Done([0, ..])), "MEM_SHARE of {ipa:#x}: {event:x?}");
        assert_eq!((load(&guest, ipa | bit), probe_read(page)), (SECRET, Ok(SECRET)));
    }
    assert!(given != 0, "asked {asked} times");
    guest.put();
    assert_eq!(ledger::destroy(vm), 0, "they come back");
    Ok(())
}

/// Nor that there is no memory yet: it comes to its private address, and is shared, empty.
fn alias_memory_comes_from_the_host() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let vm = guest.machine.vm;
    for (n, how) in [Routine::Hvc, Routine::Smc].into_iter().enumerate() {
        let ipa = NOWHERE + n as u64 * PAGE;
        let ask = || guest.smccc(how, GuestFunction::MemShare.id(), [ipa | bit, 0, 0]);
        for _ in 0..2 {
            is_bare(ask().exit(Reason::Fault), ipa);
            is_bare(guest.resume(RunFlags::empty(), [7; 4]).exit(Reason::Fault), ipa);
            let Event::Done([x0, x1, ..]) = guest.resume(RunFlags::ABORT, [7; 4]) else {
                panic!("the call has failed, and the guest goes on");
            };
            assert_eq!((x0 as i64, x1), (INVALID_PARAMETER, ipa | bit));
        }
        is_bare(ask().exit(Reason::Fault), ipa);
        let page = ledger::take(1);
        assert_eq!(Hvc.vm_map(vm, page, ipa | bit), Err(Error::BadIpa), "nor anywhere else");
        Hvc.vm_map(vm, page, ipa).expect("VM_MAP");
        assert_hidden(page);
        assert!(matches!(guest.resume(RunFlags::empty(), [7; 4]), Event::Done([0, ..])));
        assert_eq!((load(&guest, ipa | bit), probe_read(page)), (0, Ok(0)));
        assert_aborts(&guest, ipa, insn::LDR64, 0x25);
    }
    guest.put();
    Ok(())
}

fn alias_what_is_given_up_is_the_hosts() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let vm = guest.machine.vm;
    let ipa = guest.scratch();
    let page = guest.physical(ipa);
    store(&guest, ipa, SECRET);
    assert_eq!(share(&guest, ipa | bit), SUCCESS);
    let event = guest.smccc(Routine::Hvc, GuestFunction::MemRelinquish.id(), [ipa | bit, 0, 0]);
    let exit = guest.told(event, ipa | bit, page).exit(Reason::Relinquished);
    assert_eq!(exit.data[..2], [ipa | bit, page]);
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done([0, ..])));
    assert_ours(page);
    // Both addresses are free: one is a device's, the other takes memory.
    assert_device(&guest, ipa | bit);
    is_bare(guest.at(ipa + 8).attempt(insn::LDR64, 0).exit(Reason::Fault), ipa);
    let next = ledger::take(1);
    Hvc.vm_map(vm, next, ipa).expect("VM_MAP");
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done([0, ..])));
    assert_hidden(next);
    assert_eq!(share(&guest, ipa | bit), SUCCESS);
    assert_eq!(probe_read(next), Ok(0), "which arrived empty");
    guest.put();
    assert_eq!(ledger::destroy(vm), 0);
    Ok(())
}

fn alias_a_vm_ends_with_pages_there() -> Result<(), Skip> {
    for round in 0..3 {
        let (guest, bit) = guest();
        let vm = guest.machine.vm;
        let ipa = guest.scratch();
        for n in 0..4 {
            store(&guest, ipa + n * PAGE, SECRET + n);
        }
        for n in 0..2 {
            assert_eq!(share(&guest, (ipa + n * PAGE) | bit), SUCCESS);
        }
        if round == 2 {
            // On its way back.
            let unshare = GuestFunction::MemUnshare.id();
            guest.smccc(Routine::Hvc, unshare, [ipa | bit, 0, 0]).exit(Reason::Unshare);
        }
        guest.put();
        Hvc.vm_destroy(vm).expect("VM_DESTROY");
        let page = |n: u64| guest.physical(ipa + n * PAGE);
        assert_eq!(probe_read(page(0)), Ok(SECRET), "it was the host's to read, and is");
        assert_hidden(page(2));
        assert_eq!(ledger::destroy(vm), 0, "every page comes back");
        assert_eq!(probe_read(page(1)), Ok(SECRET + 1));
        assert_eq!((probe_read(page(2)), probe_read(page(3))), (Ok(0), Ok(0)), "wiped");
        (0..4).for_each(|n| assert_ours(page(n)));
    }
    Ok(())
}

/// Two vCPUs share one page, use it and take it back, each as it likes: at every moment it is at one address.
fn alias_two_vcpus_at_once() -> Result<(), Skip> {
    need_cpus(2)?;
    let machine = Machine::new(PROTECTED);
    Hvc.vm_topup(machine.vm, ledger::take(8), 8).expect("VM_TOPUP");
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    a.load();
    a.start();
    workers::on(1, || {
        b.load();
        b.start();
    });
    let bit = alias_bit(&a);
    let ipa = a.scratch();
    let page = a.physical(ipa);
    store(&a, ipa, SECRET);
    let (shared, back) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    workers::on_all(|cpu| {
        let guest = match cpu {
            0 => &a,
            1 => &b,
            _ => {
                // What the host finds is what it may find: nothing, or what they share.
                let ended = timer::wait_until(60, || {
                    let found = probe_read(page);
                    assert!(found.is_err() || found == Ok(SECRET), "{found:x?}");
                    done.load(Ordering::SeqCst)
                });
                assert!(ended, "the guests do not come to an end");
                return;
            }
        };
        for n in 0..60 {
            let ask = |function: GuestFunction| {
                guest.smccc(Routine::Hvc, function.id(), [ipa | bit, 0, 0])
            };
            if matches!(ask(GuestFunction::MemShare), Event::Done([0, ..])) {
                shared.fetch_add(1, Ordering::SeqCst);
            }
            // Here it is, or there is a device.
            match guest.at(ipa | bit).attempt(insn::LDR64, 0) {
                Event::Done([SECRET, ..]) => {}
                event => {
                    event.exit(Reason::Mmio);
                    guest.resume(RunFlags::empty(), [0; 4]);
                }
            }
            let mut event = ask(GuestFunction::MemUnshare);
            while let Event::Exit(exit) = event {
                assert_eq!(exit.info.reason(), Some(Reason::Unshare));
                event = guest.resume(RunFlags::empty(), [0; 4]);
            }
            if matches!(event, Event::Done([0, ..])) {
                back.fetch_add(1, Ordering::SeqCst);
            }
            // There it is, or it is shared.
            match guest.at(ipa).attempt(insn::LDR64, 0) {
                Event::Done([SECRET, ..]) => {}
                Event::Exception(e) => {
                    assert_eq!((e.esr & 0x3f, e.far), (EXTERNAL, ipa), "round {n}");
                    guest.start();
                }
                event => panic!("round {n}: {event:x?}"),
            }
        }
        if cpu == 0 {
            done.store(true, Ordering::SeqCst);
        }
    });
    let (shared, back) = (shared.into_inner(), back.into_inner());
    assert!(shared == back && shared >= 60, "shared {shared} times, back {back} times");
    assert_hidden(page);
    assert_eq!(load(&a, ipa), SECRET);
    workers::on(1, || b.put());
    a.put();
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}

fn alias_a_normal_guest_has_none() -> Result<(), Skip> {
    let machine = Machine::normal();
    let guest = machine.started(None);
    Hvc.vm_topup(machine.vm, ledger::take(8), 8).expect("VM_TOPUP");
    let bit = alias_bit(&guest);
    let page = ledger::take(1);
    Hvc.vm_map(machine.vm, page, NOWHERE | bit).expect("its addresses are all alike");
    store(&guest, NOWHERE | bit, SECRET);
    assert_eq!(load(&guest, NOWHERE | bit), SECRET);
    assert_device(&guest, NOWHERE);
    assert_eq!(Hvc.vm_unmap(machine.vm, NOWHERE | bit), Ok(page));
    assert_device(&guest, NOWHERE | bit);
    guest.put();
    Ok(())
}
