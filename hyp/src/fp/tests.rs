//! The engine against a specification that knows nothing of images, traps or clamps: every context
//! finds what it left, and nobody finds anybody else's bytes.
//!
//! Programs are random sequences of what hosts and guests do; the machine is [`super::sim`]. Every
//! byte written carries its owner in its top two bits, so a leak names whose it is.

#![forbid(unsafe_code)]

mod machine;
mod mind;
mod sme;

use super::sim::{Having, SimImage};
use super::{CpuFp, GuestTrap, HostImage, Live, Svcr, TrapClass, host_storage};
use machine::{CANARY, Kind, Machine, Shape, Use, vcpu};
use proptest::prelude::*;
use umbra_shared::call::{Counter, Policy};
use umbra_shared::error::Error;
use umbra_shared::flags::{HostFlags, HypFlags};
use umbra_shared::sme::Storage;
use umbra_shared::sve::Layout;
use umbra_shared::vcpu::VcpuFeatures;
use umbra_shared::vl::{Vq, VqSet};

#[derive(Clone, Debug)]
enum Step {
    HostUse { cpu: usize, what: Use },
    Load { cpu: usize, guest: usize },
    Put { cpu: usize },
    Run { cpu: usize, hint: u64, uses: Vec<Use> },
    PowerCycle { cpu: usize },
    Displace { cpu: usize },
}

fn uses() -> impl Strategy<Value = Use> {
    prop_oneof![
        3 => Just(Use::Fpsimd),
        6 => prop::option::of(0u64..0x200).prop_map(Use::Sve),
        4 => (0u64..4).prop_map(|svcr| Use::Svcr(Svcr::from_bits_truncate(svcr))),
        3 => Just(Use::Za),
        2 => (0u64..0x20).prop_map(Use::Smcr),
        2 => any::<bool>().prop_map(Use::Fpexc),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..2usize, uses()).prop_map(|(cpu, what)| Step::HostUse { cpu, what }),
        4 => (0..2usize, 0..2usize).prop_map(|(cpu, guest)| Step::Load { cpu, guest }),
        3 => (0..2usize).prop_map(|cpu| Step::Put { cpu }),
        8 => (0..2usize, 0u64..8, prop::collection::vec(uses(), 0..4))
            .prop_map(|(cpu, hint, uses)| Step::Run { cpu, hint, uses }),
        1 => (0..2usize).prop_map(|cpu| Step::PowerCycle { cpu }),
        2 => (0..2usize).prop_map(|cpu| Step::Displace { cpu }),
    ];
    prop::collection::vec(step, 1..40)
}

fn execute(machine: &mut Machine, steps: &[Step]) {
    for step in steps {
        match step {
            Step::HostUse { cpu, what } => machine.host_uses(*cpu, *what),
            Step::Load { cpu, guest } => machine.load(*cpu, *guest),
            Step::Put { cpu } => machine.put(*cpu),
            Step::Run { cpu, hint, uses } => {
                // Two of three runs leave the host's state alone.
                let hint = HostFlags::from_bits_truncate(if *hint < 4 { *hint } else { 0 });
                machine.run(*cpu, hint, uses);
            }
            Step::PowerCycle { cpu } => machine.power_cycle(*cpu),
            Step::Displace { cpu } => machine.displace_host(*cpu),
        }
    }
    // Everybody looks once more.
    for cpu in 0..machine.cpus.len() {
        machine.host_use(cpu, None);
        machine.host_uses(cpu, Use::Za);
        machine.put(cpu);
        for guest in 0..2 {
            machine.load(cpu, guest);
            let sve = machine.guests[guest].fp.vq().is_some();
            let file = if sve { Use::Sve(None) } else { Use::Fpsimd };
            machine.run(cpu, HostFlags::empty(), &[Use::Fpexc(true), file, Use::Za]);
            machine.put(cpu);
        }
        machine.host_use(cpu, None);
        machine.host_uses(cpu, Use::Za);
    }
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Lazy), Just(Policy::Eager), Just(Policy::Scrub)]
}

/// Powers of two up to 2048 bits, as SVE2-era CPUs have them, and sets with holes anywhere, as the
/// first SVE allowed: no emulator makes them differ from CPU to CPU.
fn vq_set() -> impl Strategy<Value = VqSet> {
    prop_oneof![
        2 => prop::sample::select(vec![0b1u16, 0b11, 0b1011, 0b1000_1011, 0x808b, 0b111, 0b10_0111]),
        1 => any::<u16>().prop_map(|bits| bits | 1),
    ]
    .prop_map(VqSet::from_bits)
}

/// Two CPUs, alike in two of three cases up to a length: so that common lengths lie above holes.
fn vq_sets() -> impl Strategy<Value = [VqSet; 2]> {
    (vq_set(), vq_set(), 0u32..24).prop_map(|(a, b, alike)| {
        let low = ((1u32 << alike.min(16)) - 1) as u16;
        [a, VqSet::from_bits(a.bits() & low | b.bits() & !low | 1)]
    })
}

/// Streaming lengths: powers of two, from any of them on.
fn svq_set() -> impl Strategy<Value = VqSet> {
    prop::sample::select(vec![0u16, 0b1, 0b11, 0b1011, 0b1010, 0b1000, 0b10])
        .prop_map(VqSet::from_bits)
}

fn kind() -> impl Strategy<Value = Kind> {
    let number = || prop::option::of(0..16usize);
    (number(), number(), 0..6u8, policy()).prop_map(|(vl, svl, aarch32, policy)| {
        if aarch32 == 0 {
            Kind { policy, ..Kind::AARCH32 }
        } else {
            Kind { vl, svl, aarch32: false, policy }
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// I1, I2, I3, I4, I8 over asymmetric CPUs, all policies, with and without SVE for a guest.
    #[test]
    fn everybody_finds_what_they_left(
        sets in vq_sets(), late in 0..2usize, host_common: bool,
        guests in [(prop::option::of(0..16usize), policy()), (prop::option::of(0..16usize), policy())],
        seed: u64, steps in steps(),
    ) {
        let cpus = sets.map(Having::sve);
        let guests = guests.map(|(vl, policy)| Kind::sve(vl, policy));
        execute(&mut Machine::with(&Shape { cpus: &cpus, late, host_common }, &guests, seed), &steps);
    }

    /// The same with SME of all kinds, alike on both CPUs or not, with FPMR, and AArch32 guests.
    #[test]
    fn everybody_finds_what_they_left_with_sme(
        sets in vq_sets(), svqs in [svq_set(), svq_set()], alike: bool, late in 0..2usize,
        host_common: bool, (fa64, zt0, fpmr) in any::<(bool, bool, bool)>(), sve: bool,
        guests in [kind(), kind()], seed: u64, steps in steps(),
    ) {
        let cpus = [0, 1].map(|n| Having {
            vqs: if sve { sets[n] } else { VqSet::EMPTY },
            svqs: if alike { svqs[0] } else { svqs[n] },
            fa64: fa64 && sve,
            zt0,
            fpmr,
        });
        execute(&mut Machine::with(&Shape { cpus: &cpus, late, host_common }, &guests, seed), &steps);
    }

    #[test]
    fn without_sve_too(
        policies in [policy(), policy()], seed: u64, steps in steps(),
    ) {
        let guests = policies.map(|p| (false, p));
        let sets = [VqSet::EMPTY; 2];
        execute(&mut Machine::new(&sets, &guests, seed), &steps);
    }
}

fn one_cpu(vqs: u16) -> Machine {
    Machine::new(&[VqSet::from_bits(vqs)], &[(true, Policy::Lazy), (false, Policy::Lazy)], 7)
}

/// r01: a host buffer is sized by the largest VL of any CPU, and a save stays inside it.
#[test]
fn r01_a_save_stays_inside_its_buffer() {
    let sets = [VqSet::from_bits(0b1), VqSet::from_bits(0x808b)];
    let mut m = Machine::new(&sets, &[(true, Policy::Lazy), (true, Policy::Lazy)], 3);
    let storage = host_storage(sets.into_iter(), [].into_iter());
    let bytes = storage.bytes();
    assert_eq!(bytes, Layout::new(Vq::MAX).image_bytes());
    let mut image = SimImage::new(storage);
    image.bytes.extend([CANARY; 64]);
    m.cpus[1].fp = CpuFp::new(image);
    let cpu = &mut m.cpus[1];
    cpu.fp.reset(&mut cpu.hw, cpu.held);
    cpu.hw.eret();
    m.host_use(1, Some(0xf));
    m.host_use(1, None);
    m.load(1, 0);
    m.run(1, HostFlags::empty(), &[Use::Sve(None)]);
    assert_eq!(m.cpus[1].fp.host_image(), HostImage::Full(Vq::MAX));
    m.host_use(1, None);
    // The buffer is private to the engine; the simulation would have ended the test on an overrun, and
    // the clone shows that nothing beyond the image was touched.
    let seen = format!("{:?}", m.cpus[1].fp);
    assert!(seen.contains(&[CANARY.to_string().as_str(); 64].join(", ")));
}

/// A guest of a length above a hole finds the same lengths, and its state, on CPUs whose sets differ
/// above it.
#[test]
fn a_guest_above_a_hole_migrates() {
    // VLs 16, 64, 96 | 16, 64, 112, 256.
    let cpus = [0b10_1001, 0x8049].map(|bits| Having::sve(VqSet::from_bits(bits)));
    let shape = Shape { cpus: &cpus, late: 0, host_common: false };
    let guests = [Kind::sve(Some(1), Policy::Lazy), Kind::sve(None, Policy::Lazy)];
    let mut m = Machine::with(&shape, &guests, 11);
    assert_eq!(m.guests[0].fp.vq(), Vq::new(4));
    for zcr in [0xf, 2, 3, 0, 0x1ff] {
        for cpu in [0, 1] {
            m.host_use(cpu, Some(zcr));
            m.load(cpu, 0);
            m.run(cpu, HostFlags::empty(), &[Use::Sve(Some(zcr)), Use::Sve(None)]);
            m.host_use(cpu, None);
            m.put(cpu);
        }
    }
}

/// A late CPU has not the length that host images end at, but one below: its host is clamped to that,
/// and its saves have that layout.
#[test]
fn a_late_cpus_clamp_is_rounded_down() {
    // VLs 16, 32, 64; the late CPU: 16, 32, 48, 96.
    let cpus = [0b1011, 0b10_0111].map(|bits| Having::sve(VqSet::from_bits(bits)));
    for host_common in [false, true] {
        let shape = Shape { cpus: &cpus, late: 1, host_common };
        let guests = [Kind::sve(Some(1), Policy::Lazy), Kind::sve(Some(2), Policy::Lazy)];
        let mut m = Machine::with(&shape, &guests, 5);
        assert_eq!(m.cpus[1].held.vq, Vq::new(3));
        m.host_use(1, Some(0xf));
        m.host_use(1, None);
        // 64 bytes are not to be had there.
        m.load(1, 1);
        assert_eq!(m.cpus[1].loaded, None);
        m.load(1, 0);
        m.run(1, HostFlags::empty(), &[Use::Sve(Some(0xf))]);
        assert_eq!(m.cpus[1].fp.host_image(), HostImage::Full(Vq::new(3).expect("16 and less")));
        m.host_use(1, None);
        m.run(1, HostFlags::empty(), &[Use::Sve(None)]);
    }
}

/// `umbra.host-vl=common`: the host's image has the layout of what it is held to, on a CPU that has
/// more.
#[test]
fn a_host_held_to_the_common_lengths_saves_no_more() {
    let cpus = [0b1011, 0x808b].map(|bits| Having::sve(VqSet::from_bits(bits)));
    let shape = Shape { cpus: &cpus, late: 0, host_common: true };
    let guests = [Kind::sve(Some(2), Policy::Lazy), Kind::sve(None, Policy::Eager)];
    let mut m = Machine::with(&shape, &guests, 9);
    for cpu in [0, 1] {
        m.host_use(cpu, Some(0x1ff));
        m.host_use(cpu, None);
        m.load(cpu, 0);
        m.run(cpu, HostFlags::empty(), &[Use::Sve(Some(0xf))]);
        assert_eq!(m.cpus[cpu].fp.host_image(), HostImage::Full(Vq::new(4).expect("16 and less")));
        m.host_use(cpu, None);
        m.put(cpu);
    }
}

/// What the hints save is counted, and what the host finds afterwards is zero, not a guest's.
#[test]
fn hints_pay() {
    for (hint, counter) in [
        (HostFlags::FOREIGN_FPSTATE, Counter::HostSavesAvoided),
        (HostFlags::SVE_DISCARDED, Counter::HostSavesFpsimd),
        (HostFlags::empty(), Counter::HostSavesFull),
    ] {
        let mut m = one_cpu(0b1011);
        m.host_use(0, Some(0xf));
        m.host_use(0, None);
        m.load(0, 0);
        m.run(0, hint, &[Use::Sve(Some(0xf))]);
        assert_eq!(m.cpus[0].stats.get(counter as u64), 1);
        m.host_use(0, None);
    }
}

/// The host's word counts as it was when hyp read it: what another CPU of the host writes into the page
/// while the guest runs changes nothing, in either direction (no double fetch).
#[test]
fn the_hosts_word_is_read_once() {
    use umbra_shared::flags::FlagShadowPage;
    for (said, written_later) in
        [(HostFlags::empty(), HostFlags::all()), (HostFlags::FOREIGN_FPSTATE, HostFlags::empty())]
    {
        let mut m = one_cpu(0b1011);
        m.host_use(0, Some(0xf));
        m.host_use(0, None);
        m.load(0, 0);
        let page = FlagShadowPage::new();
        page.flush(said);
        let (cpu, guest) = (&mut m.cpus[0], &mut m.guests[0]);
        let hint = page.snapshot_hint().decode();
        cpu.fp.enter(&mut cpu.hw, &guest.fp, hint, &cpu.stats);
        page.flush(written_later);
        cpu.hw.eret();
        let trap = cpu.fp.guest_trap(&mut cpu.hw, &mut guest.fp, TrapClass::Sve, &cpu.stats);
        assert_eq!(trap, GuestTrap::Opened);
        page.flush(said);
        let flags = cpu.fp.exit(&mut cpu.hw, &mut guest.fp, &cpu.stats);
        let kept = said.is_empty();
        assert_eq!(flags.contains(HypFlags::HOST_FP_PRESERVED), kept);
        assert_eq!(cpu.fp.host_image() != HostImage::None, kept);
    }
}

/// A host image held for one task is dropped when the next entry says FOREIGN.
#[test]
fn foreign_drops_a_held_image() {
    let mut m = one_cpu(0b1011);
    m.host_use(0, None);
    m.load(0, 0);
    m.run(0, HostFlags::empty(), &[Use::Sve(None)]);
    assert_ne!(m.cpus[0].fp.host_image(), HostImage::None);
    m.run(0, HostFlags::FOREIGN_FPSTATE, &[]);
    assert_eq!(m.cpus[0].fp.host_image(), HostImage::None);
    m.host_use(0, None);
}

/// A CPU that came late may lack what the others have in common: it refuses, and narrows nothing (r14).
#[test]
fn r14_a_cpu_without_a_vcpus_length_refuses_it() {
    let sets = [0, 0b1, 0b1011, 0x808b, 0xfffe].map(VqSet::from_bits);
    for (set, other) in sets.into_iter().flat_map(|set| sets.map(|other| (set, other))) {
        for vq in (1..=16).filter_map(Vq::new) {
            let fits = if set.contains(vq) { Ok(()) } else { Err(Error::VlMismatch) };
            let sve = vcpu(VcpuFeatures::sve(Some(vq)), Policy::Lazy);
            assert_eq!(sve.check_load(set, other), fits, "VL {vq} {set:?}");
            let sme = vcpu(VcpuFeatures::sme(None, vq), Policy::Lazy);
            assert_eq!(sme.check_load(other, set), fits, "SVL {vq} {set:?}");
        }
        assert_eq!(vcpu(VcpuFeatures::FPSIMD, Policy::Lazy).check_load(set, other), Ok(()));
    }
}
