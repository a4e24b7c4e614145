//! What it costs to boot a guest: a kernel and an initrd whose program says that it has begun, and ends the machine. The same guest as a normal
//! one, and as a protected one above Umbra.
//!
//! On a machine of one CPU that counts instructions (`-icount`) its time is how many there were, but for the time in which the CPU had nothing
//! to do: that passes at once, and Linux knows how much it was.

use core::ffi::CStr;

use umbra_patterns::realm::{CONSOLE, WORDS};

use super::monitor;
use crate::fail;
use crate::say::{self, Text};
use crate::seen;
use crate::sys::others::monotonic_nanos;

const MACHINE: [&CStr; 5] = [c"--memory", c"256M", c"--cpus", c"1", c"--protected"];

/// One after the other.
pub fn run(is_umbra: bool) -> Result<(), Text> {
    guest("normal", &MACHINE[..4])?;
    if is_umbra {
        guest("protected", &MACHINE)?;
    }
    Ok(())
}

fn guest(name: &str, machine: &[&CStr]) -> Result<(), Text> {
    let line = monitor::command_line(&[CONSOLE, WORDS, c"costs"])?;
    let before = idle()?;
    let mut reached = None;
    monitor::well_to_its_end(name, machine, &line, 0, |_, line| {
        if line.starts_with("@seen what=user-space") {
            reached = Some((monotonic_nanos(), idle()));
        }
    })?;
    match reached {
        Some((now, Ok(idle))) => {
            let idle = idle.saturating_sub(before);
            say::line(format_args!("{name}: @seen what=reached is={now}"));
            say::line(format_args!("{name}: @seen what=idle is={idle}"));
            Ok(())
        }
        other => fail!("{name}: no user space: {other:?}"),
    }
}

/// Nanoseconds for which the CPU has had nothing to do.
fn idle() -> Result<u64, Text> {
    const KEY: &str = ".idle_sleeptime";
    seen::with_file(c"/proc/timer_list", |text| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(KEY));
        let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        match number {
            Some(nanos) => Ok(nanos),
            None => fail!("/proc/timer_list has no {KEY}"),
        }
    })
}
