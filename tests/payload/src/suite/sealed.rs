//! A protected VM is built, sealed, and then its own: nothing of the host's choosing gets in.

use crate::{
    context::context,
    instruction as insn,
    ledger::{self, PAGE, each},
    puppet::{BASE, Machine, NOWHERE, vcpu_config},
    runner::Skip,
    tests,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{exception::probe_read, mmu},
};
use umbra_shared::{
    PAGE_SIZE,
    call::{Start, VcpuIndex, VmConfig, VmHandle},
    error::Error,
    vcpu::VcpuFeatures,
};

tests![
    r36_attack_code_mapped_into_a_sealed_vm,
    r36_attack_a_vcpu_made_in_a_sealed_vm,
    only_a_sealed_vm_runs,
    a_seal_is_for_protected_vms_that_can_run,
    pages_of_a_sealed_vm_arrive_zeroed_on_every_cpu,
    a_new_vm_in_the_slot_of_a_sealed_one_is_built_again,
];

const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;

/// A page full of the host's code, or of its data.
fn hosts_page(words: u32) -> u64 {
    let page = ledger::take(1);
    let start = mmu::linear::<u32>(page);
    for n in 0..PAGE_SIZE / 4 {
        // SAFETY: a page of this test's.
        unsafe { start.add(n).write(words) };
    }
    page
}

/// What once worked: code of the host's at a free address of a VM that had run, which a vCPU then executed.
fn r36_attack_code_mapped_into_a_sealed_vm() -> Result<(), Skip> {
    let machine = Machine::new(VmConfig::protected());
    let guest = machine.started(context().largest());
    guest.at(guest.scratch()).exec(insn::STR64, SECRET);
    // LDR x0, [x1]; it would do as well to read the secret.
    let page = hosts_page(insn::LDR64);
    Hvc.vm_map(machine.vm, page, NOWHERE).expect("VM_MAP");
    assert!(probe_read(page).is_err(), "the host has lost it");
    for word in 0..PAGE / 8 {
        assert_eq!(guest.at(NOWHERE + 8 * word).exec(insn::LDR64, 1), 0, "word {word}");
    }
    assert_eq!(guest.at(guest.scratch()).exec(insn::LDR64, 0), SECRET);
    guest.put();
    Ok(())
}

/// What once worked: a vCPU whose entry and x0 the host chose, in a VM that had run.
fn r36_attack_a_vcpu_made_in_a_sealed_vm() -> Result<(), Skip> {
    let machine = Machine::new(VmConfig::protected());
    let guest = machine.started(context().largest());
    guest.at(guest.scratch()).exec(insn::STR64, SECRET);
    for entry in [BASE, guest.scratch(), NOWHERE] {
        let start = Start::At { entry, argument: guest.scratch() };
        let config = vcpu_config(machine.vm, VcpuFeatures::FPSIMD, start);
        assert_eq!(Hvc.vcpu_create(config), Err(Error::Sealed));
        // It is refused before anything changes hands.
        assert!(probe_read(config.pages.start.0).is_ok());
        assert_eq!(Hvc.unshare_flag_page(config.flag_page.0), Ok(()));
    }
    assert_eq!(Hvc.vcpu_load(machine.vm, VcpuIndex(1)), Err(Error::Busy));
    guest.put();
    assert_eq!(Hvc.vcpu_load(machine.vm, VcpuIndex(1)), Err(Error::BadVcpu));
    guest.load();
    assert_eq!(guest.at(guest.scratch()).exec(insn::LDR64, 0), SECRET);
    guest.put();
    Ok(())
}

fn only_a_sealed_vm_runs() -> Result<(), Skip> {
    let machine = Machine::new(VmConfig::protected());
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    for index in [a.index, b.index, VcpuIndex(2), VcpuIndex(u64::MAX)] {
        assert_eq!(Hvc.vcpu_load(machine.vm, index), Err(Error::NotSealed), "{index:?}");
    }
    // Its payload is the host's to give until then, and is taken with what is in it.
    let page = hosts_page(0x600d_f00d);
    Hvc.vm_map(machine.vm, page, NOWHERE).expect("VM_MAP");
    machine.seal();
    for guest in [a, b] {
        guest.load();
        guest.start();
        let word = guest.at(NOWHERE + PAGE - 8).exec(insn::LDR64, 0);
        assert_eq!(word, 0x600d_f00d_600d_f00d);
        guest.put();
    }
    Ok(())
}

fn a_seal_is_for_protected_vms_that_can_run() -> Result<(), Skip> {
    let normal = Machine::normal();
    normal.vcpu(None);
    assert_eq!(Hvc.vm_seal(normal.vm), Err(Error::NotProtected));
    assert_eq!(Hvc.vm_seal(VmHandle(u64::MAX)), Err(Error::BadVm));
    let machine = Machine::new(VmConfig::protected());
    assert_eq!(Hvc.vm_seal(machine.vm), Err(Error::BadVcpu), "nothing that could run");
    let guest = machine.vcpu(None);
    assert_eq!(Hvc.vm_seal(machine.vm), Ok(()));
    assert_eq!(Hvc.vm_seal(machine.vm), Err(Error::Sealed));
    guest.load();
    assert_eq!(Hvc.vm_seal(machine.vm), Err(Error::Sealed));
    // Closing and dying.
    assert_eq!(Hvc.vm_destroy(machine.vm), Err(Error::Busy));
    assert_eq!(Hvc.vm_seal(machine.vm), Err(Error::Dying));
    guest.put();
    assert_eq!(Hvc.vm_destroy(machine.vm), Ok(()));
    assert_eq!(Hvc.vm_seal(machine.vm), Err(Error::Dying));
    Ok(())
}

fn pages_of_a_sealed_vm_arrive_zeroed_on_every_cpu() -> Result<(), Skip> {
    let machine = Machine::new(VmConfig::protected());
    let guest = machine.started(None);
    Hvc.vm_topup(machine.vm, ledger::take(4), 4).expect("VM_TOPUP");
    let pages = ledger::take(8);
    for (n, page) in each(pages, 8).enumerate() {
        // In the caches of this CPU, too.
        let words = mmu::linear::<u64>(page);
        for word in 0..PAGE_SIZE / 8 {
            // SAFETY: a page of this test's.
            unsafe { words.add(word).write_volatile(SECRET) };
        }
        let ipa = NOWHERE + n as u64 * PAGE;
        Hvc.vm_map(machine.vm, page, ipa).expect("VM_MAP");
        for word in [0, 1, 8, 255, 511] {
            assert_eq!(guest.at(ipa + 8 * word).exec(insn::LDR64, 0), 0, "page {n} word {word}");
        }
        guest.at(ipa).exec(insn::STR64, n as u64 + 1);
    }
    for n in 0..8 {
        assert_eq!(guest.at(NOWHERE + n * PAGE).exec(insn::LDR64, 0), n + 1);
    }
    guest.put();
    Ok(())
}

fn a_new_vm_in_the_slot_of_a_sealed_one_is_built_again() -> Result<(), Skip> {
    for _ in 0..3 {
        let machine = Machine::new(VmConfig::protected());
        let guest = machine.vcpu(None);
        assert_eq!(Hvc.vcpu_load(machine.vm, guest.index), Err(Error::NotSealed));
        guest.load();
        guest.start();
        guest.put();
        ledger::destroy(machine.vm);
    }
    Ok(())
}
