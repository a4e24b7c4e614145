//! Interrupt translation tables: hyp's, whatever the host has set aside for them. Where there is room for one, and
//! which device has which.
//!
//! In the same room, from its end, are pages of the table of devices, as many as are needed. What lies in an ITT is what a
//! host has asked for, as far as an ITS's format of it goes; in a page of the table of devices it would be an ITT's
//! address. So what was an ITT's once is never such a page, whatever an ITS may have kept of it, nor the other way round.

#![forbid(unsafe_code)]

/// Bytes of a chunk: what an ITT is aligned to (IHI 0069, MAPD).
pub const CHUNK: u64 = 256;

/// Chunks at most.
const CHUNKS: usize = 4096;

/// Bytes that [`Room`] can be of.
pub const MAX_BYTES: u64 = CHUNKS as u64 * CHUNK;

/// Memory, in chunks. What takes longest is a look at each of them.
#[derive(Debug)]
pub struct Room {
    start: u64,
    /// Those of ITTs that are taken.
    taken: [u64; CHUNKS / 64],
    /// Behind the last chunk that was ever an ITT's.
    itts_end: usize,
    /// The first that is a page's; so are all behind it.
    pages_start: usize,
    /// Behind the last.
    chunks: usize,
}

impl Room {
    /// `bytes` from `start` (aligned to a chunk), none of it taken. What is more than [`MAX_BYTES`] is not used.
    pub const fn new(start: u64, bytes: u64) -> Self {
        let chunks = bytes / CHUNK;
        let chunks = if chunks > CHUNKS as u64 { CHUNKS } else { chunks as usize };
        Self { start, taken: [0; CHUNKS / 64], itts_end: 0, pages_start: chunks, chunks }
    }

    const fn is_taken(&self, n: usize) -> bool {
        self.taken[n / 64] >> (n % 64) & 1 == 1
    }

    fn mark(&mut self, first: usize, count: usize, taken: bool) {
        for n in first..first + count {
            let bit = 1 << (n % 64);
            if taken {
                self.taken[n / 64] |= bit;
            } else {
                self.taken[n / 64] &= !bit;
            }
        }
    }

    fn count(bytes: u64) -> usize {
        usize::try_from(bytes.div_ceil(CHUNK)).unwrap_or(usize::MAX)
    }

    /// Takes `bytes` for an ITT. Returns the address, aligned to a chunk.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let count = Self::count(bytes);
        let mut first = 0;
        loop {
            if count > self.pages_start || first > self.pages_start - count {
                return None;
            }
            // On behind the last that is in the way.
            match (first..first + count).rev().find(|&n| self.is_taken(n)) {
                Some(n) => first = n + 1,
                None => break,
            }
        }
        self.mark(first, count, true);
        self.itts_end = self.itts_end.max(first + count);
        Some(self.start + first as u64 * CHUNK)
    }

    /// Gives back what [`Self::take`] returned for `bytes`.
    pub fn give_back(&mut self, start: u64, bytes: u64) {
        let first = ((start - self.start) / CHUNK) as usize;
        self.mark(first, Self::count(bytes), false);
    }

    /// Takes a page of the table of devices, for good. Its `bytes` (a power of two, at least a chunk) are its alignment,
    /// too. Returns the address.
    pub fn take_page(&mut self, bytes: u64) -> Option<u64> {
        let end = self.start + self.pages_start as u64 * CHUNK;
        let at = end.checked_sub(bytes)? & !(bytes - 1);
        if at < self.start + self.itts_end as u64 * CHUNK {
            return None;
        }
        self.pages_start = ((at - self.start) / CHUNK) as usize;
        Some(at)
    }

    /// Where the pages are, and how many bytes.
    pub const fn pages(&self) -> (u64, u64) {
        let start = self.start + self.pages_start as u64 * CHUNK;
        (start, (self.chunks - self.pages_start) as u64 * CHUNK)
    }

    /// All ITTs are given back.
    pub const fn clear(&mut self) {
        self.taken = [0; CHUNKS / 64];
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        let itts = self.taken.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        itts * CHUNK + self.pages().1
    }
}

/// A device and its ITT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its DeviceID.
    pub id: u32,
    /// Bits of its events' numbers.
    pub bits: u32,
    /// The ITT's address.
    pub itt: u64,
    /// The ITT's bytes.
    pub bytes: u64,
}

/// Devices that are mapped, in the order of their numbers.
#[derive(Debug)]
pub struct Devices<'a> {
    all: &'a mut [Device],
    count: usize,
}

impl<'a> Devices<'a> {
    /// None. As many as `all` has places.
    pub const fn new(all: &'a mut [Device]) -> Self {
        Self { all, count: 0 }
    }

    fn place(&self, id: u32) -> Result<usize, usize> {
        self.all[..self.count].binary_search_by_key(&id, |device| device.id)
    }

    /// The device with this number.
    pub fn get(&self, id: u32) -> Option<Device> {
        self.place(id).ok().map(|n| self.all[n])
    }

    /// Whether there is a place for this one.
    pub fn has_place_for(&self, id: u32) -> bool {
        self.count < self.all.len() || self.place(id).is_ok()
    }

    /// Puts it in, in the place of the one with its number if there is one. Without a place nothing happens.
    pub fn put(&mut self, device: Device) {
        match self.place(device.id) {
            Ok(n) => self.all[n] = device,
            Err(n) if self.count < self.all.len() => {
                self.all.copy_within(n..self.count, n + 1);
                self.all[n] = device;
                self.count += 1;
            }
            Err(_) => {}
        }
    }

    /// Takes it out.
    pub fn remove(&mut self, id: u32) -> Option<Device> {
        let n = self.place(id).ok()?;
        let device = self.all[n];
        self.all.copy_within(n + 1..self.count, n);
        self.count -= 1;
        Some(device)
    }

    /// Forgets all of them.
    pub const fn clear(&mut self) {
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn room_is_given_out_once_and_aligned() {
        let mut room = Room::new(0x4000_1100, 0x3100);
        assert_eq!(room.take(1), Some(0x4000_1100));
        assert_eq!(room.take_page(0x1000), Some(0x4000_3000));
        assert_eq!(room.take(0x300), Some(0x4000_1200));
        assert_eq!(room.take(0x1b01), None);
        assert_eq!(room.take(0xb01), Some(0x4000_1500));
        assert_eq!(room.take_page(0x1000), None, "what is left is not a whole one");
        assert_eq!(room.take(u64::MAX), None);
        assert_eq!(room.take_page(1 << 63), None);
        // What lies behind a page counts as the page's.
        assert_eq!(
            (room.used(), room.pages()),
            (0x100 + 0x300 + 0xc00 + 0x1200, (0x4000_3000, 0x1200))
        );
        room.give_back(0x4000_1200, 0x300);
        assert_eq!(room.take(0x200), Some(0x4000_1200));
        room.clear();
        assert_eq!(room.used(), 0x1200, "pages stay");
        assert_eq!(room.take_page(0x1000), None, "what was an ITT's is no page's");
        assert_eq!(room.take(0x1f00), Some(0x4000_1100));
        assert_eq!(Room::new(0, u64::MAX).take(MAX_BYTES + 1), None);
    }

    proptest! {
        #[test]
        fn r38_attack_an_itt_where_a_page_of_devices_was(
            steps in prop::collection::vec((1u64..0x1200, 0u32..9, 0usize..20), 0..200),
        ) {
            let (start, end) = (0x1_0300, 0x1_9100);
            let mut room = Room::new(start, end - start);
            let mut held: Vec<(u64, u64)> = Vec::new();
            let (mut itts, mut pages) = (Vec::new(), Vec::new());
            for (bytes, what, victim) in steps {
                let page = 0x800 << what;
                let (found, bytes) = match what {
                    0..3 => (room.take_page(page), page),
                    8 => {
                        room.clear();
                        held.clear();
                        continue;
                    }
                    _ => (room.take(bytes), bytes),
                };
                if let Some(at) = found {
                    let align = if what < 3 { page } else { CHUNK };
                    prop_assert!(at % align == 0 && at >= start && at + bytes <= end);
                    let apart = |&(other, length): &(u64, u64)| at + bytes <= other || other + length <= at;
                    prop_assert!(held.iter().all(apart) && pages.iter().all(apart));
                    if what < 3 {
                        prop_assert!(itts.iter().all(apart), "not even one that is gone");
                        pages.push((at, bytes));
                        prop_assert!(room.pages().0 <= at && room.pages().0 + room.pages().1 >= at + bytes);
                    } else {
                        itts.push((at, bytes));
                        held.push((at, bytes));
                    }
                } else if victim < held.len() {
                    let (at, bytes) = held.swap_remove(victim);
                    room.give_back(at, bytes);
                }
            }
            let sum = held.iter().map(|(_, bytes)| bytes.next_multiple_of(CHUNK)).sum::<u64>();
            prop_assert_eq!(room.used(), sum + room.pages().1);
        }

        #[test]
        fn devices_are_found_as_in_a_map(steps in prop::collection::vec((0u32..40, any::<bool>()), 0..300)) {
            let mut places = [Device::default(); 16];
            let mut devices = Devices::new(&mut places);
            let mut map = std::collections::BTreeMap::new();
            for (n, (id, put)) in steps.into_iter().enumerate() {
                let device = Device { id, itt: n as u64, ..Device::default() };
                if put {
                    let fits = map.len() < 16 || map.contains_key(&id);
                    prop_assert_eq!(devices.has_place_for(id), fits);
                    devices.put(device);
                    if fits {
                        map.insert(id, device);
                    }
                } else {
                    prop_assert_eq!(devices.remove(id), map.remove(&id));
                }
                for id in 0..40 {
                    prop_assert_eq!(devices.get(id), map.get(&id).copied());
                }
            }
        }
    }
}
