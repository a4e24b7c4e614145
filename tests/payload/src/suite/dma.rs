//! Devices behind an SMMU, told by the host to read and write what isn't the host's. What is the host's
//! they reach, or the rest would show nothing.
//!
//! On machines with such a device and such an SMMU: the command line names this area there.

use super::{
    fp_smp::is_off,
    memory::{assert_content, assert_hidden, fill},
    pages::assert_ours,
    sharing::call,
};
use crate::{
    context::{context, need_cpus, need_suspend},
    dma::edu::{self, Edu, is_nothing},
    host::GUEST_OWNER,
    instruction as insn,
    ledger::{self, PAGE, each},
    puppet::{BASE, Event, Machine, PROTECTED, Puppet, Routine, flag_page},
    runner::Skip,
    tests, workers,
};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{
        exception::{probe_read, probe_read_virtual, probe_write},
        layout, timer,
    },
};
use umbra_patterns::tag::Tag;
use umbra_shared::{
    call::VmConfig,
    error::SUCCESS,
    exit::{Reason, RunFlags},
    guest::GuestFunction,
    vcpu::VcpuFeatures,
};

tests![
    r39_a_device_reaches_what_is_the_hosts,
    r39_attack_hyps_memory,
    r39_attack_a_vms_tables,
    r39_attack_a_vcpu,
    r39_attack_a_protected_guests_memory,
    r39_attack_what_a_guest_no_longer_shares,
    r39_attack_a_page_that_the_device_has_used,
    r39_a_page_that_comes_back_is_within_reach_again,
    r39_attack_registers,
    r39_attack_the_smmu_itself,
    r39_attack_from_another_bus,
    r39_attack_while_pages_change_hands,
    r39_attack_behind_cpus_that_were_off,
];

const SECRET: u64 = 0x5ec2_e739_5ec2_e739;
const MARK: u64 = 0xbad0_bad0_bad0_bad0;
const TAG: Tag = Tag { owner: GUEST_OWNER + 15, generation: 39 };
const GIB: u64 = 1 << 30;

/// A device reads and writes a page of the host's.
#[track_caller]
fn assert_within_reach(device: &Edu, page: u64) {
    for (pa, value) in [(page, MARK), (page + PAGE - 8, !MARK)] {
        // SAFETY: a page of the test's.
        assert_eq!(unsafe { probe_write(pa, value) }, Ok(()));
        assert_eq!(device.read(pa), value, "{:#x} reads {pa:#x}", device.registers);
        device.write(pa, value ^ 1);
        assert_eq!(probe_read(pa), Ok(value ^ 1), "{:#x} writes {pa:#x}", device.registers);
    }
}

/// A device finds nothing in a page.
#[track_caller]
fn assert_finds_nothing(device: &Edu, page: u64) {
    device.clear();
    device.fetch(page, 0, PAGE);
    let found = device.buffer().position(|word| !is_nothing(word));
    assert_eq!(found, None, "{:#x} has read a word of {page:#x}", device.registers);
}

/// A device gets nothing of what a guest has at an address, and changes nothing of it.
#[track_caller]
fn assert_the_guests(device: &Edu, puppet: &Puppet, ipa: u64, page: u64) {
    puppet.at(ipa).exec(insn::STR64, SECRET);
    let found = device.read(page);
    assert!(is_nothing(found), "{:#x} has read {found:#x} at {page:#x}", device.registers);
    device.write(page, MARK);
    let kept = puppet.at(ipa).exec(insn::LDR64, 0);
    assert_eq!(kept, SECRET, "{:#x} has written to {page:#x}", device.registers);
}

fn r39_a_device_reaches_what_is_the_hosts() -> Result<(), Skip> {
    let (pages, flags) = (ledger::take(2), flag_page().0);
    let machine = Machine::normal();
    for device in edu::all()? {
        each(pages, 2).chain([flags, machine.memory]).for_each(|page| {
            assert_within_reach(&device, page);
        });
        // A page at once, and what lies across two.
        fill(pages);
        fill(pages + PAGE);
        device.clear();
        device.fetch(pages + PAGE / 2, 0, PAGE);
        let mut words = (pages + PAGE / 2..).step_by(8).map(|pa| probe_read(pa).expect("ours"));
        assert!(device.buffer().all(|word| Some(word) == words.next()));
    }
    Ok(())
}

/// What lies beside the banks that the tree has, in the GiBs of RAM that it has: hyp's image, its pool, and
/// what else it keeps there: tables of the SMMU's and of the GIC's.
fn hyps() -> impl Iterator<Item = u64> {
    /// Looked at of each part.
    const PLACES: u64 = 12;
    let ram = &context().machine.ram;
    let mut banks: ArrayVec<_, 10> = ram.iter().map(|bank| (bank.start, bank.end)).collect();
    banks.sort_unstable();
    let (first, last) = (banks[0].0 & !(GIB - 1), banks[banks.len() - 1].1);
    banks.insert(0, (first, first));
    banks.push((last.next_multiple_of(GIB), u64::MAX));
    let parts: ArrayVec<_, 10> = banks
        .windows(2)
        .map(|two| (two[0].1.next_multiple_of(PAGE), two[1].0 & !(PAGE - 1)))
        .filter(|(start, end)| start < end)
        .collect();
    parts.into_iter().flat_map(|(start, end)| {
        let pages = (end - start) / PAGE;
        let step = (pages / PLACES).max(1);
        (0..pages).step_by(step as usize).chain([pages - 1]).map(move |n| start + n * PAGE)
    })
}

fn r39_attack_hyps_memory() -> Result<(), Skip> {
    let devices = edu::all()?;
    let mut seen = 0;
    for (page, device) in hyps().zip(devices.iter().cycle()) {
        assert_hidden_if_mapped(page);
        assert_finds_nothing(device, page);
        seen += 1;
    }
    assert!(seen > 8, "only {seen} pages of hyp's");
    // Nothing was read; then this can't do anything either.
    for (page, device) in hyps().zip(devices.iter().cycle()) {
        device.write(page + 8, MARK);
    }
    let vq = context().largest();
    let puppet = Machine::with_images(PROTECTED, TAG, vq).started(vq);
    puppet.fill_prepared();
    puppet.check_prepared();
    puppet.put();
    Ok(())
}

/// The linear map has what the tree calls memory or reserved, in which hyp's need not be.
fn assert_hidden_if_mapped(page: u64) {
    let machine = context().machine;
    if machine.ram.iter().any(|bank| bank.contains(&page)) {
        assert_hidden(page);
    }
}

fn r39_attack_a_vms_tables() -> Result<(), Skip> {
    const IPA: u64 = 0x9000_0000;
    let (pool, page) = (ledger::take(8), ledger::take(1));
    let vm = Hvc.vm_create(pool, 8, VmConfig::default()).expect("VM_CREATE");
    ledger::enter(vm);
    Hvc.vm_map(vm, page, IPA).expect("VM_MAP");
    for device in edu::all()? {
        each(pool, 8).for_each(|page| assert_finds_nothing(&device, page));
        for page in each(pool, 8) {
            // An entry of a table.
            device.write(page, ledger::take(1) | 0x7ff);
        }
    }
    assert_eq!(Hvc.vm_unmap(vm, IPA), Ok(page), "the tables are as they were");
    assert_eq!(ledger::destroy(vm), 0);
    each(pool, 8).for_each(|page| assert_content(page, false));
    Ok(())
}

/// While it is loaded nowhere: its registers are in its pages.
fn r39_attack_a_vcpu() -> Result<(), Skip> {
    let vq = context().largest();
    let machine = Machine::with_images(PROTECTED, TAG, vq);
    let features = VcpuFeatures::sve(vq);
    let (pages, count) = (ledger::take(features.pages()), features.pages());
    let puppet = machine.vcpu_of(features, pages, flag_page().0);
    puppet.load();
    puppet.start();
    puppet.fill_prepared();
    puppet.put();
    for device in edu::all()? {
        each(pages, count).for_each(|page| assert_finds_nothing(&device, page));
        for page in each(pages, count) {
            device.clear();
            device.deliver(page, 0, PAGE);
        }
    }
    puppet.load();
    puppet.check_prepared();
    puppet.put();
    Ok(())
}

fn r39_attack_a_protected_guests_memory() -> Result<(), Skip> {
    let puppet = Machine::new(PROTECTED).started(None);
    for device in edu::all()? {
        let ipa = puppet.scratch();
        assert_the_guests(&device, &puppet, ipa, puppet.physical(ipa));
        // Its code, which it goes on to execute.
        device.clear();
        device.deliver(puppet.physical(BASE), 0, PAGE);
        assert_the_guests(&device, &puppet, ipa, puppet.physical(ipa));
    }
    puppet.put();
    Ok(())
}

fn r39_attack_what_a_guest_no_longer_shares() -> Result<(), Skip> {
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    let page = puppet.physical(ipa);
    for device in edu::all()? {
        assert_the_guests(&device, &puppet, ipa, page);
        assert_eq!(call(&puppet, GuestFunction::MemShare, ipa), SUCCESS);
        assert_eq!(device.read(page), SECRET, "what is shared with the host");
        device.write(page, !SECRET);
        assert_eq!(puppet.at(ipa).exec(insn::LDR64, 0), !SECRET);
        let event = puppet.smccc(Routine::Hvc, GuestFunction::MemUnshare.id(), [ipa, 0, 0]);
        event.exit(Reason::Unshare);
        // Until the host goes on its devices have the page as well.
        device.write(page, SECRET);
        assert_eq!(device.read(page), SECRET, "what is still shared");
        assert!(matches!(puppet.resume(Default::default(), [0; 4]), Event::Done([0, ..])));
        assert_the_guests(&device, &puppet, ipa, page);
        // Its neighbours were never shared.
        assert_the_guests(&device, &puppet, ipa + PAGE, page + PAGE);
    }
    puppet.put();
    Ok(())
}

/// Whatever the device or its SMMU remembers of the page, it forgets when that changes hands.
fn r39_attack_a_page_that_the_device_has_used() -> Result<(), Skip> {
    const IPA: u64 = 0x9000_0000;
    let devices = edu::all()?;
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(None);
    let pages = ledger::take(devices.len() as u64);
    for (n, (device, page)) in (0..).zip(devices.iter().zip(each(pages, 2))) {
        assert_within_reach(device, page);
        Hvc.vm_map(machine.vm, page, IPA + n * PAGE).expect("VM_MAP");
        assert_the_guests(device, &puppet, IPA + n * PAGE, page);
    }
    puppet.put();
    // And of a VM's tables.
    for device in &devices {
        let page = ledger::take(1);
        assert_within_reach(device, page);
        Hvc.vm_topup(machine.vm, page, 1).expect("VM_TOPUP");
        device.write(page, MARK);
        let found = device.read(page);
        assert!(is_nothing(found), "{found:#x}");
    }
    Ok(())
}

fn r39_a_page_that_comes_back_is_within_reach_again() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(None);
    let devices = edu::all()?;
    let (given, left) = (puppet.scratch(), puppet.scratch() + PAGE);
    let device = &devices[0];
    for ipa in [given, left] {
        assert_the_guests(device, &puppet, ipa, puppet.physical(ipa));
    }
    let event = puppet.smccc(Routine::Hvc, GuestFunction::MemRelinquish.id(), [given, 0, 0]);
    event.exit(Reason::Relinquished);
    puppet.resume(RunFlags::empty(), [0; 4]);
    let page = puppet.physical(given);
    assert_content(page, false);
    devices.iter().for_each(|device| assert_within_reach(device, page));
    assert_ours(page);
    puppet.put();
    // Dying is not being the host's.
    let page = puppet.physical(left);
    Hvc.vm_destroy(machine.vm).expect("VM_DESTROY");
    let found = device.read(page);
    assert!(is_nothing(found), "{found:#x}");
    device.write(page + 8, MARK);
    Hvc.vm_reclaim(machine.vm, page).expect("VM_RECLAIM");
    assert_content(page, false);
    devices.iter().for_each(|device| assert_within_reach(device, page));
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}

/// A device has no business with registers: neither the GIC's nor another device's.
fn r39_attack_registers() -> Result<(), Skip> {
    /// GICD_TYPER and GICD_IIDR; priorities of eight SPIs that no driver uses.
    const GICD_TYPER: u64 = 0x4;
    const GICD_IPRIORITYR: u64 = 0x400 + 96;
    let gicd = context().machine.gicd.start;
    let devices = edu::all()?;
    let priorities = layout::device::<u64>(gicd + GICD_IPRIORITYR).as_ptr();
    // By words, as the GIC's registers are read.
    // SAFETY: these interrupts are disabled, and their priorities nobody's.
    let read = || unsafe {
        let words = priorities.cast::<u32>();
        [words.read_volatile(), words.add(1).read_volatile()]
    };
    let before = read();
    for device in &devices {
        let others = devices.iter().filter(|other| other.registers != device.registers);
        let targets = others.map(|other| other.registers);
        for pa in targets.chain([gicd + GICD_TYPER, gicd + GICD_IPRIORITYR]) {
            device.clear();
            device.fetch(pa, 0, 4);
            let found = device.buffer().next().unwrap_or_default();
            assert!(
                is_nothing(found) || found == edu::CANARY & !0xffff_ffff,
                "{pa:#x}: {found:#x}"
            );
        }
        device.clear();
        device.deliver(gicd + GICD_IPRIORITYR, 0, 4);
        assert_eq!(read(), before, "a device has set priorities");
    }
    Ok(())
}

/// Its registers are hyp's: the host is told that there is no SMMU, and devices are told nothing.
fn r39_attack_the_smmu_itself() -> Result<(), Skip> {
    let smmu = context().machine.masters.smmu.as_ref().ok_or(Skip("there is none"))?;
    let devices = edu::all()?;
    // SMMU_IDR0, _IDR1, _CR0, _GBPA, _STRTAB_BASE, _CMDQ_BASE; the second page's.
    for offset in [0, 0x4, 0x20, 0x44, 0x80, 0x90, 0x1_00a8] {
        let pa = smmu.range.start + (offset & !7);
        // Within what is mapped: its first page.
        if offset < PAGE {
            let va = layout::device::<u64>(pa).as_ptr() as u64;
            let read = probe_read_virtual(va).expect_err("a read of the SMMU's registers");
            assert!(read.is_refusal(), "{read:x?}");
        }
        let found = devices[0].read(pa);
        assert!(is_nothing(found), "SMMU {offset:#x}: {found:#x}");
    }
    assert!(!smmu.enabled, "its node is disabled");
    Ok(())
}

/// Whoever renumbers buses chooses the StreamIDs behind them.
fn r39_attack_from_another_bus() -> Result<(), Skip> {
    let devices = edu::all()?;
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    let page = ledger::take(1);
    let mut moved = 0;
    for bus in [2, 7, 15, 1] {
        for device in devices.iter().filter_map(|device| device.moved_to(bus)) {
            assert_within_reach(&device, page);
            assert_the_guests(&device, &puppet, ipa, puppet.physical(ipa));
            moved += 1;
        }
    }
    puppet.put();
    if moved == 0 { Err(Skip("no device behind a port")) } else { Ok(()) }
}

/// A block's pages go to and fro on all CPUs but one, which has devices read and write between them. What is
/// the host's they reach at every moment, and a guest's never.
fn r39_attack_while_pages_change_hands() -> Result<(), Skip> {
    need_cpus(2)?;
    const BLOCK_PAGES: u64 = 512;
    const ROUNDS: u64 = 6;
    const IPA: u64 = 0x9000_0000;
    let devices = edu::all()?;
    let block = ledger::aligned(BLOCK_PAGES, BLOCK_PAGES as usize);
    let page = |n: u64| block + n * PAGE;
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(None);
    Hvc.vm_map(machine.vm, page(1), IPA).expect("VM_MAP");
    let done = AtomicBool::new(false);
    let handovers = AtomicU64::new(0);
    workers::on_all(|cpu| {
        if cpu != 0 {
            // Each its own pages, with some of the host's in between.
            let first = 32 * cpu as u64;
            while !done.load(Ordering::Acquire) {
                let vm = Hvc.vm_create(page(first), 8, VmConfig::default()).expect("VM_CREATE");
                for n in (9..32).step_by(2) {
                    Hvc.vm_topup(vm, page(first + n), 1).expect("VM_TOPUP");
                }
                Hvc.vm_destroy(vm).expect("VM_DESTROY");
                for n in (0..8).chain((9..32).step_by(2)) {
                    Hvc.vm_reclaim(vm, page(first + n)).expect("VM_RECLAIM");
                }
                handovers.fetch_add(20, Ordering::Relaxed);
            }
            return;
        }
        let attack = || {
            for round in 0..ROUNDS {
                for device in &devices {
                    // Neighbours of what the others give away.
                    let neighbour = page(32 * (1 + round % 3) + 8 + 2 * (round % 8));
                    assert_within_reach(device, neighbour);
                    assert_the_guests(device, &puppet, IPA, page(1));
                }
            }
        };
        // The others are told to stop however it ends.
        let ended = crate::runner::catch(attack);
        done.store(true, Ordering::Release);
        if let Err(message) = ended {
            panic!("{message}");
        }
    });
    let handovers = handovers.into_inner();
    assert!(handovers >= 100, "only {handovers} pages changed hands meanwhile");
    log::info!("{handovers} pages changed hands");
    puppet.put();
    Ok(())
}

/// What was given to the SMMU stays there when CPUs go and come.
fn r39_attack_behind_cpus_that_were_off() -> Result<(), Skip> {
    need_cpus(2)?;
    let devices = edu::all()?;
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    let page = ledger::take(1);
    let again = || {
        for device in &devices {
            assert_within_reach(device, page);
            assert_the_guests(device, &puppet, ipa, puppet.physical(ipa));
        }
    };
    again();
    let off = workers::arrivals();
    workers::off(1);
    assert!(timer::wait_until(10, || is_off(1)), "CPU 1 stays on");
    again();
    workers::on_again(1);
    assert!(workers::arrivals() > off);
    again();
    if let Ok((_, power_down)) = need_suspend() {
        workers::suspend(1, power_down, Some(timer::frequency() / 100)).wait();
        again();
    }
    puppet.put();
    Ok(())
}
