//! Guests one after the other, each of another kind. The same on every hypervisor; what each guest says is compared by
//! whoever booted this Linux.

use core::ffi::CStr;

use super::{monitor, network};
use crate::fail;
use crate::say::{self, CText, Text};
use crate::sys::{self, Ended, File};

/// A guest.
struct Scenario {
    name: &'static str,
    machine: &'static [&'static CStr],
    /// Behind what all have.
    words: &'static CStr,
    /// The monitor's exit status.
    status: u8,
}

impl Scenario {
    /// Boots the guest and waits for its end.
    fn run(&self, more: &CStr) -> Result<(), Text> {
        let line = monitor::console_line(&[self.words, more])?;
        monitor::well_to_its_end(self.name, self.machine, &line, self.status, |_, _| {})?;
        say::line(format_args!("{}: @ended {}", self.name, self.status));
        Ok(())
    }
}

const DEBIAN: Scenario = Scenario {
    name: "debian",
    machine: &[c"--memory", c"256M", c"--cpus", c"2", c"--disk", c"/guest-root"],
    words: c"root",
    status: 0,
};
const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "devices",
        machine: &[
            c"--memory",
            c"256M",
            c"--cpus",
            c"2",
            c"--disk",
            c"/guest-disk",
            c"--net",
            c"tap=tap0",
        ],
        words: c"probe echo ciphers cpus=2 times=1 processes=2",
        status: 0,
    },
    Scenario {
        name: "without-sve",
        machine: &[c"--memory", c"192M", c"--sve", c"0"],
        words: c"probe cpus=1 times=1 processes=2",
        status: 0,
    },
    Scenario {
        name: "short-vectors",
        machine: &[c"--memory", c"192M", c"--sve", c"32", c"--console", c"virtio"],
        // Its driver is a module: until then what the kernel says goes to the serial port.
        words: c"hvc probe cpus=1 times=1 processes=2",
        status: 0,
    },
    Scenario {
        name: "eight-vcpus",
        machine: &[c"--memory", c"256M", c"--cpus", c"8"],
        words: c"probe reboot",
        status: 2,
    },
    DEBIAN,
];

/// The one with Debian's user space.
pub fn debian() -> Result<(), Text> {
    DEBIAN.run(c"")
}

/// All of them.
pub fn run() -> Result<(), Text> {
    let echo = network::begin()?;
    // What the disk holds is known to who made it.
    let mut buffer = [0; 128];
    let disk = File::read_only(c"/guest-disk-words").map(|file| file.read(&mut buffer));
    let disk = core::str::from_utf8(disk.unwrap_or_default()).unwrap_or_default();
    let disk = CText::new(format_args!("{disk}"))?;
    for scenario in SCENARIOS {
        let has_disk = scenario.machine.contains(&c"/guest-disk");
        scenario.run(if has_disk { &disk } else { c"" })?;
    }
    controlled()?;
    network::end(echo)
}

/// A guest that is asked for its state, paused and stopped.
fn controlled() -> Result<(), Text> {
    const SOCKET: &CStr = c"/control";
    const STOPPED: u8 = 4;
    let machine = [c"--memory", c"192M", c"--cpus", c"2", c"--control", SOCKET];
    let line = monitor::console_line(&[c"wait"])?;
    let mut asked = Ok(());
    let ended = monitor::to_its_end("controlled", &machine, &line, |_, line| {
        if line.starts_with("@seen what=waits") {
            asked = ask(SOCKET);
        }
        Ok(())
    })?;
    asked?;
    if ended != Ended::Exit(STOPPED) {
        fail!("a monitor that was stopped ends with {ended:?}");
    }
    say::line(format_args!("controlled: @ended {STOPPED}"));
    Ok(())
}

/// What is asked of a guest's monitor, and the state that it answers with.
const REQUESTS: [(&CStr, &str); 6] = [
    (c"status", "running"),
    (c"pause", "paused"),
    (c"status", "paused"),
    (c"status", "paused"),
    (c"resume", "running"),
    (c"stop", "stopped"),
];
/// Between two of them, in microseconds: long enough for a guest that runs to have left for its timer.
const PACE_MICROS: u64 = 300_000;

fn ask(socket: &CStr) -> Result<(), Text> {
    let mut paused = Text::new();
    for (request, state) in REQUESTS {
        let key = say::text(format_args!("\"state\":\"{state}\""));
        let (mut is_so, mut exits) = (false, Text::new());
        let ended = monitor::control(socket, request, |line| {
            is_so |= line.contains(&key[..]);
            // All exits so far, as the hypervisor counts them.
            let counts = line.split_once("\"exits\":{").and_then(|(_, rest)| rest.split_once('}'));
            if let Some((counts, _)) = counts {
                exits = say::text(format_args!("{counts}"));
            }
            Ok(())
        })?;
        if ended != Ended::Exit(0) || !is_so {
            fail!("{request:?}: {ended:?}, not {state}");
        }
        if state == "paused" && request == c"status" {
            if exits.is_empty() || !paused.is_empty() && paused != exits {
                fail!("a machine that is paused goes on: {paused}, then {exits}");
            }
            paused = exits;
        }
        sys::sleep_micros(PACE_MICROS);
    }
    Ok(())
}

/// A guest for a person: the terminal is its console, and what runs there a shell.
pub fn shell() -> Result<(), Text> {
    let machine =
        [c"--memory", c"512M", c"--cpus", c"2", c"--disk", c"/guest-root", c"--console", c"serial"];
    let line = monitor::console_line(&[c"shell"])?;
    let monitor = monitor::guest(&machine, &line, None)?;
    match sys::wait(monitor) {
        Ok(Ended::Exit(_)) => Ok(()),
        ended => fail!("the monitor: {ended:?}"),
    }
}
