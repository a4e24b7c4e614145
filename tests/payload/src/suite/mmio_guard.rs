//! What of a protected guest's accesses leaves with data: those to pages that it has enrolled, and no others.

use super::{
    pages::assert_ours,
    sharing::{is_bare, with_tables},
};
use crate::{
    context::need_cpus,
    instruction as insn,
    ledger::{self, PAGE},
    puppet::{BASE, Event, MEMORY_PAGES, Machine, NOWHERE, Puppet, Routine},
    runner::Skip,
    tests, workers,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    call::VmConfig,
    error::Error,
    exit::{MmioAccess, Reason, RunFlags},
    guest::GuestFunction,
};

tests![
    r37_attack_a_store_to_withheld_memory,
    r37_attack_a_load_from_withheld_memory,
    r37_attack_memory_withheld_after_the_seal,
    enrolled_pages_are_devices,
    an_enrolled_page_gets_no_memory,
    enrolling_is_checked,
    tables_for_enrolling_come_from_the_host,
    every_cpu_knows_what_is_enrolled,
];

const SECRET: u64 = 0x5ec2_e7ab_5ec2_e7ab;

#[track_caller]
fn enrol(guest: &Puppet, ipa: u64) {
    let x = guest.answered(Routine::Hvc, GuestFunction::MmioGuard.id(), [ipa, 0, 0]);
    assert_eq!(x, [0, ipa, 0, 0], "MMIO_GUARD of {ipa:#x}");
}

/// What once worked: the guest stores to memory that its host has not mapped, and the host reads the data.
fn r37_attack_a_store_to_withheld_memory() -> Result<(), Skip> {
    let guest = with_tables(VmConfig::protected());
    for (instruction, offset) in [
        (insn::STRB, 1),
        (insn::STRH, 2),
        (insn::STR32, 4),
        (insn::STR64, 8),
        (insn::STR64_XZR, 0xff8),
        (insn::STP, 0x10),
    ] {
        guest.at(NOWHERE + offset);
        is_bare(guest.attempt(instruction, SECRET).exit(Reason::Fault), NOWHERE);
        // The host can neither say that it has been done, nor answer for it; it is tried again.
        for flags in [RunFlags::empty(), RunFlags::RETRY] {
            is_bare(guest.resume(flags, [7; 4]).exit(Reason::Fault), NOWHERE);
        }
        let Event::Exception(e) = guest.resume(RunFlags::ABORT, [7; 4]) else {
            panic!("an external abort for {instruction:#x}");
        };
        assert_eq!((e.class(), e.far), (0x25, NOWHERE + offset));
    }
    guest.put();
    Ok(())
}

/// What once worked: the host answers a load of the guest's.
fn r37_attack_a_load_from_withheld_memory() -> Result<(), Skip> {
    let guest = with_tables(VmConfig::protected());
    for instruction in [insn::LDRB, insn::LDRSH64, insn::LDR32, insn::LDR64, insn::LDP] {
        guest.at(NOWHERE + 16);
        is_bare(guest.attempt(instruction, 1).exit(Reason::Fault), NOWHERE);
        is_bare(guest.resume(RunFlags::empty(), [SECRET; 4]).exit(Reason::Fault), NOWHERE);
        assert!(matches!(guest.resume(RunFlags::ABORT, [SECRET; 4]), Event::Exception(_)));
    }
    // Fetches, too.
    is_bare(guest.attempt(insn::BR, NOWHERE + 0x40).exit(Reason::Fault), NOWHERE);
    assert!(matches!(guest.resume(RunFlags::ABORT, [0; 4]), Event::Exception(_)));
    guest.put();
    Ok(())
}

/// Its own memory, given back by the guest and not given again: it finds zeroes or nothing, never an answer.
fn r37_attack_memory_withheld_after_the_seal() -> Result<(), Skip> {
    let machine = Machine::new(VmConfig::protected());
    let guest = machine.started(None);
    let ipa = guest.scratch();
    let call = guest.smccc(Routine::Hvc, GuestFunction::MemRelinquish.id(), [ipa, 0, 0]);
    let page = call.exit(Reason::Relinquished).data[1];
    guest.start();
    guest.at(ipa + 24);
    is_bare(guest.attempt(insn::STR64, SECRET).exit(Reason::Fault), ipa);
    Hvc.vm_map(machine.vm, page, ipa).expect("VM_MAP");
    assert!(matches!(guest.resume(RunFlags::empty(), [9; 4]), Event::Done(_)), "it is there now");
    assert_eq!(guest.at(ipa + 24).exec(insn::LDR64, 0), SECRET);
    assert_eq!(guest.at(ipa + 16).exec(insn::LDR64, 1), 0);
    guest.put();
    Ok(())
}

#[track_caller]
fn mmio(guest: &Puppet, address: u64, instruction: u32, value: u64) -> (MmioAccess, [u64; 2]) {
    let exit = guest.at(address).attempt(instruction, value).exit(Reason::Mmio);
    (exit.info.mmio_access(), [exit.data[0], exit.data[1]])
}

fn enrolled_pages_are_devices() -> Result<(), Skip> {
    let guest = with_tables(VmConfig::protected());
    enrol(&guest, NOWHERE);
    // Once is enough, and no harm twice.
    enrol(&guest, NOWHERE);
    for offset in [0, 8, 0xff8] {
        let address = NOWHERE + offset;
        let (access, data) = mmio(&guest, address, insn::STR64, SECRET);
        assert_eq!((access.bytes, access.write, data), (8, true, [address, SECRET]));
        assert!(matches!(guest.resume(RunFlags::empty(), [1; 4]), Event::Done([SECRET, ..])));
        let (access, data) = mmio(&guest, address, insn::LDR32, 0);
        assert_eq!((access.bytes, access.write, data), (4, false, [address, 0]));
        let answer = [0x1234_5678, 0, 0, 0];
        assert!(matches!(guest.resume(RunFlags::empty(), answer), Event::Done([0x1234_5678, ..])));
    }
    // Its neighbours are not, nor is what can't be emulated there.
    for address in [NOWHERE - 8, NOWHERE + PAGE] {
        let page = address & !(PAGE - 1);
        is_bare(guest.at(address).attempt(insn::STR64, SECRET).exit(Reason::Fault), page);
        guest.resume(RunFlags::ABORT, [0; 4]);
    }
    is_bare(guest.at(NOWHERE + 16).attempt(insn::STP, SECRET).exit(Reason::Fault), NOWHERE);
    guest.resume(RunFlags::ABORT, [0; 4]);
    guest.put();
    Ok(())
}

fn an_enrolled_page_gets_no_memory() -> Result<(), Skip> {
    let guest = with_tables(VmConfig::protected());
    let vm = guest.machine.vm;
    enrol(&guest, NOWHERE);
    let page = ledger::take(1);
    assert_eq!(Hvc.vm_map(vm, page, NOWHERE), Err(Error::IpaInUse));
    assert_ours(page);
    // Nor is it shared, unshared or given back.
    for function in
        [GuestFunction::MemShare, GuestFunction::MemUnshare, GuestFunction::MemRelinquish]
    {
        let x0 = guest.answered(Routine::Hvc, function.id(), [NOWHERE, 0, 0])[0];
        assert_eq!(x0 as i64, -3, "{function:?}");
    }
    Hvc.vm_map(vm, page, NOWHERE + PAGE).expect("VM_MAP beside it");
    assert_eq!(guest.at(NOWHERE + PAGE).exec(insn::LDR64, 1), 0);
    mmio(&guest, NOWHERE, insn::STR64, 1);
    guest.resume(RunFlags::empty(), [0; 4]);
    guest.put();
    // A VM in the same slot begins without devices.
    ledger::destroy(vm);
    let next = Machine::new(VmConfig::protected()).started(None);
    is_bare(next.at(NOWHERE).attempt(insn::STR64, SECRET).exit(Reason::Fault), NOWHERE);
    next.put();
    Ok(())
}

fn enrolling_is_checked() -> Result<(), Skip> {
    let guest = with_tables(VmConfig::protected());
    for ipa in [NOWHERE + 8, 1 << 47, !0 << 12, BASE, BASE + (MEMORY_PAGES - 1) * PAGE] {
        let x = guest.answered(Routine::Hvc, GuestFunction::MmioGuard.id(), [ipa, 0, 0]);
        assert_eq!(x[0] as i64, -3, "{ipa:#x}");
    }
    assert_eq!(guest.at(guest.scratch()).exec(insn::LDR64, 1), 0, "memory is memory");
    guest.put();
    Ok(())
}

/// A guest that enrols all over its address space takes tables; it never hears that there are none.
fn tables_for_enrolling_come_from_the_host() -> Result<(), Skip> {
    let guest = with_tables(VmConfig::protected());
    let vm = guest.machine.vm;
    let (mut asked, mut given) = (0, 0);
    for n in 0..24u64 {
        // Each in a gigabyte of its own.
        let ipa = (n + 3) << 30;
        if ipa == BASE {
            continue;
        }
        let how = if n % 2 == 0 { Routine::Hvc } else { Routine::Smc };
        let mut event = guest.smccc(how, GuestFunction::MmioGuard.id(), [ipa, 0, 0]);
        while let Event::Exit(exit) = event {
            assert_eq!(exit.info.reason(), Some(Reason::Tables));
            assert_eq!(exit.data, [0; 6], "the host learns no address");
            asked += 1;
            if n == 20 && asked % 2 == 0 {
                // A host that won't: the call fails, and another may succeed.
                event = guest.resume(RunFlags::ABORT, [0; 4]);
                assert!(matches!(event, Event::Done([x0, ..]) if x0 as i64 == -3));
                event = guest.smccc(how, GuestFunction::MmioGuard.id(), [ipa, 0, 0]);
                continue;
            }
            // One page doesn't do, and it asks again.
            Hvc.vm_topup(vm, ledger::take(1), 1).expect("VM_TOPUP");
            given += 1;
            event = guest.resume(RunFlags::empty(), [5; 4]);
        }
        assert!(matches!(event, Event::Done([0, ..])), "MMIO_GUARD of {ipa:#x}: {event:x?}");
        let (access, data) = mmio(&guest, ipa, insn::STR32, n);
        assert_eq!((access.write, data), (true, [ipa, n]));
        guest.resume(RunFlags::empty(), [0; 4]);
    }
    assert!(given > 24, "{given} tables for 24 gigabytes, {asked} times asked for");
    guest.put();
    assert_eq!(ledger::destroy(vm), 0, "they come back");
    Ok(())
}

fn every_cpu_knows_what_is_enrolled() -> Result<(), Skip> {
    need_cpus(2)?;
    let machine = Machine::new(VmConfig::protected());
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    a.load();
    a.start();
    Hvc.vm_topup(machine.vm, ledger::take(8), 8).expect("VM_TOPUP");
    enrol(&a, NOWHERE);
    workers::on(1, || {
        b.load();
        b.start();
        mmio(&b, NOWHERE + 8, insn::STR64, 3);
        b.resume(RunFlags::empty(), [0; 4]);
        enrol(&b, NOWHERE + PAGE);
        b.put();
    });
    mmio(&a, NOWHERE + PAGE, insn::STR64, 3);
    a.resume(RunFlags::empty(), [0; 4]);
    a.put();
    Ok(())
}
