//! A thread with an event loop. The machine ends if it can't go on.

use crate::report::{End, complain};
use crate::supervisor::{Alarm, Notice};
use anyhow::{Context, Result};
use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc::Sender};
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
    /// Begins with these. If it can't go on, `notices` are told.
    ///
    /// # Errors
    ///
    /// No thread, or no files for it.
    pub fn start(
        name: &str,
        subscribers: Vec<Subscriber>,
        notices: Sender<Notice>,
    ) -> Result<Self> {
        let wake = EventFd::new(0).context("an eventfd")?;
        let mut manager = EventManager::<Subscriber>::new().context("an event loop")?;
        manager.add_subscriber(Box::new(Wake(wake.try_clone().context("an eventfd")?)));
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let ending = Arc::new(AtomicBool::new(false));
        let end = ending.clone();
        let run = move || {
            let _alarm = Alarm::new(notices.clone());
            while !end.load(SeqCst) {
                if let Err(error) = manager.run() {
                    let why = format!("an event loop can't go on: {error}");
                    // If nobody listens the machine has ended already.
                    let _ = notices.send(Notice::End(End::Failed(why)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// What panics at its first event, which is there at once.
    struct Wrong(EventFd);

    impl MutEventSubscriber for Wrong {
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            panic!("of this test");
        }

        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_panic_ends_the_machine() {
        let (sender, notices) = mpsc::channel();
        let wrong = Wrong(EventFd::new(0).unwrap());
        wrong.0.write(1).unwrap();
        let thread = EventLoop::start("devices", vec![Box::new(wrong)], sender).unwrap();
        let Ok(Notice::End(end)) = notices.recv() else { panic!("no end") };
        assert_eq!(end, End::Failed("the thread devices has panicked".to_owned()));
        assert!(thread.end().join().is_err());
        // Who comes to its own end says nothing.
        let (sender, notices) = mpsc::channel();
        EventLoop::start("devices", Vec::new(), sender).unwrap().end().join().unwrap();
        assert!(notices.recv().is_err());
    }
}
