//! A vCPU's part of the GIC, as its run loop has it.

use super::{Events, Flushed, Line, Refused, SgiRegister, Vgic};
use crate::vcpu::VTIMER_INTID;
use umbra_shared::interrupt::{Entry, MAX_ENTRIES, Signalled, States};

/// The interrupts of one vCPU, and whom to tell of what comes of them.
#[derive(Debug)]
pub struct Interface<'g, E> {
    vgic: &'g Vgic<'g>,
    vcpu: usize,
    /// List registers of the CPU that it runs on.
    registers: usize,
    events: E,
}

impl<'g, E: Events> Interface<'g, E> {
    /// That of the vCPU with this number in `vgic`, on a CPU with so many list registers
    /// ([`VlInfo::interface`](crate::hypercall::VlInfo::interface)).
    pub fn new(vgic: &'g Vgic<'g>, vcpu: usize, registers: u8, events: E) -> Result<Self, Refused> {
        if vcpu >= vgic.vcpus() {
            return Err(Refused::NoVcpu);
        }
        Ok(Self { vgic, vcpu, registers: usize::from(registers).min(MAX_ENTRIES), events })
    }

    /// Who is told.
    pub fn events(&mut self) -> &mut E {
        &mut self.events
    }

    /// Whether anything may have to go into list registers. Asked before each entry.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.vgic.is_due(self.vcpu)
    }

    /// `None`: others disturb it, and it is tried again later.
    pub(crate) fn flush(&mut self, entries: &mut [Entry; MAX_ENTRIES]) -> Option<Flushed> {
        // Its vCPU is there, and is in one place at a time.
        let entries = &mut entries[..self.registers];
        self.vgic.flush(self.vcpu, entries, &mut self.events).unwrap_or(Some(Flushed::default()))
    }

    pub(crate) fn sync(&mut self, entries: &[Entry], states: States) {
        let _ = self.vgic.sync(self.vcpu, entries, states, &mut self.events);
    }

    pub(crate) fn cancel(&mut self, entries: &[Entry]) {
        let _ = self.vgic.cancel(self.vcpu, entries, &mut self.events);
    }

    /// The virtual timer's line.
    pub(crate) fn timer(&mut self, up: bool) {
        let line = Line::Ppi { vcpu: self.vcpu, intid: VTIMER_INTID };
        let _ = self.vgic.set_line(line, up, &mut self.events);
    }

    pub(crate) fn send_sgi(&mut self, register: SgiRegister, value: u64) {
        let _ = self.vgic.send_sgi(self.vcpu, register, value, &mut self.events);
    }

    /// Whether the vCPU would find an interrupt if it ran: it need not wait in WFI.
    pub fn has_interrupt(&self, signalled: Signalled) -> bool {
        self.vgic.has_interrupt(self.vcpu, signalled)
    }
}
