//! System calls for devices: modules, disks past the page cache, a network.

use core::ffi::CStr;

use super::{AT_FDCWD, Errno, File, call};

/// Flags of openat on arm64 (Linux arch/arm64/include/uapi/asm/fcntl.h).
const O_RDWR: usize = 2;
const O_DIRECT: usize = 0o20_0000;

/// BLKGETSIZE64 (Linux uapi/linux/fs.h).
const BLKGETSIZE64: usize = 0x8008_1272;

/// Linux's errno for a module that is there already, and for nothing to be had yet.
const EEXIST: Errno = Errno(17);
const EAGAIN: Errno = Errno(11);

impl File {
    /// Opens a disk for both, past the page cache: memory, places and sizes are in whole blocks.
    pub fn disk(path: &CStr) -> Result<Self, Errno> {
        plain!(56, AT_FDCWD, path.as_ptr(), O_RDWR | O_DIRECT, 0).map(Self)
    }

    /// Bytes of a disk.
    pub fn disk_bytes(&self) -> Result<u64, Errno> {
        let mut bytes = 0u64;
        plain!(29, self.0, BLKGETSIZE64, &raw mut bytes)?;
        Ok(bytes)
    }

    /// Reads a buffer full from a place.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), Errno> {
        let got = plain!(67, self.0, buffer.as_mut_ptr(), buffer.len(), at)?;
        if got == buffer.len() { Ok(()) } else { Err(Errno(0)) }
    }

    /// Writes all of a buffer to a place.
    pub fn write_at(&self, buffer: &[u8], at: u64) -> Result<(), Errno> {
        let put = plain!(68, self.0, buffer.as_ptr(), buffer.len(), at)?;
        if put == buffer.len() { Ok(()) } else { Err(Errno(0)) }
    }

    /// Loads it as a module of the kernel's.
    pub fn load_module(&self) -> Result<(), Errno> {
        match plain!(273, self.0, c"".as_ptr(), 0) {
            Ok(_) | Err(EEXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Removes a module, if nobody uses it (O_NONBLOCK).
pub fn remove_module(name: &CStr) -> Result<(), Errno> {
    plain!(106, name.as_ptr(), 0o4000).map(|_| ())
}

/// An IPv4 address and port.
pub type Place = ([u8; 4], u16);

/// `struct sockaddr_in`.
fn internet((address, port): Place) -> [u8; 16] {
    let [p0, p1] = port.to_be_bytes();
    let [a0, a1, a2, a3] = address;
    [2, 0, p0, p1, a0, a1, a2, a3, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// A socket for datagrams (UDP).
pub struct Socket(File);

impl Socket {
    /// A new one.
    pub fn new() -> Result<Self, Errno> {
        plain!(198, 2, 2, 0).map(|fd| Self(File(fd)))
    }

    /// Gives a network interface an address and a mask, and turns it on.
    pub fn set_up(&self, interface: &CStr, address: [u8; 4], mask: [u8; 4]) -> Result<(), Errno> {
        /// SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS (Linux uapi/linux/sockios.h); IFF_UP.
        const ADDRESS: usize = 0x8916;
        const MASK: usize = 0x891c;
        const FLAGS: usize = 0x8914;
        const UP: u8 = 1;
        let request = |what: &[u8]| {
            let mut request = [0u8; 40];
            let name = interface.to_bytes();
            request[..name.len()].copy_from_slice(name);
            request[16..16 + what.len()].copy_from_slice(what);
            request
        };
        let fd = self.0.0;
        let set = |number: usize, what: &[u8]| {
            let request = request(what);
            plain!(29, fd, number, request.as_ptr())
        };
        set(ADDRESS, &internet((address, 0)))?;
        set(MASK, &internet((mask, 0)))?;
        set(FLAGS, &[UP])?;
        Ok(())
    }

    /// Has datagrams come that are for this place.
    pub fn listen(&self, at: Place) -> Result<(), Errno> {
        let at = internet(at);
        plain!(200, self.0.0, at.as_ptr(), at.len()).map(|_| ())
    }

    /// Sends a datagram.
    pub fn send(&self, bytes: &[u8], to: Place) -> Result<(), Errno> {
        let to = internet(to);
        plain!(206, self.0.0, bytes.as_ptr(), bytes.len(), 0, to.as_ptr(), to.len()).map(|_| ())
    }

    /// The bytes of a datagram that has come, if one has, and from which port.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<(usize, u16)>, Errno> {
        /// MSG_DONTWAIT
        const NOW: usize = 0x40;
        let (mut from, mut length) = ([0u8; 16], 16u32);
        let (at, bytes) = (buffer.as_mut_ptr(), buffer.len());
        match plain!(207, self.0.0, at, bytes, NOW, from.as_mut_ptr(), &raw mut length) {
            Ok(got) => Ok(Some((got, u16::from_be_bytes([from[2], from[3]])))),
            Err(EAGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Runs this process only when nobody else wants to (SCHED_IDLE).
pub fn give_way() -> Result<(), Errno> {
    const SCHED_IDLE: usize = 5;
    let priority = 0u32;
    plain!(119, 0, SCHED_IDLE, &raw const priority).map(|_| ())
}
