//! What root may do to other processes; files and time.

use core::ffi::CStr;

use super::{AT_FDCWD, Errno, Pid, call};

/// `struct iovec`
#[repr(C)]
struct Place {
    address: usize,
    bytes: usize,
}

/// RLIMIT_CORE
const CORE: usize = 4;

/// Reads another process's memory: how many bytes could be read.
pub fn read_memory_of(process: Pid, address: usize, buffer: &mut [u8]) -> Result<usize, Errno> {
    let to = Place { address: buffer.as_mut_ptr() as usize, bytes: buffer.len() };
    let from = Place { address, bytes: buffer.len() };
    let (to, from) = ((&raw const to) as usize, (&raw const from) as usize);
    // SAFETY: process_vm_readv, which writes to the buffer.
    unsafe { call(270, [process, to, 1, from, 1, 0]) }
}

/// Whatever another process leaves behind when it crashes is written, however large.
pub fn unlimited_core_of(process: Pid) -> Result<(), Errno> {
    let limit = [u64::MAX; 2];
    // SAFETY: prlimit64, which reads the limit.
    unsafe { call(261, [process, CORE, (&raw const limit) as usize, 0, 0, 0]) }.map(drop)
}

/// CLOCK_MONOTONIC, in nanoseconds.
pub fn monotonic_nanos() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: clock_gettime, which fills in two words.
    let told = unsafe { call(113, [1, (&raw mut time) as usize, 0, 0, 0, 0]) };
    // It has one.
    told.map_or(0, |_| time[0] * 1_000_000_000 + time[1])
}

/// Bytes of a file.
pub fn bytes_of(path: &CStr) -> Result<u64, Errno> {
    /// `struct stat` and where `st_size` is in it (Linux, include/uapi/asm-generic/stat.h).
    const STAT: usize = 128;
    const SIZE: usize = 48;
    let mut stat = [0u8; STAT];
    let to = (&raw mut stat) as usize;
    // SAFETY: newfstatat, which fills it in.
    unsafe { call(79, [AT_FDCWD, path.as_ptr() as usize, to, 0, 0, 0]) }?;
    let bytes = stat[SIZE..SIZE + 8].try_into().unwrap_or([0; 8]);
    Ok(u64::from_le_bytes(bytes))
}
