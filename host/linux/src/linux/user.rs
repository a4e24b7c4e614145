//! User space's memory, as it is copied.

use super::{
    check,
    shim::{shim_copy_from_user, shim_copy_to_user},
};
use crate::abi::Errno;
use zerocopy::{FromBytes, IntoBytes};

/// An address in the caller's user space, which may be anything.
#[derive(Clone, Copy, Debug)]
pub struct User(pub usize);

impl User {
    /// Reads a structure.
    pub fn read<T: FromBytes + IntoBytes>(self) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read_bytes(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Reads bytes.
    pub fn read_bytes(self, to: &mut [u8]) -> Result<(), Errno> {
        // SAFETY: memory of ours of that size; user addresses are checked there.
        check(unsafe { shim_copy_from_user(to.as_mut_ptr().cast(), self.0, to.len()) }).map(drop)
    }

    /// Writes a structure.
    pub fn write<T: IntoBytes + zerocopy::Immutable>(self, value: &T) -> Result<(), Errno> {
        self.write_bytes(value.as_bytes())
    }

    /// Writes bytes.
    pub fn write_bytes(self, from: &[u8]) -> Result<(), Errno> {
        // SAFETY: as above.
        check(unsafe { shim_copy_to_user(self.0, from.as_ptr().cast(), from.len()) }).map(drop)
    }

    /// So many bytes further on.
    #[must_use]
    pub const fn at(self, offset: usize) -> Self {
        Self(self.0.wrapping_add(offset))
    }
}
