//! TAP interfaces: the host's end of a guest's network.

use anyhow::{Context, Result, ensure};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// TUNSETIFF, TUNSETOFFLOAD and TUNSETVNETHDRSZ.
const SET_INTERFACE: libc::c_ulong = 0x4004_54ca;
const SET_OFFLOAD: libc::c_ulong = 0x4004_54d0;
const SET_HEADER_BYTES: libc::c_ulong = 0x4004_54d8;

/// `struct ifreq`, of which a name and flags are used.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Opens the interface of this name, which is made if it isn't there. Each frame has a header of virtio's before it, of
/// `header` bytes, and no offloads.
///
/// # Errors
///
/// It is in use, may not be made, or the name can't be one.
pub fn open(name: &str, header: usize) -> Result<File> {
    ensure!((1..libc::IFNAMSIZ).contains(&name.len()), "{name} is no interface's name");
    let path = "/dev/net/tun";
    let flags = libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let file = file.context(path)?;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let header = libc::c_int::try_from(header)?;
    // SAFETY: the kernel reads and writes a `struct ifreq`, which is what `Request` has the layout and size of.
    let mut result = unsafe { ioctl_with_mut_ref(&file, SET_INTERFACE, &mut request) };
    if result == 0 {
        // SAFETY: it takes flags, no pointer.
        result = unsafe { ioctl_with_val(&file, SET_OFFLOAD, 0) };
    }
    if result == 0 {
        // SAFETY: the kernel reads an int.
        result = unsafe { ioctl_with_ref(&file, SET_HEADER_BYTES, &header) };
    }
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("interface {name}"));
    }
    Ok(file)
}
