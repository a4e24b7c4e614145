//! The half of a device that works: its live queues, on the event loop's thread.

use super::memory::DeviceMemory;
use super::queue::{Malformed, Queues};
use super::{Device, Event};
use crate::report::{DeviceCounters, complain};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_ACCESS_PLATFORM};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What both halves of a device change: its status, and its interrupt.
#[derive(Debug)]
pub struct Line {
    /// The status register.
    pub status: AtomicU32,
    /// The interrupt status register.
    pub pending: AtomicU32,
    irq: EventFd,
}

impl Line {
    fn interrupt(&self, why: u32) {
        self.pending.fetch_or(why, SeqCst);
        // Full is impossible while KVM reads it; an interrupt more would tell the guest nothing new either.
        let _ = self.irq.write(1);
    }
}

/// A device with its queues.
pub struct Worker {
    device: Box<dyn Device>,
    /// None before the driver has started it, and after it was found malformed.
    queues: Option<Queues>,
    memory: DeviceMemory,
    line: Arc<Line>,
    kicks: Vec<EventFd>,
    counters: Arc<DeviceCounters>,
}

impl Worker {
    /// One for this device, with an eventfd for the interrupt.
    ///
    /// # Errors
    ///
    /// No eventfds for its queues.
    pub fn new(
        device: Box<dyn Device>,
        memory: DeviceMemory,
        irq: EventFd,
        counters: Arc<DeviceCounters>,
    ) -> io::Result<Self> {
        let kicks = (0..device.queues()).map(|_| EventFd::new(EFD_NONBLOCK));
        let kicks = kicks.collect::<io::Result<_>>()?;
        let line = Arc::new(Line { status: 0.into(), pending: 0.into(), irq });
        Ok(Self { device, queues: None, memory, line, kicks, counters })
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Features that all devices have here and not everywhere: the driver asks where memory is for a device.
    pub fn features(&self) -> u64 {
        if self.memory.is_translated() { 1 << VIRTIO_F_ACCESS_PLATFORM } else { 0 }
    }

    /// What the other half changes as well.
    pub fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// The eventfds by which the driver notifies, one for each queue.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The driver has started it, with these features and queues.
    pub fn start(&mut self, features: u64, states: &[QueueState]) {
        match Queues::new(self.memory.clone(), states) {
            Ok(queues) => {
                self.queues = Some(queues);
                self.device.start(features);
                // It may have put buffers there before, and something may be waiting for them.
                for kick in &self.kicks {
                    let _ = kick.write(1);
                }
            }
            Err(why) => self.give_up(&why),
        }
    }

    /// The driver has reset it.
    pub fn reset(&mut self) {
        self.queues = None;
        self.device.reset();
        self.line.status.store(0, SeqCst);
        self.line.pending.store(0, SeqCst);
    }

    /// Lets the device do its work.
    pub fn serve(&mut self, event: Event) {
        let Some(queues) = &mut self.queues else { return };
        let served = self.device.serve(event, queues);
        let interrupt = served.and_then(|more| Ok((more, queues.take_interrupt()?)));
        match interrupt {
            Ok((more, interrupt)) => {
                if interrupt {
                    self.line.interrupt(VIRTIO_MMIO_INT_VRING);
                }
                if more {
                    let index = if let Event::Queue(index) = event { index } else { 0 };
                    if let Some(kick) = self.kicks.get(index) {
                        let _ = kick.write(1);
                    }
                }
            }
            Err(why) => self.give_up(&why),
        }
    }

    fn give_up(&mut self, why: &Malformed) {
        self.queues = None;
        // Said once: a guest that does it again and again doesn't fill anything.
        if self.counters.malformed() == 0 {
            complain(format_args!("{} needs a reset: {why}", self.counters.name()));
        }
        self.counters.count_malformed();
        self.line.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, SeqCst);
        self.line.interrupt(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The machine ends.
    ///
    /// # Errors
    ///
    /// Of the device's file.
    pub fn finish(&mut self) -> io::Result<()> {
        self.queues = None;
        self.device.finish()
    }
}

/// A device for all who need it.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Worker>>);

impl Shared {
    /// This one.
    pub fn new(worker: Worker) -> Self {
        Self(Arc::new(Mutex::new(worker)))
    }

    /// While it does nothing.
    pub fn lock(&self) -> MutexGuard<'_, Worker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the events of a device's source carry; those of a queue carry its index.
const SOURCE: u32 = u32::MAX;

impl MutEventSubscriber for Shared {
    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        let mut worker = self.lock();
        let event = match events.data() {
            SOURCE => Event::Source,
            index => {
                let index = index as usize;
                if let Some(kick) = worker.kicks.get(index) {
                    // Nothing in it is all right.
                    let _ = kick.read();
                }
                Event::Queue(index)
            }
        };
        worker.serve(event);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let worker = self.lock();
        let kicks = worker.kicks.iter().map(AsRawFd::as_raw_fd);
        let queues = (0..).zip(kicks).map(|(n, fd)| Events::with_data_raw(fd, n, EventSet::IN));
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let source = worker.device.source();
        let source = source.map(|fd| Events::with_data_raw(fd, SOURCE, edges));
        if let Err(error) = queues.chain(source).try_for_each(|events| ops.add(events)) {
            complain(format_args!("{} is deaf: {error}", worker.counters.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::events::EventLoop;
    use crate::virtio::rng::Rng;
    use crate::virtio::testing::Driver;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn the_event_loop_serves_it() {
        let mut driver = Driver::new(Rng::new);
        let worker = driver.transport.worker().clone();
        let (sender, _notices) = mpsc::channel();
        let devices = EventLoop::start("devices", vec![Box::new(worker.clone())], sender).unwrap();
        driver.begin(0);
        // More than it does in one turn.
        let room = driver.room(8);
        for _ in 0..100 {
            driver.offer(0, &[], &[room]);
        }
        worker.lock().kicks()[0].write(1).unwrap();
        for _ in 0..100 {
            while driver.used(0).is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        devices.end().join().unwrap();
        assert!(driver.interrupted());
    }
}
