//! What a protected VM is made of, as one number: its initial measurement (RSI's RIM), by which a guest knows that its host
//! has built what it should have built, and a tool computes what that is from files.
//!
//! It begins as 32 zeroes. Each record, in the order of the calls that did what they were asked, makes the next value of it:
//!
//! > value = SHA-256(value ‖ record), 32 + 64 bytes ([`input`])
//!
//! | record | of | bytes 0-7 | 8-15 | 16-23 | 24-31 | 32-63 |
//! |---|---|---|---|---|---|---|
//! | [`Record::Create`] | VM_CREATE of a protected VM | 1 | [`FORMAT`] | the bits of an address, alias bit included | 0 | 0 |
//! | [`Record::Page`] | each page that VM_MAP puts in place before the seal, in the order of their addresses | 2 | guest-physical address | 0 | 0 | SHA-256 of its 4096 bytes |
//! | [`Record::Vcpu`] | VCPU_CREATE | 3 | index | affinity | features, as x5 of the call has them, without its start | entry, argument, 1: on; or 0: off; 8 bytes of 0 |
//!
//! Numbers have 8 bytes, the lowest first. Whether a range was one call or several makes no difference, nor does where memory
//! lies in the machine. VM_SEAL ends it. Pages that come later hold zeroes, and are not in it.
//!
//! Beside it there are four values of the guest's own (RSI's REMs 1-4), zeroes at first: MEASUREMENT_EXTEND makes SHA-256(value ‖ what
//! it is given) of one.
//!
//! A measurement is not an attestation: whoever is told of it has to believe that hyp says so.

/// A measurement, or a digest: SHA-256's.
pub type Value = [u8; 32];

/// The version of this format.
pub const FORMAT: u64 = 1;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 64;

/// Instructions at the most for which interrupts stay masked for a page's sake that is measured: more than
/// [`MASKED_INSTRUCTIONS`](crate::call::MASKED_INSTRUCTIONS), for hyp has no registers for SHA instructions. After each it looks
/// whether one waits.
pub const MEASURED_INSTRUCTIONS: u64 = 200_000;

/// Something that a VM is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// It is created.
    Create {
        /// bits of an address, the alias bit included
        ipa_width: u64,
    },
    /// A page of memory.
    Page {
        /// its guest-physical address
        ipa: u64,
        /// SHA-256 of what is in it
        content: Value,
    },
    /// A vCPU.
    Vcpu {
        /// its number in the VM
        index: u64,
        /// Aff2, Aff1 and Aff0
        affinity: u64,
        /// what it was asked to have
        features: u64,
        /// entry and argument; `None`: it is off
        start: Option<[u64; 2]>,
    },
}

impl Record {
    /// As it is hashed.
    pub fn bytes(&self) -> [u8; RECORD_BYTES] {
        let mut words = [0; RECORD_BYTES / 8];
        let mut rest = [0; 32];
        match *self {
            Self::Create { ipa_width } => words[..3].copy_from_slice(&[1, FORMAT, ipa_width]),
            Self::Page { ipa, content } => {
                words[..2].copy_from_slice(&[2, ipa]);
                rest = content;
            }
            Self::Vcpu { index, affinity, features, start } => {
                words[..4].copy_from_slice(&[3, index, affinity, features]);
                if let Some([entry, argument]) = start {
                    words[4..7].copy_from_slice(&[entry, argument, 1]);
                }
            }
        }
        let mut bytes = [0; RECORD_BYTES];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        if let Self::Page { .. } = self {
            bytes[32..].copy_from_slice(&rest);
        }
        bytes
    }
}

/// What the next value is the SHA-256 of.
pub fn input(value: &Value, record: &Record) -> [u8; 32 + RECORD_BYTES] {
    let mut bytes = [0; 32 + RECORD_BYTES];
    bytes[..32].copy_from_slice(value);
    bytes[32..].copy_from_slice(&record.bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(bytes: &[u8]) -> Vec<u64> {
        bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    #[test]
    fn records_are_as_documented() {
        let create = Record::Create { ipa_width: 40 };
        assert_eq!(numbers(&create.bytes()), [1, 1, 40, 0, 0, 0, 0, 0]);
        let content = std::array::from_fn(|n| n as u8);
        let page = Record::Page { ipa: 0x8000_1000, content }.bytes();
        assert_eq!(numbers(&page[..32]), [2, 0x8000_1000, 0, 0]);
        assert_eq!(page[32..], content);
        let vcpu = Record::Vcpu { index: 1, affinity: 2, features: 3, start: Some([4, 5]) };
        assert_eq!(numbers(&vcpu.bytes()), [3, 1, 2, 3, 4, 5, 1, 0]);
        let off = Record::Vcpu { index: 1, affinity: 2, features: 3, start: None };
        assert_eq!(numbers(&off.bytes()), [3, 1, 2, 3, 0, 0, 0, 0]);
        let input = input(&content, &create);
        assert_eq!((&input[..32], &input[32..]), (&content[..], &create.bytes()[..]));
    }
}
