//! A network card, whose wire is a file of frames: a TAP interface's.
//!
//! No offloads: frames are whole and have their checksums, in both directions. The header before each frame says so.

use super::queue::{Malformed, Queues, TURN};
use super::{Device, Event};
use crate::report::DeviceCounters;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;

/// The queues' indices: to the guest, and from it.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Bytes of the header before a frame.
pub const HEADER: usize = 12;
/// Of a frame to the guest, which is in one buffer: its last field counts buffers. The rest is zero in both directions.
const TO_GUEST: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Bytes of the longest frame, with all that Ethernet has before 64 KiB.
const FRAME: usize = 65_536 + 18;

/// The card.
pub struct Net {
    wire: File,
    mac: [u8; 6],
    /// A frame for which the guest has no buffer yet, and its bytes with the header; 0 if there is none.
    arrived: Box<[u8; HEADER + FRAME]>,
    waiting: usize,
    leaving: Box<[u8; HEADER + FRAME]>,
    counters: Arc<DeviceCounters>,
}

impl Net {
    /// A card with this address on a wire. Reading that gives a frame with a header before it, without waiting for one, and
    /// writing takes the same.
    pub fn new(wire: File, mac: [u8; 6], counters: Arc<DeviceCounters>) -> Self {
        let (arrived, leaving) = (Box::new([0; HEADER + FRAME]), Box::new([0; HEADER + FRAME]));
        Self { wire, mac, arrived, waiting: 0, leaving, counters }
    }

    /// Frames to the guest, as long as there are some and it has buffers.
    fn receive(&mut self, queues: &mut Queues) -> Result<bool, Malformed> {
        for _ in 0..TURN {
            if self.waiting == 0 {
                match self.wire.read(&mut self.arrived[..]) {
                    Ok(count) if count > HEADER => self.waiting = count,
                    // Nothing, or nothing that is a frame.
                    _ => return Ok(false),
                }
                self.arrived[..HEADER].copy_from_slice(&TO_GUEST);
            }
            let frame = &self.arrived[..self.waiting];
            let counters = &self.counters;
            let taken = queues.take(RECEIVE, |chain| {
                counters.count_request();
                if chain.writer.available_bytes() < frame.len() {
                    // It's lost, and the buffer comes back empty.
                    counters.count_error();
                    return Ok(0);
                }
                chain.writer.write_all(frame).map_err(Malformed::new)?;
                counters.count_bytes(frame.len() - HEADER);
                Ok(frame.len() as u32)
            })?;
            if !taken {
                return Ok(false);
            }
            self.waiting = 0;
        }
        Ok(true)
    }

    /// Frames from the guest.
    fn transmit(&mut self, queues: &mut Queues) -> Result<bool, Malformed> {
        queues.drain(TRANSMIT, |chain| {
            self.counters.count_request();
            let count = chain.reader.available_bytes();
            let sent = match self.leaving.get_mut(..count) {
                Some(frame) if count > HEADER => chain.reader.read_exact(frame).and_then(|()| {
                    // Nothing that the header could ask for has been offered.
                    frame[..HEADER].fill(0);
                    self.wire.write(frame)
                }),
                _ => Err(ErrorKind::InvalidInput.into()),
            };
            match sent {
                Ok(sent) if sent == count => self.counters.count_bytes(count - HEADER),
                // A wire loses frames, and the guest's network lives with it.
                _ => self.counters.count_error(),
            }
            Ok(0)
        })
    }
}

impl Device for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queues(&self) -> usize {
        2
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn config(&self) -> Vec<u8> {
        self.mac.to_vec()
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.wire.as_raw_fd())
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, Malformed> {
        match event {
            Event::Queue(TRANSMIT) => self.transmit(queues),
            Event::Queue(_) | Event::Source => self.receive(queues),
        }
    }

    fn reset(&mut self) {
        self.waiting = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Driver;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    fn card() -> (Driver, UnixDatagram) {
        let (wire, far) = UnixDatagram::pair().unwrap();
        wire.set_nonblocking(true).unwrap();
        far.set_nonblocking(true).unwrap();
        let wire = File::from(OwnedFd::from(wire));
        let mut driver = Driver::new(|counters| Net::new(wire, [2, 0, 0, 0, 0, 1], counters));
        driver.begin(1 << VIRTIO_NET_F_MAC);
        (driver, far)
    }

    #[test]
    fn frames_go_both_ways() {
        let (mut driver, far) = card();
        // In pieces, and with a header that asks for what was not offered.
        let (header, frame) = (driver.put(&[0xff; HEADER]), driver.put(&[7; 60]));
        driver.offer(TRANSMIT, &[header, frame], &[]);
        driver.serve(TRANSMIT);
        let mut got = [1; 100];
        assert_eq!(far.recv(&mut got).unwrap(), HEADER + 60);
        assert_eq!((&got[..HEADER], &got[HEADER..HEADER + 60]), (&[0; HEADER][..], &[7; 60][..]));
        assert_eq!(driver.used(TRANSMIT), Some((0, 0)));

        far.send(&[[0xee; HEADER].as_slice(), &[9; 70]].concat()).unwrap();
        driver.source();
        let room = driver.room(1526);
        driver.offer(RECEIVE, &[], &[room]);
        driver.serve(RECEIVE);
        assert_eq!(driver.used(RECEIVE), Some((0, (HEADER + 70) as u32)));
        assert_eq!(driver.bytes(room)[..HEADER], TO_GUEST);
        assert_eq!(driver.bytes(room)[HEADER..HEADER + 70], [9; 70]);
    }

    #[test]
    fn what_does_not_fit_is_lost_and_nothing_else() {
        let (mut driver, far) = card();
        let (small, large) = (driver.room(20), driver.room(200));
        driver.offer(RECEIVE, &[], &[small]);
        driver.offer(RECEIVE, &[], &[large]);
        for byte in [1, 2] {
            far.send(&[byte; HEADER + 60]).unwrap();
        }
        driver.source();
        assert_eq!(driver.used(RECEIVE), Some((0, 0)));
        assert_eq!(driver.used(RECEIVE), Some((1, (HEADER + 60) as u32)));
        assert_eq!(driver.bytes(large)[HEADER], 2);
        // A frame that is too long, one that is none, and one.
        let (long, none) = (driver.room(HEADER + FRAME + 1), driver.put(&[0; HEADER]));
        let frame = driver.put(&[3; HEADER + 14]);
        for piece in [long, none, frame] {
            driver.offer(TRANSMIT, &[piece], &[]);
        }
        driver.serve(TRANSMIT);
        let mut got = [0; 100];
        assert_eq!(far.recv(&mut got).unwrap(), HEADER + 14);
        assert!(far.recv(&mut got).is_err());
        assert_eq!(driver.errors(), 3);
        assert!(!driver.needs_reset());
    }
}
