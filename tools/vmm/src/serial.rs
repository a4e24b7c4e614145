//! The guest's serial port: an 8250, whose output is the terminal's.

use crate::bus::Registers;
use crate::report::complain;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Its interrupt: an eventfd that KVM turns into an edge.
#[derive(Debug)]
pub struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Says when the guest has read all that there was.
#[derive(Debug)]
pub struct Emptied(EventFd);

impl SerialEvents for Emptied {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

type Port<W> = Serial<Interrupt, Emptied, W>;

/// A serial port for all vCPUs.
pub struct Uart<W: Write>(Arc<Mutex<Port<W>>>);

impl<W: Write> Clone for Uart<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W: Write> Uart<W> {
    /// One whose interrupt is `irq`.
    ///
    /// # Errors
    ///
    /// No eventfd.
    pub fn new(irq: EventFd, output: W) -> io::Result<Self> {
        let emptied = Emptied(EventFd::new(EFD_NONBLOCK)?);
        let port = Serial::with_events(Interrupt(irq), emptied, output);
        Ok(Self(Arc::new(Mutex::new(port))))
    }

    fn lock(&self) -> MutexGuard<'_, Port<W>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What passes on to the guest whatever comes through `input`.
    ///
    /// # Errors
    ///
    /// `input` can't be looked at without waiting, or no file is left.
    pub fn listen(&self, input: UnixStream) -> io::Result<Input<W>> {
        input.set_nonblocking(true)?;
        let emptied = self.lock().events().0.try_clone()?;
        Ok(Input { port: self.clone(), input, emptied })
    }
}

impl<W: Write + Send> Registers for Uart<W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset @ 0..8), [byte]) = (u8::try_from(offset), data) {
            *byte = self.lock().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset @ 0..8), &[byte]) = (u8::try_from(offset), data) {
            // What the terminal doesn't take is lost, as on a wire.
            let _ = self.lock().write(offset, byte);
        }
    }
}

/// The port's input.
pub struct Input<W: Write> {
    port: Uart<W>,
    input: UnixStream,
    emptied: EventFd,
}

impl<W: Write> Input<W> {
    /// As much as there is, and as the port has room for.
    fn pass_on(&mut self) {
        let mut port = self.port.lock();
        loop {
            let mut bytes = [0; 64];
            let room = port.fifo_capacity().min(bytes.len());
            match self.input.read(&mut bytes[..room]) {
                // A port that loops its output back has no use for it.
                Ok(count @ 1..) => {
                    let _ = port.enqueue_raw_bytes(&bytes[..count]);
                }
                _ => return,
            }
        }
    }
}

impl<W: Write> MutEventSubscriber for Input<W> {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // Nothing in it is all right: the other file has something then.
        let _ = self.emptied.read();
        self.pass_on();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let watched = ops
            .add(Events::new(&self.emptied, EventSet::IN))
            .and_then(|()| ops.add(Events::new(&self.input, edges)));
        if let Err(error) = watched {
            complain(format_args!("the serial port is deaf: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_waits_for_room() {
        let (mut terminal, input) = UnixStream::pair().unwrap();
        let port = Uart::new(EventFd::new(EFD_NONBLOCK).unwrap(), io::sink()).unwrap();
        let mut input = port.listen(input).unwrap();
        let text: Vec<u8> = (0..200).collect();
        terminal.write_all(&text).unwrap();
        let mut got = Vec::new();
        while got.len() < text.len() {
            input.pass_on();
            let mut status = [0];
            loop {
                port.read(5, &mut status);
                if status[0] & 1 == 0 {
                    break;
                }
                let mut byte = [0];
                port.read(0, &mut byte);
                got.extend(byte);
            }
            assert!(input.emptied.read().is_ok());
        }
        assert_eq!(got, text);
        // What isn't a byte, and isn't there.
        let mut wide = [1; 4];
        port.read(0, &mut wide);
        assert_eq!(wide, [0; 4]);
        port.write(8, &[1]);
        port.write(u64::MAX, &[1]);
    }
}
