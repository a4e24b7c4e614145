//! A redistributor, as a guest accesses it: RD_base and SGI_base (IHI 0069, 12.10 and 12.11).
//!
//! There are no LPIs, so all that is about them reads as zero and ignores writes.

use super::{
    Events, PRIVATE, Vgic,
    access::{View, aligned},
    cell::Control,
    distributor::{low_byte, low_word, narrow, within},
    registers::*,
};

/// GICR_CTLR's bits that can be written.
const CTLR_DPGS: Control = Control::DPG0.union(Control::DPG1NS);

impl Vgic<'_> {
    /// A load from `vcpu`'s redistributor, by whichever vCPU; SGI_base's offsets follow RD_base's.
    pub fn read_redistributor(&self, vcpu: usize, offset: u64, width: Width) -> u64 {
        let Some(offset) = within(offset, REDISTRIBUTOR_BYTES) else { return 0 };
        if (offset, width) == (GICR_TYPER, Width::Doubleword) {
            return self.redistributor_typer(vcpu);
        }
        // RD_base has no priorities, and no registers that take bytes.
        if offset < SGI_BASE && !aligned(offset, width, false) {
            return 0;
        }
        let at = offset % SGI_BASE;
        let frame = offset - at;
        narrow(at, width, |at| self.read_redistributor_word(vcpu, frame + at, View::Guest))
    }

    /// A store to it.
    pub fn write_redistributor(
        &self,
        vcpu: usize,
        offset: u64,
        width: Width,
        value: u64,
        events: &mut impl Events,
    ) {
        let Some(offset) = within(offset, REDISTRIBUTOR_BYTES) else { return };
        let at = offset.checked_sub(SGI_BASE + GICD_IPRIORITYR).map(u16::try_from);
        match (at, width) {
            (Some(Ok(intid)), Width::Byte) if intid < PRIVATE => {
                self.write_priority(vcpu, intid, low_byte(value), events);
            }
            _ if aligned(offset, width, false) => {
                let value = low_word(value);
                self.write_redistributor_word(vcpu, offset, value, View::Guest, events);
            }
            _ => {}
        }
    }

    pub(super) fn read_redistributor_word(&self, vcpu: usize, offset: u32, view: View) -> u32 {
        let Some(cell) = self.vcpus.get(vcpu) else { return 0 };
        let control = cell.control();
        match offset {
            GICR_CTLR => (control & CTLR_DPGS).bits(),
            GICR_IIDR => IIDR,
            GICR_TYPER => low_word(self.redistributor_typer(vcpu)),
            GICR_TYPER_HIGH => low_word(self.redistributor_typer(vcpu) >> 32),
            // There is nothing to wait for: what it had it has given up when the write is done.
            GICR_WAKER if control.contains(Control::PROCESSOR_SLEEP) => {
                WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP
            }
            GICR_PIDR2 | SGI_PIDR2 => PIDR2,
            _ => match sgi_base(offset) {
                Some(register) => self.read_banked(vcpu, register, view),
                None => 0,
            },
        }
    }

    pub(super) fn write_redistributor_word(
        &self,
        vcpu: usize,
        offset: u32,
        value: u32,
        view: View,
        events: &mut impl Events,
    ) {
        let control = |mask, flags, events: &mut _| {
            // A redistributor that there is not is no vCPU's.
            let _ = self.set_control(vcpu, mask, flags, events);
        };
        match offset {
            GICR_CTLR => control(CTLR_DPGS, Control::from_bits_truncate(value), events),
            GICR_WAKER => {
                let mask = Control::PROCESSOR_SLEEP;
                let asleep = value & WAKER_PROCESSOR_SLEEP != 0;
                control(mask, if asleep { mask } else { Control::empty() }, events);
            }
            _ => {
                if let Some(register) = sgi_base(offset) {
                    self.write_banked(vcpu, register, value, view, events);
                }
            }
        }
    }

    fn redistributor_typer(&self, vcpu: usize) -> u64 {
        let Some(cell) = self.vcpus.get(vcpu) else { return 0 };
        let last = if vcpu + 1 == self.vcpus.len() { TYPER_LAST } else { 0 };
        u64::from(cell.affinity()) << 32 | (vcpu as u64) << 8 | TYPER_DPGS | last
    }
}

/// The register of SGI_base there: of those that the distributor has as well, the ones of private INTIDs.
fn sgi_base(offset: u32) -> Option<Banked> {
    banked(offset.checked_sub(SGI_BASE)?).filter(|register| register.first() < PRIVATE)
}
