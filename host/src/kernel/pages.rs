//! The page allocator: a bitmap over the first gigabytes of RAM, first fit from where the last search
//! ended. Small and slow, and its count of free pages is exact: that is what leak checks need.

use super::{machine::Machine, mmu, sync::Lock};
use umbra_shared::PAGE_SIZE;

const SPAN_BYTES: u64 = 4 << 30;
const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: usize = (SPAN_BYTES / PAGE) as usize;
const WORDS: usize = PAGES / 64;

struct Bitmap {
    /// Physical address of the first page.
    base: u64,
    /// Bit set: free.
    free: [u64; WORDS],
    count: usize,
    next: usize,
}

static BITMAP: Lock<Bitmap> = Lock::new(Bitmap { base: 0, free: [0; WORDS], count: 0, next: 0 });

impl Bitmap {
    fn index(&self, pa: u64) -> Option<usize> {
        let index = (pa.checked_sub(self.base)? / PAGE) as usize;
        (index < PAGES).then_some(index)
    }

    fn is_free(&self, index: usize) -> bool {
        self.free[index / 64] >> (index % 64) & 1 != 0
    }

    fn set(&mut self, index: usize, free: bool) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if free != (self.free[word] & bit != 0) {
            self.free[word] ^= bit;
            if free {
                self.count += 1;
            } else {
                self.count -= 1;
            }
        }
    }

    fn find(&self, from: usize, to: usize, count: usize, align: usize) -> Option<usize> {
        let mut start = from;
        loop {
            start = self.align(start, align);
            if start + count > to {
                return None;
            }
            match (start..start + count).rev().find(|&i| !self.is_free(i)) {
                None => return Some(start),
                Some(used) => start = used + 1,
            }
            // Whole words in use are skipped at once.
            while start.is_multiple_of(64) && start < to && self.free[start / 64] == 0 {
                start += 64;
            }
        }
    }

    /// The first index from `start` on whose physical address is aligned to `align` pages.
    fn align(&self, start: usize, align: usize) -> usize {
        let first = (self.base / PAGE) as usize;
        (first + start).next_multiple_of(align) - first
    }
}

pub(super) fn init(machine: &Machine) {
    let mut bitmap = BITMAP.lock();
    bitmap.base = machine.ram.iter().map(|r| r.start).min().unwrap_or(0) & !(PAGE - 1);
    let base = bitmap.base;
    let mut mark = |start: u64, end: u64, free: bool| {
        let end = end.min(base + SPAN_BYTES);
        let mut pa = start.max(base);
        while pa < end {
            let index = ((pa - base) / PAGE) as usize;
            bitmap.set(index, free);
            pa += PAGE;
        }
    };
    for ram in &machine.ram {
        mark(ram.start.next_multiple_of(PAGE), ram.end & !(PAGE - 1), true);
    }
    for taken in machine.reserved.iter().chain(&[mmu::image()]) {
        mark(taken.start & !(PAGE - 1), taken.end.next_multiple_of(PAGE), false);
    }
}

/// Takes `count` contiguous pages whose first is aligned to `align` pages. Content is arbitrary.
pub fn allocate(count: usize, align: usize) -> Option<u64> {
    let mut bitmap = BITMAP.lock();
    let next = bitmap.next;
    let start = bitmap
        .find(next, PAGES, count, align)
        .or_else(|| bitmap.find(0, PAGES.min(next + count), count, align))?;
    for index in start..start + count {
        bitmap.set(index, false);
    }
    bitmap.next = start + count;
    Some(bitmap.base + start as u64 * PAGE)
}

/// Gives pages back.
pub fn free(pa: u64, count: usize) {
    let mut bitmap = BITMAP.lock();
    for n in 0..count as u64 {
        let index = bitmap.index(pa + n * PAGE);
        match index {
            Some(index) if !bitmap.is_free(index) => bitmap.set(index, true),
            _ => panic!("page {:#x} is not allocated", pa + n * PAGE),
        }
    }
}

/// Pages free.
pub fn free_count() -> usize {
    BITMAP.lock().count
}
