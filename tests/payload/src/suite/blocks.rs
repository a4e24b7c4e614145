//! Memory in ranges, and in blocks of 2 MiB: put in place, cut, given back, while somebody uses it and while interrupts
//! wait; and ranges of which not all is what the first page is.

use super::{
    memory::{assert_content, assert_hidden, fill},
    pages::{assert_ours, hyp_page},
    sharing::{host_writes, load},
};
use crate::{
    context::need_cpus,
    host, instruction as insn,
    ledger::{self, PAGE, each},
    puppet::{Event, Machine, PROTECTED, Puppet, Routine},
    runner::Skip,
    tests, workers,
};
use core::sync::atomic::{AtomicBool, Ordering};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{exception::probe_read, mmu, sysreg, timer},
};
use umbra_shared::{
    call::{BLOCK_PAGES, VM_PAGES, VmConfig, VmHandle},
    error::{Error, SUCCESS},
    exit::{Reason, RunFlags},
    guest::GuestFunction,
};

tests![
    blocks_a_guest_reads_all_of_one,
    blocks_the_middle_is_taken,
    blocks_a_cut_takes_a_table,
    blocks_a_guest_runs_on_while_one_is_cut,
    blocks_the_host_runs_on_while_its_own_come_and_go,
    blocks_are_shared_and_relinquished_page_by_page,
    blocks_a_range_that_is_not_all_the_hosts_is_refused,
    blocks_half_given_away,
    blocks_an_interrupt_is_not_kept_waiting,
    blocks_a_range_ends_where_its_block_does,
    blocks_pages_that_are_scattered_come_back_run_by_run,
];

/// Where guests have their block.
const IPA: u64 = 0xa000_0000;
const BLOCK: u64 = BLOCK_PAGES * PAGE;
const SIZE: usize = BLOCK_PAGES as usize;

/// A block of the host's, each page with a word of its own, as a guest with its caches off finds it.
fn marked() -> u64 {
    let memory = ledger::aligned(BLOCK_PAGES, SIZE);
    for page in each(memory, BLOCK_PAGES) {
        // SAFETY: a page of the test's.
        unsafe { mmu::linear::<u64>(page).write(mark(page)) };
        sysreg::clean_to_poc(mmu::linear::<u8>(page) as usize, 8);
    }
    memory
}

const fn mark(page: u64) -> u64 {
    0xb10c_0000_0000_0000 | page
}

/// Puts all of a range in place, in as many calls as it takes.
#[track_caller]
pub fn map_all(vm: VmHandle, first: u64, count: u64, ipa: u64) {
    let mut done = 0;
    while done < count {
        let at = done * PAGE;
        done += Hvc.vm_map_range(vm, first + at, count - done, ipa + at).expect("VM_MAP");
    }
}

/// The guest finds the host's words in these pages of the block.
fn assert_marks(puppet: &Puppet, memory: u64, pages: impl Iterator<Item = u64>) {
    for n in pages {
        assert_eq!(load(puppet, IPA + n * PAGE), mark(memory + n * PAGE), "page {n}");
    }
}

fn blocks_a_guest_reads_all_of_one() -> Result<(), Skip> {
    for config in [VmConfig::normal(), PROTECTED] {
        let machine = Machine::new(config);
        // A protected guest gets what the host put there only before it is sealed.
        let memory = marked();
        map_all(machine.vm, memory, BLOCK_PAGES, IPA);
        let puppet = machine.started(None);
        assert_marks(&puppet, memory, 0..BLOCK_PAGES);
        // Nothing beside it.
        for ipa in [IPA - 8, IPA + BLOCK] {
            let event = puppet.at(ipa).attempt(insn::LDR64, 0);
            let reason = if config.protected { Reason::Fault } else { Reason::Mmio };
            event.exit(reason);
            assert!(matches!(puppet.resume(RunFlags::ABORT, [0; 4]), Event::Exception(_)));
        }
        for page in each(memory, BLOCK_PAGES) {
            assert_eq!(probe_read(page).is_ok(), !config.protected, "{page:#x}");
        }
        puppet.put();
        assert_eq!(ledger::destroy(machine.vm), 0);
        for page in each(memory, BLOCK_PAGES) {
            let expected = if config.protected { 0 } else { mark(page) };
            assert_eq!(probe_read(page), Ok(expected), "{page:#x} has come back");
        }
    }
    Ok(())
}

fn blocks_the_middle_is_taken() -> Result<(), Skip> {
    let machine = Machine::normal();
    let puppet = machine.started(None);
    let memory = marked();
    assert_eq!(Hvc.vm_map_range(machine.vm, memory, BLOCK_PAGES, IPA), Ok(BLOCK_PAGES));
    assert_marks(&puppet, memory, [0, 255, 256, 260, 511].into_iter());
    let middle = IPA + 256 * PAGE;
    assert_eq!(Hvc.vm_unmap_range(machine.vm, middle, 4), Ok((memory + 256 * PAGE, 4)));
    for n in 256..260 {
        puppet.at(IPA + n * PAGE).attempt(insn::LDR64, 0).exit(Reason::Mmio);
        assert!(matches!(puppet.resume(RunFlags::ABORT, [0; 4]), Event::Exception(_)));
    }
    assert_marks(&puppet, memory, (0..256).chain(260..512));
    assert_eq!(Hvc.vm_unmap(machine.vm, middle), Err(Error::NotMapped));
    // What was taken is free for another VM, and its place for other pages.
    let other = ledger::vm(PROTECTED);
    map_all(other, memory + 256 * PAGE, 4, IPA);
    let page = ledger::take(1);
    Hvc.vm_map(machine.vm, page, middle).expect("VM_MAP where something was before");
    assert_eq!(load(&puppet, middle), 0);
    // The rest as runs: up to the other page, and behind it the three that are missing.
    assert_eq!(Hvc.vm_unmap_range(machine.vm, IPA, u64::MAX), Ok((memory, 256)));
    assert_eq!(Hvc.vm_unmap_range(machine.vm, middle, 2), Ok((page, 1)));
    let last = Hvc.vm_unmap_range(machine.vm, IPA + 260 * PAGE, BLOCK_PAGES);
    assert_eq!(last, Ok((memory + 260 * PAGE, 252)));
    // All pages are gone, and a block has their place.
    let memory = marked();
    assert_eq!(Hvc.vm_map_range(machine.vm, memory, BLOCK_PAGES, IPA), Ok(BLOCK_PAGES));
    assert_marks(&puppet, memory, 0..BLOCK_PAGES);
    assert_eq!(Hvc.vm_unmap_range(machine.vm, IPA, BLOCK_PAGES), Ok((memory, BLOCK_PAGES)));
    puppet.put();
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}

/// Blocks hang in no table of pages: each that is cut takes one, and where there is none nothing happens.
fn blocks_a_cut_takes_a_table() -> Result<(), Skip> {
    let pool = ledger::take(VM_PAGES + 2);
    let vm = Hvc.vm_create(pool, VM_PAGES + 2, VmConfig::normal()).expect("VM_CREATE");
    ledger::enter(vm);
    let memory = ledger::aligned(4 * BLOCK_PAGES, SIZE);
    // The root and two more with a root of level 0, so three are left, of which the blocks take none.
    for n in 0..4 {
        let (first, ipa) = (memory + n * BLOCK, IPA + n * BLOCK);
        assert_eq!(Hvc.vm_map_range(vm, first, BLOCK_PAGES, ipa), Ok(BLOCK_PAGES), "block {n}");
    }
    let cut = |n: u64| Hvc.vm_unmap(vm, IPA + n * BLOCK + 7 * PAGE);
    let mut refused = None;
    for n in 0..4 {
        match cut(n) {
            Ok(page) => assert_eq!(page, memory + n * BLOCK + 7 * PAGE),
            Err(Error::NoTables) => {
                refused = Some(n);
                break;
            }
            Err(error) => panic!("VM_UNMAP: {error}"),
        }
        // The same block again takes none.
        assert!(Hvc.vm_unmap(vm, IPA + n * BLOCK + 9 * PAGE).is_ok());
    }
    // With a root of level 1 there is one more.
    let Some(n) = refused.filter(|n| *n >= 3) else {
        assert_eq!(refused, None, "too few tables");
        return Ok(());
    };
    // Nothing has changed: all of it is still one run, and taken whole takes none.
    let all = Hvc.vm_unmap_range(vm, IPA + n * BLOCK, BLOCK_PAGES);
    assert_eq!(all, Ok((memory + n * BLOCK, BLOCK_PAGES)));
    Hvc.vm_topup(vm, ledger::take(3), 3).expect("VM_TOPUP");
    let again = Hvc.vm_map_range(vm, memory + n * BLOCK, BLOCK_PAGES, IPA + n * BLOCK);
    assert_eq!(again, Ok(BLOCK_PAGES));
    assert_eq!(cut(n), Ok(memory + n * BLOCK + 7 * PAGE));
    Ok(())
}

/// The guest counts in one page of a block, and never notices that the others are taken, whatever its CPU finds while
/// they are.
fn blocks_a_guest_runs_on_while_one_is_cut() -> Result<(), Skip> {
    need_cpus(2)?;
    const ROUNDS: u64 = 24;
    let machine = Machine::normal();
    let puppet = machine.vcpu(None);
    Hvc.vm_topup(machine.vm, ledger::take(8), 8).expect("VM_TOPUP");
    let memory = ledger::aligned(BLOCK_PAGES, SIZE);
    let (ready, over) = (AtomicBool::new(false), AtomicBool::new(false));
    workers::on_all(|cpu| match cpu {
        0 => {
            for round in 0..ROUNDS {
                let own = 1 + round * 21 % 510;
                let (page, ipa) = (memory + own * PAGE, IPA + own * PAGE);
                let mapped = Hvc.vm_map_range(machine.vm, memory, BLOCK_PAGES, IPA);
                assert_eq!(mapped, Ok(BLOCK_PAGES));
                ready.store(true, Ordering::SeqCst);
                let counts = || {
                    let before = probe_read(page).expect("a normal guest's");
                    timer::wait_until(60, || probe_read(page).is_ok_and(|n| n > before + 1000))
                };
                assert!(counts(), "the guest does not count");
                // Those beside it, which cuts the block; one alone; all the others.
                let below = Hvc.vm_unmap_range(machine.vm, IPA, own);
                assert_eq!(below, Ok((memory, own)));
                assert!(counts(), "the guest stands still");
                let above = Hvc.vm_unmap_range(machine.vm, ipa + PAGE, BLOCK_PAGES);
                assert_eq!(above, Ok((page + PAGE, BLOCK_PAGES - own - 1)));
                assert!(counts(), "the guest stands still");
                assert_eq!(Hvc.vm_unmap(machine.vm, ipa), Ok(page));
                let last = probe_read(page);
                let waited = timer::wait_until(60, || !ready.load(Ordering::SeqCst));
                assert!(waited, "the guest does not notice that its page is gone");
                assert_eq!(probe_read(page), last, "the guest still writes to it");
            }
            over.store(true, Ordering::SeqCst);
        }
        1 => {
            puppet.load();
            puppet.start();
            for round in 0..ROUNDS {
                let ipa = IPA + (1 + round * 21 % 510) * PAGE;
                let begun = timer::wait_until(60, || ready.load(Ordering::SeqCst));
                assert!(begun, "round {round} does not begin");
                // The only thing that it misses is its own page, at the end.
                let exit = puppet.begin(Routine::Spin, [ipa, 0, 0]).exit(Reason::Mmio);
                assert_eq!(exit.data[0], ipa, "round {round}");
                assert_eq!(Hvc.vm_unmap(machine.vm, ipa), Err(Error::NotMapped), "it was there");
                ready.store(false, Ordering::SeqCst);
                let event = puppet.resume(RunFlags::ABORT, [0; 4]);
                assert!(matches!(event, Event::Exception(_)), "{event:?}");
            }
            puppet.put();
        }
        _ => {}
    });
    assert!(over.load(Ordering::SeqCst));
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}

/// All other CPUs of the host use what a protected VM gets the rest of, and what comes back of it is a block again.
fn blocks_the_host_runs_on_while_its_own_come_and_go() -> Result<(), Skip> {
    need_cpus(2)?;
    const ROUNDS: u64 = 24;
    let memory = ledger::aligned(BLOCK_PAGES, SIZE);
    let stop = AtomicBool::new(false);
    workers::on_all(|cpu| {
        if cpu != 0 {
            while !stop.load(Ordering::Acquire) {
                for n in [0u64, 17, 300, 511] {
                    let word = mmu::linear::<u64>(memory + n * PAGE + 64 * cpu as u64);
                    // SAFETY: a word that only this CPU uses, in a page of the test's that is never given away.
                    unsafe {
                        word.write_volatile(n);
                        assert_eq!(word.read_volatile(), n);
                    }
                }
            }
            return;
        }
        for _ in 0..ROUNDS {
            let vm = ledger::vm(PROTECTED);
            for (first, count) in [(1, 16), (18, 282), (301, 210)] {
                map_all(vm, memory + first * PAGE, count, IPA + first * PAGE);
                assert_hidden(memory + first * PAGE);
            }
            assert_eq!(ledger::destroy(vm), 0);
            assert_ours(memory + 18 * PAGE);
        }
        stop.store(true, Ordering::Release);
    });
    Ok(())
}

fn blocks_are_shared_and_relinquished_page_by_page() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let memory = marked();
    map_all(machine.vm, memory, BLOCK_PAGES, IPA);
    let puppet = machine.started(None);
    let call = |function: GuestFunction, n: u64| {
        puppet.answered(Routine::Hvc, function.id(), [IPA + n * PAGE, 0, 0])[0] as i64
    };
    for n in [0, 100, 511] {
        assert_eq!(call(GuestFunction::MemShare, n), SUCCESS);
        assert_eq!(probe_read(memory + n * PAGE), Ok(mark(memory + n * PAGE)), "it is shared");
        host_writes(memory + n * PAGE + 8, n);
        assert_eq!(load(&puppet, IPA + n * PAGE + 8), n);
    }
    for n in [1, 99, 101, 510] {
        assert_hidden(memory + n * PAGE);
    }
    for n in [0, 511] {
        assert_eq!(puppet.unshare(Routine::Hvc, IPA + n * PAGE, memory + n * PAGE)[0], 0);
        assert_hidden(memory + n * PAGE);
    }
    assert_marks(&puppet, memory, 0..BLOCK_PAGES);
    // A page that is shared, and one that is not, for good. Cutting the block takes a table, which the host is asked
    // for if there is none.
    for n in [100, 200] {
        let ipa = IPA + n * PAGE;
        let id = GuestFunction::MemRelinquish.id();
        let mut event = puppet.smccc(Routine::Hvc, id, [ipa, 0, 0]);
        if let Event::Exit(exit) = &event
            && exit.info.reason() == Some(Reason::Tables)
        {
            Hvc.vm_topup(machine.vm, ledger::take(4), 4).expect("VM_TOPUP");
            event = puppet.resume(RunFlags::empty(), [0; 4]);
        }
        if n == 100 {
            event = puppet.told(event, ipa, memory + n * PAGE);
        }
        let exit = event.exit(Reason::Relinquished);
        assert_eq!(exit.data[..2], [ipa, memory + n * PAGE]);
        assert!(matches!(puppet.resume(RunFlags::empty(), [0; 4]), Event::Done([0, ..])));
        let expected = if n == 100 { mark(memory + n * PAGE) } else { 0 };
        assert_eq!(probe_read(memory + n * PAGE), Ok(expected), "what the host could not read");
        puppet.at(ipa).attempt(insn::LDR64, 0).exit(Reason::Fault);
        assert!(matches!(puppet.resume(RunFlags::ABORT, [0; 4]), Event::Exception(_)));
    }
    assert_marks(&puppet, memory, (0..100).chain(101..200).chain(201..512));
    puppet.put();
    // The guest has given two of them back already.
    Hvc.vm_destroy(machine.vm).expect("VM_DESTROY");
    let mut n = 0;
    let mut runs = [0u64; 3];
    for run in &mut runs {
        while let Ok((_, back)) = Hvc.vm_reclaim_range(machine.vm, memory + n * PAGE, 512 - n) {
            (n, *run) = (n + back, *run + back);
            if n == 512 {
                break;
            }
        }
        n += 1;
    }
    assert_eq!(runs, [100, 99, 311]);
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}

/// One page of a range is not the host's to give, wherever it lies: nothing of the range is given.
fn blocks_a_range_that_is_not_all_the_hosts_is_refused() -> Result<(), Skip> {
    let memory = ledger::aligned(BLOCK_PAGES, SIZE);
    for config in [VmConfig::normal(), PROTECTED] {
        let (vm, other) = (ledger::vm(config), ledger::vm(VmConfig::normal()));
        let third = ledger::vm(PROTECTED);
        for n in [0, 1, 255, 510, 511] {
            let page = memory + n * PAGE;
            let map = || Hvc.vm_map_range(vm, memory, BLOCK_PAGES, IPA);
            let assert_refused = |error| {
                assert_eq!(map(), Err(error), "page {n}");
                for page in each(memory, BLOCK_PAGES).filter(|&other| other != page) {
                    assert!(probe_read(page).is_ok(), "{page:#x} is taken all the same");
                }
                assert_eq!(Hvc.vm_unmap(vm, IPA), Err(Error::NotMapped), "and mapped");
            };
            Hvc.share_flag_page(page).expect("SHARE_FLAG_PAGE");
            assert_refused(Error::Shared);
            Hvc.unshare_flag_page(page).expect("UNSHARE_FLAG_PAGE");
            // Shared with a guest, and back.
            Hvc.vm_map(other, page, IPA).expect("VM_MAP");
            assert_refused(Error::Shared);
            assert_eq!(Hvc.vm_unmap(other, IPA), Ok(page));
        }
        // A guest's own.
        Hvc.vm_map(third, memory + 3 * PAGE, IPA).expect("VM_MAP");
        assert_eq!(Hvc.vm_map_range(vm, memory, BLOCK_PAGES, IPA), Err(Error::NotOwned));
        // Where something is already, in the middle.
        Hvc.vm_map(vm, memory + 4 * PAGE, IPA + 9 * PAGE).expect("VM_MAP");
        assert_eq!(Hvc.vm_map_range(vm, memory + 8 * PAGE, 10, IPA), Err(Error::IpaInUse));
        assert_eq!(Hvc.vm_map_range(vm, memory + 8 * PAGE, 9, IPA), Ok(9));
        // Hyp's memory, and what is none.
        let free = IPA + 10 * PAGE;
        assert_eq!(Hvc.vm_map_range(vm, hyp_page(), 2, free), Err(Error::NotOwned));
        assert_eq!(Hvc.vm_map_range(vm, 0x0900_0000, 2, free), Err(Error::NotMemory));
        assert_eq!(Hvc.vm_map_range(vm, memory + 8, 2, free), Err(Error::Unaligned));
        assert_eq!(Hvc.vm_map_range(vm, u64::MAX - 0xfff, 2, free), Err(Error::NotMemory));
        // No pages at all.
        let page = memory + 20 * PAGE;
        assert_eq!(Hvc.vm_map_range(vm, page, 0, free), Err(Error::InvalidArgument));
        assert_eq!(Hvc.vm_unmap_range(vm, IPA, 0), Err(Error::InvalidArgument));
        assert_eq!(Hvc.vm_reclaim_range(vm, memory, 0), Err(Error::NotDying));
        Hvc.vm_destroy(vm).expect("VM_DESTROY");
        assert_eq!(Hvc.vm_reclaim_range(vm, memory, 0), Err(Error::InvalidArgument));
        ledger::destroy_all();
        each(memory, BLOCK_PAGES).for_each(assert_ours);
    }
    Ok(())
}

/// Two VMs have a half each of what the host had as a block, and each gets back what is its own.
fn blocks_half_given_away() -> Result<(), Skip> {
    // Each ends in the middle of a stretch.
    const HALF: u64 = BLOCK_PAGES / 2 - 7;
    const REST: u64 = BLOCK_PAGES - HALF;
    let memory = ledger::aligned(BLOCK_PAGES, SIZE);
    each(memory, BLOCK_PAGES).for_each(fill);
    let (normal, protected) = (ledger::vm(VmConfig::normal()), ledger::vm(PROTECTED));
    let second = memory + HALF * PAGE;
    map_all(normal, memory, HALF, IPA);
    map_all(protected, second, REST, IPA);
    each(memory, HALF).for_each(|page| assert_content(page, true));
    each(second, REST).for_each(assert_hidden);
    Hvc.vm_destroy(protected).expect("VM_DESTROY");
    // The first page is the other's; from where it is its own it ends with the block.
    assert_eq!(Hvc.vm_reclaim_range(protected, memory, BLOCK_PAGES), Err(Error::NotOwned));
    let mut back = 0;
    while back < REST {
        let first = second + back * PAGE;
        back += Hvc.vm_reclaim_range(protected, first, BLOCK_PAGES).expect("VM_RECLAIM").1;
    }
    assert_eq!(back, REST, "no page of anybody else's");
    each(second, REST).for_each(|page| assert_content(page, false));
    // The other VM's range ends where the host's begins.
    Hvc.vm_destroy(normal).expect("VM_DESTROY");
    let (_, back) = Hvc.vm_reclaim_range(normal, memory, BLOCK_PAGES).expect("VM_RECLAIM");
    assert!(back <= HALF, "{back} pages came back of {HALF}");
    assert_eq!(ledger::destroy(normal), 0);
    assert_eq!(ledger::destroy(protected), 0);
    each(memory, HALF).for_each(|page| assert_content(page, true));
    Ok(())
}

/// An interrupt that waits ends a call behind a stretch; what is left is the host's as it was.
fn blocks_an_interrupt_is_not_kept_waiting() -> Result<(), Skip> {
    const STRETCH: u64 = 64;
    let memory = ledger::aligned(BLOCK_PAGES, SIZE);
    each(memory, BLOCK_PAGES).for_each(fill);
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(None);
    let daif = host::pend_interrupt();
    let mut done = 0;
    while done < BLOCK_PAGES {
        let at = done * PAGE;
        let more = Hvc.vm_map_range(machine.vm, memory + at, BLOCK_PAGES - done, IPA + at);
        assert_eq!(more, Ok(STRETCH), "{done} pages are done");
        done += STRETCH;
        // The last page of them is gone, and the next one is as it was.
        assert!(probe_read(memory + done * PAGE - 8).is_err());
        if done < BLOCK_PAGES {
            assert_content(memory + done * PAGE, true);
            assert_content(memory + (BLOCK_PAGES - 1) * PAGE, true);
        }
    }
    host::release_interrupt(daif);
    // It is all the guest's, and empty.
    for n in 0..BLOCK_PAGES {
        assert_eq!(load(&puppet, IPA + n * PAGE), 0, "page {n}");
    }
    puppet.put();
    Hvc.vm_destroy(machine.vm).expect("VM_DESTROY");
    let daif = host::pend_interrupt();
    let mut done = 0;
    while done < BLOCK_PAGES {
        let back = Hvc.vm_reclaim_range(machine.vm, memory + done * PAGE, BLOCK_PAGES - done);
        assert_eq!(back.map(|(_, back)| back), Ok(STRETCH));
        done += STRETCH;
        assert_eq!(probe_read(memory + done * PAGE - 8), Ok(0), "wiped, and the host's");
        assert!(done == BLOCK_PAGES || probe_read(memory + done * PAGE).is_err());
    }
    host::release_interrupt(daif);
    assert_eq!(ledger::destroy(machine.vm), 0);
    each(memory, BLOCK_PAGES).for_each(|page| assert_content(page, false));
    Ok(())
}

/// As many pages as one likes may be asked for: a call has no opinion on what lies behind the block that it is in.
fn blocks_a_range_ends_where_its_block_does() -> Result<(), Skip> {
    let vm = ledger::vm(VmConfig::normal());
    let memory = ledger::aligned(2 * BLOCK_PAGES, SIZE);
    let ipa = IPA + (BLOCK_PAGES - 3) * PAGE;
    assert_eq!(Hvc.vm_map_range(vm, memory, u64::MAX, ipa), Ok(3));
    // A page behind it is nobody's to give, which matters when it is its turn.
    Hvc.share_flag_page(memory + 4 * PAGE).expect("SHARE_FLAG_PAGE");
    Hvc.vm_topup(vm, ledger::take(4), 4).expect("VM_TOPUP");
    let behind = |count| Hvc.vm_map_range(vm, memory + 3 * PAGE, count, IPA + BLOCK);
    assert_eq!(behind(2), Err(Error::Shared));
    assert_eq!(behind(1), Ok(1));
    Hvc.unshare_flag_page(memory + 4 * PAGE).expect("UNSHARE_FLAG_PAGE");
    // The pages lie one behind the other over the border, which a call does not cross.
    assert_eq!(Hvc.vm_unmap_range(vm, ipa, 4), Ok((memory, 3)));
    assert_eq!(Hvc.vm_unmap_range(vm, IPA + BLOCK, 4), Ok((memory + 3 * PAGE, 1)));
    // The last page of the address space.
    let last = (1 << 39) - PAGE;
    assert_eq!(Hvc.vm_map_range(vm, memory, u64::MAX, last), Ok(1));
    Hvc.vm_destroy(vm).expect("VM_DESTROY");
    assert_eq!(Hvc.vm_reclaim_range(vm, memory, u64::MAX).map(|(_, back)| back), Ok(1));
    assert_eq!(ledger::destroy(vm), 0);
    Ok(())
}

/// Neighbours for the guest that are none in memory.
fn blocks_pages_that_are_scattered_come_back_run_by_run() -> Result<(), Skip> {
    let machine = Machine::normal();
    let puppet = machine.started(None);
    Hvc.vm_topup(machine.vm, ledger::take(4), 4).expect("VM_TOPUP");
    let memory = marked();
    // Where the guest has each piece, and which it is.
    let pieces = [(0, 0, 3), (3, 10, 2), (5, 12, 1), (6, 5, 1), (8, 8, 2)];
    for (at, n, count) in pieces {
        map_all(machine.vm, memory + n * PAGE, count, IPA + at * PAGE);
    }
    for (at, n, count) in pieces {
        for m in 0..count {
            assert_eq!(load(&puppet, IPA + (at + m) * PAGE), mark(memory + (n + m) * PAGE));
        }
    }
    let unmap = |at: u64, count| Hvc.vm_unmap_range(machine.vm, IPA + at * PAGE, count);
    // The second and the third piece are one.
    for (at, n, count) in [(0, 0, 3), (3, 10, 3), (6, 5, 1)] {
        assert_eq!(unmap(at, BLOCK_PAGES), Ok((memory + n * PAGE, count)));
    }
    assert_eq!(unmap(7, BLOCK_PAGES), Err(Error::NotMapped));
    assert_eq!(unmap(8, 1), Ok((memory + 8 * PAGE, 1)));
    assert_eq!(unmap(9, BLOCK_PAGES), Ok((memory + 9 * PAGE, 1)));
    puppet.put();
    assert_eq!(ledger::destroy(machine.vm), 0);
    Ok(())
}
