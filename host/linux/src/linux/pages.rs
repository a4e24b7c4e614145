//! Pages: the kernel's own, kvm_run's, and user space's.

use super::{check, shim::*};
use crate::abi::Errno;
use core::{
    ffi::c_void,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use umbra_shared::{PAGE_SIZE, flags::FlagShadowPage};

/// Pages that are allocated, and pages of user space's that are pinned.
static OUT: AtomicU64 = AtomicU64::new(0);

/// How many there are now.
pub fn pages_out() -> u64 {
    OUT.load(Ordering::Relaxed)
}

/// Allocates zeroed, contiguous pages.
pub fn pages_alloc(count: u64) -> Option<u64> {
    // SAFETY: an ioctl's context, which may sleep.
    let first = Some(unsafe { shim_pages_alloc(count) }).filter(|&pa| pa != 0)?;
    OUT.fetch_add(count, Ordering::Relaxed);
    Some(first)
}

/// Frees one of them.
pub fn page_free(pa: u64) {
    OUT.fetch_sub(1, Ordering::Relaxed);
    // SAFETY: `pages_alloc` gave it; it is mapped nowhere and nobody's any more, as the books of the host crate have it.
    unsafe { shim_page_free(pa) };
}

/// A page of ours as the flag-shadow page.
pub fn flag_page(pa: u64) -> &'static FlagShadowPage {
    // SAFETY: it stays allocated until hyp has given it back. All of it is atomics, valid for any content.
    unsafe { &*shim_page_address(pa).cast() }
}

/// The kvm_run page of a vCPU, which user space can write at any time.
#[derive(Debug)]
pub struct RunPage(u64);

impl RunPage {
    /// A new one.
    pub fn new() -> Result<Self, Errno> {
        pages_alloc(1).map(Self).ok_or(Errno::ENOMEM)
    }

    /// Its physical address.
    pub const fn pa(&self) -> u64 {
        self.0
    }

    fn place<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= PAGE_SIZE && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: the page is ours.
        unsafe { shim_page_address(self.0).byte_add(offset).cast() }
    }

    /// A byte.
    pub fn byte(&self, offset: usize) -> u8 {
        self.word(offset / 4 * 4).to_le_bytes()[offset % 4]
    }

    /// A word.
    pub fn word(&self, offset: usize) -> u32 {
        // SAFETY: inside the page and aligned; atomic, as user space writes it meanwhile.
        unsafe { AtomicU32::from_ptr(self.place(offset)) }.load(Ordering::Relaxed)
    }

    /// Writes a word.
    pub fn set_word(&self, offset: usize, value: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.place(offset)) }.store(value, Ordering::Relaxed);
    }

    /// A doubleword.
    pub fn doubleword(&self, offset: usize) -> u64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.place(offset)) }.load(Ordering::Relaxed)
    }

    /// Writes a doubleword.
    pub fn set_doubleword(&self, offset: usize, value: u64) {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(self.place(offset)) }.store(value, Ordering::Relaxed);
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        page_free(self.0);
    }
}

/// An address space.
#[derive(Debug)]
pub struct Mm(NonNull<c_void>);

// SAFETY: `struct mm_struct` is counted and locked by itself.
unsafe impl Send for Mm {}
// SAFETY: as above.
unsafe impl Sync for Mm {}

impl Mm {
    /// The caller's.
    pub fn mine() -> Result<Self, Errno> {
        // SAFETY: an ioctl's context, which has one.
        NonNull::new(unsafe { shim_mm_get() }).map(Self).ok_or(Errno::EIO)
    }

    /// Whether it is the caller's.
    pub fn is_mine(&self) -> bool {
        // SAFETY: a comparison.
        unsafe { shim_mm_is_mine(self.0.as_ptr()) != 0 }
    }

    /// Counts pages as locked, within RLIMIT_MEMLOCK.
    pub fn lock_pages(&self, count: u64) -> Result<(), Errno> {
        // SAFETY: this is an owner.
        check(unsafe { shim_mm_account(self.0.as_ptr(), count, 1) }).map(drop)
    }

    /// Counts them as locked no longer.
    pub fn unlock_pages(&self, count: u64) {
        // SAFETY: as above. It can't fail, or the address space is gone.
        let _ = unsafe { shim_mm_account(self.0.as_ptr(), count, 0) };
    }

    /// Pins pages of the caller's, whose this is, from `address` on, and says where they are; perhaps fewer than there
    /// is room for.
    pub fn pin<'p>(&self, address: u64, pages: &'p mut [u64]) -> Result<&'p [u64], Errno> {
        if !self.is_mine() {
            return Err(Errno::EIO);
        }
        // SAFETY: it writes as many words as there are; user addresses are checked there.
        let pinned = unsafe { shim_pin(address, pages.len() as u64, pages.as_mut_ptr()) };
        let pinned = Errno::check(pinned)? as usize;
        OUT.fetch_add(pinned as u64, Ordering::Relaxed);
        if pinned == 0 { Err(Errno::EFAULT) } else { Ok(&pages[..pinned]) }
    }
}

impl Drop for Mm {
    fn drop(&mut self) {
        // SAFETY: this was an owner.
        unsafe { shim_mm_put(self.0.as_ptr()) };
    }
}

/// Unpins pages.
pub fn unpin(pages: impl IntoIterator<Item = u64>) {
    for pa in pages {
        OUT.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: `Mm::pin` has pinned it, and the books of the host crate say that no VM has it.
        unsafe { shim_unpin(pa) };
    }
}
