//! Registers with a field for each of several interrupts, which the distributor and SGI_base have alike.

use super::{
    Events, Vgic,
    registers::{Banked, Bits, Width},
    word::Word,
};

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// A guest.
    Guest,
    /// Who saves and restores: pending is the latch alone, set and cleared through ISPENDR.
    Outside,
}

impl Vgic<'_> {
    /// `vcpu`: whose the private ones are. INTIDs that there are not read as zero.
    pub(super) fn read_banked(&self, vcpu: usize, register: Banked, view: View) -> u32 {
        let fields = |first: u16, count: u16, bits: u16, field: &dyn Fn(Word) -> u8| {
            let words = (0..count).filter_map(|n| Some((n, self.cell(vcpu, first + n)?.get())));
            words.fold(0, |all, (n, word)| all | u32::from(field(word)) << (n * bits))
        };
        match register {
            Banked::Bits(kind, first) => fields(first, 32, 1, &|word| {
                u8::from(match kind {
                    Bits::Group => word.contains(Word::GROUP1),
                    Bits::Enable { .. } => word.contains(Word::ENABLED),
                    Bits::Pending { set } => match view {
                        View::Guest => word.is_pending(),
                        View::Outside => set && word.contains(Word::LATCH),
                    },
                    Bits::Active { .. } => word.contains(Word::ACTIVE),
                })
            }),
            Banked::Priority(first) => fields(first, 4, 8, &Word::priority),
            Banked::Configuration(first) => {
                fields(first, 16, 2, &|word| u8::from(word.contains(Word::EDGE)) << 1)
            }
        }
    }

    pub(super) fn write_banked(
        &self,
        vcpu: usize,
        register: Banked,
        value: u32,
        view: View,
        events: &mut impl Events,
    ) {
        match register {
            Banked::Bits(kind, first) => {
                for n in 0..32 {
                    let bit = value >> n & 1 != 0;
                    let change = |word| written(word, kind, bit, view);
                    // An INTID that there is not is a bit that is ignored.
                    let _ = self.change(vcpu, first + n, events, change);
                }
            }
            Banked::Priority(first) => {
                for (intid, priority) in (first..).zip(value.to_le_bytes()) {
                    self.write_priority(vcpu, intid, priority, events);
                }
            }
            Banked::Configuration(first) => {
                // SGIs are edge-triggered; a PPI is what its source is, which are levels (timers, the PMU).
                for n in (0..16).filter(|n| first + n >= super::PRIVATE) {
                    let edge = value >> (2 * n + 1) & 1 != 0;
                    let change = |word: Word| word.with(Word::EDGE, edge);
                    let _ = self.change(vcpu, first + n, events, change);
                }
            }
        }
    }

    /// A byte of GICD_IPRIORITYR: the bits that there are.
    pub(super) fn write_priority(
        &self,
        vcpu: usize,
        intid: u16,
        priority: u8,
        events: &mut impl Events,
    ) {
        let priority = priority & self.priority_mask;
        let _ = self.change(vcpu, intid, events, |word| word.with_priority(priority));
    }
}

/// The bit of an interrupt is written.
fn written(word: Word, kind: Bits, bit: bool, view: View) -> Word {
    match (kind, bit) {
        (Bits::Group, _) => word.with(Word::GROUP1, bit),
        (Bits::Pending { set: true }, false) if view == View::Outside => word.unlatched(),
        (Bits::Pending { set: false }, _) if view == View::Outside => word,
        (Bits::Enable { set }, true) => word.with(Word::ENABLED, set),
        (Bits::Pending { set: true }, true) => word.latched(),
        (Bits::Pending { set: false }, true) => word.unlatched(),
        (Bits::Active { set }, true) => word.activated(set),
        (Bits::Enable { .. } | Bits::Pending { .. } | Bits::Active { .. }, false) => word,
    }
}

/// Whether a register that takes 32 bits, and 8 where `bytes`, takes this access.
pub(super) fn aligned(offset: u32, width: Width, bytes: bool) -> bool {
    let allowed = width == Width::Word || width == Width::Byte && bytes;
    allowed && offset.is_multiple_of(width.bytes())
}
