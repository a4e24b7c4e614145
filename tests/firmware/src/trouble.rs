//! Calls that don't go well: refused with each error that PSCI has for them, answered late, or followed by
//! a CPU that takes its time.
//!
//! What becomes of a call follows from the seed, the function, the CPU that it is about and how many such
//! calls there were before. So a run with the same calls meets the same trouble, and a caller that asks
//! again gets there in the end. The first CPU_ON of each CPU goes well: that is how a hypervisor finds out
//! what there is.

use arm_psci::{ErrorCode, FunctionId};
use core::sync::atomic::{AtomicU32, Ordering};
use umbra_shared::firmware::FIRMWARE_CPUS;

/// The longest delay, in microseconds.
pub const LONGEST: u32 = 5000;

/// Calls that may meet trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// CPU_ON of a CPU.
    On,
    /// CPU_OFF by a CPU.
    Off,
    /// CPU_SUSPEND by a CPU.
    Suspend,
    /// AFFINITY_INFO of a CPU.
    Info,
}

impl Kind {
    /// Of a function ID.
    pub fn new(function: u32) -> Option<Self> {
        match FunctionId::try_from(function).ok()? {
            FunctionId::CpuOn32 | FunctionId::CpuOn64 => Some(Self::On),
            FunctionId::CpuOff => Some(Self::Off),
            FunctionId::CpuSuspend32 | FunctionId::CpuSuspend64 => Some(Self::Suspend),
            FunctionId::AffinityInfo32 | FunctionId::AffinityInfo64 => Some(Self::Info),
            _ => None,
        }
    }

    /// Whether x1 names the CPU that it is about, and not who calls.
    pub const fn names_a_cpu(self) -> bool {
        matches!(self, Self::On | Self::Info)
    }

    /// What PSCI 1.1 lets it answer instead of succeeding, and what callers have met.
    const fn refusals(self) -> &'static [ErrorCode] {
        match self {
            Self::On => &[ErrorCode::Denied, ErrorCode::InternalFailure, ErrorCode::InvalidAddress],
            Self::Off => &[ErrorCode::Denied],
            Self::Suspend => {
                &[ErrorCode::Denied, ErrorCode::InvalidParameters, ErrorCode::InvalidAddress]
            }
            Self::Info => &[ErrorCode::InvalidParameters],
        }
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It goes well.
    None,
    /// It is refused.
    Refused(ErrorCode),
    /// It goes well after so many microseconds; a CPU comes so much later.
    Late(u32),
}

/// A number that looks like any other (the finaliser of MurmurHash3).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// What becomes of the `n`th such call, from 0 on, about this CPU.
pub fn trouble(seed: u64, kind: Kind, cpu: usize, n: u32) -> Trouble {
    if seed == 0 || kind == Kind::On && n == 0 {
        return Trouble::None;
    }
    let number = mix(mix(seed ^ (kind as u64) << 48) ^ (cpu as u64) << 32 ^ u64::from(n));
    let which = number >> 8;
    match number & 7 {
        0..=2 => {
            let refusals = kind.refusals();
            Trouble::Refused(refusals[(which % refusals.len() as u64) as usize])
        }
        3 | 4 => Trouble::Late((which % u64::from(LONGEST)) as u32 + 1),
        _ => Trouble::None,
    }
}

/// How many calls there were.
#[derive(Debug)]
pub struct Counts([[AtomicU32; 4]; FIRMWARE_CPUS]);

impl Counts {
    /// None yet.
    pub const fn new() -> Self {
        Self([const { [const { AtomicU32::new(0) }; 4] }; FIRMWARE_CPUS])
    }

    /// Counts a call about this CPU, and says what becomes of it.
    pub fn next(&self, seed: u64, kind: Kind, cpu: usize) -> Trouble {
        let n = self.0[cpu][kind as usize].fetch_add(1, Ordering::Relaxed);
        trouble(seed, kind, cpu, n)
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 4] = [Kind::On, Kind::Off, Kind::Suspend, Kind::Info];

    #[test]
    fn without_a_seed_all_goes_well() {
        for kind in KINDS {
            assert!((0..100).all(|n| trouble(0, kind, 1, n) == Trouble::None));
        }
        assert!((1..100).all(|seed| trouble(seed, Kind::On, 3, 0) == Trouble::None));
    }

    #[test]
    fn every_call_meets_everything_and_never_for_long() {
        for (seed, cpu) in (1..20).flat_map(|seed| (0..4).map(move |cpu| (seed, cpu))) {
            for kind in KINDS {
                let all: Vec<_> = (0..200).map(|n| trouble(seed, kind, cpu, n)).collect();
                for &code in kind.refusals() {
                    assert!(all.contains(&Trouble::Refused(code)), "{kind:?} {code:?}");
                }
                assert!(all.contains(&Trouble::None));
                assert!(all.iter().any(|t| matches!(t, Trouble::Late(1..=LONGEST))));
                let refused = |t: &Trouble| matches!(t, Trouble::Refused(_));
                assert!(all.windows(20).all(|some| !some.iter().all(refused)));
            }
        }
    }

    #[test]
    fn the_same_calls_meet_the_same() {
        let (a, b) = (Counts::new(), Counts::new());
        for n in 0..100 {
            let (kind, cpu) = (KINDS[n % 4], n / 4 % 3);
            assert_eq!(a.next(9, kind, cpu), b.next(9, kind, cpu));
        }
        assert_eq!(Kind::new(0x8400_0002), Some(Kind::Off));
        assert_eq!(Kind::new(0xc400_0003), Some(Kind::On));
        assert_eq!(Kind::new(0x8400_0008), None, "a machine goes off when it is told to");
        assert!(Kind::Info.names_a_cpu() && !Kind::Suspend.names_a_cpu());
    }
}
