//! Files, sleepers, eventfds, and work in the background.

use super::{check, shim::*, sync::Shared};
use crate::abi::Errno;
use core::{ffi::c_void, marker::PhantomData, ptr::NonNull};

/// What a file of ours stands for; `enum umbra_kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// /dev/kvm
    System = 0,
    /// A VM
    Vm = 1,
    /// A vCPU
    Vcpu = 2,
    /// A GIC
    Gic = 3,
    /// What a VM or a vCPU counts
    Stats = 4,
    /// Memory of a VM's
    Memory = 5,
}

/// What a file can stand for.
///
/// # Safety
///
/// The file's operations (entry.rs) take an object of this kind for one of this type.
pub unsafe trait Object {
    /// Its kind.
    const KIND: Kind;
}

/// A file for an object, which goes with it, and a descriptor that nobody knows yet.
#[derive(Debug)]
pub struct NewFile {
    fd: i32,
    file: NonNull<c_void>,
}

impl NewFile {
    /// One.
    pub fn new<T: Object>(object: Shared<T>) -> Result<Self, Errno> {
        let (raw, mut made) = (object.into_raw(), core::ptr::null_mut());
        // SAFETY: the file's operations get it back as the object that it is, by its kind.
        let fd = check(unsafe { shim_file(T::KIND as u32, raw, &raw mut made) });
        match (fd, NonNull::new(made)) {
            (Ok(fd), Some(file)) => Ok(Self { fd, file }),
            (fd, _) => {
                // SAFETY: no file has it.
                drop(unsafe { Shared::<T>::from_raw(raw) });
                Err(fd.err().unwrap_or(Errno::ENOMEM))
            }
        }
    }

    pub(super) fn raw(&self) -> *mut c_void {
        self.file.as_ptr()
    }

    /// The caller has it from here on.
    pub fn install(self) -> i32 {
        // SAFETY: made together, and given away once.
        unsafe { shim_file_install(self.fd, self.file.as_ptr()) };
        let fd = self.fd;
        core::mem::forget(self);
        fd
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // SAFETY: it was not installed.
        unsafe { shim_file_cancel(self.fd, self.file.as_ptr()) };
    }
}

/// Stops the guest that runs on this CPU, if that is another one. In any context.
pub fn stop(cpu: i32) {
    // SAFETY: the number of a CPU, as `NoPreemption::cpu` gave it.
    unsafe { shim_stop(cpu) };
}

/// Where a vCPU's thread sleeps.
#[derive(Debug)]
pub struct Sleeper(NonNull<c_void>);

// SAFETY: a wait queue, which is for all CPUs.
unsafe impl Send for Sleeper {}
// SAFETY: as above.
unsafe impl Sync for Sleeper {}

impl Sleeper {
    /// A new one.
    pub fn new() -> Result<Self, Errno> {
        // SAFETY: an ioctl's context, which may sleep.
        NonNull::new(unsafe { shim_vcpu_new() }).map(Self).ok_or(Errno::ENOMEM)
    }

    /// Wakes who sleeps.
    pub fn wake(&self) {
        // SAFETY: in any context.
        unsafe { shim_vcpu_wake(self.0.as_ptr()) };
    }

    /// Sleeps until `done`, or the counter has got there. `done` is asked with the task set to sleep: it must not.
    pub fn sleep(&self, deadline: Option<u64>, done: impl Fn() -> bool) -> Result<(), Errno> {
        extern "C" fn call<F: Fn() -> bool>(done: *mut c_void) -> bool {
            // SAFETY: `sleep` below gives it, and waits until it is asked no more.
            unsafe { (*done.cast::<F>())() }
        }
        fn caller<F: Fn() -> bool>(_: &F) -> extern "C" fn(*mut c_void) -> bool {
            call::<F>
        }
        let (call, argument) = (caller(&done), (&raw const done).cast_mut().cast());
        let deadline = deadline.unwrap_or(u64::MAX);
        // SAFETY: an ioctl's context, which may sleep; the closure outlives the call.
        check(unsafe { shim_vcpu_sleep(self.0.as_ptr(), call, argument, deadline) }).map(drop)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: nobody sleeps there, as who sleeps has the vCPU.
        unsafe { shim_vcpu_free(self.0.as_ptr()) };
    }
}

/// While it lives the task has these signals blocked, and no others (KVM_SET_SIGNAL_MASK).
#[derive(Debug)]
pub struct Signals(PhantomData<*mut ()>);

impl Signals {
    /// Blocks them, but for those that nobody can block.
    pub fn block(set: u64) -> Self {
        // SAFETY: an ioctl's context, and undone in `drop`, in the same task.
        unsafe { shim_signals_block(set) };
        Self(PhantomData)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: `block` has kept what was there, and two don't nest: a task is in one KVM_RUN.
        unsafe { shim_signals_restore() };
    }
}

/// Work that is done in the background, once.
#[derive(Debug)]
pub struct Work(NonNull<c_void>);

// SAFETY: it is a `struct work_struct`.
unsafe impl Send for Work {}

impl Work {
    /// Some for an object, as `umbra_work` gets it.
    ///
    /// # Safety
    ///
    /// `object` is what `umbra_work` takes, which owns it once this is queued.
    pub unsafe fn new(object: *mut c_void) -> Result<Self, Errno> {
        // SAFETY: an ioctl's context, which may sleep.
        NonNull::new(unsafe { shim_work_new(object) }).map(Self).ok_or(Errno::ENOMEM)
    }

    /// Has it done.
    pub fn queue(self) {
        let raw = self.0.as_ptr();
        core::mem::forget(self);
        // SAFETY: a new one, which goes when it is done.
        unsafe { shim_work_queue(raw) };
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: it was not queued.
        unsafe { shim_work_free(self.0.as_ptr()) };
    }
}

/// An eventfd.
#[derive(Debug)]
pub struct EventFd(NonNull<c_void>);

// SAFETY: `struct eventfd_ctx` is counted and locked by itself.
unsafe impl Send for EventFd {}
// SAFETY: as above.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// That of a descriptor of the caller's.
    pub fn new(fd: i32) -> Result<Self, Errno> {
        // SAFETY: any number.
        NonNull::new(unsafe { shim_eventfd(fd) }).map(Self).ok_or(Errno::EBADF)
    }

    /// Adds one to it, in any context.
    pub fn signal(&self) {
        // SAFETY: this is an owner.
        unsafe { shim_eventfd_signal(self.0.as_ptr()) };
    }

    /// Whether it is the same.
    pub fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: this was an owner.
        unsafe { shim_eventfd_put(self.0.as_ptr()) };
    }
}

/// An eventfd that is an interrupt: whenever it is signalled `umbra_irqfd` is told.
#[derive(Debug)]
pub struct IrqFd(NonNull<c_void>);

// SAFETY: it is entered in a queue that has a lock of its own.
unsafe impl Send for IrqFd {}

impl IrqFd {
    /// One of a descriptor of the caller's. `vm` must outlive it.
    ///
    /// # Safety
    ///
    /// `vm` is something that `umbra_irqfd` may use until this is dropped.
    pub unsafe fn new(fd: i32, vm: *mut c_void, gsi: u32, resample: bool) -> Result<Self, Errno> {
        let mut made = core::ptr::null_mut();
        // SAFETY: any number; and as the caller promises.
        check(unsafe { shim_irqfd_new(fd, vm, gsi, resample, &raw mut made) })?;
        NonNull::new(made).map(Self).ok_or(Errno::ENOMEM)
    }

    /// Whether it is this eventfd.
    pub fn is(&self, event: &EventFd) -> bool {
        // SAFETY: both live.
        unsafe { shim_irqfd_is(self.0.as_ptr(), event.0.as_ptr()) }
    }
}

impl Drop for IrqFd {
    fn drop(&mut self) {
        // SAFETY: where it may sleep: an ioctl's context, or a file's release.
        unsafe { shim_irqfd_free(self.0.as_ptr()) };
    }
}
