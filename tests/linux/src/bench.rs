//! What the kernel's ways cost, in instructions: with `-icount` the counter counts them.
//!
//! One CPU; the machine's time goes on by one nanosecond with each instruction, and while all CPUs sleep
//! it jumps to the next timer. So what is measured here never sleeps, but for the boot, in which Linux
//! waits now and then, with and without Umbra alike.

use crate::clock;
use crate::fail;
use crate::say::{self, Text};
use crate::sys::{self, Ended};

const SYSCALLS: u64 = 20_000;
const PAGES: usize = 512;
const FAULT_ROUNDS: u64 = 8;
const FORKS: u64 = 50;
const SWITCHES: u64 = 1000;

/// Ticks of the counter in nanoseconds.
pub fn nanos(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(clock::frequency())) as u64
}

pub fn row(name: &str, total: u64, count: u64) {
    let (whole, rest) = (total / count, total % count * 10 / count);
    say::line(format_args!("@bench name={name} instructions={whole}.{rest}"));
}

fn measure(name: &str, count: u64, f: impl FnOnce() -> Result<(), Text>) -> Result<(), Text> {
    let before = clock::ticks();
    f()?;
    row(name, nanos(clock::ticks() - before), count);
    Ok(())
}

/// All of it.
pub fn run() -> Result<(), Text> {
    row("boot", nanos(clock::ticks()), 1);
    measure("syscall", SYSCALLS, || {
        for _ in 0..SYSCALLS {
            sys::parent();
        }
        Ok(())
    })?;
    measure("page-fault", PAGES as u64 * FAULT_ROUNDS, || {
        (0..FAULT_ROUNDS).try_for_each(|_| touch_pages())
    })?;
    measure("fork-and-exit", FORKS, || (0..FORKS).try_for_each(|_| fork_once()))?;
    switches()
}

fn touch_pages() -> Result<(), Text> {
    const PAGE: usize = 4096;
    let Ok(memory) = sys::own_memory(PAGES * PAGE) else { fail!("no memory") };
    for page in 0..PAGES {
        // SAFETY: inside the memory just mapped, which nothing else uses.
        unsafe { memory.add(page * PAGE).write_volatile(1) };
    }
    // SAFETY: mapped above; nothing refers to it.
    unsafe { sys::unmap(memory, PAGES * PAGE) };
    Ok(())
}

fn fork_once() -> Result<(), Text> {
    match sys::fork() {
        Ok(None) => sys::exit(0),
        Ok(Some(child)) => match sys::wait(child) {
            Ok(Ended::Exit(0)) => Ok(()),
            ended => fail!("child: {ended:?}"),
        },
        Err(error) => fail!("fork: {error:?}"),
    }
}

/// Two processes that wake each other through pipes.
fn switches() -> Result<(), Text> {
    let (Ok(there), Ok(back)) = (sys::pipe(), sys::pipe()) else { fail!("no pipes") };
    match sys::fork() {
        Ok(None) => {
            for _ in 0..SWITCHES {
                if there.0.read_byte().is_none() || back.1.write(&[1]) != Ok(1) {
                    sys::exit(1);
                }
            }
            sys::exit(0)
        }
        Ok(Some(child)) => {
            measure("two-context-switches", SWITCHES, || {
                for _ in 0..SWITCHES {
                    if there.1.write(&[1]) != Ok(1) || back.0.read_byte().is_none() {
                        fail!("a pipe broke");
                    }
                }
                Ok(())
            })?;
            match sys::wait(child) {
                Ok(Ended::Exit(0)) => Ok(()),
                ended => fail!("child: {ended:?}"),
            }
        }
        Err(error) => fail!("fork: {error:?}"),
    }
}
