//! The flag-shadow page: all the memory that a vCPU shares between host and hyp.
//!
//! Beside its two words there is room for the registers of a guest's host call ([`crate::rsi`]), which an exit's registers
//! can't hold. From the exit to the next run they are the host's to read and write; hyp writes them before
//! it and reads them behind it, each once, and they are nothing but the guest's own arguments and answers.
//!
//! Linux tracks whether a task's FP registers are still in the CPU with TIF_FOREIGN_FPSTATE in
//! `thread_info`. A hypervisor at EL2 that wants to know would have to map host kernel structures.
//! The page shadows the one bit that matters, so that nothing else of the host need be mapped.
//!
//! Two words, each on a 128-byte line of its own (the largest cache writeback granule around), each
//! with exactly one writer:
//!
//! | word | writer | read by |
//! |---|---|---|
//! | [`HostFlags`] | host, before each entry ("flush") | hyp, once per entry, into a local copy |
//! | [`HypFlags`] | hyp, on load, on return, on a host FP trap, on put ("sync") | host; hyp never reads it back |
//!
//! The host's word is a *hint*. A host that lies loses its own register content and nothing else.
//!
//! Hyp's word is true from VCPU_LOAD to VCPU_PUT. A call that is refused changes nothing and publishes
//! nothing: behind one the word may be of an earlier life, and says nothing of these registers.
//!
//! What the host does for each value of hyp's word:
//!
//! | `GUEST_FP_LOADED` | `HOST_FP_PRESERVED` | meaning | the host |
//! |---|---|---|---|
//! | 0 | 1 | the registers hold the host's state | needs nothing |
//! | 1 | 1 | the guest's state is live; the host's waits in hyp's image | needs nothing: its next FP access traps and finds its state |
//! | 1 | 0 | the guest's state is live; the host had said FOREIGN, nothing of it is kept | forgets whose registers the CPU holds, the current task's or another's (Linux: `fpsimd_flush_cpu_state`): before user space they are reloaded from memory |
//! | 0 | 0 | nobody's state is live, nothing of the host is kept | the same |

use crate::PAGE_SIZE;
use crate::flag_set;
use core::mem::{align_of, offset_of, size_of};
use core::sync::atomic::{AtomicU64, Ordering};
use static_assertions::const_assert;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

flag_set! {
    /// The host's word: what it says of the CPU's FP registers as it enters a guest.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct HostFlags: u64 {
        /// The registers hold nothing of *any* host task worth keeping, nothing that is not in memory:
        /// hyp need not save them, ZA and ZT0 included. What was displaced then comes back as in the
        /// reset state, SVCR with it; ZCR_EL1 and SMCR_EL1 are kept all the same.
        ///
        /// TIF_FOREIGN_FPSTATE of the current task does not say as much: another task may be the one whose
        /// registers they are, and go on with them without reloading (`fpsimd_last_state`). So
        /// whoever says this looks at hyp's word afterwards, and forgets that any task's are there.
        const FOREIGN_FPSTATE = 1 << 0;
        /// Of V, Z, P and FFR nothing beyond V0-V31 is live, as a system call's ABI guarantees: hyp may
        /// save V0-V31, FPSR, FPCR and FPMR only. Upper bits read as zero afterwards. A system call
        /// leaves streaming mode: with PSTATE.SM set the bit means nothing. Nor does it for ZA and ZT0,
        /// which system calls preserve.
        const SVE_DISCARDED = 1 << 1;
    }
}

flag_set! {
    /// Hyp's word: whose state is where, as the host gets the CPU back.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct HypFlags: u64 {
        /// This vCPU's state is live in the CPU's registers (Linux: KVM_ARM64_FP_ENABLED).
        const GUEST_FP_LOADED = 1 << 8;
        /// The host's state is in the registers or in hyp's host image
        /// (Linux: KVM_ARM64_FP_HOST). Without it, the host finds the reset state, not what it left.
        const HOST_FP_PRESERVED = 1 << 9;
    }
}

// No value of one word can be taken for one of the other.
const_assert!(HostFlags::all().bits() & HypFlags::all().bits() == 0);

/// Bytes between the two words.
pub const LINE_BYTES: usize = 128;

/// One word with one writer, alone on its line.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(128))]
struct Line {
    word: AtomicU64,
    // Atomics, so that a shared reference to the page stays sound whatever the other side writes.
    reserved: [AtomicU64; LINE_BYTES / 8 - 1],
}

/// The page itself: exactly one granule, aligned to it.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(4096))]
pub struct FlagShadowPage {
    host: Line,
    hyp: Line,
    registers: [AtomicU64; CALL_REGISTERS],
    reserved: [AtomicU64; (PAGE_SIZE - 2 * LINE_BYTES) / 8 - CALL_REGISTERS],
}

/// Registers of a host call.
pub const CALL_REGISTERS: usize = 31;

const_assert!(size_of::<FlagShadowPage>() == PAGE_SIZE);
const_assert!(align_of::<FlagShadowPage>() == PAGE_SIZE);
const_assert!(offset_of!(FlagShadowPage, host) == 0);
const_assert!(offset_of!(FlagShadowPage, hyp) == LINE_BYTES);
const_assert!(offset_of!(FlagShadowPage, registers) == 2 * LINE_BYTES);

impl FlagShadowPage {
    /// An all-zero page.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            host: Line {
                word: AtomicU64::new(0),
                reserved: [const { AtomicU64::new(0) }; LINE_BYTES / 8 - 1],
            },
            hyp: Line {
                word: AtomicU64::new(0),
                reserved: [const { AtomicU64::new(0) }; LINE_BYTES / 8 - 1],
            },
            registers: [const { AtomicU64::new(0) }; CALL_REGISTERS],
            reserved: [const { AtomicU64::new(0) };
                (PAGE_SIZE - 2 * LINE_BYTES) / 8 - CALL_REGISTERS],
        }
    }

    /// Host only, before an entry: what the registers hold.
    pub fn flush(&self, flags: HostFlags) {
        self.host.word.store(flags.bits(), Ordering::Relaxed);
    }

    /// Hyp only, once per entry: the raw hint, every bit of it the host's choice.
    pub fn snapshot_hint(&self) -> UntrustedHint {
        UntrustedHint(self.host.word.load(Ordering::Relaxed))
    }

    /// Hyp only: whose state is where.
    pub fn publish(&self, flags: HypFlags) {
        self.hyp.word.store(flags.bits(), Ordering::Relaxed);
    }

    /// The registers of a guest's host call, for whoever's they are now.
    pub fn registers(&self) -> [u64; CALL_REGISTERS] {
        core::array::from_fn(|n| self.registers[n].load(Ordering::Relaxed))
    }

    /// Hands them over.
    pub fn set_registers(&self, registers: &[u64; CALL_REGISTERS]) {
        for (place, &register) in self.registers.iter().zip(registers) {
            place.store(register, Ordering::Relaxed);
        }
    }

    /// Whatever is in it.
    pub fn words(&self) -> impl Iterator<Item = u64> {
        let lines = [&self.host, &self.hyp];
        let lines =
            lines.into_iter().flat_map(|line| [&line.word].into_iter().chain(&line.reserved));
        let words = lines.chain(&self.registers).chain(&self.reserved);
        words.map(|word| word.load(Ordering::Relaxed))
    }

    /// Host only: what hyp said last. Unknown bits are dropped.
    pub fn sync(&self) -> HypFlags {
        HypFlags::from_bits_truncate(self.hyp.word.load(Ordering::Relaxed))
    }
}

impl Default for FlagShadowPage {
    fn default() -> Self {
        Self::new()
    }
}

/// The host's word as hyp read it: untrusted until [`UntrustedHint::decode`] dropped what it doesn't
/// know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UntrustedHint(u64);

impl UntrustedHint {
    /// Wraps a raw word.
    pub const fn new(word: u64) -> Self {
        Self(word)
    }

    /// The flags that are defined; reserved bits mean nothing and are ignored.
    pub const fn decode(self) -> HostFlags {
        HostFlags::from_bits_truncate(self.0)
    }
}

// A page of bytes can be looked at as a `FlagShadowPage`, but never as anything without interior
// mutability: the other side writes it while we look.
static_assertions::assert_not_impl_any!(FlagShadowPage: Immutable, Clone);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_word_can_be_looked_at() {
        let page = FlagShadowPage::new();
        page.registers[3].store(7, Ordering::Relaxed);
        page.publish(HypFlags::HOST_FP_PRESERVED);
        let words: Vec<_> = page.words().collect();
        assert_eq!((words.len(), words[2 * LINE_BYTES / 8 + 3]), (PAGE_SIZE / 8, 7));
        assert_eq!(words[LINE_BYTES / 8], HypFlags::HOST_FP_PRESERVED.bits());
    }

    #[test]
    fn each_word_has_its_writer() {
        let page = FlagShadowPage::new();
        page.flush(HostFlags::all());
        assert_eq!(page.sync(), HypFlags::empty());
        page.publish(HypFlags::all());
        assert_eq!(page.snapshot_hint().decode(), HostFlags::all());
        assert_eq!(page.sync(), HypFlags::all());
    }

    #[test]
    fn registers_are_apart_from_the_words() {
        let page = FlagShadowPage::new();
        page.set_registers(&core::array::from_fn(|n| !(n as u64)));
        assert_eq!((page.sync(), page.snapshot_hint().decode().bits()), (HypFlags::empty(), 0));
        assert_eq!(page.registers(), core::array::from_fn(|n| !(n as u64)));
    }

    proptest! {
        #[test]
        fn reserved_bits_of_the_hint_mean_nothing(word: u64) {
            let known = HostFlags::all().bits();
            prop_assert_eq!(
                UntrustedHint::new(word).decode(),
                UntrustedHint::new(word & known).decode()
            );
            prop_assert_eq!(UntrustedHint::new(word).decode().bits(), word & known);
        }
    }
}
