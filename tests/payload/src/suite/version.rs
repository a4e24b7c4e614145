//! VERSION, VL_INFO, STATS and the numbers of functions.

use super::fp_smp::{AFFINITY_INFO, affinity, is_off, psci};
use crate::{
    context::{context, need_cpus, need_sve},
    host, instruction as insn,
    puppet::Machine,
    runner::Skip,
    tests, window, workers,
};
use arrayvec::ArrayVec;
use umbra_host::{
    hypercall::{Hvc, Hypervisor, VlInfo},
    kernel::{MAX_CPUS, smp, sysreg, timer},
};
use umbra_patterns::regs;
use umbra_shared::{
    call::{Counter, Features, Function, INTERFACE_VERSION, Policy},
    error::Error,
    sve::{FPSIMD_BYTES, Layout},
    vl::{Vq, VqSet},
};

tests![
    version_and_features,
    unknown_functions_are_not_supported,
    vl_info_is_what_rdvl_says,
    vl_info_sizes_and_cpus,
    every_cpu_is_told_the_same_of_every_cpu,
    counters_only_grow,
    counters_are_those_of_the_cpu_asked_about,
    bad_cpu,
];

const NOT_SUPPORTED: u64 = Error::NotSupported.code() as u64;

fn id_register(read: impl Fn() -> u64, low_bit: u32) -> u64 {
    read() >> low_bit & 0xf
}

macro_rules! id {
    ($name:literal) => {
        || {
            let value: u64;
            // SAFETY: reads an ID register.
            unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value) };
            value
        }
    };
}

fn version_and_features() -> Result<(), Skip> {
    let version = Hvc.version().expect("VERSION");
    assert_eq!(version.interface, INTERFACE_VERSION);
    // ID_AA64MMFR0_EL1.PARange: from 44 bits on a walk of 40 can begin at level 1.
    let range = id_register(id!("id_aa64mmfr0_el1"), 0);
    assert_eq!(version.ipa_bits, if range >= 4 { 40 } else { 39 });
    let has = |feature| version.features.contains(feature);
    assert_eq!(has(Features::SVE), id_register(id!("id_aa64pfr0_el1"), 32) != 0, "SVE");
    let sme = id_register(id!("id_aa64pfr1_el1"), 24);
    assert_eq!(has(Features::SME), sme != 0, "SME");
    assert_eq!(has(Features::SME2), sme >= 2, "SME2");
    assert_eq!(has(Features::FPMR), id_register(id!("s3_0_c0_c4_2"), 32) != 0, "FPMR");
    let pauth = id_register(id!("id_aa64isar1_el1"), 4) | id_register(id!("id_aa64isar1_el1"), 8);
    let pauth = pauth | id_register(id!("s3_0_c0_c6_2"), 12);
    assert_eq!(has(Features::PAUTH), pauth != 0, "PAuth");
    assert_eq!(has(Features::AARCH32), id_register(id!("id_aa64pfr0_el1"), 4) == 2, "AArch32");
    assert_eq!(has(Features::HOST_VL_COMMON), context().host_vl_common(), "umbra.host-vl");
    let lazy = context().protected_policy() == Policy::Lazy;
    assert_eq!(has(Features::PROTECTED_FP_LAZY), lazy, "umbra.protected-fp");
    // What the machine has beside the host's UART is withheld, or behind an SMMU.
    assert!(has(Features::PROTECTED_VMS), "umbra.dma");
    Ok(())
}

fn unknown_functions_are_not_supported() -> Result<(), Skip> {
    let known = |n: u64| Function::ALL.iter().any(|&f| f as u64 == n);
    let numbers = (0..0x400).chain([0x8000, 0xfeff, 0xff03, 0xffff]).filter(|&n| !known(n));
    for id in numbers.map(|n| 0xc600_0000 | n) {
        let (x0, results) = Hvc::raw(id, [u64::MAX; 7]);
        assert_eq!(x0, NOT_SUPPORTED, "{id:#x}");
        // Whoever meant something else by the number finds the registers it counts on.
        assert_eq!(results[..7], [u64::MAX; 7], "{id:#x}");
    }
    // Yielding calls, 32-bit calls, other owners.
    for id in [0, 1, 0x4600_0000, 0x8600_0000, 0xc400_0000, 0x8400_0000, 0xc500_0001, 0xffff_ffff] {
        assert_eq!(Hvc::raw(id, [0; 7]).0, NOT_SUPPORTED, "{id:#x}");
    }
    Ok(())
}

fn vl_info_is_what_rdvl_says() -> Result<(), Skip> {
    need_sve()?;
    workers::on_all(|cpu| {
        let mut found = VqSet::EMPTY;
        for len in (0..16).rev() {
            found = found.with(regs::set_vl(Vq::from_len(len)));
        }
        regs::set_vl(Vq::MAX);
        assert_eq!(found, context().host_vqs(cpu), "vector lengths of CPU {cpu}");
    });
    let booted = (0..context().cpus).filter(|cpu| !context().late.contains(cpu));
    let all = VqSet::common(booted.map(|cpu| context().vqs[cpu]));
    assert_eq!(all, context().guests);
    Ok(())
}

fn vl_info_sizes_and_cpus() -> Result<(), Skip> {
    let all = Hvc.vl_info(None).expect("VL_INFO");
    assert_eq!(all.cpus, context().cpus as u64);
    let image = context().image_vq().map_or(FPSIMD_BYTES, |vq| Layout::new(vq).image_bytes());
    for n in 0..all.cpus {
        let info = Hvc.vl_info(Some(n)).expect("VL_INFO");
        assert!(info.online, "CPU {n} is up");
        assert_eq!(info.cpus, all.cpus);
        assert!(info.image_bytes >= image as u64, "CPU {n}: image of {} bytes", info.image_bytes);
    }
    Ok(())
}

fn counters_only_grow() -> Result<(), Skip> {
    let me = context().at_hyp(smp::cpu());
    let before = Hvc.stats(me).expect("STATS");
    let after = Hvc.stats(me).expect("STATS");
    assert!(before.iter().zip(&after).all(|(b, a)| a >= b));
    // Beyond the last counter there are zeroes.
    let (x0, results) =
        Hvc::raw(Function::Stats.id(), [me, Counter::ALL.len() as u64, 0, 0, 0, 0, 0]);
    assert_eq!((x0, results), (0, [0; 8]));
    assert_eq!(Hvc::raw(Function::Stats.id(), [me, u64::MAX - 3, 0, 0, 0, 0, 0]), (0, [0; 8]));
    Ok(())
}

/// Whoever asks, VL_INFO and AFFINITY_INFO answer for the CPU that was asked about.
fn every_cpu_is_told_the_same_of_every_cpu() -> Result<(), Skip> {
    need_cpus(2)?;
    let here: ArrayVec<VlInfo, MAX_CPUS> = (0..context().cpus)
        .map(|cpu| Hvc.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO"))
        .collect();
    workers::on_all(|asker| {
        for (cpu, expected) in here.iter().enumerate() {
            let info = Hvc.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO");
            assert_eq!(info, *expected, "CPU {asker} asks about CPU {cpu}");
            assert_eq!(info.affinity, context().machine.cpus[cpu], "CPU {asker}, CPU {cpu}");
            assert_eq!(info.vqs, context().vqs[cpu], "CPU {asker} asks about CPU {cpu}");
            assert_eq!(psci(AFFINITY_INFO, [affinity(cpu), 0, 0]), 0, "CPU {asker}, CPU {cpu}");
        }
    });
    // And of one that is off: all others say so, at the same time.
    let off = context().cpus - 1;
    workers::off(off);
    assert!(timer::wait_until(30, || is_off(off)), "CPU {off} does not go off");
    for asker in 0..off {
        workers::on(asker, || {
            for cpu in 0..context().cpus {
                let expected = i64::from(cpu == off);
                let info = psci(AFFINITY_INFO, [affinity(cpu), 0, 0]);
                assert_eq!(info, expected, "CPU {asker} asks about CPU {cpu}");
            }
        });
    }
    workers::on_again(off);
    Ok(())
}

/// Each CPU does another number of things, and every CPU is told the same of each: what it did.
fn counters_are_those_of_the_cpu_asked_about() -> Result<(), Skip> {
    need_cpus(2)?;
    let cpus = context().cpus;
    let all = || -> ArrayVec<_, MAX_CPUS> {
        (0..cpus).map(|cpu| Hvc.stats(context().at_hyp(cpu)).expect("STATS")).collect()
    };
    let guest = Machine::normal().started(context().largest());
    guest.put();
    let hidden = super::pages::hyp_page();
    let entries = |cpu: usize| 3 + 2 * cpu as u64;
    workers::on_all(|_| host::make_live());
    let before = all();
    for cpu in 0..cpus {
        workers::on(cpu, || {
            guest.load();
            let daif = sysreg::mask_interrupts();
            // Each first access of guest and host is a trap, a save and a load, by the lazy policy.
            for _ in 0..cpu + 1 {
                host::fill(1);
                guest.exec(insn::FP, 0);
                host::check(1);
            }
            for n in 0..entries(cpu) {
                assert_eq!(guest.exec(insn::NOP, n), n);
            }
            sysreg::restore_interrupts(daif);
            guest.put();
            window::open(|window| {
                for _ in 0..cpu + 2 {
                    window.read(hidden).expect_err("a read of hyp's memory");
                }
            });
        });
    }
    let after = all();
    workers::on_all(|asker| {
        for (cpu, now) in all().iter().enumerate() {
            assert_eq!(*now, after[cpu], "CPU {asker} asks about CPU {cpu}");
        }
    });
    for (cpu, (before, after)) in before.iter().zip(&after).enumerate() {
        let did = |counter: Counter| after[counter as usize] - before[counter as usize];
        let accesses = cpu as u64 + 1;
        assert_eq!(did(Counter::Runs), entries(cpu) + accesses, "CPU {cpu}: runs");
        for counter in [
            Counter::GuestFpTraps,
            Counter::HostFpTraps,
            Counter::HostLoads,
            Counter::GuestSaves,
            Counter::GuestLoads,
        ] {
            assert_eq!(did(counter), accesses, "CPU {cpu}: {counter:?}");
        }
        let saves = did(Counter::HostSavesFull) + did(Counter::HostSavesFpsimd);
        assert_eq!(saves, accesses, "CPU {cpu}: host saves");
        assert_eq!(did(Counter::HostSavesAvoided), 0, "CPU {cpu}: host saves avoided");
        assert_eq!(did(Counter::HostAborts), cpu as u64 + 2, "CPU {cpu}: aborts");
        assert_eq!(did(Counter::Stage2Retries), 0, "CPU {cpu}: retries");
        assert!(did(Counter::BytesMoved) > 0, "CPU {cpu}: bytes");
    }
    Ok(())
}

fn bad_cpu() -> Result<(), Skip> {
    for cpu in [context().cpus as u64, 1 << 32, u64::MAX - 1] {
        assert_eq!(Hvc.vl_info(Some(cpu)), Err(Error::BadCpu), "VL_INFO of {cpu:#x}");
        assert_eq!(Hvc.stats(cpu), Err(Error::BadCpu), "STATS of {cpu:#x}");
    }
    assert_eq!(Hvc.stats(u64::MAX), Err(Error::BadCpu));
    Ok(())
}
