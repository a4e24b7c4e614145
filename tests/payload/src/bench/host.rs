//! Hypercalls, as their caller sees them.

use super::{Measured, Plan, WARM_UP, ranges, row, timed, umbra_bench_null};
use crate::ledger::{self, PAGE, POOL_PAGES};
use crate::puppet::vcpu_config;
use umbra_host::{
    emit,
    hypercall::{Hvc, Hypervisor},
};
use umbra_shared::{
    call::{Function, MAX_PAGES_PER_CALL, Start, VcpuConfig, VmConfig, VmHandle},
    vcpu::VcpuFeatures,
    vl::Vq,
};

/// Guest memory that is given and taken back.
const MEMORY: u64 = 32;
/// Where.
const IPA: u64 = 0x8000_0000;
/// VMs that are made and taken down.
const VMS: u64 = 8;

pub fn measure(plan: Plan) {
    null(plan.iterations);
    longest();
    ranges::measure();
    if plan.short {
        return;
    }
    flag_page(plan.iterations);
    for vm in [VmConfig::normal(), VmConfig::protected()] {
        memory(vm);
    }
    vms();
    vcpus(plan.iterations);
}

fn null(iterations: u64) {
    // SAFETY: VERSION changes x0-x8 at most.
    let call = |n| unsafe { umbra_bench_null(Function::Version.id(), n) };
    call(WARM_UP);
    emit!("@bench name=null_hypercall {}", row(iterations, || call(iterations)));
}

/// The longest that hyp works with interrupts masked: a call with as many pages as one may have, which are unmapped,
/// wiped and cleaned one by one; and the end of a VM.
fn longest() {
    let first = ledger::take(2 * MAX_PAGES_PER_CALL);
    let second = first + MAX_PAGES_PER_CALL * PAGE;
    let mut vm = VmHandle(0);
    let create = repeat(1, |_| {
        let created = Hvc.vm_create(first, MAX_PAGES_PER_CALL, VmConfig::protected());
        vm = created.expect("VM_CREATE");
    });
    ledger::enter(vm);
    emit!("@bench name=masked_vm_create vm=protected {create}");
    let topup = repeat(1, |_| Hvc.vm_topup(vm, second, MAX_PAGES_PER_CALL).expect("VM_TOPUP"));
    emit!("@bench name=masked_vm_topup vm=protected {topup}");
    let destroy = repeat(1, |_| Hvc.vm_destroy(vm).expect("VM_DESTROY"));
    emit!("@bench name=masked_vm_destroy vm=protected {destroy}");
    for page in ledger::each(first, 2 * MAX_PAGES_PER_CALL) {
        Hvc.vm_reclaim(vm, page).expect("VM_RECLAIM");
    }
    ledger::destroy_all();
    ledger::give_back(first);
}

/// Does something `iterations` times.
pub fn repeat(iterations: u64, mut f: impl FnMut(u64)) -> Measured {
    row(iterations, || timed(|| (0..iterations).for_each(&mut f)))
}

fn flag_page(iterations: u64) {
    let page = ledger::take(1);
    let once = |_| {
        Hvc.share_flag_page(page).expect("SHARE_FLAG_PAGE");
        Hvc.unshare_flag_page(page).expect("UNSHARE_FLAG_PAGE");
    };
    once(0);
    emit!("@bench name=share_unshare {}", repeat(iterations, once));
    ledger::give_back(page);
}

pub fn kind(config: VmConfig) -> &'static str {
    if config.protected { "protected" } else { "normal" }
}

/// Guest memory: shared with a normal VM, donated to a protected one.
fn memory(config: VmConfig) {
    let kind = kind(config);
    let pages = ledger::take(MEMORY);
    let vm = ledger::vm(config);
    let ipa = |n: u64| IPA + n * PAGE;
    let map = |n: u64| Hvc.vm_map(vm, pages + n * PAGE, ipa(n)).expect("VM_MAP");
    // The first page builds the tables.
    map(0);
    let name = if config.protected { "donate_page" } else { "map_page" };
    emit!("@bench name={name} vm={kind} {}", repeat(MEMORY - 1, |n| map(n + 1)));
    if !config.protected {
        let unmap = |n: u64| _ = Hvc.vm_unmap(vm, ipa(n)).expect("VM_UNMAP");
        emit!("@bench name=unmap_page vm={kind} {}", repeat(MEMORY - 1, unmap));
    }
    Hvc.vm_destroy(vm).expect("VM_DESTROY");
    if config.protected {
        let reclaim = |n: u64| _ = Hvc.vm_reclaim(vm, pages + n * PAGE).expect("VM_RECLAIM");
        emit!("@bench name=reclaim_page vm={kind} {}", repeat(MEMORY, reclaim));
    }
    assert_eq!(ledger::destroy(vm), 0);
    ledger::give_back(pages);
}

fn vms() {
    let pools = ledger::take(POOL_PAGES * VMS);
    let pool = |n: u64| pools + n * POOL_PAGES * PAGE;
    let mut handles = [VmHandle(0); VMS as usize];
    let create = repeat(VMS, |n| {
        handles[n as usize] =
            Hvc.vm_create(pool(n), POOL_PAGES, VmConfig::normal()).expect("VM_CREATE");
    });
    handles.iter().for_each(|&vm| ledger::enter(vm));
    emit!("@bench name=vm_create vm=normal pages={POOL_PAGES} {create}");
    let destroy = repeat(VMS, |n| {
        let vm = handles[n as usize];
        Hvc.vm_destroy(vm).expect("VM_DESTROY");
        for page in ledger::each(pool(n), POOL_PAGES) {
            Hvc.vm_reclaim(vm, page).expect("VM_RECLAIM");
        }
    });
    emit!("@bench name=vm_destroy vm=normal pages={POOL_PAGES} {destroy}");
    ledger::destroy_all();
    ledger::give_back(pools);
}

fn vcpus(iterations: u64) {
    let lengths = [None].into_iter().chain(super::guest::lengths().map(Some));
    for vq in lengths {
        let vm = ledger::vm(VmConfig::normal());
        let (mut config, vl) = (vcpu(vm, vq), vq.map_or(0, Vq::vl_bytes));
        let index = config.index;
        let create = repeat(1, |_| Hvc.vcpu_create(config).expect("VCPU_CREATE"));
        ledger::count_vcpu(vm);
        emit!("@bench name=vcpu_create vm=normal vl={vl} pages={} {create}", config.pages.count);
        let once = |_| {
            Hvc.vcpu_load(vm, index).expect("VCPU_LOAD");
            Hvc.vcpu_put().expect("VCPU_PUT");
        };
        once(0);
        emit!("@bench name=load_put vm=normal vl={vl} {}", repeat(iterations, once));
        // A sibling in between: the TLB may hold what the other left of the same addresses.
        config = vcpu(vm, vq);
        Hvc.vcpu_create(config).expect("VCPU_CREATE");
        let sibling = config.index;
        let siblings = |n: u64| {
            let index = if n.is_multiple_of(2) { index } else { sibling };
            Hvc.vcpu_load(vm, index).expect("VCPU_LOAD");
            Hvc.vcpu_put().expect("VCPU_PUT");
        };
        emit!("@bench name=load_put_siblings vm=normal vl={vl} {}", repeat(iterations, siblings));
        ledger::destroy_all();
    }
}

/// A vCPU that never runs.
pub fn vcpu(vm: VmHandle, vq: Option<Vq>) -> VcpuConfig {
    vcpu_config(vm, VcpuFeatures::sve(vq), Start::At { entry: 0, argument: 0 })
}
