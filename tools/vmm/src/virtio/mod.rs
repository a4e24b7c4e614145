//! Virtio devices, version 1.x, behind virtio-mmio.
//!
//! [`mmio`] is what the guest's driver talks to: registers, one state machine for all devices. [`worker`] is the other
//! half: the live queues of a device, served on the event loop's thread. What a device does is behind [`Device`].
//! Between the halves are the queues' eventfds (the driver's notifications, which KVM writes to), the interrupt's
//! eventfd (which KVM reads), and one lock that a vCPU takes when it starts or resets a device, never for I/O.
//!
//! The guest is not trusted. A queue is looked at through [`queue`], which bounds every walk; guest memory through
//! [`memory`], which every address of a queue goes through. A queue that can't be understood ends its device
//! (DEVICE_NEEDS_RESET), until the driver resets it; other devices don't notice.
#![forbid(unsafe_code)]

pub mod block;
pub mod buffers;
pub mod console;
pub mod memory;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod worker;

use queue::{Malformed, Queues};
use std::io;
use std::os::fd::RawFd;

/// Descriptors of each queue at most, a power of two.
pub const QUEUE_SIZE: u16 = 256;

/// Why a device is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The driver has made something available in this queue.
    Queue(usize),
    /// The device's [`Device::source`] has something.
    Source,
}

/// A device, apart from transport, threads and interrupts.
pub trait Device: Send {
    /// Its number among virtio's devices.
    fn id(&self) -> u32;

    /// Queues that it has.
    fn queues(&self) -> usize;

    /// Feature bits of its own. Those of queues and transport come on top.
    fn features(&self) -> u64 {
        0
    }

    /// Its configuration space. It doesn't change.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// A file that says, by being readable, that something has arrived from outside. It is watched for edges: the
    /// device reads until there is nothing, or until it has no buffers and asks again when it gets one.
    fn source(&self) -> Option<RawFd> {
        None
    }

    /// The driver has accepted these features; the queues begin.
    fn start(&mut self, _features: u64) {}

    /// Does what there is to do. Returns whether there is more of it: then it is called for the queue again, or for the first
    /// one if it was for the source, after others had their turn.
    ///
    /// # Errors
    ///
    /// A queue can't be understood; the device is over until it is reset.
    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, Malformed>;

    /// The driver has reset it: what it had of requests is gone.
    fn reset(&mut self) {}

    /// The machine ends: what has been written is to last.
    ///
    /// # Errors
    ///
    /// It may not.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}
