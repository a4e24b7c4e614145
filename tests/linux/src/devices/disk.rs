//! Whole disks, past the page cache.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use umbra_patterns::digest::{self, PIECE_BYTES};

use super::MAX_CPUS;
use crate::fail;
use crate::say::Text;
use crate::sys::{self, File};

/// Pieces that each CPU writes.
const WRITTEN: u64 = 4;

/// What something holds.
pub struct Content {
    pub bytes: u64,
    pub digest: u64,
}

impl Content {
    /// A disk is as large.
    pub fn check_size(&self, disk: &File, name: &str) -> Result<(), Text> {
        match disk.disk_bytes() {
            Ok(bytes) if bytes == self.bytes && bytes != 0 => Ok(()),
            found => fail!("{name} has {found:?} bytes, not {}", self.bytes),
        }
    }

    /// What was read is what there is.
    pub fn check(&self, name: &str, digest: u64) -> Result<(), Text> {
        if digest != self.digest {
            fail!("{name}: what was read has the digest {digest:#x}, not {:#x}", self.digest);
        }
        Ok(())
    }
}

/// A buffer in whole pages, as O_DIRECT wants it.
pub struct Buffer(*mut u8);

impl Buffer {
    pub fn new() -> Result<Self, Text> {
        match sys::own_memory(PIECE_BYTES) {
            Ok(at) => Ok(Self(at)),
            Err(error) => fail!("no buffer: {error:?}"),
        }
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: memory of this process's own, mapped until the drop, borrowed with the buffer.
        unsafe { core::slice::from_raw_parts_mut(self.0, PIECE_BYTES) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; nothing refers to it any more.
        unsafe { sys::unmap(self.0, PIECE_BYTES) };
    }
}

/// What each process has read, in memory that all see.
pub struct Sums(&'static [AtomicU64; MAX_CPUS]);

impl Sums {
    pub fn new() -> Result<Self, Text> {
        match sys::shared_memory(size_of::<[AtomicU64; MAX_CPUS]>()) {
            // SAFETY: fresh memory that stays mapped; zeroes are valid.
            Ok(at) => Ok(Self(unsafe { &*at.cast() })),
            Err(error) => fail!("no shared memory: {error:?}"),
        }
    }

    /// What all of it comes to.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, part| sum.wrapping_add(part.load(SeqCst)))
    }

    /// Reads every piece of a disk whose number is `share` modulo `shares`.
    pub fn read(&self, disk: &File, share: u32, shares: u32, bytes: u64) -> Result<(), Text> {
        let mut buffer = Buffer::new()?;
        let mut sum = 0u64;
        let pieces = bytes.div_ceil(PIECE_BYTES as u64);
        for number in (u64::from(share)..pieces).step_by(shares as usize) {
            let at = number * PIECE_BYTES as u64;
            let length = (bytes - at).min(PIECE_BYTES as u64) as usize;
            let piece = &mut buffer.bytes()[..length];
            if let Err(error) = disk.read_at(piece, at) {
                fail!("reading at {at:#x}: {error:?}");
            }
            sum = sum.wrapping_add(digest::piece(number, piece));
        }
        self.0[share as usize].store(sum, SeqCst);
        Ok(())
    }
}

/// Fills a piece with what belongs there and nowhere else.
fn fill(piece: &mut [u8], number: u64, turn: u64) {
    for (n, word) in (0u64..).zip(piece.as_chunks_mut().0) {
        *word = (number << 40 | turn << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    }
}

/// Writes some pieces, all of which are this CPU's, and reads them again: twice, with other content.
pub fn write_and_read(disk: &File, cpu: u32, cpus: u32, bytes: u64) -> Result<(), Text> {
    let (mut wrote, mut found) = (Buffer::new()?, Buffer::new()?);
    let pieces = bytes / PIECE_BYTES as u64;
    let numbers = || (u64::from(cpu)..pieces).step_by(cpus as usize).take(WRITTEN as usize);
    if numbers().next().is_none() {
        fail!("the disk is too small to write to");
    }
    for turn in 0..2 {
        for number in numbers() {
            fill(wrote.bytes(), number, turn);
            if let Err(error) = disk.write_at(wrote.bytes(), number * PIECE_BYTES as u64) {
                fail!("writing piece {number}: {error:?}");
            }
        }
        for number in numbers() {
            fill(wrote.bytes(), number, turn);
            found.bytes().fill(0);
            if let Err(error) = disk.read_at(found.bytes(), number * PIECE_BYTES as u64) {
                fail!("reading piece {number} again: {error:?}");
            }
            if found.bytes() != wrote.bytes() {
                fail!("piece {number} is not what was written");
            }
        }
    }
    Ok(())
}
