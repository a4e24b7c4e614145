//! Virtual machines of this Linux: the kernel module, and a monitor that boots the same kernel, with this very program in
//! it, as a guest. The guest keeps patterns in its registers while this Linux does, on the same CPUs.
//!
//! What the guest says on its console comes through its monitor's output, line by line, with `guest: ` before it.

use core::ffi::CStr;

use crate::fail;
use crate::modules;
use crate::say::{self, Text};
use crate::seen;
use crate::start::Start;
use crate::stress;
use crate::sys::{self, Ended, File};

/// vCPUs of the guest.
const VCPUS: u32 = 2;
/// Machines that are killed.
const KILLED: u64 = 12;
/// Between two looks at whether something has come about, in microseconds, and how many looks are given up after.
const LOOK_MICROS: u64 = 50_000;
const LOOKS: u32 = 4000;

/// The monitor, with the machine that all have.
const MONITOR: [&CStr; 11] = [
    c"/umbra-vmm",
    c"run",
    c"--kernel",
    c"/guest-kernel",
    c"--initrd",
    c"/guest-initrd",
    c"--memory",
    c"192M",
    c"--cpus",
    c"2",
    c"--cmdline",
];

/// Begins the monitor with this command line for the guest; its output goes to `output`.
fn begin(command_line: &CStr, output: &File) -> Result<sys::Pid, Text> {
    let mut arguments = [core::ptr::null(); MONITOR.len() + 2];
    for (to, argument) in arguments.iter_mut().zip(MONITOR) {
        *to = argument.as_ptr();
    }
    arguments[MONITOR.len()] = command_line.as_ptr();
    match sys::fork() {
        Ok(Some(pid)) => Ok(pid),
        Ok(None) => {
            output.becomes_output();
            let error = sys::execute_with(MONITOR[0], &arguments);
            say::line(format_args!("the monitor can't be executed: {error:?}"));
            sys::exit(127)
        }
        Err(error) => fail!("fork: {error:?}"),
    }
}

/// Runs a guest to its end, and passes on what it says. Its last word must be that all was well. `begun` is told when it
/// begins with its patterns.
fn guest(begun: &File) -> Result<(), Text> {
    let Ok((reader, writer)) = sys::pipe() else { fail!("no pipe") };
    let words = c"quiet panic=-1 rcupdate.rcu_cpu_stall_suppress=1 nowatchdog -- guest ciphers cpus=2 times=8 processes=2";
    let monitor = begin(words, &writer)?;
    drop(writer);
    let mut well = false;
    let mut line = Text::new();
    while let Some(byte) = reader.read_byte() {
        if byte == b'\n' || line.is_full() {
            well |= line.trim_end() == "@verdict ok";
            if line.starts_with("@seen what=Linux") {
                // Who waits for it finds out by the guest's end, if not so.
                let _ = begun.write(b"!");
            }
            say::line(format_args!("guest: {line}"));
            line.clear();
        } else if byte != b'\r' {
            // There is room.
            let _ = line.try_push(if byte.is_ascii_graphic() { byte.into() } else { ' ' });
        }
    }
    match sys::wait(monitor) {
        Ok(Ended::Exit(0)) if well => Ok(()),
        ended => fail!("the monitor's end is {ended:?}; the guest was well: {well}"),
    }
}

/// Kills monitors at moments that differ.
fn kill() -> Result<(), Text> {
    let nobody = match File::write_only(c"/dev/null") {
        Ok(file) => file,
        Err(error) => fail!("/dev/null: {error:?}"),
    };
    for n in 0..KILLED {
        let monitor = begin(c"quiet", &nobody)?;
        sys::sleep_micros(n * n % 13 * 60_000);
        sys::kill(monitor, sys::SIGKILL);
        match sys::wait(monitor) {
            Ok(Ended::Signal(sys::SIGKILL)) => {}
            ended => fail!("monitor {n}, which was killed: {ended:?}"),
        }
    }
    Ok(())
}

/// Random ioctls from several threads at once: they come to their end, and the kernel's log has no complaint
/// (`seen::check_after`).
fn ioctls() -> Result<(), Text> {
    let arguments = [c"/umbra-ioctls".as_ptr(), c"8".as_ptr(), core::ptr::null()];
    let ended = match sys::fork() {
        Ok(Some(pid)) => sys::wait(pid),
        Ok(None) => {
            let error = sys::execute_with(c"/umbra-ioctls", &arguments);
            say::line(format_args!("random ioctls can't be executed: {error:?}"));
            sys::exit(127)
        }
        Err(error) => fail!("fork: {error:?}"),
    };
    if ended != Ok(Ended::Exit(0)) {
        fail!("random ioctls: {ended:?}");
    }
    seen::row("ioctls", "endured");
    Ok(())
}

/// No page of user space's is pinned any more, as the kernel counts them.
fn expect_no_pins() -> Result<(), Text> {
    let mut looks = 0;
    loop {
        let pinned = seen::with_file(c"/proc/vmstat", |text| {
            let number = |key: &str| {
                let mut words = text.lines().filter_map(|line| line.split_once(' '));
                let (_, number) = words.find(|(name, _)| *name == key)?;
                number.parse::<u64>().ok()
            };
            let (taken, released) =
                (number("nr_foll_pin_acquired"), number("nr_foll_pin_released"));
            match (taken, released) {
                (Some(0), _) => fail!("no page was ever pinned"),
                (Some(taken), Some(released)) => Ok(taken - released),
                _ => fail!("the kernel counts no pins"),
            }
        })?;
        if pinned == 0 {
            return Ok(());
        }
        looks += 1;
        if looks == LOOKS {
            fail!("{pinned} pages are still pinned");
        }
        sys::sleep_micros(LOOK_MICROS);
    }
}

/// The whole test.
pub fn run(start: &Start) -> Result<(), Text> {
    modules::load()?;
    let module = match File::read_only(c"/umbra.ko") {
        Ok(file) => file,
        Err(error) => fail!("no module: {error:?}"),
    };
    if let Err(error) = module.load_module() {
        fail!("the module can't be loaded: {error:?}");
    }
    let Ok((is_begun, begun)) = sys::pipe() else { fail!("no pipe") };
    match sys::fork() {
        Err(error) => fail!("fork: {error:?}"),
        Ok(None) => {
            drop(is_begun);
            let result = guest(&begun);
            if let Err(why) = &result {
                say::line(format_args!("guest: {why}"));
            }
            sys::exit(result.is_err().into())
        }
        Ok(Some(child)) => {
            drop(begun);
            // At the same time: a guest that comes up needs no FP registers.
            is_begun.read_byte();
            let patterns = stress::run(start);
            let guest = sys::wait(child);
            patterns?;
            if guest != Ok(Ended::Exit(0)) {
                fail!("the guest: {guest:?}");
            }
        }
    }
    seen::row("guest", &say::text(format_args!("{VCPUS}-vCPUs")));
    ioctls()?;
    kill()?;
    seen::row("killed", &say::text(format_args!("{KILLED}")));
    expect_no_pins()?;
    let mut looks = 0;
    while let Err(error) = sys::io::remove_module(c"umbra") {
        looks += 1;
        if looks == LOOKS {
            fail!("the module can't be removed: {error:?}");
        }
        sys::sleep_micros(LOOK_MICROS);
    }
    seen::expect_in_log("pages", "all-back", "umbra: all pages are back")
}

/// What the program does as the first one of a guest.
pub fn inside(start: &Start) -> Result<(), Text> {
    modules::load()?;
    seen::release();
    stress::run(start)
}
