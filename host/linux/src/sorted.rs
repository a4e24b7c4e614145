//! What is found by its address, in the order of the addresses.

#![forbid(unsafe_code)]

use crate::abi::Errno;
use alloc::vec::Vec;

/// What has an address of its own.
pub trait Addressed {
    /// It.
    fn address(&self) -> u64;
}

/// Some of them, by their addresses.
#[derive(Debug)]
pub struct Sorted<T>(Vec<T>);

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Addressed> Sorted<T> {
    /// Makes room for so many more.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn reserve(&mut self, count: usize) -> Result<(), Errno> {
        self.0.try_reserve(count).map_err(|_| Errno::ENOMEM)
    }

    /// Adds some that lie one behind the other, with none of those that are there in between. Within what was reserved
    /// it allocates nothing: who can't say how many there are (`Vec::splice`) is collected elsewhere first, and that
    /// can't fail.
    pub fn insert(&mut self, them: impl Iterator<Item = T>) {
        let end = self.0.len();
        self.0.extend(them);
        let Some(first) = self.0.get(end).map(T::address) else { return };
        let at = self.0[..end].partition_point(|other| other.address() < first);
        let count = self.0.len() - end;
        self.0[at..].rotate_right(count);
    }

    /// The one at an address.
    pub fn get(&self, address: u64) -> Option<&T> {
        self.find(address).map(|at| &self.0[at])
    }

    /// Takes it out.
    pub fn remove(&mut self, address: u64) -> Option<T> {
        self.find(address).map(|at| self.0.remove(at))
    }

    /// Takes all of them out.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.0.drain(..)
    }

    fn find(&self, address: u64) -> Option<usize> {
        self.0.binary_search_by_key(&address, T::address).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    impl Addressed for u64 {
        fn address(&self) -> u64 {
            *self
        }
    }

    proptest! {
        #[test]
        fn they_are_a_set(runs in prop::collection::vec((0u64..64, 1u64..8, any::<bool>()), 0..40)) {
            let (mut sorted, mut model) = (Sorted::default(), BTreeSet::new());
            for (first, count, goes) in runs {
                let run = first * 8..first * 8 + count;
                if goes {
                    for n in run {
                        prop_assert_eq!(sorted.remove(n), model.take(&n));
                    }
                } else if model.range(first * 8..first * 8 + 8).next().is_none() {
                    sorted.reserve(count as usize).unwrap();
                    sorted.insert(run.clone());
                    model.extend(run);
                }
                prop_assert!((0..512).all(|n| sorted.get(n).is_some() == model.contains(&n)));
            }
            prop_assert!(sorted.drain().eq(model));
        }
    }
}
