//! A driver for tests: it goes through the registers as a guest's would, and puts into queues whatever a test says.

use super::memory::DeviceMemory;
use super::mmio::Transport;
use super::worker::{Shared, Worker};
use super::{Device, Event, QUEUE_SIZE};
use crate::bus::Registers;
use crate::report::DeviceCounters;
use std::sync::Arc;
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where memory begins, and its bytes.
pub const MEMORY: u64 = 0x8000_0000;
pub const MEMORY_BYTES: u64 = 16 << 20;
/// Bytes from a queue to the next: a table, an available ring, a used ring.
const QUEUE_BYTES: u64 = 0x4000;
/// Flags of descriptors.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Bytes in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub address: u64,
    pub bytes: u32,
}

/// What the driver remembers of a queue.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    descriptor: u16,
    available: u16,
    used: u16,
}

/// The driver.
pub struct Driver {
    pub transport: Transport,
    pub memory: GuestMemoryMmap,
    irq: EventFd,
    counters: Arc<DeviceCounters>,
    sides: Vec<Side>,
    free: u64,
}

impl Driver {
    /// For the device that is made with these counters. It is not set up yet.
    pub fn new<D: Device + 'static>(make: impl FnOnce(Arc<DeviceCounters>) -> D) -> Self {
        let counters = Arc::new(DeviceCounters::new("device".to_owned()));
        let device: Box<dyn Device> = Box::new(make(counters.clone()));
        let range = (GuestAddress(MEMORY), MEMORY_BYTES as usize);
        let memory = GuestMemoryMmap::from_ranges(&[range]).unwrap();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let sides = vec![Side::default(); device.queues()];
        let device_memory = DeviceMemory::new(memory.clone(), 0);
        let worker = Worker::new(device, device_memory, irq.try_clone().unwrap(), counters.clone());
        let transport = Transport::new(Shared::new(worker.unwrap()));
        let free = MEMORY + QUEUE_BYTES * sides.len() as u64;
        Self { transport, memory, irq, counters, sides, free }
    }

    pub fn load(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn store(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// Up to FEATURES_OK, with these features and version 1.
    pub fn negotiate(&mut self, features: u64) {
        self.store(VIRTIO_MMIO_STATUS, 0);
        self.sides.fill(Side::default());
        self.store(VIRTIO_MMIO_STATUS, 1);
        self.store(VIRTIO_MMIO_STATUS, 3);
        for (half, value) in [(0, features as u32), (1, (features >> 32) as u32 | 1)] {
            self.store(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.store(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.store(VIRTIO_MMIO_STATUS, 0xb);
    }

    /// Sets a queue up where its memory is.
    pub fn set_up(&mut self, queue: usize) {
        let table = self.table(queue);
        let zeroes = [0; QUEUE_BYTES as usize];
        self.memory.write_slice(&zeroes, GuestAddress(table)).unwrap();
        self.store(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
        self.store(VIRTIO_MMIO_QUEUE_NUM, QUEUE_SIZE.into());
        let places = [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, table),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, table + 0x1000),
            (VIRTIO_MMIO_QUEUE_USED_LOW, table + 0x2000),
        ];
        for (register, address) in places {
            self.store(register, address as u32);
            self.store(register + 4, (address >> 32) as u32);
        }
        self.store(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// All of it, with these features.
    pub fn begin(&mut self, features: u64) {
        self.negotiate(features);
        for queue in 0..self.sides.len() {
            self.set_up(queue);
        }
        self.store(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(self.load(VIRTIO_MMIO_STATUS), 0xf);
    }

    fn table(&self, queue: usize) -> u64 {
        MEMORY + QUEUE_BYTES * queue as u64
    }

    /// Memory of so many bytes. It is taken again from the beginning when it has all been used.
    pub fn room(&mut self, bytes: usize) -> Piece {
        if self.free + bytes as u64 > MEMORY + MEMORY_BYTES {
            self.free = MEMORY + QUEUE_BYTES * self.sides.len() as u64;
        }
        let address = self.free;
        self.free += bytes as u64;
        Piece { address, bytes: bytes as u32 }
    }

    /// Memory with these bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Piece {
        let piece = self.room(bytes.len());
        self.memory.write_slice(bytes, GuestAddress(piece.address)).unwrap();
        piece
    }

    /// Puts these bytes there.
    pub fn memory_write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// What is in memory.
    pub fn bytes(&self, piece: Piece) -> Vec<u8> {
        let mut bytes = vec![0; piece.bytes as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(piece.address)).unwrap();
        bytes
    }

    /// A descriptor's bytes.
    pub fn descriptor(address: u64, bytes: u32, flags: u16, next: u16) -> [u8; 16] {
        let mut all = [0; 16];
        all[..8].copy_from_slice(&address.to_le_bytes());
        all[8..12].copy_from_slice(&bytes.to_le_bytes());
        all[12..14].copy_from_slice(&flags.to_le_bytes());
        all[14..].copy_from_slice(&next.to_le_bytes());
        all
    }

    /// Writes a descriptor of a queue's table.
    pub fn describe(&self, queue: usize, index: u16, descriptor: [u8; 16]) {
        let at = self.table(queue) + 16 * u64::from(index);
        self.memory.write_slice(&descriptor, GuestAddress(at)).unwrap();
    }

    /// Makes a chain available by its head.
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let ring = self.table(queue) + 0x1000;
        let side = &mut self.sides[queue];
        let slot = u64::from(side.available % QUEUE_SIZE);
        self.memory.write_obj(head, GuestAddress(ring + 4 + 2 * slot)).unwrap();
        side.available = side.available.wrapping_add(1);
        self.memory.write_obj(side.available, GuestAddress(ring + 2)).unwrap();
    }

    /// Offers a chain of buffers to read and then buffers to write. Heads are given one after another.
    pub fn offer(&mut self, queue: usize, readable: &[Piece], writable: &[Piece]) {
        let head = self.sides[queue].descriptor;
        let count = readable.len() + writable.len();
        let kinds =
            readable.iter().map(|piece| (piece, 0)).chain(writable.iter().map(|p| (p, WRITE)));
        for (n, (piece, kind)) in kinds.enumerate() {
            let index = (head + n as u16) % QUEUE_SIZE;
            let more = if n + 1 < count { NEXT } else { 0 };
            let next = (index + 1) % QUEUE_SIZE;
            self.describe(
                queue,
                index,
                Self::descriptor(piece.address, piece.bytes, kind | more, next),
            );
        }
        self.sides[queue].descriptor = (head + count as u16) % QUEUE_SIZE;
        self.make_available(queue, head);
    }

    /// Lets the device serve a queue until it says that nothing is left, as its thread would.
    pub fn serve(&self, queue: usize) {
        let worker = self.transport.worker();
        worker.lock().serve(Event::Queue(queue));
        // What it has left for its next turns. That these end is what a hostile queue must not change.
        for turn in 0.. {
            assert!(turn < 10_000, "the device has no end");
            let kicks =
                worker.lock().kicks().iter().map(|kick| kick.read().is_ok()).collect::<Vec<_>>();
            if !kicks.contains(&true) {
                return;
            }
            for (queue, _) in kicks.iter().enumerate().filter(|(_, kicked)| **kicked) {
                worker.lock().serve(Event::Queue(queue));
            }
        }
    }

    /// Tells the device that its source has something.
    pub fn source(&self) {
        self.transport.worker().lock().serve(Event::Source);
    }

    /// The next chain that came back: its head, and the bytes that were written.
    pub fn used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let ring = self.table(queue) + 0x2000;
        let side = &mut self.sides[queue];
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        if index == side.used {
            return None;
        }
        let slot = u64::from(side.used % QUEUE_SIZE);
        side.used = side.used.wrapping_add(1);
        let at = ring + 4 + 8 * slot;
        let element = |at| self.memory.read_obj(GuestAddress(at)).unwrap();
        Some((element(at), element(at + 4)))
    }

    /// Whether an interrupt came since the last call. It is acknowledged.
    pub fn interrupted(&self) -> bool {
        let pending = self.load(VIRTIO_MMIO_INTERRUPT_STATUS);
        self.store(VIRTIO_MMIO_INTERRUPT_ACK, pending);
        self.irq.read().is_ok() && pending != 0
    }

    /// Whether the device has given up.
    pub fn needs_reset(&self) -> bool {
        self.load(VIRTIO_MMIO_STATUS) & 0x40 != 0
    }

    /// Requests that failed.
    pub fn errors(&self) -> u64 {
        self.counters.errors()
    }
}
