//! A thread with an event loop.

use crate::report::complain;
use anyhow::{Context, Result};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use vmm_sys_util::eventfd::EventFd;

/// Who is told of events.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// The thread. It goes on until it is told to end.
#[derive(Debug)]
pub struct EventLoop {
    thread: JoinHandle<()>,
    ending: Arc<AtomicBool>,
    wake: EventFd,
}

/// Wakes the loop up.
struct Wake(EventFd);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {}

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            complain(format_args!("an event loop won't end: {error}"));
        }
    }
}

impl EventLoop {
    /// Begins with these.
    ///
    /// # Errors
    ///
    /// No thread, or no files for it.
    pub fn start(name: &str, subscribers: Vec<Subscriber>) -> Result<Self> {
        let wake = EventFd::new(0).context("an eventfd")?;
        let mut manager = EventManager::<Subscriber>::new().context("an event loop")?;
        manager.add_subscriber(Box::new(Wake(wake.try_clone().context("an eventfd")?)));
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let ending = Arc::new(AtomicBool::new(false));
        let end = ending.clone();
        let run = move || {
            while !end.load(SeqCst) {
                if let Err(error) = manager.run() {
                    complain(format_args!("an event loop can't go on: {error}"));
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        Ok(Self { thread: thread.context("a thread")?, ending, wake })
    }

    /// Tells it to end. Its thread can be joined then, when it has done what it is at.
    pub fn end(self) -> JoinHandle<()> {
        self.ending.store(true, SeqCst);
        let _ = self.wake.write(1);
        self.thread
    }
}
