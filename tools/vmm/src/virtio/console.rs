//! A console with one port, `hvc0` in Linux.

use super::queue::{Malformed, Queues, TURN};
use super::{Device, Event};
use crate::report::DeviceCounters;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

/// The queues' indices: to the guest, and from it.
const INPUT: usize = 0;
const OUTPUT: usize = 1;
/// Bytes that are on their way at once.
const PIECE: usize = 4096;
/// Bytes of a chain of output at most. No driver has so much to say, and the terminal may be slow.
const LIMIT: usize = 1 << 20;

/// The device.
pub struct Console<W> {
    input: UnixStream,
    output: W,
    counters: Arc<DeviceCounters>,
}

impl<W: Write + Send> Console<W> {
    /// One that passes on what comes through `input`.
    ///
    /// # Errors
    ///
    /// `input` can't be looked at without waiting.
    pub fn new(input: UnixStream, output: W, counters: Arc<DeviceCounters>) -> io::Result<Self> {
        input.set_nonblocking(true)?;
        Ok(Self { input, output, counters })
    }

    /// Bytes to the guest, as long as there are some and it has room.
    fn input(&mut self, queues: &mut Queues) -> Result<bool, Malformed> {
        for _ in 0..TURN {
            // A chain is only taken for something that is there.
            if !rustix::io::ioctl_fionread(&self.input).is_ok_and(|count| count > 0) {
                return Ok(false);
            }
            let taken = queues.take(INPUT, |chain| {
                let mut bytes = [0; PIECE];
                let room = chain.writer.available_bytes().min(PIECE);
                let got = self.input.read(&mut bytes[..room]).unwrap_or(0);
                chain.writer.write_all(&bytes[..got]).map_err(Malformed::new)?;
                self.counters.count_request();
                self.counters.count_bytes(got);
                Ok(got as u32)
            })?;
            if !taken {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes from the guest.
    fn output(&mut self, queues: &mut Queues) -> Result<bool, Malformed> {
        queues.drain(OUTPUT, |chain| {
            self.counters.count_request();
            if chain.reader.available_bytes() > LIMIT {
                self.counters.count_error();
                return Ok(0);
            }
            let mut bytes = [0; PIECE];
            while let Ok(got @ 1..) = chain.reader.read(&mut bytes) {
                // What the terminal doesn't take is lost, as on a wire.
                if self.output.write_all(&bytes[..got]).is_err() {
                    self.counters.count_error();
                }
                self.counters.count_bytes(got);
            }
            Ok(0)
        })
    }
}

impl<W: Write + Send> Device for Console<W> {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queues(&self) -> usize {
        2
    }

    /// Of a console without features: columns, rows, ports, an emergency's character.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.input.as_raw_fd())
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, Malformed> {
        match event {
            Event::Queue(OUTPUT) => self.output(queues),
            Event::Queue(_) | Event::Source => self.input(queues),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Driver;

    #[test]
    fn bytes_go_both_ways() {
        let (mut terminal, input) = UnixStream::pair().unwrap();
        let (output, mut shown) = UnixStream::pair().unwrap();
        let mut driver = Driver::new(|counters| Console::new(input, output, counters).unwrap());
        driver.begin(0);
        let out = driver.put(b"hello");
        driver.offer(OUTPUT, &[out], &[]);
        driver.serve(OUTPUT);
        let mut text = [0; 5];
        shown.read_exact(&mut text).unwrap();
        assert_eq!((&text, driver.used(OUTPUT)), (b"hello", Some((0, 0))));

        // Input waits for a buffer, and a buffer for input.
        terminal.write_all(b"abc").unwrap();
        driver.source();
        let room = driver.room(2);
        driver.offer(INPUT, &[], &[room]);
        driver.serve(INPUT);
        assert_eq!(driver.used(INPUT), Some((0, 2)));
        assert_eq!(driver.bytes(room), b"ab");
        let room = driver.room(8);
        driver.offer(INPUT, &[], &[room]);
        driver.serve(INPUT);
        assert_eq!(driver.used(INPUT), Some((1, 1)));
        let room = driver.room(8);
        driver.offer(INPUT, &[], &[room]);
        driver.serve(INPUT);
        assert_eq!(driver.used(INPUT), None);
        terminal.write_all(b"d").unwrap();
        driver.source();
        assert_eq!(driver.used(INPUT), Some((2, 1)));
    }
}
