//! The terminal: standard input and output.
//!
//! Input is attached to one console at most. If it is a terminal then it is raw meanwhile, so that the guest gets every key,
//! and what it was before is restored at the end, also when the monitor panics. Ctrl-A then x ends the machine; Ctrl-A twice
//! is one Ctrl-A for the guest. What a guest doesn't read is lost then, as on a wire: the keys that end the machine are heard
//! in any case. Anything else than a terminal has no such keys, and waits for the guest.
#![forbid(unsafe_code)]

use crate::gate::Gate;
use crate::report::Counters;
use crate::supervisor::{Alarm, Notice};
use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, TryLockError, mpsc::Sender};

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// What the terminal was before, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Restores the terminal when it goes.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Makes standard input raw if it is a terminal.
    ///
    /// # Errors
    ///
    /// It won't be.
    pub fn enter() -> Result<Self> {
        let stdin = io::stdin();
        if isatty(&stdin) {
            let before = tcgetattr(&stdin).context("the terminal's mode")?;
            let mut raw = before.clone();
            raw.make_raw();
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |what| {
                restore();
                hook(what);
            }));
            if let Ok(mut saved) = BEFORE.lock() {
                *saved = Some(before);
            }
            tcsetattr(&stdin, OptionalActions::Now, &raw).context("the terminal's mode")?;
        }
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let mut before = match BEFORE.try_lock() {
        Ok(before) => before,
        Err(TryLockError::Poisoned(before)) => before.into_inner(),
        // Somebody is at it.
        Err(TryLockError::WouldBlock) => return,
    };
    if let Some(before) = before.take() {
        // There is nobody to tell if it fails.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// What keys mean.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    /// Removes from `bytes` what is not for the guest. Returns whether the machine is to end.
    fn filter(&mut self, bytes: &mut Vec<u8>) -> bool {
        let mut end = false;
        bytes.retain(|&byte| {
            let escaped = std::mem::replace(&mut self.escaped, false);
            match byte {
                ESCAPE if !escaped => {
                    self.escaped = true;
                    false
                }
                b'x' if escaped => {
                    end = true;
                    false
                }
                _ => true,
            }
        });
        end
    }
}

/// Passes standard input on until it ends, from a thread of its own, which waits there until the process ends: standard
/// input may be anything, also what can't be waited for together with other files.
///
/// # Errors
///
/// No thread.
pub fn listen(guest: UnixStream, notices: Sender<Notice>) -> Result<()> {
    let has_keys = isatty(io::stdin());
    guest.set_nonblocking(has_keys).context("the terminal's socket")?;
    let run = move || {
        let _alarm = Alarm::new(notices.clone());
        pass_on(io::stdin(), guest, has_keys, &notices);
    };
    std::thread::Builder::new().name("terminal".to_owned()).spawn(run).context("a thread")?;
    Ok(())
}

/// Passes input on until it ends, or ends the machine.
fn pass_on(mut input: impl Read, mut guest: UnixStream, has_keys: bool, notices: &Sender<Notice>) {
    let (mut buffer, mut keys) = ([0; 256], Keys::default());
    loop {
        let count = match input.read(&mut buffer) {
            Ok(count @ 1..) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            _ => return,
        };
        let mut bytes = buffer[..count].to_vec();
        if !has_keys {
            if guest.write_all(&bytes).is_err() {
                return;
            }
            continue;
        }
        let end = keys.filter(&mut bytes);
        // What finds no room is lost, and so is all if nobody is there.
        let _ = guest.write(&bytes);
        if end {
            let _ = notices.send(Notice::Stop);
            return;
        }
    }
}

/// Standard output, counted.
#[derive(Debug)]
pub struct Output {
    file: File,
    counters: Arc<Counters>,
    gate: Arc<Gate>,
    given_up: bool,
}

impl Output {
    /// Where all consoles of a machine go.
    ///
    /// # Errors
    ///
    /// There is no standard output.
    pub fn new(counters: Arc<Counters>, gate: Arc<Gate>) -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Self { file, counters, gate, given_up: false })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.given_up {
            return Ok(bytes.len());
        }
        let written = match self.file.write(bytes) {
            // A terminal that takes nothing doesn't keep a machine from its end.
            Err(error) if error.kind() == io::ErrorKind::Interrupted && self.gate.is_stopping() => {
                self.given_up = true;
                return Ok(bytes.len());
            }
            written => written?,
        };
        self.counters.console.fetch_add(written as u64, Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn the_end_is_heard_when_the_guest_does_not_read() {
        let (guest, mut far) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let (sender, notices) = mpsc::channel();
        let input = [b"hello".repeat(1 << 20).as_slice(), b"\x01x"].concat();
        pass_on(&input[..], guest, true, &sender);
        assert!(matches!(notices.try_recv(), Ok(Notice::Stop)));
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        assert!(got.starts_with(b"hello") && got.len() < input.len());
        // Nor when it is gone.
        let (guest, _) = UnixStream::pair().unwrap();
        pass_on(&input[..], guest, true, &sender);
        assert!(matches!(notices.try_recv(), Ok(Notice::Stop)));
    }

    #[test]
    fn what_is_no_terminal_waits_for_the_guest() {
        let (guest, mut far) = UnixStream::pair().unwrap();
        let (sender, notices) = mpsc::channel();
        let input = b"hello\x01x".repeat(1 << 18);
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            far.read_to_end(&mut got).unwrap();
            got
        });
        pass_on(&input[..], guest, false, &sender);
        assert!(reader.join().unwrap() == input);
        assert!(notices.try_recv().is_err());
    }

    #[test]
    fn keys() {
        let mut keys = Keys::default();
        let mut filter = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            let end = keys.filter(&mut bytes);
            (String::from_utf8(bytes).unwrap(), end)
        };
        assert_eq!(filter("abx"), ("abx".to_owned(), false));
        assert_eq!(filter("a\u{1}"), ("a".to_owned(), false));
        assert_eq!(filter("\u{1}b"), ("\u{1}b".to_owned(), false));
        assert_eq!(filter("\u{1}q"), ("q".to_owned(), false));
        assert_eq!(filter("x\u{1}\u{1}x"), ("x\u{1}x".to_owned(), false));
        assert_eq!(filter("x\u{1}"), ("x".to_owned(), false));
        assert_eq!(filter("x"), (String::new(), true));
    }
}
