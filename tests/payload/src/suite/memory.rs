//! Memory protection: who can reach which page, and what it holds when it changes hands.

use super::pages::hyp_page;
use crate::{
    context::{context, need_cpus},
    instruction as insn,
    ledger::{self, PAGE, each},
    puppet::{BASE, MEMORY_PAGES, Machine, PROTECTED, Routine, flag_page},
    runner::Skip,
    tests, window, workers,
};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{
        MAX_CPUS,
        exception::{probe_read, probe_write},
        mmu, timer,
    },
};
use umbra_shared::{
    PAGE_SIZE,
    call::{Start, VmConfig},
    error::Error,
    vcpu::VcpuFeatures,
};

tests![
    hyp_is_out_of_reach,
    donated_pages_are_out_of_reach,
    donated_pages_come_back_wiped,
    protected_memory_is_out_of_reach_and_comes_back_wiped,
    normal_memory_stays_and_keeps_its_content,
    guest_sees_what_the_host_put_there,
    r13_shared_pages_are_the_flag_pages,
    splitting_a_block_disturbs_nobody,
    donations_race_on_all_cpus,
];

/// The host can neither read nor write it, and learns so by an external abort.
#[track_caller]
pub fn assert_hidden(page: u64) {
    for pa in [page, page + 8, page + PAGE - 8] {
        let read = probe_read(pa).expect_err("a read of a page that is not the host's");
        assert!(read.is_refusal(), "{pa:#x}: {read:x?}");
        // SAFETY: it faults, or the test fails.
        let write = unsafe { probe_write(pa, 1) };
        let write = write.expect_err("a write to a page that is not the host's");
        assert!(write.is_refusal() && write.esr >> 6 & 1 == 1, "{pa:#x}: {write:x?}");
        assert_eq!(write.far, mmu::linear::<u8>(pa) as u64);
    }
}

/// Fills a page of ours.
pub fn fill(page: u64) {
    let words = mmu::linear::<u64>(page);
    for n in 0..PAGE_SIZE / 8 {
        // SAFETY: a page of the test's.
        unsafe { words.add(n).write(0xc0de_0000_0000_0000 | (page + n as u64)) };
    }
}

/// A page of ours as it is: all zero, or as filled.
#[track_caller]
pub fn assert_content(page: u64, filled: bool) {
    for n in 0..PAGE_SIZE as u64 / 8 {
        let word = probe_read(page + 8 * n).expect("the page is the host's");
        let expected = if filled { 0xc0de_0000_0000_0000 | (page + n) } else { 0 };
        assert_eq!(word, expected, "{page:#x} word {n}");
    }
}

fn hyp_is_out_of_reach() -> Result<(), Skip> {
    let own = hyp_page();
    let inside = ledger::take(1);
    let read = window::open(|window| {
        // SAFETY: a page of the test's.
        unsafe { window.write(inside, 0x77) }.expect("the window works");
        let block = own & !0x1f_ffff;
        let mut seen = 0;
        for pa in each(block, 512) {
            if Hvc.share_flag_page(pa) != Err(Error::NotOwned) {
                let _ = Hvc.unshare_flag_page(pa);
                continue;
            }
            seen += 1;
            let read = window.read(pa).expect_err("a read of hyp's memory");
            assert!(read.is_refusal(), "{pa:#x}: {read:x?}");
            // SAFETY: it faults, or the test fails.
            let write = unsafe { window.write(pa + 8, 1) }.expect_err("a write to hyp's memory");
            assert!(write.is_refusal(), "{pa:#x}: {write:x?}");
        }
        assert!(seen > 4, "only {seen} pages of hyp found");
        window.read(inside)
    });
    assert_eq!(read, Ok(0x77));
    Ok(())
}

fn donated_pages_are_out_of_reach() -> Result<(), Skip> {
    let pool = ledger::take(8);
    let vm = Hvc.vm_create(pool, 8, VmConfig::default()).expect("VM_CREATE");
    ledger::enter(vm);
    each(pool, 8).for_each(assert_hidden);
    let more = ledger::take(2);
    Hvc.vm_topup(vm, more, 2).expect("VM_TOPUP");
    each(more, 2).for_each(assert_hidden);
    Ok(())
}

fn donated_pages_come_back_wiped() -> Result<(), Skip> {
    let pool = ledger::take(8);
    each(pool, 8).for_each(fill);
    let vm = Hvc.vm_create(pool, 8, VmConfig::default()).expect("VM_CREATE");
    ledger::enter(vm);
    let features = VcpuFeatures::sve(context().largest());
    let count = features.pages();
    let (pages, memory) = (ledger::take(count), ledger::take(1));
    each(pages, count).for_each(fill);
    let (flags, _) = flag_page();
    Hvc.vm_map(vm, memory, BASE).expect("VM_MAP");
    let config = umbra_shared::call::VcpuConfig {
        vm,
        index: umbra_shared::call::VcpuIndex(0),
        affinity: umbra_shared::call::UntrustedAffinity(0),
        pages: umbra_shared::call::UntrustedPages {
            start: umbra_shared::call::UntrustedPa(pages),
            count,
        },
        flag_page: umbra_shared::call::UntrustedPa(flags),
        features: features.into(),
        start: Start::At { entry: BASE, argument: 0x5ec2_e700 },
    };
    Hvc.vcpu_create(config).expect("VCPU_CREATE");
    each(pages, count).for_each(assert_hidden);
    assert_eq!(ledger::destroy(vm), 0);
    for page in each(pool, 8).chain(each(pages, count)) {
        assert_content(page, false);
    }
    Ok(())
}

fn protected_memory_is_out_of_reach_and_comes_back_wiped() -> Result<(), Skip> {
    let machine = Machine::new(PROTECTED);
    let puppet = machine.started(context().largest());
    each(machine.memory, MEMORY_PAGES).for_each(assert_hidden);
    // The guest reads, writes and executes there all the same.
    puppet.at(puppet.scratch());
    puppet.exec(insn::STR64, 0x5ec2e7);
    assert_eq!(puppet.exec(insn::LDR64, 0), 0x5ec2e7);
    assert_hidden(puppet.physical(puppet.scratch()));
    puppet.put();
    Hvc.vm_destroy(machine.vm).expect("VM_DESTROY");
    // Not before it is reclaimed, page by page.
    each(machine.memory, MEMORY_PAGES).for_each(assert_hidden);
    for page in each(machine.memory, MEMORY_PAGES) {
        Hvc.vm_reclaim(machine.vm, page).expect("VM_RECLAIM");
        assert_content(page, false);
    }
    Ok(())
}

fn normal_memory_stays_and_keeps_its_content() -> Result<(), Skip> {
    let machine = Machine::normal();
    let page = ledger::take(1);
    fill(page);
    Hvc.vm_map(machine.vm, page, 0x9000_0000).expect("VM_MAP");
    assert_content(page, true);
    let puppet = machine.started(None);
    puppet.at(0x9000_0000 + PAGE - 8).exec(insn::STR64, 0x1234_5678);
    let last = puppet.physical(BASE);
    assert_eq!(last, machine.memory);
    puppet.put();
    assert_eq!(ledger::destroy(machine.vm), 0);
    assert_eq!(probe_read(page + PAGE - 8), Ok(0x1234_5678));
    assert_eq!(probe_read(page), Ok(0xc0de_0000_0000_0000 | page));
    Ok(())
}

/// Also r31: the guest has its caches off.
fn guest_sees_what_the_host_put_there() -> Result<(), Skip> {
    for protected in [false, true] {
        let machine = Machine::new(VmConfig { protected, ..Default::default() });
        let pages = ledger::take(4);
        each(pages, 4).for_each(fill);
        for (n, page) in each(pages, 4).enumerate() {
            Hvc.vm_map(machine.vm, page, 0x9000_0000 + n as u64 * PAGE).expect("VM_MAP");
        }
        let puppet = machine.started(None);
        for (n, page) in each(pages, 4).enumerate() {
            for word in [0, 1, 255, 511] {
                puppet.at(0x9000_0000 + n as u64 * PAGE + 8 * word);
                let expected = 0xc0de_0000_0000_0000 | (page + word);
                assert_eq!(puppet.exec(insn::LDR64, 0), expected, "page {n} word {word}");
            }
        }
        puppet.put();
    }
    Ok(())
}

/// All pages that hyp says it has mapped of the host's.
fn shared_pages() -> impl Iterator<Item = u64> {
    let mut from = 0;
    core::iter::from_fn(move || {
        let page = Hvc.next_shared_page(from).expect("NEXT_SHARED_PAGE")?;
        from = page + PAGE;
        Some(page)
    })
}

fn r13_shared_pages_are_the_flag_pages() -> Result<(), Skip> {
    assert_eq!(shared_pages().next(), None);
    let flags = ledger::take(5);
    let chosen = [flags, flags + PAGE, flags + 4 * PAGE];
    for page in chosen {
        Hvc.share_flag_page(page).expect("SHARE_FLAG_PAGE");
    }
    assert!(shared_pages().eq(chosen));
    // A whole life of a VM of either kind: nothing else is ever mapped.
    for protected in [false, true] {
        let machine = Machine::new(VmConfig { protected, ..Default::default() });
        let puppet = machine.started(context().largest());
        let mut all = [chosen[0], chosen[1], chosen[2], puppet.flag_page];
        all.sort_unstable();
        assert!(shared_pages().eq(all), "with a vCPU loaded");
        puppet.call(Routine::Status, [0; 3]);
        assert!(shared_pages().eq(all), "with its FP state live");
        puppet.put();
        assert_eq!(ledger::destroy(machine.vm), 0);
        Hvc.unshare_flag_page(puppet.flag_page).expect("it is not in use");
        assert!(shared_pages().eq(chosen));
    }
    Hvc.unshare_flag_page(chosen[1]).expect("it is not in use");
    assert!(shared_pages().eq([chosen[0], chosen[2]]));
    // Unaligned and absurd beginnings.
    assert_eq!(Hvc.next_shared_page(chosen[0] + 1), Ok(Some(chosen[2])));
    assert_eq!(Hvc.next_shared_page(u64::MAX), Ok(None));
    assert_eq!(Hvc.next_shared_page(u64::MAX - 1), Ok(None));
    Ok(())
}

fn splitting_a_block_disturbs_nobody() -> Result<(), Skip> {
    need_cpus(2)?;
    const BLOCK_PAGES: u64 = 512;
    // Whole blocks, so that the first donation splits one that the host has as a block.
    let blocks = ledger::aligned(4 * BLOCK_PAGES, BLOCK_PAGES as usize);
    let stop = AtomicBool::new(false);
    let rounds = [const { AtomicU64::new(0) }; MAX_CPUS];
    workers::on_all(|cpu| {
        if cpu == 0 {
            for block in 0..4 {
                // All others are at it: a round begun after this is seen to end.
                let others = &rounds[1..context().cpus];
                let before: ArrayVec<u64, MAX_CPUS> =
                    others.iter().map(|rounds| rounds.load(Ordering::Relaxed)).collect();
                let seen = timer::wait_until(30, || {
                    others
                        .iter()
                        .zip(&before)
                        .all(|(rounds, before)| rounds.load(Ordering::Relaxed) > before + 1)
                });
                assert!(seen, "the other CPUs stand still");
                let first = blocks + block * BLOCK_PAGES * PAGE;
                let vm = Hvc.vm_create(first, 8, VmConfig::default()).expect("VM_CREATE");
                ledger::enter(vm);
                for n in 1..48 {
                    Hvc.vm_topup(vm, first + n * 8 * PAGE, 1).expect("VM_TOPUP");
                }
                Hvc.vm_destroy(vm).expect("VM_DESTROY");
                for page in each(first, 8).chain((1..48).map(|n| first + n * 8 * PAGE)) {
                    Hvc.vm_reclaim(vm, page).expect("VM_RECLAIM");
                }
            }
            stop.store(true, Ordering::Release);
            return;
        }
        while !stop.load(Ordering::Acquire) {
            for n in 0..4 * BLOCK_PAGES / 8 {
                // Pages 7 of 8 are never donated. An exception here fails the test.
                let pa = blocks + (8 * n + 7) * PAGE + 64 * cpu as u64;
                if n % 64 == 0 {
                    continue;
                }
                // SAFETY: words that only this CPU uses, in pages of the test's.
                unsafe {
                    let word = mmu::linear::<u64>(pa);
                    word.write_volatile(pa ^ 0x5a);
                    assert_eq!(word.read_volatile(), pa ^ 0x5a, "{pa:#x}");
                }
            }
            rounds[cpu].fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// All CPUs fight for the same pages: each donation succeeds on one CPU only.
fn donations_race_on_all_cpus() -> Result<(), Skip> {
    need_cpus(2)?;
    let pages = ledger::take(64);
    let taken = [const { AtomicU64::new(0) }; 8];
    workers::on_all(|_| {
        for _ in 0..8 {
            for (n, owned) in taken.iter().enumerate() {
                let first = pages + 8 * n as u64 * PAGE;
                match Hvc.vm_create(first, 8, VmConfig::default()) {
                    Ok(vm) => {
                        assert_eq!(owned.fetch_add(1, Ordering::SeqCst), 0, "two owners");
                        assert!(probe_read(first).is_err());
                        Hvc.vm_destroy(vm).expect("VM_DESTROY");
                        owned.fetch_sub(1, Ordering::SeqCst);
                        for page in each(first, 8) {
                            Hvc.vm_reclaim(vm, page).expect("VM_RECLAIM");
                        }
                    }
                    Err(error) => assert_eq!(error, Error::NotOwned),
                }
            }
        }
    });
    Ok(())
}
