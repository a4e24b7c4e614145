//! Queues of drivers that mean no good: whatever is in them, a device neither panics nor goes on for ever, and a reset
//! makes it as good as new.

use super::super::QUEUE_SIZE;
use super::super::block::Block;
use super::super::console::Console;
use super::super::net::Net;
use super::super::rng::Rng;
use super::super::testing::{Driver, INDIRECT, MEMORY, MEMORY_BYTES, NEXT, WRITE};
use super::{DeviceMemory, Live, Queue, QueueState};
use proptest::prelude::*;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmm_sys_util::tempfile::TempFile;

const EVENT_IDX: u64 = 1 << 29;
const INSIDE: u64 = MEMORY + 0x10_0000;

fn rng() -> Driver {
    let mut driver = Driver::new(Rng::new);
    driver.begin(0);
    driver
}

/// Whether the device gives up when it serves this chain's head.
fn gives_up(chain: &[(u16, [u8; 16])]) -> bool {
    let mut driver = rng();
    for &(index, descriptor) in chain {
        driver.describe(0, index, descriptor);
    }
    driver.make_available(0, chain.first().map_or(0, |&(head, _)| head));
    driver.serve(0);
    assert_eq!(driver.used(0).is_none(), driver.needs_reset());
    driver.needs_reset()
}

#[test]
fn chains() {
    let d = Driver::descriptor;
    let end = MEMORY + MEMORY_BYTES;
    assert!(!gives_up(&[(0, d(INSIDE, 8, WRITE, 0))]));
    assert!(!gives_up(&[(5, d(INSIDE, 8, NEXT, 200)), (200, d(INSIDE, 8, WRITE, 0))]));
    assert!(!gives_up(&[(0, d(INSIDE, 0, WRITE, 0))]), "nothing is a length");
    assert!(!gives_up(&[(0, d(end - 8, 8, WRITE, 0))]));
    let wrong = [
        vec![(0, d(INSIDE, 8, WRITE | NEXT, 0))],
        vec![(0, d(INSIDE, 8, WRITE | NEXT, 1)), (1, d(INSIDE, 8, WRITE | NEXT, 0))],
        vec![(0, d(INSIDE, 8, WRITE | NEXT, QUEUE_SIZE))],
        vec![(0, d(INSIDE, 8, WRITE | NEXT, u16::MAX))],
        vec![(0, d(INSIDE, 8, WRITE | NEXT, 1)), (1, d(INSIDE, 8, 0, 0))],
        vec![(0, d(end - 8, 9, WRITE, 0))],
        vec![(0, d(end, 1, WRITE, 0))],
        vec![(0, d(0, 8, WRITE, 0))],
        vec![(0, d(u64::MAX, 8, WRITE, 0))],
        vec![(0, d(u64::MAX - 7, u32::MAX, 0, 0))],
        vec![(0, d(INSIDE, u32::MAX, WRITE, 0))],
        vec![(QUEUE_SIZE, [0; 16])],
        vec![(u16::MAX, [0; 16])],
    ];
    for (n, chain) in wrong.into_iter().enumerate() {
        let in_table = |&(index, _): &(u16, _)| index < QUEUE_SIZE;
        if chain.iter().all(in_table) {
            assert!(gives_up(&chain), "{n}");
        } else {
            let mut driver = rng();
            driver.make_available(0, chain[0].0);
            driver.serve(0);
            assert!(driver.needs_reset(), "{n}");
        }
    }
}

#[test]
fn four_gigabytes_in_a_chain() {
    let d = Driver::descriptor;
    let whole = MEMORY_BYTES as u32;
    let chain: Vec<_> = (0..QUEUE_SIZE)
        .map(|n| (n, d(MEMORY, whole, if n + 1 < QUEUE_SIZE { NEXT } else { 0 }, n + 1)))
        .collect();
    assert!(gives_up(&chain));
    let mut short = chain[..255].to_vec();
    short[254].1 = d(MEMORY, whole, 0, 0);
    assert!(!gives_up(&short));
}

/// Memory in which each descriptor of a table is another one when it has been looked at.
struct Changing<'a> {
    memory: DeviceMemory,
    driver: &'a Driver,
    table: GuestAddress,
    after: [u8; 16],
    looks: Cell<usize>,
}

impl GuestMemory for Changing<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.memory.check_range(address, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, ()>>> {
        // What was looked at before this.
        for n in 0..self.looks.get() as u64 {
            self.driver.memory_write(self.table.0 + 16 * n, &self.after);
        }
        let table = self.table.0..self.table.0 + 16 * u64::from(QUEUE_SIZE);
        if table.contains(&address.0) {
            self.looks.set(self.looks.get() + 1);
        }
        self.memory.get_slices(address, count, access)
    }
}

#[test]
fn what_changes_behind_a_walk_is_not_used() {
    let d = Driver::descriptor;
    let mut driver = rng();
    let indirect = driver.put(&[0; 32]);
    for table in [GuestAddress(MEMORY), GuestAddress(indirect.address)] {
        driver.begin(0);
        driver.describe(0, 0, d(indirect.address, 32, INDIRECT, 0));
        driver.memory_write(table.0, &d(INSIDE, 16, NEXT, 1));
        driver.memory_write(table.0 + 16, &d(INSIDE, 512, WRITE, 0));
        driver.make_available(0, 0);
        let state = QueueState {
            max_size: QUEUE_SIZE,
            size: QUEUE_SIZE,
            ready: true,
            desc_table: MEMORY,
            avail_ring: MEMORY + 0x1000,
            used_ring: MEMORY + 0x2000,
            ..QueueState::default()
        };
        let memory = Changing {
            memory: DeviceMemory::new(driver.memory.clone(), 0),
            driver: &driver,
            table,
            after: d(MEMORY, MEMORY_BYTES as u32, WRITE | NEXT, 0),
            looks: Cell::new(0),
        };
        let mut live = Live { queue: Queue::try_from(state).unwrap(), used: false };
        let chain = live.pop(&memory).unwrap().unwrap();
        assert_eq!((chain.count, chain.longest), (2, 512));
        assert_eq!(chain.reader.available_bytes(), 16);
        assert_eq!(chain.writer.available_bytes(), 512);
        assert_eq!(memory.looks.get(), 2, "each descriptor once");
    }
}

#[test]
fn tables_of_descriptors() {
    let d = Driver::descriptor;
    let indirect = |bytes: u32, entries: &[[u8; 16]]| {
        let mut driver = rng();
        let table = driver.put(entries.as_flattened());
        driver.describe(0, 0, d(table.address, bytes, INDIRECT, 0));
        driver.make_available(0, 0);
        driver.serve(0);
        driver.needs_reset()
    };
    let room = d(INSIDE, 8, WRITE, 0);
    let loops = d(INSIDE, 8, WRITE | NEXT, 0);
    assert!(!indirect(16, &[room]));
    assert!(!indirect(32, &[d(INSIDE, 8, WRITE | NEXT, 1), room]));
    assert!(indirect(0, &[room]), "an empty one");
    assert!(indirect(15, &[room]));
    assert!(indirect(16, &[loops]));
    assert!(indirect(32, &[loops, loops]));
    assert!(indirect(16, &[d(INSIDE, 16, INDIRECT, 0)]), "one in another");
    assert!(indirect(!15, &[loops]), "too large");
    assert!(indirect(0xf_fff0, &[loops]), "longer than a queue");
    let long: Vec<_> = (0..=QUEUE_SIZE)
        .map(|n| d(INSIDE, 8, if n < QUEUE_SIZE { WRITE | NEXT } else { WRITE }, n + 1))
        .collect();
    assert!(indirect(16 * u32::from(QUEUE_SIZE + 1), &long), "one more than a queue");
    assert!(gives_up(&[(0, d(MEMORY + MEMORY_BYTES, 16, INDIRECT, 0))]));
    assert!(gives_up(&[(0, d(u64::MAX - 15, 32, INDIRECT, 0))]));
}

#[test]
fn more_than_a_queue_is_available() {
    let mut driver = rng();
    let room = driver.room(8);
    driver.offer(0, &[], &[room]);
    let ring = MEMORY + 0x1000;
    driver.memory.write_obj(QUEUE_SIZE + 1, GuestAddress(ring + 2)).unwrap();
    driver.serve(0);
    assert!(driver.needs_reset());
}

#[test]
fn a_full_queue_takes_turns_and_wraps() {
    let mut driver = rng();
    for features in [0, EVENT_IDX] {
        driver.begin(features);
        for round in 0..600_u32 {
            let rooms = [driver.room(3), driver.room(3)];
            for room in rooms {
                for _ in 0..QUEUE_SIZE / 2 {
                    driver.offer(0, &[], &[room]);
                }
            }
            driver.serve(0);
            for n in 0..u32::from(QUEUE_SIZE) {
                assert_eq!(driver.used(0), Some((n, 3)), "{round}");
            }
            assert_eq!(driver.used(0), None);
        }
    }
}

#[test]
fn interrupts_come_when_they_are_wanted() {
    let mut driver = rng();
    driver.begin(EVENT_IDX);
    let room = driver.room(1);
    let used_event = GuestAddress(MEMORY + 0x1000 + 4 + 2 * u64::from(QUEUE_SIZE));
    driver.memory.write_obj(1_u16, used_event).unwrap();
    driver.offer(0, &[], &[room]);
    driver.serve(0);
    assert!(!driver.interrupted());
    driver.offer(0, &[], &[room]);
    driver.serve(0);
    assert!(driver.interrupted());
    // The device wants to hear of the next one.
    let avail_event = GuestAddress(MEMORY + 0x2000 + 4 + 8 * u64::from(QUEUE_SIZE));
    assert_eq!(driver.memory.read_obj::<u16>(avail_event).unwrap(), 2);
}

/// A device's driver, its queues, and what sends something from outside.
type Driven = (Driver, usize, Box<dyn FnMut()>);

/// All devices.
fn drivers() -> Vec<Driven> {
    let file = TempFile::new().unwrap().into_file();
    file.set_len(1 << 20).unwrap();
    let block = Driver::new(|counters| Block::new(file, false, counters).unwrap());
    let (wire, far) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    let wire = File::from(OwnedFd::from(wire));
    let net = Driver::new(|counters| Net::new(wire, [2, 0, 0, 0, 0, 1], counters));
    let (mut terminal, input) = UnixStream::pair().unwrap();
    terminal.set_nonblocking(true).unwrap();
    let console = Driver::new(|counters| Console::new(input, io::sink(), counters).unwrap());
    // What comes from outside may be more than there is room for.
    let frames = move || {
        let _ = far.send(&[7; 100]);
    };
    let keys = move || {
        let _ = terminal.write(&[b'a'; 100]);
    };
    vec![
        (block, 1, Box::new(|| {})),
        (Driver::new(Rng::new), 1, Box::new(|| {})),
        (net, 2, Box::new(frames)),
        (console, 2, Box::new(keys)),
    ]
}

/// A descriptor of anything, often of something that makes sense.
fn descriptors() -> impl Strategy<Value = [u8; 16]> {
    let address = prop_oneof![
        4 => INSIDE..INSIDE + 0x1000,
        1 => MEMORY..MEMORY + 0x8000,
        1 => MEMORY + MEMORY_BYTES - 0x100..MEMORY + MEMORY_BYTES + 0x100,
        1 => any::<u64>(),
    ];
    let bytes =
        prop_oneof![4 => 0_u32..600, 1 => Just(16), 1 => 0_u32..0x20_0000, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0_u16..4, 1 => 0_u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0_u16..16, 1 => any::<u16>()];
    (address, bytes, flags, next)
        .prop_map(|(address, bytes, flags, next)| Driver::descriptor(address, bytes, flags, next))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_queue_is_endured(
        table in prop::collection::vec(descriptors(), 16),
        inside in prop::collection::vec(any::<u8>(), 0x200),
        heads in prop::collection::vec(prop_oneof![8 => 0_u16..16, 1 => any::<u16>()], 1..40),
        garbage in prop::option::weighted(0.1, any::<u16>()),
        features in prop_oneof![Just(0), Just(EVENT_IDX)],
    ) {
        for (mut driver, queues, mut outside) in drivers() {
            driver.begin(features);
            driver.memory_write(INSIDE, &inside);
            for queue in 0..queues {
                for (index, &descriptor) in (0..).zip(&table) {
                    driver.describe(queue, index, descriptor);
                }
                for &head in &heads {
                    driver.make_available(queue, head);
                }
                if let Some(index) = garbage {
                    let ring = MEMORY + 0x4000 * queue as u64 + 0x1000;
                    driver.memory.write_obj(index, GuestAddress(ring + 2)).unwrap();
                }
                outside();
                driver.source();
                driver.serve(queue);
            }
            driver.begin(features);
            driver.serve(0);
            prop_assert!(!driver.needs_reset());
        }
    }
}
