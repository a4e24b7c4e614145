//! Guests that keep patterns in their registers while this Linux does, on the same CPUs.

use core::ffi::CStr;

use arrayvec::ArrayVec;
use umbra_patterns::realm;

use super::monitor;
use crate::fail;
use crate::say::{self, Text};
use crate::seen;
use crate::start::Start;
use crate::stress;
use crate::sys::{self, Ended, File, Pid};

/// vCPUs of each guest.
const VCPUS: u32 = 2;
/// Guests at most.
const GUESTS: usize = 4;
const NAMES: [&str; GUESTS] = ["guest", "guest-2", "guest-3", "guest-4"];
/// A protected one, which is the last.
const PROTECTED: &str = "protected";

/// Runs a guest to its end. Its last word must be that all was well. `begun` is told when it begins with its patterns.
fn guest(name: &str, begun: &File) -> Result<(), Text> {
    let (machine, line): (&[&CStr], _) = match name {
        PROTECTED => (realm::BESIDE.machine, realm::BESIDE.command_line),
        _ => {
            (&monitor::MACHINE, [monitor::WORDS, c"ciphers cpus=2 times=8 processes=2"].as_slice())
        }
    };
    let line = monitor::command_line(line)?;
    monitor::well_to_its_end(name, machine, &line, 0, |_, line| {
        if line.starts_with("@seen what=Linux") {
            // Who waits for it finds out by the guest's end, if not so.
            let _ = begun.write(b"!");
        }
    })
}

/// The patterns of host and guests.
pub fn run(start: &Start) -> Result<(), Text> {
    let guests = start.number("guests").unwrap_or(1).clamp(1, GUESTS as u64) as usize;
    let Ok((are_begun, begun)) = sys::pipe() else { fail!("no pipe") };
    let mut names: ArrayVec<_, { GUESTS + 1 }> = NAMES[..guests].iter().copied().collect();
    if start.has("protected") {
        names.push(PROTECTED);
    }
    let mut children = [None::<Pid>; GUESTS + 1];
    for (name, child) in names.iter().zip(&mut children) {
        match sys::fork() {
            Err(error) => fail!("fork: {error:?}"),
            Ok(None) => {
                let result = guest(name, &begun);
                if let Err(why) = &result {
                    say::line(format_args!("{why}"));
                }
                sys::exit(result.is_err().into())
            }
            Ok(pid) => *child = pid,
        }
    }
    drop(begun);
    // At the same time: a guest that comes up needs no FP registers.
    for _ in &names {
        are_begun.read_byte();
    }
    let patterns = stress::run(start);
    let ended = children.map(|child| child.map(sys::wait));
    patterns?;
    for (name, ended) in names.iter().zip(ended.into_iter().flatten()) {
        if ended != Ok(Ended::Exit(0)) {
            fail!("{name}: {ended:?}");
        }
        seen::row(name, &say::text(format_args!("{VCPUS}-vCPUs")));
    }
    Ok(())
}
