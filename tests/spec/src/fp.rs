//! A CPU's FP registers.

use umbra_shared::call::Policy;
use umbra_shared::flags::{HostFlags, HypFlags};
use umbra_shared::record::FpState;

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

/// What of the host is in hyp's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Nothing.
    None,
    /// V registers.
    Fpsimd,
    /// Everything, at this VQ.
    Full(u8),
}

/// Both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp {
    /// Who is live.
    pub live: Live,
    /// What is held.
    pub image: Image,
}

impl Fp {
    /// Out of reset.
    pub const RESET: Self = Self { live: Live::Nobody, image: Image::None };

    /// As a record has it.
    pub const fn record(self) -> FpState {
        let live = match self.live {
            Live::Host => 0,
            Live::Guest => 1,
            Live::Nobody => 2,
        };
        let (image, vq) = match self.image {
            Image::None => (0, 0),
            Image::Fpsimd => (1, 0),
            Image::Full(vq) => (2, vq),
        };
        FpState { live, image, vq }
    }

    /// The host used FP and it was not live.
    pub const fn host_trap(self) -> Self {
        Self { live: Live::Host, image: Image::None }
    }

    /// The loaded vCPU is put.
    pub fn put(self) -> Self {
        match self.live {
            Live::Guest => Self { live: Live::Nobody, ..self },
            _ => self,
        }
    }

    /// A run from entry to exit. `opened`: the guest used FP and was not live. `held`: the VQ of the
    /// host; 0: no SVE.
    pub fn run(self, hint: HostFlags, opened: bool, policy: Policy, held: u8) -> Self {
        let foreign = hint.contains(HostFlags::FOREIGN_FPSTATE);
        let mut fp = self;
        if foreign && fp.live != Live::Host {
            fp.image = Image::None;
        }
        if opened {
            if fp.live == Live::Host {
                fp.image = match () {
                    () if foreign => Image::None,
                    () if held == 0 || hint.contains(HostFlags::SVE_DISCARDED) => Image::Fpsimd,
                    () => Image::Full(held),
                };
            }
            fp.live = Live::Guest;
        }
        match (fp.live, policy) {
            (Live::Guest, Policy::Eager) => fp.host_trap(),
            (Live::Guest, Policy::Scrub) => Self { live: Live::Nobody, ..fp },
            _ => fp,
        }
    }

    /// Hyp's word.
    pub fn word(self) -> HypFlags {
        let mut word = HypFlags::empty();
        word.set(HypFlags::GUEST_FP_LOADED, self.live == Live::Guest);
        let preserved = self.live == Live::Host || self.image != Image::None;
        word.set(HypFlags::HOST_FP_PRESERVED, preserved);
        word
    }
}
