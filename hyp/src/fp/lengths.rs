//! Who may use which vector lengths: decided once, from the CPUs that are up when hyp boots.
//!
//! A CPU that comes later finds all this settled: host images have their size, guests their lengths.
//! What it has beyond that is held back, what it lacks is refused there.

#![forbid(unsafe_code)]

use umbra_shared::vl::{Vq, VqSet};

/// The machine's vector lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// What guests may have: the lengths that all CPUs have and below which they agree.
    pub common: VqSet,
    /// The largest of any CPU: what host images hold. `None`: no CPU has SVE.
    pub largest: Option<Vq>,
    /// `umbra.host-vl=common`: the host, too, gets no more than `common`.
    pub host_common: bool,
}

impl Lengths {
    /// Of a machine whose CPUs have these sets.
    pub fn new(sets: impl Iterator<Item = VqSet> + Clone, host_common: bool) -> Self {
        let largest = sets.clone().filter_map(VqSet::max).max();
        Self { common: VqSet::common(sets), largest, host_common }
    }

    /// The most that the host may use on a CPU with these lengths, one that the CPU has; `None`: no SVE
    /// for the host there. Never more than its image can hold.
    pub fn host(&self, here: VqSet) -> Option<Vq> {
        let limit = if self.host_common { self.common.max()? } else { self.largest? };
        here.effective(limit)
    }

    /// The guests' lengths of which a CPU with these lengths can run guests. One that came late may
    /// lack some, or have one more in between, with which a guest would select something else there
    /// than everywhere.
    pub fn guests(&self, here: VqSet) -> VqSet {
        VqSet::common([here, self.common])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sets(bits: &[u16]) -> impl Iterator<Item = VqSet> + Clone {
        bits.iter().copied().map(VqSet::from_bits)
    }

    #[test]
    fn a_host_gets_what_its_cpu_has_or_what_all_have() {
        // VLs 16, 32 | 16, 32, 64, 128, 256 | 16, 32, 64.
        let cpus = [0b11, 0x808b, 0b1011];
        let vl = |vq: Option<Vq>| vq.map_or(0, Vq::vl_bytes);
        for (common, expected) in [(false, [32, 256, 64]), (true, [32, 32, 32])] {
            let lengths = Lengths::new(sets(&cpus), common);
            assert_eq!(lengths.common.bits(), 0b11);
            assert_eq!(vl(lengths.largest), 256);
            let hosts: Vec<_> = sets(&cpus).map(|set| vl(lengths.host(set))).collect();
            assert_eq!(hosts, expected);
        }
    }

    #[test]
    fn a_limit_that_a_late_cpu_lacks_is_rounded_down() {
        // 16, 32, 64 bytes; the late CPU has 16, 32, 48, 96.
        let late = VqSet::from_bits(0b10_0111);
        for common in [false, true] {
            let lengths = Lengths::new(sets(&[0b1011, 0b1011]), common);
            assert_eq!(lengths.host(late), Vq::new(3));
            assert_eq!(lengths.guests(late).bits(), 0b11);
        }
    }

    #[test]
    fn a_length_in_between_ends_what_guests_may_have() {
        let lengths = Lengths::new(sets(&[0b1011, 0b1011]), false);
        // With 16, 32, 48 and 64 bytes, a guest of 64 that asks for 48 would get it there, and 32
        // everywhere else.
        assert_eq!(lengths.guests(VqSet::from_bits(0b1111)).bits(), 0b11);
        assert_eq!(lengths.guests(VqSet::from_bits(0b1_1011)).bits(), 0b1011);
    }

    #[test]
    fn one_cpu_without_sve_leaves_none_in_common() {
        let lengths = Lengths::new(sets(&[0b1011, 0]), true);
        assert_eq!((lengths.common, lengths.largest), (VqSet::EMPTY, Vq::new(4)));
        assert_eq!(lengths.host(VqSet::from_bits(0b1011)), None);
        let full = Lengths { host_common: false, ..lengths };
        assert_eq!(full.host(VqSet::from_bits(0b1011)), Vq::new(4));
        assert_eq!(full.host(VqSet::EMPTY), None);
        assert_eq!(full.guests(VqSet::from_bits(0b1011)), VqSet::EMPTY);
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_it_may(boot in prop::collection::vec(any::<u16>(), 1..5), late: u16) {
            let boot: Vec<_> = boot.into_iter().map(|bits| bits | 1).collect();
            let late = VqSet::from_bits(late | 1);
            for host_common in [false, true] {
                let lengths = Lengths::new(sets(&boot), host_common);
                for here in sets(&boot).chain([late]) {
                    let host = lengths.host(here).expect("all have SVE");
                    prop_assert!(here.contains(host) && Some(host) <= lengths.largest);
                    if host_common {
                        prop_assert!(Some(host) <= lengths.common.max());
                    }
                    // Under a clamp that is let in, every choice is the same as elsewhere.
                    for clamp in lengths.guests(here).iter() {
                        for asked in (1..=16).filter_map(Vq::new).map(|vq| vq.min(clamp)) {
                            for other in sets(&boot) {
                                prop_assert_eq!(here.effective(asked), other.effective(asked));
                            }
                        }
                    }
                }
                for here in sets(&boot) {
                    prop_assert_eq!(lengths.guests(here), lengths.common);
                    let expected = if host_common { lengths.common.max() } else { here.max() };
                    prop_assert_eq!(lengths.host(here), expected);
                }
            }
        }
    }
}
