//! Devices that reach all of memory, and nothing is in between: they are withheld from the host, which finds
//! them disabled in its tree, and nothing where their registers are.

use crate::{
    context::context,
    dma::fw_cfg::{self, FwCfg},
    instruction as insn, ledger,
    puppet::{Machine, PROTECTED},
    runner::Skip,
    tests,
};
use umbra_host::kernel::{
    exception::{Fault, probe_read, probe_read_virtual, probe_write_virtual},
    layout,
    machine::Registers,
};

tests![
    r39_attack_pcie_that_is_withheld,
    r39_attack_fw_cfg_that_is_withheld,
    r39_attack_virtio_that_is_withheld,
];

const SECRET: u64 = 0x5ec2_e739_5ec2_e739;

#[track_caller]
fn assert_aborts<T: core::fmt::Debug>(what: &str, access: Result<T, Fault>) {
    let fault = access.expect_err(what);
    assert!(fault.is_refusal(), "{what}: {fault:x?}");
}

/// Neither loads nor stores reach what is mapped at `va`.
#[track_caller]
fn assert_withheld(what: &str, va: u64) {
    assert_aborts(what, probe_read_virtual(va));
    // SAFETY: registers of a device that no driver uses, or nothing.
    assert_aborts(what, unsafe { probe_write_virtual(va, 0) });
}

fn need(device: Option<&Registers>) -> Result<&Registers, Skip> {
    device.ok_or(Skip("there is none"))
}

/// Neither its configuration space nor what a BAR may be set to.
fn r39_attack_pcie_that_is_withheld() -> Result<(), Skip> {
    let pcie = context().machine.masters.pcie.as_ref().ok_or(Skip("there is none"))?;
    assert!(!pcie.ecam.enabled, "its node is disabled");
    // Of bus 0 the bridge itself and a device; another bus.
    for offset in [0, 0x8000, 0x10_0000] {
        assert_withheld("ECAM", (layout::ECAM + offset) as u64);
    }
    for pa in [pcie.window.start, pcie.window.end - 8] {
        assert_withheld("BARs", layout::device::<u64>(pa).as_ptr() as u64);
    }
    Ok(())
}

/// It would write at once, wherever it is told to, and to where it is told what to do.
fn r39_attack_fw_cfg_that_is_withheld() -> Result<(), Skip> {
    let device = fw_cfg::find()?;
    let puppet = Machine::new(PROTECTED).started(None);
    let ipa = puppet.scratch();
    let page = puppet.physical(ipa);
    puppet.at(ipa).exec(insn::STR64, SECRET);
    let attacks = [device.write_to(page), device.read_description_at(page)];
    assert_eq!(puppet.at(ipa).exec(insn::LDR64, 0), SECRET, "the guest's own");
    for attack in attacks {
        assert_aborts("fw_cfg", attack);
    }
    puppet.put();
    // Nor what is the host's.
    let page = ledger::take(1);
    assert!(device.write_to(page).is_err() && !device.is_done());
    assert_ne!(probe_read(page), Ok(FwCfg::written()));
    let registers = need(context().machine.masters.fw_cfg.as_ref())?;
    assert!(!registers.enabled, "its node is disabled");
    Ok(())
}

fn r39_attack_virtio_that_is_withheld() -> Result<(), Skip> {
    let registers = need(context().machine.masters.virtio.as_ref())?;
    assert!(!registers.enabled, "its node is disabled");
    let first = layout::device::<u64>(registers.range.start);
    assert_withheld("virtio-mmio", first.as_ptr() as u64);
    Ok(())
}
