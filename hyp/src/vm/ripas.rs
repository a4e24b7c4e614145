//! What a guest has said is RAM: ranges of its addresses, in order, apart from each other.
//!
//! A few ranges and no marks in its stage 2: a Linux says so of all its memory when it boots, most of which has not come
//! yet, and that is one range. It only grows. What becomes EMPTY of it is shared at its alias, and its own address has a
//! mark of its own ([`There::Aliased`](super::hardware::There)).

#![forbid(unsafe_code)]

use arrayvec::ArrayVec;
use core::ops::Range;
use umbra_shared::rsi::RAM_RANGES;

/// Ranges of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ram(ArrayVec<Range<u64>, RAM_RANGES>);

impl Ram {
    /// None.
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// None any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// As far as it is RAM from an address on. `None`: it is not.
    pub fn until(&self, address: u64) -> Option<u64> {
        self.0.iter().find(|range| range.contains(&address)).map(|range| range.end)
    }

    /// Where RAM begins above an address that is none.
    pub fn next(&self, address: u64) -> Option<u64> {
        self.0.iter().map(|range| range.start).find(|&start| start > address)
    }

    /// This is RAM from now on. False if that takes a range too many: then nothing has changed.
    #[must_use]
    pub fn add(&mut self, new: Range<u64>) -> bool {
        // Those that it touches are one with it.
        let first = self.0.iter().position(|range| range.end >= new.start).unwrap_or(self.0.len());
        let behind = self.0.iter().skip(first).position(|range| range.start > new.end);
        let touched = first..behind.map_or(self.0.len(), |count| first + count);
        let Some((start, end)) = self.0.get(touched.clone()).and_then(|ranges| {
            Some((ranges.first()?.start.min(new.start), ranges.last()?.end.max(new.end)))
        }) else {
            return self.0.try_insert(first, new).is_ok();
        };
        self.0.drain(touched);
        self.0.insert(first, start..end);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_added_is_there_and_nothing_else(
            ranges in proptest::collection::vec((0..120u64, 1..12u64), 0..60),
        ) {
            let mut ram = Ram::new();
            let mut is = [false; 140];
            for (start, count) in ranges {
                let before = ram.clone();
                if ram.add(start..start + count) {
                    is[start as usize..(start + count) as usize].fill(true);
                } else {
                    prop_assert_eq!(&before, &ram);
                    prop_assert_eq!(ram.0.len(), RAM_RANGES);
                    let touches = |at: u64| is[at as usize];
                    prop_assert!(!(start.saturating_sub(1)..=start + count).any(touches));
                }
                for at in 0..139u64 {
                    let end = (at..140).find(|&n| !is[n as usize]).filter(|&end| end != at);
                    prop_assert_eq!(ram.until(at), end);
                    if end.is_none() {
                        prop_assert_eq!(ram.next(at), (at..140).find(|&n| is[n as usize]));
                    }
                }
            }
        }
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let mut ram = Ram::new();
        for n in 0..RAM_RANGES as u64 {
            assert!(ram.add(10 * n..10 * n + 5));
        }
        let full = ram.clone();
        assert!(!ram.add(1000..1001) && ram == full);
        // What touches others takes no range more.
        assert!(ram.add(5..10));
        assert!(ram.add(1000..1001));
        assert_eq!((ram.until(0), ram.until(1000)), (Some(15), Some(1001)));
        assert!(ram.add(0..2000));
        assert_eq!(ram.0.as_slice(), std::slice::from_ref(&(0..2000)));
        ram.clear();
        assert_eq!(ram.until(0), None);
    }
}
