//! Realm Services Interface 1.0 (Arm DEN0137): a protected guest of AArch64 that knows it finds itself in a realm.
//!
//! The calls are SMC64, by SMC or HVC, in Arm's standard secure range (owner 4). Other guests have none of it:
//! [`NOT_SUPPORTED`](crate::guest::NOT_SUPPORTED), as of what isn't there. Registers that a call has no result in are
//! preserved.
//!
//! # One interface or the other
//!
//! A guest uses this one or KVM's ([`crate::guest`]), on the same memory, whichever it uses first. To look costs nothing:
//! VERSION, FEATURES, REALM_CONFIG and MEASUREMENT_READ decide as little as KVM's UID and FEATURES do. Any other call
//! decides, for all vCPUs and for good, whatever it answers; from then on the other interface is NOT_SUPPORTED, and
//! KVM's FEATURES names nothing but itself. (A Linux with drivers for both asks for KVM's first.)
//!
//! # RIPAS
//!
//! What the guest says of an address of its lower half, page by page:
//!
//! | RIPAS | is of | an access there |
//! |---|---|---|
//! | RAM | what has memory, or what the guest has said is RAM: memory comes there when it is needed, zeroed | is its own business, or leaves as [`Fault`](crate::exit::Reason::Fault), with the page's address alone |
//! | EMPTY | all else | is a synchronous external abort, of which nobody hears |
//! | DESTROYED | nothing: a host takes nothing away from a living protected VM | - |
//!
//! Memory that the host has given until the guest decides is RAM, as a realm's is that its host has initialised; nothing
//! comes to an EMPTY address afterwards. So devices are EMPTY where Linux looks whether they are protected
//! (`arm64_rsi_is_protected`), and it maps them at their aliases.
//!
//! Addresses have [`RealmConfig::ipa_width`] bits, and the highest is the alias bit: what is EMPTY below is shared at the same
//! address with it, or a device there ([`crate::guest`], "The alias").
//!
//! **IPA_STATE_SET**, x1 base, x2 top, x3 RIPAS, x4 flags (with nothing destroyed they say nothing). It does a part of the range, at the least what
//! is at its base, and answers in x1 how far it came; the guest calls again from there. x2 is [`ACCEPT`], or [`REJECT`] with
//! x1 = base if the host would not bring what it takes, or the guest has named too many ranges ([`RAM_RANGES`]).
//!
//! - To EMPTY: what was private in a page is destroyed, never shown; the page, wiped, is shared at its alias. Where RAM has no memory yet
//!   the host is asked for it first. What is EMPTY stays as it is. Up to [`PAGES_AT_A_TIME`] pages a call.
//! - To RAM: what is shared at its alias comes back, wiped, when the host has been told
//!   ([`Unshare`](crate::exit::Reason::Unshare)) and has let the guest go on. What is RAM keeps its content. As long as nothing is shared
//!   at an alias, a call does all of the range, however large; it takes no tables.
//!
//! **IPA_STATE_GET**, x1 base, x2 top: the RIPAS at base in x2, and in x1 how far it goes, in so far as hyp has looked.
//!
//! **HOST_CALL**, x1 the address of an RsiHostCall ([`HOST_CALL_BYTES`]), aligned to its size, in private memory: its immediate and its 31 registers are for the
//! host ([`HostCall`](crate::exit::Reason::HostCall), [`crate::flags`]), what that answers becomes the 31 registers. An exit's own
//! registers hold six: the rest would take fourteen exits more, or zeroes in place of what the guest has said, so they are in the page that
//! a vCPU's host and hyp share, as a realm's are in its run object. If the guest makes the page EMPTY meanwhile nothing is written. ERROR_UNKNOWN: the
//! host won't have it.
//!
//! **ATTESTATION_TOKEN_INIT** is ERROR_UNKNOWN and **ATTESTATION_TOKEN_CONTINUE** ERROR_STATE, as of a platform whose token can't be made and where none
//! is under way: there is no RME, no key that anybody could check, and no silicon that vouches for hyp. Whoever has to know what
//! runs has the measurement's word for it, which is hyp's.
//!
//! **REALM_CONFIG**, x1 a page of RAM's address: all of it is written ([`RealmConfig`]).

use crate::numbered::numbered;

/// Calls' results in x0.
pub const SUCCESS: u64 = 0;
/// An argument is wrong.
pub const ERROR_INPUT: u64 = 1;
/// The realm's state does not allow it.
pub const ERROR_STATE: u64 = 2;
/// There is more to do.
pub const INCOMPLETE: u64 = 3;
/// It failed for another reason: the host brings no memory.
pub const ERROR_UNKNOWN: u64 = 4;

/// RSI's range: what isn't there of it is NOT_SUPPORTED.
pub const FUNCTIONS: core::ops::RangeInclusive<u32> = 0xc400_0190..=0xc400_01af;

/// 1.0: major from bit 16 on, minor.
pub const VERSION: u64 = 1 << 16;

/// x2 of IPA_STATE_SET: done as far as x1 says.
pub const ACCEPT: u64 = 0;
/// Not done.
pub const REJECT: u64 = 1;

/// x2 of IPA_STATE_GET, x3 of IPA_STATE_SET.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Ripas {
    /// Nothing is private there.
    Empty = 0,
    /// Memory is.
    Ram = 1,
}

impl Ripas {
    /// What IPA_STATE_SET takes.
    pub const fn from_register(x3: u64) -> Option<Self> {
        match x3 {
            0 => Some(Self::Empty),
            1 => Some(Self::Ram),
            _ => None,
        }
    }
}

/// Ranges that a guest can have said are RAM, apart from each other.
pub const RAM_RANGES: usize = 32;
/// Pages that one IPA_STATE_SET makes EMPTY, at the most.
pub const PAGES_AT_A_TIME: u64 = 8;
/// Pages that it looks at for that.
pub const PAGES_LOOKED_AT: u64 = 64;

/// Measurements: the initial one and the guest's own.
pub const MEASUREMENTS: usize = 5;
/// Bytes that one MEASUREMENT_EXTEND takes, at the most.
pub const EXTENSION_BYTES: usize = 64;
/// Registers that MEASUREMENT_READ answers in, from x1 on.
pub const MEASUREMENT_WORDS: usize = 8;

/// What REALM_CONFIG writes: a page, of which the rest is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealmConfig {
    /// Bits of an address, the alias bit being the highest.
    pub ipa_width: u64,
}

impl RealmConfig {
    /// RsiHashAlgorithm, the second word: SHA-256.
    pub const SHA_256: u64 = 0;

    /// The words that the page begins with. The personalisation value, from byte 0x200 on, is zero: a host can't give a
    /// VM one.
    pub const fn words(self) -> [u64; 2] {
        [self.ipa_width, Self::SHA_256]
    }
}

/// Bytes of RsiHostCall: the immediate in bits 15:0 of the first word, 31 registers.
pub const HOST_CALL_BYTES: u64 = 256;

numbered! {
    /// RSI's functions, found by their IDs ([`function_id`](crate::guest::function_id)).
    RsiFunction: u32, pub fn from_id;

    /// x1 the revision asked for → x1 and x2: the lowest and the highest there is, [`VERSION`]. ERROR_INPUT for another.
    Version = 0xc400_0190;
    /// x1 a feature register's number → x1: zero.
    Features = 0xc400_0191;
    /// x1 a number: 0 is the initial measurement ([`crate::measurement`]), 1 to 4 are the guest's own → x1-x8: its bytes, the first in
    /// the lowest, and zeroes. ERROR_INPUT for another number.
    MeasurementRead = 0xc400_0192;
    /// x1 a number from 1 to 4, x2 how many bytes of x3-x10: SHA-256 of what it is and these is what it is from then on.
    /// ERROR_INPUT for another number, or more than 64 bytes.
    MeasurementExtend = 0xc400_0193;
    /// See the module. x1-x8 the challenge.
    AttestationTokenInit = 0xc400_0194;
    /// See the module. x1 a page's address, x2 offset in it, x3 bytes: ERROR_INPUT for what is none.
    AttestationTokenContinue = 0xc400_0195;
    /// See the module.
    RealmConfig = 0xc400_0196;
    /// See the module.
    IpaStateSet = 0xc400_0197;
    /// See the module.
    IpaStateGet = 0xc400_0198;
    /// See the module.
    HostCall = 0xc400_0199;
}

impl RsiFunction {
    /// The function ID to put into x0.
    pub const fn id(self) -> u64 {
        self as u64
    }

    /// Whether a guest that calls it uses this interface from then on.
    pub const fn decides(self) -> bool {
        !matches!(self, Self::Version | Self::Features | Self::MeasurementRead | Self::RealmConfig)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::SVE_HINT;
    use crate::guest::{GuestFunction, function_id, is_hosts};

    #[test]
    fn functions_are_found_by_their_ids() {
        for &function in RsiFunction::ALL {
            let id = function.id();
            assert!(FUNCTIONS.contains(&(id as u32)));
            assert_eq!(RsiFunction::from_id(function_id(id | SVE_HINT)), Some(function));
            assert_eq!(GuestFunction::from_id(id as u32), None);
            assert!(!is_hosts(id));
        }
        assert_eq!(RsiFunction::from_id(0xc400_018f), None);
        assert_eq!(RsiFunction::from_id(0x8400_0190), None);
    }
}
