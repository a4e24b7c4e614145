//! Memory on demand: a guest's access to nothing is answered with memory, by whichever CPU, and tried again.

use super::blocks::map_all;
use crate::{
    context::{context, need_cpus},
    instruction as insn,
    ledger::{self, PAGE, each},
    puppet::{BASE, Event, MAX_PUPPETS, Machine, Puppet, Routine},
    runner::Skip,
    tests, workers,
};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicUsize, Ordering};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{MAX_CPUS, mmu, sysreg, timer},
};
use umbra_shared::{
    call::{BLOCK_PAGES, VmConfig},
    error::Error,
    exit::{Reason, RunFlags},
};

tests![
    demand_is_met_page_by_page,
    demand_for_one_page_by_all_vcpus_at_once,
    demand_that_another_cpu_meets,
    demand_is_met_by_a_block,
    demand_that_is_not_met_is_told_again,
];

/// Where nothing is at first.
const EMPTY: u64 = BASE + 0x2000_0000;
/// Pages that come on demand.
const PAGES: u64 = 8;

fn machines() -> impl Iterator<Item = Machine> {
    [VmConfig::normal(), VmConfig::protected()].into_iter().map(Machine::new)
}

/// A page with a word of its own, as a normal guest finds it; a protected one's is empty.
fn page(word: u64) -> u64 {
    let page = ledger::take(1);
    let at = mmu::linear::<u64>(page);
    // SAFETY: a page of the test's.
    unsafe { at.write(word) };
    sysreg::clean_to_poc(at as usize, 8);
    page
}

/// Answers accesses to nothing by `meet` until the guest's routine is over: x0.
#[track_caller]
fn served(puppet: &Puppet, event: Event, mut meet: impl FnMut(u64)) -> u64 {
    let mut event = event;
    for _ in 0..10_000 {
        match event {
            Event::Done(x) => return x[0],
            Event::Exit(exit) if exit.info.reason() == Some(Reason::Fault) => {
                meet(exit.data[0] & !(PAGE - 1));
                event = puppet.resume(RunFlags::empty(), [0; 4]);
            }
            // A normal guest's, which could be a device's.
            Event::Exit(exit) if exit.info.reason() == Some(Reason::Mmio) => {
                meet(exit.data[0] & !(PAGE - 1));
                event = puppet.resume(RunFlags::RETRY, [0; 4]);
            }
            event => panic!("{event:x?}"),
        }
    }
    panic!("the guest makes no progress");
}

/// LDR of a word that may not be there, and LDP, whose syndrome says less.
#[track_caller]
fn load(puppet: &Puppet, instruction: u32, ipa: u64, meet: impl FnMut(u64)) -> u64 {
    served(puppet, puppet.at(ipa).attempt(instruction, 0), meet)
}

fn demand_is_met_page_by_page() -> Result<(), Skip> {
    for machine in machines() {
        let guest = machine.started(None);
        for n in 0..PAGES {
            let (ipa, word) = (EMPTY + n * PAGE, 0x6060_0000 + n);
            let instruction = if n % 2 == 0 { insn::LDR64 } else { insn::LDP };
            let mut met = 0;
            let found = load(&guest, instruction, ipa, |asked| {
                assert_eq!(asked, ipa);
                met += 1;
                Hvc.vm_map(machine.vm, page(word), ipa).expect("VM_MAP");
            });
            assert_eq!(met, 1, "it is there when it is tried again");
            // Sealed, a VM's pages arrive empty.
            assert_eq!(found, if machine.is_protected() { 0 } else { word });
            assert_eq!(load(&guest, instruction, ipa, |_| panic!("it is there")), found);
        }
        guest.put();
        ledger::destroy_all();
    }
    Ok(())
}

/// Each CPU runs a vCPU, all of which want the same page; each host CPU answers its own. One brings it.
fn demand_for_one_page_by_all_vcpus_at_once() -> Result<(), Skip> {
    need_cpus(2)?;
    for machine in machines() {
        let cpus = context().cpus.min(MAX_PUPPETS as usize);
        let puppets: ArrayVec<Puppet, MAX_CPUS> = (0..cpus).map(|_| machine.vcpu(None)).collect();
        let spare: ArrayVec<u64, 64> =
            (0..cpus as u64 * PAGES).map(|_| page(0x7070_7070)).collect();
        let (arrived, brought) = (AtomicUsize::new(0), AtomicUsize::new(0));
        workers::on_all(|cpu| {
            let Some(puppet) = puppets.get(cpu) else { return };
            puppet.load();
            puppet.start();
            for n in 0..PAGES {
                let ipa = EMPTY + n * PAGE;
                // All at once.
                arrived.fetch_add(1, Ordering::SeqCst);
                let all = cpus * (n as usize + 1);
                let met = timer::wait_until(60, || arrived.load(Ordering::SeqCst) >= all);
                assert!(met, "a CPU does not come");
                let found = load(puppet, insn::LDP, ipa, |asked| {
                    assert_eq!(asked, ipa);
                    let page = spare[cpu * PAGES as usize + n as usize];
                    match Hvc.vm_map(machine.vm, page, ipa) {
                        Ok(()) => _ = brought.fetch_add(1, Ordering::SeqCst),
                        // Somebody else was first.
                        Err(Error::IpaInUse) => {}
                        Err(error) => panic!("VM_MAP: {error}"),
                    }
                });
                assert_eq!(found, if machine.is_protected() { 0 } else { 0x7070_7070 });
            }
            puppet.put();
        });
        assert_eq!(brought.load(Ordering::SeqCst), PAGES as usize, "each page came once");
        ledger::destroy_all();
    }
    Ok(())
}

/// The exit is open on one CPU, the page comes from another.
fn demand_that_another_cpu_meets() -> Result<(), Skip> {
    need_cpus(2)?;
    for machine in machines() {
        let guest = machine.started(None);
        for n in 0..PAGES {
            let ipa = EMPTY + n * PAGE;
            let fresh = page(5);
            let found = load(&guest, insn::LDP, ipa, |_| {
                workers::on(1, || Hvc.vm_map(machine.vm, fresh, ipa).expect("VM_MAP"));
            });
            assert_eq!(found, if machine.is_protected() { 0 } else { 5 });
        }
        // A vCPU that was put with its exit open, and goes on elsewhere.
        let ipa = EMPTY + PAGES * PAGE;
        let exit = guest.at(ipa).attempt(insn::LDP, 0).exit(Reason::Fault);
        assert_eq!(exit.data[0] & !(PAGE - 1), ipa);
        guest.put();
        Hvc.vm_map(machine.vm, page(6), ipa).expect("VM_MAP");
        workers::on(1, || {
            guest.load();
            let found =
                served(&guest, guest.resume(RunFlags::empty(), [0; 4]), |_| panic!("it is there"));
            assert_eq!(found, if machine.is_protected() { 0 } else { 6 });
            guest.put();
        });
        ledger::destroy_all();
    }
    Ok(())
}

/// One answer, and 512 pages are there.
fn demand_is_met_by_a_block() -> Result<(), Skip> {
    for machine in machines() {
        let memory = ledger::aligned(BLOCK_PAGES, BLOCK_PAGES as usize);
        let guest = machine.started(None);
        let mut asked = 0;
        for n in (0..BLOCK_PAGES).step_by(37) {
            load(&guest, insn::LDP, EMPTY + n * PAGE, |_| {
                asked += 1;
                map_all(machine.vm, memory, BLOCK_PAGES, EMPTY);
            });
        }
        assert_eq!(asked, 1);
        guest.put();
        ledger::destroy_all();
        for page in each(memory, BLOCK_PAGES).step_by(101) {
            super::pages::assert_ours(page);
        }
    }
    Ok(())
}

/// Whoever answers with nothing is asked again, and the guest has lost nothing; an abort ends it.
fn demand_that_is_not_met_is_told_again() -> Result<(), Skip> {
    for machine in machines() {
        let guest = machine.started(None);
        let mut event = guest.at(EMPTY).attempt(insn::LDP, 0);
        for _ in 0..4 {
            let exit = event.exit(Reason::Fault);
            assert_eq!(exit.data[0] & !(PAGE - 1), EMPTY);
            // Memory somewhere else is none here.
            event = guest.resume(RunFlags::empty(), [0; 4]);
        }
        event.exit(Reason::Fault);
        Hvc.vm_map(machine.vm, page(9), EMPTY + PAGE).expect("VM_MAP");
        guest.resume(RunFlags::empty(), [0; 4]).exit(Reason::Fault);
        let Event::Exception(e) = guest.resume(RunFlags::ABORT, [0; 4]) else {
            panic!("no exception");
        };
        // Data abort at its own level.
        assert_eq!(e.class(), 0x25);
        assert_eq!(guest.call(Routine::Nothing, [0; 3])[0], Routine::Nothing.address());
        guest.put();
        ledger::destroy_all();
    }
    Ok(())
}
