//! A guest's GICv3: distributor, redistributors, SGIs, and what goes into list registers.
//!
//! Hyp carries interrupts into a guest and says what became of them ([`umbra_shared::interrupt`]); which ones they are
//! is decided here. A [`Vgic`] is a VM's: of the architecture's GICv3 (IHI 0069) what a VM of KVM's has, which is one
//! security state (GICD_CTLR.DS), affinity routing, SGIs, PPIs and SPIs, both groups, and no LPIs. Unlike KVM's it
//! has 1 of N.
//!
//! | file | what |
//! |---|---|
//! | `word` | all of an interrupt, and what may become of it |
//! | `cell`, `due` | the embedder's storage; what a flush has to look at |
//! | `route` | who gets an interrupt, and who is told |
//! | [`registers`] | names and places |
//! | `access` | registers with a field for each interrupt |
//! | `frame` | where frames are, and a guest's accesses to them |
//! | `distributor`, `redistributor`, `sgi` | what a guest accesses: frames, and ICC_SGI1R_EL1 |
//! | `lines` | what devices and the embedder do |
//! | `run` | before and after a run of a vCPU |
//! | `interface` | a vCPU's run loop, as [`vcpu`](crate::vcpu) has it |
//! | [`outside`] | state read and written by whoever saves and restores the VM |
//!
//! Redistributors' frames follow one another in the order of vCPUs, [`registers::REDISTRIBUTOR_BYTES`] each: the last
//! one says that it is (GICR_TYPER.Last).
//!
//! # What is atomic with what
//!
//! Nothing is locked, nothing is allocated, and any CPU may call anything at any time, but for one thing: a vCPU is in
//! one place at a time, so its [`Vgic::flush`] and [`Vgic::sync`] alternate.
//!
//! Everything about an interrupt is in one 64-bit word: enable, pending latch, line, active, group, priority,
//! configuration, route, and whose list registers have it. Each change is one compare-exchange of that word, so that
//! an interrupt is never in the list registers of two vCPUs, and none is between two states. Two interrupts are two
//! words: a register write that concerns several changes them one after another, as it may (IHI 0069 promises
//! software no more), and a flush may see half of it. Beside the words there are GICD_CTLR, for each vCPU whether it
//! takes 1 of N, and for each a set of INTIDs that may concern it. That set errs on the large side only: who changes
//! a word puts the INTID in afterwards, and who takes one out looks at the word afterwards.
//!
//! # Kicks
//!
//! Every change ends by telling the embedder ([`Events::kick`]) which vCPU has to come out of the guest, if it is in
//! there, or need not wait any longer, if it waits. A kick that comes between a flush and the entry must stop that entry:
//! the embedder sends it as an interrupt, which is masked at that time and stops the guest at once.
//!
//! # What stays in hyp
//!
//! The CPU interface: ICH_VMCR_EL2 and ICH_AP*R_EL2, so what a guest has in ICC_PMR_EL1, ICC_IGRPEN*_EL1 and the
//! running priority. A vCPU that has its groups disabled there counts as one of the N all the same, unless
//! it is off ([`Vgic::set_power`]), asleep (GICR_WAKER) or excepted (GICR_CTLR.DPG*).

#![forbid(unsafe_code)]

mod access;
mod cell;
mod distributor;
mod due;
mod frame;
mod interface;
mod lines;
pub mod outside;
mod redistributor;
pub mod registers;
mod route;
mod run;
mod sgi;
#[cfg(test)]
pub(crate) mod tests;
mod word;

pub use cell::{SpiCell, VcpuCell};
pub use frame::Frame;
pub use interface::Interface;
pub use lines::Line;
pub use run::Flushed;
pub use sgi::SgiRegister;
pub use word::MAX_VCPUS;

use cell::{Cell, PRIVATE};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use registers::{CTLR_ENABLE_GRP0, CTLR_ENABLE_GRP1, IROUTER_AFFINITY};
use umbra_shared::interrupt::INTIDS;
use word::Word;

/// What the embedder is told.
pub trait Events {
    /// This vCPU has to leave the guest and be flushed again, or to wait no longer. It may turn out that there was
    /// nothing for it.
    fn kick(&mut self, vcpu: usize);
    /// The guest has ended this interrupt, and its line is down now: a device that still wants it raises it again
    /// (KVM's resamplefd). `vcpu` is who ended it, which for a PPI is whose it is. Only of those that were asked for
    /// ([`Vgic::set_resample`]).
    fn resample(&mut self, vcpu: usize, intid: u16);
}

/// Why there is no such [`Vgic`], or why it doesn't do that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// None, or more than [`MAX_VCPUS`].
    #[error("a VM has 1 to {MAX_VCPUS} vCPUs")]
    Vcpus,
    /// An affinity has more than Aff2 to Aff0, or two vCPUs have the same.
    #[error("an affinity that is none, or not unique")]
    Affinity,
    /// More SPIs than there are INTIDs, or not a multiple of 32 (988 is the most, as INTIDs end at 1019).
    #[error("SPIs come in 32s, or are all 988")]
    Spis,
    /// A virtual GIC has 5 to 8 bits of priority (ICH_VTR_EL2.PRIbits).
    #[error("a priority has 5 to 8 bits")]
    Priority,
    /// There is no such vCPU.
    #[error("no such vCPU")]
    NoVcpu,
    /// There is no such interrupt, or it has no line.
    #[error("no such interrupt")]
    NoInterrupt,
    /// There is no such register (ENXIO of KVM's).
    #[error("no such register")]
    NoRegister,
    /// Not a value of this register's (EINVAL of KVM's).
    #[error("not a value for this register")]
    Invalid,
    /// A vCPU is in the guest (EBUSY of KVM's).
    #[error("a vCPU is in the guest")]
    Busy,
}

/// A VM's GIC.
#[derive(Debug)]
pub struct Vgic<'a> {
    vcpus: &'a [VcpuCell],
    spis: &'a [SpiCell],
    /// GICD_CTLR: the two enables.
    ctlr: AtomicU32,
    /// The bits that priorities have.
    priority_mask: u8,
}

impl<'a> Vgic<'a> {
    /// A GIC in its reset state, whatever the cells held before. vCPUs are numbered as they are here, INTIDs of `spis`
    /// from 32 on. `priority_bits` are those of all CPUs that the VM runs on: ICH_VTR_EL2.PRIbits + 1 of the
    /// smallest.
    pub fn new(
        vcpus: &'a [VcpuCell],
        spis: &'a [SpiCell],
        priority_bits: u8,
    ) -> Result<Self, Refused> {
        let most = usize::from(INTIDS - PRIVATE);
        if vcpus.is_empty() || vcpus.len() > MAX_VCPUS {
            return Err(Refused::Vcpus);
        }
        if spis.len() > most || !spis.len().is_multiple_of(32) && spis.len() != most {
            return Err(Refused::Spis);
        }
        if !(5..=8).contains(&priority_bits) {
            return Err(Refused::Priority);
        }
        for (n, vcpu) in vcpus.iter().enumerate() {
            let twice = vcpus[..n].iter().any(|other| other.affinity() == vcpu.affinity());
            if twice || vcpu.affinity() & !IROUTER_AFFINITY != 0 {
                return Err(Refused::Affinity);
            }
        }
        for (n, vcpu) in vcpus.iter().enumerate() {
            vcpu.reset(n);
        }
        for spi in spis {
            // As KVM has it; the architecture says nothing about a route before it is written.
            spi.0.set(Word::RESET.with_route(vcpus[0].affinity(), Some(0)));
        }
        let priority_mask = 0xff << (8 - priority_bits);
        Ok(Self { vcpus, spis, ctlr: AtomicU32::new(0), priority_mask })
    }

    /// How many vCPUs it has.
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// The vCPU of this affinity: Aff2 to Aff0, and nothing above.
    pub fn vcpu_of(&self, affinity: u64) -> Option<usize> {
        self.vcpus.iter().position(|vcpu| u64::from(vcpu.affinity()) == affinity)
    }

    /// The interrupt of this INTID, `vcpu`'s if it is a private one.
    fn cell(&self, vcpu: usize, intid: u16) -> Option<&'a Cell> {
        match intid.checked_sub(PRIVATE) {
            None => self.vcpus.get(vcpu)?.private.get(usize::from(intid)),
            Some(n) => self.spis.get(usize::from(n)).map(|spi| &spi.0),
        }
    }

    /// Whether GICD_CTLR lets the group of this interrupt through.
    fn is_group_enabled(&self, word: Word) -> bool {
        let bit = if word.contains(Word::GROUP1) { CTLR_ENABLE_GRP1 } else { CTLR_ENABLE_GRP0 };
        self.ctlr.load(SeqCst) & bit != 0
    }
}
