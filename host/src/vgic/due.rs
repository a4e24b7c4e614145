//! The INTIDs that a vCPU's next flush has to look at.
//!
//! A hint that is never too short: whoever changes a word sets the bit afterwards, and whoever clears a bit looks at
//! the word afterwards ([`Due::remove_unless`]). So one of the two sees the other. With nothing in it a flush costs
//! one load.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

const WORDS: usize = 16;

/// A bit for each INTID below 1024, and one for each of their words.
#[derive(Debug)]
pub(super) struct Due {
    summary: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Due {
    pub(super) const fn new() -> Self {
        Self { summary: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; WORDS] }
    }

    pub(super) fn clear(&self) {
        self.summary.store(0, SeqCst);
        self.words.iter().for_each(|word| word.store(0, SeqCst));
    }

    pub(super) fn insert(&self, intid: u16) {
        let (word, bit) = Self::place(intid);
        self.words[word].fetch_or(bit, SeqCst);
        self.summary.fetch_or(1 << word, SeqCst);
    }

    /// Takes it out, unless it is wanted: that is asked when it is out.
    pub(super) fn remove_unless(&self, intid: u16, wanted: impl FnOnce() -> bool) {
        let (word, bit) = Self::place(intid);
        if self.words[word].fetch_and(!bit, SeqCst) == bit {
            self.summary.fetch_and(!(1 << word), SeqCst);
            if self.words[word].load(SeqCst) != 0 {
                self.summary.fetch_or(1 << word, SeqCst);
            }
        }
        if wanted() {
            self.insert(intid);
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.summary.load(SeqCst) == 0
    }

    /// What is in it, in order. What comes in meanwhile may be left out.
    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        bits(self.summary.load(SeqCst) & ((1 << WORDS) - 1)).flat_map(|word| {
            let set = self.words[usize::from(word)].load(SeqCst);
            bits(set).map(move |bit| word * 64 + bit)
        })
    }

    const fn place(intid: u16) -> (usize, u64) {
        (intid as usize / 64 % WORDS, 1 << (intid % 64))
    }
}

fn bits(mut set: u64) -> impl Iterator<Item = u16> {
    core::iter::from_fn(move || {
        let bit = u16::try_from(set.trailing_zeros()).ok().filter(|&bit| bit < 64)?;
        set &= set - 1;
        Some(bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order() {
        let due = Due::new();
        assert!(due.is_empty());
        for intid in [1019, 64, 0, 63, 500, 64] {
            due.insert(intid);
        }
        assert_eq!(due.iter().collect::<Vec<_>>(), [0, 63, 64, 500, 1019]);
        due.remove_unless(64, || false);
        due.remove_unless(500, || true);
        assert_eq!(due.iter().collect::<Vec<_>>(), [0, 63, 500, 1019]);
        for intid in [0, 63, 500, 1019] {
            assert!(!due.is_empty());
            due.remove_unless(intid, || false);
        }
        assert!(due.is_empty());
    }

    #[test]
    fn a_word_that_changes_behind_the_removal_is_looked_at() {
        let due = Due::new();
        due.insert(7);
        due.remove_unless(7, || {
            assert_eq!(due.iter().next(), None, "it is asked when the bit is gone");
            true
        });
        assert_eq!(due.iter().collect::<Vec<_>>(), [7]);
    }
}
