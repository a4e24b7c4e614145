//! Mutexes, owners, and what is read without a lock.

use super::{
    check,
    heap::{discard, place, take},
    shim::*,
};
use crate::abi::Errno;
use alloc::vec::Vec;
use core::{
    cell::UnsafeCell,
    ffi::c_void,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

/// A mutex of Linux's, and what it guards.
#[derive(Debug)]
pub struct Mutex<T> {
    raw: NonNull<c_void>,
    value: UnsafeCell<T>,
}

// SAFETY: who has the lock has the value.
unsafe impl<T: Send> Sync for Mutex<T> {}
// SAFETY: the raw mutex is bound to no CPU or task while nobody has it.
unsafe impl<T: Send> Send for Mutex<T> {}

impl<T> Mutex<T> {
    /// A new one.
    pub fn new(value: T) -> Result<Self, Errno> {
        // SAFETY: an ioctl's context, which may sleep.
        let raw = NonNull::new(unsafe { shim_mutex_new() }).ok_or(Errno::ENOMEM)?;
        Ok(Self { raw, value: UnsafeCell::new(value) })
    }

    /// Waits for it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // SAFETY: the mutex lives as long as this does. Never called in atomic context: guards and preemption-off
        // sections don't nest that way round.
        unsafe { shim_mutex_lock(self.raw.as_ptr()) };
        MutexGuard { mutex: self, this_task: PhantomData }
    }

    /// Waits for it until the task is killed.
    pub fn lock_killable(&self) -> Result<MutexGuard<'_, T>, Errno> {
        // SAFETY: as in `lock`.
        check(unsafe { shim_mutex_lock_killable(self.raw.as_ptr()) })?;
        Ok(MutexGuard { mutex: self, this_task: PhantomData })
    }

    /// Takes it, if nobody has it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        // SAFETY: as in `lock`.
        let taken = unsafe { shim_mutex_trylock(self.raw.as_ptr()) } != 0;
        taken.then_some(MutexGuard { mutex: self, this_task: PhantomData })
    }

    /// What it guards, of one who has it alone.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T> Drop for Mutex<T> {
    fn drop(&mut self) {
        // SAFETY: nobody has it, and nobody can.
        unsafe { shim_mutex_free(self.raw.as_ptr()) };
    }
}

/// A mutex that is held.
#[derive(Debug)]
pub struct MutexGuard<'m, T> {
    mutex: &'m Mutex<T>,
    this_task: PhantomData<*mut ()>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this has the lock.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this has the lock, and is borrowed alone.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this has the lock, in the task that took it.
        unsafe { shim_mutex_unlock(self.mutex.raw.as_ptr()) };
    }
}

struct Counted<T> {
    owners: AtomicUsize,
    value: T,
}

/// A value with several owners.
#[derive(Debug)]
pub struct Shared<T>(NonNull<Counted<T>>);

// SAFETY: owners share the value and the last one drops it, wherever that is.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The first owner.
    pub fn new(value: T) -> Result<Self, Errno> {
        let memory = place(Counted { owners: AtomicUsize::new(1), value })?;
        NonNull::new(memory).map(Self).ok_or(Errno::ENOMEM)
    }

    /// As something that C keeps, which is an owner.
    pub fn into_raw(self) -> *mut c_void {
        let raw = self.0.as_ptr().cast();
        core::mem::forget(self);
        raw
    }

    /// What C has kept.
    ///
    /// # Safety
    ///
    /// It came from [`Self::into_raw`] and comes back once.
    pub unsafe fn from_raw(raw: *mut c_void) -> Option<Self> {
        NonNull::new(raw.cast()).map(Self)
    }

    /// The address that C knows the value by.
    pub fn address(&self) -> *mut c_void {
        self.0.as_ptr().cast()
    }

    /// The value behind what C has kept, or behind an address of it.
    ///
    /// # Safety
    ///
    /// It is [`Self::address`] of one that has an owner for as long as this is used.
    pub unsafe fn borrow<'a>(raw: *mut c_void) -> &'a T {
        // SAFETY: as the caller promises.
        unsafe { &(*raw.cast::<Counted<T>>()).value }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // SAFETY: this is an owner.
        unsafe { self.0.as_ref() }.owners.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this is an owner.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: this is an owner.
        if unsafe { self.0.as_ref() }.owners.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: it was the last one, and the memory is `new`'s.
            unsafe { discard(self.0.as_ptr()) };
        }
    }
}

/// A value that is set once, and is there from then on, in any context.
#[derive(Debug)]
pub struct Once<T>(AtomicPtr<T>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(AtomicPtr::default())
    }
}

impl<T: Send + Sync> Once<T> {
    /// It, if it was set.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: `place` gave it, and it goes with this.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// It, if it was set, of one who has this alone.
    pub fn into_inner(mut self) -> Option<T> {
        // SAFETY: `place` gave it, and nobody refers to it.
        unsafe { take(core::mem::take(self.0.get_mut())) }
    }

    /// Sets it. EEXIST: it was set before.
    pub fn set(&self, value: T) -> Result<(), Errno> {
        let place = place(value)?;
        match self.0.compare_exchange(null_mut(), place, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => {
                // SAFETY: nobody has seen it.
                unsafe { discard(place) };
                Err(Errno::EEXIST)
            }
        }
    }
}

impl<T> Drop for Once<T> {
    fn drop(&mut self) {
        // SAFETY: nobody refers to what goes, and it is `place`'s.
        unsafe { discard(*self.0.get_mut()) };
    }
}

/// What is read with preemption disabled and replaced as a whole, as under RCU.
#[derive(Debug)]
pub struct Published<T>(AtomicPtr<Vec<T>>);

impl<T> Default for Published<T> {
    fn default() -> Self {
        Self(AtomicPtr::default())
    }
}

impl<T: Send + Sync> Published<T> {
    /// Its elements as they are now.
    pub fn read<'a>(&'a self, _: &'a NoPreemption) -> &'a [T] {
        // SAFETY: whoever replaces it waits until preemption has been enabled again before that goes.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }.map_or(&[], |vector| vector)
    }

    /// Replaces it; nobody reads what this returns. Two don't do so at once.
    pub fn replace(&self, with: Vec<T>) -> Result<Vec<T>, Errno> {
        let before = self.0.swap(place(with)?, Ordering::AcqRel);
        // SAFETY: an ioctl's context, which may sleep. Behind it nobody refers to what was there, which is `place`'s.
        let before = unsafe {
            shim_synchronize();
            take(before)
        };
        Ok(before.unwrap_or_default())
    }
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        // SAFETY: nobody reads what goes, and it is `place`'s.
        unsafe { discard(*self.0.get_mut()) };
    }
}

/// While it lives the task stays on this CPU and doesn't sleep.
#[derive(Debug)]
pub struct NoPreemption(PhantomData<*mut ()>);

impl NoPreemption {
    /// Disables preemption.
    pub fn begin() -> Self {
        // SAFETY: paired with the enabling in `drop`.
        unsafe { shim_preempt_disable() };
        Self(PhantomData)
    }

    /// That it is so.
    ///
    /// # Safety
    ///
    /// In an interrupt, or wherever else nobody is preempted, as long as this is used.
    pub const unsafe fn in_atomic_context() -> core::mem::ManuallyDrop<Self> {
        core::mem::ManuallyDrop::new(Self(PhantomData))
    }

    /// This CPU's number.
    pub fn cpu(&self) -> i32 {
        // SAFETY: a read, and the task stays here.
        unsafe { shim_cpu() }
    }
}

impl Drop for NoPreemption {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { shim_preempt_enable() };
    }
}
