//! What one kind of registers holds after several uses at several lengths.

use crate::{
    pattern::{Found, Mismatch, ffr_byte, whose_of},
    tag::{Register, Tag, lane},
};
use arrayvec::ArrayVec;
use umbra_shared::vl::Vq;

/// One use of the registers: whose pattern, written at which VL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub generation: u32,
    pub vq: Vq,
}

/// Z registers, or P registers and FFR, or ZA. Sizes are bytes of a vector of the length in force: P
/// counts an eighth, and what counts of a byte of ZA is the greater of its row and its place in it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// What was written last; `None`: nothing since reset.
    last: Option<Written>,
    /// Bytes that must hold it.
    must: usize,
    /// Bytes `[from, to)` that must be zero.
    zero: (usize, usize),
    /// What may still be behind it, the larger VL first: each reaches further than the one after it.
    older: ArrayVec<Written, 16>,
}

impl Layer {
    /// All zero.
    pub const fn zero() -> Self {
        Self { last: None, must: 0, zero: (0, usize::MAX), older: ArrayVec::new_const() }
    }

    /// Something new is in all bytes that `reach` reaches.
    pub fn write(&mut self, written: Written, reach: Vq) {
        if let Some(last) = self.last.take() {
            self.older.push(last);
        }
        self.older.retain(|older| older.vq > reach);
        self.last = Some(written);
        self.must = written.vq.vl_bytes();
        self.zero = (written.vq.vl_bytes(), reach.vl_bytes());
    }

    /// Beyond so many bytes it is kept or zero.
    pub fn keep(&mut self, bytes: usize) {
        self.must = self.must.min(bytes);
    }

    /// The expected byte, and whether `found` will do. `at`: the size that reaches it.
    fn judge(&self, owner: u16, register: Register, n: usize, at: usize, found: u8) -> (u8, bool) {
        let byte = |written: &Written| {
            let tag = Tag { owner, generation: written.generation };
            match register {
                Register::Ffr => ffr_byte(tag, written.vq.vl_bytes(), n),
                _ => lane(tag, register, (n / 8) as u8).to_le_bytes()[n % 8],
            }
        };
        let last = self.last.as_ref().map(byte);
        if let Some(byte) = last
            && at < self.must
        {
            return (byte, byte == found);
        }
        if (self.zero.0..self.zero.1).contains(&at) {
            return (0, found == 0);
        }
        let own = |written: &Written| at < written.vq.vl_bytes() && byte(written) == found;
        let acceptable = found == 0 || self.last.iter().chain(&self.older).any(own);
        (last.unwrap_or(0), acceptable)
    }

    /// Judges one register. `place`: the size that reaches a byte of it, which grows with the byte.
    pub fn check(
        &self,
        owner: u16,
        register: Register,
        found: &[u8],
        place: impl Fn(usize) -> usize,
    ) -> Result<(), Mismatch> {
        for (n, chunk) in found.chunks(8).enumerate() {
            let start = 8 * n;
            if let (Some(last), true) = (self.last, place(start + chunk.len() - 1) < self.must)
                && register != Register::Ffr
            {
                let tag = Tag { owner, generation: last.generation };
                let content = lane(tag, register, n as u8).to_le_bytes();
                if chunk == &content[..chunk.len()] {
                    continue;
                }
            }
            let mut expected = [0; 8];
            let mut wrong = None;
            for (i, &byte) in chunk.iter().enumerate() {
                let n = start + i;
                let (should, fine) = self.judge(owner, register, n, place(n), byte);
                expected[i] = should;
                if !fine {
                    wrong.get_or_insert(n);
                }
            }
            if let Some(byte) = wrong {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                let found = u64::from_le_bytes(word);
                return Err(Mismatch {
                    register,
                    byte,
                    expected: u64::from_le_bytes(expected),
                    found,
                    whose: if chunk.len() == 8 { whose_of(found) } else { Found::Unknown },
                });
            }
        }
        Ok(())
    }
}
