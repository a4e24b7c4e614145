//! What a block of a disk costs, in instructions, from the system call to its return.
//!
//! While a process waits for a disk its CPU would sleep, and where instructions are counted a sleep takes
//! as long as it is until the next timer. So another process, which only runs when nobody else wants to, uses
//! that time up in turns of known length, and they are taken off again.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::disk::Buffer;
use super::{DISKS, wait_for_disk};
use crate::bench::{nanos, row};
use crate::clock;
use crate::fail;
use crate::modules;
use crate::say::Text;
use crate::sys::{self, File};

const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 500;
/// What else Linux does comes now and then, and so does a disk's answer: of so many rounds the least counts.
const ROUNDS: u64 = 12;
/// How long the turns alone are measured.
const ALONE_MICROS: u64 = 1_000_000;

/// Turns that nobody else wanted, counted by a process that lives as long as this one.
struct Rest(&'static AtomicU64);

impl Rest {
    fn start() -> Result<Self, Text> {
        let turns: &AtomicU64 = match sys::shared_memory(size_of::<AtomicU64>()) {
            // SAFETY: fresh memory that stays mapped; zero is valid.
            Ok(at) => unsafe { &*at.cast() },
            Err(error) => fail!("no shared memory: {error:?}"),
        };
        match sys::fork() {
            Ok(None) => {
                if sys::io::give_way().is_err() {
                    sys::exit(1);
                }
                loop {
                    turns.fetch_add(1, Relaxed);
                }
            }
            Ok(Some(_)) => Ok(Self(turns)),
            Err(error) => fail!("fork: {error:?}"),
        }
    }

    /// Nanoseconds, which are instructions, and turns, while `f` runs.
    fn during(&self, f: impl FnOnce() -> Result<(), Text>) -> Result<(u64, u64), Text> {
        let (begin, turns) = (clock::ticks(), self.0.load(Relaxed));
        f()?;
        Ok((nanos(clock::ticks() - begin), self.0.load(Relaxed) - turns))
    }
}

/// A row for each disk.
pub fn run() -> Result<(), Text> {
    modules::load()?;
    let rest = Rest::start()?;
    for (path, name) in DISKS {
        let disk = wait_for_disk(path, name)?;
        let (alone, turns) = rest.during(|| {
            sys::sleep_micros(ALONE_MICROS);
            Ok(())
        })?;
        if turns == 0 {
            fail!("nothing runs while this sleeps");
        }
        let mut instructions = u64::MAX;
        for round in 0..ROUNDS {
            let (all, rested) = rest.during(|| read_blocks(&disk, round * BLOCKS))?;
            // Turns alone have the timer's interrupts among them, and so has what is measured.
            let spent = u128::from(alone) * u128::from(rested) / u128::from(turns);
            let spent = u64::try_from(spent).unwrap_or(u64::MAX);
            instructions = instructions.min(all.saturating_sub(spent));
        }
        row(if name == "vda" { "virtio-block" } else { "nvme-block" }, instructions, BLOCKS);
    }
    Ok(())
}

/// One after the other from there on; behind the last comes the first.
fn read_blocks(disk: &File, first: u64) -> Result<(), Text> {
    let mut buffer = Buffer::new()?;
    let blocks = disk.disk_bytes().unwrap_or(0) / BLOCK_BYTES as u64;
    if blocks == 0 {
        fail!("a disk without blocks");
    }
    for number in first..first + BLOCKS {
        let at = number % blocks * BLOCK_BYTES as u64;
        if let Err(error) = disk.read_at(&mut buffer.bytes()[..BLOCK_BYTES], at) {
            fail!("reading at {at:#x}: {error:?}");
        }
    }
    Ok(())
}
