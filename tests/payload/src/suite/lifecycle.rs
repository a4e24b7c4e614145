//! VMs and vCPUs: handles, states and limits.

use super::pages::assert_ours;
use crate::{
    context::{context, need_cpus, need_sve},
    ledger::{self, PAGE, each},
    puppet::{BASE, Event, Machine, flag_page},
    runner::Skip,
    tests, workers,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::exception::probe_read,
};
use umbra_shared::{
    call::{
        Function, MAX_VCPUS, MAX_VMS, Start, UntrustedAffinity, UntrustedPa, UntrustedPages,
        VcpuConfig, VcpuIndex, VmConfig, VmHandle,
    },
    error::Error,
    exit::{Reason, RunFlags},
    vcpu::{UntrustedFeatures, VcpuFeatures},
    vl::{Vq, VqSet},
};

tests![
    bad_handles,
    stale_handles,
    bad_vcpus,
    r14_vector_lengths_are_checked,
    vcpu_create_refuses_bad_pages,
    vcpu_create_wants_its_own_flag_page,
    run_and_put_need_a_load,
    run_flags_are_checked,
    one_vcpu_per_cpu,
    one_cpu_per_vcpu,
    destroy_needs_all_vcpus_put,
    a_dying_vm_refuses_everything,
    reclaim_is_for_the_dying,
    tables_run_out_and_are_topped_up,
    vcpus_have_a_limit,
    vms_have_a_limit,
    r15_a_failed_vcpu_does_not_change_its_sibling,
    r16_every_step_fails_once,
    r30_create_and_destroy_many_times,
];

fn config(vm: VmHandle, first: u64, count: u64, flag_page: u64, features: u64) -> VcpuConfig {
    VcpuConfig {
        vm,
        index: VcpuIndex(ledger::vcpus(vm)),
        affinity: UntrustedAffinity(ledger::vcpus(vm)),
        pages: UntrustedPages { start: UntrustedPa(first), count },
        flag_page: UntrustedPa(flag_page),
        features: UntrustedFeatures(features),
        start: Start::At { entry: BASE, argument: 0 },
    }
}

/// Every call that takes a handle, with one that must be refused.
#[track_caller]
fn refused(vm: VmHandle, error: Error) {
    let page = ledger::take(3);
    let (flags, _) = flag_page();
    assert_eq!(Hvc.vm_topup(vm, page, 1), Err(error), "VM_TOPUP");
    assert_eq!(Hvc.vm_map(vm, page, 0x1000_0000), Err(error), "VM_MAP");
    assert_eq!(Hvc.vm_destroy(vm), Err(error), "VM_DESTROY");
    assert_eq!(Hvc.vcpu_load(vm, VcpuIndex(0)), Err(error), "VCPU_LOAD");
    let count = VcpuFeatures::FPSIMD.pages();
    assert_eq!(Hvc.vcpu_create(config(vm, page, count, flags, 0)), Err(error), "VCPU_CREATE");
    assert_ours(page);
    Hvc.unshare_flag_page(flags).expect("it is not in use");
}

fn bad_handles() -> Result<(), Skip> {
    let vm = ledger::vm(VmConfig::default());
    for bad in [0, 1, 0xff, u64::MAX, vm.0 ^ 1, vm.0 ^ 0x80, vm.0 + 0x100, vm.0 | 1 << 63] {
        refused(VmHandle(bad), Error::BadVm);
        assert_eq!(Hvc.vm_reclaim(VmHandle(bad), ledger::take(1)), Err(Error::BadVm));
    }
    Ok(())
}

fn stale_handles() -> Result<(), Skip> {
    let old = ledger::vm(VmConfig::default());
    assert_eq!(ledger::destroy(old), 0);
    refused(old, Error::BadVm);
    let new = ledger::vm(VmConfig::default());
    assert_ne!(old, new);
    refused(old, Error::BadVm);
    assert_eq!(ledger::destroy(new), 0);
    Ok(())
}

fn bad_vcpus() -> Result<(), Skip> {
    let machine = Machine::normal();
    machine.vcpu(None);
    for index in [1, 15, 16, 1 << 32, u64::MAX] {
        assert_eq!(Hvc.vcpu_load(machine.vm, VcpuIndex(index)), Err(Error::BadVcpu), "{index:#x}");
    }
    assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded));
    Ok(())
}

fn r14_vector_lengths_are_checked() -> Result<(), Skip> {
    let machine = Machine::normal();
    let first = ledger::take(4);
    let (flags, _) = flag_page();
    let largest = context().guests.max().map_or(0, |vq| vq.vl_bytes() as u64);
    let bad = if largest == 0 { Error::NoSve } else { Error::BadVl };
    for vl in [8, 17, 24, 257, 512, largest + 16, 0xffff, 0xfff0] {
        assert_eq!(Hvc.vcpu_create(config(machine.vm, first, 4, flags, vl)), Err(bad), "VL {vl}");
    }
    // Not lengths at all: bits that mean nothing.
    for raw in [1 << 33, 1 << 63 | 16, u64::MAX, u64::MAX - 15] {
        let call = config(machine.vm, first, 4, flags, raw);
        assert_eq!(Hvc.vcpu_create(call), Err(Error::InvalidArgument), "{raw:#x}");
    }
    // Multiples of 16 that the CPUs lack.
    for vq in (1..=16).filter_map(Vq::new).filter(|&vq| !context().guests.contains(vq)) {
        let vl = vq.vl_bytes() as u64;
        let call = config(machine.vm, first, VcpuFeatures::sve(Some(vq)).pages(), flags, vl);
        assert_eq!(Hvc.vcpu_create(call), Err(bad), "VL {vl}");
    }
    each(first, 4).for_each(assert_ours);
    assert_eq!(Hvc.unshare_flag_page(flags), Ok(()), "the flag page is not in use");
    // What is good works: no SVE, and every common VL.
    machine.vcpu(None);
    for vq in context().guests.iter().take(2) {
        machine.vcpu(Some(vq));
    }
    Ok(())
}

fn vcpu_create_refuses_bad_pages() -> Result<(), Skip> {
    let machine = Machine::normal();
    let count = VcpuFeatures::FPSIMD.pages();
    let first = ledger::take(count + 1);
    let (flags, _) = flag_page();
    let create = |first, count| Hvc.vcpu_create(config(machine.vm, first, count, flags, 0));
    assert_eq!(create(first, count - 1), Err(Error::TooFewPages));
    let args = [machine.vm.0, first, 0, flags, 0, BASE, 0];
    let (x0, results) = Hvc::raw(Function::VcpuCreate.id(), args);
    assert_eq!((x0, results[0]), (Error::TooFewPages.code() as u64, count));
    for many in [count + 1, 65, 1 << 52, u64::MAX] {
        assert_eq!(create(first, many), Err(Error::InvalidArgument), "{many} pages");
    }
    assert_eq!(create(first + 8, count), Err(Error::Unaligned));
    assert_eq!(create(0x0900_0000, count), Err(Error::NotMemory));
    assert_eq!(create(machine.memory, count), Err(Error::Shared));
    assert_eq!(create(flags, count), Err(Error::Shared));
    let unaligned_entry = VcpuConfig {
        start: Start::At { entry: BASE + 2, argument: 0 },
        ..config(machine.vm, first, count, flags, 0)
    };
    assert_eq!(Hvc.vcpu_create(unaligned_entry), Err(Error::InvalidArgument));
    each(first, count + 1).for_each(assert_ours);
    assert_eq!(create(first, count), Ok(()));
    Ok(())
}

fn vcpu_create_wants_its_own_flag_page() -> Result<(), Skip> {
    let machine = Machine::normal();
    let other = machine.vcpu(None);
    let count = VcpuFeatures::FPSIMD.pages();
    let first = ledger::take(count);
    let plain = ledger::take(1);
    let create = |flags| Hvc.vcpu_create(config(machine.vm, first, count, flags, 0));
    assert_eq!(create(plain), Err(Error::NotShared));
    assert_eq!(create(other.flag_page), Err(Error::Busy));
    assert_eq!(create(machine.memory), Err(Error::NotShared));
    assert_eq!(create(super::pages::hyp_page()), Err(Error::NotOwned));
    assert_eq!(create(plain + 8), Err(Error::Unaligned));
    assert_eq!(create(0x0900_0000), Err(Error::NotMemory));
    // Its own page among those donated: it is shared, so it can't be.
    Hvc.share_flag_page(first).expect("SHARE_FLAG_PAGE");
    assert_eq!(create(first), Err(Error::Shared));
    Hvc.unshare_flag_page(first).expect("it is not in use");
    each(first, count).for_each(assert_ours);
    Ok(())
}

fn run_and_put_need_a_load() -> Result<(), Skip> {
    assert_eq!(Hvc.vcpu_run(RunFlags::empty(), [0; 4]).err(), Some(Error::NotLoaded));
    assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded));
    let puppet = Machine::normal().vcpu(None);
    assert_eq!(Hvc.vcpu_run(RunFlags::empty(), [0; 4]).err(), Some(Error::NotLoaded));
    puppet.load();
    puppet.put();
    assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded));
    Ok(())
}

fn run_flags_are_checked() -> Result<(), Skip> {
    let puppet = Machine::normal().started(None);
    for bad in [1 << 4, 1 << 7, 1 << 13, 1 << 31, 1 << 32, 1 << 48, 1 << 63] {
        let result = puppet.try_enter(RunFlags::from_bits_retain(bad), [0; 4]);
        assert_eq!(result.err(), Some(Error::InvalidArgument), "{bad:#x}");
    }
    // Nothing has run: the HVC is still to be answered.
    assert_eq!(puppet.exec(crate::instruction::NOP, 5), 5);
    Ok(())
}

fn one_vcpu_per_cpu() -> Result<(), Skip> {
    let machine = Machine::normal();
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    a.load();
    for other in [a, b] {
        assert_eq!(Hvc.vcpu_load(machine.vm, other.index), Err(Error::Busy));
    }
    a.start();
    a.put();
    b.load();
    b.start();
    b.put();
    Ok(())
}

fn one_cpu_per_vcpu() -> Result<(), Skip> {
    need_cpus(2)?;
    let puppet = Machine::normal().started(None);
    workers::on(1, || {
        let load = Hvc.vcpu_load(puppet.machine.vm, puppet.index);
        assert_eq!(load, Err(Error::Busy), "on a second CPU");
        assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded), "it is not this CPU's");
    });
    assert_eq!(puppet.exec(crate::instruction::NOP, 1), 1);
    puppet.put();
    workers::on(1, || assert_eq!(puppet.loaded(|p| p.exec(crate::instruction::NOP, 2)), 2));
    Ok(())
}

fn destroy_needs_all_vcpus_put() -> Result<(), Skip> {
    let machine = Machine::normal();
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    b.load();
    assert_eq!(Hvc.vm_destroy(machine.vm), Err(Error::Busy));
    // What runs goes on.
    b.start();
    assert_eq!(b.exec(crate::instruction::NOP, 1), 1);
    assert_eq!(Hvc.vm_destroy(machine.vm), Err(Error::Busy));
    // But nothing new begins, on whatever CPU, so that an end is in sight.
    let last = context().cpus - 1;
    workers::on(last, || {
        let expected = if last == 0 { Error::Busy } else { Error::Dying };
        assert_eq!(Hvc.vcpu_load(machine.vm, a.index), Err(expected));
    });
    let page = ledger::take(1);
    assert_eq!(Hvc.vm_map(machine.vm, page, 0x9000_0000), Err(Error::Dying));
    assert_eq!(Hvc.vm_topup(machine.vm, page, 1), Err(Error::Dying));
    assert_eq!(machine.try_vcpu(None).err(), Some(Error::Dying));
    b.put();
    assert_eq!(Hvc.vcpu_load(machine.vm, b.index), Err(Error::Dying));
    assert_eq!(Hvc.vm_destroy(machine.vm), Ok(()));
    Ok(())
}

fn a_dying_vm_refuses_everything() -> Result<(), Skip> {
    let machine = Machine::normal();
    machine.vcpu(None);
    Hvc.vm_destroy(machine.vm).expect("VM_DESTROY");
    refused(machine.vm, Error::Dying);
    assert_eq!(ledger::destroy(machine.vm), 0);
    refused(machine.vm, Error::BadVm);
    Ok(())
}

fn reclaim_is_for_the_dying() -> Result<(), Skip> {
    let (machine, other) = (Machine::normal(), Machine::normal());
    let free = ledger::take(1);
    assert_eq!(Hvc.vm_reclaim(machine.vm, machine.memory), Err(Error::NotDying));
    Hvc.vm_destroy(machine.vm).expect("VM_DESTROY");
    assert_eq!(Hvc.vm_reclaim(machine.vm, free), Err(Error::NotOwned));
    assert_eq!(Hvc.vm_reclaim(machine.vm, other.memory), Err(Error::NotOwned));
    assert_eq!(Hvc.vm_reclaim(machine.vm, super::pages::hyp_page()), Err(Error::NotOwned));
    assert_eq!(Hvc.vm_reclaim(machine.vm, machine.memory + 1), Err(Error::Unaligned));
    assert_eq!(Hvc.vm_reclaim(machine.vm, 0x0900_0000), Err(Error::NotMemory));
    let left = Hvc.vm_reclaim(machine.vm, machine.memory).expect("VM_RECLAIM");
    assert_eq!(left, crate::puppet::MEMORY_PAGES + ledger::POOL_PAGES - 1);
    assert_eq!(Hvc.vm_reclaim(machine.vm, machine.memory), Err(Error::NotOwned), "twice");
    // The other VM has lost nothing.
    other.started(None);
    Ok(())
}

fn tables_run_out_and_are_topped_up() -> Result<(), Skip> {
    let vm = ledger::vm(VmConfig::default());
    let page = ledger::take(1);
    let mut mapped = 0;
    let refused = loop {
        // Each far from the others, so that each needs tables of its own.
        let next = if mapped == 0 { page } else { ledger::take(1) };
        match Hvc.vm_map(vm, next, mapped << 31) {
            Ok(()) => mapped += 1,
            Err(Error::NoTables) => break next,
            Err(error) => panic!("VM_MAP: {error}"),
        }
        assert!(mapped < 16, "eight pages hold the tables of {mapped} distant pages");
    };
    assert_ours(refused);
    assert_eq!(Hvc.vm_topup(vm, ledger::take(4), 4), Ok(()));
    assert_eq!(Hvc.vm_map(vm, refused, mapped << 31), Ok(()));
    Ok(())
}

fn vcpus_have_a_limit() -> Result<(), Skip> {
    let vm = ledger::vm(VmConfig::default());
    let count = VcpuFeatures::FPSIMD.pages();
    // The last first, and every one with an affinity of its own.
    let make = |index: u64, affinity: u64| {
        let (flags, _) = flag_page();
        let first = ledger::take(count);
        let config = VcpuConfig {
            index: VcpuIndex(index),
            affinity: UntrustedAffinity(affinity),
            ..config(vm, first, count, flags, 0)
        };
        let made = Hvc.vcpu_create(config);
        if made.is_err() {
            assert_ours(first);
            assert_eq!(Hvc.unshare_flag_page(flags), Ok(()));
        }
        made
    };
    let affinity = |index: u64| (index % 16) | ((index / 16) << 8) | 0x5a_0000;
    for index in (0..MAX_VCPUS as u64).rev() {
        assert_eq!(make(index, affinity(index)), Ok(()), "vCPU {index}");
        assert_eq!(make(index, 0), Err(Error::VcpuInUse), "vCPU {index} again");
        assert_eq!(make(index ^ 1, affinity(index)), Err(Error::VcpuInUse), "its affinity");
    }
    for beyond in [MAX_VCPUS as u64, 255, 0xffff] {
        assert_eq!(make(beyond, 0), Err(Error::BadVcpu), "vCPU {beyond}");
        assert_eq!(Hvc.vcpu_load(vm, VcpuIndex(beyond)), Err(Error::BadVcpu));
    }
    Ok(())
}

fn vms_have_a_limit() -> Result<(), Skip> {
    let mut made = 0;
    loop {
        match ledger::try_vm(VmConfig::default()) {
            Ok(_) => made += 1,
            Err(Error::Limit) => break,
            Err(error) => panic!("VM {made}: {error}"),
        }
        assert!(made <= MAX_VMS, "more than there are VMIDs for");
    }
    assert_eq!(made, MAX_VMS);
    Ok(())
}

fn r15_a_failed_vcpu_does_not_change_its_sibling() -> Result<(), Skip> {
    let largest = need_sve()?;
    let machine = Machine::normal();
    let first = machine.started(Some(largest));
    first.fill(7);
    let (flags, _) = flag_page();
    let pages = ledger::take(4);
    for (vl, count) in [(17, 4), (16, 1), (u64::MAX, 4), (0, 1)] {
        assert!(Hvc.vcpu_create(config(machine.vm, pages, count, flags, vl)).is_err());
        assert_eq!(first.rdvl(), largest);
        first.check(7);
    }
    first.put();
    first.loaded(|first| {
        first.check(7);
        assert_eq!(first.set_len(15), largest);
    });
    Ok(())
}

fn r16_every_step_fails_once() -> Result<(), Skip> {
    // What each failed step must leave behind is nothing: asserted here, and by the settling of the
    // books after the test, which finds every page readable and none shared.
    let first = ledger::take(8);
    assert!(Hvc.vm_create(first, 3, VmConfig::default()).is_err());
    assert!(Hvc.vm_create(first + 8, 8, VmConfig::default()).is_err());
    each(first, 8).for_each(assert_ours);
    let vm = Hvc.vm_create(first, 8, VmConfig { protected: true, ..Default::default() });
    let vm = vm.expect("VM_CREATE");
    ledger::enter(vm);
    let memory = ledger::take(2);
    assert!(Hvc.vm_map(vm, memory, 1).is_err());
    assert!(Hvc.vm_map(vm, memory, 1 << 60).is_err());
    each(memory, 2).for_each(assert_ours);
    Hvc.vm_map(vm, memory, BASE).expect("VM_MAP");
    assert!(Hvc.vm_map(vm, memory + PAGE, BASE).is_err());
    assert_ours(memory + PAGE);
    let (flags, _) = flag_page();
    let count = VcpuFeatures::FPSIMD.pages();
    let pages = ledger::take(count);
    for bad in [
        config(vm, pages, 0, flags, 0),
        config(vm, pages + 1, count, flags, 0),
        config(vm, pages, count, memory + PAGE, 0),
        config(vm, memory, count, flags, 0),
        config(vm, pages, count, flags, 17),
        VcpuConfig {
            start: Start::At { entry: 1, argument: 0 },
            ..config(vm, pages, count, flags, 0)
        },
    ] {
        assert!(Hvc.vcpu_create(bad).is_err(), "{bad:?}");
        each(pages, count).for_each(assert_ours);
    }
    Hvc.vcpu_create(config(vm, pages, count, flags, 0)).expect("VCPU_CREATE");
    assert_eq!(Hvc.next_shared_page(0), Ok(Some(flags)));
    assert_eq!(ledger::destroy(vm), 0);
    for page in each(first, 8).chain(each(memory, 2)).chain(each(pages, count)) {
        assert_ours(page);
    }
    assert_eq!(Hvc.unshare_flag_page(flags), Ok(()));
    assert_ours(flags);
    Ok(())
}

fn r30_create_and_destroy_many_times() -> Result<(), Skip> {
    let vqs = context().common;
    let choose = |n: usize| match vqs {
        VqSet::EMPTY => None,
        _ => vqs.iter().nth(n % vqs.iter().count()),
    };
    let (pool, pages) = (ledger::take(4), ledger::take(4));
    let flags = ledger::take(1);
    for n in 0..2000 {
        let protected = n % 2 == 0;
        let vm = Hvc.vm_create(pool, 4, VmConfig { protected, ..Default::default() });
        let vm = vm.expect("VM_CREATE");
        ledger::enter(vm);
        Hvc.share_flag_page(flags).expect("SHARE_FLAG_PAGE");
        let vq = choose(n);
        let count = VcpuFeatures::sve(vq).pages();
        let vl = vq.map_or(0, |vq| vq.vl_bytes() as u64);
        Hvc.vcpu_create(config(vm, pages, count, flags, vl)).expect("VCPU_CREATE");
        let index = VcpuIndex(0);
        if n % 16 == 0 {
            // It runs, and stops at once: there is nothing to fetch.
            if protected {
                Hvc.vm_seal(vm).expect("VM_SEAL");
            }
            Hvc.vcpu_load(vm, index).expect("VCPU_LOAD");
            let exit = Hvc.vcpu_run(RunFlags::empty(), [0; 4]).expect("VCPU_RUN");
            assert!(matches!(exit.info.reason(), Some(Reason::Fault | Reason::Irq)));
            Hvc.vcpu_put().expect("VCPU_PUT");
        }
        Hvc.vm_destroy(vm).expect("VM_DESTROY");
        let mut left = 0;
        for page in each(pages, count).chain(each(pool, 4)) {
            left = Hvc.vm_reclaim(vm, page).expect("VM_RECLAIM");
        }
        assert_eq!(left, 0);
        ledger::destroy(vm);
        Hvc.unshare_flag_page(flags).expect("UNSHARE_FLAG_PAGE");
    }
    assert_eq!(Hvc.next_shared_page(0), Ok(None));
    each(pool, 4).chain(each(pages, 4)).for_each(|page| {
        assert_eq!(probe_read(page), Ok(0));
    });
    // The table of VMs has not filled up either.
    let puppet = Machine::normal().started(context().largest());
    assert!(matches!(puppet.begin(crate::puppet::Routine::Status, [0; 3]), Event::Done(_)));
    Ok(())
}
