//! Virtual machines of this Linux, which the tree's own monitor boots on /dev/kvm: the same kernel, with this very program
//! in it.
//!
//! Above Umbra the kernel module makes /dev/kvm; elsewhere it is Linux's own, for comparison. What a guest says on its
//! console comes through its monitor's output, line by line, with its name before it.

mod beside;
mod costs;
mod ends;
mod inside;
mod monitor;
mod network;
mod probe;
mod protected;
mod scenarios;

use crate::fail;
use crate::modules;
use crate::say::{self, Text};
use crate::seen;
use crate::start::Start;
use crate::sys::{self, File};

pub use inside::inside;

/// Between two looks at whether something has come about, in microseconds, and how many looks are given up after.
const LOOK_MICROS: u64 = 50_000;
const LOOKS: u32 = 4000;

/// Looks until something has come about.
fn wait_until(what: &str, mut has: impl FnMut() -> Result<bool, Text>) -> Result<(), Text> {
    for _ in 0..LOOKS {
        if has()? {
            return Ok(());
        }
        sys::sleep_micros(LOOK_MICROS);
    }
    fail!("{what} does not come about")
}

/// All that is asked for.
pub fn run(start: &Start) -> Result<(), Text> {
    modules::load()?;
    let is_umbra = start.has("umbra");
    if is_umbra {
        load()?;
    }
    if start.has("scenarios") {
        scenarios::run()?;
    } else if start.has("shell") {
        scenarios::shell()?;
    } else if start.has("costs") {
        costs::run(is_umbra)?;
    } else if start.has("protected") {
        protected::run(start.number("rounds").unwrap_or(8))?;
        if start.has("beside") {
            beside::run(start)?;
        }
        kill(start, true)?;
    } else {
        if start.has("debian") {
            scenarios::debian()?;
        }
        beside::run(start)?;
        ends::ioctls(start.number("rounds").unwrap_or(8))?;
        kill(start, false)?;
    }
    if is_umbra {
        unload()?;
        if start.has("hunt") {
            hunted()?;
        }
    }
    if is_umbra && !start.has("shell") && !start.has("costs") {
        load()?;
        ends::leave_running(start.has("protected"))?;
    }
    Ok(())
}

/// As many monitors as are asked for, of which every other one may be a protected guest's.
fn kill(start: &Start, protected: bool) -> Result<(), Text> {
    let kills = start.number("kills").unwrap_or(0);
    ends::kill(kills, protected)?;
    seen::row("killed", &say::text(format_args!("{kills}")));
    Ok(())
}

/// The kernel module.
fn load() -> Result<(), Text> {
    let module = match File::read_only(c"/umbra.ko") {
        Ok(file) => file,
        Err(error) => fail!("no module: {error:?}"),
    };
    match module.load_module() {
        Ok(()) => Ok(()),
        Err(error) => fail!("the module can't be loaded: {error:?}"),
    }
}

/// Pages that VMs have, as the module counts them: those that are pinned, and its own.
fn held() -> Result<u64, Text> {
    seen::with_file(c"/sys/module/umbra/parameters/pages", |text| match text.trim().parse() {
        Ok(pages) => Ok(pages),
        Err(_) => fail!("the module counts no pages: {text}"),
    })
}

/// Every page is back, and the module can go.
fn unload() -> Result<(), Text> {
    wait_until("the end of all pins", || Ok(pinned()? == 0))?;
    wait_until("the module's end", || Ok(sys::io::remove_module(c"umbra").is_ok()))?;
    seen::expect_in_log("pages", "all-back", "umbra: all pages are back")
}

/// A module that looks for guests' registers in this Linux has done so, and found none.
fn hunted() -> Result<(), Text> {
    seen::with_log(|log| {
        let said = log.lines().rev().find_map(|line| line.split_once("umbra: hunted "));
        let counts = said.and_then(|(_, rest)| rest.split_once(" times, found "));
        let count = |text: &str| text.trim().parse::<u64>().ok();
        match counts.and_then(|(times, found)| Some((count(times)?, count(found)?))) {
            Some((times @ 1.., 0)) => {
                say::line(format_args!("@seen what=hunts is={times}"));
                seen::row("hunt", "found-0");
                Ok(())
            }
            other => fail!("a guest's registers were looked for and found: {other:?}"),
        }
    })
}

/// Pages of user space's that are pinned, as the kernel counts them.
fn pinned() -> Result<u64, Text> {
    seen::with_file(c"/proc/vmstat", |text| {
        let number = |key: &str| {
            let mut words = text.lines().filter_map(|line| line.split_once(' '));
            let (_, number) = words.find(|(name, _)| *name == key)?;
            number.parse::<u64>().ok()
        };
        match (number("nr_foll_pin_acquired"), number("nr_foll_pin_released")) {
            // They are not read at one instant.
            (Some(taken), Some(released)) => Ok(taken.saturating_sub(released)),
            _ => fail!("the kernel counts no pins"),
        }
    })
}
