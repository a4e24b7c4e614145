//! The guest's serial port: an 8250, whose output is the terminal's.

use crate::report::Counters;
use anyhow::{Context, Result};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Its interrupt: an eventfd that KVM turns into an edge.
#[derive(Debug)]
pub struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Standard output, counted.
#[derive(Debug)]
pub struct Output(Arc<Counters>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = io::stdout().write(bytes)?;
        self.0.console.fetch_add(written as u64, Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

/// A serial port for all vCPUs.
#[derive(Clone)]
pub struct Console(Arc<Mutex<Serial<Interrupt, vm_superio::serial::NoEvents, Output>>>);

impl Console {
    /// One whose interrupt is `irq`.
    pub fn new(irq: EventFd, counters: Arc<Counters>) -> Self {
        Self(Arc::new(Mutex::new(Serial::new(Interrupt(irq), Output(counters)))))
    }

    /// A load.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset @ 0..8), [byte]) = (u8::try_from(offset), data) {
            *byte = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
        }
    }

    /// A store.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset @ 0..8), &[byte]) = (u8::try_from(offset), data) {
            // What the terminal doesn't take is lost, as on a wire.
            let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, byte);
        }
    }

    /// Passes standard input on until it ends.
    pub fn listen(&self) -> Result<()> {
        let console = self.clone();
        let listen = move || {
            let mut buffer = [0; 64];
            while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
                let mut rest = &buffer[..count];
                while !rest.is_empty() {
                    let mut serial = console.0.lock().unwrap_or_else(PoisonError::into_inner);
                    match serial.enqueue_raw_bytes(rest) {
                        Ok(taken) => rest = &rest[taken..],
                        Err(_) => return,
                    }
                    drop(serial);
                    if !rest.is_empty() {
                        // Its FIFO is full.
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                }
            }
        };
        std::thread::Builder::new().name("console".to_owned()).spawn(listen).context("a thread")?;
        Ok(())
    }
}
