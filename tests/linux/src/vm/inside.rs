//! The first program of a guest.

use core::ffi::CStr;

use super::{network, probe};
use crate::devices::{disk, wait_for_disk};
use crate::fail;
use crate::modules;
use crate::say::{self, Text};
use crate::seen;
use crate::start::Start;
use crate::stress;
use crate::sys::{self, Ended, File};
use crate::tagged;

/// What is said at the virtio console by who is about to listen there.
pub const LISTENS: &str = "@seen what=hvc0 is=heard";
/// And what that hears: a line.
pub const SPOKEN: &str = "heard-as-well\n";

/// What it is asked for.
pub fn inside(start: &Start) -> Result<(), Text> {
    if start.has("costs") {
        // Nothing of this program's is counted but that it has begun.
        say::line(format_args!("@seen what=user-space is={}", sys::others::monotonic_nanos()));
        return Ok(());
    }
    modules::load()?;
    if start.has("realm") {
        seen::expect_in_log("realm", "RSI-1.0", "Using RSI version 1.0")?;
        measurement()?;
        tagged::begin();
    }
    if start.has("probe") {
        probe::run(start)?;
    }
    if start.has("hvc") {
        talk()?;
    }
    if let Some(bytes) = start.number("disk") {
        check_disk(&disk::Content { bytes, digest: start.number("digest").unwrap_or(0) })?;
        check_random()?;
    }
    if start.has("echo") {
        network::ask()?;
        seen::row("network", "echoes");
    }
    if start.has("shell") {
        return in_root(c"/bin/bash", sys::take_terminal);
    }
    if start.has("wait") {
        seen::row("waits", "for-its-end");
        loop {
            sys::sleep_micros(1_000_000);
        }
    }
    if start.number("cpus").is_some() {
        seen::release();
        stress::run(start)?;
    }
    if start.has("root") {
        return in_root(c"/umbra/check", || {});
    }
    Ok(())
}

/// What this guest is measured by, if it has the module to read it by (`tests/linux/realm`).
fn measurement() -> Result<(), Text> {
    let Ok(module) = File::read_only(c"/umbra_realm.ko") else {
        seen::row("rim", "not-read");
        return Ok(());
    };
    if let Err(error) = module.load_module() {
        fail!("umbra_realm: {error:?}");
    }
    seen::file_row("rim", c"/sys/module/umbra_realm/parameters/rim")
}

/// Talks at the virtio console: a line out, a line in, and what that was out again, behind its echo.
fn talk() -> Result<(), Text> {
    let open = |file: Result<File, _>| {
        file.map_err(|error| say::text(format_args!("/dev/hvc0: {error:?}")))
    };
    let (to, from) = (open(File::write_only(c"/dev/hvc0"))?, open(File::read_only(c"/dev/hvc0"))?);
    let say = |line: &str| match to.write(line.as_bytes()) {
        Ok(count) if count == line.len() => Ok(()),
        other => fail!("/dev/hvc0: {other:?}"),
    };
    // What has been said elsewhere comes out of the same monitor, byte by byte.
    sys::drain_console();
    say(LISTENS)?;
    say("\n")?;
    let mut heard = [0; SPOKEN.len()];
    let heard = from.read(&mut heard);
    if heard != SPOKEN.as_bytes() {
        fail!("/dev/hvc0 gives {heard:?}");
    }
    say("@seen what=hvc0-input is=")?;
    say(SPOKEN)
}

/// Every byte of the disk is right, and what is written there is read again.
fn check_disk(expected: &disk::Content) -> Result<(), Text> {
    let file = wait_for_disk(c"/dev/vda", "vda")?;
    expected.check_size(&file, "vda")?;
    let sums = disk::Sums::new()?;
    sums.read(&file, 0, 1, expected.bytes)?;
    expected.check("vda", sums.total())?;
    say::line(format_args!("@seen what=vda is={}-bytes", expected.bytes));
    disk::write_and_read(&file, 0, 1, expected.bytes)?;
    seen::row("vda-written", "read-back");
    Ok(())
}

/// There are random numbers of the monitor's, and they are some.
fn check_random() -> Result<(), Text> {
    let Ok(file) = File::read_only(c"/dev/hwrng") else { fail!("no /dev/hwrng") };
    let (mut first, mut second) = ([0; 64], [0; 64]);
    let read = file.read(&mut first).len() == 64 && file.read(&mut second).len() == 64;
    if !read || first == second || first.iter().all(|&byte| byte == first[0]) {
        fail!("/dev/hwrng gives no random numbers");
    }
    seen::row("hwrng", "random");
    Ok(())
}

/// Runs a program of the disk's, with the disk as the root of its files, after `first`.
fn in_root(program: &CStr, first: impl FnOnce()) -> Result<(), Text> {
    wait_for_disk(c"/dev/vda", "vda")?;
    sys::make_folder(c"/root");
    if let Err(error) = sys::mount_at(c"/dev/vda", c"/root", c"ext4") {
        fail!("the disk can't be mounted: {error:?}");
    }
    for (kind, at) in
        [(c"proc", c"/root/proc"), (c"sysfs", c"/root/sys"), (c"devtmpfs", c"/root/dev")]
    {
        if let Err(error) = sys::mount_at(kind, at, kind) {
            fail!("{at:?}: {error:?}");
        }
    }
    let child = match sys::fork() {
        Ok(Some(child)) => child,
        Ok(None) => {
            first();
            let error = sys::enter_root(c"/root").map(|()| sys::execute_as_user(program));
            say::line(format_args!("{program:?}: {error:?}"));
            sys::exit(127)
        }
        Err(error) => fail!("fork: {error:?}"),
    };
    match sys::wait(child) {
        Ok(Ended::Exit(0)) => Ok(()),
        ended => fail!("{program:?}: {ended:?}"),
    }
}
