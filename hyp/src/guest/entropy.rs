//! Where a guest's entropy comes from ([`super::trng`]): the CPU's own generator (FEAT_RNG), if every CPU of the
//! machine has it, or firmware's.

use super::trng::{self, Entropy};
use crate::arch::sysreg::sys;
use crate::machine::machine;
use crate::world::features::id::IdRegister;
use core::arch::asm;

/// How often the CPU's generator is asked before it has no entropy: it may be busy for a while (Arm ARM, "RNDRRS":
/// software may have to try again).
const TRIES: usize = 16;

/// Firmware's generator, if there is one that has what is used of it: DEN0098 1.0, with TRNG_RND of 64 bits.
pub fn firmware_has_it() -> bool {
    let call = |function, argument| {
        let [answer, ..] = smccc::smc32(function, [argument, 0, 0, 0, 0, 0, 0]);
        i64::from(answer as i32)
    };
    call(trng::VERSION, 0) >= trng::VERSION_1_0 && call(trng::FEATURES, trng::RND64) >= 0
}

/// The machine's.
#[derive(Debug)]
pub struct Source;

impl Entropy for Source {
    fn is_there(&self) -> bool {
        machine().id.field(IdRegister::Aa64Isar0, RNDR) != 0 || machine().firmware_trng
    }

    fn word(&mut self) -> Option<u64> {
        // A CPU that came late may lack what all others have; then it is firmware's, or nobody's.
        if sys::read_id_aa64isar0_el1().bits() >> RNDR & 0xf != 0 {
            (0..TRIES).find_map(|_| reseeded())
        } else if machine().firmware_trng {
            let mut args = [0; 17];
            args[0] = u64::from(u64::BITS);
            let answer = smccc::smc64(trng::RND64, args);
            (answer[0] == 0).then_some(answer[3])
        } else {
            None
        }
    }
}

/// ID_AA64ISAR0_EL1.RNDR.
const RNDR: u32 = 60;

/// RNDRRS: a number from a generator that has just been seeded anew.
fn reseeded() -> Option<u64> {
    let (value, valid): (u64, u64);
    // SAFETY: this CPU has FEAT_RNG; the read gives a number, and flags that say whether it is one.
    unsafe {
        asm!(
            "mrs {value}, s3_3_c2_c4_1",
            "cset {valid}, ne",
            value = out(reg) value,
            valid = out(reg) valid,
            options(nomem, nostack)
        );
    }
    (valid != 0).then_some(value)
}
