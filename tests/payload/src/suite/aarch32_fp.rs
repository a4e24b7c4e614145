//! VFP and Advanced SIMD of AArch32 guests, and FPEXC, which is theirs although hyp needs it: an access with
//! FPEXC.EN clear is UNDEFINED before CPTR_EL2 could trap it, so hyp sets EN in FPEXC32_EL2 while another's
//! registers are in the way, and only then (r29).

use super::POLICIES;
use crate::{
    context::{Counters, context, need_aarch32, need_cpus},
    host,
    instruction32::{self as insn, reg},
    puppet::{self, NOWHERE},
    puppet32::{self, Event32, Puppet32, Routine},
    runner::Skip,
    tests, workers,
};
use umbra_host::kernel::{sysreg, timer};
use umbra_shared::{
    call::{Counter, Policy, VmConfig},
    exit::{Reason, RunFlags},
};

tests![
    r29_vfp_with_en_clear_is_the_guests_own_undefined,
    r29_fpexc_is_the_guests_own_at_all_times,
    r29_each_guest_has_its_own_fpexc,
    r29_a_vfp_instruction_that_fails_its_condition,
    r29_vfp_from_user_mode,
    r29_cpacr_is_the_guests_own_too,
    r29_a_guest_without_vfp_costs_nothing,
    r29_registers_survive_every_kind_of_exit,
    r29_registers_survive_other_guests,
    r29_registers_survive_preemption,
    r29_registers_survive_migration,
    r29_a_new_vcpu_finds_the_reset_state,
    r29_a_protected_guest_computes,
    aarch32_vfp_and_simd_compute,
];

/// FPEXC.EN
const EN: u32 = 1 << 30;

/// The two kinds of VFP register access, and Advanced SIMD.
const ACCESSES: [u32; 4] = [insn::VMOV_S0, insn::VMOV_R0, insn::VMRS_FPSCR, insn::VADD];

/// All of FPEXC: some bits are RES1.
fn fpexc(guest: &Puppet32) -> u32 {
    guest.exec(insn::VMRS_FPEXC, 0xdead_beef)
}

/// FPEXC.EN.
fn en(guest: &Puppet32) -> u32 {
    fpexc(guest) & EN
}

fn set_fpexc(guest: &Puppet32, value: u32) {
    guest.exec(insn::VMSR_FPEXC, value);
}

/// The guest's FP is open (its own state is live), or another's state is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trap {
    Armed,
    Open,
}

/// Brings it about. With a policy that moves the guest's state out at each exit it is always armed.
fn arrange(guest: &Puppet32, trap: Trap) {
    match trap {
        Trap::Armed => host::make_live(),
        // VMRS FPEXC needs no EN, and traps as everything else does.
        Trap::Open => {
            fpexc(guest);
        }
    }
}

fn r29_vfp_with_en_clear_is_the_guests_own_undefined() -> Result<(), Skip> {
    need_aarch32()?;
    for policy in POLICIES {
        let guest = puppet32::started(policy);
        for (n, access) in ACCESSES.into_iter().enumerate() {
            for trap in [Trap::Armed, Trap::Open, Trap::Armed] {
                let what = (policy, trap, n);
                set_fpexc(&guest, 0);
                host::fill(n as u32);
                arrange(&guest, trap);
                let e = guest.undefined(access);
                assert_eq!(e.lr, guest.area() + 4, "{what:?}: where");
                assert_eq!(en(&guest), 0, "{what:?}: FPEXC");
                host::check(n as u32);
                // The same with EN: it works, the first time and again.
                set_fpexc(&guest, EN);
                arrange(&guest, trap);
                for _ in 0..2 {
                    guest.exec(access, 0x3f80_0000);
                    assert_eq!(en(&guest), EN, "{what:?}: FPEXC");
                }
                host::check(n as u32);
            }
        }
        guest.put();
    }
    Ok(())
}

fn r29_fpexc_is_the_guests_own_at_all_times() -> Result<(), Skip> {
    need_aarch32()?;
    for policy in POLICIES {
        let guest = puppet32::started(policy);
        assert_eq!(en(&guest), 0, "at reset");
        for en in [0, EN, 0, EN] {
            set_fpexc(&guest, en);
            let expected = fpexc(&guest);
            assert_eq!(expected & EN, en);
            for round in 0..3 {
                // The first instruction behind each entry is the one that looks.
                for displace in [true, false] {
                    if displace {
                        host::make_live();
                    }
                    assert_eq!(fpexc(&guest), expected, "{policy:?} {round} {displace}");
                }
                guest.put();
                guest.load();
                assert_eq!(fpexc(&guest), expected, "{policy:?} {round}: loaded again");
                guest.exec(insn::NOP, 0);
                // A read behind the access that makes its state live.
                host::make_live();
                let code = [insn::VMRS_FPSCR, insn::VMRS_FPEXC, insn::BX_LR];
                match guest.run_code(&code, 0, 0) {
                    Event32::Done(r) => assert_eq!((r[0], en), (expected, EN)),
                    Event32::Exception(e) => assert!(e.is_undefined() && en == 0, "{e:x?}"),
                    event => panic!("{event:x?}"),
                }
            }
        }
        guest.put();
    }
    Ok(())
}

fn r29_each_guest_has_its_own_fpexc() -> Result<(), Skip> {
    need_aarch32()?;
    for policy in POLICIES {
        let config = VmConfig { policy, protected: false, ..VmConfig::normal() };
        let machine = puppet32::machine(config);
        let guests = [
            (puppet32::vcpu(&machine), 0),
            (puppet32::vcpu(&machine), EN),
            (puppet32::vcpu(&puppet32::machine(config)), 0),
        ];
        let aarch64 = puppet::Machine::with_policy(policy).vcpu(context().largest());
        for (guest, en) in &guests {
            guest.loaded(|guest| {
                guest.start();
                set_fpexc(guest, *en);
            });
        }
        aarch64.loaded(|guest| guest.start());
        for round in 0..3 {
            for (n, (guest, en)) in guests.iter().enumerate() {
                guest.loaded(|guest| {
                    let works = matches!(guest.attempt(insn::VMOV_S0, 1), Event32::Done(_));
                    assert_eq!(works, *en == EN, "guest {n}, {policy:?}");
                    assert_eq!(self::en(guest), *en, "guest {n}, {policy:?}");
                });
                if round > 0 {
                    aarch64.loaded(|guest| {
                        guest.fill(round);
                        guest.check(round);
                    });
                }
            }
        }
    }
    Ok(())
}

fn r29_a_vfp_instruction_that_fails_its_condition() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = puppet32::started(Policy::Lazy);
    set_fpexc(&guest, EN);
    guest.exec(insn::VMOV_S0, 0x1234_5678);
    for z in [0, 1 << 30] {
        host::make_live();
        // MSR CPSR_f, r0; VMOVEQ r0, s0.
        let code = [insn::MSR_FLAGS, insn::conditional(insn::VMOV_R0, 0), insn::BX_LR];
        let r0 = guest.run_code(&code, z, 0).done()[0];
        assert_eq!(r0, if z == 0 { 0 } else { 0x1234_5678 });
    }
    // CMP r0, r1; IT EQ; VMOVEQ r0, s0; BX LR in T32.
    let word = insn::VMOV_R0;
    let code = [0x4288, 0xbf08, (word >> 16) as u16, word as u16, 0x4770];
    for (r1, expected) in [(5, 0x1234_5678), (6, 5)] {
        host::make_live();
        assert_eq!(guest.run_thumb(&code, 5, r1).done()[0], expected);
    }
    assert_eq!(en(&guest), EN);
    Ok(())
}

fn r29_vfp_from_user_mode() -> Result<(), Skip> {
    need_aarch32()?;
    const USR: u32 = 0x10;
    // SVC #0
    const SVC: u32 = 0xef00_0000;
    let guest = puppet32::started(Policy::Lazy);
    for trap in [Trap::Armed, Trap::Open] {
        for en in [0, EN] {
            set_fpexc(&guest, en);
            arrange(&guest, trap);
            guest.write_code(&[insn::VMOV_S0, SVC, insn::BX_LR]);
            let e = guest.begin(Routine::Modes, [guest.area(), USR, 0]);
            let Event32::Exception(e) = e else { panic!("{e:x?}") };
            let expected = if en == 0 { (1, guest.area() + 4) } else { (2, guest.area() + 8) };
            assert_eq!((e.vector, e.lr), expected, "{trap:?}, EN {en:#x}");
            assert_eq!(self::en(&guest), en);
        }
    }
    Ok(())
}

fn r29_cpacr_is_the_guests_own_too() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = puppet32::started(Policy::Lazy);
    set_fpexc(&guest, EN);
    let cpacr = guest.exec(reg::CPACR.mrc(), 0);
    for trap in [Trap::Armed, Trap::Open] {
        arrange(&guest, trap);
        guest.exec(reg::CPACR.mcr(), 0);
        let before = Counters::now();
        for access in ACCESSES.into_iter().chain([insn::VMRS_FPEXC]) {
            guest.undefined(access);
        }
        assert_eq!(before.since(Counter::GuestFpTraps), 0, "{trap:?}: hyp has no part in it");
        guest.exec(reg::CPACR.mcr(), cpacr);
    }
    assert_eq!(en(&guest), EN);
    Ok(())
}

fn r29_a_guest_without_vfp_costs_nothing() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = puppet32::started(Policy::Lazy);
    let moves = [
        Counter::GuestFpTraps,
        Counter::GuestLoads,
        Counter::GuestSaves,
        Counter::HostFpTraps,
        Counter::HostLoads,
    ];
    host::fill(1);
    let before = Counters::now();
    for n in 0..16 {
        guest.exec(insn::NOP, n);
        host::check(1);
    }
    guest.put();
    guest.load();
    assert_eq!(before.deltas(moves), [0; 5], "traps, loads and saves");
    // And one that uses it pays once.
    set_fpexc(&guest, EN);
    for _ in 0..8 {
        guest.exec(insn::VMOV_S0, 1);
    }
    assert_eq!(before.deltas(moves), [1, 1, 0, 0, 0], "while nobody else uses FP");
    host::check(1);
    assert_eq!(before.deltas(moves), [1, 1, 1, 1, 1]);
    Ok(())
}

fn filled(policy: Policy, generation: u32) -> Puppet32 {
    let guest = puppet32::started(policy);
    set_fpexc(&guest, EN);
    guest.fill_vfp(generation);
    guest
}

fn r29_registers_survive_every_kind_of_exit() -> Result<(), Skip> {
    need_aarch32()?;
    for policy in POLICIES {
        for displace in [false, true] {
            let guest = filled(policy, 1);
            host::full_vl();
            let others = |generation| {
                if displace {
                    host::fill(generation);
                }
            };
            let check = |generation| {
                guest.check_vfp(1);
                if displace {
                    host::check(generation);
                }
            };
            others(1);
            check(1);
            guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
            others(2);
            guest.resume(RunFlags::empty(), [0; 4]).done();
            check(2);
            guest.at(NOWHERE);
            guest.attempt(insn::LDR, 0).exit(Reason::Mmio);
            others(3);
            assert_eq!(guest.resume(RunFlags::empty(), [7, 0, 0, 0]).done()[0], 7);
            check(3);
            guest.attempt(insn::HVC, 5).exit(Reason::Hvc);
            others(4);
            guest.resume(RunFlags::empty(), [0; 4]).done();
            check(4);
            guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
            let daif = host::pend_interrupt();
            guest.enter(RunFlags::empty(), [0; 4]).exit(Reason::Irq);
            host::release_interrupt(daif);
            others(5);
            guest.resume(RunFlags::empty(), [0; 4]).done();
            check(5);
            guest.undefined(insn::UDF);
            others(6);
            check(6);
            guest.put();
        }
    }
    Ok(())
}

fn r29_registers_survive_other_guests() -> Result<(), Skip> {
    need_aarch32()?;
    for policy in POLICIES {
        let machine =
            puppet32::machine(VmConfig { policy, protected: false, ..VmConfig::normal() });
        let other = puppet32::machine(VmConfig { policy, protected: false, ..VmConfig::normal() });
        let guests = [&machine, &machine, &other].map(puppet32::vcpu);
        let aarch64 = puppet::Machine::with_policy(policy).vcpu(context().largest());
        for (n, guest) in (1..).zip(&guests) {
            guest.loaded(|guest| {
                guest.start();
                set_fpexc(guest, EN);
                guest.fill_vfp(n);
            });
        }
        aarch64.loaded(|guest| {
            guest.start();
            guest.fill(9);
        });
        host::full_vl();
        for round in 0..3 {
            for (n, guest) in (1..).zip(&guests) {
                host::fill(round);
                guest.loaded(|guest| guest.check_vfp(n));
                aarch64.loaded(|guest| guest.check(9));
                guest.loaded(|guest| guest.check_vfp(n));
                host::check(round);
            }
        }
    }
    Ok(())
}

fn r29_registers_survive_preemption() -> Result<(), Skip> {
    need_aarch32()?;
    for policy in POLICIES {
        let guest = filled(policy, 3);
        host::full_vl();
        host::fill(1);
        let counter = guest.scratch();
        let [address, a, b] = [Routine::Count.address(), counter.into(), 20_000];
        let mut answer = [address, a, b, 0];
        let mut interrupts = 0;
        timer::set_tick(timer::frequency() / 2000);
        let end = loop {
            let exit = guest.try_enter(RunFlags::empty(), answer).expect("VCPU_RUN");
            if exit.info.reason() != Some(Reason::Irq) {
                break exit;
            }
            answer = [0; 4];
            interrupts += 1;
            if interrupts % 2 == 0 {
                host::check(1);
            }
            assert!(interrupts < 1_000_000, "the guest makes no progress");
        };
        timer::set_tick(0);
        assert_eq!(end.data[1], 20_000, "the guest has counted");
        guest.check_vfp(3);
        host::check(1);
        guest.put();
    }
    Ok(())
}

fn r29_registers_survive_migration() -> Result<(), Skip> {
    need_aarch32()?;
    need_cpus(2)?;
    for policy in POLICIES {
        let guest = filled(policy, 5);
        guest.put();
        for round in 0..3 {
            for here in 0..context().cpus {
                workers::on_all(|cpu| {
                    if cpu == here {
                        host::full_vl();
                        host::fill(round);
                        guest.loaded(|guest| {
                            guest.check_vfp(5);
                            assert_eq!(en(guest), EN, "{policy:?} on CPU {cpu}");
                        });
                        host::check(round);
                    }
                });
            }
        }
    }
    Ok(())
}

fn r29_a_new_vcpu_finds_the_reset_state() -> Result<(), Skip> {
    need_aarch32()?;
    for policy in POLICIES {
        let old = filled(policy, 1);
        host::make_live();
        old.check_vfp(1);
        old.put();
        assert_eq!(crate::ledger::destroy(old.machine.vm), 0);
        let new = puppet32::started(policy);
        assert_eq!(en(&new), 0, "FPEXC");
        new.undefined(insn::VMOV_S0);
        set_fpexc(&new, EN);
        new.check_vfp_reset();
        new.put();
    }
    Ok(())
}

fn r29_a_protected_guest_computes() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = puppet32::started_in(VmConfig::protected());
    guest.undefined(insn::VMOV_S0);
    set_fpexc(&guest, EN);
    for value in [1, 0x8000_0000, 0x7fff_ffff] {
        host::make_live();
        guest.exec(insn::VMOV_S0, value);
        host::fill(value);
        // VADD.I32 Q0, Q0, Q0
        guest.exec(insn::VADD, 0);
        host::check(value);
        assert_eq!(guest.exec(insn::VMOV_R0, 0), value.wrapping_mul(2));
        host::check(value);
    }
    assert_eq!(en(&guest), EN);
    Ok(())
}

fn aarch32_vfp_and_simd_compute() -> Result<(), Skip> {
    need_aarch32()?;
    let guest = puppet32::started(Policy::Lazy);
    set_fpexc(&guest, EN);
    let (from, to) = (guest.0.scratch(), guest.0.scratch() + 256);
    let doubles = [1.5f64, -0.125];
    let singles = [[1.0f32, 2.5, -3.0, 0.5], [4.0, -0.5, 0.25, 1024.0]];
    let bytes: [u8; 16] = core::array::from_fn(|n| (17 * n + 3) as u8);
    let memory = guest.memory(from, 64);
    let words = doubles.map(f64::to_le_bytes);
    let quarters = singles.map(|singles| singles.map(f32::to_le_bytes));
    for (to, from) in memory.chunks_mut(8).zip(words) {
        to.copy_from_slice(&from);
    }
    for (to, from) in memory[16..48].chunks_mut(4).zip(quarters.as_flattened()) {
        to.copy_from_slice(from);
    }
    memory[48..].copy_from_slice(&bytes);
    sysreg::clean_to_poc(memory.as_ptr() as usize, memory.len());
    for displace in [true, false] {
        if displace {
            host::make_live();
        }
        guest.memory(to, 96).fill(0);
        guest.memory(to, 96);
        guest.call(Routine::Compute, [from as u32, to as u32, 0]);
        let found = guest.memory(to, 96);
        let double = |n: usize| f64::from_le_bytes(found[8 * n..][..8].try_into().expect("8"));
        let [a, b] = doubles;
        assert_eq!([double(0), double(1), double(2)], [a + b, a * b, a / b]);
        assert_eq!(found[24..32], found[16..24]);
        let single = |n: usize| f32::from_le_bytes(found[32 + 4 * n..][..4].try_into().expect("4"));
        for (n, (a, b)) in singles[0].into_iter().zip(singles[1]).enumerate() {
            assert_eq!([single(n), single(4 + n)], [a + b, a * b], "lane {n}");
        }
        let reversed: [u8; 16] = core::array::from_fn(|n| bytes[15 - n]);
        assert_eq!(found[64..80], reversed);
        let sum: u64 = bytes.iter().map(|&b| u64::from(b)).sum();
        assert_eq!(found[80..88], sum.to_le_bytes());
        assert_eq!(found[88..96], [0; 8]);
    }
    Ok(())
}
