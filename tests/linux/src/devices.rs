//! Devices that move data by themselves: every byte of the disks, read on every CPU and while CPUs go
//! and come; what was written, read back; a file from the network; and the interrupts of all that.

pub mod bench;
pub mod disk;
mod interrupts;
mod network;

use core::cell::Cell;
use core::ffi::CStr;

use crate::fail;
use crate::modules;
use crate::say::{self, Text};
use crate::seen;
use crate::start::Start;
use crate::stress;
use crate::sys::{self, Ended, File, Pid};

/// The disks, each by another driver.
const DISKS: [(&CStr, &str); 2] = [(c"/dev/vda", "vda"), (c"/dev/nvme0n1", "nvme0n1")];
/// CPUs at most.
const MAX_CPUS: usize = 16;
/// What is waited for is looked for so many times, with a nap between: a minute at least, and longer where
/// this machine's time is.
const LOOKS: u32 = 6000;
const NAP_MICROS: u64 = 10_000;
/// Between two CPUs that go or come.
const PACE_MICROS: u64 = 20_000;

/// Waits until `f` gives something.
fn wait_for<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> Result<T, Text> {
    for _ in 0..LOOKS {
        if let Some(found) = f() {
            return Ok(found);
        }
        sys::sleep_micros(NAP_MICROS);
    }
    fail!("{what} does not come")
}

/// A disk, when it is there.
pub fn wait_for_disk(path: &CStr, name: &str) -> Result<File, Text> {
    wait_for(name, || File::disk(path).ok())
}

/// Runs `f` in a process for each number below `count`, calls `meanwhile` until all have ended, and
/// wants all to have ended well.
fn in_processes(
    count: u32,
    f: impl Fn(u32) -> Result<(), Text>,
    mut meanwhile: impl FnMut() -> Result<(), Text>,
) -> Result<(), Text> {
    let mut pids: [Option<Pid>; MAX_CPUS + 1] = [None; MAX_CPUS + 1];
    for (number, pid) in (0..count).zip(&mut pids) {
        match sys::fork() {
            Ok(None) => match f(number) {
                Ok(()) => sys::exit(0),
                Err(why) => {
                    say::line(format_args!("process {number}: {why}"));
                    sys::exit(1)
                }
            },
            Ok(child) => *pid = child,
            Err(error) => fail!("fork: {error:?}"),
        }
    }
    let mut looks = 0;
    while pids.iter().any(Option::is_some) {
        for pid in &mut pids {
            let Some(child) = *pid else { continue };
            match sys::has_ended(child) {
                Some(Ended::Exit(0)) => *pid = None,
                Some(ended) => fail!("a process that uses devices: {ended:?}"),
                None => {}
            }
        }
        meanwhile()?;
        looks += 1;
        if looks == LOOKS {
            fail!("processes that use devices do not end");
        }
    }
    Ok(())
}

/// This process stays on a CPU.
fn stay_on(cpu: u32) -> Result<(), Text> {
    match sys::set_affinity(1 << cpu) {
        Ok(()) => Ok(()),
        Err(error) => fail!("CPU {cpu}: {error:?}"),
    }
}

fn nap() -> Result<(), Text> {
    sys::sleep_micros(NAP_MICROS);
    Ok(())
}

/// All of it.
pub fn run(start: &Start) -> Result<(), Text> {
    let cpus = start.number("cpus").unwrap_or(1).clamp(1, MAX_CPUS as u64) as u32;
    let number = |name: &str| start.number(name).unwrap_or(0);
    let expected = disk::Content { bytes: number("disk"), digest: number("digest") };
    let file = disk::Content { bytes: number("file"), digest: number("file-digest") };
    modules::load()?;
    let open = |(path, name): (&CStr, &str)| wait_for_disk(path, name);
    let disks = [open(DISKS[0])?, open(DISKS[1])?];
    for (disk, (_, name)) in disks.iter().zip(DISKS) {
        expected.check_size(disk, name)?;
    }
    // Each CPU a share, so that every queue is used.
    for (disk, (_, name)) in disks.iter().zip(DISKS) {
        let sums = disk::Sums::new()?;
        let read = |cpu| stay_on(cpu).and_then(|()| sums.read(disk, cpu, cpus, expected.bytes));
        in_processes(cpus, read, nap)?;
        expected.check(name, sums.total())?;
        say::line(format_args!("@seen what={name} is={}-bytes", expected.bytes));
    }
    // And while CPUs go and come: each of the two a process, and the network one.
    let sums = [disk::Sums::new()?, disk::Sums::new()?];
    let times = start.number("times").unwrap_or(1);
    let plugged = Cell::new(0u64);
    let plug_one = |cpus: u32| {
        if cpus > 1 {
            let cpu = 1 + plugged.get() as u32 % (cpus - 1);
            stress::plug(cpu, false)?;
            sys::sleep_micros(PACE_MICROS);
            stress::plug(cpu, true)?;
        }
        sys::sleep_micros(PACE_MICROS);
        plugged.set(plugged.get() + 1);
        Ok(())
    };
    let at_once = |number: u32| match number {
        0 | 1 => {
            let at = number as usize;
            (0..times).try_for_each(|_| sums[at].read(&disks[at], 0, 1, expected.bytes))
        }
        _ => (0..times).try_for_each(|_| network::fetch(&file)),
    };
    network::set_up()?;
    in_processes(3, at_once, || plug_one(cpus))?;
    // However fast the devices were.
    while plugged.get() < times * u64::from(cpus - 1) {
        plug_one(cpus)?;
    }
    let all = sums.iter().map(disk::Sums::total);
    for (total, (_, name)) in all.zip(DISKS) {
        expected.check(name, total)?;
    }
    seen::row("network", &say::text(format_args!("{}-bytes-by-TFTP", file.bytes)));
    say::line(format_args!("@seen what=hotplugs-meanwhile is={}", plugged.get()));
    for (disk, (_, name)) in disks.iter().zip(DISKS) {
        let write =
            |cpu| stay_on(cpu).and_then(|()| disk::write_and_read(disk, cpu, cpus, expected.bytes));
        in_processes(cpus, write, nap)?;
        say::line(format_args!("@seen what={name}-written is=read-back"));
    }
    interrupts::show(cpus)
}
