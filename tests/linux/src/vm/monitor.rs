//! The monitor as a process of its own.

use core::ffi::CStr;

use arrayvec::ArrayVec;

use crate::fail;
use crate::say::{self, Text};
use crate::sys::{self, Ended, File, Pid};

/// The program, and a guest's kernel and initrd.
const PROGRAM: &CStr = c"/umbra-vmm";
const BEGIN: [&CStr; 6] =
    [PROGRAM, c"run", c"--kernel", c"/guest-kernel", c"--initrd", c"/guest-initrd"];
/// Arguments at most.
const ARGUMENTS: usize = 32;

/// Runs a program with these arguments, of which the first is its path; its output goes to `output`, if there is one.
pub fn begin(arguments: &[&CStr], output: Option<&File>) -> Result<Pid, Text> {
    let mut list: ArrayVec<_, ARGUMENTS> = arguments.iter().map(|text| text.as_ptr()).collect();
    list.push(core::ptr::null());
    match sys::fork() {
        Ok(Some(pid)) => Ok(pid),
        Ok(None) => {
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

/// A guest: the machine's arguments, and its command line.
pub fn guest(machine: &[&CStr], command_line: &CStr, output: Option<&File>) -> Result<Pid, Text> {
    let mut arguments: ArrayVec<&CStr, { ARGUMENTS - 1 }> = BEGIN.into_iter().collect();
    for argument in machine.iter().copied().chain([c"--cmdline", command_line]) {
        arguments.push(argument);
    }
    begin(&arguments, output)
}

/// A question at a machine's control socket, or a request, whose answer `f` gets. How it ended.
pub fn control(
    socket: &CStr,
    request: &CStr,
    f: impl FnMut(&str) -> Result<(), Text>,
) -> Result<Ended, Text> {
    let Ok((reader, writer)) = sys::pipe() else { fail!("no pipe") };
    let pid = begin(&[PROGRAM, c"control", socket, request], Some(&writer))?;
    drop(writer);
    listen("control", &reader, f)?;
    sys::wait(pid).map_err(|error| say::text(format_args!("wait: {error:?}")))
}

/// Passes on what a guest and its monitor say, with `name` before it, to its end, and shows each line to `f`.
pub fn listen(
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

/// Boots a guest, listens to it and waits for its end.
pub fn to_its_end(
    name: &str,
    machine: &[&CStr],
    command_line: &CStr,
    f: impl FnMut(&str) -> Result<(), Text>,
) -> Result<Ended, Text> {
    let Ok((reader, writer)) = sys::pipe() else { fail!("no pipe") };
    let monitor = guest(machine, command_line, Some(&writer))?;
    drop(writer);
    listen(name, &reader, f)?;
    sys::wait(monitor).map_err(|error| say::text(format_args!("wait: {error:?}")))
}
