//! The machine of the engine's tests: simulated CPUs, the engine on each, and the specification of what
//! everybody must find.

use super::super::lengths::Lengths;
use super::super::sim::{Registers, SimCpu, SimImage};
use super::super::{
    Access, CpuFp, FpHw, GuestTrap, HostImage, Live, TrapClass, VcpuFp, host_image_bytes,
};
use crate::stats::Stats;
use umbra_shared::call::Policy;
use umbra_shared::error::Error;
use umbra_shared::flags::{HostFlags, HypFlags};
use umbra_shared::sve::{FPSIMD_BYTES, Layout};
use umbra_shared::vl::{Vq, VqSet};

pub(super) const HOST: u8 = 1;

pub(super) fn byte(owner: u8, generation: u32, register: usize, index: usize) -> u8 {
    let mixed = (generation as usize)
        .wrapping_mul(0x9e37_79b9)
        .wrapping_add(register * 257 + index)
        .wrapping_mul(0x85eb_ca6b)
        >> 11;
    owner << 6 | (mixed as u8 & 0x3f)
}

/// What a context must find: `None` where it can't tell (bytes that a VL change exposed).
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) owner: u8,
    pub(super) z: Vec<[Option<u8>; 256]>,
    pub(super) p: Vec<[Option<u8>; 32]>,
    pub(super) status: [u64; 2],
    pub(super) zcr_el1: u64,
    pub(super) generation: u32,
}

impl Expected {
    pub(super) fn reset(owner: u8) -> Self {
        Self {
            owner,
            z: vec![[Some(0); 256]; 32],
            p: vec![[Some(0); 32]; 17],
            status: [0; 2],
            zcr_el1: 0,
            generation: 0,
        }
    }

    pub(super) fn write(&mut self, hw: &mut SimCpu, sve: bool) {
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
    pub(super) fn forget_above(&mut self, vl: usize) {
        for z in &mut self.z {
            z[vl..].fill(None);
        }
        for p in &mut self.p {
            p[vl / 8..].fill(None);
        }
    }

    pub(super) fn compare(&self, who: &str, seen: &Registers) {
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
    pub(super) fn discard_sve(&mut self) {
        for z in &mut self.z {
            z[16..].fill(Some(0));
        }
        for p in &mut self.p {
            p.fill(Some(0));
        }
    }

    /// Everything but ZCR_EL1 is the reset state.
    pub(super) fn discard_all(&mut self) {
        let (owner, zcr_el1, generation) = (self.owner, self.zcr_el1, self.generation);
        *self = Self { zcr_el1, generation, ..Self::reset(owner) };
    }
}

pub(super) struct Cpu {
    pub(super) hw: SimCpu,
    pub(super) fp: CpuFp<SimImage>,
    pub(super) stats: Stats,
    pub(super) vqs: VqSet,
    /// What the host is held to.
    pub(super) host_vq: Option<Vq>,
    pub(super) host: Expected,
    /// The specification's idea of `live`.
    pub(super) live: Live,
    pub(super) hint: HostFlags,
    pub(super) loaded: Option<usize>,
}

pub(super) struct Guest {
    pub(super) fp: VcpuFp<SimImage>,
    pub(super) expected: Expected,
    pub(super) loaded: bool,
}

pub(super) struct Machine {
    pub(super) cpus: Vec<Cpu>,
    pub(super) guests: Vec<Guest>,
    pub(super) lengths: Lengths,
}

/// The CPUs of a machine.
pub(super) struct Shape<'a> {
    pub(super) sets: &'a [VqSet],
    /// CPUs that come when host images have their size and guests their lengths: the last ones.
    pub(super) late: usize,
    /// `umbra.host-vl=common`.
    pub(super) host_common: bool,
}

pub(super) const CANARY: u8 = 0xa5;

pub(super) fn vcpu(vq: Option<Vq>, policy: Policy) -> VcpuFp<SimImage> {
    let bytes = vq.map_or(FPSIMD_BYTES, |vq| Layout::new(vq).image_bytes());
    VcpuFp::new(SimImage::new(bytes), vq, policy)
}

impl Machine {
    /// All CPUs are there from the beginning, and the guests have different lengths where the machine
    /// has them.
    pub(super) fn new(sets: &[VqSet], guests: &[(bool, Policy)], sme: bool, seed: u64) -> Self {
        let guests: Vec<_> =
            guests.iter().enumerate().map(|(n, &(sve, p))| (sve.then_some(n), p)).collect();
        Self::with(&Shape { sets, late: 0, host_common: false }, &guests, sme, seed)
    }

    /// Guests with SVE have the length with this number in what is common, counted round.
    pub(super) fn with(
        shape: &Shape<'_>,
        guests: &[(Option<usize>, Policy)],
        sme: bool,
        seed: u64,
    ) -> Self {
        let booted = shape.sets[..shape.sets.len() - shape.late].iter().copied();
        let lengths = Lengths::new(booted.clone(), shape.host_common);
        let bytes = host_image_bytes(booted);
        let cpus = shape
            .sets
            .iter()
            .enumerate()
            .map(|(n, &vqs)| {
                let mut cpu = Cpu {
                    hw: SimCpu::new(vqs, sme, seed ^ (n as u64) << 32),
                    fp: CpuFp::new(SimImage::new(bytes)),
                    stats: Stats::new(),
                    vqs,
                    host_vq: lengths.host(vqs),
                    host: Expected::reset(HOST),
                    live: Live::Nobody,
                    hint: HostFlags::empty(),
                    loaded: None,
                };
                cpu.fp.reset(&mut cpu.hw, cpu.host_vq);
                cpu.hw.eret();
                cpu
            })
            .collect();
        let guests = guests
            .iter()
            .enumerate()
            .map(|(n, &(number, policy))| {
                let count = lengths.common.iter().count().max(1);
                let vq = number.and_then(|number| lengths.common.iter().nth(number % count));
                Guest {
                    fp: vcpu(vq, policy),
                    expected: Expected::reset(2 + n as u8),
                    loaded: false,
                }
            })
            .collect();
        Self { cpus, guests, lengths }
    }

    /// The host touches FP: whatever happens, it ends with its registers open to it.
    pub(super) fn host_access(&mut self, n: usize) -> bool {
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

    pub(super) fn host_use(&mut self, n: usize, zcr: Option<u64>) {
        let sve = self.host_access(n);
        let cpu = &mut self.cpus[n];
        if sve {
            assert_eq!(cpu.hw.el1_zcr(), cpu.host.zcr_el1, "host's ZCR_EL1");
            let mut probe = cpu.hw.clone();
            probe.el1_set_zcr(0x1ff);
            assert_eq!(Some(probe.vq_el1()), cpu.host_vq, "the most that the host can select");
        }
        cpu.host.compare("host", &cpu.hw.el1_read(sve));
        cpu.host.write(&mut cpu.hw, sve);
        if let (Some(zcr), true) = (zcr, sve) {
            cpu.hw.el1_set_zcr(zcr);
            cpu.host.zcr_el1 = zcr;
            cpu.host.forget_above(cpu.hw.vq_el1().vl_bytes());
        }
    }

    pub(super) fn load(&mut self, n: usize, v: usize) {
        let cpu = &mut self.cpus[n];
        if cpu.loaded.is_some() || self.guests[v].loaded {
            return;
        }
        let guest = &mut self.guests[v];
        let here = self.lengths.guests(cpu.vqs);
        match CpuFp::check_load(&guest.fp, here) {
            Ok(()) => {
                guest.loaded = true;
                cpu.loaded = Some(v);
            }
            Err(error) => {
                assert_eq!(error, Error::VlMismatch);
                assert!(guest.fp.vq().is_some_and(|vq| !here.contains(vq)));
            }
        }
    }

    pub(super) fn put(&mut self, n: usize) {
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
    pub(super) fn guest_use(&mut self, n: usize, v: usize, class: TrapClass, zcr: Option<u64>) {
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
            // And below it every choice is what it would be on any other CPU, over holes, too.
            for len in 0..16 {
                probe.el1_set_zcr(len);
                let asked = Vq::from_len(len).min(clamp);
                assert_eq!(Some(probe.vq_el1()), self.lengths.common.effective(asked));
            }
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

    pub(super) fn run(&mut self, n: usize, hint: HostFlags, uses: &[(TrapClass, Option<u64>)]) {
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
    pub(super) fn nothing_of_a_guest_in_the_registers(&self, n: usize, v: usize) {
        let mut open = self.cpus[n].hw.clone();
        open.set_access(Access::Full);
        open.eret();
        let sve = !self.cpus[n].vqs.is_empty();
        let owner = self.guests[v].expected.owner;
        for z in open.el1_read(sve).z {
            assert!(z.iter().all(|b| b >> 6 != owner), "scrub left a guest's byte");
        }
    }

    pub(super) fn displace_host(&mut self, n: usize) {
        let cpu = &mut self.cpus[n];
        let was = cpu.live;
        cpu.fp.displace_host(&mut cpu.hw, &cpu.stats);
        cpu.live = if was == Live::Host { Live::Nobody } else { was };
        assert_eq!(cpu.fp.live(), cpu.live);
        cpu.hw.eret();
    }

    pub(super) fn power_cycle(&mut self, n: usize) {
        self.put(n);
        let cpu = &mut self.cpus[n];
        cpu.hw.power_cycle();
        cpu.fp.reset(&mut cpu.hw, cpu.host_vq);
        cpu.hw.eret();
        cpu.live = Live::Nobody;
        let generation = cpu.host.generation;
        cpu.host = Expected { generation, ..Expected::reset(HOST) };
    }
}
