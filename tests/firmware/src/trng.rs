//! A TRNG (DEN0098) whose numbers follow from a seed: for tests of what is made of them.

use core::sync::atomic::{AtomicU64, Ordering};

const VERSION: u32 = 0x8400_0050;
const FEATURES: u32 = 0x8400_0051;
const RND64: u32 = 0xc400_0053;

/// What has been asked for so far.
#[derive(Debug, Default)]
pub struct Trng(AtomicU64);

impl Trng {
    /// None yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// x0-x3 of the answer, if it is a call to the TRNG. Every 8th number is not there yet.
    pub fn call(&self, seed: u64, [x0, x1]: [u64; 2]) -> Option<[u64; 4]> {
        let code = |code: i64| Some([code as u64, 0, 0, 0]);
        match x0 as u32 {
            VERSION => code(0x1_0000),
            FEATURES if [VERSION, FEATURES, RND64].contains(&(x1 as u32)) => code(0),
            FEATURES => code(-1),
            RND64 if x1 == 64 => {
                let n = self.0.fetch_add(1, Ordering::Relaxed);
                if n % 8 == 7 {
                    return code(-3);
                }
                Some([0, 0, 0, mix(seed ^ n)])
            }
            RND64 => code(-2),
            _ => None,
        }
    }
}

/// A number of which no bit is like another's (SplitMix64's finaliser).
const fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_run_dry() {
        let trng = Trng::new();
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..64 {
            let [x0, x1, x2, x3] = trng.call(5, [RND64.into(), 64]).unwrap();
            assert_eq!((x0 == 0, x1, x2), (n % 8 != 7, 0, 0));
            assert!(x0 != 0 || seen.insert(x3));
        }
        assert_eq!(trng.call(5, [VERSION.into(), 0]), Some([0x1_0000, 0, 0, 0]));
        assert_eq!(trng.call(5, [0x8400_0000, 0]), None);
    }
}
