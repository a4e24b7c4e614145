//! Who has mapped a memory file, and accesses to it that found no page.

use super::{events::NewFile, shim::*};
use crate::abi::Errno;
use core::{ffi::c_void, marker::PhantomData, ptr::NonNull};

/// Who has mapped a memory file.
#[derive(Debug)]
pub struct Mappings(NonNull<c_void>);

// SAFETY: `struct address_space` is locked by itself.
unsafe impl Send for Mappings {}
// SAFETY: as above.
unsafe impl Sync for Mappings {}

impl Mappings {
    /// Of a file that is to be made.
    pub fn new() -> Result<Self, Errno> {
        // SAFETY: an ioctl's context, which may sleep.
        NonNull::new(unsafe { shim_mapping_new() }).map(Self).ok_or(Errno::ENOMEM)
    }

    /// They are this file's, whose object keeps this.
    pub fn are_of(&self, file: &NewFile) {
        // SAFETY: nobody knows the file yet; and its object, which has this, goes with it.
        unsafe { shim_file_mapping(file.raw(), self.0.as_ptr()) };
    }

    /// When it returns no process has pages of this range mapped. No lock of an address space is held.
    pub fn unmap(&self, first: u64, count: u64) {
        // SAFETY: where it may sleep.
        unsafe { shim_mapping_unmap(self.0.as_ptr(), first, count) };
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        // SAFETY: the file has gone, or was never made.
        unsafe { shim_mapping_free(self.0.as_ptr()) };
    }
}

/// An access to a memory file, by who has mapped it.
#[derive(Debug)]
pub struct Fault<'f>(NonNull<c_void>, PhantomData<&'f ()>);

impl Fault<'_> {
    /// What Linux's fault handler was called with.
    ///
    /// # Safety
    ///
    /// It is `struct vm_fault`, of a memory file, for as long as this is used.
    pub unsafe fn new(raw: *mut c_void) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self(raw, PhantomData))
    }

    /// It finds this page. What the handler returns.
    ///
    /// # Safety
    ///
    /// Whoever takes the page away unmaps it first, and isn't about to.
    pub unsafe fn finish(self, pa: u64) -> u32 {
        // SAFETY: the fault is being handled; and as the caller promises.
        unsafe { shim_fault_finish(self.0.as_ptr(), pa) }
    }
}

/// A file of ours that the caller has a descriptor of, for as long as this lives.
#[derive(Debug)]
pub struct OpenFile(NonNull<c_void>);

impl OpenFile {
    /// The one behind this descriptor, and its object, if it is a memory file.
    pub fn memory(fd: i32) -> Result<(Self, *mut c_void), Errno> {
        let mut object = core::ptr::null_mut();
        // SAFETY: it fills the object in where it returns a file.
        let file = unsafe { shim_file_get(fd, super::Kind::Memory as u32, &raw mut object) };
        NonNull::new(file).map(|file| (Self(file), object)).ok_or(Errno::EINVAL)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // SAFETY: it was taken once.
        unsafe { shim_file_put(self.0.as_ptr()) };
    }
}
