//! Random numbers, as good as this machine's own.

use super::queue::{Chain, Malformed, Queues};
use super::{Device, Event};
use crate::report::DeviceCounters;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io::Write;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

/// Bytes that a request gets at most. The device says how many it has written, and may write less than there is room for.
const LIMIT: usize = 4096;

/// The device.
pub struct Rng {
    counters: Arc<DeviceCounters>,
}

impl Rng {
    /// One.
    pub fn new(counters: Arc<DeviceCounters>) -> Self {
        Self { counters }
    }

    fn answer(&self, chain: &mut Chain<'_>) -> Result<u32, Malformed> {
        self.counters.count_request();
        let mut bytes = [0; LIMIT];
        let wanted = chain.writer.available_bytes().min(LIMIT);
        let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or_else(|_| {
            // The driver asks again when it gets nothing.
            self.counters.count_error();
            0
        });
        chain.writer.write_all(&bytes[..got]).map_err(Malformed::new)?;
        self.counters.count_bytes(got);
        Ok(got as u32)
    }
}

impl Device for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queues(&self) -> usize {
        1
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, Malformed> {
        match event {
            Event::Queue(queue) => queues.drain(queue, |chain| self.answer(chain)),
            Event::Source => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Driver;

    #[test]
    fn requests_get_as_much_as_is_said() {
        let mut driver = Driver::new(Rng::new);
        driver.begin(0);
        let (small, large) = (driver.room(16), driver.room(10_000));
        driver.offer(0, &[], &[small]);
        driver.offer(0, &[], &[large]);
        driver.serve(0);
        assert_eq!(driver.used(0), Some((0, 16)));
        assert_eq!(driver.used(0), Some((1, LIMIT as u32)));
        assert_eq!(driver.used(0), None);
        assert_ne!(driver.bytes(large)[..LIMIT], [0; LIMIT]);
        assert_eq!(driver.bytes(large)[LIMIT..], [0; 10_000 - LIMIT]);
        assert!(driver.interrupted());
    }
}
