//! Calls that a guest makes to hyp itself: HVC #0 with SMCCC 1.2 register arguments.
//!
//! x0 carries the function ID, in the same service range as the host's calls ([`crate::call`]), x1 the
//! argument; x0 returns [`SUCCESS`](crate::error::SUCCESS) or an [`Error`](crate::error::Error) code.
//! All other registers are preserved. The host sees none of these calls; every HVC with another x0 is
//! an exit to it ([`Reason::Hvc`](crate::exit::Reason::Hvc)).
//!
//! An AArch32 guest calls with r0 and r1, and with SMC32's function IDs (bit 30 clear); memory above
//! 4 GiB it can't name. Its host finds r0-r5 of other HVCs in x2-x7, zero-extended.
//!
//! A protected guest's memory is its own. It shares a page when it wants its host, or a device that
//! the host emulates, to read and write it; until it unshares it again, what is there is not secret
//! and may change at any time.

use crate::call::SVE_HINT;

/// What tells SMC64's function IDs from SMC32's.
const SMC64: u64 = 1 << 30;

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $id:literal;)*) => {
        /// Functions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u64)]
        pub enum GuestFunction {
            $($(#[$doc])* $name = $id,)*
        }

        impl GuestFunction {
            /// Every function.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The function that x0 selects. Its upper half and SMCCC 1.3's hint are ignored.
            #[inline]
            pub const fn from_id(x0: u64) -> Option<Self> {
                match x0 & 0xffff_ffff & !SVE_HINT {
                    $($id => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The function that r0 selects for an AArch32 guest: the same with SMC32's function IDs.
            #[inline]
            pub const fn from_id32(r0: u64) -> Option<Self> {
                if r0 & SMC64 == 0 { Self::from_id(r0 | SMC64) } else { None }
            }
        }
    };
}

functions! {
    /// x1 guest-physical address of a page: share it with the host.
    MemShare = 0xc600_0040;
    /// x1 guest-physical address of a page: the host has no access to it any more. Its content stays.
    MemUnshare = 0xc600_0041;
    /// x1 guest-physical address of a page: it leaves the guest and is the host's, wiped if the guest
    /// is protected. The host learns of it by [`Reason::Relinquished`](crate::exit::Reason::Relinquished).
    MemRelinquish = 0xc600_0042;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Function;

    #[test]
    fn ids_are_no_others() {
        for &function in GuestFunction::ALL {
            assert_eq!(GuestFunction::from_id(function.id()), Some(function));
            assert_eq!(GuestFunction::from_id(function.id() | SVE_HINT | 1 << 40), Some(function));
            assert_eq!(Function::from_id(function.id()), None);
        }
        for &function in GuestFunction::ALL {
            assert_eq!(GuestFunction::from_id32(function.id32()), Some(function));
            assert_eq!(GuestFunction::from_id32(function.id()), None);
            assert_eq!(GuestFunction::from_id(function.id32()), None);
        }
        assert_eq!(GuestFunction::from_id(0xc600_0043), None);
        assert_eq!(GuestFunction::from_id(0x8600_0040), None);
    }
}
