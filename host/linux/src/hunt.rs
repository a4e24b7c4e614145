//! A build that looks, behind every exit of a protected guest's and before anything else uses them, for the guest's content in
//! all that its host finds: x0-x30 and the registers of FP and SVE as hyp has left them, at the host's largest vector length; EL1's
//! and EL0's registers that the guest has of its own; the flag-shadow page, kvm_run. `module/hunt.S` runs the guest and keeps
//! the registers.
//!
//! What a guest's content is says [`umbra_patterns::tag::hunted`]: such a guest fills its registers with it (`tests/linux`), and gives none
//! of it to its host on purpose. That a guest's FP registers are looked for brings the host's back at every exit.

use crate::{
    abi::Errno,
    linux::{self, RunPage, with_room},
};
use alloc::vec::Vec;
use core::{
    cell::RefCell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use umbra_host::hypercall::{Exit, Hvc, Hypervisor, Results};
use umbra_patterns::tag::hunted;
use umbra_shared::{
    PAGE_SIZE,
    call::{Call, Function},
    error::{self, Error},
    exit::{ExitInfo, RunFlags},
    flags::FlagShadowPage,
    interrupt::{Entry, MAX_ENTRIES, States},
};

// SAFETY: module/hunt.S defines it. What is asked of its caller stands beside the call.
unsafe extern "C" {
    fn umbra_hunt_run(words: *mut u64);
}

/// Exits behind which was looked, and words that were a guest's.
static HUNTS: AtomicU64 = AtomicU64::new(0);
static FINDS: AtomicU64 = AtomicU64::new(0);
/// Finds that are told one by one.
const TOLD: u64 = 16;

/// Where hunt.S keeps what, in words: what it calls with, what the machine has, x0-x30, FPSR, the vector length in bytes, system
/// registers, Z0-Z31 or V0-V31, P0-P15 and FFR.
const ARGUMENTS: usize = 0;
const HAS: usize = 14;
const X: usize = 16;
const X_WORDS: usize = 32;
const VL: usize = 48;
const SYSTEM: usize = 50;
const Z: usize = 80;
const P: usize = 1104;
const WORDS: usize = 1172;
/// Registers of each kind.
const Z_REGISTERS: usize = 32;
const P_REGISTERS: usize = 17;

/// Room for a vCPU's.
pub fn room() -> Result<Vec<u64>, Errno> {
    let mut words = with_room(WORDS)?;
    words.resize(WORDS, 0);
    Ok(words)
}

/// What has been found until now.
pub fn tell() {
    let (hunts, finds) = (HUNTS.load(Relaxed), FINDS.load(Relaxed));
    log!("hunted {hunts} times, found {finds}");
}

/// Hyp, under a protected guest's vCPU.
#[derive(Debug)]
pub struct Hunter<'a> {
    words: RefCell<&'a mut [u64]>,
    flags: &'static FlagShadowPage,
    run: &'a RunPage,
    is_protected: bool,
}

impl<'a> Hunter<'a> {
    /// Under this one.
    pub fn new(
        is_protected: bool,
        words: &'a mut [u64],
        flags: &'static FlagShadowPage,
        run: &'a RunPage,
    ) -> Self {
        Self { words: RefCell::new(words), flags, run, is_protected }
    }

    /// Looks through what one exit has left.
    fn look(&self, words: &[u64]) {
        let in_page = (0..PAGE_SIZE).step_by(8).map(|at| self.run.doubleword(at));
        // At a length below 64 bytes no predicate holds a word.
        let vl = words[VL] as usize;
        let all: [(&str, &[u64]); 4] = [
            ("general registers", &words[X..X + X_WORDS]),
            ("system registers", &words[SYSTEM..Z]),
            ("vector registers", &words[Z..Z + Z_REGISTERS * vl / 8]),
            ("predicates", &words[P..P + P_REGISTERS * vl / 64]),
        ];
        for (place, words) in all {
            look_in(place, words.iter().copied());
        }
        look_in("flag-shadow page", self.flags.words());
        look_in("kvm_run", in_page);
        HUNTS.fetch_add(1, Relaxed);
    }
}

/// Tells of what is a guest's. Most words are zero, which is nobody's: an exit that takes longer than a guest's tick would keep it from
/// getting anywhere.
fn look_in(place: &str, words: impl Iterator<Item = u64>) {
    for (at, word) in words.enumerate().filter(|&(_, word)| word != 0) {
        let Some(origin) = hunted(word) else { continue };
        if FINDS.fetch_add(1, Relaxed) < TOLD {
            log!("hunt: {place}, word {at}: {origin}");
        }
    }
}

impl Hypervisor for Hunter<'_> {
    fn call(&self, call: &Call) -> Result<Results, Error> {
        Hvc.call(call)
    }

    fn vcpu_run_with(
        &self,
        flags: RunFlags,
        answer: [u64; 4],
        entries: &[Entry],
    ) -> Result<(Exit, States), Error> {
        if !self.is_protected {
            return Hvc.vcpu_run_with(flags, answer, entries);
        }
        let mut words = self.words.try_borrow_mut().map_err(|_| Error::NotSupported)?;
        let arguments = &mut words[ARGUMENTS..HAS];
        arguments.fill(0);
        arguments[0] = Function::VcpuRun.id();
        arguments[1] = flags.with_entries(entries.len()).bits();
        arguments[2..6].copy_from_slice(&answer);
        for (n, entry) in entries.iter().take(MAX_ENTRIES).enumerate() {
            arguments[6 + n / 2] |= entry.bits() << (32 * (n % 2));
        }
        words[HAS] = linux::vectors();
        // SAFETY: so many words as it writes. As `Hvc`'s own VCPU_RUN, which clobbers no more than a C function may; and whoever
        // runs a vCPU has interrupts masked.
        unsafe { umbra_hunt_run(words.as_mut_ptr()) };
        self.look(&words);
        let x = &words[X..X + X_WORDS];
        error::check(x[0]).map(|()| {
            let data = core::array::from_fn(|n| x[2 + n]);
            let states =
                if entries.is_empty() { States::default() } else { States::from_register(x[8]) };
            (Exit { info: ExitInfo::from_register(x[1]), data }, states)
        })
    }
}
