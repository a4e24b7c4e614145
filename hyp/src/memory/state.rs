//! The states that a page of RAM can be in.

#![forbid(unsafe_code)]

/// A VM's number: its slot, which is also its VMID less one.
pub type VmId = u8;

/// Owner and share state of a page.
///
/// At the end of the machine code without a stack looks at the first byte of each (`arch::end`): hence
/// `repr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// The host's alone.
    #[default]
    Host = 0,
    /// The host's, shared with hyp as a flag-shadow page; that many vCPUs (0 or 1) use it.
    FlagPage {
        /// whether a vCPU uses it
        used: bool,
    } = 1,
    /// The host's to use as far as the device tree allows, but nobody's to give away: firmware or a
    /// device may have it.
    Reserved = 2,
    /// Hyp's own: its image and its pool.
    Hyp = 3,
    /// Donated to hyp for a VM: stage-2 tables, vCPU registers and FP images.
    Vm(VmId) = 4,
    /// Donated to a protected guest.
    Guest(VmId) = 5,
    /// The host's, shared with a normal guest.
    SharedWithGuest(VmId) = 6,
    /// A protected guest's, which shares it with the host.
    SharedByGuest(VmId) = 7,
}

impl State {
    /// Whether the host may have it mapped.
    pub const fn host_has_access(self) -> bool {
        matches!(
            self,
            Self::Host
                | Self::Reserved
                | Self::FlagPage { .. }
                | Self::SharedWithGuest(_)
                | Self::SharedByGuest(_)
        )
    }

    /// Whether nobody may find what is there once the machine has ended, apart from what is hyp's own: a
    /// protected guest's memory, what it shares with its host included, vCPUs and page tables.
    pub const fn is_a_vms(self) -> bool {
        matches!(self, Self::Vm(_) | Self::Guest(_) | Self::SharedByGuest(_))
    }

    /// Its number: what the first byte says (Rust reference, primitive representation of enums with
    /// fields: a union of structs that begin with it).
    pub const fn number(self) -> u8 {
        match self {
            Self::Host => 0,
            Self::FlagPage { .. } => 1,
            Self::Reserved => 2,
            Self::Hyp => 3,
            Self::Vm(_) => 4,
            Self::Guest(_) => 5,
            Self::SharedWithGuest(_) => 6,
            Self::SharedByGuest(_) => 7,
        }
    }
}

/// [`State::number`]s of pages that are wiped at the end, as a set.
pub const WIPED_STATES: u64 = {
    let states = [
        State::Host,
        State::FlagPage { used: false },
        State::Reserved,
        State::Hyp,
        State::Vm(0),
        State::Guest(0),
        State::SharedWithGuest(0),
        State::SharedByGuest(0),
    ];
    let (mut set, mut n) = (0, 0);
    while n < states.len() {
        if states[n].is_a_vms() {
            set |= 1 << states[n].number();
        }
        n += 1;
    }
    set
};

#[cfg(target_os = "none")]
const _: () = {
    use crate::arch::end;
    assert!(WIPED_STATES == end::WIPED_STATES && size_of::<State>() == end::STATE_BYTES);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_can_not_reach_is_wiped_and_what_a_guest_shares_too() {
        let set = |numbers: &[u8]| numbers.iter().fold(0, |set, n| set | 1u64 << n);
        assert_eq!(WIPED_STATES, set(&[4, 5, 7]));
        let states = [
            State::Host,
            State::FlagPage { used: true },
            State::Reserved,
            State::Hyp,
            State::Vm(9),
            State::Guest(9),
            State::SharedWithGuest(9),
            State::SharedByGuest(9),
        ];
        for state in states {
            let hidden = !state.host_has_access() && state != State::Hyp;
            assert!(state.is_a_vms() || !hidden, "{state:?}");
        }
        let numbers: Vec<_> = states.iter().map(|state| state.number()).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(size_of::<State>(), 2);
    }
}
