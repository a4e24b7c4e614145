//! Pages: the kernel's own, kvm_run's, and user space's.

use super::{check, shim::*};
use crate::abi::Errno;
use core::{
    ffi::c_void,
    num::NonZeroU64,
    ops::Range,
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

/// Zeroed pages, one behind the other, one by one. Those that nobody takes are freed.
#[derive(Debug)]
pub struct Pages {
    next: u64,
    left: u64,
}

impl Pages {
    /// Allocates so many, if there are.
    pub fn alloc(count: u64) -> Option<Self> {
        // SAFETY: an ioctl's context, which may sleep.
        let next = Some(unsafe { shim_pages_alloc(count) }).filter(|&pa| pa != 0)?;
        OUT.fetch_add(count, Ordering::Relaxed);
        Some(Self { next, left: count })
    }

    /// A VM gets them: the physical address of the first. From here on they are [`take_back`]'s to free, and nobody else's
    /// to read.
    pub fn give(self) -> u64 {
        let Self { next: first, left: count } = self;
        core::mem::forget(self);
        // SAFETY: they are this one's.
        unsafe { shim_pages_give(first, count) };
        first
    }
}

impl Iterator for Pages {
    type Item = Page;

    fn next(&mut self) -> Option<Page> {
        self.left = self.left.checked_sub(1)?;
        let page = NonZeroU64::new(self.next).map(Page);
        self.next += PAGE_SIZE as u64;
        page
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

/// A page of the kernel's own. It is freed with this.
#[derive(Debug)]
pub struct Page(NonZeroU64);

impl Page {
    /// Its physical address.
    pub const fn pa(&self) -> u64 {
        self.0.get()
    }

    /// The same as [`Pages::give`] for some that lie one behind the other, of which this is the first.
    pub fn give(first: Self, others: impl Iterator<Item = Self>) {
        let count = 1 + others.map(core::mem::forget).count();
        // SAFETY: they were these ones'.
        unsafe { shim_pages_give(first.pa(), count as u64) };
        core::mem::forget(first);
    }
}

/// A page that a VM was given, as a flag-shadow page.
///
/// # Safety
///
/// It was [given](Pages::give), and isn't [taken back](take_back) while somebody uses what this returns.
pub unsafe fn flag_page(pa: u64) -> &'static FlagShadowPage {
    // SAFETY: ours, as the caller promises. All of it is atomics, valid for any content.
    unsafe { &*shim_page_address(pa).cast() }
}

impl Drop for Page {
    fn drop(&mut self) {
        OUT.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: `Pages` has taken it from those that were allocated; it is mapped nowhere, as its owner has it.
        unsafe { shim_page_free(self.pa()) };
    }
}

/// The kvm_run page of a vCPU, which user space can write at any time.
#[derive(Debug)]
pub struct RunPage(Page);

impl RunPage {
    /// A new one.
    pub fn new() -> Result<Self, Errno> {
        Pages::alloc(1).and_then(|mut pages| pages.next()).map(Self).ok_or(Errno::ENOMEM)
    }

    /// Its physical address.
    pub const fn pa(&self) -> u64 {
        self.0.pa()
    }

    fn place<T>(&self, offset: usize) -> *mut T {
        assert!(offset + size_of::<T>() <= PAGE_SIZE && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: the page is ours.
        unsafe { shim_page_address(self.0.pa()).byte_add(offset).cast() }
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
    pub fn pin<'p>(&self, address: u64, pages: &'p mut [u64]) -> Result<Pinned<'p>, Errno> {
        if !self.is_mine() {
            return Err(Errno::EIO);
        }
        // SAFETY: it writes as many words as there are; user addresses are checked there.
        let pinned = unsafe { shim_pin(address, pages.len() as u64, pages.as_mut_ptr()) };
        Pinned::new(pinned, pages)?.ok_or(Errno::EFAULT)
    }

    /// The same for the first ones of a range that there are, and makes none: where the first is the range begins then. `None`: there
    /// are none. EINTR: none up to where it begins then.
    pub fn pin_present<'p>(
        &self,
        range: &mut Range<u64>,
        pages: &'p mut [u64],
    ) -> Result<Option<Pinned<'p>>, Errno> {
        if !self.is_mine() {
            return Err(Errno::EIO);
        }
        let count = pages.len() as u64;
        let Range { start, end } = range;
        // SAFETY: as above.
        let pinned = unsafe { shim_pin_present(start, *end, count, pages.as_mut_ptr()) };
        Pinned::new(pinned, pages)
    }
}

impl Drop for Mm {
    fn drop(&mut self) {
        // SAFETY: this was an owner.
        unsafe { shim_mm_put(self.0.as_ptr()) };
    }
}

/// Pages of user space's that are pinned, by their physical addresses. They are unpinned with this.
#[derive(Debug)]
pub struct Pinned<'p>(&'p [u64]);

impl<'p> Pinned<'p> {
    /// What Linux has pinned of so many, if any.
    fn new(pinned: i64, pages: &'p [u64]) -> Result<Option<Self>, Errno> {
        let pinned = Errno::check(pinned)? as usize;
        OUT.fetch_add(pinned as u64, Ordering::Relaxed);
        Ok((pinned != 0).then(|| Self(&pages[..pinned])))
    }
}

impl Pinned<'_> {
    /// Where they are.
    pub const fn addresses(&self) -> &[u64] {
        self.0
    }

    /// Whether all are of memory alone, and none of a file system's or a driver's.
    pub fn are_memory(&self) -> bool {
        // SAFETY: pages that have a `struct page`, as all that can be pinned, and stay what they are meanwhile.
        self.0.iter().all(|&pa| unsafe { shim_page_is_memory(pa) } != 0)
    }

    /// The first ones, and the others.
    pub fn split_at(self, count: usize) -> (Self, Self) {
        let (first, others) = self.0.split_at(count);
        core::mem::forget(self);
        (Self(first), Self(others))
    }

    /// From here on [`unpin`] is somebody else's to call.
    pub fn lend(self) {
        core::mem::forget(self);
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let is_next = |a: &u64, b: &u64| *b == a.wrapping_add(PAGE_SIZE as u64);
        for run in self.0.chunk_by(is_next) {
            // SAFETY: `Mm::pin` has pinned them, and nobody was lent them.
            unsafe { unpin(run[0], run.len() as u64) };
        }
    }
}

/// Unpins pages that lie one behind the other. Where it may sleep.
///
/// # Safety
///
/// They were pinned and [lent](Pinned::lend), and nobody uses them any more.
pub unsafe fn unpin(first: u64, count: u64) {
    OUT.fetch_sub(count, Ordering::Relaxed);
    // SAFETY: as the caller promises.
    unsafe { shim_unpin(first, count) };
}

/// Pages that lie one behind the other and come back from a VM: those that were the kernel's own are freed, and user space's
/// unpinned. Returns how many those were. Where it may sleep.
///
/// # Safety
///
/// They were [given](Pages::give) or [lent](Pinned::lend), and nobody uses them any more.
pub unsafe fn take_back(first: u64, count: u64) -> u64 {
    let end = first + count * PAGE_SIZE as u64;
    // SAFETY: a page that has a `struct page`, as all that were given or lent.
    let is_ours = |pa: u64| unsafe { shim_page_is_given(pa) } != 0;
    let (mut at, mut pinned) = (first, 0);
    while at < end {
        if is_ours(at) {
            drop(NonZeroU64::new(at).map(Page));
            at += PAGE_SIZE as u64;
            continue;
        }
        let run = (at..end).step_by(PAGE_SIZE).take_while(|&pa| !is_ours(pa)).count() as u64;
        // SAFETY: as the caller promises.
        unsafe { unpin(at, run) };
        (at, pinned) = (at + run * PAGE_SIZE as u64, pinned + run);
    }
    pinned
}
