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
    /// Modes of 8-bit floating point (FEAT_FPMR).
    Fpmr,
    /// PSTATE.SM and PSTATE.ZA.
    Svcr,
    /// SME2's table.
    Zt0,
    /// A row of ZA.
    Za(u8),
}

/// Number of ZA's first row.
const ZA: u16 = 0x100;

impl Register {
    /// A number for each, in the order of the layout.
    pub const fn number(self) -> u16 {
        match self {
            Self::Z(n) => n as u16,
            Self::P(n) => 32 + n as u16,
            Self::Ffr => 48,
            Self::Fpsr => 49,
            Self::Fpcr => 50,
            Self::Fpmr => 51,
            Self::Svcr => 52,
            Self::Zt0 => 53,
            Self::Za(row) => ZA + row as u16,
        }
    }

    /// The register with this number.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            0..32 => Self::Z(number as u8),
            32..48 => Self::P(number as u8 - 32),
            48 => Self::Ffr,
            49 => Self::Fpsr,
            50 => Self::Fpcr,
            51 => Self::Fpmr,
            52 => Self::Svcr,
            53 => Self::Zt0,
            ZA..=0x1ff => Self::Za(number as u8),
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
            Self::Fpmr => f.write_str("FPMR"),
            Self::Svcr => f.write_str("SVCR"),
            Self::Zt0 => f.write_str("ZT0"),
            Self::Za(row) => write!(f, "ZA[{row}]"),
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

/// Rows of ZA that share one of the 8-bit numbers below: each has 32 lanes at most.
const ROWS: u8 = 8;
/// The first number of ZA's rows there.
const ZA_ROWS: u8 = 64;

/// Register and lane in 8 bits each.
const fn place(register: Register, lane: u8) -> (u8, u8) {
    match register {
        Register::Za(row) => (ZA_ROWS + row / ROWS, ((row % ROWS) << 5) | (lane & 31)),
        other => (other.number() as u8, lane),
    }
}

/// The inverse.
const fn placed(number: u8, lane: u8) -> Option<(Register, u8)> {
    const LAST: u8 = ZA_ROWS + u8::MAX / ROWS;
    if number >= ZA_ROWS && number <= LAST {
        return Some((Register::Za((number - ZA_ROWS) * ROWS + (lane >> 5)), lane & 31));
    }
    match Register::from_number(number as u16) {
        Some(register) => Some((register, lane)),
        None => None,
    }
}

/// The 64 bits of a lane. A row of ZA has lanes 0 to 31.
pub const fn lane(tag: Tag, register: Register, lane: u8) -> u64 {
    let (number, lane) = place(register, lane);
    mix((tag.owner as u64) << 48
        | (number as u64) << 40
        | (lane as u64) << 32
        | tag.generation as u64)
}

/// What a lane with this content would be made of. Half of what one can find there is nothing, so the
/// caller decides whether the owner is one that exists.
pub const fn origin(content: u64) -> Option<Origin> {
    let x = unmix(content);
    let Some((register, lane)) = placed((x >> 40) as u8, (x >> 32) as u8) else { return None };
    Some(Origin { tag: Tag { owner: (x >> 48) as u16, generation: x as u32 }, register, lane })
}

/// The first owner whose content is looked for wherever it must not be, without knowing what else there is; and how many there are.
pub const HUNTED: u16 = 0x8000;
/// A power of two.
pub const HUNTED_OWNERS: u16 = 16;
/// As many generations of theirs are told from anything else: of other content one word in some 10^10 looks like that.
const HUNTED_GENERATIONS: u32 = 1 << 16;

/// Whether this content is a hunted owner's, and which.
pub const fn hunted(content: u64) -> Option<Origin> {
    /// Lanes that a register has at most.
    const LANES: u8 = 32;
    match origin(content) {
        Some(found)
            if found.tag.owner & !(HUNTED_OWNERS - 1) == HUNTED
                && found.tag.generation < HUNTED_GENERATIONS
                && matches!(found.register, Register::Z(_) | Register::P(_))
                && found.lane < LANES =>
        {
            Some(found)
        }
        _ => None,
    }
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
        fn a_lane_gives_its_origin_away(owner: u16, generation: u32, number in 0u16..54, at: u8) {
            let tag = Tag { owner, generation };
            let register = Register::from_number(number).unwrap();
            prop_assert_eq!(register.number(), number);
            let found = origin(lane(tag, register, at));
            prop_assert_eq!(found, Some(Origin { tag, register, lane: at }));
        }

        #[test]
        fn so_does_a_lane_of_za(owner: u16, generation: u32, row: u8, at in 0u8..32) {
            let (tag, register) = (Tag { owner, generation }, Register::Za(row));
            prop_assert_eq!(Register::from_number(register.number()), Some(register));
            let found = origin(lane(tag, register, at));
            prop_assert_eq!(found, Some(Origin { tag, register, lane: at }));
        }
    }

    proptest! {
        #[test]
        fn what_is_hunted_is_recognised(owner: u16, generation: u32, n in 0u8..32, at in 0u8..32) {
            let content = lane(Tag { owner, generation }, Register::Z(n), at);
            let is_hunted = (HUNTED..HUNTED + HUNTED_OWNERS).contains(&owner) && generation < 1 << 16;
            prop_assert_eq!(hunted(content).is_some(), is_hunted);
            let tag = Tag { owner: HUNTED | (owner % HUNTED_OWNERS), generation: generation >> 16 };
            let content = lane(tag, Register::Z(n), at);
            prop_assert_eq!(hunted(content), Some(Origin { tag, register: Register::Z(n), lane: at }));
            prop_assert_eq!(hunted(!content), None);
        }
    }

    #[test]
    fn nobody_owns_zero() {
        assert_eq!(hunted(0), None);
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
