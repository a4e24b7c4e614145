//! Streaming mode, ZA, ZT0 and FPMR, case by case.

use super::*;
use crate::fp::sim::FPSR_AFTER_SM;

const BOTH: Svcr = Svcr::all();
const VLS: u16 = 0b1011;

/// VLs of 16, 32 and 64 bytes, SVLs of 32 and 64.
fn having() -> Having {
    let (vqs, svqs) = (VqSet::from_bits(VLS), VqSet::from_bits(0b1010));
    Having { vqs, svqs, fa64: false, zt0: true, fpmr: true }
}

fn machine(guests: &[Kind]) -> Machine {
    machine_with(false, guests)
}

/// The second CPU has an SVL of 128 bytes, too.
fn machine_with(fa64: bool, guests: &[Kind]) -> Machine {
    let one = Having { fa64, ..having() };
    let cpus = [one, Having { svqs: VqSet::from_bits(0b1000_1010), ..one }];
    Machine::with(&Shape { cpus: &cpus, late: 0, host_common: false }, guests, 3)
}

fn za_moves(m: &Machine, cpu: usize) -> [u64; 4] {
    [Counter::HostZaSaves, Counter::HostZaLoads, Counter::GuestZaSaves, Counter::GuestZaLoads]
        .map(|counter| m.cpus[cpu].stats.get(counter as u64))
}

/// The host fills everything that it has, in this SVCR.
fn fill_host(m: &mut Machine, cpu: usize, svcr: Svcr) {
    m.host_uses(cpu, Use::Svcr(svcr));
    m.host_uses(cpu, Use::Smcr(0xf));
    m.host_use(cpu, Some(0xf));
    m.host_use(cpu, None);
    m.host_uses(cpu, Use::Za);
}

/// r11: the host has PSTATE.SM, ZA or both set when it enters a guest: everything is there afterwards,
/// whatever the guest used, on both kinds of CPU, under every policy.
#[test]
fn r11_a_host_in_streaming_mode_finds_everything() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Scrub] {
        for svcr in (0..4).map(Svcr::from_bits_truncate) {
            for (cpu, fa64) in [(0, false), (1, true), (1, false)] {
                let kinds = [Kind::sme(Some(2), 1, policy), Kind::sve(None, policy)];
                let mut m = machine_with(fa64, &kinds);
                for uses in [
                    &[][..],
                    &[Use::Fpsimd],
                    &[Use::Sve(Some(0xf))],
                    &[Use::Svcr(BOTH), Use::Za, Use::Sve(None)],
                    &[Use::Za, Use::Svcr(Svcr::empty())],
                ] {
                    fill_host(&mut m, cpu, svcr);
                    m.load(cpu, 0);
                    m.run(cpu, HostFlags::empty(), uses);
                    m.run(cpu, HostFlags::empty(), uses);
                    m.host_use(cpu, None);
                    m.host_uses(cpu, Use::Za);
                    m.run(cpu, HostFlags::empty(), &[]);
                    m.put(cpu);
                    m.host_uses(cpu, Use::Za);
                    m.host_use(cpu, None);
                }
            }
        }
    }
}

/// A guest that doesn't use SME costs the host's ZA nothing, and one that doesn't use FP costs a host
/// outside streaming mode nothing at all.
#[test]
fn the_hosts_za_stays_where_it_is() {
    let mut m = machine(&[Kind::sme(Some(1), 0, Policy::Lazy), Kind::sve(None, Policy::Scrub)]);
    fill_host(&mut m, 0, Svcr::ZA);
    for guest in [0, 1] {
        m.load(0, guest);
        let moves = m.cpus[0].hw.moves;
        m.run(0, HostFlags::empty(), &[]);
        assert_eq!(m.cpus[0].hw.moves, moves);
        m.run(0, HostFlags::empty(), &[Use::Fpsimd]);
        m.host_uses(0, Use::Za);
        m.put(0);
    }
    assert_eq!(za_moves(&m, 0), [0; 4]);
    // One that uses it does, once in each direction.
    m.load(0, 0);
    for _ in 0..3 {
        m.run(0, HostFlags::empty(), &[Use::Svcr(Svcr::ZA), Use::Za]);
    }
    assert_eq!(za_moves(&m, 0), [1, 0, 0, 0]);
    m.host_uses(0, Use::Za);
    assert_eq!(za_moves(&m, 0), [1, 1, 1, 0]);
}

/// What hints say of ZA: FOREIGN that nothing need be kept, SVE_DISCARDED nothing.
#[test]
fn hints_and_za() {
    for (hint, saves) in
        [(HostFlags::FOREIGN_FPSTATE, 0), (HostFlags::SVE_DISCARDED, 1), (HostFlags::empty(), 1)]
    {
        for svcr in [Svcr::ZA, BOTH] {
            let mut m = machine(&[Kind::sme(Some(1), 0, Policy::Lazy), Kind::AARCH32]);
            fill_host(&mut m, 1, svcr);
            m.load(1, 0);
            m.run(1, hint, &[Use::Svcr(BOTH), Use::Za]);
            assert_eq!(za_moves(&m, 1)[0], saves, "{hint:?}");
            m.host_use(1, None);
            m.host_uses(1, Use::Za);
        }
    }
}

/// r21, r22: streaming mode is entered or left first, and what the change zeroes or sets (FPMR, FPSR, Z, P)
/// is loaded afterwards.
#[test]
fn r21_r22_what_a_mode_change_wipes_is_loaded_after_it() {
    for svcr in [Svcr::empty(), Svcr::SM] {
        let mut m = machine(&[Kind::sme(Some(2), 1, Policy::Lazy), Kind::sve(None, Policy::Lazy)]);
        fill_host(&mut m, 0, svcr);
        m.load(0, 0);
        // The guest is in the other mode.
        let other = svcr ^ Svcr::SM;
        for _ in 0..2 {
            m.run(0, HostFlags::empty(), &[Use::Svcr(other), Use::Sve(None), Use::Sve(None)]);
            m.host_use(0, None);
            let status = m.cpus[0].hw.el1_read(false).status;
            assert_ne!(status[0], FPSR_AFTER_SM);
            assert_ne!(status[2], 0, "FPMR");
        }
    }
}

/// r06: FPMR belongs to both sides, whatever else they have.
#[test]
fn r06_fpmr_on_both_sides() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Scrub] {
        let kinds = [Kind::sve(None, policy), Kind { policy, ..Kind::AARCH32 }];
        let mut m = machine(&kinds);
        for guest in [0, 1] {
            m.host_uses(0, Use::Fpsimd);
            m.load(0, guest);
            let uses = [Use::Fpexc(true), Use::Fpsimd, Use::Fpsimd];
            m.run(0, HostFlags::empty(), &uses);
            m.host_uses(0, Use::Fpsimd);
            m.run(0, HostFlags::empty(), &uses);
            m.put(0);
            m.host_uses(0, Use::Fpsimd);
        }
    }
}

/// An SME guest migrates, shrinks its SVL, and finds everything, on CPUs that differ above it.
#[test]
fn an_sme_guest_migrates() {
    for (vl, fa64) in [(Some(0), false), (Some(2), true), (None, false), (None, true)] {
        let mut m =
            machine_with(fa64, &[Kind::sme(vl, 1, Policy::Lazy), Kind::sme(vl, 0, Policy::Scrub)]);
        for svcr in [BOTH, Svcr::SM, Svcr::ZA, Svcr::empty(), BOTH] {
            for smcr in [0xf, 1, 0] {
                for cpu in [0, 1, 0] {
                    fill_host(&mut m, cpu, svcr ^ BOTH);
                    for guest in [0, 1] {
                        m.load(cpu, guest);
                        let uses = [Use::Sve(None), Use::Za, Use::Smcr(smcr), Use::Svcr(svcr)];
                        m.run(cpu, HostFlags::empty(), &uses);
                        m.run(cpu, HostFlags::empty(), &[Use::Sve(None), Use::Za]);
                        m.put(cpu);
                    }
                    m.host_use(cpu, None);
                }
            }
        }
    }
}

/// SME without SVE for a guest: outside streaming mode SVE is UNDEFINED, inside it is there.
#[test]
fn sme_without_sve() {
    for vqs in [VLS, 0] {
        let cpus = [Having { vqs: VqSet::from_bits(vqs), ..having() }];
        let kinds = [Kind::sme(None, 1, Policy::Lazy)];
        let mut m = Machine::with(&Shape { cpus: &cpus, late: 0, host_common: false }, &kinds, 5);
        m.host_use(0, None);
        m.load(0, 0);
        m.run(0, HostFlags::empty(), &[Use::Sve(None), Use::Svcr(Svcr::SM), Use::Sve(None)]);
        m.host_use(0, None);
        m.run(0, HostFlags::empty(), &[Use::Sve(None), Use::Svcr(Svcr::empty()), Use::Sve(None)]);
        m.host_use(0, None);
    }
}

/// I3 and sizes: a CPU with the largest SVL of all saves ZA in full, and no byte more.
#[test]
fn a_host_image_holds_the_largest_za() {
    let small = Having { svqs: VqSet::from_bits(0b1), ..having() };
    let large = Having { svqs: VqSet::from_bits(0x808b), ..having() };
    let (a, b) = ([small.vqs, large.vqs], [small.svqs, large.svqs]);
    assert_eq!(host_storage(a.into_iter(), b.into_iter()), Storage::new(Vq::new(4), Vq::new(16)));
    let shape = Shape { cpus: &[small, large], late: 0, host_common: false };
    let mut m = Machine::with(&shape, &[Kind::sme(Some(0), 0, Policy::Lazy)], 9);
    fill_host(&mut m, 1, Svcr::ZA);
    m.load(1, 0);
    m.run(1, HostFlags::empty(), &[Use::Svcr(BOTH), Use::Za]);
    assert_eq!(m.cpus[1].fp.host_za(), Some(Vq::MAX));
    m.host_uses(1, Use::Za);
    m.host_use(1, None);
}

/// r29: EN is forced exactly while FP is closed to an AArch32 guest; its own value is back at once. The
/// checks are `guest_use`'s, at each use.
#[test]
fn r29_fpexc_is_the_guests_own_once_fp_is_open() {
    for policy in [Policy::Lazy, Policy::Eager, Policy::Scrub] {
        let kinds = [Kind { policy, ..Kind::AARCH32 }, Kind::AARCH32];
        let mut m = machine(&kinds);
        for enable in [false, true, false] {
            for guest in [0, 1] {
                fill_host(&mut m, 0, BOTH);
                m.load(0, guest);
                m.run(0, HostFlags::empty(), &[Use::Fpsimd, Use::Fpexc(enable), Use::Fpsimd]);
                m.run(0, HostFlags::empty(), &[Use::Fpsimd]);
                m.host_uses(0, Use::Za);
                m.run(0, HostFlags::empty(), &[Use::Fpsimd, Use::Fpexc(!enable), Use::Fpsimd]);
                m.put(0);
            }
        }
    }
}

/// ZA does not change in AArch32 state (Arm ARM D1.10.1.6): it stays where it is, whatever such a guest uses,
/// and the host finds it without a trap.
#[test]
fn za_stays_beneath_an_aarch32_guest() {
    for svcr in [Svcr::ZA, BOTH] {
        let mut m = machine(&[Kind::AARCH32]);
        fill_host(&mut m, 1, svcr);
        m.load(1, 0);
        for uses in [&[][..], &[Use::Fpsimd], &[Use::Fpexc(true), Use::Fpsimd]] {
            m.run(1, HostFlags::empty(), uses);
            assert_eq!(m.cpus[1].fp.za(), Live::Host);
        }
        m.host_uses(1, Use::Za);
        assert_eq!(za_moves(&m, 1), [0; 4]);
    }
}

/// A host in streaming mode is displaced for the test option, too, and finds it all.
#[test]
fn a_streaming_host_is_displaced_whole() {
    for svcr in (0..4).map(Svcr::from_bits_truncate) {
        let mut m = machine(&[Kind::AARCH32]);
        fill_host(&mut m, 1, svcr);
        m.displace_host(1);
        // In streaming mode it can't run without its registers.
        let expected = if svcr.contains(Svcr::SM) { Live::Host } else { Live::Nobody };
        assert_eq!((m.cpus[1].fp.live(), m.cpus[1].fp.za()), (expected, expected));
        assert_eq!(
            m.cpus[1].fp.host_image(),
            if svcr.contains(Svcr::SM) {
                HostImage::None
            } else {
                HostImage::Full(Vq::new(4).expect("16 and less"))
            }
        );
        m.host_use(1, None);
        m.host_uses(1, Use::Za);
    }
}

/// Reset finds SVCR, SMCR_EL1 and SMCR_EL2 anything.
#[test]
fn nothing_of_sme_is_taken_over_from_reset() {
    for seed in 0..64 {
        let shape = Shape { cpus: &[having()], late: 0, host_common: false };
        let mut m = Machine::with(&shape, &[Kind::sve(None, Policy::Lazy)], seed);
        assert_eq!(m.cpus[0].hw.real_svcr(), Svcr::empty());
        fill_host(&mut m, 0, BOTH);
        m.power_cycle(0);
        m.host_uses(0, Use::Smcr(0xf));
    }
}
