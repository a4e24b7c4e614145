use super::*;
use crate::virtio::testing::{Driver, MEMORY, MEMORY_BYTES};
use crate::virtio::{Device, Event, queue::Malformed, queue::Queues};

const OWN: u64 = 1 << 5 | 1 << 40;

/// A device that does nothing.
#[derive(Default)]
struct Nothing {
    started: Option<u64>,
}

impl Device for Nothing {
    fn id(&self) -> u32 {
        77
    }

    fn queues(&self) -> usize {
        2
    }

    fn features(&self) -> u64 {
        OWN
    }

    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3, 4, 5, 6]
    }

    fn start(&mut self, features: u64) {
        assert_eq!(self.started.replace(features), None, "started twice");
    }

    fn serve(&mut self, _: Event, _: &mut Queues) -> Result<bool, Malformed> {
        assert!(self.started.is_some());
        Ok(false)
    }

    fn reset(&mut self) {
        self.started = None;
    }
}

fn driver() -> Driver {
    Driver::new(|_| Nothing::default())
}

#[test]
fn what_a_driver_finds() {
    let driver = driver();
    assert_eq!(driver.load(VIRTIO_MMIO_MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
    assert_eq!(driver.load(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.load(VIRTIO_MMIO_DEVICE_ID), 77);
    let mut features = [0, 1, 2].map(|half| {
        driver.store(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
        driver.load(VIRTIO_MMIO_DEVICE_FEATURES)
    });
    assert_eq!(features[2], 0);
    features[1] &= !1;
    assert_eq!(features, [1 << 5 | 1 << 28 | 1 << 29, 1 << 8, 0]);
    for (queue, size) in [(0, 256), (1, 256), (2, 0), (u32::MAX, 0)] {
        driver.store(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.load(VIRTIO_MMIO_QUEUE_NUM_MAX), size);
    }
    driver.store(VIRTIO_MMIO_SHM_SEL, 0);
    assert_eq!(driver.load(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.load(VIRTIO_MMIO_CONFIG_GENERATION), 0);
}

#[test]
fn widths_and_places() {
    let driver = driver();
    let read = |offset, bytes| {
        let mut data = vec![0xaa; bytes];
        driver.transport.read(offset, &mut data);
        data
    };
    assert_eq!(read(0x100, 2), [1, 2]);
    assert_eq!(read(0x103, 1), [4]);
    assert_eq!(read(0x104, 4), [5, 6, 0, 0]);
    assert_eq!(read(0x106, 1), [0]);
    assert_eq!(read(u64::MAX, 8), [0; 8]);
    // Registers have four bytes.
    assert_eq!(read(0, 1), [0]);
    assert_eq!(read(0, 8), [0; 8]);
    assert_eq!(read(2, 4), [0; 4]);
    for (offset, bytes) in [(0x70, 1), (0x70, 8), (0x100, 4), (u64::MAX, 4), (1 << 32 | 0x70, 4)] {
        driver.transport.write(offset, &vec![1; bytes]);
    }
    assert_eq!(driver.load(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(read(0x100, 2), [1, 2]);
}

#[test]
fn steps_come_one_after_another() {
    let driver = driver();
    let status = |value| {
        driver.store(VIRTIO_MMIO_STATUS, value);
        driver.load(VIRTIO_MMIO_STATUS)
    };
    // Out of turn.
    for value in [4, 8, 0xc, 2, 0xe, 0x30] {
        assert_eq!(status(value), 0, "{value:x}");
    }
    assert_eq!(status(1), 1);
    assert_eq!(status(1 | 4 | 8), 1);
    assert_eq!(status(3), 3);
    // Bits stay, and DRIVER_OK needs FEATURES_OK, which needs version 1.
    assert_eq!(status(2), 3);
    assert_eq!(status(7), 3);
    assert_eq!(status(0xb), 3);
    assert_eq!(status(0xf), 3);
    assert_eq!(status(0x83), 0x83);
    assert_eq!(status(0), 0);
}

#[test]
fn features() {
    let mut driver = driver();
    for (features, well) in
        [(0, true), (OWN, true), (1 << 5, true), (1 << 6, false), (OWN | 1 << 41, false)]
    {
        driver.negotiate(features);
        assert_eq!(driver.load(VIRTIO_MMIO_STATUS), if well { 0xb } else { 3 }, "{features:x}");
    }
    // What is accepted stays, and comes to the device.
    driver.negotiate(OWN);
    driver.store(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    driver.store(VIRTIO_MMIO_DRIVER_FEATURES, 0);
    driver.set_up(0);
    driver.store(VIRTIO_MMIO_STATUS, 0xf);
    // A second time is nothing.
    driver.store(VIRTIO_MMIO_STATUS, 0xf);
    assert_eq!(driver.load(VIRTIO_MMIO_STATUS), 0xf);
    driver.serve(0);
}

#[test]
fn queues_are_set_up_in_their_time() {
    let mut driver = driver();
    let ready = |driver: &Driver| driver.load(VIRTIO_MMIO_QUEUE_READY);
    driver.set_up(0);
    assert_eq!(ready(&driver), 0);
    driver.negotiate(0);
    driver.set_up(0);
    assert_eq!(ready(&driver), 1);
    driver.store(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(ready(&driver), 0);
    driver.store(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.store(VIRTIO_MMIO_STATUS, 0xf);
    driver.store(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(ready(&driver), 1);
    driver.store(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(ready(&driver), 0);
}

#[test]
fn a_queue_that_cannot_be_is_found_when_the_device_begins() {
    let end = MEMORY + MEMORY_BYTES;
    let wrong = [
        (VIRTIO_MMIO_QUEUE_NUM, 0),
        (VIRTIO_MMIO_QUEUE_NUM, 3),
        (VIRTIO_MMIO_QUEUE_NUM, 512),
        (VIRTIO_MMIO_QUEUE_NUM, 0x1_0008),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, MEMORY as u32 + 8),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, end as u32 - 16),
        (VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, MEMORY as u32 + 1),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0),
        (VIRTIO_MMIO_QUEUE_AVAIL_HIGH, u32::MAX),
        (VIRTIO_MMIO_QUEUE_USED_LOW, MEMORY as u32 + 2),
        (VIRTIO_MMIO_QUEUE_USED_LOW, end as u32 - 4),
        (VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX),
    ];
    let mut driver = driver();
    for (register, value) in wrong {
        driver.negotiate(0);
        driver.set_up(1);
        driver.store(register, value);
        driver.store(VIRTIO_MMIO_STATUS, 0xf);
        assert!(driver.needs_reset(), "{register:x} {value:x}");
        assert_eq!(driver.load(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
        assert!(driver.interrupted());
        driver.serve(1);
    }
    driver.begin(0);
    assert!(!driver.needs_reset() && !driver.interrupted());
    // A driver need not use a queue.
    driver.negotiate(0);
    driver.set_up(0);
    driver.store(VIRTIO_MMIO_STATUS, 0xf);
    driver.serve(1);
    assert!(!driver.needs_reset());
}
