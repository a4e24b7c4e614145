//! What a protected VM is measured by ([`umbra_shared::measurement`]), and what its guest adds to that.

#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};
use umbra_shared::measurement::{Record, Value, input};
use umbra_shared::rsi::{EXTENSION_BYTES, MEASUREMENTS};

/// A VM's measurements: the initial one, and the guest's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measurements([Value; MEASUREMENTS]);

impl Measurements {
    /// Of nothing.
    pub const fn new() -> Self {
        Self([[0; 32]; MEASUREMENTS])
    }

    /// The VM is made of this as well.
    pub fn enter(&mut self, record: &Record) {
        let [initial, ..] = &mut self.0;
        *initial = Sha256::digest(input(initial, record)).into();
    }

    /// One of them: 0 is the initial one. `None`: there is no such measurement.
    pub fn read(&self, index: u64) -> Option<Value> {
        self.0.get(usize::try_from(index).ok()?).copied()
    }

    /// The guest adds to one of its own. False: there is no such measurement, or it is too much at once.
    #[must_use]
    pub fn extend(&mut self, index: u64, extension: &[u8]) -> bool {
        let own = usize::try_from(index).ok().filter(|&index| index != 0);
        let Some(value) = own.and_then(|index| self.0.get_mut(index)) else { return false };
        if extension.len() > EXTENSION_BYTES {
            return false;
        }
        *value = Sha256::new().chain_update(*value).chain_update(extension).finalize().into();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(value: &Value) -> String {
        value.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn it_is_sha_256() {
        // FIPS 180-4's example.
        let abc: Value = Sha256::digest(b"abc").into();
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&abc), known);
    }

    #[test]
    fn every_record_and_their_order_count() {
        let page = |ipa, byte| Record::Page { ipa, content: [byte; 32] };
        let of = |records: &[Record]| {
            let mut all = Measurements::new();
            records.iter().for_each(|record| all.enter(record));
            assert_eq!(all.0[1..], Measurements::new().0[1..], "the guest's own");
            all.read(0).unwrap()
        };
        let all = [
            of(&[]),
            of(&[page(0, 1)]),
            of(&[page(0, 1), page(4096, 2)]),
            of(&[page(4096, 2), page(0, 1)]),
            of(&[page(0, 2), page(4096, 1)]),
            of(&[page(0, 1), page(8192, 2)]),
            of(&[page(0, 1), page(4096, 2), page(4096, 2)]),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(one), "{n}");
        }
        let first: Value = Sha256::digest(input(&[0; 32], &page(0, 1))).into();
        assert_eq!(all[1], first);
        let second: Value = Sha256::digest(input(&first, &page(4096, 2))).into();
        assert_eq!(all[2], second);
    }

    #[test]
    fn a_guest_extends_its_own() {
        let mut all = Measurements::new();
        assert!(!all.extend(0, b"x") && !all.extend(5, b"x") && !all.extend(u64::MAX, b"x"));
        assert!(!all.extend(1, &[0; 65]) && all == Measurements::new());
        assert!(all.extend(4, &[7; 64]) && all.extend(1, b""));
        let value: Value = Sha256::digest([[0; 32].as_slice(), &[7; 64]].concat()).into();
        assert_eq!(all.read(4), Some(value));
        let value: Value = Sha256::digest([0; 32]).into();
        assert_eq!((all.read(1), all.read(2)), (Some(value), Some([0; 32])));
        assert_eq!((all.read(0), all.read(5)), (Some([0; 32]), None));
        // In order: what was there is what the next one begins with.
        assert!(all.extend(1, b"abc"));
        let next: Value = Sha256::digest([value.as_slice(), b"abc"].concat()).into();
        assert_eq!(all.read(1), Some(next));
    }
}
