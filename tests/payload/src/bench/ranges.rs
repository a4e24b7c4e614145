//! Guest memory in ranges of 2 MiB: what a page costs, its caller included, and how long hyp works on a range before it
//! looks whether an interrupt waits.

use super::{
    host::{kind, repeat, vcpu},
    row, timed,
};
use crate::{
    context::context,
    host,
    ledger::{self, PAGE},
    puppet::{Event, Machine, PROTECTED, Routine},
};
use core::cell::Cell;
use umbra_host::{
    emit,
    hypercall::{Exit, Hvc, Hypervisor, Results},
    kernel::{pages, supply::Pages},
    vm::{Line, Vm},
};
use umbra_shared::{
    call::{BLOCK_PAGES, Call, VmConfig, VmHandle},
    error::Error,
    exit::RunFlags,
    interrupt::{Entry, States},
    rsi::{ACCEPT, PAGES_AT_A_TIME, Ripas, RsiFunction, SUCCESS},
};

/// Where guests have the block.
const IPA: u64 = 0x8000_0000;
/// Pages of the guest that is built whole: 512 MiB.
const LARGE: u64 = 512 << 8;

/// Does `f` with what is left of a block's pages, until it says that none is.
fn all(mut f: impl FnMut(u64, u64) -> Result<u64, Error>) {
    let mut done = 0;
    while done < BLOCK_PAGES {
        done += f(done * PAGE, BLOCK_PAGES - done).expect("a range's call");
    }
}

/// A VM that gets its memory empty, if it is a protected one.
fn vm(config: VmConfig) -> VmHandle {
    let vm = ledger::vm(config);
    if config.protected {
        Hvc.vcpu_create(vcpu(vm, None)).expect("VCPU_CREATE");
        Hvc.vm_seal(vm).expect("VM_SEAL");
    }
    vm
}

fn map(vm: VmHandle, memory: u64) {
    all(|at, count| Hvc.vm_map_range(vm, memory + at, count, IPA + at));
}

pub fn measure() {
    for config in [VmConfig::normal(), VmConfig::protected()] {
        let kind = kind(config);
        let memory = ledger::aligned(BLOCK_PAGES, BLOCK_PAGES as usize);
        let handle = vm(config);
        let each = |f: &dyn Fn()| row(BLOCK_PAGES, || timed(f));
        emit!("@bench name=map_range vm={kind} {}", each(&|| map(handle, memory)));
        if !config.protected {
            let unmap = || all(|at, count| Ok(Hvc.vm_unmap_range(handle, IPA + at, count)?.1));
            emit!("@bench name=unmap_range vm={kind} {}", each(&unmap));
            map(handle, memory);
        }
        Hvc.vm_destroy(handle).expect("VM_DESTROY");
        let reclaim = || all(|at, count| Ok(Hvc.vm_reclaim_range(handle, memory + at, count)?.1));
        emit!("@bench name=reclaim_range vm={kind} {}", each(&reclaim));
        ledger::destroy_all();
        ledger::give_back(memory);
        masked(config);
    }
    masked_mixed();
    measured();
    masked_ripas();
}

/// A guest that says EMPTY of pages in the middle of a block, as many as a call does, and RAM of what is before and behind them.
/// With what it takes the puppet to call and to come back.
fn masked_ripas() {
    let guest = Machine::new(PROTECTED).started(None);
    let vm = guest.machine.vm;
    Hvc.vm_topup(vm, ledger::take(8), 8).expect("VM_TOPUP");
    let memory = ledger::aligned(BLOCK_PAGES, BLOCK_PAGES as usize);
    let at = IPA + 2 * BLOCK_PAGES * PAGE;
    let end = at + BLOCK_PAGES * PAGE;
    let set = |from: u64, to: u64, ripas: Ripas| {
        let args = [from, to, ripas as u64];
        match guest.smccc(Routine::Smc, RsiFunction::IpaStateSet.id(), args) {
            Event::Done([SUCCESS, done, ACCEPT, ..]) => done,
            event => panic!("IPA_STATE_SET: {event:x?}"),
        }
    };
    set(at, end, Ripas::Ram);
    all(|offset, count| Hvc.vm_map_range(vm, memory + offset, count, at + offset));
    let middle = at + BLOCK_PAGES / 2 * PAGE;
    let empty = repeat(1, |_| {
        assert_eq!(set(middle, end, Ripas::Empty), middle + PAGES_AT_A_TIME * PAGE);
    });
    emit!("@bench name=masked_ipa_state_set vm=protected {empty}");
    let ram = repeat(1, |_| assert_eq!(set(at, middle, Ripas::Ram), middle));
    emit!("@bench name=masked_ipa_state_set_ram vm=protected {ram}");
    // Looked at to its end, and nothing is found.
    let from = middle + PAGES_AT_A_TIME * PAGE;
    let kept = repeat(1, |_| assert_eq!(set(from, end, Ripas::Ram), end));
    emit!("@bench name=masked_ipa_state_set_kept vm=protected {kept}");
    guest.put();
    ledger::destroy_all();
    ledger::give_back(memory);
}

/// A page of a VM that is built, with an interrupt that waits: it is measured, and no other is.
fn measured() {
    let memory = ledger::take(2);
    let handle = ledger::vm(VmConfig::protected());
    let daif = host::pend_interrupt();
    let map = repeat(1, |_| {
        assert_eq!(Hvc.vm_map_range(handle, memory, 2, IPA), Ok(1), "VM_MAP");
    });
    emit!("@bench name=measured_vm_map vm=protected {map}");
    host::release_interrupt(daif);
    ledger::destroy_all();
}

/// With an interrupt that waits, and where no block helps: pages that lie across two of the host's.
fn masked(config: VmConfig) {
    let kind = kind(config);
    let memory = ledger::aligned(2 * BLOCK_PAGES, BLOCK_PAGES as usize);
    let first = memory + BLOCK_PAGES / 2 * PAGE;
    let handle = vm(config);
    let daif = host::pend_interrupt();
    let mut done = 0;
    let map = repeat(1, |_| {
        done = Hvc.vm_map_range(handle, first, BLOCK_PAGES, IPA).expect("VM_MAP");
    });
    emit!("@bench name=masked_vm_map vm={kind} {map}");
    // Less than all of it only where there is something to do with each page.
    assert_eq!(done < BLOCK_PAGES, config.protected, "{done} pages");
    while done < BLOCK_PAGES {
        let at = done * PAGE;
        let count = BLOCK_PAGES - done;
        done += Hvc.vm_map_range(handle, first + at, count, IPA + at).expect("VM_MAP");
    }
    if !config.protected {
        let unmap = repeat(1, |_| {
            let all = Hvc.vm_unmap_range(handle, IPA, BLOCK_PAGES);
            assert_eq!(all, Ok((first, BLOCK_PAGES)), "VM_UNMAP");
        });
        emit!("@bench name=masked_vm_unmap vm={kind} {unmap}");
    }
    Hvc.vm_destroy(handle).expect("VM_DESTROY");
    if config.protected {
        // All but the last stretch of what lies in a block of the host's, the rest of which it has.
        const BEFORE: u64 = BLOCK_PAGES / 2 - 64;
        let mut done = 0;
        while done < BEFORE {
            let at = first + done * PAGE;
            done += Hvc.vm_reclaim_range(handle, at, BEFORE - done).expect("VM_RECLAIM").1;
        }
        let reclaim = repeat(1, |_| {
            let back = Hvc.vm_reclaim_range(handle, first + done * PAGE, BLOCK_PAGES);
            assert_eq!(back.expect("VM_RECLAIM").1, 64, "the block is whole");
        });
        emit!("@bench name=masked_vm_reclaim vm={kind} {reclaim}");
    }
    host::release_interrupt(daif);
    ledger::destroy_all();
    ledger::give_back(memory);
}

/// Reclaim where no two pages that lie side by side have been the same: a guest's and its tables'.
fn masked_mixed() {
    const PAGES: u64 = 64;
    let memory = ledger::aligned(BLOCK_PAGES, BLOCK_PAGES as usize);
    let vm = ledger::vm(VmConfig::protected());
    for at in (0..PAGES).step_by(2).map(|n| n * PAGE) {
        Hvc.vm_map(vm, memory + at, IPA + at).expect("VM_MAP");
        Hvc.vm_topup(vm, memory + at + PAGE, 1).expect("VM_TOPUP");
    }
    Hvc.vm_destroy(vm).expect("VM_DESTROY");
    let daif = host::pend_interrupt();
    let mut done = 0;
    let reclaim = repeat(1, |_| {
        done = Hvc.vm_reclaim_range(vm, memory, PAGES).expect("VM_RECLAIM").1;
    });
    host::release_interrupt(daif);
    emit!("@bench name=masked_vm_reclaim_mixed vm=protected {reclaim}");
    assert_eq!(done, PAGES / 2, "each counts twice");
    for page in ledger::each(memory, PAGES).skip(done as usize) {
        Hvc.vm_reclaim(vm, page).expect("VM_RECLAIM");
    }
    ledger::destroy_all();
    ledger::give_back(memory);
}

/// Hyp, and how often it was called.
struct Counting(Cell<u64>);

impl Hypervisor for Counting {
    fn call(&self, call: &Call) -> Result<Results, Error> {
        self.0.set(self.0.get() + 1);
        Hvc.call(call)
    }

    fn vcpu_run(&self, flags: RunFlags, answer: [u64; 4]) -> Result<Exit, Error> {
        Hvc.vcpu_run(flags, answer)
    }

    fn vcpu_run_with(
        &self,
        flags: RunFlags,
        answer: [u64; 4],
        entries: &[Entry],
    ) -> Result<(Exit, States), Error> {
        Hvc.vcpu_run_with(flags, answer, entries)
    }
}

/// A guest of 512 MiB, by the host's library, from VM_CREATE to where it could run: how many calls it takes.
pub fn build() {
    let first = pages::allocate(LARGE as usize, BLOCK_PAGES as usize).expect("512 MiB");
    let hyp = Counting(Cell::new(0));
    let mut vm = None;
    let built = row(1, || {
        timed(|| {
            let lines = [Line::FREE; 8];
            let config = VmConfig::normal();
            let made = Vm::create(lines, &hyp, &mut Pages, config).expect("VM_CREATE");
            let made = vm.insert(made);
            made.map(&hyp, &mut Pages, first, LARGE, IPA).expect("VM_MAP");
        })
    });
    let built = super::Measured { iterations: hyp.0.get(), ..built };
    emit!("@bench name=build_512_mib vm=normal cpus={} {built}", context().cpus);
    if let Some(Err(failure)) = vm.map(|vm| vm.destroy(&hyp, &mut Pages, [])) {
        panic!("VM_DESTROY: {}", failure.error);
    }
}
