//! Ranges of addresses as a set.

#![forbid(unsafe_code)]

use arrayvec::ArrayVec;

/// A range of physical addresses, start inclusive, end exclusive.
pub type Range = (u64, u64);

/// More pieces than the set can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A set of addresses, of at most `N` pieces: in order, apart, none empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet<const N: usize>(ArrayVec<Range, N>);

impl<const N: usize> RangeSet<N> {
    /// Nothing.
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Adds a range; what touches becomes one.
    ///
    /// # Errors
    ///
    /// [`Full`]; then all of the set but what the range touches is as it was.
    pub fn insert(&mut self, mut new: Range) -> Result<(), Full> {
        if new.0 >= new.1 {
            return Ok(());
        }
        self.0.retain(|&mut old| {
            let touches = old.0 <= new.1 && new.0 <= old.1;
            if touches {
                new = (new.0.min(old.0), new.1.max(old.1));
            }
            !touches
        });
        let at = self.0.partition_point(|old| old.0 < new.0);
        self.0.try_insert(at, new).map_err(|_| Full)
    }

    /// Takes a range out.
    ///
    /// # Errors
    ///
    /// [`Full`], if a piece would become two that there is no room for; then nothing has changed.
    pub fn remove(&mut self, gone: Range) -> Result<(), Full> {
        if gone.0 >= gone.1 {
            return Ok(());
        }
        let first = self.0.partition_point(|old| old.1 <= gone.0);
        let Some(old) = self.0.get(first).copied() else { return Ok(()) };
        if old.0 < gone.0 && gone.1 < old.1 {
            self.0.try_insert(first + 1, (gone.1, old.1)).map_err(|_| Full)?;
            self.0[first].1 = gone.0;
            return Ok(());
        }
        for piece in &mut self.0[first..] {
            if piece.0 < gone.0 {
                piece.1 = piece.1.min(gone.0);
            } else {
                piece.0 = piece.0.max(gone.1.min(piece.1));
            }
        }
        self.0.retain(|piece| piece.0 < piece.1);
        Ok(())
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> &[Range] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut set = RangeSet::<2>::new();
        assert_eq!([(0, 10), (20, 30), (10, 12)].map(|range| set.insert(range)), [Ok(()); 3]);
        assert_eq!(set.insert((40, 50)), Err(Full));
        assert_eq!(set.remove((3, 4)), Err(Full));
        assert_eq!(set.pieces(), [(0, 12), (20, 30)]);
        assert_eq!(set.insert((12, 20)), Ok(()));
        assert_eq!(set.remove((3, 4)), Ok(()));
        assert_eq!(set.pieces(), [(0, 3), (4, 30)]);
    }

    proptest! {
        /// It is a set.
        #[test]
        fn it_holds_what_was_put_in_and_not_taken_out(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..12), 0..24),
        ) {
            let mut set = RangeSet::<32>::new();
            let mut model = [false; 80];
            for (add, start, length) in steps {
                let range = (start, start + length);
                let done = if add { set.insert(range) } else { set.remove(range) };
                prop_assert_eq!(done, Ok(()));
                model[start as usize..(start + length) as usize].fill(add);
            }
            for (at, &is) in model.iter().enumerate() {
                let holds = set.pieces().iter().any(|p| (p.0..p.1).contains(&(at as u64)));
                prop_assert_eq!(holds, is, "{}", at);
            }
            prop_assert!(set.pieces().iter().all(|piece| piece.0 < piece.1));
            prop_assert!(set.pieces().windows(2).all(|pair| pair[0].1 <= pair[1].0));
        }
    }
}
