//! The kernel's own ciphers, for user space (AF_ALG; Linux Documentation/crypto/userspace-if.rst).

use super::{Errno, File, call};

const AF_ALG: u16 = 38;
const SOCK_SEQPACKET: usize = 5;
const SOL_ALG: usize = 279;
/// ALG_SET_KEY, ALG_SET_IV, ALG_SET_OP; ALG_OP_ENCRYPT.
const SET_KEY: usize = 1;
const SET_IV: u32 = 2;
const SET_OP: u32 = 3;
const ENCRYPT: u32 = 1;

/// `struct sockaddr_alg`.
#[repr(C)]
struct Address {
    family: u16,
    kind: [u8; 14],
    features: u32,
    mask: u32,
    name: [u8; 64],
}

/// A control message's header (`struct cmsghdr`), what is to be done, and the same with a vector of 16 bytes.
#[repr(C)]
struct Control {
    op_bytes: usize,
    op_level: u32,
    op_type: u32,
    op: u32,
    _pad: u32,
    iv_bytes: usize,
    iv_level: u32,
    iv_type: u32,
    iv_length: u32,
    iv: [u8; 16],
    _end: u32,
}

/// `struct msghdr`.
#[repr(C)]
struct Message {
    name: usize,
    name_bytes: usize,
    parts: *const Part,
    count: usize,
    control: *const Control,
    control_bytes: usize,
    flags: usize,
}

/// `struct iovec`.
#[repr(C)]
struct Part {
    at: *const u8,
    bytes: usize,
}

/// AES in counter mode with a key.
pub struct Ctr(File);

impl Ctr {
    /// With this key.
    pub fn new(key: &[u8; 16]) -> Result<Self, Errno> {
        let socket = plain!(198, AF_ALG, SOCK_SEQPACKET, 0).map(File)?;
        let mut address =
            Address { family: AF_ALG, kind: [0; 14], features: 0, mask: 0, name: [0; 64] };
        address.kind[..8].copy_from_slice(b"skcipher");
        address.name[..8].copy_from_slice(b"ctr(aes)");
        plain!(200, socket.0, &raw const address, size_of::<Address>())?;
        plain!(208, socket.0, SOL_ALG, SET_KEY, key.as_ptr(), key.len())?;
        plain!(202, socket.0, 0, 0).map(|fd| Self(File(fd)))
    }

    /// Encrypts `data`, from this counter on, into `out`, which is as long.
    pub fn encrypt(&self, counter: [u8; 16], data: &[u8], out: &mut [u8]) -> Result<(), Errno> {
        let control = Control {
            op_bytes: 20,
            op_level: SOL_ALG as u32,
            op_type: SET_OP,
            op: ENCRYPT,
            _pad: 0,
            iv_bytes: 36,
            iv_level: SOL_ALG as u32,
            iv_type: SET_IV,
            iv_length: 16,
            iv: counter,
            _end: 0,
        };
        let part = Part { at: data.as_ptr(), bytes: data.len() };
        let message = Message {
            name: 0,
            name_bytes: 0,
            parts: &raw const part,
            count: 1,
            control: &raw const control,
            control_bytes: size_of::<Control>(),
            flags: 0,
        };
        let sent = plain!(211, self.0.0, &raw const message, 0)?;
        // A signal may come between the two, and be handled.
        let got = self.0.read(out).len();
        if sent == data.len() && got == out.len() { Ok(()) } else { Err(Errno(0)) }
    }
}
