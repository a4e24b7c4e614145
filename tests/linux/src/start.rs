//! What the kernel leaves on the stack: arguments and the auxiliary vector.

use core::ffi::{CStr, c_char};

core::arch::global_asm!(
    ".global _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl {begin}",
    "b .",
    begin = sym begin,
);

extern "C" fn begin(stack: *const usize) -> ! {
    crate::main(&Start(stack))
}

/// AT_HWCAP and AT_HWCAP2 (Linux uapi/linux/auxvec.h).
const HWCAP: usize = 16;
const HWCAP2: usize = 26;

/// HWCAP_SVE (Linux arch/arm64/include/uapi/asm/hwcap.h).
const HWCAP_SVE: usize = 1 << 22;
/// HWCAP2_SME.
const HWCAP2_SME: usize = 1 << 23;
/// HWCAP2_SME_FA64.
const HWCAP2_SME_FA64: usize = 1 << 30;

/// The initial stack.
pub struct Start(*const usize);

impl Start {
    fn word(&self, n: usize) -> usize {
        // SAFETY: the callers stay within what Linux puts on every initial stack: the number of
        // arguments, that many pointers, zero, pointers and zero, pairs up to one with key zero.
        unsafe { self.0.add(n).read() }
    }

    fn arguments(&self) -> impl Iterator<Item = &str> {
        (1..=self.word(0)).filter_map(|n| {
            // SAFETY: Linux's arguments are strings that live as long as the process.
            let text = unsafe { CStr::from_ptr(self.word(n) as *const c_char) };
            text.to_str().ok()
        })
    }

    /// Whether this word is there.
    pub fn has(&self, word: &str) -> bool {
        self.arguments().any(|argument| argument == word)
    }

    /// The number of `name=number`.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.arguments().find_map(|argument| {
            let (key, value) = argument.split_once('=')?;
            (key == name).then(|| value.parse().ok())?
        })
    }

    fn auxiliary(&self, key: usize) -> usize {
        // The arguments' number, they and a zero.
        let mut at = self.word(0) + 2;
        while self.word(at) != 0 {
            at += 1;
        }
        at += 1;
        loop {
            match self.word(at) {
                0 => return 0,
                found if found == key => return self.word(at + 1),
                _ => at += 2,
            }
        }
    }

    /// AT_HWCAP and AT_HWCAP2.
    pub fn capabilities(&self) -> [usize; 2] {
        [HWCAP, HWCAP2].map(|key| self.auxiliary(key))
    }

    /// Linux offers SVE.
    pub fn has_sve(&self) -> bool {
        self.auxiliary(HWCAP) & HWCAP_SVE != 0
    }

    /// Linux offers SME.
    pub fn has_sme(&self) -> bool {
        self.auxiliary(HWCAP2) & HWCAP2_SME != 0
    }

    /// And all of A64 in streaming mode.
    pub fn has_fa64(&self) -> bool {
        self.auxiliary(HWCAP2) & HWCAP2_SME_FA64 != 0
    }
}
