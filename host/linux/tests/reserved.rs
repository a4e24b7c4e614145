//! What allocates where it can't say that there is no memory ends the kernel (`linux/heap.rs`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use umbra_module::sorted::{Addressed, Sorted};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Page(u64);

impl Addressed for Page {
    fn address(&self) -> u64 {
        self.0
    }
}

/// Pages as the kernel gives them: nobody is told how many are to come.
fn pages(first: u64, count: u64) -> impl Iterator<Item = Page> {
    let mut next = first..first + count;
    let pages = std::iter::from_fn(move || next.next().map(Page));
    assert_eq!(pages.size_hint(), (0, None));
    pages
}

#[test]
fn pages_are_entered_where_room_was_made() {
    let mut all = Sorted::default();
    // Behind all, before all, in between.
    for (first, count) in [(1000, 17), (10, 200), (2000, 1), (500, 64), (300, 3), (700, 129)] {
        all.reserve(count as usize).expect("there is memory");
        let pages = pages(first, count);
        let before = COUNT.get();
        all.insert(pages);
        assert_eq!(COUNT.get(), before, "{count} at {first}");
    }
    for (first, count) in [(10, 200), (300, 3), (500, 64), (700, 129), (1000, 17), (2000, 1)] {
        assert!((first..first + count).all(|n| all.get(n).is_some()));
        assert!(all.get(first - 1).is_none() && all.get(first + count).is_none());
    }
}
