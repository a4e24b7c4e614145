//! VERSION, VL_INFO, STATS and the numbers of functions.

use crate::{
    context::{context, need_sve},
    runner::Skip,
    tests, workers,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::smp,
};
use umbra_patterns::regs;
use umbra_shared::{
    call::{Counter, Features, Function, INTERFACE_VERSION, SVE_HINT},
    error::Error,
    sve::{FPSIMD_BYTES, Layout},
    vl::{Vq, VqSet},
};

tests![
    version_and_features,
    unknown_functions_are_not_supported,
    sve_hint_bit_selects_nothing,
    upper_half_of_x0_is_ignored,
    vl_info_is_what_rdvl_says,
    vl_info_sizes_and_cpus,
    counters_only_grow,
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

fn sve_hint_bit_selects_nothing() -> Result<(), Skip> {
    let plain = Hvc::raw(Function::Version.id(), [0; 7]);
    assert_eq!(Hvc::raw(Function::Version.id() | SVE_HINT, [0; 7]), plain);
    let put = Hvc::raw(Function::VcpuPut.id() | SVE_HINT, [0; 7]).0;
    assert_eq!(put, Error::NotLoaded.code() as u64);
    Ok(())
}

fn upper_half_of_x0_is_ignored() -> Result<(), Skip> {
    let plain = Hvc::raw(Function::Version.id(), [0; 7]);
    assert_eq!(Hvc::raw(Function::Version.id() | 0xdead_beef << 32, [0; 7]), plain);
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

fn bad_cpu() -> Result<(), Skip> {
    for cpu in [context().cpus as u64, 1 << 32, u64::MAX - 1] {
        assert_eq!(Hvc.vl_info(Some(cpu)), Err(Error::BadCpu), "VL_INFO of {cpu:#x}");
        assert_eq!(Hvc.stats(cpu), Err(Error::BadCpu), "STATS of {cpu:#x}");
    }
    assert_eq!(Hvc.stats(u64::MAX), Err(Error::BadCpu));
    Ok(())
}
