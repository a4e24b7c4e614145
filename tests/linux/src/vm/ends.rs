//! What ends badly: monitors that are killed, and users who ask for anything.

use super::{monitor, pinned, wait_until};
use crate::clock;
use crate::fail;
use crate::say::{self, CText, Text};
use crate::seen;
use crate::sys::{self, Ended, File, Pid};

/// The latest instant of a guest's life at which it is killed, in microseconds: by then it has come up.
const LATEST_MICROS: u64 = 3_000_000;

/// Pages that a guest has by the time it runs: its kernel's.
const RUNNING_PAGES: u64 = 2048;

/// A guest that nobody listens to.
fn unheard() -> Result<Pid, Text> {
    match File::write_only(c"/dev/null") {
        Ok(nobody) => monitor::guest(&monitor::MACHINE, c"quiet", Some(&nobody)),
        Err(error) => fail!("/dev/null: {error:?}"),
    }
}

/// Kills so many monitors, each at an instant of its own, two at a time, and wants all their pages back.
pub fn kill(count: u64) -> Result<(), Text> {
    let mut random = clock::ticks() | 1;
    let mut done = 0;
    while done < count {
        let mut pair = [None; 2];
        let before = pinned()?;
        for monitor in pair.iter_mut().take((count - done) as usize) {
            *monitor = Some(unheard()?);
        }
        // Every other time their guests run, however slow this machine is; otherwise it may be any instant.
        if done % 4 == 0 {
            wait_until("a guest that runs", || Ok(pinned()? > before + RUNNING_PAGES))?;
        }
        for monitor in pair.into_iter().flatten() {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            sys::sleep_micros(random % LATEST_MICROS / 2);
            sys::kill(monitor, sys::SIGKILL);
            match sys::wait(monitor) {
                Ok(Ended::Signal(sys::SIGKILL)) => done += 1,
                ended => fail!("monitor {done}, which was killed: {ended:?}"),
            }
        }
        if done % 16 == 0 {
            wait_until("the end of all pins", || Ok(pinned()? == 0))?;
            say::line(format_args!("@progress {done} {count}"));
        }
    }
    Ok(())
}

/// A machine that runs when this Linux is turned off. Linux's reboot notifiers take it down, and hyp says whether all
/// pages have come back.
pub fn leave_running() -> Result<(), Text> {
    // One has ended while the module was in: what is taken down is what there is, not what there was.
    kill(1)?;
    wait_until("the end of all pins", || Ok(pinned()? == 0))?;
    unheard()?;
    wait_until("a guest that runs", || Ok(pinned()? > RUNNING_PAGES))
}

/// Random ioctls from several threads at once: they come to their end, and the kernel's log has no complaint
/// (`seen::check_after`).
pub fn ioctls(rounds: u64) -> Result<(), Text> {
    let rounds = CText::new(format_args!("{rounds}"))?;
    let pid = monitor::begin(&[c"/umbra-ioctls", &rounds], None)?;
    match sys::wait(pid) {
        Ok(Ended::Exit(0)) => seen::row("ioctls", "endured"),
        ended => fail!("random ioctls: {ended:?}"),
    }
    Ok(())
}
