//! The control socket: a Unix stream socket on which each line is a request and gets a line of JSON as its answer.
//!
//! | request | |
//! |---|---|
//! | `status` | `"state"` (`running`, `paused`), and the counters so far, as in [`crate::report`] |
//! | `pause` | the same, when all vCPUs are out of the guest. Devices finish what they are at, and the guest's clock goes on |
//! | `resume` | the same, when they may go on |
//! | `stop` | `"state": "stopped"`, when the machine has ended, vCPUs and files in order |
//!
//! `"ok"` is true in all of these. Otherwise it is false and `"error"` says why.
//!
//! Clients hold nobody up. Each has one request at a time: the next one is looked at when that is answered. Who says more
//! than a request in a line, or doesn't take an answer, is hung up on, and so is who has been silent for longest when
//! there is no place for a new one. The socket is its owner's alone.
#![forbid(unsafe_code)]

mod name;

use crate::report::complain;
use crate::supervisor::Notice;
use anyhow::{Context, Result};
use clap::ValueEnum;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use name::Name;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc::Sender};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Clients at a time.
const CLIENTS: usize = 16;
/// Bytes of a request.
const REQUEST: usize = 64;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verb {
    /// How it is.
    Status,
    /// All vCPUs leave the guest.
    Pause,
    /// They go on.
    Resume,
    /// The machine ends.
    Stop,
}

/// A client, as far as who answers it knows.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// For an answer.
    waits: AtomicBool,
}

impl Client {
    fn send(&self, answer: &Value) {
        // It is gone, or has no room. The rest of a line would be the beginning of the next one.
        if (&self.stream).write_all(format!("{answer}\n").as_bytes()).is_err() {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }

    fn waits(&self) -> bool {
        self.waits.load(SeqCst)
    }
}

/// Where an answer goes. The server hears when it is gone, used or not.
#[derive(Debug)]
pub struct Reply {
    client: Arc<Client>,
    answered: Arc<EventFd>,
}

impl Reply {
    /// To a client that no server knows of.
    #[cfg(test)]
    pub fn to(stream: UnixStream) -> Self {
        let answered = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self { client: Arc::new(Client { stream, waits: true.into() }), answered }
    }

    /// Sends it.
    pub fn send(self, answer: &Value) {
        self.client.send(answer);
    }

    /// The machine has ended.
    pub fn stopped(self) {
        self.send(&json!({ "ok": true, "state": "stopped" }));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.client.waits.store(false, SeqCst);
        let _ = self.answered.write(1);
    }
}

/// A client's place at the server.
#[derive(Debug)]
struct Place {
    client: Arc<Client>,
    /// What has not been looked at.
    said: Vec<u8>,
    /// When there was something of it last, by the server's count.
    heard: u64,
    /// Whether the event loop looks at it, which it doesn't while it waits.
    watched: bool,
}

/// The machine's side of the socket.
#[derive(Debug)]
pub struct Server {
    // It goes first: who finds a name that nobody listens at takes it.
    _name: Name,
    listener: UnixListener,
    places: HashMap<RawFd, Place>,
    heard: u64,
    answered: Arc<EventFd>,
    notices: Sender<Notice>,
}

impl Server {
    /// Listens there. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// Somebody does, or it is something else.
    pub fn new(path: &Path, notices: Sender<Notice>) -> Result<Self> {
        let (name, listener) = Name::bind(path)?;
        listener.set_nonblocking(true).context("the control socket")?;
        let answered = Arc::new(EventFd::new(EFD_NONBLOCK).context("an eventfd")?);
        let places = HashMap::new();
        Ok(Self { _name: name, listener, places, heard: 0, answered, notices })
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) -> io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        stream.set_nonblocking(true)?;
        if self.places.len() >= CLIENTS {
            let silent = self.places.iter().filter(|(_, place)| !place.client.waits());
            // Who waits keeps its place, also if it is gone: so no more requests wait than there are places.
            let Some((&fd, _)) = silent.min_by_key(|(_, place)| place.heard) else { return Ok(()) };
            self.hang_up(fd, ops);
        }
        if ops.add(Events::new(&stream, EventSet::IN)).is_ok() {
            self.heard += 1;
            let fd = stream.as_raw_fd();
            let client = Arc::new(Client { stream, waits: false.into() });
            let place = Place { client, said: Vec::new(), heard: self.heard, watched: true };
            self.places.insert(fd, place);
        }
        Ok(())
    }

    fn hang_up(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        if let Some(place) = self.places.remove(&fd)
            && place.watched
        {
            let _ = ops.remove(Events::empty(&place.client.stream));
        }
    }

    /// What a client says. Returns whether it may say more.
    fn listen(&mut self, fd: RawFd) -> bool {
        let Some(place) = self.places.get_mut(&fd) else { return true };
        let mut bytes = [0; REQUEST];
        match (&place.client.stream).read(&mut bytes) {
            Ok(count @ 1..) => place.said.extend(&bytes[..count]),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            Ok(0) => return false,
        }
        self.look(fd)
    }

    /// Looks at what a client has said, up to a request that waits. Returns whether it may say more.
    fn look(&mut self, fd: RawFd) -> bool {
        let Some(Place { client, said, heard, .. }) = self.places.get_mut(&fd) else { return true };
        self.heard += 1;
        *heard = self.heard;
        while !client.waits()
            && let Some(end) = said.iter().position(|&byte| byte == b'\n')
        {
            let line: Vec<_> = said.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let Ok(verb) = Verb::from_str(line.trim(), false) else {
                let error = "a request is status, pause, resume or stop";
                client.send(&json!({ "ok": false, "error": error }));
                continue;
            };
            client.waits.store(true, SeqCst);
            let reply = Reply { client: client.clone(), answered: self.answered.clone() };
            if self.notices.send(Notice::Request(verb, reply)).is_err() {
                return false;
            }
        }
        client.waits() || said.len() < REQUEST
    }

    /// Watches a client, unless it waits. Returns whether that is possible.
    fn watch(&mut self, fd: RawFd, ops: &mut EventOps<'_>) -> bool {
        let Some(Place { client, watched, .. }) = self.places.get_mut(&fd) else { return true };
        // An answer that comes right after this is an event.
        let wanted = !client.waits();
        let events = Events::new(&client.stream, EventSet::IN);
        let done = match (*watched, wanted) {
            (false, true) => ops.add(events),
            (true, false) => ops.remove(events),
            _ => Ok(()),
        };
        *watched = wanted && done.is_ok();
        done.is_ok()
    }
}

impl MutEventSubscriber for Server {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.listener.as_raw_fd() {
            // A client that can't be had may try again.
            let _ = self.accept(ops);
        } else if fd == self.answered.as_raw_fd() {
            let _ = self.answered.read();
            let waiting = self.places.iter().filter(|(_, place)| !place.watched);
            for fd in waiting.map(|(&fd, _)| fd).collect::<Vec<_>>() {
                if !(self.look(fd) && self.watch(fd, ops)) {
                    self.hang_up(fd, ops);
                }
            }
        } else if !(self.listen(fd) && self.watch(fd, ops)) {
            self.hang_up(fd, ops);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let watched = ops
            .add(Events::new(&self.listener, EventSet::IN))
            .and_then(|()| ops.add(Events::new(&*self.answered, EventSet::IN)));
        if let Err(error) = watched {
            complain(format_args!("the control socket is deaf: {error}"));
        }
    }
}

/// Passes signals on: an eventfd's event is that the machine is to end.
#[derive(Debug)]
pub struct Signals {
    event: EventFd,
    notices: Sender<Notice>,
}

impl Signals {
    /// Those of this eventfd.
    pub fn new(event: EventFd, notices: Sender<Notice>) -> Self {
        Self { event, notices }
    }
}

impl MutEventSubscriber for Signals {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.event.read();
        // If nobody listens it is ending already.
        let _ = self.notices.send(Notice::Stop);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.event, EventSet::IN)) {
            complain(format_args!("signals go unheard: {error}"));
        }
    }
}

/// Asks the machine whose socket this is. Returns its answer, and whether it says that all is well.
///
/// # Errors
///
/// Nobody listens there, or it ends before it answers.
pub fn ask(path: &Path, verb: Verb) -> Result<(String, bool)> {
    let complain = || path.display().to_string();
    let mut stream = UnixStream::connect(path).with_context(complain)?;
    let name = verb.to_possible_value().context("a verb without a name")?;
    writeln!(stream, "{}", name.get_name()).with_context(complain)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).with_context(complain)?;
    let value: Value = serde_json::from_str(&answer).context("the machine has ended")?;
    Ok((answer.trim_end().to_owned(), value["ok"] == true))
}

#[cfg(test)]
mod tests;
