//! Interrupt translation tables: hyp's, whatever the host has set aside for them. Where there is room for one, and
//! which device has which.

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
    chunks: usize,
    taken: [u64; CHUNKS / 64],
}

impl Room {
    /// `bytes` from `start` (aligned to a chunk), none of it taken. What is more than [`MAX_BYTES`] is not used.
    pub const fn new(start: u64, bytes: u64) -> Self {
        let chunks = bytes / CHUNK;
        let chunks = if chunks > CHUNKS as u64 { CHUNKS } else { chunks as usize };
        Self { start, chunks, taken: [0; CHUNKS / 64] }
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

    /// Takes `bytes` at a multiple of `align` (a power of two). Returns the address.
    pub fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let count = Self::count(bytes);
        let mut first = 0;
        loop {
            let start = self.start + first as u64 * CHUNK;
            first += ((start.next_multiple_of(align) - start) / CHUNK) as usize;
            if count > self.chunks || first > self.chunks - count {
                return None;
            }
            // On behind the last that is in the way.
            match (first..first + count).rev().find(|&n| self.is_taken(n)) {
                Some(n) => first = n + 1,
                None => break,
            }
        }
        self.mark(first, count, true);
        Some(self.start + first as u64 * CHUNK)
    }

    /// Gives back what [`Self::take`] returned for `bytes`.
    pub fn give_back(&mut self, start: u64, bytes: u64) {
        let first = ((start - self.start) / CHUNK) as usize;
        self.mark(first, Self::count(bytes), false);
    }

    /// Gives everything back.
    pub const fn clear(&mut self) {
        self.taken = [0; CHUNKS / 64];
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.taken.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * CHUNK
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
        let mut room = Room::new(0x4000_1100, 0x3000);
        assert_eq!(room.take(1, CHUNK), Some(0x4000_1100));
        assert_eq!(room.take(0x1000, 0x1000), Some(0x4000_2000));
        assert_eq!(room.take(0x300, CHUNK), Some(0x4000_1200));
        assert_eq!(room.take(0x1001, CHUNK), Some(0x4000_3000));
        assert_eq!(room.take(0x1000, CHUNK), None);
        assert_eq!(room.take(u64::MAX, CHUNK), None);
        assert_eq!(room.used(), 0x100 + 0x1000 + 0x300 + 0x1100);
        room.give_back(0x4000_2000, 0x1000);
        assert_eq!(room.take(0xf00, CHUNK), Some(0x4000_1500));
        room.clear();
        assert_eq!(room.take(0x3000, CHUNK), Some(0x4000_1100));
        assert_eq!(Room::new(0, u64::MAX).take(MAX_BYTES + 1, CHUNK), None);
    }

    proptest! {
        #[test]
        fn no_two_have_the_same_byte(steps in prop::collection::vec((1u64..0x1200, 0u32..5, 0usize..20), 0..200)) {
            let (start, end) = (0x1_0300, 0x1_9000);
            let mut room = Room::new(start, end - start);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (bytes, align, victim) in steps {
                let align = CHUNK << align;
                if let Some(at) = room.take(bytes, align) {
                    prop_assert!(at % align == 0 && at >= start && at + bytes <= end);
                    for &(other, length) in &held {
                        prop_assert!(at + bytes <= other || other + length <= at);
                    }
                    held.push((at, bytes));
                } else if victim < held.len() {
                    let (at, bytes) = held.swap_remove(victim);
                    room.give_back(at, bytes);
                }
            }
            let sum = held.iter().map(|(_, bytes)| bytes.next_multiple_of(CHUNK)).sum::<u64>();
            prop_assert_eq!(room.used(), sum);
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
