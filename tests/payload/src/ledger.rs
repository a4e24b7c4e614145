//! Who holds what: pages that tests have taken and VMs they have made. It outlives the test, so that
//! a test which fails half-way, wherever that is, leaves nothing behind.

use arrayvec::ArrayVec;
use core::cmp::Reverse;
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{exception::probe_read, mmu, pages, sync::Lock},
};
use umbra_shared::{
    PAGE_SIZE,
    call::{BLOCK_PAGES, VmConfig, VmHandle},
    error::Error,
};

/// Bytes of a page, for addresses.
pub const PAGE: u64 = PAGE_SIZE as u64;

/// Pages for stage-2 tables that a test's VM begins with.
pub const POOL_PAGES: u64 = 8;

struct Ledger {
    /// `[first, first + count)` pages.
    pages: ArrayVec<(u64, u64), 512>,
    /// And how many vCPUs each has, of those that the puppets' are.
    vms: ArrayVec<(VmHandle, u64), 512>,
}

static LEDGER: Lock<Ledger> =
    Lock::new(Ledger { pages: ArrayVec::new_const(), vms: ArrayVec::new_const() });

/// Takes `count` contiguous pages, the first aligned to `align` pages, zeroed, until the test is over.
pub fn aligned(count: u64, align: usize) -> u64 {
    let first = pages::allocate(count as usize, align).expect("out of pages");
    let entered = LEDGER.lock().pages.try_push((first, count)).is_ok();
    assert!(entered, "the ledger is full");
    // SAFETY: the pages are ours.
    unsafe { mmu::linear::<u8>(first).write_bytes(0, count as usize * PAGE_SIZE) };
    first
}

/// Takes `count` contiguous pages.
pub fn take(count: u64) -> u64 {
    aligned(count, 1)
}

/// Gives pages that [`take`] returned back before the end of the test.
pub fn give_back(first: u64) {
    let mut ledger = LEDGER.lock();
    let at = ledger.pages.iter().position(|&(f, _)| f == first).expect("taken before");
    let (first, count) = ledger.pages.swap_remove(at);
    drop(ledger);
    pages::free(first, count as usize);
}

/// Enters a VM that was made without [`vm`].
pub fn enter(vm: VmHandle) {
    let entered = LEDGER.lock().vms.try_push((vm, 0)).is_ok();
    assert!(entered, "the ledger is full");
}

/// Enters a VM if there is room; else the pages that it is made of say so in the end.
pub fn enter_if_room(vm: VmHandle) {
    let mut ledger = LEDGER.lock();
    if !ledger.vms.iter().any(|&(other, _)| other == vm) {
        let _ = ledger.vms.try_push((vm, 0));
    }
}

/// vCPUs of a VM.
pub fn vcpus(vm: VmHandle) -> u64 {
    LEDGER.lock().vms.iter().find(|(other, _)| *other == vm).map_or(0, |&(_, count)| count)
}

/// It has another one.
pub fn count_vcpu(vm: VmHandle) {
    if let Some((_, count)) = LEDGER.lock().vms.iter_mut().find(|(other, _)| *other == vm) {
        *count += 1;
    }
}

/// Takes all VMs down.
pub fn destroy_all() {
    let vms = core::mem::take(&mut LEDGER.lock().vms);
    for (vm, _) in vms {
        assert_eq!(destroy(vm), 0, "pages of VM {:#x} do not come back", vm.0);
    }
}

/// Creates a VM.
pub fn try_vm(config: VmConfig) -> Result<VmHandle, Error> {
    let first = take(POOL_PAGES);
    match Hvc.vm_create(first, POOL_PAGES, config) {
        Ok(vm) => {
            enter(vm);
            Ok(vm)
        }
        Err(error) => {
            give_back(first);
            Err(error)
        }
    }
}

/// Creates a VM.
pub fn vm(config: VmConfig) -> VmHandle {
    try_vm(config).expect("VM_CREATE")
}

/// Takes a VM down: every page of the ledger that is the VM's is the host's again. Returns how many
/// pages hyp says it still has.
pub fn destroy(vm: VmHandle) -> u64 {
    match Hvc.vm_destroy(vm) {
        Ok(()) | Err(Error::Dying) => {}
        Err(Error::BadVm) => {
            LEDGER.lock().vms.retain(|&mut (other, _)| other != vm);
            return 0;
        }
        Err(error) => panic!("VM_DESTROY: {error}"),
    }
    let all = LEDGER.lock().pages.clone();
    // Blocks last: few VMs have any of their pages, and what isn't the VM's is asked for page by page.
    let ranges = |blocks| {
        all.iter().copied().rev().filter(move |&(_, count)| (count >= BLOCK_PAGES) == blocks)
    };
    let mut left = u64::MAX;
    'all: for (first, count) in ranges(false).chain(ranges(true)) {
        let mut n = 0;
        while n < count {
            match Hvc.vm_reclaim_range(vm, first + n * PAGE, count - n) {
                Ok((0, _)) => {
                    left = 0;
                    break 'all;
                }
                Ok((out, back)) => (left, n) = (out, n + back),
                Err(Error::NotOwned) => n += 1,
                Err(error) => panic!("VM_RECLAIM of {:#x}: {error}", first + n * PAGE),
            }
        }
    }
    let mut ledger = LEDGER.lock();
    ledger.vms.retain(|&mut (other, _)| other != vm);
    left
}

/// The pages of a range.
pub fn each(first: u64, count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(move |n| first + n * PAGE)
}

/// The end of a test: everything back, and proof of it. `free` pages were free before the test.
pub fn settle(free: usize) {
    destroy_all();
    let mut all = core::mem::take(&mut LEDGER.lock().pages);
    all.sort_unstable_by_key(|&(first, _)| Reverse(first));
    let mut lost = None;
    for (first, count) in all {
        for page in each(first, count) {
            // NOT_SHARED is the rule. Of blocks no test has flag-shadow pages.
            if count < BLOCK_PAGES {
                let _ = Hvc.unshare_flag_page(page);
            }
            if probe_read(page).is_err() {
                lost = Some(page);
            }
        }
        if lost.is_none() {
            pages::free(first, count as usize);
        }
    }
    if let Some(page) = lost {
        panic!("page {page:#x} did not come back");
    }
    assert_eq!(Hvc.next_shared_page(0), Ok(None), "a page is still shared with hyp");
    assert_eq!(pages::free_count(), free, "pages free after the test");
}
