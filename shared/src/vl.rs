//! Vector lengths.
//!
//! Three units meet in this field and mixing them up has cost others a heap overflow, so each is
//! named wherever it appears: a **VL** is in bytes (what RDVL #1 returns), a **VQ** is VL / 16, the
//! number of 128-bit quadwords (Linux's `sve_vq_from_vl`), and **LEN** is VQ - 1, as written to
//! ZCR_ELx.LEN (Arm ARM D24.2, "ZCR_EL2").

use core::fmt;

/// A vector length in quadwords, 1..=16 by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vq(u8);

impl Vq {
    /// 128 bits: what every machine with Advanced SIMD has.
    pub const MIN: Self = Self(1);
    /// 2048 bits: the most the SVE architecture allows.
    pub const MAX: Self = Self(16);

    /// Takes a number of quadwords; `None` outside 1..=16.
    pub const fn new(vq: u64) -> Option<Self> {
        if vq >= 1 && vq <= 16 { Some(Self(vq as u8)) } else { None }
    }

    /// Takes a vector length in bytes; `None` unless it is a multiple of 16 in 16..=256.
    pub const fn from_vl(vl_bytes: u64) -> Option<Self> {
        if vl_bytes.is_multiple_of(16) { Self::new(vl_bytes / 16) } else { None }
    }

    /// Takes the value of a ZCR_ELx.LEN field. Bits above the four that the architecture
    /// implements are ignored, as the hardware ignores them.
    pub const fn from_len(len: u64) -> Self {
        Self((len & 0xf) as u8 + 1)
    }

    /// The number of quadwords, 1..=16.
    pub const fn quadwords(self) -> usize {
        self.0 as usize
    }

    /// The vector length in bytes, 16..=256.
    pub const fn vl_bytes(self) -> usize {
        self.0 as usize * 16
    }

    /// The value for ZCR_ELx.LEN, 0..=15.
    pub const fn len_field(self) -> u64 {
        self.0 as u64 - 1
    }
}

impl fmt::Display for Vq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.vl_bytes() * 8)
    }
}

/// The set of vector lengths a CPU can be made to use: bit `n` set means VQ `n + 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VqSet(u16);

impl VqSet {
    /// No vector length at all: a CPU without SVE.
    pub const EMPTY: Self = Self(0);

    /// The set with the given bits (bit `n` is VQ `n + 1`).
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The bits (bit `n` is VQ `n + 1`).
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Adds `vq`.
    #[must_use]
    pub const fn with(self, vq: Vq) -> Self {
        Self(self.0 | 1 << (vq.0 - 1))
    }

    /// Whether `vq` is in the set.
    pub const fn contains(self, vq: Vq) -> bool {
        self.0 & (1 << (vq.0 - 1)) != 0
    }

    /// Whether the set holds nothing.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The largest member.
    pub const fn max(self) -> Option<Vq> {
        if self.0 == 0 { None } else { Some(Vq(16 - self.0.leading_zeros() as u8)) }
    }

    /// What the hardware selects when asked for `vq`: the largest member not above it
    /// (Arm ARM B1.4.2: "the largest supported vector length that is not greater than").
    pub const fn effective(self, vq: Vq) -> Option<Vq> {
        Self(self.0 & (((1u32 << vq.0) - 1) as u16)).max()
    }

    /// What a guest may be given on a machine with CPUs of these sets: every VQ that is in all
    /// sets and below which all sets agree, so that whatever a guest selects at or below its clamp
    /// gives the same VL on every CPU. Empty if one of the CPUs has no SVE.
    ///
    /// Source: Linux `sve_init_vq_map`/`vec_update_vq_map` and `sve_virtualisable`.
    pub fn common(sets: impl IntoIterator<Item = VqSet>) -> VqSet {
        let (mut all, mut any, mut none_seen) = (u16::MAX, 0, true);
        for set in sets {
            all &= set.0;
            any |= set.0;
            none_seen = false;
        }
        if none_seen {
            return Self::EMPTY;
        }
        // The lowest VQ on which two CPUs disagree ends the usable range.
        let usable = match (all ^ any).trailing_zeros() {
            n @ 0..16 => (1u16 << n) - 1,
            _ => u16::MAX,
        };
        Self(all & usable)
    }

    /// The members, ascending.
    pub fn iter(self) -> impl Iterator<Item = Vq> {
        (1..=16).map(Vq).filter(move |vq| self.contains(*vq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units() {
        assert_eq!(Vq::from_vl(256), Some(Vq::MAX));
        for bad in [0, 8, 17, 24, 257, 272, 512, u64::MAX, u64::MAX - 15] {
            assert_eq!(Vq::from_vl(bad), None, "{bad}");
        }
        assert_eq!(Vq::from_len(0x1f).vl_bytes(), 256);
        assert_eq!(Vq::MIN.len_field(), 0);
        assert_eq!(Vq::MAX.to_string(), "2048");
    }

    #[test]
    fn common_stops_at_the_first_disagreement() {
        let pow2 = VqSet::from_bits(0b1000_0000_1000_1011);
        let narrow = VqSet::from_bits(0b1011);
        assert_eq!(VqSet::common([pow2, narrow]), narrow);
        // One CPU has VQ 3, the other does not: VQ 4, which both have, can't be given to a guest,
        // because LEN = 2 would select 3 on one and 2 on the other.
        let with3 = VqSet::from_bits(0b1111);
        assert_eq!(VqSet::common([with3, narrow]).bits(), 0b11);
        // The same for one CPU beside what the others agreed on: wider is no disagreement below.
        assert_eq!(VqSet::common([narrow, VqSet::common([pow2, narrow])]), narrow);
        assert_eq!(VqSet::common([pow2, narrow]).max(), VqSet::common([narrow]).max());
        assert_eq!(VqSet::common([with3, VqSet::common([pow2, narrow])]).bits(), 0b11);
        assert_eq!(VqSet::common([pow2, VqSet::EMPTY]), VqSet::EMPTY);
        assert_eq!(VqSet::common([]), VqSet::EMPTY);
    }

    proptest! {
        #[test]
        fn len_fields_above_four_bits_are_ignored(len: u64) {
            prop_assert_eq!(Vq::from_len(len).len_field(), len & 0xf);
        }

        #[test]
        fn every_choice_under_a_common_clamp_is_the_same_everywhere(a: u16, b: u16, len in 0u64..16) {
            let (a, b) = (VqSet::from_bits(a | 1), VqSet::from_bits(b | 1));
            for clamp in VqSet::common([a, b]).iter() {
                let asked = Vq::from_len(len).min(clamp);
                prop_assert_eq!(a.effective(asked), b.effective(asked));
                prop_assert_eq!(a.effective(clamp), Some(clamp));
            }
        }
    }
}
