//! Memory that the device tree reserves is somebody's: firmware's, a driver's. The host may use it as far
//! as the tree lets it, but can give it to nobody; hyp takes none of it for itself, and leaves alone what
//! is there.
//!
//! On the machine whose tree has everything ([`umbra_shared::firmware::ODD_RESERVED`]).

use super::pages::hyp_page;
use crate::{
    context::{Counters, context},
    ledger::{self, PAGE, each},
    puppet::BASE,
    runner::Skip,
    tests, window,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    call::{
        Counter, Policy, Start, UntrustedAffinity, UntrustedPa, UntrustedPages, VM_PAGES,
        VcpuConfig, VcpuIndex, VmConfig,
    },
    error::Error,
    firmware::{ODD_CUT, ODD_DEBUG, ODD_DTB, ODD_INITRD, ODD_NO_DEBUG, ODD_RESERVED, odd_content},
    vcpu::VcpuFeatures,
};

tests![
    reserved_memory_is_nobodys_to_give,
    a_range_that_touches_reserved_memory_is_refused,
    what_lies_beside_it_is_the_hosts,
    hyp_takes_no_reserved_memory,
    reserved_memory_keeps_its_content,
    r45_hyp_lies_over_nothing_that_the_loader_left,
    attack_a_cpu_halted_through_its_debug_registers,
    all_cpus_and_both_memories_are_there,
];

fn need_odd_tree() -> Result<(), Skip> {
    match context().machine.argument("tree") {
        Some("odd") => Ok(()),
        _ => Err(Skip("nothing is reserved")),
    }
}

/// The pages that a range touches.
fn pages((start, end): (u64, u64)) -> impl Iterator<Item = u64> {
    let first = start & !(PAGE - 1);
    each(first, (end - first).div_ceil(PAGE))
}

fn reserved_memory_is_nobodys_to_give() -> Result<(), Skip> {
    need_odd_tree()?;
    let vms = [false, true].map(|protected| {
        ledger::vm(VmConfig { policy: Policy::Lazy, protected, ..VmConfig::normal() })
    });
    for page in ODD_RESERVED.into_iter().flat_map(pages) {
        assert_eq!(Hvc.share_flag_page(page), Err(Error::NotMemory), "share {page:#x}");
        assert_eq!(Hvc.unshare_flag_page(page), Err(Error::NotOwned), "unshare {page:#x}");
        for vm in vms {
            assert_eq!(Hvc.vm_map(vm, page, BASE), Err(Error::NotMemory), "map {page:#x}");
            assert_eq!(Hvc.vm_topup(vm, page, 1), Err(Error::NotMemory), "top up {page:#x}");
        }
    }
    Ok(())
}

/// Ranges that begin before it, end behind it, or lie in it, for whatever takes ranges.
fn a_range_that_touches_reserved_memory_is_refused() -> Result<(), Skip> {
    need_odd_tree()?;
    let vm = ledger::vm(VmConfig::default());
    let (flags, _) = crate::puppet::flag_page();
    let features = VcpuFeatures::sve(context().largest());
    for (start, end) in ODD_RESERVED {
        let (first, last) = (start & !(PAGE - 1), (end - 1) & !(PAGE - 1));
        for page in [first - PAGE * (VM_PAGES - 1), first - PAGE, first, last] {
            // What is no memory of this bank at all is another error.
            let touches = |count: u64| page < end && page + count * PAGE > start;
            let create = Hvc.vm_create(page, VM_PAGES, VmConfig::default());
            assert!(touches(VM_PAGES) && create.is_err(), "a VM of {page:#x}: {create:?}");
            let count = features.pages();
            let config = VcpuConfig {
                vm,
                index: VcpuIndex(0),
                affinity: UntrustedAffinity(0),
                pages: UntrustedPages { start: UntrustedPa(page), count },
                flag_page: UntrustedPa(flags),
                features: features.into(),
                start: Start::At { entry: BASE, argument: 0 },
            };
            let create = Hvc.vcpu_create(config);
            assert!(!touches(count) || create.is_err(), "a vCPU of {page:#x}: {create:?}");
        }
    }
    Ok(())
}

fn what_lies_beside_it_is_the_hosts() -> Result<(), Skip> {
    need_odd_tree()?;
    let ours = |page: u64| {
        // The kernel may use it at any moment, so it is not written.
        Hvc.share_flag_page(page).and_then(|()| Hvc.unshare_flag_page(page))
    };
    let mut beside = 0;
    for (start, end) in ODD_RESERVED {
        for page in [(start & !(PAGE - 1)) - PAGE, end.next_multiple_of(PAGE)] {
            let reserved = ODD_RESERVED.into_iter().any(|range| pages(range).any(|p| p == page));
            let ram = context().machine.ram.iter().any(|ram| ram.contains(&page));
            if ram && !reserved {
                assert_eq!(ours(page), Ok(()), "{page:#x}");
                beside += 1;
            }
        }
    }
    assert!(beside >= 6, "only {beside} neighbours");
    Ok(())
}

fn hyp_takes_no_reserved_memory() -> Result<(), Skip> {
    need_odd_tree()?;
    // What hyp takes is no memory of the host's any more.
    for (start, end) in ODD_RESERVED {
        for page in pages((start, end)) {
            let there = context().machine.ram.iter().any(|ram| ram.contains(&page));
            assert!(there, "{page:#x} is not in the host's memory");
        }
        let told = context().machine.reserved.iter().any(|r| r.start <= start && end <= r.end);
        assert!(told, "the host is not told of {start:#x}");
    }
    let hyps = hyp_page();
    assert!(context().machine.ram.iter().all(|ram| !ram.contains(&hyps)), "hyp is somewhere");
    Ok(())
}

fn reserved_memory_keeps_its_content() -> Result<(), Skip> {
    need_odd_tree()?;
    window::open(|window| {
        for (start, end) in ODD_RESERVED {
            for address in (start..end).step_by(8) {
                let found = window.read(address);
                assert_eq!(found, Ok(odd_content(address)), "{address:#x}");
            }
        }
    });
    Ok(())
}

/// The loader's tree and initrd lie at the top of free memory, where hyp takes its own from, and hyp wipes
/// memory when it boots: both are as they were. (This kernel was given another initrd, and has used the
/// memory of neither by the time that this runs: it allocates from the other end.)
fn r45_hyp_lies_over_nothing_that_the_loader_left() -> Result<(), Skip> {
    need_odd_tree()?;
    const FDT_MAGIC: u64 = 0xedfe_0dd0;
    window::open(|window| {
        let (start, end) = ODD_INITRD;
        for address in (start..end).step_by(8) {
            assert_eq!(window.read(address), Ok(odd_content(address)), "initrd, {address:#x}");
        }
        let magic = window.read(ODD_DTB).map(|word| word & 0xffff_ffff);
        assert_eq!(magic, Ok(FDT_MAGIC), "the tree");
    });
    Ok(())
}

/// A CPU's external debug registers are in the memory map: whoever writes them halts the CPU at EL2, and
/// executes there what they like.
fn attack_a_cpu_halted_through_its_debug_registers() -> Result<(), Skip> {
    need_odd_tree()?;
    let before = Counters::now();
    window::open(|window| {
        for address in [ODD_DEBUG.0, ODD_DEBUG.0 + 0x88, ODD_DEBUG.1 - 8] {
            assert!(window.read(address).is_err(), "{address:#x}");
        }
        assert!(window.read(ODD_NO_DEBUG).is_ok(), "a device that is none is the host's");
    });
    assert_eq!(before.since(Counter::HostAborts), 3, "it is hyp that keeps the host out");
    Ok(())
}

fn all_cpus_and_both_memories_are_there() -> Result<(), Skip> {
    need_odd_tree()?;
    let banks = context().machine.ram.iter();
    assert!(banks.clone().any(|ram| ram.end == ODD_CUT), "the first memory");
    assert!(banks.clone().any(|ram| ram.start == ODD_CUT), "the second memory");
    assert_eq!(context().cpus, 4, "CPUs that are off to begin with");
    assert!(context().late.is_empty(), "all of them were up when hyp booted");
    // Pages of either memory are as good.
    let machine = crate::puppet::Machine::normal();
    let second = (ODD_CUT + (64 << 20)..).step_by(PAGE as usize);
    let free = second.into_iter().find(|&page| Hvc.vm_map(machine.vm, page, 0x9000_0000).is_ok());
    let page = free.expect("a page of the second memory");
    assert_eq!(Hvc.vm_unmap(machine.vm, 0x9000_0000), Ok(page));
    Ok(())
}
