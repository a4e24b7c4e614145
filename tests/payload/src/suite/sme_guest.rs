//! What SME is to a guest: its clamp, its registers, what shows of it, and that without it there is none.

use crate::{
    context::{context, effective_streaming, need_sme},
    host, instruction as insn,
    instruction::{SysReg, sysreg},
    ledger,
    puppet::{BASE, Event, Machine, Puppet, Routine, flag_page},
    runner::Skip,
    streaming::{self, Guest, MODES, host_finds},
    tests, workers,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_patterns::{
    model::{SM, ZA},
    regs::sme,
};
use umbra_shared::{
    call::{
        Features, Policy, Start, UntrustedAffinity, UntrustedPa, UntrustedPages, VcpuConfig,
        VcpuIndex,
    },
    error::Error,
    vcpu::{UntrustedFeatures, VcpuFeatures},
    vl::Vq,
};

tests![
    i4_no_guest_exceeds_its_streaming_clamp,
    smcr_of_a_guest_takes_any_value,
    r14_streaming_lengths_are_checked,
    r15_a_refused_streaming_vcpu_changes_nothing,
    vl_mismatch_for_streaming_lengths,
    r25_a_new_vcpu_finds_streaming_mode_in_its_reset_state,
    smstart_and_smstop_in_every_order,
    sme_shows_to_those_who_have_it,
    sme_without_sve,
    streaming_mode_with_sve_closed_at_el1,
    r26_sme_beside_no_sme,
    r09_guest_shrinks_its_streaming_length_and_regrows,
    no_sme_guest_has_fpmr,
];

fn machine() -> Machine {
    streaming::machine(Policy::Lazy)
}

fn i4_no_guest_exceeds_its_streaming_clamp() -> Result<(), Skip> {
    need_sme()?;
    for svq in context().common_streaming.iter() {
        for vq in [context().largest(), None] {
            let guest = machine().vcpu_with(VcpuFeatures::sme(vq, svq));
            for cpu in 0..context().cpus {
                workers::on(cpu, || {
                    streaming::host(if cpu % 2 == 0 { SM | ZA } else { 0 });
                    guest.load();
                    if cpu == 0 {
                        guest.start();
                    }
                    let junk = [0x1ff, sme::FA64 | sme::EZT0 | 0xf, u64::MAX, u64::MAX << 4];
                    for smcr in (0..16).chain(junk) {
                        let given = guest.call(Routine::SetSmcr, [smcr, 0, 0])[0];
                        let asked = Vq::from_len(smcr).min(svq);
                        let expected = effective_streaming(context().svqs[cpu], asked);
                        assert_eq!(Vq::from_vl(given), expected, "SMCR_EL1 {smcr:#x}, CPU {cpu}");
                        // In streaming mode it is the VL.
                        guest.call(Routine::SetSvcr, [SM, 0, 0]);
                        assert_eq!(Some(guest.rdvl()), expected, "SMCR_EL1 {smcr:#x}, streaming");
                        guest.call(Routine::SetSvcr, [0, 0, 0]);
                        if let Some(vq) = vq {
                            assert_eq!(guest.set_len(15), vq, "the other clamp");
                        }
                    }
                    guest.call(Routine::SetSmcr, [15, 0, 0]);
                    let given = guest.call(Routine::Rdsvl, [0; 3])[0];
                    assert_eq!(Vq::from_vl(given), Some(svq), "the clamp itself");
                    guest.put();
                    host_finds();
                });
            }
            assert_eq!(ledger::destroy(guest.machine.vm), 0);
        }
    }
    Ok(())
}

fn smcr_of_a_guest_takes_any_value() -> Result<(), Skip> {
    need_sme()?;
    let guest = Guest::new(Policy::Lazy).puppet;
    for len in 0..16 {
        let ezt0 = if sme::has_zt0() { sme::EZT0 } else { 0 };
        let value = len | (ezt0 * (len & 1)) | if sme::has_fa64() { sme::FA64 } else { 0 };
        guest.write(sysreg::SMCR, value);
        streaming::host(SM | ZA);
        assert_eq!(guest.read(sysreg::SMCR), value, "SMCR_EL1 across a switch");
        guest.put();
        host_finds();
        guest.load();
        assert_eq!(guest.read(sysreg::SMCR), value, "SMCR_EL1 across put and load");
    }
    Ok(())
}

fn create(machine: &Machine, pages: (u64, u64), flag_page: u64, raw: u64) -> Result<(), Error> {
    let config = VcpuConfig {
        vm: machine.vm,
        index: VcpuIndex(ledger::vcpus(machine.vm)),
        affinity: UntrustedAffinity(ledger::vcpus(machine.vm)),
        pages: UntrustedPages { start: UntrustedPa(pages.0), count: pages.1 },
        flag_page: UntrustedPa(flag_page),
        features: UntrustedFeatures(raw),
        start: Start::At { entry: BASE, argument: 0 },
    };
    Hvc.vcpu_create(config).map(drop)
}

fn r14_streaming_lengths_are_checked() -> Result<(), Skip> {
    let machine = Machine::normal();
    let pages = (ledger::take(40), 40);
    let (flags, _) = flag_page();
    let largest = context().guests_streaming.max().map_or(0, |svq| svq.vl_bytes() as u64);
    let bad = if largest == 0 { Error::NoSme } else { Error::BadVl };
    for svl in [8, 17, 24, 257, 512, largest + 16, 0xffff, 0xfff0, 48] {
        assert_eq!(create(&machine, pages, flags, svl << 16), Err(bad), "SVL {svl}");
    }
    // Lengths that the CPUs lack.
    let streaming = context().guests_streaming;
    for svq in (1..=16).filter_map(Vq::new).filter(|&svq| !streaming.contains(svq)) {
        let features = VcpuFeatures::sme(context().largest(), svq);
        let pages = (pages.0, features.pages());
        let raw = UntrustedFeatures::from(features).0;
        assert_eq!(create(&machine, pages, flags, raw), Err(bad), "SVL {svq}");
    }
    for page in ledger::each(pages.0, pages.1) {
        super::pages::assert_ours(page);
    }
    assert_eq!(Hvc.unshare_flag_page(flags), Ok(()), "the flag page is not in use");
    // What is good works: every common one.
    for svq in streaming.iter().take(2) {
        machine.vcpu_with(VcpuFeatures::sme(None, svq));
    }
    Ok(())
}

fn r15_a_refused_streaming_vcpu_changes_nothing() -> Result<(), Skip> {
    need_sme()?;
    let machine = machine();
    let mut guest = Guest::started(&machine, context().everything());
    guest.switch(SM | ZA);
    guest.fill();
    let (flags, _) = flag_page();
    let features = context().everything();
    let count = features.pages();
    let first = ledger::take(count);
    let raw = UntrustedFeatures::from(features).0;
    assert_eq!(create(&machine, (first, count - 1), flags, raw), Err(Error::TooFewPages));
    assert_eq!(create(&machine, (first, count), flags, raw | 0xff << 16), Err(Error::BadVl));
    guest.check();
    assert_eq!(create(&machine, (first, count), flags, raw), Ok(()));
    guest.check();
    Ok(())
}

/// A late CPU that lacks a guest's SVL refuses it.
fn vl_mismatch_for_streaming_lengths() -> Result<(), Skip> {
    let mut lacking = 0;
    for svq in context().guests_streaming.iter() {
        for cpu in 0..context().cpus {
            if context().svqs[cpu].contains(svq) {
                continue;
            }
            lacking += 1;
            let mut guest = Guest::started(&machine(), VcpuFeatures::sme(None, svq));
            guest.switch(SM | ZA);
            guest.fill();
            guest.puppet.put();
            workers::on(cpu, || {
                streaming::host(SM | ZA);
                let load = Hvc.vcpu_load(guest.puppet.machine.vm, guest.puppet.index);
                assert_eq!(load, Err(Error::VlMismatch), "{svq} on CPU {cpu}");
                assert_eq!(Hvc.vcpu_put(), Err(Error::NotLoaded));
                host_finds();
            });
            guest.loaded(Guest::check);
            guest.destroy();
        }
    }
    if lacking == 0 { Err(Skip("all CPUs have all streaming lengths of guests")) } else { Ok(()) }
}

fn r25_a_new_vcpu_finds_streaming_mode_in_its_reset_state() -> Result<(), Skip> {
    need_sme()?;
    for policy in super::POLICIES {
        for features in
            [context().everything(), VcpuFeatures { vq: None, ..context().everything() }]
        {
            let machine = streaming::machine(policy);
            for round in 0..2 {
                streaming::host(SM | ZA);
                let puppet = machine.vcpu_with(features);
                puppet.load();
                puppet.start();
                assert_eq!(puppet.call(Routine::Svcr, [0; 3])[0], 0, "round {round}: SVCR");
                assert_eq!(puppet.read(sysreg::SMCR), 0, "round {round}: SMCR_EL1");
                assert_eq!(puppet.read(sysreg::TPIDR2), 0, "round {round}: TPIDR2_EL0");
                let mut guest = Guest::of(puppet);
                guest.check();
                for svcr in [ZA, SM | ZA, SM, 0] {
                    guest.switch(svcr);
                    guest.check();
                    guest.fill();
                }
                guest.switch(SM | ZA);
                guest.fill();
                guest.puppet.put();
                host_finds();
            }
            assert_eq!(ledger::destroy(machine.vm), 0);
        }
    }
    Ok(())
}

/// By instructions, not by SVCR, and with the host between any two of them.
fn smstart_and_smstop_in_every_order() -> Result<(), Skip> {
    need_sme()?;
    // MSR SVCRSM, SVCRZA, SVCRSMZA, to 0 and to 1.
    let write = |bits: u32, on: u32| 0xd503_407f | bits << 9 | on << 8;
    assert_eq!((write(1, 1), write(2, 1), write(3, 0)), (0xd503_437f, 0xd503_457f, 0xd503_467f));
    let mut guest = Guest::new(Policy::Lazy);
    for from in MODES {
        for bits in 1..4 {
            for on in 0..2 {
                for host_is_live in [false, true] {
                    guest.switch(from);
                    guest.fill();
                    if host_is_live {
                        streaming::host(SM | ZA);
                    }
                    guest.puppet.exec(write(bits, on), 0);
                    let to = from & !u64::from(bits) | u64::from(bits * on);
                    guest.model.set_svcr(to);
                    guest.check();
                    if host_is_live {
                        host_finds();
                    }
                }
            }
        }
    }
    Ok(())
}

fn sme_shows_to_those_who_have_it() -> Result<(), Skip> {
    need_sme()?;
    let version = if context().version.features.contains(Features::SME2) { 2 } else { 1 };
    for features in [VcpuFeatures::sve(context().largest()), context().everything()] {
        let guest = machine().vcpu_with(features);
        guest.load();
        guest.start();
        let (shown, smfr0) = (guest.read(sysreg::PFR1) >> 24 & 0xf, guest.read(sysreg::SMFR0));
        if features.svq.is_none() {
            assert_eq!((shown, smfr0), (0, 0), "ID registers without SME");
            for register in [sysreg::SMCR, sysreg::SVCR, sysreg::SMIDR] {
                guest.undefined(register.mrs());
            }
        } else {
            assert!(shown >= 1 && shown <= version, "ID_AA64PFR1_EL1.SME = {shown}");
            assert_eq!(shown >= 2, version >= 2, "SME2");
            assert_eq!(smfr0 >> 63 != 0, sme::has_fa64(), "ID_AA64SMFR0_EL1.FA64");
            let smidr = guest.read(sysreg::SMIDR);
            assert_eq!(smidr >> 15 & 1, 0, "SMIDR_EL1.SMPS: no priorities");
            assert_eq!(smidr & 0xfff, 0, "SMIDR_EL1.Affinity");
            for cpu in 1..context().cpus {
                guest.put();
                workers::on(cpu, || {
                    guest.load();
                    assert_eq!(guest.read(sysreg::SMIDR), smidr, "SMIDR_EL1 on CPU {cpu}");
                    guest.put();
                });
                guest.load();
            }
        }
        hidden_or_zero(&guest, sysreg::SMPRI);
        guest.put();
    }
    Ok(())
}

/// SMPRI_EL1 has no trap but a fine-grained one; emulated machines without FEAT_FGT have a constant zero.
fn hidden_or_zero(guest: &Puppet, register: SysReg) {
    match guest.attempt(register.msr(), u64::MAX) {
        Event::Exception(e) => assert!(e.is_undefined(), "{e:x?}"),
        Event::Done(_) => assert_eq!(guest.read(register), 0, "SMPRI_EL1"),
        event => panic!("SMPRI_EL1: {event:x?}"),
    }
}

/// ESR_EL1: EC 0x1d, IL, SMTC 2: an instruction of streaming mode, outside it.
const NOT_STREAMING: u64 = 0x1d << 26 | 1 << 25 | 2;

fn sme_without_sve() -> Result<(), Skip> {
    let svq = need_sme()?;
    let mut guest = Guest::started(&machine(), VcpuFeatures::sme(None, svq));
    let puppet = guest.puppet;
    assert_eq!(puppet.read(insn::reg(3, 0, 0, 4, 0)) >> 32 & 0xf, 0, "ID_AA64PFR0_EL1.SVE");
    for svcr in MODES {
        for host_is_live in [false, true] {
            guest.switch(svcr);
            guest.fill();
            if host_is_live {
                streaming::host(SM | ZA);
            }
            if svcr & SM == 0 {
                // FP works, SVE is not there. (In streaming mode QEMU traps ZCR_EL1 with SME.)
                puppet.undefined(sysreg::ZCR.mrs());
                for word in [insn::SVE, insn::RDVL] {
                    let refused = match puppet.attempt(word, 0) {
                        // A CPU that has no SVE either says that streaming mode has (SMTC 2).
                        Event::Exception(e) => e.is_undefined() || e.esr == NOT_STREAMING,
                        _ => false,
                    };
                    assert!(refused, "{word:#x} works without SVE");
                }
            } else {
                assert_eq!(puppet.rdvl(), svq, "the SVL");
            }
            guest.check();
            if host_is_live {
                host_finds();
            }
        }
    }
    puppet.put();
    Ok(())
}

/// A guest that opens CPACR_EL1.SMEN and not ZEN has SVE's instructions in streaming mode; also if they are
/// its first access after an exit.
fn streaming_mode_with_sve_closed_at_el1() -> Result<(), Skip> {
    let svq = need_sme()?;
    const CPACR: SysReg = insn::reg(3, 0, 1, 0, 2);
    for vq in [None, context().largest()] {
        for policy in super::POLICIES {
            let machine = streaming::machine(policy);
            let mut guest = Guest::started(&machine, VcpuFeatures::sme(vq, svq));
            for svcr in [SM, SM | ZA] {
                guest.switch(svcr);
                guest.fill();
                guest.puppet.write(CPACR, 3 << 24 | 3 << 20);
                for host_svcr in MODES {
                    assert_eq!(guest.puppet.rdvl(), svq, "the SVL, {policy:?}");
                    streaming::host(host_svcr);
                    assert_eq!(guest.puppet.rdvl(), svq, "the SVL, {policy:?}");
                }
                guest.puppet.write(CPACR, 3 << 24 | 3 << 20 | 3 << 16);
                guest.check();
            }
            guest.puppet.put();
            guest.destroy();
        }
    }
    Ok(())
}

fn r26_sme_beside_no_sme() -> Result<(), Skip> {
    need_sme()?;
    for policy in super::POLICIES {
        let machine = streaming::machine(policy);
        let mut with = Guest::started(&machine, context().everything());
        with.switch(SM | ZA);
        with.fill();
        with.puppet.put();
        let mut without =
            [VcpuFeatures::FPSIMD, VcpuFeatures::sve(context().largest())].map(|features| {
                let mut guest = Guest::started(&machine, features);
                guest.fill();
                guest.puppet.put();
                guest
            });
        for round in 0..3 {
            streaming::host(MODES[round + 1]);
            with.loaded(Guest::check);
            for guest in &mut without {
                guest.loaded(|guest| {
                    let words = [
                        insn::SMSTART_SM,
                        insn::SMSTART_ZA,
                        insn::SMSTOP,
                        insn::RDSVL,
                        insn::ZERO_ZA,
                        sysreg::SVCR.mrs(),
                        sysreg::SMCR.msr(),
                    ];
                    for word in words {
                        guest.puppet.undefined(word);
                    }
                    // With its own state live, and ZA of somebody else's still in place.
                    guest.check();
                    for word in words {
                        guest.puppet.undefined(word);
                    }
                    guest.check();
                });
            }
            host_finds();
        }
        with.loaded(Guest::check);
        assert_eq!(ledger::destroy(machine.vm), 0);
    }
    Ok(())
}

fn r09_guest_shrinks_its_streaming_length_and_regrows() -> Result<(), Skip> {
    need_sme()?;
    for policy in super::POLICIES {
        let mut guest = Guest::new(policy);
        for svcr in [ZA, SM, SM | ZA] {
            for small in context().common_streaming.iter() {
                guest.set_svq(Vq::MAX);
                guest.switch(svcr);
                guest.fill();
                guest.set_svq(small);
                streaming::host(svcr ^ SM);
                guest.check();
                host_finds();
                guest.puppet.put();
                host_finds();
                guest.puppet.load();
                guest.check();
                guest.set_svq(Vq::MAX);
                guest.check();
                host::full_vl();
            }
        }
        guest.puppet.put();
        guest.destroy();
    }
    Ok(())
}

fn no_sme_guest_has_fpmr() -> Result<(), Skip> {
    let there = context().version.features.contains(Features::FPMR);
    assert_eq!(there, sme::has_fpmr(), "Features::FPMR");
    let guest = Machine::normal().started(None);
    assert_eq!(guest.read(sysreg::PFR2) >> 32 & 0xf != 0, there, "ID_AA64PFR2_EL1.FPMR");
    if !there {
        guest.undefined(sysreg::FPMR.mrs());
        guest.undefined(sysreg::FPMR.msr());
        return Ok(());
    }
    for n in 0..4 {
        guest.write(sysreg::FPMR, 0x40 << n);
        host::fill(1);
        assert_eq!(guest.read(sysreg::FPMR), 0x40 << n);
    }
    Ok(())
}
