//! The engine against a specification that knows nothing of images, traps or clamps: every context
//! finds what it left, and nobody finds anybody else's bytes.
//!
//! Programs are random sequences of what hosts and guests do; the machine is [`super::sim`]. Every
//! byte written carries its owner in its top two bits, so a leak names whose it is.

use super::sim::{Registers, SimCpu, SimImage};
use super::{CpuFp, FpHw, GuestTrap, HostImage, Live, TrapClass, VcpuFp, host_image_bytes};
use crate::stats::Stats;
use proptest::prelude::*;
use umbra_shared::call::{Counter, Policy};
use umbra_shared::error::Error;
use umbra_shared::flags::{HostFlags, HypFlags};
use umbra_shared::sve::{FPSIMD_BYTES, Layout};
use umbra_shared::vl::{Vq, VqSet};

const HOST: u8 = 1;

fn byte(owner: u8, generation: u32, register: usize, index: usize) -> u8 {
    let mixed = (generation as usize)
        .wrapping_mul(0x9e37_79b9)
        .wrapping_add(register * 257 + index)
        .wrapping_mul(0x85eb_ca6b)
        >> 11;
    owner << 6 | (mixed as u8 & 0x3f)
}

/// What a context must find: `None` where it can't tell (bytes that a VL change exposed).
#[derive(Clone, Debug)]
struct Expected {
    owner: u8,
    z: Vec<[Option<u8>; 256]>,
    p: Vec<[Option<u8>; 32]>,
    status: [u64; 2],
    zcr_el1: u64,
    generation: u32,
}

impl Expected {
    fn reset(owner: u8) -> Self {
        Self {
            owner,
            z: vec![[Some(0); 256]; 32],
            p: vec![[Some(0); 32]; 17],
            status: [0; 2],
            zcr_el1: 0,
            generation: 0,
        }
    }

    fn write(&mut self, hw: &mut SimCpu, sve: bool) {
        self.generation += 1;
        let (owner, generation) = (self.owner, self.generation);
        let vl = if sve { hw.vq_el1().vl_bytes() } else { 16 };
        self.status = [u64::from(generation) << 8 | u64::from(owner), u64::from(generation)];
        hw.el1_write(sve, self.status, |n, i| byte(owner, generation, n, i));
        for (n, z) in self.z.iter_mut().enumerate() {
            for (i, b) in z.iter_mut().enumerate() {
                *b = (i < vl).then(|| byte(owner, generation, n, i));
            }
        }
        for (n, p) in self.p.iter_mut().enumerate() {
            for (i, b) in p.iter_mut().enumerate() {
                // V writes leave P and FFR alone.
                if sve {
                    *b = (i < vl / 8).then(|| byte(owner, generation, 32 + n, i));
                }
            }
        }
    }

    /// The VL that EL1 sees shrank to `vl`: what lies above is no longer certain.
    fn forget_above(&mut self, vl: usize) {
        for z in &mut self.z {
            z[vl..].fill(None);
        }
        for p in &mut self.p {
            p[vl / 8..].fill(None);
        }
    }

    fn compare(&self, who: &str, seen: &Registers) {
        let check = |what: String, expected: Option<u8>, found: u8| match expected {
            Some(expected) => assert_eq!(expected, found, "{who}: {what}"),
            None => assert!(
                found == 0 || found >> 6 == self.owner,
                "{who}: {what} shows {found:#x}, owner {}",
                found >> 6
            ),
        };
        for (n, z) in seen.z.iter().enumerate() {
            for (i, &b) in z.iter().enumerate() {
                check(format!("Z{n} byte {i}"), self.z[n][i], b);
            }
        }
        for (n, p) in seen.p.iter().enumerate() {
            for (i, &b) in p.iter().enumerate() {
                check(format!("P{n} (16 is FFR) byte {i}"), self.p[n][i], b);
            }
        }
        assert_eq!(self.status, seen.status, "{who}: FPSR, FPCR");
    }

    /// Only V0-V31, FPSR, FPCR survive.
    fn discard_sve(&mut self) {
        for z in &mut self.z {
            z[16..].fill(Some(0));
        }
        for p in &mut self.p {
            p.fill(Some(0));
        }
    }

    /// Everything but ZCR_EL1 is the reset state.
    fn discard_all(&mut self) {
        let (owner, zcr_el1, generation) = (self.owner, self.zcr_el1, self.generation);
        *self = Self { zcr_el1, generation, ..Self::reset(owner) };
    }
}

struct Cpu {
    hw: SimCpu,
    fp: CpuFp<SimImage>,
    stats: Stats,
    vqs: VqSet,
    host: Expected,
    /// The specification's idea of `live`.
    live: Live,
    hint: HostFlags,
    loaded: Option<usize>,
}

struct Guest {
    fp: VcpuFp<SimImage>,
    expected: Expected,
    loaded: bool,
}

struct Machine {
    cpus: Vec<Cpu>,
    guests: Vec<Guest>,
}

const CANARY: u8 = 0xa5;

fn vcpu(vq: Option<Vq>, policy: Policy) -> VcpuFp<SimImage> {
    let bytes = vq.map_or(FPSIMD_BYTES, |vq| Layout::new(vq).image_bytes());
    VcpuFp::new(SimImage::new(bytes), vq, policy)
}

impl Machine {
    fn new(sets: &[VqSet], guests: &[(bool, Policy)], sme: bool, seed: u64) -> Self {
        let common = VqSet::common(sets.iter().copied());
        let bytes = host_image_bytes(sets.iter().copied());
        let cpus = sets
            .iter()
            .enumerate()
            .map(|(n, &vqs)| {
                let mut cpu = Cpu {
                    hw: SimCpu::new(vqs, sme, seed ^ (n as u64) << 32),
                    fp: CpuFp::new(SimImage::new(bytes)),
                    stats: Stats::new(),
                    vqs,
                    host: Expected::reset(HOST),
                    live: Live::Nobody,
                    hint: HostFlags::empty(),
                    loaded: None,
                };
                cpu.fp.reset(&mut cpu.hw, vqs.max());
                cpu.hw.eret();
                cpu
            })
            .collect();
        let guests = guests
            .iter()
            .enumerate()
            .map(|(n, &(sve, policy))| {
                // Different lengths where the machine has them.
                let vq = common.iter().nth(n % common.iter().count().max(1)).filter(|_| sve);
                Guest {
                    fp: vcpu(vq, policy),
                    expected: Expected::reset(2 + n as u8),
                    loaded: false,
                }
            })
            .collect();
        Self { cpus, guests }
    }

    /// The host touches FP: whatever happens, it ends with its registers open to it.
    fn host_access(&mut self, n: usize) -> bool {
        let cpu = &mut self.cpus[n];
        let sve = !cpu.vqs.is_empty();
        let class = if sve { TrapClass::Sve } else { TrapClass::Fpsimd };
        if cpu.hw.el1_access(class).is_err() {
            assert_ne!(cpu.live, Live::Host, "a trap although the host is live");
            let loaded = cpu.loaded.map(|v| &mut self.guests[v].fp);
            let flags = cpu.fp.host_trap(&mut cpu.hw, loaded, &cpu.stats);
            assert_eq!(flags, HypFlags::HOST_FP_PRESERVED);
            cpu.live = Live::Host;
            cpu.hw.eret();
        } else {
            assert_eq!(cpu.live, Live::Host, "FP is open to the host and not its own");
        }
        assert_eq!(cpu.fp.live(), Live::Host);
        assert_eq!(cpu.fp.host_image(), HostImage::None, "the image is consumed");
        sve
    }

    fn host_use(&mut self, n: usize, zcr: Option<u64>) {
        let sve = self.host_access(n);
        let cpu = &mut self.cpus[n];
        if sve {
            assert_eq!(cpu.hw.el1_zcr(), cpu.host.zcr_el1, "host's ZCR_EL1");
        }
        cpu.host.compare("host", &cpu.hw.el1_read(sve));
        cpu.host.write(&mut cpu.hw, sve);
        if let (Some(zcr), true) = (zcr, sve) {
            cpu.hw.el1_set_zcr(zcr);
            cpu.host.zcr_el1 = zcr;
            cpu.host.forget_above(cpu.hw.vq_el1().vl_bytes());
        }
    }

    fn load(&mut self, n: usize, v: usize) {
        let cpu = &mut self.cpus[n];
        if cpu.loaded.is_some() || self.guests[v].loaded {
            return;
        }
        let guest = &mut self.guests[v];
        match CpuFp::check_load(&guest.fp, cpu.vqs) {
            Ok(()) => {
                guest.loaded = true;
                cpu.loaded = Some(v);
            }
            Err(error) => {
                assert_eq!(error, Error::VlMismatch);
                assert!(guest.fp.vq().is_some_and(|vq| !cpu.vqs.contains(vq)));
            }
        }
    }

    fn put(&mut self, n: usize) {
        let cpu = &mut self.cpus[n];
        let Some(v) = cpu.loaded.take() else { return };
        let guest = &mut self.guests[v];
        let moves = cpu.hw.moves;
        let flags = cpu.fp.put(&mut cpu.hw, &mut guest.fp, &cpu.stats);
        cpu.hw.eret();
        assert!(!flags.contains(HypFlags::GUEST_FP_LOADED));
        assert_eq!(cpu.hw.moves - moves, u64::from(cpu.live == Live::Guest));
        if cpu.live == Live::Guest {
            cpu.live = Live::Nobody;
        }
        guest.loaded = false;
    }

    /// The guest's FP use: what it finds, what it writes, what it does to its VL.
    fn guest_use(&mut self, n: usize, v: usize, class: TrapClass, zcr: Option<u64>) {
        let (cpu, guest) = (&mut self.cpus[n], &mut self.guests[v]);
        if cpu.hw.el1_access(class).is_err() {
            let had = cpu.live;
            match cpu.fp.guest_trap(&mut cpu.hw, &mut guest.fp, class, &cpu.stats) {
                GuestTrap::Undefined => {
                    assert!(
                        class == TrapClass::Sme
                            || (class == TrapClass::Sve && guest.fp.vq().is_none())
                    );
                    assert_eq!(cpu.fp.live(), had, "UNDEFINED changes nothing");
                    cpu.hw.eret();
                    return;
                }
                GuestTrap::Opened => {
                    if had == Live::Host {
                        if cpu.hint.contains(HostFlags::FOREIGN_FPSTATE) {
                            cpu.host.discard_all();
                        } else if cpu.hint.contains(HostFlags::SVE_DISCARDED) {
                            cpu.host.discard_sve();
                        }
                    }
                    cpu.live = Live::Guest;
                    cpu.hw.eret();
                }
            }
        }
        assert_eq!(cpu.hw.el1_access(class), Ok(()));
        assert_eq!(cpu.live, Live::Guest);
        let sve = guest.fp.vq().is_some();
        if let Some(clamp) = guest.fp.vq() {
            assert_eq!(cpu.hw.el1_zcr(), guest.expected.zcr_el1, "guest's ZCR_EL1");
            // I4: the greatest VL it can select is exactly its clamp.
            let mut probe = cpu.hw.clone();
            probe.el1_set_zcr(0x1ff);
            assert_eq!(probe.vq_el1(), clamp);
        } else {
            assert!(cpu.hw.el1_access(TrapClass::Sve).is_err());
        }
        assert!(cpu.hw.el1_access(TrapClass::Sme).is_err());
        guest.expected.compare("guest", &cpu.hw.el1_read(sve));
        guest.expected.write(&mut cpu.hw, sve);
        if let (Some(zcr), true) = (zcr, sve) {
            cpu.hw.el1_set_zcr(zcr);
            guest.expected.zcr_el1 = zcr;
            guest.expected.forget_above(cpu.hw.vq_el1().vl_bytes());
        }
    }

    fn run(&mut self, n: usize, hint: HostFlags, uses: &[(TrapClass, Option<u64>)]) {
        let cpu = &mut self.cpus[n];
        let Some(v) = cpu.loaded else { return };
        let moves = cpu.hw.moves;
        let guest = &mut self.guests[v];
        cpu.fp.enter(&mut cpu.hw, &guest.fp, hint, &cpu.stats).expect("streaming mode is off");
        cpu.hint = hint;
        if cpu.live != Live::Host && hint.contains(HostFlags::FOREIGN_FPSTATE) {
            cpu.host.discard_all();
        }
        cpu.hw.eret();
        for &(class, zcr) in uses {
            self.guest_use(n, v, class, zcr);
        }
        let (cpu, guest) = (&mut self.cpus[n], &mut self.guests[v]);
        let flags = cpu.fp.exit(&mut cpu.hw, &mut guest.fp, &cpu.stats);
        let was_live = cpu.live == Live::Guest;
        if was_live {
            cpu.live = match guest.fp.policy() {
                Policy::Lazy => Live::Guest,
                Policy::Eager => Live::Host,
                Policy::Scrub => Live::Nobody,
            };
        }
        assert_eq!(cpu.fp.live(), cpu.live);
        assert_eq!(flags.contains(HypFlags::GUEST_FP_LOADED), cpu.live == Live::Guest);
        cpu.hw.eret();
        if uses.is_empty() {
            assert_eq!(cpu.hw.moves, moves, "an exit that needed no FP moved registers");
        }
        if was_live && guest.fp.policy() == Policy::Scrub {
            self.nothing_of_a_guest_in_the_registers(n, v);
        }
    }

    /// What scrub promises: not even behind the closed trap is there a byte of this guest.
    fn nothing_of_a_guest_in_the_registers(&self, n: usize, v: usize) {
        let mut open = self.cpus[n].hw.clone();
        open.set_access(super::Access::Full);
        open.eret();
        let sve = !self.cpus[n].vqs.is_empty();
        let owner = self.guests[v].expected.owner;
        for z in open.el1_read(sve).z {
            assert!(z.iter().all(|b| b >> 6 != owner), "scrub left a guest's byte");
        }
    }

    fn displace_host(&mut self, n: usize) {
        let cpu = &mut self.cpus[n];
        let was = cpu.live;
        cpu.fp.displace_host(&mut cpu.hw, &cpu.stats);
        cpu.live = if was == Live::Host { Live::Nobody } else { was };
        assert_eq!(cpu.fp.live(), cpu.live);
        cpu.hw.eret();
    }

    fn power_cycle(&mut self, n: usize) {
        self.put(n);
        let cpu = &mut self.cpus[n];
        cpu.hw.power_cycle();
        cpu.fp.reset(&mut cpu.hw, cpu.vqs.max());
        cpu.hw.eret();
        cpu.live = Live::Nobody;
        let generation = cpu.host.generation;
        cpu.host = Expected { generation, ..Expected::reset(HOST) };
    }
}

#[derive(Clone, Debug)]
enum Step {
    HostUse { cpu: usize, zcr: Option<u64> },
    Load { cpu: usize, guest: usize },
    Put { cpu: usize },
    Run { cpu: usize, hint: u64, uses: Vec<(u8, Option<u64>)> },
    PowerCycle { cpu: usize },
    Displace { cpu: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let zcr = || prop::option::of(0u64..0x200);
    let step = prop_oneof![
        4 => (0..2usize, zcr()).prop_map(|(cpu, zcr)| Step::HostUse { cpu, zcr }),
        4 => (0..2usize, 0..2usize).prop_map(|(cpu, guest)| Step::Load { cpu, guest }),
        3 => (0..2usize).prop_map(|cpu| Step::Put { cpu }),
        8 => (0..2usize, 0u64..8, prop::collection::vec((0u8..4, zcr()), 0..3))
            .prop_map(|(cpu, hint, uses)| Step::Run { cpu, hint, uses }),
        1 => (0..2usize).prop_map(|cpu| Step::PowerCycle { cpu }),
        2 => (0..2usize).prop_map(|cpu| Step::Displace { cpu }),
    ];
    prop::collection::vec(step, 1..40)
}

fn execute(machine: &mut Machine, steps: &[Step]) {
    for step in steps {
        match step {
            Step::HostUse { cpu, zcr } => machine.host_use(*cpu, *zcr),
            Step::Load { cpu, guest } => machine.load(*cpu, *guest),
            Step::Put { cpu } => machine.put(*cpu),
            Step::Run { cpu, hint, uses } => {
                // Two of three runs leave the host's state alone.
                let hint = HostFlags::from_bits_truncate(if *hint < 4 { *hint } else { 0 });
                let uses: Vec<_> = uses
                    .iter()
                    .map(|&(class, zcr)| {
                        let class = match class {
                            0 => TrapClass::Fpsimd,
                            3 => TrapClass::Sme,
                            _ => TrapClass::Sve,
                        };
                        (class, zcr)
                    })
                    .collect();
                machine.run(*cpu, hint, &uses);
            }
            Step::PowerCycle { cpu } => machine.power_cycle(*cpu),
            Step::Displace { cpu } => machine.displace_host(*cpu),
        }
    }
    // Everybody looks once more.
    for cpu in 0..machine.cpus.len() {
        machine.host_use(cpu, None);
        machine.put(cpu);
        for guest in 0..2 {
            machine.load(cpu, guest);
            let sve = machine.guests[guest].fp.vq().is_some();
            let class = if sve { TrapClass::Sve } else { TrapClass::Fpsimd };
            machine.run(cpu, HostFlags::empty(), &[(class, None)]);
            machine.put(cpu);
        }
        machine.host_use(cpu, None);
    }
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Lazy), Just(Policy::Eager), Just(Policy::Scrub)]
}

/// Powers of two up to 2048 bits, as SVE2-era CPUs have them, and a set with a hole and odd members.
fn vq_set() -> impl Strategy<Value = VqSet> {
    prop::sample::select(vec![0b1u16, 0b11, 0b1011, 0b1000_1011, 0x808b, 0b111, 0b10_0111])
        .prop_map(VqSet::from_bits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// I1, I2, I3, I4, I8 over asymmetric CPUs, all policies, with and without SVE for a guest.
    #[test]
    fn everybody_finds_what_they_left(
        sets in [vq_set(), vq_set()],
        guests in [(any::<bool>(), policy()), (any::<bool>(), policy())],
        sme: bool, seed: u64, steps in steps(),
    ) {
        execute(&mut Machine::new(&sets, &guests, sme, seed), &steps);
    }

    #[test]
    fn without_sve_too(
        policies in [policy(), policy()], seed: u64, steps in steps(),
    ) {
        let guests = policies.map(|p| (false, p));
        let sets = [VqSet::EMPTY; 2];
        execute(&mut Machine::new(&sets, &guests, false, seed), &steps);
    }
}

fn one_cpu(vqs: u16) -> Machine {
    Machine::new(&[VqSet::from_bits(vqs)], &[(true, Policy::Lazy), (false, Policy::Lazy)], true, 7)
}

/// r01: a host buffer is sized by the largest VL of any CPU, and a save stays inside it.
#[test]
fn r01_a_save_stays_inside_its_buffer() {
    let sets = [VqSet::from_bits(0b1), VqSet::from_bits(0x808b)];
    let mut m = Machine::new(&sets, &[(true, Policy::Lazy), (true, Policy::Lazy)], false, 3);
    let bytes = host_image_bytes(sets.into_iter());
    assert_eq!(bytes, Layout::new(Vq::MAX).image_bytes());
    let mut image = SimImage::new(bytes + 64);
    image.bytes[bytes..].fill(CANARY);
    m.cpus[1].fp = CpuFp::new(image);
    let cpu = &mut m.cpus[1];
    cpu.fp.reset(&mut cpu.hw, cpu.vqs.max());
    cpu.hw.eret();
    m.host_use(1, Some(0xf));
    m.host_use(1, None);
    m.load(1, 0);
    m.run(1, HostFlags::empty(), &[(TrapClass::Sve, None)]);
    assert_eq!(m.cpus[1].fp.host_image(), HostImage::Full(Vq::MAX));
    m.host_use(1, None);
    // The buffer is private to the engine; the simulation would have ended the test on an overrun, and
    // the clone shows that nothing beyond the image was touched.
    let seen = format!("{:?}", m.cpus[1].fp);
    assert!(seen.contains(&[CANARY.to_string().as_str(); 64].join(", ")));
}

/// The host is in streaming mode or has ZA: refused, and nothing has changed (r11).
#[test]
fn r11_a_host_in_streaming_mode_is_refused() {
    for svcr in 1..4 {
        let mut m = one_cpu(0x808b);
        m.host_use(0, None);
        m.load(0, 0);
        let cpu = &mut m.cpus[0];
        cpu.hw.el1_set_svcr(svcr);
        let (before, moves) = (cpu.hw.el1_read(true), cpu.hw.moves);
        let refused = cpu.fp.enter(&mut cpu.hw, &m.guests[0].fp, HostFlags::all(), &cpu.stats);
        assert_eq!(refused, Err(Error::SvcrLive));
        cpu.hw.eret();
        assert_eq!((cpu.hw.el1_read(true), cpu.hw.moves), (before, moves));
        assert_eq!(cpu.hw.el1_access(TrapClass::Sme), Ok(()));
    }
}

/// A host in streaming mode or with ZA keeps its registers where they are.
#[test]
fn a_streaming_host_is_not_displaced() {
    for svcr in 1..4 {
        let mut m = one_cpu(0x808b);
        m.host_use(0, None);
        let cpu = &mut m.cpus[0];
        cpu.hw.el1_set_svcr(svcr);
        let (before, moves) = (cpu.hw.el1_read(true), cpu.hw.moves);
        cpu.fp.displace_host(&mut cpu.hw, &cpu.stats);
        cpu.hw.eret();
        assert_eq!((cpu.hw.el1_read(true), cpu.hw.moves), (before, moves));
        assert_eq!(cpu.fp.live(), Live::Host);
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
        m.run(0, hint, &[(TrapClass::Sve, Some(0xf))]);
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
        cpu.fp.enter(&mut cpu.hw, &guest.fp, hint, &cpu.stats).unwrap();
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
    m.run(0, HostFlags::empty(), &[(TrapClass::Sve, None)]);
    assert_ne!(m.cpus[0].fp.host_image(), HostImage::None);
    m.run(0, HostFlags::FOREIGN_FPSTATE, &[]);
    assert_eq!(m.cpus[0].fp.host_image(), HostImage::None);
    m.host_use(0, None);
}

/// A CPU that came late may lack what the others have in common: it refuses, and narrows nothing (r14).
#[test]
fn r14_a_cpu_without_a_vcpus_length_refuses_it() {
    for set in [0, 0b1, 0b1011, 0x808b, 0xfffe].map(VqSet::from_bits) {
        for vq in (1..=16).filter_map(Vq::new) {
            let fits = if set.contains(vq) { Ok(()) } else { Err(Error::VlMismatch) };
            assert_eq!(CpuFp::check_load(&vcpu(Some(vq), Policy::Lazy), set), fits, "{vq} {set:?}");
        }
        assert_eq!(CpuFp::check_load(&vcpu(None, Policy::Lazy), set), Ok(()));
    }
}
