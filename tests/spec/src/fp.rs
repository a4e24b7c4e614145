//! A CPU's FP registers.
//!
//! What is in PSTATE.SM and PSTATE.ZA only the registers know: where the next state depends on them, the
//! functions here name all that are possible.

use umbra_shared::call::Policy;
use umbra_shared::flags::{HostFlags, HypFlags};
use umbra_shared::record::FpState;
use umbra_shared::vcpu::VcpuFeatures;

/// Whose state is in the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// The host's.
    Host,
    /// The loaded vCPU's.
    Guest,
    /// Nobody's.
    Nobody,
}

/// What of the host's file is in hyp's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Nothing.
    None,
    /// V registers.
    Fpsimd,
    /// Everything, at this VQ.
    Full(u8),
    /// Everything of streaming mode, at this SVL's VQ.
    Streaming(u8),
}

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp {
    /// Whose Z, P and FFR, or V, are in the registers.
    pub live: Live,
    /// Whose ZA, and SMCR.
    pub za: Live,
    /// What is held of the host's file.
    pub image: Image,
    /// VQ of the host's ZA in memory; 0: there is none.
    pub host_za: u8,
}

/// What a host is held to on a CPU, in quadwords; 0: no SVE, no SME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// VL.
    pub vq: u8,
    /// SVL.
    pub svq: u8,
}

impl Fp {
    /// Out of reset.
    pub const RESET: Self =
        Self { live: Live::Nobody, za: Live::Nobody, image: Image::None, host_za: 0 };

    /// As a record has it.
    pub const fn record(self) -> FpState {
        const fn owner(live: Live) -> u8 {
            match live {
                Live::Host => 0,
                Live::Guest => 1,
                Live::Nobody => 2,
            }
        }
        let (image, vq) = match self.image {
            Image::None => (0, 0),
            Image::Fpsimd => (1, 0),
            Image::Full(vq) => (2, vq),
            Image::Streaming(vq) => (3, vq),
        };
        FpState { live: owner(self.live), image, vq, za: owner(self.za), host_za: self.host_za }
    }

    /// Whether the host can trap on FP or SVE, or on SME.
    pub fn host_may_trap(self, sme: bool) -> bool {
        self.live != Live::Host || (sme && self.za != Live::Host)
    }

    /// The host used FP or SVE, or SME, which were not open to it.
    pub fn host_trap(self, sme: bool, held: Held) -> Self {
        let file = Self { live: Live::Host, image: Image::None, ..self };
        if sme && held.svq != 0 { Self { za: Live::Host, host_za: 0, ..file } } else { file }
    }

    /// The loaded vCPU is put.
    pub fn put(self) -> Self {
        let put = |live| if live == Live::Guest { Live::Nobody } else { live };
        Self { live: put(self.live), za: put(self.za), ..self }
    }

    /// The host's file goes to memory, as the hint says.
    fn save_host(self, hint: HostFlags, streaming: bool, held: Held) -> Self {
        let saved = Self { live: Live::Nobody, ..self };
        match () {
            () if hint.contains(HostFlags::FOREIGN_FPSTATE) => {
                let host_za = if self.za == Live::Host { self.host_za } else { 0 };
                Self { image: Image::None, host_za, ..saved }
            }
            () if streaming => Self { image: Image::Streaming(held.svq), ..saved },
            () if held.vq == 0 || hint.contains(HostFlags::SVE_DISCARDED) => {
                Self { image: Image::Fpsimd, ..saved }
            }
            () => Self { image: Image::Full(held.vq), ..saved },
        }
    }

    /// The host's ZA is displaced: there was one, or not.
    fn displace_za(self, hint: HostFlags, held: Held) -> impl Iterator<Item = Self> {
        let kept = if hint.contains(HostFlags::FOREIGN_FPSTATE) { 0 } else { held.svq };
        [0, kept].into_iter().map(move |host_za| Self { za: Live::Nobody, host_za, ..self })
    }

    /// An entry into a vCPU.
    fn enter(self, hint: HostFlags, vcpu: VcpuFeatures, held: Held) -> Vec<Self> {
        let mut states = vec![self];
        if self.live == Live::Host {
            if self.za == Live::Host {
                // It was in streaming mode.
                states.push(self.save_host(hint, true, held));
            }
        } else if hint.contains(HostFlags::FOREIGN_FPSTATE) {
            states = vec![Self { image: Image::None, host_za: 0, ..self }];
        }
        if vcpu.svq.is_some() {
            // The vCPU is in streaming mode, and everything of its comes at once.
            let both = |s: &Self| s.live != Live::Guest;
            let entered: Vec<_> = states
                .iter()
                .filter(|s| both(s))
                .flat_map(|s| s.open(hint, vcpu, held))
                .filter(|s| s.za == Live::Guest)
                .collect();
            states.extend(entered);
        }
        states
    }

    /// A trap of the vCPU's made its state live.
    fn open(self, hint: HostFlags, vcpu: VcpuFeatures, held: Held) -> Vec<Self> {
        let saved = if self.live == Live::Host { self.save_host(hint, false, held) } else { self };
        let file = Self { live: Live::Guest, ..saved };
        let mut states = Vec::new();
        if self.live != Live::Guest {
            states.push(file);
        }
        if vcpu.svq.is_some() && self.za != Live::Guest {
            let taken = |s: Self| Self { za: Live::Guest, ..s };
            if self.za == Live::Host {
                states.extend(file.displace_za(hint, held).map(taken));
            } else {
                states.push(taken(file));
            }
        }
        states
    }

    /// An exit.
    fn exit(self, policy: Policy, held: Held) -> Vec<Self> {
        if matches!(self.image, Image::Streaming(_)) {
            // A host in streaming mode can't run without its registers.
            return vec![self.put().host_trap(true, held)];
        }
        let (file, matrix) = (self.live == Live::Guest, self.za == Live::Guest);
        match policy {
            // It may have been in streaming mode.
            Policy::Lazy if file && matrix => vec![self, Self { live: Live::Nobody, ..self }],
            // Of a host that had given its registers up there is nothing to bring back.
            Policy::Eager if (file || matrix) && self.preserved() => {
                vec![self.put().host_trap(matrix, held)]
            }
            Policy::Eager | Policy::Scrub => vec![self.put()],
            Policy::Lazy => vec![self],
        }
    }

    /// A run from entry to exit: all that can be the state after it. `opened`: how often a trap of the
    /// guest's made its state live.
    pub fn run(
        self,
        hint: HostFlags,
        opened: u64,
        vcpu: VcpuFeatures,
        policy: Policy,
        held: Held,
    ) -> Vec<Self> {
        let mut states = self.enter(hint, vcpu, held);
        for _ in 0..opened.min(3) {
            states = states.into_iter().flat_map(|s| s.open(hint, vcpu, held)).collect();
        }
        states.into_iter().flat_map(|s| s.exit(policy, held)).collect()
    }

    /// Hyp's word.
    pub fn word(self) -> HypFlags {
        let mut word = HypFlags::empty();
        word.set(HypFlags::GUEST_FP_LOADED, self.live == Live::Guest);
        word.set(HypFlags::HOST_FP_PRESERVED, self.preserved());
        word
    }

    /// Whether the host's file is in the registers or in memory.
    fn preserved(self) -> bool {
        self.live == Live::Host || self.image != Image::None
    }
}
