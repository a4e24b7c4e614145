//! The monitor as a process of its own.

use core::ffi::CStr;

use arrayvec::ArrayVec;
use umbra_patterns::realm::CONSOLE;
pub use umbra_patterns::realm::WORDS;

use super::inside;
use crate::fail;
use crate::say::{self, CText, Text};
use crate::sys::{self, Ended, File, Pid};

/// The program.
const PROGRAM: &CStr = c"/umbra-vmm";
/// What guests boot: kernel and initrd.
const BOOTED: [&CStr; 2] = [c"/guest-kernel", c"/guest-initrd"];
/// And a protected one that doesn't know that it is.
const UNAWARE: [&CStr; 2] = [c"/unaware-kernel", c"/unaware-initrd"];
/// Arguments at most.
const ARGUMENTS: usize = 32;

/// A small machine.
pub const MACHINE: [&CStr; 4] = [c"--memory", c"192M", c"--cpus", c"2"];

/// A command line of several parts.
pub fn command_line(parts: &[&CStr]) -> Result<CText, Text> {
    let mut line = Text::new();
    for part in parts.iter().filter_map(|part| part.to_str().ok()) {
        let space = if line.is_empty() { "" } else { " " };
        line = say::text(format_args!("{line}{space}{part}"));
    }
    CText::new(format_args!("{line}"))
}

/// The command line of a guest with a serial console, and words for its program.
pub fn console_line(words: &[&CStr]) -> Result<CText, Text> {
    let parts: ArrayVec<_, 4> = [CONSOLE, WORDS].into_iter().chain(words.iter().copied()).collect();
    command_line(&parts)
}

/// A program that runs, and listens.
pub struct Running {
    /// Its process.
    pub pid: Pid,
    input: File,
}

impl Running {
    /// Says something to it: to a monitor, what its guest hears at its console.
    pub fn tell(&self, text: &str) {
        // Who has ended hears nothing, and that shows.
        let _ = self.input.write(text.as_bytes());
    }
}

/// Runs a program with these arguments, of which the first is its path; its output goes to `output`, if there is one.
pub fn begin(arguments: &[&CStr], output: Option<&File>) -> Result<Pid, Text> {
    begin_with(arguments, None, output)
}

/// The same, and it hears what comes from `input`.
fn begin_with(
    arguments: &[&CStr],
    input: Option<&File>,
    output: Option<&File>,
) -> Result<Pid, Text> {
    let mut list: ArrayVec<_, ARGUMENTS> = arguments.iter().map(|text| text.as_ptr()).collect();
    list.push(core::ptr::null());
    match sys::fork() {
        Ok(Some(pid)) => Ok(pid),
        Ok(None) => {
            if let Some(input) = input {
                input.becomes_input();
            }
            if let Some(output) = output {
                output.becomes_output();
            }
            let error = sys::execute_with(arguments[0], &list);
            say::line(format_args!("{:?} can't be executed: {error:?}", arguments[0]));
            sys::exit(127)
        }
        Err(error) => fail!("fork: {error:?}"),
    }
}

/// A guest's monitor: the machine's arguments, and the guest's command line.
fn arguments<'a>(
    machine: &[&'a CStr],
    command_line: &'a CStr,
) -> ArrayVec<&'a CStr, { ARGUMENTS - 1 }> {
    let [kernel, initrd] = if machine.contains(&c"--unaware") { UNAWARE } else { BOOTED };
    let begin = [PROGRAM, c"run", c"--kernel", kernel, c"--initrd", initrd];
    let machine = machine.iter().copied();
    begin.into_iter().chain(machine).chain([c"--cmdline", command_line]).collect()
}

/// Begins with a guest, by its machine's arguments and its command line.
pub fn guest(machine: &[&CStr], command_line: &CStr, output: Option<&File>) -> Result<Pid, Text> {
    begin(&arguments(machine, command_line), output)
}

/// Runs a program, listens to it as [`listen`] does, and waits for its end. `f` is told which one it is, too.
fn run(
    name: &str,
    arguments: &[&CStr],
    mut f: impl FnMut(&Running, &str) -> Result<(), Text>,
) -> Result<Ended, Text> {
    let Ok((reader, writer)) = sys::pipe() else { fail!("no pipe") };
    let Ok((heard, input)) = sys::pipe() else { fail!("no pipe") };
    let pid = begin_with(arguments, Some(&heard), Some(&writer))?;
    drop((writer, heard));
    let running = Running { pid, input };
    listen(name, &reader, |line| f(&running, line))?;
    sys::wait(pid).map_err(|error| say::text(format_args!("wait: {error:?}")))
}

/// A question at a machine's control socket, or a request, whose answer `f` gets. How it ended.
pub fn control(
    socket: &CStr,
    request: &CStr,
    mut f: impl FnMut(&str) -> Result<(), Text>,
) -> Result<Ended, Text> {
    run("control", &[PROGRAM, c"control", socket, request], |_, line| f(line))
}

/// Passes on what a guest and its monitor say, with `name` before it, to its end, and shows each line to `f`.
fn listen(
    name: &str,
    from: &File,
    mut f: impl FnMut(&str) -> Result<(), Text>,
) -> Result<(), Text> {
    let mut line = ArrayVec::<u8, { say::LONGEST }>::new();
    while let Some(byte) = from.read_byte() {
        if byte == b'\n' || line.is_full() {
            say::passed_on(name, &line);
            let text = core::str::from_utf8(&line).unwrap_or_default().trim_end();
            let heard = f(text);
            line.clear();
            heard?;
        } else if byte != b'\r' {
            line.push(if byte.is_ascii_graphic() { byte } else { b' ' });
        }
    }
    Ok(())
}

/// Boots a guest, listens to it and waits for its end. `f` gets each line, and which monitor's guest says it.
pub fn to_its_end(
    name: &str,
    machine: &[&CStr],
    command_line: &CStr,
    f: impl FnMut(&Running, &str) -> Result<(), Text>,
) -> Result<Ended, Text> {
    run(name, &arguments(machine, command_line), f)
}

/// The same for a guest that has to say that all was well, and whose monitor ends with `status`. If it listens at its virtio
/// console it hears what it expects there.
pub fn well_to_its_end(
    name: &str,
    machine: &[&CStr],
    command_line: &CStr,
    status: u8,
    mut f: impl FnMut(&Running, &str),
) -> Result<(), Text> {
    let mut well = false;
    let ended = to_its_end(name, machine, command_line, |monitor, line| {
        well |= line == "@verdict ok";
        if line == inside::LISTENS {
            monitor.tell(inside::SPOKEN);
        }
        f(monitor, line);
        Ok(())
    })?;
    if ended != Ended::Exit(status) || !well {
        fail!("{name}: the monitor's end is {ended:?}; the guest was well: {well}");
    }
    Ok(())
}
