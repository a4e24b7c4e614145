//! Entropy for guests: the calls of SMCCC's TRNG interface (DEN0098, version 1.0), by HVC and by SMC, answered at EL2.
//! Never by the host: a guest's keys are made of this.
//!
//! Where it comes from is [`Entropy`]'s business: on the target `super::entropy`. Where there is none, every call
//! is NOT_SUPPORTED, and a guest finds no TRNG.

#![forbid(unsafe_code)]

use umbra_shared::call::SVE_HINT;

/// TRNG_VERSION.
pub const VERSION: u32 = 0x8400_0050;
/// TRNG_FEATURES.
pub const FEATURES: u32 = 0x8400_0051;
/// TRNG_GET_UUID.
pub const GET_UUID: u32 = 0x8400_0052;
/// TRNG_RND, SMC32.
pub const RND32: u32 = 0x8400_0053;
/// TRNG_RND, SMC64.
pub const RND64: u32 = 0xc400_0053;

/// Version 1.0.
pub const VERSION_1_0: i64 = 1 << 16;

/// SUCCESS.
const SUCCESS: i64 = 0;
/// NOT_SUPPORTED.
pub const NOT_SUPPORTED: i64 = -1;
/// INVALID_PARAMETERS.
const INVALID_PARAMETERS: i64 = -2;
/// NO_ENTROPY.
const NO_ENTROPY: i64 = -3;

/// Who answers: a UUID of Umbra's own, as four words.
pub const UUID: [u32; 4] = [0x64b1_8cde, 0xa04f_7a2d, 0x33d1_9e86, 0x5e02_c7f1];

/// Words of 64 bits that can't be guessed.
pub trait Entropy {
    /// Whether the machine has any.
    fn is_there(&self) -> bool;

    /// The next, unless there is none for the moment.
    fn word(&mut self) -> Option<u64>;
}

/// Whether a call is one of TRNG's; x0's upper half and SMCCC 1.3's hint don't count.
#[inline(always)]
pub const fn is_one(x0: u64) -> bool {
    // Of the SMC64 numbers RND64 alone is one, but the others are nobody's, and refused.
    const SMC64: u64 = 1 << 30;
    (x0 & 0xffff_ffff & !SVE_HINT & !SMC64).wrapping_sub(VERSION as u64) < 4
}

/// x0-x3 of the answer to a call with x0 = `function` and x1 = `x1`, from EL1 in either execution state: in AArch32
/// there are only the 32-bit calls. `None`: it is not one of TRNG's.
pub fn answer(
    function: u64,
    x1: u64,
    aarch32: bool,
    entropy: &mut impl Entropy,
) -> Option<[u64; 4]> {
    if !is_one(function) {
        return None;
    }
    let alone = |code: i64| Some([code as u64, 0, 0, 0]);
    if !entropy.is_there() {
        return alone(NOT_SUPPORTED);
    }
    match (function & !SVE_HINT) as u32 {
        VERSION => alone(VERSION_1_0),
        FEATURES => match x1 as u32 {
            VERSION | FEATURES | GET_UUID | RND32 => alone(SUCCESS),
            RND64 if !aarch32 => alone(SUCCESS),
            _ => alone(NOT_SUPPORTED),
        },
        GET_UUID => Some(UUID.map(u64::from)),
        RND32 => Some(random::<32>(u64::from(x1 as u32), entropy)),
        RND64 if !aarch32 => Some(random::<64>(x1, entropy)),
        _ => alone(NOT_SUPPORTED),
    }
}

/// So many bits in registers of `WIDTH` bits: the lowest in x3, then x2, then x1; zero above them (DEN0098, 2.5).
fn random<const WIDTH: u32>(bits: u64, entropy: &mut impl Entropy) -> [u64; 4] {
    let most = 3 * u64::from(WIDTH);
    if bits == 0 || bits > most {
        return [INVALID_PARAMETERS as u64, 0, 0, 0];
    }
    let (mut answer, mut left) = ([SUCCESS as u64, 0, 0, 0], bits as u32);
    for register in (1..4).rev() {
        let here = left.min(WIDTH);
        left -= here;
        if here == 0 {
            break;
        }
        let Some(word) = entropy.word() else { return [NO_ENTROPY as u64, 0, 0, 0] };
        answer[register] = word & u64::MAX >> (64 - here);
    }
    answer
}

/// Answers a call of the loaded guest's with this x0, if it is one of TRNG's. The guest's PC is not looked at.
#[cfg(target_os = "none")]
#[inline(always)]
pub fn call(vcpu: &mut crate::vm::vcpu::Vcpu, x0: u64) -> bool {
    is_one(x0) && answered(vcpu, x0)
}

#[cfg(target_os = "none")]
#[cold]
#[inline(never)]
fn answered(vcpu: &mut crate::vm::vcpu::Vcpu, x0: u64) -> bool {
    let x1 = vcpu.register_width(vcpu.regs.x[1]);
    let Some(x) = answer(x0, x1, vcpu.is_aarch32(), &mut super::entropy::Source) else {
        return false;
    };
    for (n, value) in x.into_iter().enumerate() {
        vcpu.regs.x[n] = vcpu.register_width(value);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ones, or so many words of them.
    struct Ones(u32);

    impl Entropy for Ones {
        fn is_there(&self) -> bool {
            true
        }

        fn word(&mut self) -> Option<u64> {
            self.0 = self.0.checked_sub(1)?;
            Some(u64::MAX)
        }
    }

    struct Nothing;

    impl Entropy for Nothing {
        fn is_there(&self) -> bool {
            false
        }

        fn word(&mut self) -> Option<u64> {
            panic!("nothing to take")
        }
    }

    const CALLS: [u32; 5] = [VERSION, FEATURES, GET_UUID, RND32, RND64];

    fn call(function: u32, x1: u64) -> [u64; 4] {
        answer(u64::from(function), x1, false, &mut Ones(3)).unwrap()
    }

    const fn code(code: i64) -> [u64; 4] {
        [code as u64, 0, 0, 0]
    }

    #[test]
    fn what_there_is() {
        assert_eq!(call(VERSION, 7), code(0x1_0000));
        assert_eq!(call(GET_UUID, 0), UUID.map(u64::from));
        assert_ne!(UUID[0], u32::MAX, "that would be NOT_SUPPORTED");
        for function in CALLS {
            assert_eq!(call(FEATURES, function.into()), code(0), "{function:#x}");
        }
        for other in [0, 0x8400_0054, 0xc400_0050, 0x8400_0000] {
            assert_eq!(call(FEATURES, other), code(-1), "{other:#x}");
        }
    }

    #[test]
    fn bits_are_where_they_belong_and_no_more() {
        let ones = |bits: u32| u64::MAX >> (64 - bits);
        for (function, bits, expected) in [
            (RND32, 1, [0, 0, 0, 1]),
            (RND32, 32, [0, 0, 0, ones(32)]),
            (RND32, 33, [0, 0, 1, ones(32)]),
            (RND32, 65, [0, 1, ones(32), ones(32)]),
            (RND32, 96, [0, ones(32), ones(32), ones(32)]),
            (RND64, 1, [0, 0, 0, 1]),
            (RND64, 64, [0, 0, 0, u64::MAX]),
            (RND64, 100, [0, 0, ones(36), u64::MAX]),
            (RND64, 129, [0, 1, u64::MAX, u64::MAX]),
            (RND64, 192, [0, u64::MAX, u64::MAX, u64::MAX]),
            (RND32, 0, code(-2)),
            (RND32, 97, code(-2)),
            (RND64, 0, code(-2)),
            (RND64, 193, code(-2)),
            (RND64, u64::MAX, code(-2)),
        ] {
            assert_eq!(call(function, bits), expected, "{function:#x} {bits}");
        }
        // A 32-bit call has a 32-bit argument.
        assert_eq!(call(RND32, 1 << 32 | 1), [0, 0, 0, 1]);
    }

    #[test]
    fn without_entropy_nothing_is_told() {
        for words in 0..3 {
            assert_eq!(answer(RND64.into(), 192, false, &mut Ones(words)), Some(code(-3)));
        }
        for function in CALLS {
            assert_eq!(answer(function.into(), 1, false, &mut Nothing), Some(code(-1)));
        }
    }

    #[test]
    fn aarch32_has_the_32_bit_calls() {
        let call = |function: u32, x1| answer(function.into(), x1, true, &mut Ones(3)).unwrap();
        assert_eq!(call(RND64, 64), code(-1));
        assert_eq!(call(FEATURES, RND64.into()), code(-1));
        assert_eq!(call(RND32, 64)[3], u64::from(u32::MAX));
        assert_eq!(call(VERSION, 0), code(0x1_0000));
    }

    #[test]
    fn whose_a_call_is() {
        for function in CALLS.map(u64::from) {
            assert!(is_one(function) && is_one(function | 0x1_0000) && is_one(function | 1 << 40));
        }
        for other in [0, 0x8400_004f, 0x8400_0054, 0xc600_0040, 0x0400_0050, u64::MAX] {
            assert!(!is_one(other), "{other:#x}");
            assert_eq!(answer(other, 0, false, &mut Ones(3)), None);
        }
        // Numbers of SMC64 that DEN0098 gives to nobody.
        for none in [0xc400_0050, 0xc400_0051, 0xc400_0052] {
            assert_eq!(answer(none, 0, false, &mut Ones(3)), Some(code(-1)));
        }
    }

    proptest! {
        #[test]
        fn as_many_bits_as_were_asked_for(bits in 1..=192u64) {
            let [x0, x1, x2, x3] = call(RND64, bits);
            prop_assert_eq!(x0, 0);
            prop_assert_eq!(u64::from(x1.count_ones() + x2.count_ones() + x3.count_ones()), bits);
            prop_assert!(x1 == 0 || x2 == u64::MAX);
            prop_assert!(x2 == 0 || x3 == u64::MAX);
        }
    }
}
