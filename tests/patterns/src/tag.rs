//! Tags: owner and age of a register's content.

use core::fmt;

/// Who filled the registers, and the how-many-eth time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tag {
    /// The owner.
    pub owner: u16,
    /// Counts up at each fill, so that an old copy is told from the last one.
    pub generation: u32,
}

/// A register of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// Z0-Z31, whose low 128 bits are V0-V31.
    Z(u8),
    /// P0-P15
    P(u8),
    /// The first-fault register.
    Ffr,
    /// Status.
    Fpsr,
    /// Control.
    Fpcr,
}

impl Register {
    /// A number for each, in the order of the layout.
    pub const fn number(self) -> u8 {
        match self {
            Self::Z(n) => n,
            Self::P(n) => 32 + n,
            Self::Ffr => 48,
            Self::Fpsr => 49,
            Self::Fpcr => 50,
        }
    }

    /// The register with this number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0..32 => Self::Z(number),
            32..48 => Self::P(number - 32),
            48 => Self::Ffr,
            49 => Self::Fpsr,
            50 => Self::Fpcr,
            _ => return None,
        })
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Z(n) => write!(f, "Z{n}"),
            Self::P(n) => write!(f, "P{n}"),
            Self::Ffr => f.write_str("FFR"),
            Self::Fpsr => f.write_str("FPSR"),
            Self::Fpcr => f.write_str("FPCR"),
        }
    }
}

/// Where a 64-bit lane belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Whose, and how old.
    pub tag: Tag,
    /// In which register.
    pub register: Register,
    /// At which multiple of 8 bytes.
    pub lane: u8,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { tag: Tag { owner, generation }, register, lane } = self;
        write!(f, "owner {owner:#x} generation {generation}, {register} lane {lane}")
    }
}

// The finaliser of SplitMix64: a bijection in which every input bit moves half of the output bits.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
const MULTIPLY: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(GAMMA);
    let x = (x ^ x >> 30).wrapping_mul(MULTIPLY[0]);
    let x = (x ^ x >> 27).wrapping_mul(MULTIPLY[1]);
    x ^ x >> 31
}

/// The inverse of an odd number modulo 2^64, by Newton's iteration.
const fn inverse(a: u64) -> u64 {
    let mut x = a;
    let mut n = 0;
    while n < 6 {
        x = x.wrapping_mul(2u64.wrapping_sub(a.wrapping_mul(x)));
        n += 1;
    }
    x
}

const fn unshift(y: u64, by: u32) -> u64 {
    y ^ y >> by ^ y >> (2 * by)
}

const fn unmix(y: u64) -> u64 {
    let x = unshift(y, 31).wrapping_mul(inverse(MULTIPLY[1]));
    let x = unshift(x, 27).wrapping_mul(inverse(MULTIPLY[0]));
    unshift(x, 30).wrapping_sub(GAMMA)
}

/// The 64 bits of a lane.
pub const fn lane(tag: Tag, register: Register, lane: u8) -> u64 {
    mix((tag.owner as u64) << 48
        | (register.number() as u64) << 40
        | (lane as u64) << 32
        | tag.generation as u64)
}

/// What a lane with this content would be made of. Half of what one can find there is nothing, so the
/// caller decides whether the owner is one that exists.
pub const fn origin(content: u64) -> Option<Origin> {
    let x = unmix(content);
    let Some(register) = Register::from_number((x >> 40) as u8) else { return None };
    Some(Origin {
        tag: Tag { owner: (x >> 48) as u16, generation: x as u32 },
        register,
        lane: (x >> 32) as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn mixing_is_undone(x: u64) {
            prop_assert_eq!(unmix(mix(x)), x);
            prop_assert_eq!(mix(unmix(x)), x);
        }

        #[test]
        fn a_lane_gives_its_origin_away(owner: u16, generation: u32, number in 0u8..51, at: u8) {
            let tag = Tag { owner, generation };
            let register = Register::from_number(number).unwrap();
            prop_assert_eq!(register.number(), number);
            let found = origin(lane(tag, register, at));
            prop_assert_eq!(found, Some(Origin { tag, register, lane: at }));
        }
    }

    #[test]
    fn neighbours_differ_in_every_byte_somewhere() {
        let tag = Tag { owner: 3, generation: 9 };
        let base = lane(tag, Register::Z(5), 1);
        for other in [
            lane(Tag { owner: 4, ..tag }, Register::Z(5), 1),
            lane(Tag { generation: 10, ..tag }, Register::Z(5), 1),
            lane(tag, Register::Z(6), 1),
            lane(tag, Register::Z(5), 2),
        ] {
            assert!((base ^ other).count_ones() > 12);
        }
    }
}
