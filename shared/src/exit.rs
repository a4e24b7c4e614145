//! What VCPU_RUN takes and returns, all of it in registers.
//!
//! **In.** x1 = [`RunFlags`]; x6-x13 interrupts, if it says so ([`crate::interrupt`]); x2-x5 finish what the last exit left
//! open:
//! after [`Reason::Hvc`] they become the guest's x0-x3; after a [`Reason::Mmio`] read x2 is the data.
//! After any other exit they are ignored. Hyp remembers what is open; the host can't write a register
//! that the last exit did not hand to it.
//!
//! **Out.** x0 = 0 or an error (then nothing ran; BUSY also if an SError of the host's waits that it has masked, or
//! DISR_EL1 holds one that it has deferred); x1 = [`ExitInfo`]; x8 = [`States`](crate::interrupt::States) if there were
//! entries; x2-x7 by reason:
//!
//! | reason | x2 | x3.. |
//! |---|---|---|
//! | `Irq` | - | a physical interrupt is pending for the host; or the run was to [finish](RunFlags::FINISH_ONLY) only |
//! | `Hvc` | guest x0 | x3-x7: guest x1-x5 |
//! | `Mmio` | guest-physical address | x3: data of a write |
//! | `Wfi` | [`Signalled`](crate::interrupt::Signalled) | the guest waits for an interrupt: one of these. x3: when its virtual timer is due, in ticks of the physical counter, or [`NO_DEADLINE`] |
//! | `Fault` | guest-physical address | nothing is mapped there and the access can't be emulated (a fetch, a pair, a cache operation), or is a protected guest's and no device's: then it is the page's address and nothing more. Map it and run again |
//! | `Sgi` | value written | x3: to ICC_SGI1R_EL1 (0), ICC_ASGI1R_EL1 (1) or ICC_SGI0R_EL1 (2) |
//! | `Relinquished` | guest-physical address | x3: the page, which is the host's again |
//! | `Broken` | ESR_EL2 | the guest did what hyp can't continue from; every further run answers the same. Of a protected guest ESR_EL2 has its EC only |
//! | `CpuOn` | the vCPU's index | PSCI CPU_ON: it can be loaded from now on; the caller's call has been answered |
//! | `CpuOff` | - | PSCI CPU_OFF: this vCPU is off; put it |
//! | `System` | [`SystemEvent`] | x3: SYSTEM_RESET2's type, x4: its cookie. The vCPU has stopped in its call, which fails if a normal VM's host runs it again without VCPU_RESET; of a protected VM nothing runs any more |
//! | `Tables` | - | a call of a protected guest's takes tables: VM_TOPUP, and run again |
//! | `HostCall` | the guest's immediate, 16 bits | of a protected guest ([`crate::rsi`]): its 31 registers are in the flag-shadow page, and what is there when this vCPU runs next becomes theirs |
//! | `Unshare` | guest-physical address | x3: the page. A protected guest is about to take it back, or to give it up: the host has access until this vCPU runs again, and takes away first what it has made of the page (mappings, pins). Whatever it has not taken away then, its accesses are aborts |
//!
//! An AArch32 guest's x0-x5 are its r0-r5, zero-extended; of what the host answers they take the lower
//! halves. Its MMIO accesses have 4 bytes at most.

use crate::flag_set;
use crate::numbered::numbered;

flag_set! {
    /// x1 of VCPU_RUN.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RunFlags: u64 {
        /// The guest is left when fewer than two entries are pending or active, and when it ends an interrupt that
        /// no entry has (ICH_HCR_EL2.UIE and LRENPIE): there is more to come. With fewer than two entries
        /// INVALID_ARGUMENT.
        const UNDERFLOW = 1 << 0;
        /// Instead of finishing the open MMIO access, or of trying a [`Reason::Fault`] again, give the
        /// guest a synchronous external abort; a call of its own that exited with [`Reason::Fault`],
        /// [`Reason::Tables`], [`Reason::Unshare`] or [`Reason::HostCall`] fails. That is for the first run after the exit.
        const ABORT = 1 << 1;
        /// Don't finish the open MMIO access: execute the instruction again (the host has mapped
        /// memory there).
        const RETRY = 1 << 2;
        /// Finish what is open and nothing more: the guest executes no instruction, and exits with [`Reason::Irq`]. Its
        /// registers are then what they are behind that (KVM: `immediate_exit`). The rest of the exit says
        /// nothing, and the hint is not looked at. With entries, or with UNDERFLOW, INVALID_ARGUMENT.
        const FINISH_ONLY = 1 << 3;
        /// Bits 12:8: how many entries there are in x6 to x13 ([`crate::interrupt`]).
        const ENTRIES = 0x1f << 8;
    }
}

impl RunFlags {
    const ENTRIES_SHIFT: u32 = 8;

    /// With so many entries, 31 at the most.
    #[must_use]
    pub const fn with_entries(self, count: usize) -> Self {
        let entries = (count as u64) << Self::ENTRIES_SHIFT & Self::ENTRIES.bits();
        Self::from_bits_retain(self.bits() & !Self::ENTRIES.bits() | entries)
    }

    /// How many entries there are.
    pub const fn entries(self) -> usize {
        ((self.bits() & Self::ENTRIES.bits()) >> Self::ENTRIES_SHIFT) as usize
    }
}

numbered! {
    /// Why the guest stopped.
    Reason: u8, fn from_number;

    /// A physical interrupt.
    Irq = 0;
    /// The guest executed HVC.
    Hvc = 1;
    /// A load or store that the host can emulate.
    Mmio = 2;
    /// The guest executed WFI.
    Wfi = 3;
    /// An access to nothing that can't be emulated.
    Fault = 4;
    /// The guest generated an SGI.
    Sgi = 5;
    /// The guest can't continue.
    Broken = 6;
    /// The guest has given a page back ([`crate::guest`]); its call has been answered.
    Relinquished = 7;
    /// The guest has turned a vCPU on.
    CpuOn = 8;
    /// This vCPU has turned itself off.
    CpuOff = 9;
    /// The guest turns its machine off or resets it.
    System = 10;
    /// A call of the guest's takes more tables.
    Tables = 11;
    /// The guest is about to take a page back that it shares.
    Unshare = 12;
    /// The guest calls its host by RSI.
    HostCall = 13;
}

/// x3 of [`Reason::Wfi`]: the guest's virtual timer is off, or masked.
pub const NO_DEADLINE: u64 = u64::MAX;

/// x2 of [`Reason::System`]: which function of PSCI's it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum SystemEvent {
    /// SYSTEM_OFF.
    Off = 0,
    /// SYSTEM_RESET.
    Reset = 1,
    /// SYSTEM_RESET2.
    Reset2 = 2,
}

impl SystemEvent {
    /// The one that x2 names.
    pub const fn from_register(x2: u64) -> Option<Self> {
        match x2 {
            0 => Some(Self::Off),
            1 => Some(Self::Reset),
            2 => Some(Self::Reset2),
            _ => None,
        }
    }
}

/// x1 after VCPU_RUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitInfo(u64);

/// An MMIO access, as far as the host must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioAccess {
    /// Bytes: 1, 2, 4 or 8. Hyp extends what is read to the register as the instruction asks.
    pub bytes: u8,
    /// A store.
    pub write: bool,
}

impl ExitInfo {
    /// The guest's virtual timer output is asserted: CNTV_CTL_EL0 has ENABLE and ISTATUS, not IMASK.
    pub const VTIMER: u64 = 1 << 8;
    const MMIO_SIZE_SHIFT: u32 = 16;
    const MMIO_WRITE: u64 = 1 << 18;

    /// An exit for `reason` with flag bits ([`Self::VTIMER`]).
    pub const fn new(reason: Reason, flags: u64) -> Self {
        Self(reason as u64 | flags & Self::VTIMER)
    }

    /// An MMIO exit: size as log2 of the bytes (ESR_ELx.ISS.SAS).
    pub const fn mmio(size_log2: u64, write: bool, flags: u64) -> Self {
        Self(
            Self::new(Reason::Mmio, flags).0
                | (size_log2 & 3) << Self::MMIO_SIZE_SHIFT
                | if write { Self::MMIO_WRITE } else { 0 },
        )
    }

    /// Reads the register form.
    pub const fn from_register(x1: u64) -> Self {
        Self(x1)
    }

    /// The register form.
    pub const fn register(self) -> u64 {
        self.0
    }

    /// Why; `None` for a number that this version doesn't know.
    pub const fn reason(self) -> Option<Reason> {
        Reason::from_number(self.0 as u8)
    }

    /// Whether the guest's virtual timer is asserting its interrupt.
    pub const fn vtimer(self) -> bool {
        self.0 & Self::VTIMER != 0
    }

    /// Size and direction of an MMIO access.
    pub const fn mmio_access(self) -> MmioAccess {
        MmioAccess {
            bytes: 1 << (self.0 >> Self::MMIO_SIZE_SHIFT & 3),
            write: self.0 & Self::MMIO_WRITE != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let info = ExitInfo::mmio(3, true, ExitInfo::VTIMER);
        assert_eq!(info.reason(), Some(Reason::Mmio));
        assert_eq!(info.mmio_access(), MmioAccess { bytes: 8, write: true });
        assert!(info.vtimer());
        let info = ExitInfo::new(Reason::Irq, 0);
        assert_eq!(info.register(), 0);
        assert_eq!(ExitInfo::from_register(0xff).reason(), None);
        let flags = (RunFlags::ABORT | RunFlags::UNDERFLOW).with_entries(16);
        assert_eq!(flags.entries(), 16);
        assert_eq!(flags.with_entries(0), RunFlags::ABORT | RunFlags::UNDERFLOW);
        assert!(RunFlags::from_bits(flags.bits()).is_some());
    }
}
