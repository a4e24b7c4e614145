//! The buffers of a chain as one run of bytes, to read or to write.
//!
//! Like virtio-queue's own, but made of what a walk has found: those go along the chain themselves, each once more, and
//! its driver may have changed it by then.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use vm_memory::VolatileSlice;

/// What is left of some buffers.
#[derive(Default)]
struct Buffers<'m> {
    slices: VecDeque<VolatileSlice<'m>>,
    /// Bytes before it.
    done: usize,
}

impl<'m> Buffers<'m> {
    fn available(&self) -> usize {
        self.slices.iter().map(VolatileSlice::len).sum()
    }

    /// Copies up to `wanted` bytes by `copy`, which is given each slice and which of the bytes these are.
    fn copy(
        &mut self,
        wanted: usize,
        mut copy: impl FnMut(&VolatileSlice<'m>, std::ops::Range<usize>),
    ) -> io::Result<usize> {
        let mut copied = 0;
        while copied < wanted
            && let Some(slice) = self.slices.pop_front()
        {
            let count = slice.len().min(wanted - copied);
            copy(&slice, copied..copied + count);
            if count < slice.len() {
                self.slices.push_front(slice.offset(count).map_err(io::Error::other)?);
            }
            copied += count;
        }
        self.done += copied;
        Ok(copied)
    }
}

/// What a device is to read.
#[derive(Default)]
pub struct Reader<'m>(Buffers<'m>);

impl<'m> Reader<'m> {
    /// One more buffer.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        self.0.slices.push_back(slice);
    }

    /// Bytes that are left.
    pub fn available_bytes(&self) -> usize {
        self.0.available()
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.copy(bytes.len(), |slice, range| {
            slice.copy_to(&mut bytes[range]);
        })
    }
}

/// What a device is to write.
#[derive(Default)]
pub struct Writer<'m>(Buffers<'m>);

impl<'m> Writer<'m> {
    /// One more buffer.
    pub fn push(&mut self, slice: VolatileSlice<'m>) {
        self.0.slices.push_back(slice);
    }

    /// Bytes that there is room for.
    pub fn available_bytes(&self) -> usize {
        self.0.available()
    }

    /// Bytes so far.
    pub fn bytes_written(&self) -> usize {
        self.0.done
    }

    /// Takes its last byte away from it, if it has one.
    pub fn split_last(&mut self) -> Option<Self> {
        while let Some(slice) = self.0.slices.pop_back() {
            if let Some(before) = slice.len().checked_sub(1) {
                let (rest, last) = slice.split_at(before).ok()?;
                self.push(rest);
                let mut other = Self::default();
                other.push(last);
                return Some(other);
            }
        }
        None
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.copy(bytes.len(), |slice, range| slice.copy_from(&bytes[range]))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_one_run_of_bytes() {
        let mut memory: Vec<u8> = (0..10).collect();
        let whole = VolatileSlice::from(&mut memory[..]);
        // Three bytes, none, four, and one; two of the ten are nobody's.
        let slices = [(0, 3), (3, 0), (4, 4), (9, 1)].map(|(at, n)| whole.subslice(at, n).unwrap());
        let (mut reader, mut writer) = (Reader::default(), Writer::default());
        for slice in slices {
            reader.push(slice);
            writer.push(slice);
        }
        let mut five = [0; 5];
        reader.read_exact(&mut five).unwrap();
        assert_eq!((five, reader.available_bytes()), ([0, 1, 2, 4, 5], 3));
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, [6, 7, 9]);
        assert!(reader.read_exact(&mut [0]).is_err());

        let mut last = writer.split_last().unwrap();
        assert_eq!((writer.available_bytes(), last.available_bytes()), (7, 1));
        writer.write_all(&[0xf0; 4]).unwrap();
        writer.write_all(&[0xf1; 3]).unwrap();
        assert!(writer.write_all(&[0xf2]).is_err());
        last.write_all(&[0xf3]).unwrap();
        assert_eq!((writer.bytes_written(), last.bytes_written()), (7, 1));
        assert!(writer.split_last().is_none());
        assert_eq!(memory, [0xf0, 0xf0, 0xf0, 3, 0xf0, 0xf1, 0xf1, 0xf1, 8, 0xf3]);
    }
}
