//! Who decides about the machine, from its start to its end: one thread that is told what happens and what is wanted.
#![forbid(unsafe_code)]

use crate::control::{Reply, Verb};
use crate::gate::Gate;
use crate::report::{End, Report};
use serde_json::{Value, json};
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::Duration;

/// How long all vCPUs may take to leave the guest.
const PATIENCE: Duration = Duration::from_secs(5);

/// What it is told.
#[derive(Debug)]
pub enum Notice {
    /// A thread has come to an end, and the machine with it.
    End(End),
    /// A signal or the terminal says that it's to end.
    Stop,
    /// Somebody asks for something by the control socket.
    Request(Verb, Reply),
}

/// Ends the machine if the thread that has it panics: what others wait for would never come.
#[derive(Debug)]
pub struct Alarm(Sender<Notice>);

impl Alarm {
    /// For the thread that takes it along.
    pub fn new(notices: Sender<Notice>) -> Self {
        Self(notices)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            let thread = thread::current();
            let why = format!("the thread {} has panicked", thread.name().unwrap_or_default());
            // If nobody listens the machine has ended already.
            let _ = self.0.send(Notice::End(End::Failed(why)));
        }
    }
}

/// The decisions.
pub struct Supervisor<'a> {
    gate: &'a Gate,
    report: &'a Report,
    paused: bool,
}

impl<'a> Supervisor<'a> {
    /// For a machine that runs: what its vCPUs pass, and what the control socket tells of them.
    pub fn new(gate: &'a Gate, report: &'a Report) -> Self {
        Self { gate, report, paused: false }
    }

    /// Does what is wanted until the machine ends. Returns why it does, and who waits for that.
    pub fn supervise(
        mut self,
        notices: &Receiver<Notice>,
        kick: impl Fn(),
    ) -> (End, Option<Reply>) {
        loop {
            match notices.recv() {
                Ok(Notice::End(end)) => return (end, None),
                Ok(Notice::Stop) => return (End::Stopped, None),
                Ok(Notice::Request(Verb::Stop, reply)) => return (End::Stopped, Some(reply)),
                Ok(Notice::Request(verb, reply)) => reply.send(&self.carry_out(verb, &kick)),
                Err(_) => return (End::Failed("all vCPUs are gone".to_owned()), None),
            }
        }
    }

    fn carry_out(&mut self, verb: Verb, kick: &impl Fn()) -> Value {
        match verb {
            Verb::Pause => {
                if !self.paused && !self.gate.pause(kick, PATIENCE) {
                    return json!({ "ok": false, "error": "a vCPU doesn't leave the guest" });
                }
                self.paused = true;
            }
            Verb::Resume => {
                self.gate.resume();
                self.paused = false;
            }
            Verb::Status | Verb::Stop => {}
        }
        let mut answer = self.report.value();
        answer["ok"] = true.into();
        answer["state"] = if self.paused { "paused" } else { "running" }.into();
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::Live;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::sync::mpsc;

    #[test]
    fn a_machine_is_paused_resumed_and_stopped() {
        let (gate, steps) = (Arc::new(Gate::new(2)), AtomicU64::new(0));
        let (counters, stats, devices) = (Arc::default(), Vec::new(), Vec::new());
        let report = Report { vcpus: 2, protected: None, counters, stats, devices };
        let (sender, notices) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let _live = Live::new(gate.clone());
                    while gate.pass() {
                        steps.fetch_add(1, SeqCst);
                        thread::yield_now();
                    }
                });
            }
            let (gate, report) = (&gate, &report);
            let supervisor = scope.spawn(move || {
                let ended = Supervisor::new(gate, report).supervise(&notices, || {});
                gate.stop();
                ended
            });
            let ask = |verb| {
                let (near, far) = UnixStream::pair().unwrap();
                sender.send(Notice::Request(verb, Reply::to(far))).unwrap();
                let mut line = String::new();
                BufReader::new(near).read_line(&mut line).unwrap();
                serde_json::from_str::<Value>(&line).unwrap()
            };
            assert_eq!(ask(Verb::Status)["state"], "running");
            for _ in 0..2 {
                assert_eq!(ask(Verb::Pause)["state"], "paused");
            }
            let before = steps.load(SeqCst);
            assert_eq!(ask(Verb::Status)["state"], "paused");
            assert_eq!(steps.load(SeqCst), before);
            let running = ask(Verb::Resume);
            assert_eq!((&running["state"], &running["ok"]), (&"running".into(), &true.into()));
            let (_near, far) = UnixStream::pair().unwrap();
            sender.send(Notice::Request(Verb::Stop, Reply::to(far))).unwrap();
            let (end, waits) = supervisor.join().unwrap();
            assert_eq!((end, waits.is_some()), (End::Stopped, true));
        });
    }
}
