//! Linux's heap, for the `alloc` crate.

use super::shim::{shim_alloc, shim_free};
use crate::abi::Errno;
use alloc::{boxed::Box, vec::Vec};
use core::{
    alloc::{GlobalAlloc, Layout},
    ptr,
};

/// Linux's heap. Nothing here allocates where it can't fail: who calls `try_reserve` first gets ENOMEM.
struct Heap;

#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: Heap = Heap;

/// What kvmalloc aligns everything to.
const HEAP_ALIGN: usize = 8;

// SAFETY: kvzalloc gives memory of its own, aligned to HEAP_ALIGN, or none; kvfree takes it.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > HEAP_ALIGN {
            return ptr::null_mut();
        }
        // SAFETY: any size; the caller is where it may sleep, as everything here that allocates is an ioctl's or
        // the background's.
        unsafe { shim_alloc(layout.size()).cast() }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        // SAFETY: it came from `alloc`, as the caller promises.
        unsafe { shim_free(memory.cast()) };
    }
}

/// A vector with room for so many.
pub fn with_room<T>(count: usize) -> Result<Vec<T>, Errno> {
    let mut vector = Vec::new();
    vector.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    Ok(vector)
}

/// Adds an element, if there is memory for it.
pub fn try_push<T>(vector: &mut Vec<T>, element: T) -> Result<(), Errno> {
    vector.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    vector.push(element);
    Ok(())
}

/// Puts a value into memory of its own.
pub fn place<T>(value: T) -> Result<*mut T, Errno> {
    let mut memory = with_room(1)?;
    memory.push(value);
    Ok(Box::into_raw(memory.into_boxed_slice()).cast())
}

/// Takes it out again; null: there is none.
///
/// # Safety
///
/// [`place`] gave it, and nobody refers to it any more.
pub unsafe fn take<T>(place: *mut T) -> Option<T> {
    if place.is_null() {
        return None;
    }
    // SAFETY: as `place` made it, and the caller's alone.
    let memory = unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(place, 1)) };
    memory.into_vec().pop()
}

/// Drops it where it is, and then frees its memory; null: there is none. What others know it by is good until it is dropped.
///
/// # Safety
///
/// As for [`take`]; until it is dropped whoever it knows may refer to it.
pub unsafe fn discard<T>(place: *mut T) {
    if !place.is_null() {
        // SAFETY: as `place` made it.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(place, 1)) });
    }
}
