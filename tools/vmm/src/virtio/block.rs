//! A disk: a file's or a block device's bytes.
//!
//! A write lasts when a later flush is answered. A driver that does not know of flushes gets that with each write.

use super::buffers::{Reader, Writer};
use super::queue::{Chain, Malformed, Queues};
use super::{Device, Event};
use crate::report::DeviceCounters;
use anyhow::{Context, Result, ensure};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

/// Bytes of a sector, whatever the file's are.
const SECTOR: u64 = 512;
/// Bytes of a buffer of a request, and buffers of it, at most. The driver is told, so that no request holds others up for
/// long.
const SIZE_MAX: u32 = 64 << 10;
const SEG_MAX: u32 = 126;
/// Bytes that are on their way at once.
const PIECE: usize = 64 << 10;
/// Bytes of a request's header.
const HEADER: usize = 16;

/// The disk.
pub struct Block {
    file: File,
    read_only: bool,
    sectors: u64,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// The driver knows of flushes.
    flushes: bool,
    buffer: Vec<u8>,
    counters: Arc<DeviceCounters>,
}

/// Why a request fails.
enum Failure {
    Io,
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

impl Block {
    /// The disk in this file, which is nobody else's while it is written to.
    ///
    /// # Errors
    ///
    /// It can't be opened, or another monitor has it.
    pub fn open(path: &Path, read_only: bool, counters: Arc<DeviceCounters>) -> Result<Self> {
        let complain = || path.display().to_string();
        let file = OpenOptions::new().read(true).write(!read_only).open(path);
        let file = file.with_context(complain)?;
        match if read_only { file.try_lock_shared() } else { file.try_lock() } {
            Err(TryLockError::WouldBlock) => anyhow::bail!("{} is in use", complain()),
            // A file system without locks has nobody else's either.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        Self::new(file, read_only, counters).with_context(complain)
    }

    pub(super) fn new(
        mut file: File,
        read_only: bool,
        counters: Arc<DeviceCounters>,
    ) -> Result<Self> {
        let bytes = file.seek(SeekFrom::End(0))?;
        ensure!(bytes >= SECTOR, "there is no sector in it");
        let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (to, from) in id.iter_mut().zip(counters.name().bytes()) {
            *to = from;
        }
        let buffer = vec![0; PIECE];
        Ok(Self { file, read_only, sectors: bytes / SECTOR, id, flushes: false, buffer, counters })
    }

    /// Answers a request. Returns how many bytes it has written to the guest.
    fn answer(&mut self, chain: &mut Chain<'_>) -> Result<u32, Malformed> {
        let Some(mut status) = chain.writer.split_last() else {
            return Err(Malformed::new("a request without room for its status"));
        };
        let Ok((kind, sector)) = header(&mut chain.reader) else {
            return Err(Malformed::new("a request without a header"));
        };
        self.counters.count_request();
        // The header and the status may be part of others, so these are no less than what the driver has.
        let too_much =
            chain.longest > SIZE_MAX + HEADER as u32 || chain.count > SEG_MAX as usize + 2;
        let code =
            match if too_much { Err(Failure::Io) } else { self.carry_out(kind, sector, chain) } {
                Ok(()) => VIRTIO_BLK_S_OK,
                Err(Failure::Io) => VIRTIO_BLK_S_IOERR,
                Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            };
        if code != VIRTIO_BLK_S_OK {
            self.counters.count_error();
        }
        let written = chain.writer.bytes_written() + 1;
        status.write_all(&[code as u8]).map_err(Malformed::new)?;
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }

    fn carry_out(&mut self, kind: u32, sector: u64, chain: &mut Chain<'_>) -> Result<(), Failure> {
        match kind {
            VIRTIO_BLK_T_IN => self.read(sector, &mut chain.writer),
            VIRTIO_BLK_T_OUT => self.write(sector, &mut chain.reader),
            VIRTIO_BLK_T_FLUSH => Ok(self.file.sync_data()?),
            VIRTIO_BLK_T_GET_ID => Ok(chain.writer.write_all(&self.id)?),
            _ => Err(Failure::Unsupported),
        }
    }

    /// Where in the file so many bytes from a sector on are, if they are whole sectors of it.
    fn place(&self, sector: u64, bytes: usize) -> Result<u64, Failure> {
        let bytes = bytes as u64;
        let end = sector.checked_add(bytes / SECTOR);
        if bytes.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= self.sectors) {
            // Below the file's length, which is no more than 64 bits can say.
            Ok(sector * SECTOR)
        } else {
            Err(Failure::Io)
        }
    }

    fn read(&mut self, sector: u64, to: &mut Writer<'_>) -> Result<(), Failure> {
        let mut rest = to.available_bytes();
        let mut at = self.place(sector, rest)?;
        while rest > 0 {
            let piece = &mut self.buffer[..rest.min(PIECE)];
            self.file.read_exact_at(piece, at)?;
            to.write_all(piece)?;
            at += piece.len() as u64;
            rest -= piece.len();
            self.counters.count_bytes(piece.len());
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, from: &mut Reader<'_>) -> Result<(), Failure> {
        let mut rest = from.available_bytes();
        let mut at = self.place(sector, rest)?;
        if self.read_only {
            return Err(Failure::Io);
        }
        while rest > 0 {
            let piece = &mut self.buffer[..rest.min(PIECE)];
            from.read_exact(piece)?;
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
            rest -= piece.len();
            self.counters.count_bytes(piece.len());
        }
        if !self.flushes {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// What a request wants, and its first sector.
fn header(reader: &mut Reader<'_>) -> io::Result<(u32, u64)> {
    let (mut kind, mut reserved, mut sector) = ([0; 4], [0; 4], [0; 8]);
    reader.read_exact(&mut kind)?;
    reader.read_exact(&mut reserved)?;
    reader.read_exact(&mut sector)?;
    Ok((u32::from_le_bytes(kind), u64::from_le_bytes(sector)))
}

impl Device for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queues(&self) -> usize {
        1
    }

    fn features(&self) -> u64 {
        let read_only = u64::from(self.read_only) << VIRTIO_BLK_F_RO;
        1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | read_only
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.sectors.to_le_bytes().to_vec();
        config.extend(SIZE_MAX.to_le_bytes());
        config.extend(SEG_MAX.to_le_bytes());
        config
    }

    fn start(&mut self, features: u64) {
        self.flushes = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, Malformed> {
        match event {
            Event::Queue(queue) => queues.drain(queue, |chain| self.answer(chain)),
            Event::Source => Ok(false),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_all() }
    }
}

#[cfg(test)]
mod tests;
