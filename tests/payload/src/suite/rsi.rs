//! A protected guest that uses RSI (Arm DEN0137): what it finds, and what becomes of its memory when it says RAM or EMPTY.

use super::{
    alias::{self, guest},
    blocks::map_all,
    memory::assert_hidden,
    sharing::{host_writes, is_bare, load, store},
};
use crate::{
    instruction as insn,
    ledger::{self, PAGE},
    puppet::{BASE, Event, Machine, NOWHERE, PROTECTED, Puppet, Routine},
    runner::Skip,
    tests, workers,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::exception::probe_read,
};
use umbra_shared::{
    call::BLOCK_PAGES,
    error::Error,
    exit::{Reason, RunFlags},
    guest::{GuestFunction, NOT_SUPPORTED},
    rsi::{
        ACCEPT, ERROR_INPUT, ERROR_UNKNOWN, PAGES_AT_A_TIME, RAM_RANGES, REJECT, Ripas,
        RsiFunction, SUCCESS, VERSION,
    },
};

tests![
    rsi_a_guest_finds_a_realm,
    rsi_the_configuration_goes_into_memory_alone,
    rsi_what_is_empty_is_wiped_and_shared,
    rsi_what_is_ram_again_is_wiped,
    rsi_memory_comes_to_ram_alone,
    rsi_the_host_brings_what_becomes_empty,
    rsi_pages_of_a_block,
    rsi_calls_are_checked,
    rsi_or_kvms_calls_and_not_both,
    rsi_is_not_for_others,
    rsi_ranges_of_ram_are_counted,
];

const SECRET: u64 = 0x5ec2_e751_5ec2_e751;

#[track_caller]
fn call(guest: &Puppet, function: RsiFunction, args: [u64; 3]) -> [u64; 4] {
    guest.answered(Routine::Smc, function.id(), args)
}

/// IPA_STATE_SET, to its end or to an exit.
fn begin(guest: &Puppet, base: u64, top: u64, ripas: Ripas) -> Event {
    let set = RsiFunction::IpaStateSet.id();
    guest.smccc(Routine::Smc, set, [base, top, ripas as u64])
}

/// IPA_STATE_SET of which nobody hears: how far it came.
#[track_caller]
fn set(guest: &Puppet, base: u64, top: u64, ripas: Ripas) -> u64 {
    match begin(guest, base, top, ripas) {
        Event::Done([SUCCESS, at, ACCEPT, ..]) => at,
        event => panic!("{base:#x} to {top:#x}, {ripas:?}: {event:x?}"),
    }
}

/// IPA_STATE_GET of as much as there is.
#[track_caller]
fn get(guest: &Puppet, base: u64, top: u64) -> (u64, u64) {
    let [x0, at, ripas, _] = call(guest, RsiFunction::IpaStateGet, [base, top, 0]);
    assert_eq!(x0, SUCCESS);
    (ripas, at)
}

const EMPTY: u64 = Ripas::Empty as u64;
const RAM: u64 = Ripas::Ram as u64;

/// An access is the guest's own external abort, of which nobody hears.
#[track_caller]
fn assert_aborts(guest: &Puppet, address: u64) {
    for instruction in [insn::STR64, insn::LDR64] {
        alias::assert_aborts(guest, address, instruction, 0x25);
    }
}

fn rsi_a_guest_finds_a_realm() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let ipa = guest.scratch();
    for how in [Routine::Hvc, Routine::Smc] {
        let ask = |function: RsiFunction, args| guest.answered(how, function.id(), args);
        assert_eq!(ask(RsiFunction::Version, [VERSION, 7, 8]), [SUCCESS, VERSION, VERSION, 8]);
        for other in [0, VERSION + 1, 2 << 16, u64::MAX] {
            let [x0, lowest, highest, _] = ask(RsiFunction::Version, [other, 7, 8]);
            assert_eq!([x0, lowest, highest], [ERROR_INPUT, VERSION, VERSION]);
        }
        for index in [0, 1, u64::MAX] {
            assert_eq!(ask(RsiFunction::Features, [index, 7, 8]), [SUCCESS, 0, 7, 8]);
        }
        for offset in (0..PAGE).step_by(0x78) {
            store(&guest, ipa + offset, SECRET);
        }
        assert_eq!(ask(RsiFunction::RealmConfig, [ipa, 7, 8]), [SUCCESS, ipa, 7, 8]);
        assert_eq!(1 << (load(&guest, ipa) - 1), bit, "where the alias bit is");
        for offset in (8..PAGE).step_by(8) {
            assert_eq!(load(&guest, ipa + offset), 0, "byte {offset:#x}");
        }
        assert_hidden(guest.physical(ipa));
        for other in [0xc400_019f, 0xc400_01a3, 0xc400_01af] {
            assert_eq!(guest.answered(how, other, [0; 3])[0] as i64, NOT_SUPPORTED);
        }
    }
    guest.put();
    Ok(())
}

fn rsi_the_configuration_goes_into_memory_alone() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let vm = guest.machine.vm;
    let ipa = guest.scratch();
    let config = RsiFunction::RealmConfig;
    for at in [ipa + 8, ipa | bit, bit, !0xfff, 1 << 47] {
        assert_eq!(call(&guest, config, [at, 0, 0])[0], ERROR_INPUT, "{at:#x}");
    }
    // Memory that has not come yet.
    is_bare(guest.smccc(Routine::Smc, config.id(), [NOWHERE, 0, 0]).exit(Reason::Fault), NOWHERE);
    let failed = guest.resume(RunFlags::ABORT, [0; 4]);
    assert!(matches!(failed, Event::Done([ERROR_UNKNOWN, NOWHERE, ..])), "{failed:x?}");
    is_bare(guest.smccc(Routine::Hvc, config.id(), [NOWHERE, 0, 0]).exit(Reason::Fault), NOWHERE);
    let page = ledger::take(1);
    Hvc.vm_map(vm, page, NOWHERE).expect("VM_MAP");
    let done = guest.resume(RunFlags::empty(), [0; 4]);
    assert!(matches!(done, Event::Done([SUCCESS, ..])), "{done:x?}");
    assert_eq!(1 << (load(&guest, NOWHERE) - 1), bit);
    assert_hidden(page);
    // What is the host's to read and write is none.
    assert_eq!(set(&guest, ipa, ipa + PAGE, Ripas::Empty), ipa + PAGE);
    host_writes(guest.physical(ipa), SECRET);
    for at in [ipa, ipa | bit, NOWHERE + PAGE] {
        assert_eq!(call(&guest, config, [at, 0, 0])[0], ERROR_INPUT, "{at:#x}");
    }
    assert_eq!(probe_read(guest.physical(ipa)), Ok(SECRET));
    guest.put();
    Ok(())
}

fn rsi_what_is_empty_is_wiped_and_shared() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let ipa = guest.scratch();
    let page = guest.physical(ipa);
    for offset in (0..PAGE).step_by(8) {
        store(&guest, ipa + offset, SECRET);
    }
    assert_eq!(get(&guest, ipa, ipa + PAGE), (RAM, ipa + PAGE));
    assert_eq!(set(&guest, ipa, ipa + PAGE, Ripas::Empty), ipa + PAGE);
    for offset in (0..PAGE).step_by(8) {
        assert_eq!(probe_read(page + offset), Ok(0), "nothing of what was private");
    }
    assert_hidden(page + PAGE);
    assert_eq!(get(&guest, ipa, ipa + PAGE), (EMPTY, ipa + PAGE));
    assert_aborts(&guest, ipa + 8);
    assert_eq!(load(&guest, ipa | bit), 0);
    host_writes(page, 7);
    assert_eq!(load(&guest, ipa | bit), 7);
    store(&guest, (ipa + 8) | bit, 8);
    assert_eq!(probe_read(page + 8), Ok(8));
    // Once more changes nothing.
    assert_eq!(set(&guest, ipa, ipa + PAGE, Ripas::Empty), ipa + PAGE);
    assert_eq!(probe_read(page + 8), Ok(8));
    guest.put();
    assert_eq!(ledger::destroy(guest.machine.vm), 0);
    Ok(())
}

fn rsi_what_is_ram_again_is_wiped() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let ipa = guest.scratch();
    let page = guest.physical(ipa);
    for round in 0..3 {
        store(&guest, ipa + 2 * PAGE, SECRET);
        assert_eq!(set(&guest, ipa, ipa + PAGE, Ripas::Empty), ipa + PAGE);
        host_writes(page, SECRET + round);
        // Told, at the address where it is shared; the host has it until it goes on.
        let exit = begin(&guest, ipa, ipa + 4 * PAGE, Ripas::Ram).exit(Reason::Unshare);
        assert_eq!(exit.data, [ipa | bit, page, 0, 0, 0, 0]);
        assert_eq!(probe_read(page), Ok(SECRET + round));
        host_writes(page + 8, round);
        if round == 1 {
            // It won't have it.
            let event = guest.resume(RunFlags::ABORT, [0; 4]);
            assert!(matches!(event, Event::Done([SUCCESS, at, REJECT, ..]) if at == ipa));
            assert_eq!(load(&guest, ipa | bit), SECRET + round);
            begin(&guest, ipa, ipa + PAGE, Ripas::Ram).exit(Reason::Unshare);
        }
        let event = guest.resume(RunFlags::empty(), [9; 4]);
        assert!(matches!(event, Event::Done([SUCCESS, at, ACCEPT, ..]) if at == ipa + PAGE));
        workers::on_all(|_| assert_hidden(page));
        assert_eq!(
            [0, 8].map(|offset| load(&guest, ipa + offset)),
            [0; 2],
            "nothing of the host's"
        );
        // At its alias there is a device again.
        let exit = guest.at(ipa | bit).attempt(insn::STR64, round).exit(Reason::Mmio);
        assert_eq!(exit.data[..2], [ipa | bit, round]);
        guest.resume(RunFlags::empty(), [0; 4]);
        // What was RAM all along keeps its content, and all of the range is done at once.
        assert_eq!(set(&guest, ipa + PAGE, ipa + 4 * PAGE, Ripas::Ram), ipa + 4 * PAGE);
        assert_eq!(load(&guest, ipa + 2 * PAGE), SECRET);
    }
    guest.put();
    assert_eq!(ledger::destroy(guest.machine.vm), 0);
    Ok(())
}

fn rsi_memory_comes_to_ram_alone() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let vm = machine.vm;
    let guest = machine.started(None);
    // Until it decides its host gives it memory where it likes.
    is_bare(guest.at(NOWHERE + 8).attempt(insn::LDR64, 0).exit(Reason::Fault), NOWHERE);
    guest.resume(RunFlags::ABORT, [0; 4]);
    guest.start();
    let none = get(&guest, NOWHERE, NOWHERE + PAGE);
    assert_eq!(none, (EMPTY, NOWHERE + PAGE));
    assert_aborts(&guest, NOWHERE + 8);
    assert_eq!(Hvc.vm_map(vm, ledger::take(1), NOWHERE), Err(Error::IpaInUse));
    assert_eq!(get(&guest, BASE, BASE + 2 * PAGE), (RAM, BASE + 2 * PAGE), "what it had");
    // All at once, without a table, over what is there already as well: much of what it has addresses for.
    let bit = Hvc.version().expect("VERSION").alias_bit;
    let (from, to) = (BASE, BASE + bit / 4 + PAGE);
    let before = load(&guest, guest.scratch());
    assert_eq!(set(&guest, from, to, Ripas::Ram), to);
    assert_eq!(load(&guest, guest.scratch()), before);
    assert_eq!(get(&guest, from, to), (RAM, to));
    assert_eq!(get(&guest, to, to + PAGE), (EMPTY, to + PAGE));
    assert_aborts(&guest, to);
    Hvc.vm_topup(vm, ledger::take(8), 8).expect("VM_TOPUP");
    // The last page of it: what is behind is none.
    let last = to - PAGE;
    is_bare(guest.at(last + 0x10).attempt(insn::STR64, SECRET).exit(Reason::Fault), last);
    let pages = ledger::take(2);
    assert_eq!(Hvc.vm_map_range(vm, pages, 2, last), Ok(1), "as far as it is RAM");
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done([SECRET, ..])));
    assert_hidden(pages);
    assert_eq!((load(&guest, last), load(&guest, last + 0x10)), (0, SECRET));
    assert_aborts(&guest, to);
    guest.put();
    assert_eq!(ledger::destroy(vm), 0);
    Ok(())
}

fn rsi_the_host_brings_what_becomes_empty() -> Result<(), Skip> {
    const IPA: u64 = 0x9000_0000;
    let (guest, bit) = guest();
    let vm = guest.machine.vm;
    assert_eq!(set(&guest, IPA, IPA + 4 * PAGE, Ripas::Ram), IPA + 4 * PAGE);
    for n in 0..2 {
        let at = IPA + n * PAGE;
        is_bare(begin(&guest, at, IPA + 4 * PAGE, Ripas::Empty).exit(Reason::Fault), at);
        let event = guest.resume(RunFlags::ABORT, [0; 4]);
        assert!(matches!(event, Event::Done([SUCCESS, x1, REJECT, ..]) if x1 == at), "{event:x?}");
        assert_eq!(get(&guest, at, at + PAGE), (RAM, at + PAGE));
        is_bare(begin(&guest, at, IPA + 4 * PAGE, Ripas::Empty).exit(Reason::Fault), at);
        let page = ledger::take(1);
        host_writes(page, SECRET);
        Hvc.vm_map(vm, page, at).expect("VM_MAP");
        assert_hidden(page);
        // The one that is there is done, the next one is asked for by another call.
        let event = guest.resume(RunFlags::empty(), [0; 4]);
        assert!(matches!(event, Event::Done([SUCCESS, x1, ACCEPT, ..]) if x1 == at + PAGE));
        assert_eq!((probe_read(page), load(&guest, at | bit)), (Ok(0), 0));
        assert_aborts(&guest, at);
        assert_eq!(Hvc.vm_map(vm, ledger::take(1), at), Err(Error::IpaInUse));
    }
    // Nothing is brought for what is EMPTY already.
    let block = BLOCK_PAGES * PAGE;
    let top = IPA + 3 * block;
    assert_eq!(set(&guest, IPA + block, top, Ripas::Empty), IPA + 2 * block);
    guest.put();
    assert_eq!(ledger::destroy(vm), 0);
    Ok(())
}

fn rsi_pages_of_a_block() -> Result<(), Skip> {
    const IPA: u64 = 0x9000_0000;
    let (guest, bit) = guest();
    let vm = guest.machine.vm;
    let end = IPA + BLOCK_PAGES * PAGE;
    assert_eq!(set(&guest, IPA, end, Ripas::Ram), end);
    let memory = ledger::aligned(BLOCK_PAGES, BLOCK_PAGES as usize);
    map_all(vm, memory, BLOCK_PAGES, IPA);
    for n in 0..BLOCK_PAGES {
        store(&guest, IPA + n * PAGE, SECRET + n);
    }
    // As many as a call does, from the middle on to beyond the end.
    let first = BLOCK_PAGES - PAGES_AT_A_TIME - 3;
    let mut at = IPA + first * PAGE;
    let mut calls = 0;
    while at < end {
        let next = set(&guest, at, end, Ripas::Empty);
        assert_eq!(next, end.min(at + PAGES_AT_A_TIME * PAGE));
        (at, calls) = (next, calls + 1);
    }
    assert_eq!(calls, 2);
    assert_eq!(get(&guest, IPA, end), (RAM, IPA + first * PAGE));
    for n in 0..BLOCK_PAGES {
        if n < first {
            assert_eq!(load(&guest, IPA + n * PAGE), SECRET + n);
            assert_hidden(memory + n * PAGE);
        } else {
            assert_eq!(load(&guest, (IPA + n * PAGE) | bit), 0);
            assert_eq!(probe_read(memory + n * PAGE), Ok(0));
        }
    }
    assert_aborts(&guest, end - 8);
    // And back, as far as the first one that the host is to be told of.
    assert_eq!(set(&guest, IPA, end, Ripas::Ram), IPA + first * PAGE);
    for n in first..BLOCK_PAGES {
        let (ipa, page) = (IPA + n * PAGE, memory + n * PAGE);
        let exit = begin(&guest, ipa, end, Ripas::Ram).exit(Reason::Unshare);
        assert_eq!(exit.data[..2], [ipa | bit, page]);
        let event = guest.resume(RunFlags::empty(), [0; 4]);
        assert!(matches!(event, Event::Done([SUCCESS, at, ACCEPT, ..]) if at == ipa + PAGE));
        assert_hidden(page);
    }
    assert_eq!(get(&guest, IPA, end), (RAM, end));
    guest.put();
    assert_eq!(ledger::destroy(vm), 0);
    Ok(())
}

fn rsi_calls_are_checked() -> Result<(), Skip> {
    let (guest, bit) = guest();
    let ipa = guest.scratch();
    store(&guest, ipa, SECRET);
    let ranges = [
        (ipa + 8, ipa + PAGE),
        (ipa, ipa + 8),
        (ipa, ipa),
        (ipa + PAGE, ipa),
        (ipa, !0xfff),
        (!0xfff, ipa),
        // Into the upper half, and there.
        (ipa, bit + PAGE),
        (bit, bit + PAGE),
        (ipa | bit, (ipa | bit) + PAGE),
        (1 << 52, (1 << 52) + PAGE),
    ];
    for (base, top) in ranges {
        for ripas in [EMPTY, RAM] {
            let x = call(&guest, RsiFunction::IpaStateSet, [base, top, ripas]);
            assert_eq!(x, [ERROR_INPUT, base, top, ripas], "{base:#x} to {top:#x}");
        }
        let x = call(&guest, RsiFunction::IpaStateGet, [base, top, 9]);
        assert_eq!(x, [ERROR_INPUT, base, top, 9], "{base:#x} to {top:#x}");
    }
    // DESTROYED, and what is none.
    for ripas in [2, 3, u64::MAX, 1 << 32] {
        let x = call(&guest, RsiFunction::IpaStateSet, [ipa, ipa + PAGE, ripas]);
        assert_eq!(x[0], ERROR_INPUT);
    }
    assert_eq!(load(&guest, ipa), SECRET);
    assert_hidden(guest.physical(ipa));
    // All of the lower half.
    assert_eq!(set(&guest, 0, bit, Ripas::Ram), bit);
    assert_eq!(get(&guest, bit - PAGE, bit), (RAM, bit));
    guest.put();
    Ok(())
}

fn rsi_or_kvms_calls_and_not_both() -> Result<(), Skip> {
    let features =
        |guest: &Puppet| guest.answered(Routine::Hvc, GuestFunction::Features.id(), [0; 3]);
    let looks = |guest: &Puppet| {
        let ipa = guest.scratch();
        assert_eq!(call(guest, RsiFunction::Version, [VERSION, 0, 0])[0], SUCCESS);
        assert_eq!(call(guest, RsiFunction::Features, [0; 3])[0], SUCCESS);
        assert_eq!(call(guest, RsiFunction::RealmConfig, [ipa, 0, 0])[0], SUCCESS);
        assert_eq!(features(guest), GuestFunction::features().map(u64::from));
    };
    let rsi = [
        (RsiFunction::IpaStateSet, [BASE, BASE + PAGE, RAM]),
        (RsiFunction::IpaStateGet, [BASE, BASE + PAGE, 0]),
    ];
    let kvms = [
        (GuestFunction::HypMeminfo, 0, PAGE as i64),
        (GuestFunction::MemShare, BASE, 0),
        (GuestFunction::MemUnshare, BASE, -3),
        (GuestFunction::MmioGuard, NOWHERE, 0),
    ];
    for (function, args) in rsi {
        let (guest, _) = guest();
        looks(&guest);
        assert_eq!(call(&guest, function, args)[0], SUCCESS);
        for (function, ipa, _) in kvms {
            let x = guest.answered(Routine::Hvc, function.id(), [ipa, 0, 0]);
            assert_eq!(x[0] as i64, NOT_SUPPORTED, "{function:?}");
        }
        assert_eq!(features(&guest), GuestFunction::FEATURES_ALONE.map(u64::from));
        assert_hidden(guest.machine.page(BASE));
        assert_eq!(call(&guest, RsiFunction::Version, [VERSION, 0, 0])[0], SUCCESS);
        guest.put();
    }
    for (function, ipa, answer) in kvms {
        let (guest, _) = guest();
        looks(&guest);
        let x = guest.answered(Routine::Hvc, function.id(), [ipa, 0, 0]);
        assert_eq!(x[0] as i64, answer, "{function:?}");
        for &function in RsiFunction::ALL {
            let x = call(&guest, function, [guest.scratch(), guest.scratch() + PAGE, EMPTY]);
            assert_eq!(x[0] as i64, NOT_SUPPORTED, "{function:?}");
        }
        assert_hidden(guest.physical(guest.scratch()));
        assert_eq!(features(&guest), GuestFunction::features().map(u64::from));
        guest.put();
    }
    Ok(())
}

fn rsi_is_not_for_others() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    for how in [Routine::Hvc, Routine::Smc] {
        for &function in RsiFunction::ALL {
            let x = guest.answered(how, function.id(), [VERSION, 7, 8]);
            assert_eq!(x, [NOT_SUPPORTED as u64, VERSION, 7, 8], "{function:?}");
        }
    }
    guest.put();
    Ok(())
}

fn rsi_ranges_of_ram_are_counted() -> Result<(), Skip> {
    let (guest, _) = guest();
    let at = |n: u64| (1 << 32) + 2 * n * PAGE;
    for n in 0..RAM_RANGES as u64 {
        assert_eq!(set(&guest, at(n), at(n) + PAGE, Ripas::Ram), at(n) + PAGE);
    }
    let one_more = at(RAM_RANGES as u64);
    let event = begin(&guest, one_more, one_more + PAGE, Ripas::Ram);
    assert!(matches!(event, Event::Done([SUCCESS, x1, REJECT, ..]) if x1 == one_more));
    assert_eq!(get(&guest, one_more, one_more + PAGE).0, EMPTY);
    // What joins two of them leaves room for another.
    assert_eq!(set(&guest, at(0), at(1), Ripas::Ram), at(1));
    assert_eq!(set(&guest, one_more, one_more + PAGE, Ripas::Ram), one_more + PAGE);
    for n in 2..=RAM_RANGES as u64 {
        assert_eq!(get(&guest, at(n), at(n) + PAGE), (RAM, at(n) + PAGE));
        assert_eq!(get(&guest, at(n) + PAGE, at(n) + 2 * PAGE).0, EMPTY);
    }
    guest.put();
    Ok(())
}
