//! Storage that the embedder brings: a word for each interrupt, and what each vCPU has of its own.

use super::{due::Due, word::Word};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use umbra_shared::flag_set;

/// SGIs and PPIs: every vCPU has its own.
pub(super) const PRIVATE: u16 = 32;

/// An interrupt.
#[derive(Debug)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    const fn new() -> Self {
        Self(AtomicU64::new(Word::RESET.bits()))
    }

    pub(super) fn get(&self) -> Word {
        Word::from_bits_retain(self.0.load(SeqCst))
    }

    pub(super) fn set(&self, word: Word) {
        self.0.store(word.bits(), SeqCst);
    }

    /// Changes it as a whole, from what it is to what `change` makes of that: what it was and what it is. `None`: it
    /// was left as it is.
    pub(super) fn update(
        &self,
        mut change: impl FnMut(Word) -> Option<Word>,
    ) -> Option<(Word, Word)> {
        let mut old = self.get();
        loop {
            let new = change(old)?;
            match self.0.compare_exchange(old.bits(), new.bits(), SeqCst, SeqCst) {
                Ok(_) => return Some((old, new)),
                Err(present) => old = Word::from_bits_retain(present),
            }
        }
    }
}

/// An SPI, of the embedder's storage.
#[derive(Debug)]
pub struct SpiCell(pub(super) Cell);

impl SpiCell {
    /// [`Vgic::new`](super::Vgic::new) puts it into its reset state.
    #[allow(clippy::new_without_default, reason = "nothing is a default of an interrupt")]
    pub const fn new() -> Self {
        Self(Cell::new())
    }
}

flag_set! {
    /// What decides of a vCPU whether it takes interrupts, and 1 of N among them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Control: u32 {
        /// The embedder says so.
        const OFF = 1 << 0;
        /// GICR_WAKER.ProcessorSleep.
        const PROCESSOR_SLEEP = 1 << 1;
        /// GICR_CTLR.DPG0: no 1 of N of group 0.
        const DPG0 = 1 << 24;
        /// GICR_CTLR.DPG1NS: no 1 of N of group 1.
        const DPG1NS = 1 << 25;
    }
}

impl Control {
    /// Whether this interrupt may come to it: if that is 1 of N, whether it is one of the N (IHI 0069: GICR_CTLR.DPG*,
    /// GICR_WAKER.ProcessorSleep).
    pub(super) const fn takes(self, word: Word) -> bool {
        if !word.contains(Word::IRM) {
            return true;
        }
        let disabled = if word.contains(Word::GROUP1) { Self::DPG1NS } else { Self::DPG0 };
        !self.intersects(Self::OFF.union(Self::PROCESSOR_SLEEP).union(disabled))
    }
}

/// A vCPU's redistributor, of the embedder's storage.
#[derive(Debug)]
pub struct VcpuCell {
    affinity: u32,
    control: AtomicU32,
    /// Between flush and sync.
    pub(super) in_guest: AtomicBool,
    /// Its SGIs and PPIs.
    pub(super) private: [Cell; PRIVATE as usize],
    /// What its next flush has to look at.
    pub(super) due: Due,
}

impl VcpuCell {
    /// The vCPU whose MPIDR_EL1 has Aff2, Aff1 and Aff0 of `affinity`, in bits 23:0. Of a VM's no two are alike.
    pub const fn new(affinity: u32) -> Self {
        Self {
            affinity,
            control: AtomicU32::new(0),
            in_guest: AtomicBool::new(false),
            private: [const { Cell::new() }; PRIVATE as usize],
            due: Due::new(),
        }
    }

    /// Aff2, Aff1 and Aff0.
    pub const fn affinity(&self) -> u32 {
        self.affinity
    }

    pub(super) fn control(&self) -> Control {
        Control::from_bits_retain(self.control.load(SeqCst))
    }

    /// Sets these flags of the mask's: what they all were before, and what they are.
    pub(super) fn set_control(&self, mask: Control, flags: Control) -> (Control, Control) {
        let mut old = self.control();
        loop {
            let new = (old - mask) | (flags & mask);
            match self.control.compare_exchange(old.bits(), new.bits(), SeqCst, SeqCst) {
                Ok(_) => return (old, new),
                Err(present) => old = Control::from_bits_retain(present),
            }
        }
    }

    /// The reset state; `vcpu` is its number.
    ///
    /// As KVM's guests find it: SGIs enabled, PPIs level-sensitive, everything of group 1 and the CPU awake, which
    /// is what EL3 firmware would have made of it.
    pub(super) fn reset(&self, vcpu: usize) {
        self.control.store(0, SeqCst);
        self.in_guest.store(false, SeqCst);
        self.due.clear();
        for (intid, cell) in self.private.iter().enumerate() {
            let word = Word::RESET.with_route(self.affinity, Some(vcpu));
            cell.set(word.with(Word::EDGE | Word::ENABLED, intid < 16));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_cpu_changes_meanwhile_is_kept() {
        let cell = Cell::new();
        let mut tries = 0;
        let (old, new) = cell
            .update(|word| {
                tries += 1;
                if tries == 1 {
                    cell.set(word | Word::LINE);
                }
                Some(word | Word::LATCH)
            })
            .unwrap();
        assert_eq!((tries, cell.get()), (2, Word::RESET | Word::LINE | Word::LATCH));
        assert_eq!((old, new), (Word::RESET | Word::LINE, cell.get()));
        assert_eq!(cell.update(|_| None), None);
        assert_eq!(cell.get(), new);
    }

    #[test]
    fn controls_that_are_not_of_the_mask_are_kept() {
        let vcpu = VcpuCell::new(0);
        let off = (Control::empty(), Control::OFF);
        assert_eq!(vcpu.set_control(Control::OFF, Control::all()), off);
        let both = Control::OFF | Control::DPG0;
        assert_eq!(vcpu.set_control(Control::DPG0, Control::DPG0), (Control::OFF, both));
        assert_eq!(vcpu.set_control(Control::OFF, Control::empty()), (both, Control::DPG0));
    }
}
