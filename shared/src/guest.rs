//! Calls that a guest makes to hyp itself, by HVC or SMC, whatever its immediate, with SMCCC 1.2's register arguments.
//!
//! | service range | who answers |
//! |---|---|
//! | Arm architecture (0x8000_xxxx) | hyp: SMCCC_VERSION, SMCCC_ARCH_FEATURES, and firmware's SMCCC_ARCH_WORKAROUND_1-3 |
//! | PSCI (0x8400_0000-1f, 0xc400_0000-1f) | hyp, PSCI 1.1 |
//! | TRNG (0x8400_0050-5f, 0xc400_0050-5f) | hyp, never the host |
//! | RSI (0xc400_0190-1af) | hyp, for a protected guest of AArch64: [`crate::rsi`] |
//! | vendor-specific hypervisor (0x8600_xxxx, 0xc600_xxxx) | hyp, for a protected guest: below. A normal guest's host |
//! | anything else by HVC | the host ([`Reason::Hvc`](crate::exit::Reason::Hvc)) |
//! | anything else by SMC | NOT_SUPPORTED: there is no firmware |
//!
//! What isn't there of a range that hyp answers is NOT_SUPPORTED. SMCCC 1.3's hint (bit 16) selects nothing.
//!
//! # Protected guests
//!
//! The interface is KVM's (Linux, Documentation/virt/kvm/arm/hypercalls.rst), so that a Linux with
//! `CONFIG_ARM_PKVM_GUEST` runs as it is: [`UID`], FEATURES, and the [`GuestFunction`]s that it names. x0
//! returns 0, [`INVALID_PARAMETER`] or [`NOT_SUPPORTED`]; x1-x3 that a function doesn't take must be zero;
//! all other registers are preserved. MEM_RELINQUISH is not in that document; its number and arguments are
//! those of Android's common kernel. A normal guest is shown none of it: its memory is the host's anyway. To one that has
//! used RSI UID and FEATURES answer, and FEATURES names itself alone.
//!
//! An AArch32 guest has the same functions under SMC32's IDs (bit 30 clear), which KVM doesn't define; memory
//! above 4 GiB it can't name.
//!
//! A protected guest's memory is its own. It shares a page when it wants its host, or a device that
//! the host emulates, to read and write it; until it unshares it again, what is there is not secret
//! and may change at any time. An access to an address where it has no memory is for nobody's eyes unless it
//! has enrolled the page (MMIO_GUARD), or is in the upper half.
//!
//! # The alias
//!
//! The highest bit of a protected guest's addresses, as ID_AA64MMFR0_EL1.PARange tells their size (bit 39 of 40), is its
//! alias bit. Addresses that have it, and none above it, are its upper half, which is what it shares with its host. Every page of
//! memory has an alias there, the same address with the bit:
//!
//! - MEM_SHARE of the alias shares the page *there*: at its own address there is nothing meanwhile, an access is a
//!   synchronous external abort, and no memory comes. MEM_UNSHARE of the alias brings it back with its content. MEM_RELINQUISH of the
//!   alias gives it up, and both addresses are free.
//! - Where nothing is shared the upper half is the host's devices: accesses leave as
//!   [`Reason::Mmio`](crate::exit::Reason::Mmio), with their data, if they can be emulated, without MMIO_GUARD, which
//!   is refused there. Memory never comes there by the host's choice.
//!
//! So what is private and what is shared is told by an address, and a guest's stage 1 has both. MEM_SHARE of a page's own address
//! shares it in place, as KVM has it; a page is shared one way or the other. VM_MAP, before the seal and behind it,
//! is for the lower half. A normal guest has no upper half: its addresses are all alike.

use crate::call::SVE_HINT;
use crate::numbered::numbered;

/// What tells SMC64's function IDs from SMC32's.
pub const SMC64: u64 = 1 << 30;
/// What a fast call has, and what tells hyp's service ranges (owners 0, 4 and 6) from most others.
const FAST: u64 = 1 << 31;
const ODD_OWNER: u64 = 1 << 24;

/// x0: there is no such function.
pub const NOT_SUPPORTED: i64 = -1;
/// x0 of a vendor-specific call that can't be done as it was asked.
pub const INVALID_PARAMETER: i64 = -3;

/// What UID answers in w0-w3, as SMCCC orders it: 28b46fb6-2ec5-11e9-a9ca-4b564d003a74, KVM's.
pub const UID: [u32; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];

/// The function that x0 selects, without the hint: a call for hyp, or for nobody else.
#[inline]
pub const fn function_id(x0: u64) -> u32 {
    (x0 & !SVE_HINT) as u32
}

/// Whether hyp need not look at a call of a guest's: not SMCCC, or a service range that it answers nothing of.
/// Quick, since most exits ask.
#[inline]
pub const fn is_hosts(x0: u64) -> bool {
    x0 & FAST == 0 || x0 & ODD_OWNER != 0
}

numbered! {
    /// Vendor-specific hypervisor functions of a protected guest, found by their IDs ([`function_id`]).
    GuestFunction: u32, pub fn from_id;

    /// → w0-w3: [`UID`].
    Uid = 0x8600_ff01;
    /// → w0-w3: a bit for each function, by the lower 16 bits of its ID.
    Features = 0x8600_0000;
    /// → the granule of all the following, in bytes.
    HypMeminfo = 0xc600_0002;
    /// x1 guest-physical address of a page: share it with the host. If there is no memory yet the host is
    /// asked for it ([`Reason::Fault`](crate::exit::Reason::Fault)). Of an alias: share the page that is private at the
    /// address without the alias bit, where the host is asked for it likewise, and move it; if that takes tables the host is asked
    /// for them ([`Reason::Tables`](crate::exit::Reason::Tables)).
    MemShare = 0xc600_0003;
    /// x1 guest-physical address of a page: the host has no access to it any more. Its content stays. The host is
    /// told before ([`Reason::Unshare`](crate::exit::Reason::Unshare)), of a page that is shared, and loses it when it
    /// runs this vCPU again: it can put that off for no longer than the vCPU.
    MemUnshare = 0xc600_0004;
    /// x1 guest-physical address of a page where there is no memory: accesses leave as
    /// [`Reason::Mmio`](crate::exit::Reason::Mmio), with their data, and no memory comes there any more.
    MmioGuard = 0xc600_0007;
    /// x1 guest-physical address of a page: it leaves the guest and is the host's, wiped if it was not shared. The host learns of it
    /// by [`Reason::Relinquished`](crate::exit::Reason::Relinquished); if the page was part of a block, the rest of which
    /// takes a table, first by [`Reason::Tables`](crate::exit::Reason::Tables); and of one that is shared as by MEM_UNSHARE
    /// before it is the guest's no more.
    MemRelinquish = 0xc600_0009;
}

impl GuestFunction {
    /// The function ID to put into x0.
    pub const fn id(self) -> u64 {
        self as u64
    }

    /// The function ID for r0 of an AArch32 guest.
    pub const fn id32(self) -> u64 {
        self as u64 & !SMC64
    }

    /// The function that r0 selects for an AArch32 guest: the same with SMC32's function IDs.
    pub const fn from_id32(id: u32) -> Option<Self> {
        if id as u64 & SMC64 != 0 {
            return None;
        }
        match Self::from_id(id) {
            Some(function) => Some(function),
            None => Self::from_id(id | SMC64 as u32),
        }
    }

    /// How many of x1-x3 it may find set; the rest must be zero. HVC32's functions here take no arguments, and
    /// their documents require nothing of the registers.
    pub const fn arguments(self) -> usize {
        match self {
            Self::Uid | Self::Features => 3,
            Self::HypMeminfo => 0,
            Self::MemShare | Self::MemUnshare | Self::MmioGuard | Self::MemRelinquish => 1,
        }
    }

    /// Whether a guest that calls it uses this interface from then on, and not RSI.
    pub const fn decides(self) -> bool {
        !matches!(self, Self::Uid | Self::Features)
    }

    /// What FEATURES answers to a guest that uses RSI.
    pub const FEATURES_ALONE: [u32; 4] = [1, 0, 0, 0];

    /// What FEATURES answers.
    pub const fn features() -> [u32; 4] {
        let mut words = [0; 4];
        let mut n = 0;
        while n < Self::ALL.len() {
            let number = Self::ALL[n] as u32 & 0xffff;
            // UID is SMCCC's own and has no bit.
            if number < 128 {
                words[(number / 32) as usize] |= 1 << (number % 32);
            }
            n += 1;
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_their_ids() {
        for &function in GuestFunction::ALL {
            let id = function.id();
            assert_eq!(GuestFunction::from_id(function_id(id)), Some(function));
            assert_eq!(
                GuestFunction::from_id(function_id(id | SVE_HINT | 1 << 40)),
                Some(function)
            );
            assert_eq!(GuestFunction::from_id32(function.id32() as u32), Some(function));
            assert!(!is_hosts(id) && !is_hosts(id | SVE_HINT) && !is_hosts(function.id32()));
            if id & SMC64 != 0 {
                assert_eq!(GuestFunction::from_id32(id as u32), None);
                assert_eq!(GuestFunction::from_id(function.id32() as u32), None);
            }
        }
        assert_eq!(GuestFunction::from_id(0xc600_0005), None);
        assert_eq!(GuestFunction::from_id(0x8400_0003), None);
    }

    #[test]
    fn features_are_kvms() {
        // Linux, include/linux/arm-smccc.h: FEATURES 0, HYP_MEMINFO 2, MEM_SHARE 3, MEM_UNSHARE 4, MMIO_GUARD 7.
        let upstream = 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7;
        assert_eq!(GuestFunction::features(), [upstream | 1 << 9, 0, 0, 0]);
    }

    #[test]
    fn the_uid_is_kvms() {
        // RFC 4122's bytes, which SMCCC packs into words with the lowest byte first.
        let bytes: Vec<u8> = UID.iter().flat_map(|word| word.to_le_bytes()).collect();
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "28b46fb62ec511e9a9ca4b564d003a74");
    }

    #[test]
    fn what_is_the_hosts() {
        for x0 in [0, 0x600d, 0xc300_0001, 0xc500_0020, 0x0400_0000, 0x8300_0000] {
            assert!(is_hosts(x0), "{x0:#x}");
        }
        for x0 in [0x8000_0000, 0x8400_0000, 0xc400_0053, 0x8600_ff01] {
            assert!(!is_hosts(x0), "{x0:#x}");
        }
    }
}
