//! What ends badly: monitors that are killed, and users who ask for anything.

use core::ffi::CStr;

use arrayvec::ArrayVec;

use super::{held, monitor, pinned, wait_until};
use crate::clock;
use crate::fail;
use crate::say::{self, CText, Text};
use crate::seen;
use crate::sys::{self, Ended, File, Pid, others};

/// The latest instant of a guest's life at which it is killed, in microseconds: by then it has come up.
const LATEST_MICROS: u64 = 3_000_000;

/// Hyp takes longer to be given a payload, and to measure it, in microseconds.
const SEALED_MICROS: u64 = 100_000;

/// Pages that a guest has by the time it runs: its kernel's.
const RUNNING_PAGES: u64 = 2048;

/// Threads of a monitor's beside those of its vCPUs.
const OTHER_THREADS: u64 = 3;

const PROTECTED_MACHINE: [&CStr; 5] = [c"--protected", c"--memory", c"192M", c"--cpus", c"2"];

/// A guest's monitor.
struct Monitor {
    pid: Pid,
    /// What is said by one whose guest is protected.
    says: Option<File>,
}

/// What a guest is killed in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amid {
    /// It runs, however slow this machine is.
    Run,
    /// A protected one's payload is written.
    Payload,
    /// It is given to hyp, and the VM sealed: KVM_RUN has begun, and its guest has not.
    Seal,
    /// It may be any instant.
    Anything,
}

impl Amid {
    /// One for each pair, in turn.
    const ALL: [Self; 4] = [Self::Run, Self::Payload, Self::Seal, Self::Anything];
}

/// Pages that a guest has: pinned ones, and the module's own.
#[derive(Clone, Copy, Debug)]
struct Pages {
    pinned: u64,
    own: u64,
}

impl Pages {
    /// Those of all guests now.
    fn now() -> Result<Self, Text> {
        let pinned = pinned()?;
        Ok(Self { pinned, own: held()?.saturating_sub(pinned) })
    }
}

impl Monitor {
    /// That of a guest that nobody listens to, and that goes on until it is killed.
    fn unheard() -> Result<Self, Text> {
        let line = monitor::command_line(&[monitor::WORDS, c"wait"])?;
        match File::write_only(c"/dev/null") {
            Ok(nobody) => {
                let pid = monitor::guest(&monitor::MACHINE, &line, Some(&nobody))?;
                Ok(Self { pid, says: None })
            }
            Err(error) => fail!("/dev/null: {error:?}"),
        }
    }

    /// That of a protected one, which goes on until it is killed.
    fn protected() -> Result<Self, Text> {
        let Ok((says, output)) = sys::pipe() else { fail!("no pipe") };
        let line = monitor::console_line(&[c"realm wait"])?;
        let pid = monitor::guest(&PROTECTED_MACHINE, &line, Some(&output))?;
        Ok(Self { pid, says: Some(says) })
    }

    /// How many threads it has.
    fn threads(&self) -> Result<u64, Text> {
        let path = CText::new(format_args!("/proc/{}/status", self.pid))?;
        seen::with_file(&path, |text| {
            let threads = text.lines().find_map(|line| line.strip_prefix("Threads:"));
            match threads.and_then(|count| count.trim().parse().ok()) {
                Some(count) => Ok(count),
                None => fail!("a monitor without threads"),
            }
        })
    }

    /// Waits until it is there, and some time at random; `before` it was begun there were other guests' pages.
    fn comes_to(&self, amid: Amid, before: Pages, random: u64) -> Result<(), Text> {
        let some_time = random % LATEST_MICROS / 2;
        match (amid, &self.says) {
            (Amid::Run, None) => {
                let least = before.pinned + RUNNING_PAGES;
                wait_until("a guest that runs", || Ok(pinned()? > least))?;
                sys::sleep_micros(some_time);
            }
            (Amid::Run, Some(says)) => {
                // What it says first is the first word of its program.
                if says.read_byte().is_none() {
                    fail!("a protected guest says nothing");
                }
                sys::sleep_micros(some_time);
            }
            (Amid::Payload, Some(_)) => {
                let bytes = |path| others::bytes_of(path).unwrap_or(0);
                let all = (bytes(c"/guest-kernel") + bytes(c"/guest-initrd")) / 4096;
                let least = before.own + random % all.max(1);
                wait_until("a part of a payload", || Ok(Pages::now()?.own > least))?;
            }
            (Amid::Seal, Some(_)) => {
                let begins = || Ok(self.threads()? > OTHER_THREADS);
                wait_until("a monitor with vCPUs", begins)?;
                sys::sleep_micros(random % SEALED_MICROS);
            }
            (Amid::Payload | Amid::Seal | Amid::Anything, _) => sys::sleep_micros(some_time),
        }
        Ok(())
    }

    /// Kills it.
    fn kill(self) -> Result<(), Text> {
        sys::kill(self.pid, sys::SIGKILL);
        match sys::wait(self.pid) {
            Ok(Ended::Signal(sys::SIGKILL)) => Ok(()),
            ended => fail!("a monitor that was killed: {ended:?}"),
        }
    }
}

/// Waits until no guest has a page: neither this kernel has pinned one, nor the module has one out.
fn all_back() -> Result<(), Text> {
    wait_until("the end of all guests' pages", || Ok(pinned()? == 0 && held()? == 0))
}

/// Kills so many monitors, each at an instant of its own, two at a time, and wants all their pages back. With `protected` every
/// other one's guest is a protected one.
pub fn kill(count: u64, protected: bool) -> Result<(), Text> {
    let mut random = clock::ticks() | 1;
    let mut turns = Amid::ALL.into_iter().cycle();
    let mut done = 0;
    while done < count {
        let amid = turns.next().unwrap_or(Amid::Anything);
        let before = Pages::now()?;
        let mut pair = ArrayVec::<_, 2>::new();
        pair.push(if protected { Monitor::protected()? } else { Monitor::unheard()? });
        if done + 1 < count {
            pair.push(Monitor::unheard()?);
        }
        for monitor in pair {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            monitor.comes_to(amid, before, random)?;
            monitor.kill()?;
            done += 1;
        }
        if protected || done % 16 == 0 {
            all_back()?;
            say::line(format_args!("@progress {done} {count}"));
        }
    }
    all_back()
}

/// A machine that runs when this Linux is turned off. Linux's reboot notifiers take it down, and hyp says whether all
/// pages have come back.
pub fn leave_running(protected: bool) -> Result<(), Text> {
    // One has ended while the module was in: what is taken down is what there is, not what there was.
    kill(1, protected)?;
    let before = Pages::now()?;
    let left = if protected { Monitor::protected()? } else { Monitor::unheard()? };
    left.comes_to(Amid::Run, before, 0)?;
    // What it says has somewhere to go.
    core::mem::forget(left);
    Ok(())
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
