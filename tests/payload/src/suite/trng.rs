//! SMCCC's TRNG for guests (DEN0098), from the CPU's generator or from firmware's, never from the host.

use crate::{
    context::context,
    instruction::{self as insn, reg},
    puppet::{Event, Machine, Puppet},
    runner::Skip,
    tests,
};

tests![
    trng_is_there_if_the_machine_has_one,
    trng_gives_as_many_bits_as_asked_for,
    trng_never_says_the_same_twice,
];

const VERSION: u64 = 0x8400_0050;
const FEATURES: u64 = 0x8400_0051;
const GET_UUID: u64 = 0x8400_0052;
const RND32: u64 = 0x8400_0053;
const RND64: u64 = 0xc400_0053;

const NOT_SUPPORTED: u64 = u64::MAX;
const INVALID_PARAMETERS: u64 = -2i64 as u64;
const NO_ENTROPY: u64 = -3i64 as u64;

/// The two ways to call.
const CONDUITS: [(&str, u32); 2] = [("HVC", insn::HVC), ("SMC", insn::SMC)];

/// x0-x3 of the answer.
#[track_caller]
fn call(guest: &Puppet, conduit: u32, function: u64, x1: u64) -> [u64; 4] {
    match guest.at(x1).attempt(conduit, function) {
        Event::Done([x0, x1, x2, x3, _]) => [x0, x1, x2, x3],
        event => panic!("{function:#x}: {event:x?}"),
    }
}

/// Firmware's, or the CPU's (ID_AA64ISAR0_EL1.RNDR).
fn is_there(guest: &Puppet) -> bool {
    let rndr = guest.read(reg(3, 0, 0, 6, 0)) >> 60 & 0xf != 0;
    rndr || context().machine.argument("trng") == Some("firmware")
}

fn need_trng() -> Result<Puppet, Skip> {
    let guest = Machine::normal().started(None);
    if is_there(&guest) { Ok(guest) } else { Err(Skip("no source of entropy")) }
}

/// Numbers, asked for again where there was none for the moment.
fn numbers(guest: &Puppet, conduit: u32, function: u64, bits: u64) -> [u64; 3] {
    for _ in 0..100 {
        match call(guest, conduit, function, bits) {
            [0, x1, x2, x3] => return [x1, x2, x3],
            [NO_ENTROPY, 0, 0, 0] => {}
            other => panic!("{bits} bits: {other:x?}"),
        }
    }
    panic!("no entropy")
}

fn trng_is_there_if_the_machine_has_one() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    let there = is_there(&guest);
    for (name, conduit) in CONDUITS {
        let alone = |function, x1| match call(&guest, conduit, function, x1) {
            [x0, 0, 0, 0] => x0,
            other => panic!("{name} {function:#x}: {other:x?}"),
        };
        if !there {
            for function in [VERSION, FEATURES, GET_UUID, RND32, RND64] {
                assert_eq!(alone(function, RND64), NOT_SUPPORTED, "{name} {function:#x}");
            }
            continue;
        }
        // With SMCCC 1.3's hint it is the same call.
        for version in [VERSION, VERSION | 1 << 16] {
            assert_eq!(alone(version, 0), 0x1_0000, "{name}");
        }
        for function in [VERSION, FEATURES, GET_UUID, RND32, RND64] {
            assert_eq!(alone(FEATURES, function), 0, "{name} {function:#x}");
        }
        assert_eq!(alone(FEATURES, 0x8400_0054), NOT_SUPPORTED, "{name}");
        let uuid = call(&guest, conduit, GET_UUID, 0);
        assert!(uuid.iter().all(|&word| word < u64::from(u32::MAX)), "{name}: {uuid:x?}");
        for (function, bits) in [(RND32, 0), (RND32, 97), (RND64, 0), (RND64, 193)] {
            assert_eq!(alone(function, bits), INVALID_PARAMETERS, "{name} {bits}");
        }
    }
    Ok(())
}

fn trng_gives_as_many_bits_as_asked_for() -> Result<(), Skip> {
    let guest = need_trng()?;
    for (_, conduit) in CONDUITS {
        for (function, width) in [(RND32, 32), (RND64, 64)] {
            for bits in [1, 7, width - 1, width, width + 1, 2 * width + 5, 3 * width] {
                let mut seen = [0; 3];
                // Among so many numbers each bit is set once.
                for _ in 0..64 {
                    let now = numbers(&guest, conduit, function, bits);
                    seen = core::array::from_fn(|n| seen[n] | now[n]);
                }
                let ones = |from: u64| {
                    let here = bits.saturating_sub(from).min(width) as u32;
                    u64::MAX.checked_shr(64 - here).unwrap_or(0)
                };
                assert_eq!(seen, [ones(2 * width), ones(width), ones(0)], "{bits} of {width}");
            }
        }
    }
    Ok(())
}

fn trng_never_says_the_same_twice() -> Result<(), Skip> {
    let guest = need_trng()?;
    let mut last = [0; 3];
    for n in 0..32 {
        let now = numbers(&guest, CONDUITS[n % 2].1, RND64, 192);
        for (n, word) in now.iter().enumerate() {
            assert!(!last.contains(word) && !now[..n].contains(word), "{now:x?} after {last:x?}");
        }
        last = now;
    }
    Ok(())
}
