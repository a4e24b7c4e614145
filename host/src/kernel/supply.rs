//! Pages for guests: the kernel's page allocator as the library sees it, and images of guests in pages
//! of their own.

use super::{layout, pages};
use crate::vm::PageSupplier;
use core::ops::Range;
use umbra_shared::{PAGE_SIZE, flags::FlagShadowPage};

/// The kernel's page allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pages;

impl PageSupplier for Pages {
    fn allocate(&mut self, count: u64) -> Option<u64> {
        pages::allocate(count as usize, 1)
    }

    fn free(&mut self, first: u64, count: u64) {
        pages::free(first, count as usize);
    }

    fn flag_page(&mut self, pa: u64) -> &'static FlagShadowPage {
        let page = layout::linear::<FlagShadowPage>(pa);
        // SAFETY: an allocated page, page-aligned, in the linear map, that nobody else uses until it
        // is freed; all-zero bytes are a flag page.
        unsafe {
            page.write_bytes(0, 1);
            &*page
        }
    }
}

/// Where a guest's image says how many bytes of memory it needs.
const BYTES: Range<usize> = 8..16;
/// No guest of ours needs more memory.
const MOST_BYTES: u64 = 64 << 20;

/// Copies a guest's image into fresh pages, the first at `(first, count)`. Its second 8 bytes say how
/// many bytes of memory it needs; what the image doesn't fill is zero. `None`: this is no image, or
/// there are not enough pages.
pub fn image(guest: &[u8]) -> Option<(u64, u64)> {
    let bytes = guest.get(BYTES).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    if bytes < guest.len() as u64 || bytes > MOST_BYTES {
        return None;
    }
    let count = bytes.div_ceil(PAGE_SIZE as u64);
    let first = Pages.allocate(count)?;
    let start = layout::linear::<u8>(first);
    // SAFETY: the pages are ours, and `count` of them hold more than the image.
    unsafe {
        start.write_bytes(0, count as usize * PAGE_SIZE);
        start.copy_from_nonoverlapping(guest.as_ptr(), guest.len());
    }
    Some((first, count))
}
