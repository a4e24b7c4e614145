//! Free pages, as lists threaded through the pages themselves.
//!
//! Every page on a list is mapped in hyp's linear map and belongs to whoever owns the list: hyp's
//! pool, or the pages that the host donated for one VM's stage 2.

use crate::arch::Lock;
use crate::arch::layout::LINEAR_BASE;
use aarch64_paging::descriptor::{PagingAttributes, PhysicalAddress};
use aarch64_paging::paging::{PageTable, Translation};
use core::ptr::NonNull;
use umbra_shared::PAGE_SIZE;

/// The linear-map address of a physical address.
pub const fn linear(pa: u64) -> usize {
    LINEAR_BASE + pa as usize
}

/// A list of free pages.
#[derive(Debug, Default)]
pub struct FrameList {
    /// Physical address of the first free page; zero: none.
    head: u64,
    count: usize,
}

impl FrameList {
    /// An empty list.
    pub const fn new() -> Self {
        Self { head: 0, count: 0 }
    }

    /// Pages on it.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Adds a page.
    ///
    /// # Safety
    ///
    /// The page must be mapped in the linear map and belong to the list's owner, used by nothing.
    pub unsafe fn push(&mut self, pa: u64) {
        // SAFETY: mapped and unused, as the caller promises; a page is aligned for a u64.
        unsafe { (linear(pa) as *mut u64).write(self.head) };
        self.head = pa;
        self.count += 1;
    }

    /// Takes a page, zeroed.
    pub fn pop_zeroed(&mut self) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let pa = self.head;
        let page = linear(pa) as *mut u64;
        // SAFETY: a page on the list is mapped and used by nothing but the list (see `push`).
        unsafe {
            self.head = page.read();
            page.cast::<u8>().write_bytes(0, PAGE_SIZE);
        }
        self.count -= 1;
        Some(pa)
    }

    /// Forgets all pages: their owner changes.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

/// Page tables out of a [`FrameList`].
///
/// aarch64-paging can't be told that there is no page left, so whoever maps makes sure beforehand
/// that the worst case is on the list.
#[derive(Clone, Copy, Debug)]
pub struct Tables(pub &'static Lock<FrameList>);

/// Pages that mapping one page can take at the most: one table for each level below the root.
pub const WORST_CASE_TABLES: usize = 3;

impl<A: PagingAttributes> Translation<A> for Tables {
    fn allocate_table(&mut self) -> (NonNull<PageTable<A>>, PhysicalAddress) {
        let pa = self.0.lock().pop_zeroed().expect("page tables were reserved");
        (self.physical_to_virtual(PhysicalAddress(pa as usize)), PhysicalAddress(pa as usize))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<A>>) {
        let pa = (table.addr().get() - LINEAR_BASE) as u64;
        // SAFETY: the table came from `allocate_table`, and the caller no longer uses it.
        unsafe { self.0.lock().push(pa) };
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<A>> {
        NonNull::new(linear(pa.0 as u64) as *mut PageTable<A>).expect("the linear map is not at 0")
    }
}
