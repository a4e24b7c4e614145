//! Hyp's memory from above: every access must end in an exception.

use crate::fail;
use crate::say::{self, Text};
use crate::sys::{self, Ended, File};

/// The board's RAM is one bank; what the device tree shows in two parts has hyp's image between them.
fn hole() -> Result<(u64, u64), Text> {
    let path = c"/sys/firmware/devicetree/base/memory@40000000/reg";
    let mut bytes = [0; 64];
    let bytes = match File::read_only(path) {
        Ok(file) => file.read(&mut bytes),
        Err(error) => fail!("no memory in the device tree: {error:?}"),
    };
    let number = |n: usize| {
        let at = bytes.get(8 * n..8 * n + 8)?;
        Some(u64::from_be_bytes(at.try_into().ok()?))
    };
    match (number(0), number(1), number(2)) {
        (Some(start), Some(size), Some(next)) if start + size < next => Ok((start + size, next)),
        _ => fail!("the device tree's memory has no hole for hyp"),
    }
}

/// Whether a child that reads or writes physical memory at `at` dies of it, and how.
fn access(at: u64, write: bool) -> Result<Ended, Text> {
    let child = match sys::fork() {
        Ok(Some(child)) => child,
        Ok(None) => touch(at, write),
        Err(error) => fail!("fork: {error:?}"),
    };
    sys::wait(child).map_err(|error| say::text(format_args!("wait: {error:?}")))
}

/// A status for "could not even try".
const NO_ACCESS: u8 = 99;

fn touch(at: u64, write: bool) -> ! {
    let page = File::device(c"/dev/mem").and_then(|file| file.map_page(at));
    let Ok(page) = page else { sys::exit(NO_ACCESS) };
    // SAFETY: a mapping of this process's own; what is there is what the test is about.
    unsafe {
        if write {
            page.write_volatile(0);
        } else {
            page.read_volatile();
        }
    }
    sys::exit(0)
}

/// Reads and writes at both ends of hyp's image and in its middle, if the kernel lets anybody do so.
pub fn check() -> Result<(), Text> {
    let (start, end) = hole()?;
    if access(start, false)? == Ended::Exit(NO_ACCESS) {
        say::line(format_args!("@seen what=hyp's-memory is=no-/dev/mem"));
        return Ok(());
    }
    for at in [start, (start + (end - start) / 2) & !4095, end - 4096] {
        for write in [false, true] {
            let what = if write { "write" } else { "read" };
            match access(at, write)? {
                Ended::Signal(sys::SIGBUS) => {}
                ended => fail!("{what} of hyp's memory at {at:#x}: {ended:?}, not SIGBUS"),
            }
        }
    }
    say::line(format_args!("@seen what=hyp's-memory is={start:#x}..{end:#x}:SIGBUS"));
    Ok(())
}
