//! Ranges of physical memory less others, and what of them is handed out piece by piece.

#![forbid(unsafe_code)]

use crate::boot::range_set::Range;
use crate::memory::pages::MAX_BANKS;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, Ordering};
use umbra_shared::PAGE_SIZE;

/// Ranges that a device tree may reserve.
pub const MAX_RESERVED: usize = 32;
/// What a loader and hyp itself have in memory, beside what the device tree reserves.
pub const MAX_TAKEN: usize = 8;

/// Pieces that all banks less all that is taken can make.
pub const MAX_PIECES: usize = MAX_BANKS + MAX_RESERVED + MAX_TAKEN;

/// Ranges in the order of their addresses, whole pages.
pub type Pieces = ArrayVec<Range, MAX_PIECES>;

const PAGE: u64 = PAGE_SIZE as u64;

/// What of `banks` (whole pages, in order, apart) is in none of `taken`, in whole pages: a page that is
/// taken in part is taken. `None`: more pieces than there can be.
pub fn without(banks: &[Range], taken: &[Range]) -> Option<Pieces> {
    let mut pieces = Pieces::new();
    for &(start, end) in banks {
        let mut from = start;
        while from < end {
            // The first that is in the way.
            let next = taken
                .iter()
                .filter(|range| range.0 < range.1 && range.1 > from && range.0 < end)
                .min_by_key(|range| range.0);
            let (until, behind) = match next {
                Some(range) => {
                    (range.0 / PAGE * PAGE, range.1.checked_next_multiple_of(PAGE).unwrap_or(end))
                }
                None => (end, end),
            };
            if from < until {
                pieces.try_push((from, until)).ok()?;
            }
            from = behind;
        }
    }
    Some(pieces)
}

/// Memory that several CPUs take piece by piece, to do something with it.
#[derive(Debug)]
pub struct Chunks {
    pieces: Pieces,
    next: AtomicU64,
    done: AtomicU64,
}

impl Chunks {
    /// Bytes that a CPU takes at once, at the most.
    const BYTES: u64 = 8 << 20;

    /// All of these.
    pub const fn new(pieces: Pieces) -> Self {
        Self { pieces, next: AtomicU64::new(0), done: AtomicU64::new(0) }
    }

    /// Bytes of it all.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.1 - piece.0).sum()
    }

    const fn count_of(piece: &Range) -> u64 {
        (piece.1 - piece.0).div_ceil(Self::BYTES)
    }

    /// The next one, which nobody else gets.
    pub fn take(&self) -> Option<Range> {
        let mut n = self.next.fetch_add(1, Ordering::Relaxed);
        for piece in &self.pieces {
            let count = Self::count_of(piece);
            if n < count {
                let start = piece.0 + n * Self::BYTES;
                return Some((start, piece.1.min(start + Self::BYTES)));
            }
            n -= count;
        }
        None
    }

    /// One that was taken is done with.
    pub fn finish(&self) {
        self.done.fetch_add(1, Ordering::Release);
    }

    /// Whether all are.
    pub fn are_done(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.pieces.iter().map(Self::count_of).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BANKS: [Range; 2] = [(0x4000_0000, 0x4010_0000), (0x8000_0000, 0x8008_0000)];

    #[test]
    fn what_is_taken_is_left_out() {
        let all = |taken: &[Range]| without(&BANKS, taken).unwrap().to_vec();
        assert_eq!(all(&[]), BANKS);
        assert_eq!(all(&[(0, u64::MAX)]), []);
        // In part, at both ends, one in another, in no order; empty ones and what is outside.
        let taken = [
            (0x4000_8001, 0x4000_8002),
            (0x4000_4000, 0x4000_6000),
            (0x4000_4000, 0x4000_5000),
            (0x3fff_0000, 0x4000_0800),
            (0x4000_c000, 0x4000_c000),
            (0x8007_f000, 0x9000_0000),
            (0x1000, 0x2000),
        ];
        let left = [
            (0x4000_1000, 0x4000_4000),
            (0x4000_6000, 0x4000_8000),
            (0x4000_9000, 0x4010_0000),
            (0x8000_0000, 0x8007_f000),
        ];
        assert_eq!(all(&taken), left);
    }

    #[test]
    fn every_byte_is_handed_out_once() {
        let pieces = [(0x1000, 0x2000), (0x10_0000, 0x10_0000 + 3 * Chunks::BYTES + 0x1000)];
        let chunks = Chunks::new(pieces.into_iter().collect());
        let taken = std::thread::scope(|scope| {
            let work = || {
                let mut mine = Vec::new();
                while let Some(chunk) = chunks.take() {
                    mine.push(chunk);
                    assert!(!chunks.are_done());
                    chunks.finish();
                }
                mine
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            let mut all: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
            all.sort_unstable();
            all
        });
        assert!(chunks.are_done());
        assert_eq!(chunks.take(), None);
        assert_eq!(taken.len(), 5);
        assert_eq!(taken.iter().map(|c| c.1 - c.0).sum::<u64>(), chunks.bytes());
        assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
    }

    proptest! {
        /// A page is in a piece if and only if nobody has any of it.
        #[test]
        fn no_page_is_lost_and_none_is_stolen(
            taken in prop::collection::vec((0u64..0x180, 0u64..0x40), 0..40),
        ) {
            let bank = (0x4000_0000u64, 0x4001_0000u64);
            let taken: Vec<Range> = taken
                .into_iter()
                .map(|(start, length)| {
                    let start = bank.0 - 0x4000 + start * 0x100;
                    (start, start + length * 0x80)
                })
                .collect();
            let pieces = without(&[bank], &taken).unwrap();
            for page in (bank.0..bank.1).step_by(PAGE_SIZE) {
                let is_taken =
                    taken.iter().any(|t| t.0 < t.1 && t.0 < page + PAGE && page < t.1);
                let is_left = pieces.iter().any(|piece| (piece.0..piece.1).contains(&page));
                prop_assert_ne!(is_taken, is_left, "{:#x}", page);
            }
        }
    }
}
