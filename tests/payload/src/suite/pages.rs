//! What hyp refuses to do with pages: each bad page its own error, and nothing changed.

use crate::{
    context::context,
    ledger::{self, PAGE, each},
    puppet::{Machine, flag_page},
    runner::Skip,
    tests,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::exception::{probe_read, probe_write},
};
use umbra_shared::{
    call::{MAX_PAGES_PER_CALL, Policy, VM_PAGES, VmConfig},
    error::Error,
};

tests![
    share_refuses_bad_pages,
    share_and_unshare_twice,
    flag_page_in_use_is_busy,
    vm_create_refuses_bad_pages,
    vm_create_refuses_bad_counts,
    vm_create_refuses_reserved_configuration,
    topup_refuses_bad_pages,
    map_refuses_bad_pages,
    map_refuses_bad_addresses,
    double_donation,
    a_refused_range_is_not_half_taken,
    a_call_after_a_refused_one_works,
];

/// A device, no memory.
pub const MMIO: u64 = 0x0900_0000;

/// The page is the host's alone: it can read and write it, share it and get it back.
#[track_caller]
pub fn assert_ours(page: u64) {
    // SAFETY: a page of the test's.
    assert_eq!(unsafe { probe_write(page, 0x1dea) }, Ok(()), "page {page:#x}");
    assert_eq!(probe_read(page), Ok(0x1dea), "page {page:#x}");
    assert_eq!(Hvc.share_flag_page(page), Ok(()), "page {page:#x}");
    assert_eq!(Hvc.unshare_flag_page(page), Ok(()), "page {page:#x}");
}

/// A page inside hyp's carve-out: what lies between the banks of RAM that the host sees or is
/// reserved, at 2 MiB around the host's own image, and refuses to be read.
pub fn hyp_page() -> u64 {
    let machine = context().machine;
    let image = umbra_host::kernel::mmu::image().start;
    let candidates = (1..64).flat_map(|n| [image.wrapping_sub(n << 20), image + (n << 20)]);
    let mut hidden = candidates.filter(|pa| {
        let outside = machine.ram.iter().all(|ram| !ram.contains(pa));
        let reserved = machine.reserved.iter().any(|range| range.contains(pa));
        outside || reserved
    });
    hidden
        .find(|&pa| Hvc.share_flag_page(pa & !(PAGE - 1)) == Err(Error::NotOwned))
        .map(|pa| pa & !(PAGE - 1))
        .expect("hyp lies near the host's image")
}

/// Addresses that are no pages of RAM, and the error for each.
fn bad_addresses() -> [(u64, Error); 8] {
    let ram = context().machine.ram.iter().map(|r| r.end).max().unwrap_or(0);
    let page = ledger::take(1);
    [
        (page + 1, Error::Unaligned),
        (page + 8, Error::Unaligned),
        (u64::MAX, Error::Unaligned),
        (MMIO, Error::NotMemory),
        (ram.next_multiple_of(1 << 30) + (64 << 30), Error::NotMemory),
        (1 << 52, Error::NotMemory),
        (!0xfff, Error::NotMemory),
        (hyp_page(), Error::NotOwned),
    ]
}

fn share_refuses_bad_pages() -> Result<(), Skip> {
    for (pa, error) in bad_addresses() {
        assert_eq!(Hvc.share_flag_page(pa), Err(error), "{pa:#x}");
        assert_eq!(Hvc.unshare_flag_page(pa), Err(error), "{pa:#x}");
    }
    assert_eq!(Hvc.next_shared_page(0), Ok(None));
    Ok(())
}

fn share_and_unshare_twice() -> Result<(), Skip> {
    let page = ledger::take(1);
    assert_eq!(Hvc.unshare_flag_page(page), Err(Error::NotShared));
    assert_eq!(Hvc.share_flag_page(page), Ok(()));
    assert_eq!(Hvc.share_flag_page(page), Err(Error::Shared));
    assert_eq!(Hvc.next_shared_page(0), Ok(Some(page)));
    assert_eq!(Hvc.unshare_flag_page(page), Ok(()));
    assert_eq!(Hvc.unshare_flag_page(page), Err(Error::NotShared));
    assert_ours(page);
    Ok(())
}

fn flag_page_in_use_is_busy() -> Result<(), Skip> {
    let machine = Machine::normal();
    let puppet = machine.vcpu(None);
    assert_eq!(Hvc.unshare_flag_page(puppet.flag_page), Err(Error::Busy));
    assert_eq!(Hvc.share_flag_page(puppet.flag_page), Err(Error::Shared));
    // As a page for anything else it is refused, too.
    assert_eq!(Hvc.vm_map(machine.vm, puppet.flag_page, 0), Err(Error::Shared));
    assert_eq!(ledger::destroy(machine.vm), 0);
    assert_eq!(Hvc.unshare_flag_page(puppet.flag_page), Ok(()));
    Ok(())
}

fn create(first: u64, count: u64) -> Result<(), Error> {
    Hvc.vm_create(first, count, VmConfig::default()).map(ledger::enter)
}

fn vm_create_refuses_bad_pages() -> Result<(), Skip> {
    for (pa, error) in bad_addresses() {
        assert_eq!(create(pa, VM_PAGES), Err(error), "{pa:#x}");
    }
    let (shared, _) = flag_page();
    assert_eq!(create(shared, VM_PAGES), Err(Error::Shared));
    Ok(())
}

fn vm_create_refuses_bad_counts() -> Result<(), Skip> {
    let first = ledger::take(MAX_PAGES_PER_CALL + 1);
    for count in 0..VM_PAGES {
        assert_eq!(create(first, count), Err(Error::TooFewPages), "{count} pages");
    }
    // x1 says how many it takes.
    let (x0, results) =
        Hvc::raw(umbra_shared::call::Function::VmCreate.id(), [first, 1, 0, 0, 0, 0, 0]);
    assert_eq!((x0, results[0]), (Error::TooFewPages.code() as u64, VM_PAGES));
    for count in [MAX_PAGES_PER_CALL + 1, 1 << 40, 1 << 52, u64::MAX, u64::MAX / PAGE + 2] {
        assert_eq!(create(first, count), Err(Error::InvalidArgument), "{count} pages");
    }
    // A range that begins in RAM and ends behind it. Where RAM ends may be hyp's.
    let end = context().machine.ram.iter().map(|r| r.end).max().unwrap_or(0);
    let blocks = (0..256).map(|n| end + n * (2 << 20));
    let mut beyond = blocks.filter(|&pa| Hvc.share_flag_page(pa) == Err(Error::NotMemory));
    let end = beyond.next().expect("RAM ends somewhere");
    assert_eq!(create(end - 2 * PAGE, 8), Err(Error::NotMemory));
    for page in each(first, MAX_PAGES_PER_CALL + 1) {
        assert_ours(page);
    }
    Ok(())
}

fn vm_create_refuses_reserved_configuration() -> Result<(), Skip> {
    let first = ledger::take(8);
    let function = umbra_shared::call::Function::VmCreate.id();
    for config in [3, 0xf, 0x20, 0x40, 0x70, 0x13, 1 << 8, 1 << 32, 1 << 63, u64::MAX] {
        let (x0, _) = Hvc::raw(function, [first, 8, config, 0, 0, 0, 0]);
        assert_eq!(x0, Error::InvalidArgument.code() as u64, "{config:#x}");
    }
    assert_ours(first);
    for policy in [Policy::Lazy, Policy::Eager, Policy::Scrub] {
        for protected in [false, true] {
            let vm = ledger::vm(VmConfig { policy, protected, ..VmConfig::normal() });
            assert_eq!(ledger::destroy(vm), 0);
        }
    }
    Ok(())
}

fn topup_refuses_bad_pages() -> Result<(), Skip> {
    let vm = ledger::vm(VmConfig::default());
    for (pa, error) in bad_addresses() {
        assert_eq!(Hvc.vm_topup(vm, pa, 1), Err(error), "{pa:#x}");
    }
    let first = ledger::take(2);
    assert_eq!(Hvc.vm_topup(vm, first, u64::MAX), Err(Error::InvalidArgument));
    assert_eq!(Hvc.vm_topup(vm, first, 0), Err(Error::NotMemory));
    assert_ours(first);
    assert_eq!(Hvc.vm_topup(vm, first, 2), Ok(()));
    assert_eq!(Hvc.vm_topup(vm, first, 2), Err(Error::NotOwned));
    Ok(())
}

fn map_refuses_bad_pages() -> Result<(), Skip> {
    for protected in [false, true] {
        let vm = ledger::vm(VmConfig { protected, ..Default::default() });
        for (pa, error) in bad_addresses() {
            assert_eq!(Hvc.vm_map(vm, pa, 0), Err(error), "{pa:#x}");
        }
        // The guest address is as free as before.
        assert_eq!(Hvc.vm_map(vm, ledger::take(1), 0), Ok(()));
    }
    Ok(())
}

fn map_refuses_bad_addresses() -> Result<(), Skip> {
    let vm = ledger::vm(VmConfig::default());
    let (first, second) = (ledger::take(1), ledger::take(1));
    for ipa in [1, 0xfff, PAGE + 8, u64::MAX] {
        assert_eq!(Hvc.vm_map(vm, first, ipa), Err(Error::Unaligned), "{ipa:#x}");
    }
    for ipa in [1 << 48, 1 << 52, 1 << 63, !0xfff] {
        assert_eq!(Hvc.vm_map(vm, first, ipa), Err(Error::BadIpa), "{ipa:#x}");
    }
    assert_ours(first);
    assert_eq!(Hvc.vm_map(vm, first, 0x8000_0000), Ok(()));
    assert_eq!(Hvc.vm_map(vm, second, 0x8000_0000), Err(Error::IpaInUse));
    assert_ours(second);
    assert_eq!(Hvc.vm_map(vm, second, 0x8000_1000), Ok(()));
    Ok(())
}

fn double_donation() -> Result<(), Skip> {
    let (normal, protected) = (
        ledger::vm(VmConfig::default()),
        ledger::vm(VmConfig { protected: true, ..Default::default() }),
    );
    let (shared, given, table) = (ledger::take(1), ledger::take(1), ledger::take(8));
    assert_eq!(Hvc.vm_map(normal, shared, 0), Ok(()));
    assert_eq!(Hvc.vm_map(protected, given, 0), Ok(()));
    assert_eq!(Hvc.vm_topup(normal, table, 8), Ok(()));
    for (page, error) in
        [(shared, Error::Shared), (given, Error::NotOwned), (table, Error::NotOwned)]
    {
        assert_eq!(Hvc.vm_map(normal, page, PAGE), Err(error));
        assert_eq!(Hvc.vm_map(protected, page, PAGE), Err(error));
        assert_eq!(Hvc.vm_topup(protected, page, 1), Err(error));
        assert_eq!(create(page, VM_PAGES), Err(error));
        assert_eq!(Hvc.share_flag_page(page), Err(error));
    }
    Ok(())
}

fn a_refused_range_is_not_half_taken() -> Result<(), Skip> {
    let first = ledger::take(8);
    let last = first + 7 * PAGE;
    Hvc.share_flag_page(last).expect("SHARE_FLAG_PAGE");
    assert_eq!(create(first, 8), Err(Error::Shared));
    for page in each(first, 7) {
        assert_ours(page);
    }
    assert_eq!(Hvc.unshare_flag_page(last), Ok(()));
    assert_eq!(create(first, 8), Ok(()));
    Ok(())
}

fn a_call_after_a_refused_one_works() -> Result<(), Skip> {
    for _ in 0..3 {
        let first = ledger::take(VM_PAGES);
        assert_eq!(create(first + 1, VM_PAGES), Err(Error::Unaligned));
        assert_eq!(create(first, VM_PAGES - 1), Err(Error::TooFewPages));
        assert_eq!(create(first, VM_PAGES), Ok(()));
    }
    Ok(())
}
