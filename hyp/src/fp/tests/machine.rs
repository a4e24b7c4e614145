//! The machine of the engine's tests: simulated CPUs, the engine on each, and what everybody does there.

use super::super::lengths::Lengths;
use super::super::sim::{Having, SimCpu, SimImage};
use super::super::{
    Access, CpuFp, FpHw, GuestTrap, HostImage, Live, Svcr, TrapClass, VcpuFp, host_storage,
};
use super::mind::Expected;
use crate::arch::stats::Stats;
use umbra_shared::call::Policy;
use umbra_shared::error::Error;
use umbra_shared::flags::{HostFlags, HypFlags};
use umbra_shared::sme::Storage;
use umbra_shared::vcpu::VcpuFeatures;
use umbra_shared::vl::{Vq, VqSet};

pub(super) const HOST: u8 = 1;

/// FPEXC32_EL2.EN.
const EN: u64 = 1 << 30;

/// What a context does with its registers; it looks at what is there first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// V registers; in streaming mode all of Z and P.
    Fpsimd,
    /// Z, P and FFR, and then another ZCR_EL1.
    Sve(Option<u64>),
    /// SMSTART, SMSTOP.
    Svcr(Svcr),
    /// ZA and ZT0.
    Za,
    /// SMCR_EL1.
    Smcr(u64),
    /// FPEXC, of an AArch32 guest.
    Fpexc(bool),
}

pub(super) struct Cpu {
    pub(super) hw: SimCpu,
    pub(super) fp: CpuFp<SimImage>,
    pub(super) stats: Stats,
    pub(super) having: Having,
    /// What the host is held to.
    pub(super) held: Storage,
    pub(super) host: Expected,
    /// The specification's idea of `live`.
    pub(super) live: Live,
    /// And of `za`.
    pub(super) za: Live,
    /// What the host had in its file when it last gave the CPU away is still there, or in memory.
    pub(super) kept: bool,
    pub(super) hint: HostFlags,
    pub(super) loaded: Option<usize>,
}

pub(super) struct Guest {
    pub(super) fp: VcpuFp<SimImage>,
    pub(super) expected: Expected,
    /// FPEXC, of an AArch32 guest.
    pub(super) fpexc: u64,
    pub(super) loaded: bool,
}

pub(super) struct Machine {
    pub(super) cpus: Vec<Cpu>,
    pub(super) guests: Vec<Guest>,
    pub(super) lengths: Lengths,
    pub(super) streaming: Lengths,
}

/// The CPUs of a machine.
pub(super) struct Shape<'a> {
    pub(super) cpus: &'a [Having],
    /// CPUs that come when host images have their size and guests their lengths: the last ones.
    pub(super) late: usize,
    /// `umbra.host-vl=common`.
    pub(super) host_common: bool,
}

/// What a guest is to have: numbers of lengths in what is common, counted round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) vl: Option<usize>,
    pub(super) svl: Option<usize>,
    pub(super) aarch32: bool,
    pub(super) policy: Policy,
}

impl Kind {
    pub(super) const fn sve(vl: Option<usize>, policy: Policy) -> Self {
        Self { vl, svl: None, aarch32: false, policy }
    }

    pub(super) const fn sme(vl: Option<usize>, svl: usize, policy: Policy) -> Self {
        Self { vl, svl: Some(svl), aarch32: false, policy }
    }

    pub(super) const AARCH32: Self =
        Self { vl: None, svl: None, aarch32: true, policy: Policy::Lazy };
}

pub(super) const CANARY: u8 = 0xa5;

pub(super) fn vcpu(features: VcpuFeatures, policy: Policy) -> VcpuFp<SimImage> {
    VcpuFp::new(SimImage::new(features.storage()), features, policy)
}

impl Machine {
    /// All CPUs are there from the beginning, with SVE at most, and the guests have different lengths where
    /// the machine has them.
    pub(super) fn new(sets: &[VqSet], guests: &[(bool, Policy)], seed: u64) -> Self {
        let cpus: Vec<_> = sets.iter().copied().map(Having::sve).collect();
        let guests: Vec<_> = guests
            .iter()
            .enumerate()
            .map(|(n, &(sve, p))| Kind::sve(sve.then_some(n), p))
            .collect();
        Self::with(&Shape { cpus: &cpus, late: 0, host_common: false }, &guests, seed)
    }

    pub(super) fn with(shape: &Shape<'_>, guests: &[Kind], seed: u64) -> Self {
        let booted = || shape.cpus[..shape.cpus.len() - shape.late].iter();
        let lengths = Lengths::new(booted().map(|c| c.vqs), shape.host_common);
        let streaming = Lengths::new(booted().map(|c| c.svqs), shape.host_common);
        let storage = host_storage(booted().map(|c| c.vqs), booted().map(|c| c.svqs));
        let cpus = shape
            .cpus
            .iter()
            .enumerate()
            .map(|(n, &(mut having))| {
                let held = Storage::new(lengths.host(having.vqs), streaming.host(having.svqs));
                // What the host can't be held to is closed for good.
                if held.vq.is_none() {
                    having.vqs = VqSet::EMPTY;
                }
                if held.svq.is_none() {
                    having.svqs = VqSet::EMPTY;
                }
                let mut cpu = Cpu {
                    hw: SimCpu::new(having, seed ^ (n as u64) << 32),
                    fp: CpuFp::new(SimImage::new(storage)),
                    stats: Stats::new(),
                    having,
                    held,
                    host: Expected::reset(HOST),
                    live: Live::Nobody,
                    za: Live::Nobody,
                    kept: false,
                    hint: HostFlags::empty(),
                    loaded: None,
                };
                cpu.fp.reset(&mut cpu.hw, held);
                cpu.hw.eret();
                cpu
            })
            .collect();
        let pick = |set: VqSet, number: Option<usize>| {
            let count = set.iter().count().max(1);
            number.and_then(|number| set.iter().nth(number % count))
        };
        let guests = guests
            .iter()
            .enumerate()
            .map(|(n, kind)| {
                let features = match kind.aarch32 {
                    true => VcpuFeatures::AARCH32,
                    false => VcpuFeatures {
                        vq: pick(lengths.common, kind.vl),
                        svq: pick(streaming.common, kind.svl),
                        aarch32: false,
                    },
                };
                Guest {
                    fp: vcpu(features, kind.policy),
                    expected: Expected::reset(2 + n as u8),
                    fpexc: 0x700,
                    loaded: false,
                }
            })
            .collect();
        Self { cpus, guests, lengths, streaming }
    }

    /// The host touches registers: whatever happens, it ends with them open to it.
    fn host_access(&mut self, n: usize, class: TrapClass) {
        let cpu = &mut self.cpus[n];
        let matrix = class == TrapClass::Sme;
        if cpu.hw.el1_access(class).is_err() {
            assert!(cpu.fp.host_opens(class), "a trap although the host has it");
            assert!(cpu.live != Live::Host || (matrix && cpu.za != Live::Host));
            let loaded = cpu.loaded.map(|v| &mut self.guests[v].fp);
            let flags = cpu.fp.host_trap(&mut cpu.hw, loaded, class, &cpu.stats);
            assert_eq!(flags, HypFlags::HOST_FP_PRESERVED);
            (cpu.live, cpu.kept) = (Live::Host, true);
            if matrix {
                cpu.za = Live::Host;
            }
            cpu.hw.eret();
        } else {
            assert_eq!(cpu.live, Live::Host, "FP is open to the host and not its own");
        }
        assert_eq!(cpu.hw.el1_access(class), Ok(()));
        assert_eq!(cpu.fp.live(), Live::Host);
        assert_eq!(cpu.fp.host_image(), HostImage::None, "the image is consumed");
        assert!(!matrix || cpu.fp.za() == Live::Host);
        assert_eq!(cpu.hw.el1_access(TrapClass::Sme).is_ok(), cpu.za == Live::Host);
    }

    /// Everything that the machine has of the file.
    pub(super) fn host_use(&mut self, n: usize, zcr: Option<u64>) {
        self.host_uses(n, Use::Sve(zcr));
    }

    pub(super) fn host_uses(&mut self, n: usize, what: Use) {
        assert_eq!(
            self.cpus[n].hw.real_svcr().contains(Svcr::SM),
            self.cpus[n].host.sm(),
            "PSTATE.SM while the host runs: EL1's own traps depend on it"
        );
        let (sve, sme) =
            (!self.cpus[n].having.vqs.is_empty(), !self.cpus[n].having.svqs.is_empty());
        let sm = self.cpus[n].host.sm();
        match what {
            Use::Fpexc(_) => return,
            Use::Svcr(_) | Use::Za | Use::Smcr(_) if !sme => return,
            Use::Svcr(_) | Use::Za | Use::Smcr(_) => self.host_access(n, TrapClass::Sme),
            Use::Sve(_) if sm => self.host_access(n, TrapClass::Sme),
            Use::Sve(_) if sve => self.host_access(n, TrapClass::Sve),
            Use::Sve(_) | Use::Fpsimd => self.host_access(n, TrapClass::Fpsimd),
        }
        let cpu = &mut self.cpus[n];
        if sve && !sm {
            assert_eq!(cpu.hw.el1_zcr(), cpu.host.zcr_el1, "host's ZCR_EL1");
            let mut probe = cpu.hw.clone();
            probe.el1_set_zcr(0x1ff);
            assert_eq!(Some(probe.vq_el1()), cpu.held.vq, "the most that the host can select");
        }
        if cpu.za == Live::Host {
            assert_eq!(cpu.hw.real_svcr(), cpu.host.svcr, "host's SVCR");
            assert_eq!(cpu.hw.el1_smcr(), cpu.host.smcr_el1, "host's SMCR_EL1");
            let mut probe = cpu.hw.clone();
            probe.el1_set_smcr(0x1ff);
            assert_eq!(Some(probe.svq_el1()), cpu.held.svq, "the most that the host can select");
        }
        let whole = sve || sm;
        apply("host", &mut cpu.host, &mut cpu.hw, what, whole, sve);
    }

    pub(super) fn load(&mut self, n: usize, v: usize) {
        let cpu = &mut self.cpus[n];
        if cpu.loaded.is_some() || self.guests[v].loaded {
            return;
        }
        let guest = &mut self.guests[v];
        let here = self.lengths.guests(cpu.having.vqs);
        let streaming = self.streaming.guests(cpu.having.svqs);
        match guest.fp.check_load(here, streaming) {
            Ok(()) => {
                guest.loaded = true;
                cpu.loaded = Some(v);
                // What is published as it is loaded.
                let flags = cpu.fp.flags();
                assert_eq!(flags.contains(HypFlags::HOST_FP_PRESERVED), cpu.kept);
                assert!(!flags.contains(HypFlags::GUEST_FP_LOADED));
            }
            Err(error) => {
                assert_eq!(error, Error::VlMismatch);
                assert!(
                    guest.fp.vq().is_some_and(|vq| !here.contains(vq))
                        || guest.fp.svq().is_some_and(|vq| !streaming.contains(vq))
                );
            }
        }
    }

    pub(super) fn put(&mut self, n: usize) {
        let cpu = &mut self.cpus[n];
        let Some(v) = cpu.loaded.take() else { return };
        let guest = &mut self.guests[v];
        let moves = cpu.hw.moves;
        let has_za = cpu.za == Live::Guest && guest.expected.svcr.contains(Svcr::ZA);
        let flags = cpu.fp.put(&mut cpu.hw, &mut guest.fp, &cpu.stats);
        cpu.hw.eret();
        assert!(!flags.contains(HypFlags::GUEST_FP_LOADED));
        assert_eq!(flags.contains(HypFlags::HOST_FP_PRESERVED), cpu.kept);
        let expected = u64::from(cpu.live == Live::Guest) + u64::from(has_za);
        assert_eq!(cpu.hw.moves - moves, expected, "registers moved by a put");
        for live in [&mut cpu.live, &mut cpu.za] {
            if *live == Live::Guest {
                *live = Live::Nobody;
            }
        }
        guest.loaded = false;
    }

    /// What becomes of the host when a guest takes the file, or the matrix.
    fn host_is_displaced(cpu: &mut Cpu, matrix: bool) {
        let foreign = cpu.hint.contains(HostFlags::FOREIGN_FPSTATE);
        if cpu.live == Live::Host {
            if foreign {
                cpu.host.discard_file();
                if cpu.za != Live::Host {
                    cpu.host.discard_za();
                }
            } else if cpu.hint.contains(HostFlags::SVE_DISCARDED) && !cpu.host.sm() {
                cpu.host.discard_sve();
            }
        }
        if matrix && cpu.za == Live::Host && foreign {
            cpu.host.discard_za();
        }
    }

    /// A guest's use: what it finds, what it writes.
    pub(super) fn guest_use(&mut self, n: usize, v: usize, what: Use) {
        let (cpu, guest) = (&mut self.cpus[n], &mut self.guests[v]);
        assert_eq!(
            cpu.hw.real_svcr().contains(Svcr::SM),
            guest.expected.sm(),
            "PSTATE.SM while a guest runs: EL1's own traps depend on it"
        );
        let (sve, sme) = (guest.fp.vq().is_some(), guest.fp.svq().is_some());
        let aarch32 = guest.fp.aarch32();
        if aarch32 {
            // FPEXC is reached through the same trap, but whatever EN is.
            let fpexc = matches!(what, Use::Fpexc(_));
            if cpu.live == Live::Guest {
                assert_eq!(cpu.hw.real_fpexc(), guest.fpexc, "its own FPEXC while FP is open");
            } else {
                assert_ne!(cpu.hw.real_fpexc() & EN, 0, "EN while FP is closed to it");
            }
            if cpu.live == Live::Guest && !fpexc && guest.fpexc & EN == 0 {
                // UNDEFINED in its own EL1.
                return;
            }
        }
        let class = match what {
            Use::Fpexc(_) if !aarch32 => return,
            Use::Svcr(_) | Use::Za | Use::Smcr(_) => TrapClass::Sme,
            // In streaming mode the file is SME's.
            Use::Sve(_) if guest.expected.sm() => TrapClass::Sme,
            Use::Sve(_) => TrapClass::Sve,
            Use::Fpsimd | Use::Fpexc(_) => TrapClass::Fpsimd,
        };
        if cpu.hw.el1_access(class).is_err() {
            let had = (cpu.live, cpu.za);
            let opens = cpu.fp.guest_opens(&guest.fp, class);
            let trap = cpu.fp.guest_trap(&mut cpu.hw, &mut guest.fp, class, &cpu.stats);
            assert_eq!(trap == GuestTrap::Opened, opens);
            match trap {
                GuestTrap::Undefined => {
                    assert!(match class {
                        TrapClass::Fpsimd => false,
                        TrapClass::Sve => !sve,
                        TrapClass::Sme => !sme,
                    });
                    assert_eq!((cpu.fp.live(), cpu.fp.za()), had, "UNDEFINED changes nothing");
                    cpu.hw.eret();
                    return;
                }
                GuestTrap::Opened => {
                    let matrix = cpu.fp.za() == Live::Guest;
                    assert!(matrix || class != TrapClass::Sme, "SME is open and not its own");
                    assert!(matrix || guest.expected.svcr.is_empty() || cpu.za == Live::Guest);
                    Self::host_is_displaced(cpu, matrix);
                    cpu.live = Live::Guest;
                    if matrix {
                        cpu.za = Live::Guest;
                    }
                    cpu.hw.eret();
                }
            }
        }
        if aarch32 {
            assert_eq!(cpu.hw.real_fpexc(), guest.fpexc, "its own FPEXC once FP is open");
            if let Use::Fpexc(enable) = what {
                guest.fpexc = 0x700 | if enable { EN } else { 0 };
                cpu.hw.el1_set_fpexc(guest.fpexc);
                return;
            }
            if guest.fpexc & EN == 0 {
                return;
            }
        }
        assert_eq!((cpu.live, cpu.fp.live()), (Live::Guest, Live::Guest));
        let sm = guest.expected.sm();
        if !sm {
            assert_eq!(cpu.hw.el1_access(TrapClass::Sve).is_ok(), sve);
        }
        assert_eq!(cpu.hw.el1_access(TrapClass::Sme).is_ok(), cpu.za == Live::Guest);
        if let Some(clamp) = guest.fp.vq() {
            assert_eq!(cpu.hw.el1_zcr(), guest.expected.zcr_el1, "guest's ZCR_EL1");
            // I4: the greatest VL it can select is exactly its clamp, and below it every choice is what it
            // would be on any other CPU, over holes, too.
            let mut probe = cpu.hw.clone();
            probe.el1_set_zcr(0x1ff);
            assert_eq!(probe.vq_el1(), clamp);
            for len in 0..16 {
                probe.el1_set_zcr(len);
                let asked = Vq::from_len(len).min(clamp);
                assert_eq!(Some(probe.vq_el1()), self.lengths.common.effective(asked));
            }
        }
        if cpu.za == Live::Guest {
            let clamp = guest.fp.svq().expect("it has SME");
            assert_eq!(cpu.hw.real_svcr(), guest.expected.svcr, "guest's SVCR");
            assert_eq!(cpu.hw.el1_smcr(), guest.expected.smcr_el1, "guest's SMCR_EL1");
            let mut probe = cpu.hw.clone();
            probe.el1_set_smcr(0x1ff);
            assert_eq!(probe.svq_el1(), clamp, "I4");
            let smallest = self.streaming.common.iter().next();
            for len in 0..16 {
                probe.el1_set_smcr(len);
                let asked = Vq::from_len(len).min(clamp);
                let elsewhere = self.streaming.common.effective(asked).or(smallest);
                assert_eq!(Some(probe.svq_el1()), elsewhere);
            }
        } else {
            assert!(!cpu.hw.real_svcr().contains(Svcr::SM), "a guest in another's streaming mode");
        }
        apply("guest", &mut guest.expected, &mut cpu.hw, what, sve || sm, sve);
    }

    pub(super) fn run(&mut self, n: usize, hint: HostFlags, uses: &[Use]) {
        let cpu = &mut self.cpus[n];
        let Some(v) = cpu.loaded else { return };
        let moves = cpu.hw.moves;
        let guest = &mut self.guests[v];
        cpu.hint = hint;
        let foreign = hint.contains(HostFlags::FOREIGN_FPSTATE);
        // What the entry takes away: streaming mode.
        let mut expected_moves = 0;
        if cpu.live == Live::Host {
            if cpu.za == Live::Host && cpu.host.sm() {
                expected_moves += u64::from(!foreign);
                Self::host_is_displaced(cpu, false);
                cpu.live = Live::Nobody;
            }
        } else if foreign {
            cpu.host.discard_file();
            if cpu.za != Live::Host {
                cpu.host.discard_za();
            }
        }
        let has_za = cpu.za == Live::Host && cpu.host.svcr.contains(Svcr::ZA);
        if guest.expected.sm() && cpu.live != Live::Guest {
            // All of a guest in streaming mode comes at once.
            let saved = cpu.live == Live::Host && !foreign;
            expected_moves += u64::from(saved) + u64::from(has_za && !foreign) + 1;
            let loads_za = cpu.za != Live::Guest && guest.expected.svcr.contains(Svcr::ZA);
            expected_moves += u64::from(loads_za);
            Self::host_is_displaced(cpu, true);
            (cpu.live, cpu.za) = (Live::Guest, Live::Guest);
        }
        cpu.fp.enter(&mut cpu.hw, &guest.fp, hint, &cpu.stats);
        assert_eq!((cpu.fp.live(), cpu.fp.za()), (cpu.live, cpu.za));
        assert_eq!(cpu.hw.moves - moves, expected_moves, "an entry moved registers");
        cpu.hw.eret();
        for &what in uses {
            self.guest_use(n, v, what);
        }
        let (cpu, guest) = (&mut self.cpus[n], &mut self.guests[v]);
        let moves = cpu.hw.moves;
        let flags = cpu.fp.exit(&mut cpu.hw, &mut guest.fp, &cpu.stats);
        let (was_live, had_matrix) = (cpu.live == Live::Guest, cpu.za == Live::Guest);
        let (image_streams, was_host) = (cpu.host.sm(), cpu.live == Live::Host);
        // FOREIGN, and a guest or an earlier one has displaced it.
        cpu.kept &= was_host || !foreign;
        match guest.fp.policy() {
            // A host in streaming mode gets everything.
            _ if image_streams && !was_host => (cpu.live, cpu.za) = (Live::Host, Live::Host),
            // Streaming mode is left at every exit.
            Policy::Lazy if was_live && guest.expected.sm() => cpu.live = Live::Nobody,
            Policy::Lazy => assert_eq!(cpu.hw.moves, moves, "a lazy exit moved registers"),
            Policy::Eager if (was_live || had_matrix) && cpu.kept => {
                cpu.live = Live::Host;
                if had_matrix {
                    cpu.za = Live::Host;
                }
            }
            Policy::Eager | Policy::Scrub if was_live || had_matrix => {
                cpu.live = if was_live { Live::Nobody } else { cpu.live };
                cpu.za = if had_matrix { Live::Nobody } else { cpu.za };
            }
            Policy::Eager | Policy::Scrub => assert_eq!(cpu.hw.moves, moves),
        }
        assert_eq!((cpu.fp.live(), cpu.fp.za()), (cpu.live, cpu.za));
        assert_eq!(flags.contains(HypFlags::GUEST_FP_LOADED), cpu.live == Live::Guest);
        assert_eq!(
            flags.contains(HypFlags::HOST_FP_PRESERVED),
            cpu.kept,
            "r33: hyp's word says whether the host finds what it left"
        );
        assert!(
            cpu.live == Live::Host || !cpu.hw.real_svcr().contains(Svcr::SM),
            "streaming mode is left to nobody"
        );
        cpu.hw.eret();
        if was_live && guest.fp.policy() == Policy::Scrub {
            self.nothing_of_a_guest_in_the_registers(n, v);
        }
    }

    /// What scrub promises: not even behind the closed trap is there a byte of this guest.
    pub(super) fn nothing_of_a_guest_in_the_registers(&self, n: usize, v: usize) {
        let mut open = self.cpus[n].hw.clone();
        open.set_access(Access::Full);
        open.eret();
        let sve = !self.cpus[n].having.vqs.is_empty();
        let owner = self.guests[v].expected.owner;
        for z in open.el1_read(sve).z {
            assert!(z.iter().all(|b| b >> 6 != owner), "scrub left a guest's byte");
        }
        if !self.cpus[n].having.svqs.is_empty() {
            // At the SVL that the guest had.
            open.el1_set_smcr(0xf);
            for row in open.el1_read_za() {
                assert!(row.iter().all(|b| b >> 6 != owner), "scrub left a guest's byte in ZA");
            }
        }
    }

    pub(super) fn displace_host(&mut self, n: usize) {
        let cpu = &mut self.cpus[n];
        cpu.fp.displace_host(&mut cpu.hw, &cpu.stats);
        if cpu.live == Live::Host && !cpu.host.sm() {
            cpu.live = Live::Nobody;
            if cpu.za == Live::Host {
                cpu.za = Live::Nobody;
            }
        }
        assert_eq!((cpu.fp.live(), cpu.fp.za()), (cpu.live, cpu.za));
        cpu.hw.eret();
    }

    pub(super) fn power_cycle(&mut self, n: usize) {
        self.put(n);
        let cpu = &mut self.cpus[n];
        cpu.hw.power_cycle();
        cpu.fp.reset(&mut cpu.hw, cpu.held);
        cpu.hw.eret();
        cpu.live = Live::Nobody;
        cpu.za = Live::Nobody;
        cpu.kept = false;
        cpu.host.start_again();
    }
}

/// The use itself, with everything open that it needs.
fn apply(who: &str, mind: &mut Expected, hw: &mut SimCpu, what: Use, whole: bool, sve: bool) {
    match what {
        Use::Fpsimd => mind.look_and_write(who, hw, mind.sm()),
        Use::Sve(zcr) => {
            mind.look_and_write(who, hw, whole);
            if let (Some(zcr), true) = (zcr, sve && !mind.sm()) {
                mind.set_zcr(hw, zcr);
            }
        }
        Use::Svcr(svcr) => mind.set_svcr(hw, svcr),
        Use::Za if mind.svcr.contains(Svcr::ZA) => mind.look_at_za(who, hw),
        Use::Za | Use::Fpexc(_) => {}
        Use::Smcr(smcr) => mind.set_smcr(hw, smcr),
    }
}
