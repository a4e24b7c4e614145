//! Which device an address belongs to.
#![forbid(unsafe_code)]

use crate::report::DeviceCounters;
use std::ops::Range;
use std::sync::Arc;

/// Registers that a guest's loads and stores go to, from any vCPU.
pub trait Registers: Send + Sync {
    /// A load; `data` has its width. What isn't there reads as zero.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// A store. What isn't there ignores it.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Place {
    range: Range<u64>,
    device: Arc<dyn Registers>,
    counters: Arc<DeviceCounters>,
}

/// All registers of a machine that KVM doesn't have.
#[derive(Default)]
pub struct Bus(Vec<Place>);

impl Bus {
    /// Puts a device's registers there.
    pub fn add(
        &mut self,
        range: Range<u64>,
        device: Arc<dyn Registers>,
        counters: Arc<DeviceCounters>,
    ) {
        self.0.push(Place { range, device, counters });
    }

    fn find(&self, address: u64) -> Option<(&Place, u64)> {
        let place = self.0.iter().find(|place| place.range.contains(&address))?;
        Some((place, address - place.range.start))
    }

    /// A load. Where nothing is, it gives zeroes.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((place, offset)) => {
                place.counters.count_read();
                place.device.read(offset, data);
            }
            None => data.fill(0),
        }
    }

    /// A store. Where nothing is, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((place, offset)) = self.find(address) {
            place.counters.count_write();
            place.device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Seen(Mutex<Vec<u64>>);

    impl Registers for Seen {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, offset: u64, _: &[u8]) {
            self.0.lock().unwrap().push(offset);
        }
    }

    #[test]
    fn each_address_has_its_device_or_none() {
        let (seen, counters) = (Arc::new(Seen::default()), DeviceCounters::new("a".to_owned()));
        let mut bus = Bus::default();
        bus.add(0x1000..0x2000, seen.clone(), Arc::new(counters));
        let mut data = [1];
        for (address, value) in
            [(0xfff, 0), (0x1000, 0), (0x1fff, 0xff), (0x2000, 0), (u64::MAX, 0)]
        {
            bus.read(address, &mut data);
            assert_eq!(data, [value], "{address:x}");
            bus.write(address, &data);
        }
        assert_eq!(*seen.0.lock().unwrap(), [0, 0xfff]);
    }
}
