//! The distributor, as a guest accesses it (IHI 0069, 12.9).
//!
//! What is not listed there, or not in this width, reads as zero and ignores writes. So does what there is only
//! without affinity routing (GICD_ITARGETSR, GICD_SGIR), with two security states (GICD_IGRPMODR, GICD_NSACR), or for
//! messages (GICD_SETSPI_NSR and its like: GICD_TYPER.MBIS is clear).

use super::{
    Events, PRIVATE, Vgic,
    access::{View, aligned},
    registers::*,
    word::Word,
};
use core::sync::atomic::Ordering::SeqCst;

/// GICD_CTLR's bits that can be written.
const CTLR_ENABLES: u32 = CTLR_ENABLE_GRP0 | CTLR_ENABLE_GRP1;

impl Vgic<'_> {
    /// A guest's load from the distributor's frame; the offset and what is loaded are the guest's.
    pub fn read_distributor(&self, offset: u64, width: Width) -> u64 {
        let Some(offset) = within(offset, DISTRIBUTOR_BYTES) else { return 0 };
        match (offset, width) {
            (GICD_IROUTER..GICD_IROUTER_END, Width::Doubleword) if offset.is_multiple_of(8) => {
                self.read_distributor_word(offset, View::Guest).into()
            }
            _ => narrow(offset, width, |at| self.read_distributor_word(at, View::Guest)),
        }
    }

    /// A guest's store to it.
    pub fn write_distributor(
        &self,
        offset: u64,
        width: Width,
        value: u64,
        events: &mut impl Events,
    ) {
        let Some(offset) = within(offset, DISTRIBUTOR_BYTES) else { return };
        match (offset, width) {
            (GICD_IPRIORITYR..GICD_IPRIORITYR_END, Width::Byte) => {
                if let Some(intid) = shared(offset - GICD_IPRIORITYR) {
                    self.write_priority(0, intid, low_byte(value), events);
                }
            }
            // The upper half is Aff3, of which there is none (GICD_TYPER.A3V).
            (GICD_IROUTER..GICD_IROUTER_END, Width::Doubleword) if offset.is_multiple_of(8) => {
                self.write_distributor_word(offset, low_word(value), View::Guest, events);
            }
            _ if aligned(offset, width, false) => {
                self.write_distributor_word(offset, low_word(value), View::Guest, events);
            }
            _ => {}
        }
    }

    pub(super) fn read_distributor_word(&self, offset: u32, view: View) -> u32 {
        match offset {
            GICD_CTLR => self.ctlr.load(SeqCst) | CTLR_ARE | CTLR_DS,
            GICD_TYPER => self.typer(),
            GICD_IIDR => IIDR,
            GICD_PIDR2 => PIDR2,
            _ => match (banked(offset), route(offset)) {
                // SGIs and PPIs are the redistributors'.
                (Some(register), _) if register.first() >= PRIVATE => {
                    self.read_banked(0, register, view)
                }
                (_, Some((intid, false))) => self.read_route(intid),
                _ => 0,
            },
        }
    }

    pub(super) fn write_distributor_word(
        &self,
        offset: u32,
        value: u32,
        view: View,
        events: &mut impl Events,
    ) {
        match offset {
            GICD_CTLR => self.write_ctlr(value, events),
            _ => match (banked(offset), route(offset)) {
                (Some(register), _) if register.first() >= PRIVATE => {
                    self.write_banked(0, register, value, view, events);
                }
                (_, Some((intid, false))) => self.write_route(intid, value, events),
                _ => {}
            },
        }
    }

    fn typer(&self) -> u32 {
        let lines = self.spis.len().div_ceil(32) as u32;
        let far = self.vcpus.iter().any(|vcpu| vcpu.affinity() & 0xff > 15);
        lines | TYPER_ID_BITS | if far { TYPER_RSS } else { 0 }
    }

    fn write_ctlr(&self, value: u32, events: &mut impl Events) {
        let new = value & CTLR_ENABLES;
        if self.ctlr.swap(new, SeqCst) == new {
            return;
        }
        // What was forwarded is no longer, or the other way round. What is in list registers is in the set, too.
        for (n, vcpu) in self.vcpus.iter().enumerate() {
            if !vcpu.due.is_empty() {
                events.kick(n);
            }
        }
    }

    fn read_route(&self, intid: u16) -> u32 {
        let Some(cell) = self.cell(0, intid).filter(|_| intid >= PRIVATE) else { return 0 };
        let word = cell.get();
        word.affinity() | if word.contains(Word::IRM) { IROUTER_IRM } else { 0 }
    }

    fn write_route(&self, intid: u16, value: u32, events: &mut impl Events) {
        if intid < PRIVATE {
            return;
        }
        let affinity = value & IROUTER_AFFINITY;
        let target = self.vcpu_of(affinity.into());
        let _ = self.change(0, intid, events, |word| {
            word.with_route(affinity, target).with(Word::IRM, value & IROUTER_IRM != 0)
        });
    }
}

/// An offset in a frame of so many bytes.
pub(super) fn within(offset: u64, bytes: u32) -> Option<u32> {
    u32::try_from(offset).ok().filter(|&offset| offset < bytes)
}

/// A load of 32 bits, or of 8 where a register takes that: those of priorities.
pub(super) fn narrow(offset: u32, width: Width, word: impl FnOnce(u32) -> u32) -> u64 {
    let bytes = matches!(banked(offset & !3), Some(Banked::Priority(_)));
    if !aligned(offset, width, bytes) {
        return 0;
    }
    let value = word(offset & !3);
    match width {
        Width::Byte => (value >> (8 * (offset & 3)) & 0xff).into(),
        _ => value.into(),
    }
}

/// An INTID that is no vCPU's own.
fn shared(intid: u32) -> Option<u16> {
    u16::try_from(intid).ok().filter(|&intid| intid >= PRIVATE)
}

/// Bits 31:0: what a store of 32 bits stores.
pub(super) const fn low_word(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// Bits 7:0.
pub(super) const fn low_byte(value: u64) -> u8 {
    (value & 0xff) as u8
}
