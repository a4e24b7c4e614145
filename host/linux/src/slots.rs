//! Memory slots: which memory a guest has where, and which pages of it are in place (KVM_SET_USER_MEMORY_REGION and
//! KVM_SET_USER_MEMORY_REGION2; KVM's api.rst, 4.35 and 4.140).

#![forbid(unsafe_code)]

use crate::abi::{Errno, MemoryRegion};
use alloc::vec::Vec;
use umbra_shared::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;
/// As many as KVM has on arm64, for those who count on it.
pub const MAX_SLOTS: u32 = 512;
/// Where user addresses end, with the largest that Linux gives its processes (52 bits).
const USER_END: u64 = 1 << 52;

/// A slot, whose memory is user memory or, of a memory file `F`, pages that nobody else has.
#[derive(Debug)]
pub struct Slot<F> {
    id: u32,
    /// Guest-physical.
    first: u64,
    pages: u64,
    /// The user address.
    user: u64,
    /// The file, and which of its pages is the slot's first.
    file: Option<(F, u64)>,
    /// A bit for each page that the guest has.
    present: Vec<u64>,
}

/// What a page of a slot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<F> {
    /// Guest-physical address of the page.
    pub ipa: u64,
    /// The user address of the page.
    pub user: u64,
    /// The file, and which of its pages it is.
    pub file: Option<(F, u64)>,
    /// Pages of the slot that lie before it, and from it on.
    pub before: u64,
    /// From it on, itself counted.
    pub from: u64,
    /// The guest has it.
    pub present: bool,
}

impl<F> Place<F> {
    /// Where the page is in its block of so many bytes, in bytes. `None`: not all of that is in the slot.
    pub const fn in_block(&self, bytes: u64) -> Option<u64> {
        let inside = self.ipa % bytes;
        let fits = self.before >= inside / PAGE && self.from >= (bytes - inside) / PAGE;
        if fits { Some(inside) } else { None }
    }
}

/// What becomes of a slot.
#[derive(Debug)]
pub enum Change<F> {
    /// It is there now.
    Made,
    /// It is gone: what is present of it is to be taken from the guest.
    Gone(Slot<F>),
    /// It is somewhere else, and nothing of it is there yet: what was present of it is to be taken from where it was.
    Moved(Slot<F>),
    /// As it was.
    None,
}

impl<F> Slot<F> {
    /// Its first guest-physical address.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// How many pages it has.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Where its user has it.
    pub const fn user(&self) -> u64 {
        self.user
    }

    /// Its file, and which of that's pages is its first.
    pub const fn file(&self) -> Option<&(F, u64)> {
        self.file.as_ref()
    }

    /// The pages that the guest has: runs of an address and a count.
    pub fn present(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut n = 0;
        core::iter::from_fn(move || {
            while n < self.pages && !self.has(n) {
                // 64 at a time, where none of them is there.
                let none = n.is_multiple_of(64) && self.present[(n / 64) as usize] == 0;
                n += if none { 64 } else { 1 };
            }
            // The last word may end before its 64.
            n = n.min(self.pages);
            let first = n;
            while n < self.pages && self.has(n) {
                n += 1;
            }
            (n > first).then_some((self.first + first * PAGE, n - first))
        })
    }

    fn has(&self, page: u64) -> bool {
        self.present[(page / 64) as usize] >> (page % 64) & 1 != 0
    }

    fn end(&self) -> u64 {
        self.first + self.pages * PAGE
    }
}

/// The slots of a VM.
#[derive(Debug)]
pub struct Slots<F> {
    slots: Vec<Slot<F>>,
    /// Counts changes, so that who has looked and then slept knows whether what he saw still holds.
    generation: u64,
}

impl<F> Default for Slots<F> {
    fn default() -> Self {
        Self { slots: Vec::new(), generation: 0 }
    }
}

impl<F: Clone> Slots<F> {
    /// Counts changes.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// KVM_SET_USER_MEMORY_REGION, or of KVM_SET_USER_MEMORY_REGION2 what both have, and the file, if there is one, with the
    /// number of the first page there. `ipa_end`: where guest-physical addresses end.
    ///
    /// # Errors
    ///
    /// EINVAL for what is not in pages, wraps around, has flags, or changes a slot's size or its user memory, or any of a file's
    /// but to delete it; EFAULT beyond `ipa_end`, EEXIST for what lies over another slot, ENOMEM.
    pub fn set(
        &mut self,
        region: MemoryRegion,
        file: Option<(F, u64)>,
        ipa_end: u64,
    ) -> Result<Change<F>, Errno> {
        let MemoryRegion {
            slot: id,
            flags,
            guest_phys_addr: first,
            memory_size,
            userspace_addr: user,
        } = region;
        let whole = |address: u64| address.is_multiple_of(PAGE);
        // Neither a log of dirty pages nor memory that can't be written.
        if id >= MAX_SLOTS || flags != 0 || ![first, memory_size, user].into_iter().all(whole) {
            return Err(Errno::EINVAL);
        }
        let end = first.checked_add(memory_size).ok_or(Errno::EINVAL)?;
        // As KVM: a tag belongs to a pointer, and is nothing that memory is found by.
        user.checked_add(memory_size).filter(|&end| end <= USER_END).ok_or(Errno::EINVAL)?;
        let old = self.slots.iter().position(|slot| slot.id == id);
        if memory_size == 0 {
            // As KVM: there must be something to delete.
            let old = old.ok_or(Errno::EINVAL)?;
            self.generation += 1;
            return Ok(Change::Gone(self.slots.swap_remove(old)));
        }
        if let Some(old) = old {
            let slot = &self.slots[old];
            let has_file = slot.file.is_some() || file.is_some();
            if has_file || (slot.pages * PAGE, slot.user) != (memory_size, user) {
                return Err(Errno::EINVAL);
            }
            if slot.first == first {
                return Ok(Change::None);
            }
        }
        if end > ipa_end {
            return Err(Errno::EFAULT);
        }
        let mut others = self.slots.iter().filter(|slot| slot.id != id);
        if others.any(|slot| first < slot.end() && slot.first < end) {
            return Err(Errno::EEXIST);
        }
        let pages = memory_size / PAGE;
        let words = pages.div_ceil(64) as usize;
        let mut present = Vec::new();
        present.try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
        present.resize(words, 0);
        let new = Slot { id, first, pages, user, file, present };
        if let Some(old) = old {
            self.generation += 1;
            return Ok(Change::Moved(core::mem::replace(&mut self.slots[old], new)));
        }
        self.slots.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.slots.push(new);
        self.generation += 1;
        Ok(Change::Made)
    }

    /// All of them, in the order of their addresses.
    pub fn in_order(&self) -> Result<Vec<&Slot<F>>, Errno> {
        let mut all = Vec::new();
        all.try_reserve_exact(self.slots.len()).map_err(|_| Errno::ENOMEM)?;
        all.extend(&self.slots);
        all.sort_unstable_by_key(|slot| slot.first);
        Ok(all)
    }

    /// The files of all.
    pub fn files(&self) -> impl Iterator<Item = &F> {
        self.slots.iter().filter_map(|slot| slot.file.as_ref()).map(|(file, _)| file)
    }

    /// How many pages of a slot the guest has.
    pub fn present_of(&self, id: u32) -> u64 {
        let slot = self.slots.iter().find(|slot| slot.id == id);
        slot.map_or(0, |slot| slot.present.iter().map(|word| u64::from(word.count_ones())).sum())
    }

    /// Takes a slot back that is not gone or moved after all, without the pages that are.
    pub fn restore(&mut self, mut slot: Slot<F>, gone: u64) {
        for page in 0..gone / PAGE {
            slot.present[(page / 64) as usize] &= !(1 << (page % 64));
        }
        self.generation += 1;
        self.slots.retain(|moved| moved.id != slot.id);
        // There is room: it was there.
        self.slots.push(slot);
    }

    /// A guest-physical address that is in a slot.
    pub fn find(&self, address: u64) -> Option<Place<F>> {
        let slot = self.slot(address)?;
        let page = (address - slot.first) / PAGE;
        Some(Place {
            ipa: slot.first + page * PAGE,
            user: slot.user + page * PAGE,
            file: slot.file.as_ref().map(|(file, first)| (file.clone(), first + page)),
            before: page,
            from: slot.pages - page,
            present: slot.has(page),
        })
    }

    /// The guest has pages now, or no longer, which are all in one slot.
    pub fn set_present(&mut self, ipa: u64, count: u64, present: bool) {
        let Some(slot) = self.slots.iter_mut().find(|slot| (slot.first..slot.end()).contains(&ipa))
        else {
            return;
        };
        let page = (ipa - slot.first) / PAGE;
        for n in (page..page + count).take_while(|&n| n < slot.pages) {
            let bit = 1 << (n % 64);
            let word = &mut slot.present[(n / 64) as usize];
            *word = if present { *word | bit } else { *word & !bit };
        }
    }

    /// Whether the guest has none of these pages, which are all in one slot.
    pub fn has_none(&self, ipa: u64, count: u64) -> bool {
        let Some(slot) = self.slot(ipa) else { return false };
        let page = (ipa - slot.first) / PAGE;
        page + count <= slot.pages && (page..page + count).all(|n| !slot.has(n))
    }

    fn slot(&self, address: u64) -> Option<&Slot<F>> {
        self.slots.iter().find(|slot| (slot.first..slot.end()).contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const END: u64 = 1 << 40;

    fn region(slot: u32, first: u64, pages: u64, user: u64) -> MemoryRegion {
        MemoryRegion {
            slot,
            flags: 0,
            guest_phys_addr: first,
            memory_size: pages * PAGE,
            userspace_addr: user,
        }
    }

    #[test]
    fn what_kvm_refuses_is_refused() {
        let mut slots = Slots::<u32>::default();
        let mut set = |region| slots.set(region, None, END).map(drop);
        assert_eq!(set(region(0, 0x8000_0000, 16, 0x1000)), Ok(()));
        for (what, bad, error) in [
            ("over it", region(1, 0x8000_f000, 1, 0), Errno::EEXIST),
            ("around it", region(1, 0x7fff_f000, 32, 0), Errno::EEXIST),
            ("another size", region(0, 0x8000_0000, 15, 0x1000), Errno::EINVAL),
            ("other memory", region(0, 0x8000_0000, 16, 0x2000), Errno::EINVAL),
            ("moved beyond the end", region(0, END - PAGE, 16, 0x1000), Errno::EFAULT),
            ("no slot", region(MAX_SLOTS, 0, 1, 0), Errno::EINVAL),
            ("no page", region(1, 0x100, 1, 0), Errno::EINVAL),
            ("no user page", region(1, 0, 1, 0x100), Errno::EINVAL),
            ("around the end", region(1, !0xfff, 2, 0), Errno::EINVAL),
            ("around the user's end", region(1, 0, 2, !0xfff), Errno::EINVAL),
            ("a kernel's", region(1, 0, 1, 0xffff_0000_0000_0000), Errno::EINVAL),
            ("with a tag", region(1, 0, 1, 0x5a00_0000_0000_1000), Errno::EINVAL),
            ("beyond the end", region(1, END - PAGE, 2, 0), Errno::EFAULT),
            ("nothing to delete", region(1, 0, 0, 0), Errno::EINVAL),
            ("flags", MemoryRegion { flags: 1, ..region(1, 0, 1, 0) }, Errno::EINVAL),
            ("half a page", MemoryRegion { memory_size: 100, ..region(1, 0, 1, 0) }, Errno::EINVAL),
        ] {
            assert_eq!(set(bad), Err(error), "{what}");
        }
        assert_eq!(set(region(0, 0x8000_0000, 16, 0x1000)), Ok(()), "the same again");
        assert_eq!(set(region(1, 0x9000_0000, 16, 0x10_0000)), Ok(()));
        let over = region(0, 0x8fff_1000, 16, 0x1000);
        assert_eq!(set(over), Err(Errno::EEXIST), "moved over another one");
        assert_eq!(set(region(0, 0x8000_1000, 16, 0x1000)), Ok(()), "moved over itself");
    }

    #[test]
    fn a_files_slot_is_made_and_deleted() {
        let mut slots = Slots::default();
        let first = region(0, 0x8000_0000, 16, 0x1000);
        assert!(matches!(slots.set(first, Some((7_u32, 100)), END), Ok(Change::Made)));
        let place = slots.find(0x8000_3008).unwrap();
        assert_eq!((place.file, place.ipa), (Some((7, 103)), 0x8000_3000));
        for (what, again, file) in [
            ("the same again", first, Some((7, 100))),
            ("another file", first, Some((8, 100))),
            ("no file", first, None),
            ("somewhere else", region(0, 0x9000_0000, 16, 0x1000), Some((7, 100))),
        ] {
            assert_eq!(slots.set(again, file, END).map(drop), Err(Errno::EINVAL), "{what}");
        }
        let plain = region(1, 0x7000_0000, 1, 0);
        assert!(matches!(slots.set(plain, None, END), Ok(Change::Made)));
        assert_eq!(slots.set(plain, Some((7, 0)), END).map(drop), Err(Errno::EINVAL), "a file now");
        let order = slots.in_order().unwrap();
        let order: Vec<_> = order.iter().map(|slot| (slot.first(), slot.file().copied())).collect();
        assert_eq!(order, [(0x7000_0000, None), (0x8000_0000, Some((7, 100)))]);
        slots.set_present(0x8000_5000, 1, true);
        assert!(slots.has_none(0x8000_0000, 5) && slots.has_none(0x8000_6000, 10));
        assert!(!slots.has_none(0x8000_0000, 6) && !slots.has_none(0x8000_6000, 11));
        let gone = slots.set(region(0, 0, 0, 0), None, END);
        assert!(matches!(gone, Ok(Change::Gone(slot)) if slot.file() == Some(&(7, 100))));
    }

    #[test]
    fn a_slot_that_did_not_move_is_where_it_was() {
        let mut slots = Slots::<u32>::default();
        slots.set(region(0, 0x8000_0000, 130, 0x1000), None, END).unwrap();
        slots.set_present(0x8000_0000, 130, true);
        let Ok(Change::Moved(old)) = slots.set(region(0, 0x9000_0000, 130, 0x1000), None, END)
        else {
            panic!("it moves");
        };
        assert_eq!(slots.find(0x8000_0000), None);
        assert_eq!(slots.find(0x9000_0000).map(|place| place.present), Some(false));
        assert_eq!(old.present().collect::<Vec<_>>(), [(0x8000_0000, 130)]);
        // 65 pages could be taken from where it was.
        slots.restore(old, 65 * PAGE);
        assert_eq!(slots.find(0x9000_0000), None);
        let present = |n| slots.find(0x8000_0000 + n * PAGE).map(|place| place.present);
        assert_eq!((present(64), present(65)), (Some(false), Some(true)));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u32, u64, u64),
        Present(u64, u64, bool),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u32..4, 0u64..64, 0u64..24).prop_map(|(slot, at, pages)| Op::Set(slot, at, pages)),
            (0u64..96, 1u64..8, any::<bool>()).prop_map(|(at, n, up)| Op::Present(at, n, up)),
        ]
    }

    proptest! {
        #[test]
        fn they_are_what_a_map_of_pages_is(ops in prop::collection::vec(op(), 1..60)) {
            let mut slots = Slots::<u32>::default();
            let mut model: HashMap<u64, (u32, u64, bool)> = HashMap::new();
            for op in ops {
                match op {
                    Op::Set(id, at, pages) => {
                        let user = 0x1_0000_0000 * u64::from(id + 1);
                        let generation = slots.generation();
                        let change = slots.set(region(id, at * PAGE, pages, user), None, 80 * PAGE);
                        match change {
                            Ok(Change::Made) => for n in 0..pages {
                                prop_assert!(model.insert(at + n, (id, user + n * PAGE, false)).is_none());
                            },
                            Ok(Change::Gone(slot) | Change::Moved(slot)) => {
                                let has: Vec<u64> = slot.present()
                                    .flat_map(|(ipa, count)| (0..count).map(move |n| ipa / PAGE + n))
                                    .collect();
                                let mut expected: Vec<u64> = model.iter()
                                    .filter(|(_, page)| page.0 == id && page.2)
                                    .map(|(&page, _)| page).collect();
                                expected.sort_unstable();
                                prop_assert_eq!(has, expected);
                                model.retain(|_, page| page.0 != id);
                                model.extend((0..pages).map(|n| (at + n, (id, user + n * PAGE, false))));
                            }
                            Ok(Change::None) | Err(_) => prop_assert_eq!(generation, slots.generation()),
                        }
                    }
                    Op::Present(at, count, up) => {
                        slots.set_present(at * PAGE, count, up);
                        if let Some(&(id, ..)) = model.get(&at) {
                            for n in at..at + count {
                                if let Some(page) = model.get_mut(&n).filter(|page| page.0 == id) {
                                    page.2 = up;
                                } else {
                                    break;
                                }
                            }
                        }
                    }
                }
                for n in 0..100 {
                    let found = slots.find(n * PAGE + 5);
                    let expected = model.get(&n).copied();
                    prop_assert_eq!(found.as_ref().map(|place| (place.ipa, place.user, place.present)),
                        expected.map(|(_, user, present)| (n * PAGE, user, present)));
                    if let (Some(place), Some((id, ..))) = (found, expected) {
                        let same = |n: u64| model.get(&n).is_some_and(|page| page.0 == id);
                        prop_assert!((n - place.before..n + place.from).all(same));
                        prop_assert!(!same(n + place.from));
                        let block = n - n % 8..n - n % 8 + 8;
                        let inside = block.clone().all(same).then(|| (n - block.start) * PAGE);
                        prop_assert_eq!(place.in_block(8 * PAGE), inside);
                    }
                }
            }
        }
    }
}
