//! PSCI as guests have it: answered by hyp alone, and what their host is told of it.

use crate::{
    context::{context, need_cpus},
    instruction::{self as insn, sysreg},
    ledger,
    puppet::{BASE, Event, Machine, NOWHERE, Puppet, Routine, vcpu_config},
    runner::Skip,
    tests, workers,
};
use arrayvec::ArrayVec;
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuConfig, VcpuIndex, VmConfig, VmHandle},
    error::Error,
    exit::{Reason, RunFlags, SystemEvent},
    vcpu::VcpuFeatures,
};

tests![
    attack_an_entry_for_a_protected_vms_second_vcpu,
    attack_a_vcpu_that_its_guest_has_turned_off,
    attack_a_protected_vm_that_has_turned_itself_off,
    what_there_is_of_psci,
    calls_are_psci_by_hvc_and_smc,
    bad_calls_are_refused,
    a_vcpu_is_turned_on_where_its_guest_says,
    a_vcpu_is_off_when_it_is_nowhere,
    r25_a_vcpu_turned_on_again_finds_the_reset_state,
    affinities_are_as_their_host_says,
    only_one_cpu_on_succeeds,
    a_normal_vms_host_resets_its_vcpus,
    suspend_is_a_standby,
    system_events_are_told,
    architecture_calls,
];

const VERSION: u64 = 0x8400_0000;
const CPU_SUSPEND: u64 = 0xc400_0001;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const FEATURES: u64 = 0x8400_000a;
const SYSTEM_RESET2: u64 = 0xc400_0012;

const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INTERNAL_FAILURE: i64 = -6;
const INVALID_ADDRESS: i64 = -9;

const SECRET: u64 = 0x5ec2_e700_5ec2_e700;

const ON: i64 = 0;
const OFF: i64 = 1;
const PENDING: i64 = 2;

fn machines() -> [VmConfig; 2] {
    [VmConfig::normal(), VmConfig::protected()]
}

#[track_caller]
fn psci(guest: &Puppet, function: u64, args: [u64; 3]) -> i64 {
    guest.answered(Routine::Hvc, function, args)[0] as i64
}

#[track_caller]
fn turn_on(guest: &Puppet, vcpu: u64, entry: u64, context: u64) {
    let event = guest.smccc(Routine::Hvc, CPU_ON, [vcpu, entry, context]);
    assert_eq!(event.exit(Reason::CpuOn).data, [vcpu, 0, 0, 0, 0, 0]);
    match guest.resume(RunFlags::empty(), [0x77; 4]) {
        Event::Done([0, ..]) => {}
        event => panic!("CPU_ON: {event:x?}"),
    }
}

/// The guest turns its vCPU off; it is put.
#[track_caller]
fn turn_off(guest: &Puppet) {
    guest.smccc(Routine::Hvc, CPU_OFF, [0; 3]).exit(Reason::CpuOff);
    for _ in 0..2 {
        assert_eq!(guest.try_enter(RunFlags::empty(), [0; 4]), Err(Error::PoweredOff));
    }
    guest.put();
    assert_eq!(Hvc.vcpu_load(guest.machine.vm, guest.index), Err(Error::PoweredOff));
}

/// A vCPU of no puppet's.
fn config(vm: VmHandle, start: Start) -> VcpuConfig {
    vcpu_config(vm, VcpuFeatures::FPSIMD, start)
}

/// While a protected VM is built its host chooses one entry; the others are the guest's, and until it has chosen
/// nothing runs.
fn attack_an_entry_for_a_protected_vms_second_vcpu() -> Result<(), Skip> {
    let machine = Machine::new(VmConfig::protected());
    let at = |entry, argument| Start::At { entry, argument };
    assert_eq!(Hvc.vcpu_create(config(machine.vm, Start::Off)), Err(Error::InvalidArgument));
    let first = machine.vcpu(None);
    for start in [at(BASE, 0), at(0, 0), at(NOWHERE, 7)] {
        assert_eq!(Hvc.vcpu_create(config(machine.vm, start)), Err(Error::InvalidArgument));
    }
    assert_eq!(Hvc.vcpu_create(config(machine.vm, Start::Off)), Ok(()));
    Hvc.vm_seal(machine.vm).expect("VM_SEAL");
    let second = VcpuIndex(1);
    assert_eq!(Hvc.vcpu_load(machine.vm, second), Err(Error::PoweredOff));
    for start in [at(BASE, 0), Start::Off] {
        for vcpu in [VcpuIndex(0), second] {
            let reset = Hvc.vcpu_reset(machine.vm, vcpu, start);
            assert_eq!(reset, Err(Error::Protected), "{start:x?}");
        }
    }
    assert_eq!(Hvc.vcpu_load(machine.vm, second), Err(Error::PoweredOff));
    first.load();
    first.start();
    assert_eq!(psci(&first, AFFINITY_INFO, [1, 0, 0]), OFF);
    first.put();
    Ok(())
}

fn attack_a_vcpu_that_its_guest_has_turned_off() -> Result<(), Skip> {
    let machine = Machine::new(VmConfig::protected());
    let (a, b) = (machine.vcpu(None), machine.vcpu(None));
    b.load();
    b.start();
    turn_off(&b);
    // Neither where it was nor anywhere else, nor by any call of the host's.
    for cpu in 0..context().cpus {
        workers::on(cpu, || {
            assert_eq!(Hvc.vcpu_load(machine.vm, b.index), Err(Error::PoweredOff));
            assert_eq!(Hvc.vcpu_run(RunFlags::empty(), [0; 4]).err(), Some(Error::NotLoaded));
        });
    }
    assert_eq!(Hvc.vcpu_reset(machine.vm, b.index, Start::Off), Err(Error::Protected));
    a.load();
    a.start();
    turn_on(&a, b.index.0, BASE, 0);
    a.put();
    b.load();
    b.start();
    b.put();
    Ok(())
}

fn attack_a_protected_vm_that_has_turned_itself_off() -> Result<(), Skip> {
    for (function, args) in
        [(SYSTEM_OFF, [0; 3]), (SYSTEM_RESET, [0; 3]), (SYSTEM_RESET2, [0, 5, 0])]
    {
        let machine = Machine::new(VmConfig::protected());
        let (a, b) = (machine.vcpu(None), machine.vcpu(None));
        let elsewhere = context().cpus > 1;
        if elsewhere {
            workers::on(1, || {
                b.load();
                b.start();
            });
        }
        a.load();
        a.start();
        a.smccc(Routine::Hvc, function, args).exit(Reason::System);
        let refused = Err(Error::PoweredOff);
        for flags in [RunFlags::empty(), RunFlags::ABORT, RunFlags::UNDERFLOW] {
            assert_eq!(a.try_enter(flags, [BASE; 4]), refused);
        }
        if elsewhere {
            workers::on(1, || {
                assert_eq!(b.try_enter(RunFlags::empty(), [0; 4]), refused, "a sibling, loaded");
                b.put();
            });
        }
        a.put();
        for index in [a.index, b.index] {
            assert_eq!(Hvc.vcpu_load(machine.vm, index), Err(Error::PoweredOff));
        }
        // What is left of it goes back, and its slot serves another.
        assert_eq!(ledger::destroy(machine.vm), 0);
        let next = Machine::new(VmConfig::protected()).started(None);
        assert_eq!(next.exec(insn::NOP, 3), 3);
        next.put();
    }
    Ok(())
}

fn what_there_is_of_psci() -> Result<(), Skip> {
    for vm in machines() {
        let guest = Machine::new(vm).started(None);
        assert_eq!(psci(&guest, VERSION, [0; 3]), 0x1_0001);
        for function in 0..0x20u64 {
            for id in [0x8400_0000 | function, 0xc400_0000 | function] {
                let (both, smc32) = ([1, 3, 4, 0x12], [0, 2, 6, 8, 9, 0xa]);
                let there =
                    both.contains(&function) || id >> 30 & 1 == 0 && smc32.contains(&function);
                let expected = if there { 0 } else { NOT_SUPPORTED };
                assert_eq!(psci(&guest, FEATURES, [id, 0, 0]), expected, "FEATURES of {id:#x}");
                if !there {
                    assert_eq!(psci(&guest, id, [0; 3]), NOT_SUPPORTED, "{id:#x}");
                }
            }
        }
        assert_eq!(psci(&guest, FEATURES, [0x8000_0000, 0, 0]), 0, "SMCCC_VERSION");
        assert_eq!(psci(&guest, FEATURES, [0x8000_0001, 0, 0]), NOT_SUPPORTED);
        assert_eq!(psci(&guest, 0x8400_0006, [0; 3]), 2, "MIGRATE_INFO_TYPE");
        guest.put();
    }
    Ok(())
}

/// What hyp answers it answers either way, and leaves x1 and up alone.
fn calls_are_psci_by_hvc_and_smc() -> Result<(), Skip> {
    for vm in machines() {
        let guest = Machine::new(vm).started(context().largest());
        for how in [Routine::Hvc, Routine::Smc] {
            for hint in [0, 1 << 16, 0xdead_beef << 32] {
                let version = guest.answered(how, VERSION | hint, [3, 4, 5]);
                assert_eq!(version, [0x1_0001, 3, 4, 5]);
                let info = guest.answered(how, AFFINITY_INFO | hint, [0, 0, 9]);
                assert_eq!(info, [0, 0, 0, 9]);
                let suspend = guest.smccc(how, CPU_SUSPEND | hint, [0, 1, 2]);
                suspend.exit(Reason::Wfi);
                let after = guest.resume(RunFlags::empty(), [0x77; 4]);
                assert_eq!(after, Event::Done([0, 0, 1, 2, 0]), "the host has no say in x0-x3");
            }
            // No firmware is there to be called, and nobody else.
            let x0 = guest.answered(Routine::Smc, 0xc300_0001, [0; 3])[0];
            assert_eq!(x0 as i64, NOT_SUPPORTED);
        }
        guest.put();
    }
    Ok(())
}

fn bad_calls_are_refused() -> Result<(), Skip> {
    for vm in machines() {
        let machine = Machine::new(vm);
        let (a, b) = (machine.vcpu(None), machine.vcpu(None));
        b.load();
        b.start();
        turn_off(&b);
        a.load();
        a.start();
        for target in [2, 15, 16, 1 << 8, 1 << 31, 1 << 32 | 1, u64::MAX] {
            assert_eq!(psci(&a, CPU_ON, [target, BASE, 0]), INVALID_PARAMETERS, "{target:#x}");
            assert_eq!(psci(&a, AFFINITY_INFO, [target, 0, 0]), INVALID_PARAMETERS);
        }
        for level in [1, 2, 3, 4, u64::MAX] {
            assert_eq!(psci(&a, AFFINITY_INFO, [0, level, 0]), INVALID_PARAMETERS, "{level}");
        }
        for entry in [BASE + 1, BASE + 2, 1 << 47, !3] {
            assert_eq!(psci(&a, CPU_ON, [1, entry, 0]), INVALID_ADDRESS, "{entry:#x}");
        }
        assert_eq!(psci(&a, CPU_ON, [0, BASE, 0]), ALREADY_ON);
        for state in [1 << 17, 1 << 26, 1 << 31, 1 << 40] {
            assert_eq!(psci(&a, CPU_SUSPEND, [state, 0, 0]), INVALID_PARAMETERS, "{state:#x}");
        }
        for kind in [1, 0x7fff_ffff] {
            assert_eq!(psci(&a, SYSTEM_RESET2, [kind, 0, 0]), INVALID_PARAMETERS, "{kind:#x}");
        }
        // A refusal changes nothing.
        assert_eq!(psci(&a, AFFINITY_INFO, [1, 0, 0]), OFF);
        a.put();
        assert_eq!(Hvc.vcpu_load(machine.vm, b.index), Err(Error::PoweredOff));
    }
    Ok(())
}

/// At its entry, with x0, interrupts masked, MMU off.
fn a_vcpu_is_turned_on_where_its_guest_says() -> Result<(), Skip> {
    for vm in machines() {
        for (function, context) in [(CPU_ON, 0x5ec2_e700_0000_0001), (CPU_ON & !(1 << 30), 77)] {
            let machine = Machine::new(vm);
            let (a, b) = (machine.vcpu(None), machine.vcpu(None));
            b.load();
            b.start();
            turn_off(&b);
            a.load();
            a.start();
            // An HVC with x0 where it begins.
            let entry = Routine::Raw.address();
            let event = a.smccc(Routine::Smc, function, [1, entry, context]);
            event.exit(Reason::CpuOn);
            a.start();
            a.put();
            b.load();
            let exit = b.resume(RunFlags::empty(), [0x77; 4]).exit(Reason::Hvc);
            assert_eq!(exit.data[..2], [0x4a3, context], "x0 where it began");
            // DAIF, EL1h; SCTLR_EL1 after reset.
            assert_eq!(exit.data[2..4], [0x3c0, 0x30d0_0980]);
            b.put();
        }
    }
    Ok(())
}

fn a_vcpu_is_off_when_it_is_nowhere() -> Result<(), Skip> {
    need_cpus(2)?;
    for vm in machines() {
        let machine = Machine::new(vm);
        let (a, b) = (machine.vcpu(None), machine.vcpu(None));
        let info = |guest: &Puppet| psci(guest, AFFINITY_INFO, [1, 0, 0]);
        a.load();
        a.start();
        assert_eq!(info(&a), if machine.is_protected() { PENDING } else { ON });
        workers::on(1, || {
            b.load();
            b.start();
        });
        assert_eq!(info(&a), ON);
        workers::on(1, || _ = b.smccc(Routine::Hvc, CPU_OFF, [0; 3]).exit(Reason::CpuOff));
        // Its registers are still on that CPU.
        assert_eq!(info(&a), ON);
        assert_eq!(psci(&a, CPU_ON, [1, BASE, 0]), ALREADY_ON);
        workers::on(1, || b.put());
        assert_eq!(info(&a), OFF);
        turn_on(&a, 1, BASE, 0);
        assert_eq!(info(&a), PENDING);
        assert_eq!(psci(&a, CPU_ON, [1, BASE, 0]), ON_PENDING);
        workers::on(1, || b.load());
        assert_eq!(info(&a), ON);
        workers::on(1, || b.put());
        assert_eq!(info(&a), ON, "it is only not running");
        a.put();
    }
    Ok(())
}

fn r25_a_vcpu_turned_on_again_finds_the_reset_state() -> Result<(), Skip> {
    const TPIDR_EL1: insn::SysReg = insn::reg(3, 0, 13, 0, 4);
    const TTBR0_EL1: insn::SysReg = insn::reg(3, 0, 2, 0, 0);
    const CNTV_CTL_EL0: insn::SysReg = insn::reg(3, 3, 14, 3, 1);
    for vm in machines() {
        let machine = Machine::new(vm);
        let largest = context().largest();
        let (a, b) = (machine.vcpu(largest), machine.vcpu(largest));
        b.load();
        b.start();
        // A protected guest's images are its own to write.
        if !machine.is_protected() {
            b.fill(3);
        }
        b.exec(insn::FMOV_D0_X0, SECRET);
        for register in [TPIDR_EL1, TTBR0_EL1] {
            b.write(register, 0x5ec2_e000);
        }
        // IMASK and ENABLE.
        b.write(CNTV_CTL_EL0, 3);
        turn_off(&b);
        a.load();
        a.start();
        turn_on(&a, 1, BASE, 0);
        a.put();
        b.load();
        b.start();
        for register in [TPIDR_EL1, TTBR0_EL1, CNTV_CTL_EL0] {
            assert_eq!(b.read(register), 0, "{register:?}");
        }
        assert_eq!(b.exec(insn::FMOV_X0_D0, 1), 0);
        if !machine.is_protected() {
            b.check_reset();
        }
        b.put();
    }
    Ok(())
}

/// Who has which affinity is the host's choice, and by that alone a guest finds its vCPUs: in whatever order they were made,
/// and whatever their indices are.
fn affinities_are_as_their_host_says() -> Result<(), Skip> {
    let machine = Machine::normal();
    let first = machine.vcpu(None);
    let mut others: ArrayVec<(u64, u64), 3> = ArrayVec::new();
    for (index, affinity) in [(63, 0x7f_0a0f), (7, 0x10), (30, 0x1_0000)] {
        let config = VcpuConfig {
            index: VcpuIndex(index),
            affinity: UntrustedAffinity(affinity),
            ..config(machine.vm, Start::Off)
        };
        Hvc.vcpu_create(config).expect("VCPU_CREATE");
        others.push((index, affinity));
    }
    first.load();
    first.start();
    assert_eq!(first.read(sysreg::MPIDR) & 0xff_00ff_ffff, 0);
    for &(index, affinity) in &others {
        assert_eq!(psci(&first, AFFINITY_INFO, [affinity, 0, 0]), OFF, "{affinity:#x}");
        assert_eq!(psci(&first, AFFINITY_INFO, [index, 0, 0]), INVALID_PARAMETERS, "{index}");
        // Nobody has Aff3.
        let with_aff3 = 1 << 32 | affinity;
        assert_eq!(psci(&first, AFFINITY_INFO, [with_aff3, 0, 0]), INVALID_PARAMETERS);
        let told = first.smccc(Routine::Hvc, CPU_ON, [affinity, BASE, 0]).exit(Reason::CpuOn);
        assert_eq!(told.data[0], index, "the host is told its index");
        first.start();
    }
    first.put();
    for (index, affinity) in others {
        // It is no puppet of its own, and borrows the first one's room for an instruction.
        Hvc.vcpu_load(machine.vm, VcpuIndex(index)).expect("VCPU_LOAD");
        assert!(matches!(first.resume(RunFlags::empty(), [0; 4]), Event::Done(_)));
        assert_eq!(first.read(sysreg::MPIDR) & 0xff_00ff_ffff, affinity);
        Hvc.vcpu_put().expect("VCPU_PUT");
    }
    Ok(())
}

/// Several of a VM's vCPUs turn on the same one, at once.
fn only_one_cpu_on_succeeds() -> Result<(), Skip> {
    need_cpus(2)?;
    use core::sync::atomic::{AtomicU64, Ordering};
    let machine = Machine::normal();
    let (a, b, c) = (machine.vcpu(None), machine.vcpu(None), machine.vcpu(None));
    c.load();
    c.start();
    turn_off(&c);
    let wins = AtomicU64::new(0);
    for _ in 0..8 {
        wins.store(0, Ordering::SeqCst);
        workers::on_all(|cpu| {
            let guest = [a, b].get(cpu).copied();
            let Some(guest) = guest else { return };
            guest.load();
            guest.start();
            match guest.smccc(Routine::Hvc, CPU_ON, [2, BASE, 0]) {
                Event::Exit(exit) => {
                    assert_eq!(exit.info.reason(), Some(Reason::CpuOn));
                    guest.start();
                    wins.fetch_add(1, Ordering::SeqCst);
                }
                Event::Done([x0, ..]) => assert_eq!(x0 as i64, ON_PENDING),
                event => panic!("CPU_ON: {event:x?}"),
            }
            guest.put();
        });
        assert_eq!(wins.load(Ordering::SeqCst), 1);
        c.load();
        c.start();
        turn_off(&c);
    }
    Ok(())
}

fn a_normal_vms_host_resets_its_vcpus() -> Result<(), Skip> {
    let machine = Machine::normal();
    let guest = machine.started(None);
    let (vm, index) = (machine.vm, guest.index);
    let at = |entry, argument| Start::At { entry, argument };
    assert_eq!(Hvc.vcpu_reset(vm, index, at(BASE, 0)), Err(Error::Busy), "it is loaded");
    // After SYSTEM_RESET the vCPU is where it was, and its call has failed.
    guest.smccc(Routine::Hvc, SYSTEM_RESET, [0; 3]).exit(Reason::System);
    let Event::Done([x0, ..]) = guest.resume(RunFlags::empty(), [0x77; 4]) else {
        panic!("a normal guest that is run again goes on");
    };
    assert_eq!(x0 as i64, INTERNAL_FAILURE);
    guest.put();
    for (bad, error) in [
        ((vm, VcpuIndex(1), at(BASE, 0)), Error::BadVcpu),
        ((vm, VcpuIndex(u64::MAX), at(BASE, 0)), Error::BadVcpu),
        ((VmHandle(u64::MAX), index, at(BASE, 0)), Error::BadVm),
        ((vm, index, at(BASE + 2, 0)), Error::InvalidArgument),
    ] {
        assert_eq!(Hvc.vcpu_reset(bad.0, bad.1, bad.2), Err(error));
    }
    // Reserved bits, and an entry of one that is off.
    let raw = |args| Hvc::raw(umbra_shared::call::Function::VcpuReset.id(), args).0;
    let refused = Error::InvalidArgument.code() as u64;
    for flags in [1, 1 << 32, 1 << 34, 1 << 63] {
        assert_eq!(raw([vm.0, index.0, flags, BASE, 0, 0, 0]), refused);
    }
    assert_eq!(raw([vm.0, index.0, 1 << 33, BASE, 0, 0, 0]), refused);
    assert_eq!(Hvc.vcpu_reset(vm, index, Start::Off), Ok(()));
    assert_eq!(Hvc.vcpu_load(vm, index), Err(Error::PoweredOff));
    assert_eq!(Hvc.vcpu_reset(vm, index, at(Routine::Raw.address(), 99)), Ok(()));
    guest.load();
    let exit = guest.resume(RunFlags::empty(), [0x77; 4]).exit(Reason::Hvc);
    assert_eq!(exit.data[..4], [0x4a3, 99, 0x3c0, 0x30d0_0980]);
    guest.put();
    assert_eq!(Hvc.vm_destroy(vm), Ok(()));
    assert_eq!(Hvc.vcpu_reset(vm, index, Start::Off), Err(Error::Dying));
    Ok(())
}

fn suspend_is_a_standby() -> Result<(), Skip> {
    for vm in machines() {
        let guest = Machine::new(vm).started(context().largest());
        guest.exec(insn::FMOV_D0_X0, SECRET);
        for state in [0, 1, 1 << 16, 1 << 24, 0x0301_ffff] {
            guest.smccc(Routine::Hvc, CPU_SUSPEND, [state, 0, 0]).exit(Reason::Wfi);
            let after = guest.resume(RunFlags::empty(), [0x77; 4]);
            assert_eq!(after, Event::Done([0, state, 0, 0, 0]));
        }
        assert_eq!(guest.exec(insn::FMOV_X0_D0, 0), SECRET);
        guest.put();
    }
    Ok(())
}

fn system_events_are_told() -> Result<(), Skip> {
    for vm in machines() {
        for (function, args, told) in [
            (SYSTEM_OFF, [1, 2, 3], [SystemEvent::Off as u64, 0, 0]),
            (SYSTEM_RESET, [1, 2, 3], [SystemEvent::Reset as u64, 0, 0]),
            (SYSTEM_RESET2, [0, 1 << 40, 3], [SystemEvent::Reset2 as u64, 0, 1 << 40]),
            (SYSTEM_RESET2 & !(1 << 30), [1 << 31, 7, 3], [2, 1 << 31, 7]),
        ] {
            let guest = Machine::new(vm).started(None);
            let exit = guest.smccc(Routine::Hvc, function, args).exit(Reason::System);
            assert_eq!(exit.data[..3], told, "{function:#x}");
            assert_eq!(exit.data[3..], [0; 3]);
            guest.put();
        }
    }
    Ok(())
}

fn architecture_calls() -> Result<(), Skip> {
    for vm in machines() {
        let guest = Machine::new(vm).started(None);
        for how in [Routine::Hvc, Routine::Smc] {
            let ask = |function, argument| guest.answered(how, function, [argument, 2, 3]);
            assert_eq!(ask(0x8000_0000, 1), [0x1_0002, 1, 2, 3], "SMCCC_VERSION");
            assert_eq!(ask(0x8000_0001, 0x8000_0000), [0, 0x8000_0000, 2, 3]);
            assert_eq!(ask(0x8000_0001, 0x8000_0001)[0], 0);
            // SOC_ID, PV time, a function of nobody's: a guest has none of it.
            for other in [0x8000_0002, 0xc500_0020, 0x8000_1234, 0x8400_0000] {
                assert_eq!(ask(0x8000_0001, other)[0] as i64, NOT_SUPPORTED, "{other:#x}");
            }
            for function in [0x8000_0002, 0x8000_0003, 0xc000_0000] {
                assert_eq!(ask(function, 0)[0] as i64, NOT_SUPPORTED, "{function:#x}");
            }
            // As firmware says of its mitigations; what it says it has can be called.
            for workaround in [0x8000_8000, 0x8000_3fff] {
                let there = ask(0x8000_0001, workaround)[0] as i64;
                assert!((-1..=1).contains(&there), "{workaround:#x}: {there}");
                if there >= 0 {
                    assert_eq!(ask(workaround, 1)[1..], [1, 2, 3]);
                }
            }
            // What would be a state of the CPU's it can't change, for itself or for the host.
            let there = ask(0x8000_0001, 0x8000_7fff)[0] as i64;
            assert!(matches!(there, -1 | 1), "{there}");
            assert_eq!(ask(0x8000_7fff, 0)[0] as i64, NOT_SUPPORTED);
        }
        guest.put();
    }
    Ok(())
}
