//! The control socket: a Unix stream socket on which each line is a request and gets a line of JSON as its answer.
//!
//! | request | |
//! |---|---|
//! | `status` | `"state"` (`running`, `paused`), and the counters so far, as in [`crate::report`] |
//! | `pause` | the same, when all vCPUs are out of the guest. Devices finish what they are at, and the guest's clock goes on |
//! | `resume` | the same, when they may go on |
//! | `stop` | `"state": "stopped"`, when the machine has ended, vCPUs and files in order |
//!
//! `"ok"` is true in all of these. Otherwise it is false and `"error"` says why. A client that says nothing for ever, or
//! more than a request, holds nobody up but may be hung up on. The socket is its owner's alone.
#![forbid(unsafe_code)]

use crate::report::complain;
use crate::supervisor::Notice;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use vmm_sys_util::eventfd::EventFd;

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

/// Where an answer goes.
#[derive(Debug)]
pub struct Reply(UnixStream);

impl Reply {
    /// To this client.
    pub fn new(client: UnixStream) -> Self {
        Self(client)
    }

    /// Sends it.
    pub fn send(mut self, answer: &Value) {
        // A client that is gone, or takes nothing, has no answer.
        let _ = self.0.write_all(format!("{answer}\n").as_bytes());
    }

    /// The machine has ended.
    pub fn stopped(self) {
        self.send(&json!({ "ok": true, "state": "stopped" }));
    }
}

/// A socket's file, which goes with it.
#[derive(Debug)]
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The machine's side of the socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    clients: HashMap<RawFd, (UnixStream, Vec<u8>)>,
    notices: Sender<Notice>,
    _name: Name,
}

impl Server {
    /// Listens there. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// Somebody does, or it is something else.
    pub fn new(path: &Path, notices: Sender<Notice>) -> Result<Self> {
        let complain = || path.display().to_string();
        if let Ok(there) = fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                bail!("{} is there and is no socket", complain());
            }
            if UnixStream::connect(path).is_ok() {
                bail!("{} is another machine's", complain());
            }
            fs::remove_file(path).with_context(complain)?;
        }
        let listener = UnixListener::bind(path).with_context(complain)?;
        let name = Name(path.to_owned());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(complain)?;
        listener.set_nonblocking(true).with_context(complain)?;
        Ok(Self { listener, clients: HashMap::new(), notices, _name: name })
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) -> io::Result<()> {
        let (client, _) = self.listener.accept()?;
        client.set_nonblocking(true)?;
        if self.clients.len() < CLIENTS && ops.add(Events::new(&client, EventSet::IN)).is_ok() {
            self.clients.insert(client.as_raw_fd(), (client, Vec::new()));
        }
        Ok(())
    }

    /// What a client says. Returns whether it may say more.
    fn listen(&mut self, client: RawFd) -> bool {
        let Some((stream, said)) = self.clients.get_mut(&client) else { return true };
        let mut bytes = [0; REQUEST];
        match stream.read(&mut bytes) {
            Ok(count @ 1..) => said.extend(&bytes[..count]),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            Ok(0) => return false,
        }
        while let Some(end) = said.iter().position(|&byte| byte == b'\n') {
            let line: Vec<_> = said.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let Ok(reply) = stream.try_clone().map(Reply::new) else { return false };
            let Ok(verb) = Verb::from_str(line.trim(), false) else {
                let error = "a request is status, pause, resume or stop";
                reply.send(&json!({ "ok": false, "error": error }));
                continue;
            };
            if self.notices.send(Notice::Request(verb, reply)).is_err() {
                return false;
            }
        }
        said.len() < REQUEST
    }
}

impl MutEventSubscriber for Server {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.fd() == self.listener.as_raw_fd() {
            // A client that can't be had may try again.
            let _ = self.accept(ops);
        } else if !self.listen(events.fd())
            && let Some((client, _)) = self.clients.remove(&events.fd())
        {
            let _ = ops.remove(Events::empty(&client));
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&self.listener, EventSet::IN)) {
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
