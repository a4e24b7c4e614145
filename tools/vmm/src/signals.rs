//! Signals: what ends the machine from outside, and what makes a thread leave a system call.

use anyhow::{Context, Result};
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, SignalHandler, register_signal_handler};

/// Between two kicks of threads that are to end.
const PATIENCE: Duration = Duration::from_millis(10);

/// Written to when a signal says that the machine is to end.
static STOP: OnceLock<EventFd> = OnceLock::new();

extern "C" fn stop(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    if let Some(event) = STOP.get() {
        // One write to a file, which a handler may do.
        let _ = event.write(1);
    }
}

/// From now on SIGTERM, SIGINT and SIGHUP are an event of this file.
///
/// # Errors
///
/// No file, or it's not the first time.
pub fn catch() -> Result<EventFd> {
    let event = EventFd::new(0).context("an eventfd")?;
    let shared = event.try_clone().context("an eventfd")?;
    STOP.set(shared).ok().context("signals are caught twice")?;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        register_signal_handler(signal, stop).context("a signal's handler")?;
    }
    Ok(event)
}

/// What a kicked thread does is up to this handler.
///
/// # Errors
///
/// It can't be installed.
pub fn on_kick(handler: SignalHandler) -> Result<()> {
    register_signal_handler(SIGRTMIN(), handler).context("a signal's handler")
}

/// Makes a thread leave the system call that it is in, if it is in one.
pub fn kick<T>(thread: &JoinHandle<T>) {
    // A thread that has ended needs none.
    let _ = thread.kill(SIGRTMIN());
}

/// Joins threads that have been told to end. They are kicked until they do: something that one writes to may be full for
/// ever, and another may wait for it.
pub fn join(threads: Vec<JoinHandle<()>>) {
    while threads.iter().any(|thread| !thread.is_finished()) {
        threads.iter().for_each(kick);
        thread::sleep(PATIENCE);
    }
    for thread in threads {
        // If it has panicked, it has said so.
        let _ = thread.join();
    }
}
