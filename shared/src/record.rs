//! What a test build of hyp writes down of each transition, for the executable specification
//! (`tests/spec`) to judge.
//!
//! The log lies in hyp's own memory, where the host can't reach it, and is read from outside the
//! machine. Records are in no order; their numbers say in which order the transitions took effect: a
//! number is taken while the lock is held that makes the transition one step.

use crate::call::Args;
use crate::numbered::numbered;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Changes of page states that fit into a record.
pub const TOUCHED: usize = 15;

/// A record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Record {
    /// Its place in the order, from 1 on; 0: there is none.
    pub number: u64,
    /// [`Kind`] in bits 7:0, the CPU's number from bit 8 on.
    pub what: u64,
    /// x0 as it was called, or what the kind says.
    pub function: u64,
    /// x1-x7, or what the kind says.
    pub args: Args,
    /// x0 after it.
    pub result: u64,
    /// x1-x3 after it.
    pub results: [u64; 3],
    /// The CPU's FP state after it ([`FpState`]).
    pub fp: u64,
    /// The vCPU loaded on the CPU after it: VM slot plus 1, index from bit 8 on; 0: none.
    pub loaded: u64,
    /// How many changes of page states there were; those that didn't fit are not among `touched`.
    pub changes: u64,
    /// The first of them ([`Change`]).
    pub touched: [u64; TOUCHED],
}

static_assertions::const_assert!(size_of::<Record>() == 256);

numbered! {
    /// What happened.
    Kind: u8, pub fn from_number;

    /// A hypercall of the host's other than VCPU_RUN.
    Call = 1;
    /// VCPU_RUN, at its end. args\[0\] is x1, args\[1\] the hint of the host's word as it was read,
    /// args\[2\] how often a trap of the guest's made its state live, args\[3\] hyp's word after it, args\[4\] x8
    /// if it had interrupts.
    Run = 2;
    /// A call of the guest that is loaded. function is its ID, SMC64's for an AArch32 guest too, args\[0\]
    /// its x1, args\[1\] and args\[2\] its x2 and x3, result its x0, or r0 sign-extended. args\[3\] is
    /// [`ExitInfo`](crate::exit::ExitInfo) plus 1 if the host is told, args\[4\] 1 if the guest makes it again then,
    /// args\[5\] 1 if it had to, and this is that.
    GuestCall = 3;
    /// The host trapped on FP or SVE (args\[0\] is 0) or SME (1).
    HostFp = 4;
    /// The host's stage-2 fault at args\[0\], args\[1\] 1 if its EL1 accessed data; result is 1 if it was told to try again, 2 if it finds
    /// junk then.
    HostFault = 5;
    /// A vCPU was put because its CPU goes off or to sleep.
    ImplicitPut = 6;
    /// A CPU came out of reset. args\[0\] is the set of its vector lengths, args\[1\] the VQ that
    /// its host is held to (0: no SVE), args\[2\] and args\[3\] the same of its SVLs.
    Reset = 7;
    /// At boot: args\[0\] pages from address args\[1\] on are in the state of [`Change`] args\[2\].
    Pages = 8;
    /// At boot: args\[0\] CPUs, args\[1\] the set of guests' vector lengths, args\[2\] bits of guest
    /// addresses, args\[3\] the level of their root table, args\[4\] the set of
    /// guests' streaming vector lengths, args\[5\] 1 if EL1 can be AArch32,
    /// args\[6\] the FP policy of protected VMs, 1 in bit 8 if there can be any, and the number of their alias bit
    /// in bits 21:16.
    Machine = 9;
    /// An access of the host's to a register of the GIC at args\[0\], ESR_EL2 being args\[1\]; result is 1 if
    /// it was no abort. Pages that the GIC reads from now on are nobody's to give away.
    Gic = 10;
    /// What the VCPU_RUN that comes next on this CPU is offered: args are x6-x12, function is x13, result what the
    /// CPU's list registers are ([`Interface`](crate::interrupt::Interface)).
    Offer = 11;
}

numbered! {
    /// State of a page, with a VM's number where it has one.
    PageState: u8, pub fn from_number;

    /// The host's alone.
    Host = 0;
    /// A flag-shadow page that no vCPU uses.
    FlagPage = 1;
    /// One that a vCPU uses.
    FlagPageUsed = 2;
    /// Not to be given away.
    Reserved = 3;
    /// Hyp's.
    Hyp = 4;
    /// A VM's tables or vCPUs.
    Vm = 5;
    /// A protected guest's.
    Guest = 6;
    /// Shared with a normal guest.
    SharedWithGuest = 7;
    /// Shared by a protected guest.
    SharedByGuest = 8;
}

/// Pages that are in another state than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Address of the first over the page size.
    pub page: u64,
    /// How many: 1..=255.
    pub count: u8,
    /// Their state now.
    pub state: PageState,
    /// Of which VM, if the state has one.
    pub vm: u8,
    /// Devices reach all of them; else none.
    pub devices: bool,
}

impl Change {
    /// The register form: 40 bits of page, 8 of count, 7 of state, 1 of devices, 8 of VM.
    pub const fn encode(self) -> u64 {
        self.page & ((1 << 40) - 1)
            | (self.count as u64) << 40
            | (self.state as u64) << 48
            | (self.devices as u64) << 55
            | (self.vm as u64) << 56
    }

    /// Reads it.
    pub const fn decode(word: u64) -> Option<Self> {
        let Some(state) = PageState::from_number((word >> 48) as u8 & 0x7f) else { return None };
        let (page, count) = (word & ((1 << 40) - 1), (word >> 40) as u8);
        Some(Self { page, count, state, vm: (word >> 56) as u8, devices: word >> 55 & 1 != 0 })
    }
}

/// What the test kernel has to say of an access of a device's: in the arguments of VERSION, which uses none, so that a
/// log has it in its place among hyp's transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceNote {
    /// One begins, in the page at this address, on this CPU's behalf.
    Begins {
        /// where
        pa: u64,
    },
    /// It has read or written there.
    Reached,
    /// It has not.
    Refused,
    /// It can't be told.
    Unknown,
}

impl DeviceNote {
    /// x1 of such a note.
    const MARK: u64 = 0x6465_7669_6365_0a0d;

    /// x1-x3.
    pub const fn encode(self) -> [u64; 3] {
        match self {
            Self::Begins { pa } => [Self::MARK, 0, pa],
            Self::Reached => [Self::MARK, 1, 0],
            Self::Refused => [Self::MARK, 2, 0],
            Self::Unknown => [Self::MARK, 3, 0],
        }
    }

    /// Reads them, if they are one.
    pub const fn decode(args: [u64; 3]) -> Option<Self> {
        match args {
            [Self::MARK, 0, pa] => Some(Self::Begins { pa }),
            [Self::MARK, 1, _] => Some(Self::Reached),
            [Self::MARK, 2, _] => Some(Self::Refused),
            [Self::MARK, 3, _] => Some(Self::Unknown),
            _ => None,
        }
    }
}

/// Whose registers are live on a CPU, and what of the host is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FpState {
    /// 0: the host's, 1: the loaded vCPU's, 2: nobody's.
    pub live: u8,
    /// 0: nothing, 1: V registers, 2: a whole image, 3: one of streaming mode.
    pub image: u8,
    /// VQ of a whole image.
    pub vq: u8,
    /// Whose ZA is in the registers, as `live`.
    pub za: u8,
    /// VQ of the host's ZA in memory; 0: there is none.
    pub host_za: u8,
}

impl FpState {
    /// The register form.
    pub const fn encode(self) -> u64 {
        u64::from_le_bytes([self.live, self.image, self.vq, self.za, self.host_za, 0, 0, 0])
    }

    /// Reads it.
    pub const fn decode(word: u64) -> Self {
        let [live, image, vq, za, host_za, ..] = word.to_le_bytes();
        Self { live, image, vq, za, host_za }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn changes_survive(word: u64) {
            if let Some(change) = Change::decode(word) {
                prop_assert_eq!(change.encode(), word);
            } else {
                prop_assert!(word >> 48 & 0x7f > 8);
            }
        }
    }

    proptest! {
        #[test]
        fn fp_states_survive(live: u8, image: u8, vq: u8, za: u8, host_za: u8) {
            let state = FpState { live, image, vq, za, host_za };
            prop_assert_eq!(FpState::decode(state.encode()), state);
        }
    }
}
