//! State as it is read and written by whoever saves and restores a VM.
//!
//! The semantics are those of KVM's device attributes (Linux's `arm-vgic-v3.rst`), so that a VMM that knows them has
//! nothing to learn: [`Vgic::read_state`] and [`Vgic::write_state`] are KVM_DEV_ARM_VGIC_GRP_DIST_REGS and
//! _REDIST_REGS, [`Vgic::read_lines`] and [`Vgic::write_lines`] are _LEVEL_INFO. CPU interfaces (_CPU_SYSREGS) are
//! hyp's.
//!
//! - Registers are accessed in 32 bits; 64-bit ones in two halves.
//! - An access does what a guest's does, but for pending: ISPENDR is the latch alone, which a write sets and clears;
//!   ICPENDR reads as zero and ignores writes.
//! - Enables and active states are written as a guest writes them. A fresh GIC has SGIs enabled: who restores writes
//!   all ones to ICENABLER first.
//! - Writes to read-only registers are ignored; GICD_IIDR takes what it reads, so that another implementation's
//!   state is refused.
//! - Which vCPU has an SPI active is no register's: where it is routed to when that vCPU is flushed, as KVM has it.
//! - No vCPU may be in the guest: its embedder sees to that. One that has something in list registers is noticed
//!   (BUSY), one that has nothing there isn't.

use super::{
    Events, Frame, PRIVATE, Refused, Vgic, access::View, distributor::within, registers::*,
    word::Word,
};
use core::sync::atomic::Ordering::SeqCst;

impl Vgic<'_> {
    /// The register at this offset, a multiple of 4.
    pub fn read_state(&self, frame: Frame, offset: u64) -> Result<u32, Refused> {
        let offset = self.check_state(frame, offset)?;
        Ok(match frame {
            Frame::Distributor => self.read_distributor_word(offset, View::Outside),
            Frame::Redistributor(vcpu) => self.read_redistributor_word(vcpu, offset, View::Outside),
        })
    }

    /// Writes it.
    pub fn write_state(
        &self,
        frame: Frame,
        offset: u64,
        value: u32,
        events: &mut impl Events,
    ) -> Result<(), Refused> {
        let offset = self.check_state(frame, offset)?;
        match frame {
            Frame::Distributor if offset == GICD_IIDR && value != IIDR => {
                return Err(Refused::Invalid);
            }
            Frame::Distributor => {
                self.write_distributor_word(offset, value, View::Outside, events);
            }
            Frame::Redistributor(vcpu) => {
                self.write_redistributor_word(vcpu, offset, value, View::Outside, events);
            }
        }
        Ok(())
    }

    /// The lines of 32 INTIDs from `first` on, a multiple of 32; of `vcpu`'s if they are private. SGIs have none, nor have
    /// INTIDs that there are not.
    pub fn read_lines(&self, vcpu: usize, first: u16) -> Result<u32, Refused> {
        self.check_lines(vcpu, first)?;
        let up = |n: &u16| {
            let cell = self.cell(vcpu, first + n);
            cell.is_some_and(|cell| cell.get().contains(Word::LINE))
        };
        Ok((0..32).filter(up).fold(0, |lines, n| lines | 1 << n))
    }

    /// Sets them, without the edge that a rise would be.
    pub fn write_lines(
        &self,
        vcpu: usize,
        first: u16,
        lines: u32,
        events: &mut impl Events,
    ) -> Result<(), Refused> {
        self.check_lines(vcpu, first)?;
        for n in (0..32).filter(|n| first + n >= 16) {
            let up = lines >> n & 1 != 0;
            // A line that there is not is ignored.
            let _ = self.change(vcpu, first + n, events, |word| word.with(Word::LINE, up));
        }
        Ok(())
    }

    fn check_state(&self, frame: Frame, offset: u64) -> Result<u32, Refused> {
        self.check_idle()?;
        let bytes = match frame {
            Frame::Distributor => DISTRIBUTOR_BYTES,
            Frame::Redistributor(vcpu) if vcpu < self.vcpus.len() => REDISTRIBUTOR_BYTES,
            Frame::Redistributor(_) => return Err(Refused::NoVcpu),
        };
        within(offset, bytes).filter(|offset| offset.is_multiple_of(4)).ok_or(Refused::NoRegister)
    }

    fn check_lines(&self, vcpu: usize, first: u16) -> Result<(), Refused> {
        self.check_idle()?;
        if !first.is_multiple_of(32) || first >= 1024 {
            Err(Refused::Invalid)
        } else if first < PRIVATE && vcpu >= self.vcpus.len() {
            Err(Refused::NoVcpu)
        } else {
            Ok(())
        }
    }

    fn check_idle(&self) -> Result<(), Refused> {
        let busy = self.vcpus.iter().any(|vcpu| vcpu.in_guest.load(SeqCst));
        if busy { Err(Refused::Busy) } else { Ok(()) }
    }
}
