//! Live queues, and chains of descriptors out of them.
//!
//! What the driver writes into a queue is checked here: a walk along a chain ends after as many descriptors as the queue
//! has, buffers are inside of memory, and what the device reads comes before what it writes. There is one walk, and it
//! reads each descriptor once: the driver may change them at any time, and what is used is what was checked. A device
//! gets a reader and a writer for the whole chain, however it is cut into descriptors; how many bytes it takes is its own
//! decision.

use super::buffers::{Reader, Writer};
use super::memory::DeviceMemory;
use std::fmt;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{GuestMemory, GuestMemoryError, Permissions};

/// A queue that can't be understood, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(String);

impl Malformed {
    /// Because of this.
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<virtio_queue::Error> for Malformed {
    fn from(error: virtio_queue::Error) -> Self {
        Self::new(error)
    }
}

impl From<GuestMemoryError> for Malformed {
    fn from(error: GuestMemoryError) -> Self {
        Self::new(error)
    }
}

/// Chains that a device handles before others have their turn.
pub const TURN: usize = 16;

/// A chain of descriptors that the driver has made available.
pub struct Chain<'m> {
    /// By which it is given back.
    head: u16,
    /// What the device is to read.
    pub reader: Reader<'m>,
    /// What it is to write.
    pub writer: Writer<'m>,
    /// Descriptors.
    pub count: usize,
    /// Bytes of the longest one.
    pub longest: u32,
}

/// A queue.
pub struct Live {
    queue: Queue,
    used: bool,
}

impl Live {
    fn pop<'m, M>(&mut self, memory: &'m M) -> Result<Option<Chain<'m>>, Malformed>
    where
        M: GuestMemory<Bitmap = ()>,
    {
        let Some(descriptors) = self.queue.iter(memory)?.next() else { return Ok(None) };
        let mut chain = Chain {
            head: descriptors.head_index(),
            reader: Reader::default(),
            writer: Writer::default(),
            count: 0,
            longest: 0,
        };
        let (mut writable, mut more) = (false, true);
        for descriptor in descriptors.take(self.queue.size().into()) {
            if writable && !descriptor.is_write_only() {
                return Err(Malformed::new("a buffer to read behind one to write"));
            }
            writable = descriptor.is_write_only();
            more = descriptor.has_next();
            chain.count += 1;
            chain.longest = chain.longest.max(descriptor.len());
            let access = if writable { Permissions::Write } else { Permissions::Read };
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize, access)? {
                if writable {
                    chain.writer.push(slice?);
                } else {
                    chain.reader.push(slice?);
                }
            }
        }
        if more {
            return Err(Malformed::new("a chain without an end"));
        }
        Ok(Some(chain))
    }

    fn push(&mut self, memory: &DeviceMemory, head: u16, bytes: u32) -> Result<(), Malformed> {
        self.used = true;
        Ok(self.queue.add_used(memory, head, bytes)?)
    }
}

/// The queues of a device that its driver has started.
pub struct Queues {
    memory: DeviceMemory,
    live: Vec<Option<Live>>,
}

impl Queues {
    /// As the driver has set them up. It need not use all.
    ///
    /// # Errors
    ///
    /// A queue's size is no power of two or too large, a ring isn't aligned or not in memory.
    pub fn new(memory: DeviceMemory, states: &[QueueState]) -> Result<Self, Malformed> {
        let live = states.iter().map(|&state| {
            if !state.ready {
                return Ok(None);
            }
            let queue = Queue::try_from(state)?;
            if !queue.is_valid(&memory) {
                return Err(Malformed::new("a ring that isn't in memory"));
            }
            Ok(Some(Live { queue, used: false }))
        });
        let live = live.collect::<Result<_, Malformed>>()?;
        Ok(Self { memory, live })
    }

    /// Gives chains of a queue to `each`, which returns how many bytes it has written, until there are none or it is
    /// others' turn. Returns whether there may be more.
    ///
    /// # Errors
    ///
    /// The queue can't be understood, or `each` can't understand a chain.
    pub fn drain(
        &mut self,
        index: usize,
        mut each: impl FnMut(&mut Chain<'_>) -> Result<u32, Malformed>,
    ) -> Result<bool, Malformed> {
        for _ in 0..TURN {
            if !self.take(index, &mut each)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Gives one chain of a queue to `each`, like [`Self::drain`]. Returns whether there was one; if not, the driver will
    /// notify when there is.
    ///
    /// # Errors
    ///
    /// As [`Self::drain`].
    pub fn take(
        &mut self,
        index: usize,
        mut each: impl FnMut(&mut Chain<'_>) -> Result<u32, Malformed>,
    ) -> Result<bool, Malformed> {
        let Some(Some(live)) = self.live.get_mut(index) else { return Ok(false) };
        let chain = match live.pop(&self.memory)? {
            // The driver may have added one before it could see that it has to notify.
            None if live.queue.enable_notification(&self.memory)? => live.pop(&self.memory)?,
            chain => chain,
        };
        let Some(mut chain) = chain else { return Ok(false) };
        let bytes = each(&mut chain)?;
        live.push(&self.memory, chain.head, bytes)?;
        Ok(true)
    }

    /// Whether the driver wants an interrupt for what was given back since the last call.
    ///
    /// # Errors
    ///
    /// A ring is not in memory any more.
    pub fn take_interrupt(&mut self) -> Result<bool, Malformed> {
        let mut wanted = false;
        for live in self.live.iter_mut().flatten().filter(|live| live.used) {
            live.used = false;
            wanted |= live.queue.needs_notification(&self.memory)?;
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests;
