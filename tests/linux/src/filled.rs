//! What a worker can fill, and what Linux offers of it.

use core::fmt;

use umbra_shared::vl::{Vq, VqSet};

use crate::worker::Between;

/// What is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// V0-V31 alone.
    Fpsimd,
    /// Z, P and FFR at this VL.
    Sve(Vq),
    /// ZA at this SVL, and what streaming mode has of the rest, where it stays on.
    Streaming(Vq),
}

/// Lengths that there can be.
const LENGTHS: usize = 16;

impl Filled {
    /// How many there are.
    pub const COUNT: usize = 1 + 2 * LENGTHS;

    /// Its number, below [`Self::COUNT`].
    pub fn number(self) -> usize {
        match self {
            Self::Fpsimd => 0,
            Self::Sve(vq) => vq.quadwords(),
            Self::Streaming(vq) => LENGTHS + vq.quadwords(),
        }
    }

    /// The one with this number.
    pub fn numbered(number: usize) -> Self {
        match Vq::new((number.saturating_sub(1) % LENGTHS) as u64 + 1) {
            Some(vq) if number > LENGTHS => Self::Streaming(vq),
            Some(vq) if number > 0 => Self::Sve(vq),
            _ => Self::Fpsimd,
        }
    }
}

impl fmt::Display for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fpsimd => f.write_str("V0-V31 alone"),
            Self::Sve(vq) => write!(f, "VL {}", vq.vl_bytes()),
            Self::Streaming(vq) => write!(f, "ZA at SVL {}", vq.vl_bytes()),
        }
    }
}

/// What Linux offers.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Vector lengths.
    pub sve: VqSet,
    /// Those of streaming mode.
    pub sme: VqSet,
    /// Streaming mode has FFR (FEAT_SME_FA64).
    pub fa64: bool,
    /// The kernel's own ciphers.
    pub ciphers: bool,
}

impl Offer {
    /// All that there is to fill.
    pub fn patterns(self) -> impl Iterator<Item = Filled> {
        let has = move |&filled: &Filled| match filled {
            Filled::Fpsimd => true,
            Filled::Sve(vq) => self.sve.contains(vq),
            Filled::Streaming(vq) => self.sme.contains(vq),
        };
        (0..Filled::COUNT).map(Filled::numbered).filter(has)
    }

    /// All that can happen meanwhile.
    pub fn ways(self) -> impl Iterator<Item = Between> {
        Between::KINDS.into_iter().filter(move |&way| way != Between::Cipher || self.ciphers)
    }
}
