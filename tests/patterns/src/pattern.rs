//! Images of the register file, and their comparison.
//!
//! Lane `n` of a register has the same content at every VL, so an image at a smaller VL holds, register
//! by register, the low part of one at a larger VL. FFR is the exception: architecturally it only ever
//! holds what first-fault loads leave, "the first n elements true", and so does the pattern: n bytes,
//! neither none nor all.

use crate::tag::{Origin, Register, Tag, lane, origin};
use core::fmt;
use umbra_shared::{
    sme::ZT0_BYTES,
    sve::{FPSIMD_BYTES, Layout},
    vl::Vq,
};

/// Bytes of the largest image.
pub const MAX_IMAGE_BYTES: usize = Layout::new(Vq::MAX).image_bytes();

/// The FPSR bits that hold what is written: QC, IDC, IXC, UFC, OFC, DZC, IOC.
pub const FPSR_BITS: u32 = 1 << 27 | 0x9f;
/// The FPCR bits that every implementation has: AHP, DN, FZ, RMode.
pub const FPCR_BITS: u32 = 0x07c0_0000;

/// The FPSR of a tag: never zero.
pub const fn fpsr(tag: Tag) -> u32 {
    match lane(tag, Register::Fpsr, 0) as u32 & FPSR_BITS {
        0 => 1,
        bits => bits,
    }
}

/// The FPCR of a tag: never zero.
pub const fn fpcr(tag: Tag) -> u32 {
    match lane(tag, Register::Fpcr, 0) as u32 & FPCR_BITS {
        0 => 1 << 25,
        bits => bits,
    }
}

/// The FPMR bits that hold what is written and mean something at any value: the one format bit of F8S1,
/// F8S2 and F8D that is not reserved, OSM, OSC, LSCALE, NSCALE, LSCALE2.
pub const FPMR_BITS: u64 = 0x3f_ff7f_c049;

/// The FPMR of a tag: never zero.
pub const fn fpmr(tag: Tag) -> u64 {
    match lane(tag, Register::Fpmr, 0) & FPMR_BITS {
        0 => 1,
        bits => bits,
    }
}

/// Writes row `row` of ZA, as long as `out`.
pub fn expected_za(tag: Tag, row: usize, out: &mut [u8]) {
    fill_register(tag, Register::Za(row as u8), out);
}

/// Writes ZT0.
pub fn expected_zt0(tag: Tag, out: &mut [u8; ZT0_BYTES]) {
    fill_register(tag, Register::Zt0, out);
}

/// Compares row `row` of ZA.
pub fn compare_za(
    row: usize,
    expected: &[u8],
    found: &[u8],
    known: &[Tag],
) -> Result<(), Mismatch> {
    compare_register(Register::Za(row as u8), expected, found, known)
}

/// How many bytes FFR calls true, for a VL in bytes: 1..VL.
fn ffr_true(tag: Tag, vl_bytes: usize) -> usize {
    1 + (lane(tag, Register::Ffr, 0) % (vl_bytes as u64 - 1)) as usize
}

fn fill_register(tag: Tag, register: Register, out: &mut [u8]) {
    for (n, bytes) in out.chunks_mut(8).enumerate() {
        let content = lane(tag, register, n as u8).to_le_bytes();
        bytes.copy_from_slice(&content[..bytes.len()]);
    }
}

/// Writes the image of a tag. `out` has `layout.image_bytes()` bytes at least.
pub fn expected(tag: Tag, layout: Layout, out: &mut [u8]) {
    for n in 0..32 {
        let at = layout.z(n);
        fill_register(tag, Register::Z(n as u8), &mut out[at..at + layout.z_bytes()]);
    }
    for n in 0..16 {
        let at = layout.p(n);
        fill_register(tag, Register::P(n as u8), &mut out[at..at + layout.p_bytes()]);
    }
    for (n, byte) in out[layout.ffr()..layout.image_bytes()].iter_mut().enumerate() {
        *byte = ffr_byte(tag, layout.z_bytes(), n);
    }
}

/// Byte `n` of an FFR that was filled at a VL of `vl_bytes`.
pub(crate) fn ffr_byte(tag: Tag, vl_bytes: usize, n: usize) -> u8 {
    let here = ffr_true(tag, vl_bytes).saturating_sub(8 * n).min(8);
    ((1u16 << here) - 1) as u8
}

/// Writes V0-V31 of a tag.
pub fn expected_fpsimd(tag: Tag, out: &mut [u8; FPSIMD_BYTES]) {
    for (n, v) in out.chunks_mut(16).enumerate() {
        fill_register(tag, Register::Z(n as u8), v);
    }
}

/// What was found instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The content is zero.
    Zero,
    /// The lane is exactly that of one of the known owners.
    Known(Origin),
    /// Something else.
    Unknown,
}

/// The first byte that is not as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// In which register.
    pub register: Register,
    /// At which byte of it.
    pub byte: usize,
    /// The 8 bytes around it (fewer at the end of a short register), as they should be.
    pub expected: u64,
    /// And as they are.
    pub found: u64,
    /// Whose they are.
    pub whose: Found,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { register, byte, expected, found, whose } = self;
        write!(f, "{register} byte {byte}: expected {expected:#018x}, found {found:#018x} (")?;
        match whose {
            Found::Zero => write!(f, "zero)"),
            Found::Known(origin) => write!(f, "{origin})"),
            Found::Unknown => write!(f, "of no known owner)"),
        }
    }
}

/// Whose content a lane is, if it is one of the `known` tags' owners'. Short lanes (predicates at small
/// VLs) can't be inverted and are searched for among the tags themselves.
pub fn whose(content: u64, bytes: usize, known: &[Tag]) -> Found {
    if content == 0 {
        return Found::Zero;
    }
    if bytes == 8 {
        return match origin(content) {
            Some(o) if known.iter().any(|tag| tag.owner == o.tag.owner) => Found::Known(o),
            _ => Found::Unknown,
        };
    }
    let mask = (1u64 << (8 * bytes)) - 1;
    for &tag in known {
        for number in 32..48 {
            let Some(register) = Register::from_number(number) else { continue };
            for at in 0..4 {
                if lane(tag, register, at) & mask == content {
                    return Found::Known(Origin { tag, register, lane: at });
                }
            }
        }
    }
    Found::Unknown
}

/// Owners that exist in any of our tests.
const OWNERS: core::ops::Range<u16> = 0x100..0x2000;
/// Generations that a test may reach.
const GENERATIONS: u32 = 1 << 20;

/// Whose content a lane is, if its owner and everything else about it is one that can be.
pub fn whose_of(content: u64) -> Found {
    let plausible =
        |o: &Origin| OWNERS.contains(&o.tag.owner) && o.tag.generation < GENERATIONS && o.lane < 32;
    match origin(content).filter(plausible) {
        _ if content == 0 => Found::Zero,
        Some(origin) => Found::Known(origin),
        None => Found::Unknown,
    }
}

fn compare_register(
    register: Register,
    expected: &[u8],
    found: &[u8],
    known: &[Tag],
) -> Result<(), Mismatch> {
    let Some(byte) = expected.iter().zip(found).position(|(e, f)| e != f) else { return Ok(()) };
    let lane = byte / 8 * 8;
    let bytes = (expected.len() - lane).min(8);
    let read = |from: &[u8]| {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(&from[lane..lane + bytes]);
        u64::from_le_bytes(word)
    };
    let (expected, found) = (read(expected), read(found));
    Err(Mismatch { register, byte, expected, found, whose: whose(found, bytes, known) })
}

/// Compares two images.
pub fn compare(
    layout: Layout,
    expected: &[u8],
    found: &[u8],
    known: &[Tag],
) -> Result<(), Mismatch> {
    let one = |register, at: usize, bytes: usize| {
        compare_register(register, &expected[at..at + bytes], &found[at..at + bytes], known)
    };
    for n in 0..32 {
        one(Register::Z(n as u8), layout.z(n), layout.z_bytes())?;
    }
    for n in 0..16 {
        one(Register::P(n as u8), layout.p(n), layout.p_bytes())?;
    }
    one(Register::Ffr, layout.ffr(), layout.p_bytes())
}

/// Compares V0-V31.
pub fn compare_fpsimd(
    expected: &[u8; FPSIMD_BYTES],
    found: &[u8; FPSIMD_BYTES],
    known: &[Tag],
) -> Result<(), Mismatch> {
    for (n, (e, f)) in expected.chunks(16).zip(found.chunks(16)).enumerate() {
        compare_register(Register::Z(n as u8), e, f, known)?;
    }
    Ok(())
}

/// Compares FPSR or FPCR.
pub fn compare_status(register: Register, expected: u32, found: u32) -> Result<(), Mismatch> {
    if expected == found {
        return Ok(());
    }
    let (expected, found) = (expected.to_le_bytes(), found.to_le_bytes());
    compare_register(register, &expected, &found, &[])
}

/// How much of a register file must still be there; of the rest, each byte is what it was or zero, and
/// never anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// All of it.
    All,
    /// The low parts that this VL reaches: after a smaller VL, the implementation may keep or zero the
    /// rest (Arm ARM B1.4.2).
    UpTo(Vq),
    /// V0-V31, FPSR and FPCR: its owner said that no more is live.
    Fpsimd,
    /// Nothing: its owner gave it up.
    Nothing,
}

impl Kept {
    /// Bytes of each Z and of each P (and FFR) that must be there.
    const fn bytes(self) -> (usize, usize) {
        match self {
            Self::All => (usize::MAX, usize::MAX),
            Self::UpTo(vq) => (vq.vl_bytes(), vq.vl_bytes() / 8),
            Self::Fpsimd => (16, 0),
            Self::Nothing => (0, 0),
        }
    }
}

/// Compares images of which not all must be there. `expected` is changed to what is acceptable.
pub fn compare_kept(
    layout: Layout,
    kept: Kept,
    expected: &mut [u8],
    found: &[u8],
    known: &[Tag],
) -> Result<(), Mismatch> {
    let (z, p) = kept.bytes();
    let mut accept = |at: usize, bytes: usize, kept: usize| {
        for n in at + kept.min(bytes)..at + bytes {
            if found[n] == 0 {
                expected[n] = 0;
            }
        }
    };
    for n in 0..32 {
        accept(layout.z(n), layout.z_bytes(), z);
    }
    for n in 0..16 {
        accept(layout.p(n), layout.p_bytes(), p);
    }
    accept(layout.ffr(), layout.p_bytes(), p);
    compare(layout, expected, found, known)
}

/// The same for V0-V31.
pub fn compare_fpsimd_kept(
    kept: Kept,
    expected: &mut [u8; FPSIMD_BYTES],
    found: &[u8; FPSIMD_BYTES],
    known: &[Tag],
) -> Result<(), Mismatch> {
    if kept == Kept::Nothing {
        for (e, f) in expected.iter_mut().zip(found) {
            if *f == 0 {
                *e = 0;
            }
        }
    }
    compare_fpsimd(expected, found, known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAG: Tag = Tag { owner: 7, generation: 41 };
    const OTHER: Tag = Tag { owner: 9, generation: 2 };

    fn image(tag: Tag, layout: Layout) -> Vec<u8> {
        let mut out = vec![0xee; layout.image_bytes()];
        expected(tag, layout, &mut out);
        out
    }

    fn vq(n: u64) -> Vq {
        Vq::new(n).unwrap()
    }

    proptest! {
        #[test]
        fn every_single_byte_is_compared(n in 1u64..17, seed: usize) {
            let layout = Layout::new(vq(n));
            let e = image(TAG, layout);
            let mut f = e.clone();
            let at = seed % f.len();
            f[at] ^= 1 << (seed % 7);
            let mismatch = compare(layout, &e, &f, &[]).unwrap_err();
            let base = match mismatch.register {
                Register::Z(n) => layout.z(n.into()),
                Register::P(n) => layout.p(n.into()),
                _ => layout.ffr(),
            };
            prop_assert_eq!(base + mismatch.byte, at);
        }

        #[test]
        fn ffr_is_monotonic_and_not_uniform(owner: u16, generation: u32, n in 1u64..17) {
            let layout = Layout::new(vq(n));
            let e = image(Tag { owner, generation }, layout);
            let bits: Vec<bool> =
                e[layout.ffr()..].iter().flat_map(|b| (0..8).map(move |i| b >> i & 1 != 0)).collect();
            prop_assert_eq!(bits.len(), layout.z_bytes());
            let on = bits.iter().filter(|&&b| b).count();
            prop_assert!(on > 0 && on < bits.len());
            prop_assert!(bits[..on].iter().all(|&b| b));
        }

        #[test]
        fn small_images_are_the_low_parts_of_large_ones(n in 1u64..17) {
            let (small, large) = (Layout::new(vq(n)), Layout::new(Vq::MAX));
            let (s, l) = (image(TAG, small), image(TAG, large));
            for r in 0..32 {
                let (a, b) = (small.z(r), large.z(r));
                prop_assert_eq!(&s[a..a + small.z_bytes()], &l[b..b + small.z_bytes()]);
            }
            for r in 0..16 {
                let (a, b) = (small.p(r), large.p(r));
                prop_assert_eq!(&s[a..a + small.p_bytes()], &l[b..b + small.p_bytes()]);
            }
            let mut v = [0; FPSIMD_BYTES];
            expected_fpsimd(TAG, &mut v);
            for r in 0..32 {
                prop_assert_eq!(&v[16 * r..16 * r + 16], &l[large.z(r)..large.z(r) + 16]);
            }
        }

        #[test]
        fn status_is_legal_and_not_zero(owner: u16, generation: u32) {
            let tag = Tag { owner, generation };
            prop_assert!(fpsr(tag) != 0 && fpsr(tag) & !FPSR_BITS == 0);
            prop_assert!(fpcr(tag) != 0 && fpcr(tag) & !FPCR_BITS == 0);
            prop_assert!(fpmr(tag) != 0 && fpmr(tag) & !FPMR_BITS == 0);
        }
    }

    #[test]
    fn a_strangers_lane_is_named() {
        let layout = Layout::new(vq(4));
        let e = image(TAG, layout);
        let theirs = image(OTHER, layout);
        let mut f = e.clone();
        let at = layout.z(3) + 16;
        f[at..at + 8].copy_from_slice(&theirs[layout.z(30) + 40..layout.z(30) + 48]);
        let m = compare(layout, &e, &f, &[TAG, OTHER]).unwrap_err();
        assert_eq!((m.register, m.byte), (Register::Z(3), 16));
        let origin = Origin { tag: OTHER, register: Register::Z(30), lane: 5 };
        assert_eq!(m.whose, Found::Known(origin));
        assert_eq!(compare(layout, &e, &f, &[TAG]).unwrap_err().whose, Found::Unknown);
        f[at..at + 8].fill(0);
        assert_eq!(compare(layout, &e, &f, &[TAG]).unwrap_err().whose, Found::Zero);
    }

    #[test]
    fn a_strangers_short_predicate_is_named() {
        let layout = Layout::new(Vq::MIN);
        let e = image(TAG, layout);
        let theirs = image(OTHER, layout);
        let mut f = e.clone();
        f[layout.p(2)..layout.p(3)].copy_from_slice(&theirs[layout.p(11)..layout.p(12)]);
        let m = compare(layout, &e, &f, &[TAG, OTHER]).unwrap_err();
        assert_eq!(m.register, Register::P(2));
        let origin = Origin { tag: OTHER, register: Register::P(11), lane: 0 };
        assert_eq!(m.whose, Found::Known(origin));
    }

    #[test]
    fn regrown_upper_parts_are_kept_or_zero() {
        let layout = Layout::new(vq(4));
        let (e, low) = (image(TAG, layout), vq(2));
        let check =
            |f: &[u8]| compare_kept(layout, Kept::UpTo(low), &mut e.clone(), f, &[TAG, OTHER]);
        assert_eq!(check(&e), Ok(()));
        let mut f = e.clone();
        f[layout.z(1) + 40] = 0;
        f[layout.p(1) + 4..layout.p(2)].fill(0);
        assert_eq!(check(&f), Ok(()));
        // Below the low VL nothing may vanish, and above it nothing foreign may appear.
        f[layout.z(1) + 31] = 0;
        assert_eq!(check(&f).unwrap_err().register, Register::Z(1));
        let mut f = e.clone();
        f[layout.z(9) + 32..layout.z(10)]
            .copy_from_slice(&image(OTHER, layout)[layout.z(9) + 32..layout.z(10)]);
        assert!(matches!(check(&f).unwrap_err().whose, Found::Known(o) if o.tag == OTHER));
    }

    #[test]
    fn what_is_given_up_may_vanish_but_not_change() {
        let layout = Layout::new(vq(2));
        let e = image(TAG, layout);
        let check = |kept, f: &[u8]| compare_kept(layout, kept, &mut e.clone(), f, &[TAG, OTHER]);
        let zero = vec![0; e.len()];
        assert_eq!(check(Kept::Nothing, &zero), Ok(()));
        assert_eq!(check(Kept::Fpsimd, &zero).unwrap_err().register, Register::Z(0));
        let mut v_only = zero.clone();
        for n in 0..32 {
            v_only[layout.z(n)..layout.z(n) + 16]
                .copy_from_slice(&e[layout.z(n)..layout.z(n) + 16]);
        }
        assert_eq!(check(Kept::Fpsimd, &v_only), Ok(()));
        assert!(check(Kept::All, &v_only).is_err());
        let theirs = image(OTHER, layout);
        for kept in [Kept::Nothing, Kept::Fpsimd, Kept::UpTo(vq(1)), Kept::All] {
            assert!(check(kept, &theirs).is_err());
        }
        let (mut v, mut w) = ([0; FPSIMD_BYTES], [0; FPSIMD_BYTES]);
        expected_fpsimd(TAG, &mut v);
        assert_eq!(compare_fpsimd_kept(Kept::Nothing, &mut v.clone(), &[0; 512], &[]), Ok(()));
        assert!(compare_fpsimd_kept(Kept::Fpsimd, &mut v.clone(), &[0; 512], &[]).is_err());
        expected_fpsimd(OTHER, &mut w);
        assert!(compare_fpsimd_kept(Kept::Nothing, &mut v, &w, &[]).is_err());
    }

    #[test]
    fn status_differences_are_named() {
        assert_eq!(compare_status(Register::Fpsr, 5, 5), Ok(()));
        let m = compare_status(Register::Fpcr, 5, 0).unwrap_err();
        assert_eq!((m.register, m.expected, m.found, m.whose), (Register::Fpcr, 5, 0, Found::Zero));
    }
}
