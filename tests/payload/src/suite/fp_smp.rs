//! FP state on several CPUs: migration, all at once, and CPUs that go off and come back; and PSCI as
//! the host finds it.

use super::POLICIES;
use crate::{
    context::{context, need_cpus, need_sve},
    host, instruction as insn,
    puppet::{Machine, Puppet},
    runner::Skip,
    tests, workers,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{exception::probe_read, power, timer},
};
use umbra_patterns::regs;
use umbra_shared::{
    call::{Policy, VM_PAGES, VmConfig},
    vl::Vq,
};

tests![
    r19_migration_there_and_back,
    r19_migration_at_every_vl,
    all_cpus_at_once,
    one_vcpu_wanders_over_all_cpus,
    r24_cpu_off_and_on_with_a_live_guest,
    psci_affinity_info,
    psci_cpu_on_refusals,
    psci_features_and_unknown_functions,
    smccc_version,
];

fn r19_migration_there_and_back() -> Result<(), Skip> {
    need_cpus(2)?;
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        host::fill(1);
        guest.fill(1);
        guest.put();
        // What stays behind on this CPU is stale from here on.
        workers::on(1, || {
            host::fill(7);
            guest.load();
            guest.check(1);
            guest.fill(2);
            guest.put();
            host::check(7);
        });
        guest.load();
        guest.check(2);
        guest.put();
        host::check(1);
        workers::on(1, || host::check(7));
    }
    Ok(())
}

fn r19_migration_at_every_vl() -> Result<(), Skip> {
    need_cpus(2)?;
    let largest = need_sve()?;
    for from in context().common.iter() {
        for to in context().common.iter().filter(|&to| from == largest || to == largest) {
            // Two vCPUs of different VL change places; before, at and after the trap.
            let machine = Machine::normal();
            let (a, b) = (machine.vcpu(Some(from)), machine.vcpu(Some(to)));
            a.loaded(|a| {
                a.start();
                a.fill(1);
            });
            b.loaded(|b| {
                b.start();
                b.fill(2);
            });
            workers::on(1, || {
                a.loaded(|a| a.exec(insn::NOP, 0));
                b.loaded(|b| b.check(2));
                a.loaded(|a| a.check(1));
            });
            a.loaded(|a| a.check(1));
            b.loaded(|b| b.check(2));
            crate::ledger::destroy(machine.vm);
        }
    }
    Ok(())
}

fn all_cpus_at_once() -> Result<(), Skip> {
    need_cpus(2)?;
    let machines = POLICIES.map(Machine::with_policy);
    // One vCPU for each CPU, of three VMs.
    let puppets: [Option<Puppet>; 8] = core::array::from_fn(|cpu| {
        (cpu < context().cpus).then(|| machines[cpu % 3].vcpu(context().largest()))
    });
    workers::on_all(|cpu| {
        let guest = puppets[cpu].expect("one for each");
        guest.load();
        guest.start();
        timer::set_tick(timer::frequency() / 2003);
        for generation in 0..24 {
            host::fill(generation);
            guest.fill(generation);
            host::check(generation);
            guest.check(generation);
        }
        timer::set_tick(0);
        guest.put();
        host::check(23);
    });
    Ok(())
}

fn one_vcpu_wanders_over_all_cpus() -> Result<(), Skip> {
    need_cpus(2)?;
    let guest = Machine::normal().started(context().largest());
    guest.fill(0);
    guest.put();
    for turn in 0..12 {
        workers::on(turn as usize % context().cpus, || {
            host::fill(turn);
            guest.load();
            guest.check(turn);
            guest.fill(turn + 1);
            // Every other time it leaves without the host having used FP.
            if turn % 2 == 0 {
                host::check(turn);
            }
            guest.put();
            host::check(turn);
        });
    }
    Ok(())
}

pub(super) fn affinity(cpu: usize) -> u64 {
    context().machine.cpus[cpu]
}

pub(super) fn is_off(cpu: usize) -> bool {
    use smccc::psci::AffinityState;
    matches!(power::affinity_info(affinity(cpu)), Ok(AffinityState::Off))
}

fn r24_cpu_off_and_on_with_a_live_guest() -> Result<(), Skip> {
    need_cpus(2)?;
    for policy in [Policy::Lazy, Policy::Scrub] {
        let guest = Machine::with_policy(policy).started(context().largest());
        guest.put();
        workers::on(1, || {
            host::fill(5);
            guest.load();
            // Live, and still loaded, when the CPU goes.
            guest.fill(1);
        });
        workers::off(1);
        assert!(timer::wait_until(30, || is_off(1)), "CPU 1 does not go off");
        // The implicit put has saved it: it runs elsewhere.
        guest.load();
        guest.check(1);
        guest.put();
        let donated = crate::ledger::take(VM_PAGES);
        let vm = Hvc.vm_create(donated, VM_PAGES, VmConfig::default()).expect("VM_CREATE");
        crate::ledger::enter(vm);
        workers::on_again(1);
        workers::on(1, || {
            // Before anything else of hyp's has run there: EL2's controls are in force.
            assert!(probe_read(donated).is_err(), "there is no stage 2 after CPU_ON");
            host::full_vl();
            // The host of a CPU that was off finds the reset state, not what it once had.
            host::check_zero();
            if context().sve() {
                assert_eq!(Some(regs::rdvl()), context().host_vqs(1).max(), "the host's VL");
                for vq in context().host_vqs(1).iter() {
                    assert_eq!(regs::set_vl(vq), vq);
                }
            }
            host::fill(6);
            guest.load();
            guest.check(1);
            if let Some(vq) = guest.vq {
                assert_eq!(guest.set_len(15), vq);
                assert_eq!(guest.set_len(0), Vq::MIN);
            }
            guest.fill(2);
            let before = host::traps(|| host::check(6));
            assert_eq!(before, 1, "the traps are armed again");
            guest.put();
        });
        guest.load();
        guest.check(2);
        guest.put();
    }
    Ok(())
}

/// SMC with x0-x3.
pub(super) fn psci(function: u32, args: [u64; 3]) -> i64 {
    let mut all = [0; 17];
    all[..3].copy_from_slice(&args);
    smccc::smc64(function, all)[0] as i64
}

pub(super) const CPU_ON: u32 = 0xc400_0003;
pub(super) const AFFINITY_INFO: u32 = 0xc400_0004;
const FEATURES: u32 = 0x8400_000a;

fn psci_affinity_info() -> Result<(), Skip> {
    for cpu in 0..context().cpus {
        assert_eq!(psci(AFFINITY_INFO, [affinity(cpu), 0, 0]), 0, "CPU {cpu} is on");
    }
    assert_eq!(psci(AFFINITY_INFO, [0xff_0000, 0, 0]), -2, "no such CPU");
    assert_eq!(psci(AFFINITY_INFO, [u64::MAX, 0, 0]), -2);
    if context().cpus > 1 {
        workers::off(1);
        assert!(timer::wait_until(30, || is_off(1)), "CPU 1 does not go off");
        workers::on_again(1);
        assert_eq!(psci(AFFINITY_INFO, [affinity(1), 0, 0]), 0);
    }
    Ok(())
}

fn psci_cpu_on_refusals() -> Result<(), Skip> {
    let entry = 0x4020_0000;
    for cpu in 0..context().cpus {
        assert_eq!(psci(CPU_ON, [affinity(cpu), entry, 0]), -4, "CPU {cpu}: ALREADY_ON");
    }
    for target in [0xff_0000, context().cpus as u64 + 0x100, u64::MAX, 1 << 31] {
        assert_eq!(psci(CPU_ON, [target, entry, 0]), -2, "{target:#x}: INVALID_PARAMETERS");
    }
    Ok(())
}

fn psci_features_and_unknown_functions() -> Result<(), Skip> {
    assert!(psci(0x8400_0000, [0; 3]) >= 0x1_0000, "PSCI_VERSION");
    for function in [0x8400_0000, 0x8400_0002, CPU_ON, AFFINITY_INFO, 0x8400_0008, 0x8400_0009] {
        assert!(psci(FEATURES, [function.into(), 0, 0]) >= 0, "FEATURES of {function:#x}");
    }
    assert_eq!(psci(FEATURES, [0x8000_0000, 0, 0]), 0, "FEATURES of SMCCC_VERSION");
    for function in [0x8400_0005, 0x8400_001f, 0xc400_0010, 0xdead_beef] {
        assert_eq!(psci(FEATURES, [function, 0, 0]), -1, "{function:#x}");
    }
    // MIGRATE, MEM_PROTECT, and what PSCI doesn't have; other owners; nobody's.
    for function in [0x8400_0005u32, 0xc400_0005, 0x8400_0013, 0x8400_001f, 0x8400_0050] {
        assert_eq!(psci(function, [0; 3]), -1, "{function:#x}");
    }
    for function in [0x8200_0000u32, 0xc200_ff01, 0xb200_0000, 0xbf00_0001, 0, 0x8600_ff00] {
        assert_eq!(psci(function, [0; 3]), -1, "{function:#x}");
    }
    Ok(())
}

fn smccc_version() -> Result<(), Skip> {
    assert_eq!(psci(0x8000_0000, [0; 3]), 0x1_0002, "SMCCC_VERSION");
    assert_eq!(psci(0x8000_0001, [0x8000_0000, 0, 0]), 0, "ARCH_FEATURES of SMCCC_VERSION");
    assert_eq!(psci(0x8000_0001, [0x8000_ffff, 0, 0]), -1, "ARCH_FEATURES of nothing");
    Ok(())
}
