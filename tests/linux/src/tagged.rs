//! A protected guest's general registers, filled with what its host looks for behind every exit (`host/linux/src/hunt.rs`).

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use umbra_patterns::tag::{Register, Tag, lane};

use crate::clock;
use crate::fail;
use crate::say::Text;

/// Whether this is such a guest.
static TAGGED: AtomicBool = AtomicBool::new(false);

/// It is.
pub fn begin() {
    TAGGED.store(true, Relaxed);
}

/// Whether it is.
pub fn is() -> bool {
    TAGGED.load(Relaxed)
}

// x2-x30 hold words until the counter has come to x0; x0: whether one has changed. No system call, and no stack but for what is
// kept.
global_asm!(
    ".global umbra_hold",
    "umbra_hold:",
    "stp x29, x30, [sp, #-112]!",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "str x1, [sp, #96]",
    ".irp n, 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "ldr x\\n, [x1, #8 * \\n]",
    ".endr",
    "1: isb",
    "mrs x1, cntvct_el0",
    "cmp x1, x0",
    "b.lo 1b",
    "ldr x1, [sp, #96]",
    ".irp n, 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "ldr x0, [x1, #8 * \\n]",
    "cmp x0, x\\n",
    "b.ne 2f",
    ".endr",
    "mov x0, #0",
    "b 3f",
    "2: mov x0, #1",
    "3: ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp x29, x30, [sp], #112",
    "ret",
);

// SAFETY: it is defined above: a C function that reads `words` and spins.
unsafe extern "C" {
    fn umbra_hold(end: u64, words: *const [u64; 31]) -> u64;
}

/// For so long x2-x30 and TPIDR_EL0 hold what the tag makes of Z2-Z30 and Z31, and then they must still.
pub fn hold(tag: Tag, micros: u64) -> Result<(), Text> {
    let words: [u64; 31] = core::array::from_fn(|n| lane(tag, Register::Z(n as u8), 0));
    let own = lane(tag, Register::Z(31), 0);
    let end = clock::ticks() + micros * clock::frequency() / 1_000_000;
    let (changed, found): (u64, u64);
    // SAFETY: this program has no thread-local variables, which TPIDR_EL0 would be for; `umbra_hold` reads the words.
    unsafe {
        asm!("msr tpidr_el0, {}", in(reg) own, options(nostack, nomem));
        changed = umbra_hold(end, &raw const words);
        asm!("mrs {}, tpidr_el0", out(reg) found, options(nostack, nomem));
    }
    if changed != 0 || found != own {
        fail!("general registers have changed: {changed}; TPIDR_EL0 is {found:#x}, not {own:#x}");
    }
    Ok(())
}
