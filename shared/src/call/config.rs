//! What calls name and what they are told of VMs and vCPUs, and how that is in registers.

use crate::error::Error;
use crate::vcpu::UntrustedFeatures;

/// When the FP registers move. Fixed per VM at creation: a normal VM's by its host, a protected VM's by
/// hyp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Policy {
    /// On first use, in both directions.
    #[default]
    Lazy = 0,
    /// The host's state is back in the registers at every exit.
    Eager = 1,
    /// The guest's state leaves the registers at every exit; the host's comes back on first use.
    Scrub = 2,
}

/// What VM_CREATE is told of the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VmConfig {
    /// When a normal VM's FP registers move. Of a protected VM this says nothing: whether its registers
    /// stay on the CPU while its host runs is not its host's choice ([`PROTECTED_FP_LAZY`](super::Features::PROTECTED_FP_LAZY)).
    pub policy: Policy,
    /// Guest memory is donated, not shared: the host loses access to it.
    pub protected: bool,
    /// The host's kernel (its EL1, by accesses to data) finds junk where memory is a protected guest's alone, which it reads as anything and
    /// writes to no effect, in place of an abort. Its users and its devices find an abort.
    pub junk: bool,
}

impl VmConfig {
    const PROTECTED: u64 = 1 << 4;
    const JUNK: u64 = 1 << 5;

    /// A normal VM: its host can read its memory anyway, so its registers move as late as possible.
    pub const fn normal() -> Self {
        Self { policy: Policy::Lazy, protected: false, junk: false }
    }

    /// A protected VM, with the policy that hyp gives it, whatever is asked for: [`Policy::Scrub`]. Under
    /// the lazy policy the guest's registers are closed to the host but still there, and closed traps
    /// have been speculated past before (LazyFP, CVE-2018-3665). What it costs is one save and one
    /// zeroing for each exit of a guest that used FP. The machine's loader can have it otherwise
    /// (`umbra.protected-fp=lazy`).
    pub const fn protected() -> Self {
        Self { policy: Policy::Scrub, protected: true, junk: false }
    }

    /// The register form.
    pub const fn encode(self) -> u64 {
        let protected = if self.protected { Self::PROTECTED } else { 0 };
        self.policy as u64 | protected | if self.junk { Self::JUNK } else { 0 }
    }

    /// Reads the register form; reserved bits must be zero, and no junk be asked for but of a protected VM.
    pub const fn decode(raw: u64) -> Result<Self, Error> {
        let policy = match raw & 0xf {
            0 => Policy::Lazy,
            1 => Policy::Eager,
            2 => Policy::Scrub,
            _ => return Err(Error::InvalidArgument),
        };
        let (protected, junk) = (raw & Self::PROTECTED != 0, raw & Self::JUNK != 0);
        if raw & !(0xf | Self::PROTECTED | Self::JUNK) != 0 || junk && !protected {
            return Err(Error::InvalidArgument);
        }
        Ok(Self { policy, protected, junk })
    }
}

/// A physical address as the host named it: it may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UntrustedPa(pub u64);

/// A guest-physical address as the host named it: it may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UntrustedIpa(pub u64);

/// A physically contiguous run of 4 KiB pages as the host named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UntrustedPages {
    /// Address of the first page.
    pub start: UntrustedPa,
    /// Number of pages.
    pub count: u64,
}

/// A VM handle as the host named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VmHandle(pub u64);

/// A vCPU's index in its VM as the host named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VcpuIndex(pub u64);

/// VMs at a time: with 8-bit VMIDs, less the host's 0, there are no more. One costs 4 pages at the least, its host's.
pub const MAX_VMS: usize = 255;

/// vCPUs of a VM: the indices that there are. Whatever has been made of the rest, one costs its pages
/// ([`VcpuFeatures::pages`](crate::vcpu::VcpuFeatures::pages)), its host's.
pub const MAX_VCPUS: usize = 64;

/// A vCPU's affinity as the host named it: MPIDR_EL1's Aff2, Aff1 and Aff0 in bits 23:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UntrustedAffinity(pub u64);

/// What VCPU_CREATE is told of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VcpuConfig {
    /// The VM it belongs to.
    pub vm: VmHandle,
    /// Its index there: one that no other has.
    pub index: VcpuIndex,
    /// Its affinity there: one that no other has.
    pub affinity: UntrustedAffinity,
    /// Pages donated for its registers and its FP image ([`VcpuFeatures::pages`](crate::vcpu::VcpuFeatures::pages)).
    pub pages: UntrustedPages,
    /// Its flag-shadow page, shared before.
    pub flag_page: UntrustedPa,
    /// What it is to have.
    pub features: UntrustedFeatures,
    /// Where it starts. Of a protected VM only vCPU 0 is on: the others are turned on by the guest.
    pub start: Start,
}

/// Where a vCPU starts, as its host chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// It is on: MMU off, interrupts masked; EL1, or AArch32's Supervisor mode in A32 state.
    At {
        /// PC: a guest-physical address that is a multiple of 4. AArch32's PC holds 32 bits: more is
        /// INVALID_ARGUMENT.
        entry: u64,
        /// x0; r0, which holds 32 bits.
        argument: u64,
    },
    /// It is off until the guest turns it on (PSCI CPU_ON).
    Off,
}

/// Bits of x3 of VCPU_CREATE that mean nothing.
pub(super) const PLACE_RESERVED: u64 = 0xff << 56;

impl VcpuConfig {
    /// x3 of VCPU_CREATE: pages (15:0), index (31:16), affinity (55:32). What doesn't fit is nothing that hyp takes, and a
    /// reserved bit says so.
    pub(super) const fn place(&self) -> u64 {
        let (pages, index, affinity) = (self.pages.count, self.index.0, self.affinity.0);
        if pages >> 16 | index >> 16 | affinity >> 24 != 0 {
            return PLACE_RESERVED;
        }
        pages | index << 16 | affinity << 32
    }
}

impl Start {
    /// Beside [`UntrustedFeatures`], whose reserved bit it is there.
    pub(super) const OFF: u64 = 1 << 33;

    pub(super) const fn encode(self) -> (u64, u64, u64) {
        match self {
            Self::At { entry, argument } => (0, entry, argument),
            Self::Off => (Self::OFF, 0, 0),
        }
    }

    pub(super) const fn decode(flags: u64, entry: u64, argument: u64) -> Result<Self, Error> {
        match (flags & Self::OFF != 0, entry | argument) {
            (false, _) => Ok(Self::At { entry, argument }),
            (true, 0) => Ok(Self::Off),
            (true, _) => Err(Error::InvalidArgument),
        }
    }
}
