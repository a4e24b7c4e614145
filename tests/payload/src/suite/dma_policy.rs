//! Devices that reach all of memory and that the host keeps: no protected VM, unless the loader has said to do
//! without what it is protected from (`umbra.dma`).

use super::pages::assert_ours;
use crate::{
    context::context,
    dma::edu,
    instruction as insn, ledger,
    puppet::{Machine, PROTECTED},
    runner::Skip,
    tests,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    call::{Features, VM_PAGES},
    error::Error,
};

tests![
    r39_a_machine_whose_devices_reach_everything_has_no_protected_vms,
    r39_the_loader_can_do_without,
    the_host_keeps_its_devices,
];

/// The last word counts.
fn is_unsafe() -> bool {
    context().machine.arguments("umbra.dma").last() == Some("unsafe")
}

fn shown() -> bool {
    Hvc.version().expect("VERSION").features.contains(Features::PROTECTED_VMS)
}

fn r39_a_machine_whose_devices_reach_everything_has_no_protected_vms() -> Result<(), Skip> {
    if is_unsafe() {
        return Err(Skip("umbra.dma=unsafe"));
    }
    assert!(!shown());
    let first = ledger::take(VM_PAGES);
    // What it is is asked before what it is made of.
    for count in [VM_PAGES, 0, 1] {
        assert_eq!(Hvc.vm_create(first, count, PROTECTED), Err(Error::NotIsolated), "{count}");
    }
    assert_ours(first);
    let puppet = Machine::normal().started(None);
    puppet.at(puppet.scratch()).exec(insn::STR64, 1);
    puppet.put();
    Ok(())
}

fn r39_the_loader_can_do_without() -> Result<(), Skip> {
    if !is_unsafe() {
        return Err(Skip("not umbra.dma=unsafe"));
    }
    assert!(shown());
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    puppet.at(ipa).exec(insn::STR64, 0x1234);
    // That is what it means.
    for device in edu::all()? {
        assert_eq!(device.read(puppet.physical(ipa)), 0x1234);
    }
    puppet.put();
    Ok(())
}

fn the_host_keeps_its_devices() -> Result<(), Skip> {
    let page = ledger::take(1);
    for device in edu::all()? {
        device.write(page, 0x5678);
        assert_eq!(device.read(page), 0x5678);
    }
    assert!(context().machine.masters.fw_cfg.as_ref().is_some_and(|it| it.enabled));
    Ok(())
}
