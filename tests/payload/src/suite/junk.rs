//! Junk: what the host's EL1 finds where memory is a guest's alone, of VMs for which it has asked for that.

use super::{
    aborts,
    alias::guest as aliasing,
    blocks::map_all,
    levels::{DAIF, Has},
    memory::assert_hidden,
    sharing::{call, load, share, store},
};
use crate::{
    context::{Counters, context, need_cpus},
    excursion,
    ledger::{self, PAGE, each},
    puppet::{Event, Machine, PROTECTED, Puppet, Routine},
    runner::Skip,
    tests,
    window::{self, Pane},
    workers,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{
        exception::{probe_read, probe_write},
        mmu,
    },
};
use umbra_shared::{
    call::{BLOCK_PAGES, Counter, VM_PAGES, VmConfig},
    error::{Error, SUCCESS},
    exit::Reason,
    guest::GuestFunction,
};

tests![
    junk_is_read_and_written_and_the_guest_keeps_its_own,
    junk_is_the_kernels_alone,
    junk_is_nobody_elses,
    junk_across_the_end_of_a_page,
    junk_goes_when_the_guest_shares,
    junk_goes_when_the_page_comes_back,
    junk_in_a_block,
    junk_on_all_cpus,
    junk_where_it_was_asked_for,
];

const SECRET: u64 = 0x5ec2_e7a1_5ec2_e7a1;
const JUNK: VmConfig = VmConfig { junk: true, ..PROTECTED };
/// Where a guest of these has pages beside its own.
const IPA: u64 = 0x9000_0000;

/// A guest with this many pages more, each with a secret in it; and the first one's address.
fn guest(count: u64) -> (Puppet, u64) {
    let machine = Machine::new(JUNK);
    let first = ledger::take(count);
    Hvc.vm_topup(machine.vm, ledger::take(8), 8).expect("VM_TOPUP");
    map_all(machine.vm, first, count, IPA);
    let guest = machine.started(None);
    for n in 0..count {
        store(&guest, IPA + n * PAGE, SECRET + n);
    }
    (guest, first)
}

/// The host's kernel writes there.
#[track_caller]
fn write(pa: u64, value: u64) {
    // SAFETY: memory of a guest's of this test.
    assert_eq!(unsafe { probe_write(pa, value) }, Ok(()), "{pa:#x}");
}

/// The guest takes back what it shares at its first page's own address.
#[track_caller]
fn unshare(guest: &Puppet, page: u64) {
    assert_eq!(guest.unshare(Routine::Hvc, IPA, page)[0], 0);
}

fn junk_is_read_and_written_and_the_guest_keeps_its_own() -> Result<(), Skip> {
    let (guest, page) = guest(1);
    let before = Counters::now();
    for offset in [0, 8, PAGE - 8] {
        assert_eq!(probe_read(page + offset), Ok(0), "the guest's own is not there");
        write(page + offset, offset + 1);
        assert_eq!(probe_read(page + offset), Ok(offset + 1));
    }
    assert_eq!(before.since(Counter::HostJunk), 1, "until it goes it is there");
    assert_eq!(before.since(Counter::HostAborts), 0);
    assert_eq!([load(&guest, IPA), load(&guest, IPA + 8)], [SECRET, 0]);
    store(&guest, IPA, SECRET + 1);
    assert_eq!(probe_read(page), Ok(1));
    // It is not the host's to give away, whatever it finds there.
    assert_eq!(Hvc.share_flag_page(page), Err(Error::NotOwned));
    assert_eq!(Hvc.vm_create(page, VM_PAGES, JUNK), Err(Error::NotOwned));
    guest.put();
    Ok(())
}

fn junk_is_the_kernels_alone() -> Result<(), Skip> {
    let (guest, page) = guest(1);
    let (has, sctlr) = (Has::new(), excursion::sctlr());
    // A user's access, by EL0.
    for (write, code) in [(false, excursion::load()), (true, excursion::store())] {
        let pc = mmu::image_pa(code);
        let taken = window::open_as(Pane::User, |_| aborts::go(pc, DAIF, page, sctlr, &has));
        assert_eq!(taken.esr, aborts::syndrome(false, true, write));
    }
    // A fetch.
    let el1 = DAIF | 5;
    let taken = window::open_as(Pane::Code, |_| aborts::go(page, el1, 0, sctlr, &has));
    assert_eq!(taken.esr, aborts::syndrome(true, false, false));
    // A walk.
    let aborts = Counters::now();
    let walked = window::open_by(page, |window| window.read(0));
    assert!(walked.is_err(), "a table of the guest's: {walked:x?}");
    assert_eq!((aborts.since(Counter::HostAborts), aborts.since(Counter::HostJunk)), (1, 0));
    // What hyp keeps of the VM: its tables, and a vCPU.
    let vm = ledger::take(VM_PAGES);
    ledger::enter(Hvc.vm_create(vm, VM_PAGES, JUNK).expect("VM_CREATE"));
    each(vm, VM_PAGES).for_each(assert_hidden);
    assert_eq!(load(&guest, IPA), SECRET);
    guest.put();
    Ok(())
}

/// What the kernel has written for one of its users nobody finds in another page's place.
fn junk_is_nobody_elses() -> Result<(), Skip> {
    const PAGES: u64 = 7;
    let (guest, first) = guest(PAGES);
    for round in 0..3 {
        for page in each(first, PAGES) {
            for offset in [0, 0x7f8, PAGE - 8] {
                assert_eq!(probe_read(page + offset), Ok(0), "round {round}: {page:#x}");
                write(page + offset, page + offset);
            }
        }
    }
    for n in 0..PAGES {
        assert_eq!(load(&guest, IPA + n * PAGE), SECRET + n);
    }
    guest.put();
    Ok(())
}

/// An access of two pages at once, from and to every place; copies from one pair to another.
fn junk_across_the_end_of_a_page() -> Result<(), Skip> {
    let (guest, first) = guest(6);
    for _ in 0..4 {
        for pair in [first, first + 2 * PAGE, first + 4 * PAGE] {
            let across = pair + PAGE - 4;
            assert_eq!(probe_read(across), Ok(0));
            write(across, SECRET);
            assert_eq!(probe_read(across), Ok(SECRET), "both are there");
        }
    }
    assert_eq!([load(&guest, IPA), load(&guest, IPA + PAGE)], [SECRET, SECRET + 1]);
    guest.put();
    Ok(())
}

fn junk_goes_when_the_guest_shares() -> Result<(), Skip> {
    let (guest, page) = guest(3);
    for round in 0..3 {
        write(page, round);
        assert_eq!(share(&guest, IPA), SUCCESS);
        assert_eq!(probe_read(page), Ok(SECRET), "the page itself");
        write(page + 8, round);
        unshare(&guest, page);
        assert_eq!(load(&guest, IPA + 8), round);
        assert_eq!([probe_read(page), probe_read(page + 8)], [Ok(0); 2]);
    }
    // Of the others nothing has come with it.
    assert_eq!(probe_read(page + PAGE), Ok(0));
    guest.put();
    let (plain, bit) = aliasing();
    plain.put();
    let (guest, page) = self::guest(1);
    write(page, 7);
    assert_eq!(share(&guest, IPA | bit), SUCCESS);
    assert_eq!((probe_read(page), load(&guest, IPA | bit)), (Ok(SECRET), SECRET));
    guest.put();
    Ok(())
}

fn junk_goes_when_the_page_comes_back() -> Result<(), Skip> {
    let (guest, first) = guest(4);
    for page in each(first, 4) {
        write(page, SECRET);
    }
    let relinquish = GuestFunction::MemRelinquish.id();
    let exit = guest.smccc(Routine::Hvc, relinquish, [IPA, 0, 0]).exit(Reason::Relinquished);
    assert_eq!(exit.data[..2], [IPA, first]);
    assert!(matches!(guest.resume(Default::default(), [0; 4]), Event::Done([0, ..])));
    assert_eq!(probe_read(first), Ok(0), "neither the guest's nor junk");
    write(first, 1);
    write(first + 3 * PAGE, 2);
    // Those of its CPU go where they are needed, and not to where it was.
    assert_eq!([probe_read(first + PAGE), probe_read(first + 2 * PAGE)], [Ok(0); 2]);
    assert_eq!(probe_read(first), Ok(1));
    guest.put();
    assert_eq!(ledger::destroy(guest.machine.vm), 0);
    for (n, page) in each(first, 4).enumerate() {
        assert_eq!(probe_read(page), Ok(u64::from(n == 0)), "{page:#x} has come back");
        write(page, 3);
        assert_eq!(probe_read(page), Ok(3));
    }
    Ok(())
}

/// Under a guest's block the host has no table.
fn junk_in_a_block() -> Result<(), Skip> {
    let machine = Machine::new(JUNK);
    let memory = ledger::aligned(BLOCK_PAGES, BLOCK_PAGES as usize);
    map_all(machine.vm, memory, BLOCK_PAGES, IPA);
    let guest = machine.started(None);
    let some = [0, 1, 200, BLOCK_PAGES - 1];
    for n in some {
        store(&guest, IPA + n * PAGE, SECRET + n);
    }
    for n in some.into_iter().chain(some) {
        assert_eq!(probe_read(memory + n * PAGE), Ok(0));
        write(memory + n * PAGE, n);
    }
    for n in some {
        assert_eq!(load(&guest, IPA + n * PAGE), SECRET + n);
    }
    guest.put();
    assert_eq!(ledger::destroy(machine.vm), 0);
    for page in each(memory, BLOCK_PAGES) {
        assert_eq!(probe_read(page), Ok(0));
        write(page, page);
    }
    assert!(each(memory, BLOCK_PAGES).all(|page| probe_read(page) == Ok(page)));
    // And again another's, a whole block.
    let other = ledger::vm(JUNK);
    map_all(other, memory, BLOCK_PAGES, IPA);
    assert_eq!(probe_read(memory), Ok(0));
    Ok(())
}

/// Every CPU by itself, in the place of the same pages, while they are shared and taken back: each gets on, and finds junk or what
/// is shared.
fn junk_on_all_cpus() -> Result<(), Skip> {
    need_cpus(2)?;
    const PAGES: u64 = 5;
    const ROUNDS: u64 = 40;
    let (guest, first) = guest(PAGES);
    let done = core::sync::atomic::AtomicUsize::new(0);
    let last = context().cpus - 1;
    workers::on_all(|cpu| {
        use core::sync::atomic::Ordering::SeqCst;
        if cpu == 0 {
            while done.load(SeqCst) < last {
                assert_eq!(call(&guest, GuestFunction::MemShare, IPA), SUCCESS);
                unshare(&guest, first);
            }
            return;
        }
        for round in 0..ROUNDS {
            for n in 0..PAGES - 1 {
                // Of two pages, with all others after the same ones.
                let across = first + (n + 1) * PAGE - 4;
                if n != 0 {
                    write(across, round);
                }
                assert!(probe_read(across).is_ok());
                let found =
                    probe_read(first + n * PAGE).expect("there is something, whatever is shared");
                assert!(found != SECRET + n || n == 0, "page {n} is never shared");
            }
        }
        done.fetch_add(1, SeqCst);
    });
    for n in 0..PAGES {
        assert_eq!(load(&guest, IPA + n * PAGE), SECRET + n, "page {n}");
    }
    guest.put();
    Ok(())
}

fn junk_where_it_was_asked_for() -> Result<(), Skip> {
    let (guest, page) = guest(1);
    assert_eq!(probe_read(page), Ok(0));
    let others = Machine::new(PROTECTED);
    assert_hidden(others.memory);
    guest.put();
    assert_eq!(ledger::destroy(guest.machine.vm), 0);
    // Whoever is there next has not asked.
    let next = Machine::new(PROTECTED);
    assert_hidden(next.memory);
    let normal =
        Hvc.vm_create(ledger::take(VM_PAGES), VM_PAGES, VmConfig { protected: false, ..JUNK });
    assert_eq!(normal, Err(Error::InvalidArgument));
    Ok(())
}
