//! The states that a page of RAM can be in.

#![forbid(unsafe_code)]

/// A VM's number: its slot, which is also its VMID less one.
pub type VmId = u8;

/// Owner and share state of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum State {
    /// The host's alone.
    #[default]
    Host,
    /// The host's, shared with hyp as a flag-shadow page; that many vCPUs (0 or 1) use it.
    FlagPage {
        /// whether a vCPU uses it
        used: bool,
    },
    /// The host's to use as far as the device tree allows, but nobody's to give away: firmware or a
    /// device may have it.
    Reserved,
    /// Hyp's own: its image and its pool.
    Hyp,
    /// Donated to hyp for a VM: stage-2 tables, vCPU registers and FP images.
    Vm(VmId),
    /// Donated to a protected guest.
    Guest(VmId),
    /// The host's, shared with a normal guest.
    SharedWithGuest(VmId),
    /// A protected guest's, which shares it with the host.
    SharedByGuest(VmId),
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
}
