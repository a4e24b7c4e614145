//! A number that a disk's content has, computed in pieces, in any order, by whoever has the piece.
//!
//! It tells content that was mixed up, lost or read twice from what it should be. It is no defence
//! against somebody who looks for two contents of one number.

/// Bytes of a piece, but for the last.
pub const PIECE_BYTES: usize = 64 << 10;

/// Odd, with bits everywhere: 2^64 divided by the golden ratio.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the piece with this number contributes.
pub fn piece(number: u64, bytes: &[u8]) -> u64 {
    let mut sum = mix(number ^ (bytes.len() as u64) << 32);
    let (words, rest) = bytes.as_chunks();
    for word in words {
        sum = (sum.rotate_left(23) ^ u64::from_le_bytes(*word)).wrapping_mul(FACTOR);
    }
    for &byte in rest {
        sum = (sum.rotate_left(23) ^ u64::from(byte)).wrapping_mul(FACTOR);
    }
    mix(sum)
}

/// All pieces together.
pub fn whole(bytes: &[u8]) -> u64 {
    let pieces = (0..).zip(bytes.chunks(PIECE_BYTES));
    pieces.fold(0, |sum, (number, bytes)| sum.wrapping_add(piece(number, bytes)))
}

const fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 32).wrapping_mul(FACTOR);
    value ^ value >> 29
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn content() -> Vec<u8> {
        (0..3 * PIECE_BYTES + 5).map(|n| (mix(n as u64) >> 40) as u8).collect()
    }

    #[test]
    fn every_byte_and_every_place_counts() {
        let all = content();
        let right = whole(&all);
        for at in [0, 7, 8, PIECE_BYTES, 2 * PIECE_BYTES - 1, all.len() - 1] {
            let mut wrong = all.clone();
            wrong[at] ^= 0x10;
            assert_ne!(whole(&wrong), right, "byte {at}");
        }
        let mut swapped = all.clone();
        swapped.rotate_left(PIECE_BYTES);
        assert_ne!(whole(&swapped), right);
        assert_ne!(whole(&all[..all.len() - 1]), right);
    }

    #[test]
    fn pieces_come_in_any_order() {
        let all = content();
        let pieces: Vec<_> = (0..).zip(all.chunks(PIECE_BYTES)).collect();
        let sum = pieces.iter().rev().map(|(n, bytes)| piece(*n, bytes));
        assert_eq!(sum.fold(0, u64::wrapping_add), whole(&all));
    }
}
