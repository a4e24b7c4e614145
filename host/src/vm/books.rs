//! Which pages are out: runs of them, in the order of their addresses.

use super::{BuildError, PAGE};

/// A line of a VM's books: pages that lie one behind the other. The embedder gives as many as it likes, as
/// [`Line::FREE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    first: u64,
    count: u64,
}

impl Line {
    /// A line that nothing is on.
    pub const FREE: Self = Self { first: 0, count: 0 };

    const fn end(self) -> u64 {
        self.first + self.count * PAGE
    }
}

/// The books, in storage of the embedder's. Neighbours are one run, so that a guest whose memory is in few pieces needs
/// few lines, however it was given.
#[derive(Debug)]
pub(super) struct Books<B> {
    runs: B,
    used: usize,
}

impl<B: AsRef<[Line]> + AsMut<[Line]>> Books<B> {
    pub(super) const fn new(runs: B) -> Self {
        Self { runs, used: 0 }
    }

    /// Writes them into other storage, if they fit there; returns the storage that is not used, any more or at all.
    pub(super) fn move_to(&mut self, mut runs: B) -> Result<B, B> {
        let Some(room) = runs.as_mut().get_mut(..self.used) else { return Err(runs) };
        room.copy_from_slice(self.runs());
        Ok(core::mem::replace(&mut self.runs, runs))
    }

    fn runs(&self) -> &[Line] {
        &self.runs.as_ref()[..self.used]
    }

    /// Pages in all.
    pub(super) fn pages(&self) -> u64 {
        self.runs().iter().map(|run| run.count).sum()
    }

    /// The first run: its first page, and how many.
    pub(super) fn first(&self) -> Option<(u64, u64)> {
        self.runs().first().map(|run| (run.first, run.count))
    }

    /// Lines that can still be written.
    pub(super) fn left(&self) -> usize {
        self.runs.as_ref().len() - self.used
    }

    /// Whether another line can be written.
    pub(super) fn have_room(&self) -> bool {
        self.left() != 0
    }

    /// Enters pages. The last of them, or all, can be struck out again, whatever they have joined: there is a line for
    /// that.
    ///
    /// # Errors
    ///
    /// [`BuildError::NoRoom`]; [`BuildError::AlreadyOut`] if any of them is entered already, or they wrap around.
    /// Then nothing has changed.
    pub(super) fn enter(&mut self, first: u64, count: u64) -> Result<(), BuildError> {
        if count == 0 {
            return Ok(());
        }
        let bytes = count.checked_mul(PAGE);
        let end = bytes.and_then(|bytes| first.checked_add(bytes)).ok_or(BuildError::AlreadyOut)?;
        let at = self.runs().partition_point(|run| run.first < first);
        let before = at.checked_sub(1).map(|n| self.runs()[n]);
        let behind = self.runs().get(at).copied();
        if before.is_some_and(|run| run.end() > first) || behind.is_some_and(|run| run.first < end)
        {
            return Err(BuildError::AlreadyOut);
        }
        let joins_before = before.is_some_and(|run| run.end() == first);
        let joins_behind = behind.is_some_and(|run| run.first == end);
        match (joins_before, joins_behind) {
            (true, true) => {
                let more = count + self.runs()[at].count;
                self.runs.as_mut()[at - 1].count += more;
                self.remove(at);
            }
            (true, false) => self.runs.as_mut()[at - 1].count += count,
            // It would be two again.
            (false, true) if !self.have_room() => return Err(BuildError::NoRoom),
            (false, true) => {
                let run = &mut self.runs.as_mut()[at];
                *run = Line { first, count: run.count + count };
            }
            (false, false) => self.insert(at, Line { first, count })?,
        }
        Ok(())
    }

    /// Strikes pages out, all of which are entered one behind the other.
    ///
    /// # Errors
    ///
    /// [`BuildError::NotOut`] if they are not; [`BuildError::NoRoom`] if what is left on both sides of them takes a
    /// line more than there is. Then nothing has changed.
    pub(super) fn strike(&mut self, first: u64, count: u64) -> Result<(), BuildError> {
        let at = self.runs().partition_point(|run| run.end() <= first);
        let run = *self.runs().get(at).ok_or(BuildError::NotOut)?;
        let inside = first >= run.first && (first - run.first).is_multiple_of(PAGE);
        let before = if inside { (first - run.first) / PAGE } else { 0 };
        let after = (run.count - before).checked_sub(count).ok_or(BuildError::NotOut)?;
        if !inside || count == 0 {
            return Err(BuildError::NotOut);
        }
        let behind = Line { first: first + count * PAGE, count: after };
        match (before, after) {
            (0, 0) => self.remove(at),
            (0, _) => self.runs.as_mut()[at] = behind,
            (_, 0) => self.runs.as_mut()[at].count = before,
            (..) => {
                self.insert(at + 1, behind)?;
                self.runs.as_mut()[at].count = before;
            }
        }
        Ok(())
    }

    fn insert(&mut self, at: usize, run: Line) -> Result<(), BuildError> {
        if !self.have_room() {
            return Err(BuildError::NoRoom);
        }
        let runs = self.runs.as_mut();
        runs.copy_within(at..self.used, at + 1);
        runs[at] = run;
        self.used += 1;
        Ok(())
    }

    fn remove(&mut self, at: usize) {
        self.runs.as_mut().copy_within(at + 1..self.used, at);
        self.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn entered(books: &Books<Vec<Line>>) -> BTreeSet<u64> {
        let each = |run: &Line| (0..run.count).map(|n| run.first + n * PAGE).collect::<Vec<_>>();
        books.runs().iter().flat_map(each).collect()
    }

    fn runs_of(set: &BTreeSet<u64>) -> usize {
        set.iter().filter(|&&page| page < PAGE || !set.contains(&(page - PAGE))).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Thousands of scattered ranges: what is in the books is what was entered and not struck out, in as few
        /// lines as there are pieces; and a refusal, for whatever reason, changes nothing.
        #[test]
        fn books_are_a_set(
            lines in prop_oneof![Just(4096usize), 0usize..24],
            asks in prop::collection::vec((any::<bool>(), 0u64..20_000, 0u64..5), 0..6000),
        ) {
            let mut books = Books::new(vec![Line::FREE; lines]);
            let mut model = BTreeSet::new();
            for (enter, n, count) in asks {
                let first = n * PAGE;
                let pages: BTreeSet<u64> = (0..count).map(|n| first + n * PAGE).collect();
                let (result, after): (_, BTreeSet<u64>) = if enter {
                    (books.enter(first, count), &model | &pages)
                } else {
                    (books.strike(first, count), &model - &pages)
                };
                let wrong = if enter {
                    model.intersection(&pages).next().is_some()
                } else {
                    count == 0 || !pages.is_subset(&model)
                };
                match result {
                    Ok(()) => {
                        prop_assert!(!wrong);
                        if enter && count != 0 {
                            // Some are not taken.
                            let (last, left) = (first + (count - 1) * PAGE, 1);
                            prop_assert_eq!(books.strike(last, left), Ok(()));
                            prop_assert_eq!(books.enter(last, left), Ok(()));
                        }
                        model = after;
                    }
                    Err(BuildError::NoRoom) => {
                        // Full, and it would be more, or could become more when it is not taken.
                        let joins_behind = enter && model.contains(&(first + count * PAGE));
                        prop_assert!(!wrong && books.used == lines);
                        prop_assert!(runs_of(&after) > lines || joins_behind);
                    }
                    Err(error) => {
                        let expected =
                            if enter { BuildError::AlreadyOut } else { BuildError::NotOut };
                        prop_assert!(wrong && error == expected);
                    }
                }
            }
            prop_assert_eq!(books.used, runs_of(&model));
            prop_assert_eq!(books.pages(), model.len() as u64);
            prop_assert_eq!(books.first().map(|(first, _)| first), model.first().copied());
            prop_assert_eq!(entered(&books), model);
        }
    }

    #[test]
    fn books_move_to_where_they_fit() {
        let mut books = Books::new(vec![Line::FREE; 3]);
        for n in 0..3 {
            books.enter(n * 2 * PAGE, 1).unwrap();
        }
        assert_eq!((books.left(), books.enter(8 * PAGE, 1)), (0, Err(BuildError::NoRoom)));
        let before = entered(&books);
        assert_eq!(books.move_to(vec![Line::FREE; 2]).map_err(|lines| lines.len()), Err(2));
        assert_eq!(entered(&books), before, "they don't fit");
        assert_eq!(books.move_to(vec![Line { first: 7, count: 7 }; 5]).map(|old| old.len()), Ok(3));
        assert_eq!((entered(&books), books.left()), (before, 2), "whatever was there");
        assert_eq!(books.enter(8 * PAGE, 1), Ok(()));
        assert_eq!(books.move_to(vec![Line::FREE; 4]).map(|old| old.len()), Ok(5), "they just fit");
        assert_eq!(books.pages(), 4);
    }

    #[test]
    fn what_wraps_around_is_refused() {
        let mut books = Books::new(vec![Line::FREE; 4]);
        assert_eq!(books.enter(0x1000, u64::MAX), Err(BuildError::AlreadyOut));
        assert_eq!(books.enter(u64::MAX - 0xfff, 2), Err(BuildError::AlreadyOut));
        assert_eq!(books.enter(0x1000, 2), Ok(()));
        assert_eq!(books.strike(0x1000, u64::MAX), Err(BuildError::NotOut));
        assert_eq!(books.strike(0x1008, 1), Err(BuildError::NotOut));
        assert_eq!(books.pages(), 2);
    }
}
