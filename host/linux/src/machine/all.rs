//! The list of all VMs.

use super::Machine;
use crate::{
    abi::Errno,
    linux::{Mutex, place, take},
};
use alloc::vec::Vec;
use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering::SeqCst},
};

/// All VMs, for an end that can't wait for their files.
static ALL: AtomicPtr<Mutex<Vec<Registered>>> = AtomicPtr::new(ptr::null_mut());

/// No more are made: the kernel ends. Written with the list locked.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// None is made for now: the kernel hibernates. Written with the list locked.
static HIBERNATES: AtomicBool = AtomicBool::new(false);

#[derive(Debug)]
struct Registered(*const Machine);

// SAFETY: it is looked at under the lock of the list, which the machine takes before it goes.
unsafe impl Send for Registered {}

/// Makes the list of VMs.
pub fn begin() -> Result<(), Errno> {
    ALL.store(place(Mutex::new(Vec::new())?)?, SeqCst);
    Ok(())
}

/// Frees it: there is no VM any more.
pub fn forget() {
    // SAFETY: `begin` placed it, and nobody uses it who isn't a VM's.
    drop(unsafe { take(ALL.swap(ptr::null_mut(), SeqCst)) });
}

fn all() -> Option<&'static Mutex<Vec<Registered>>> {
    // SAFETY: it is there from the module's beginning to its end.
    unsafe { ALL.load(SeqCst).as_ref() }
}

/// Takes all VMs down, whatever their files are used for.
pub fn shutdown() {
    let Some(all) = all() else { return };
    let all = all.lock();
    CLOSED.store(true, SeqCst);
    for one in all.iter() {
        // SAFETY: it is in the list, whose lock this has.
        unsafe { &*one.0 }.close();
    }
}

/// The kernel writes an image of itself, or reads one: what begins there knows of no page that is a VM's. EBUSY while there
/// is one; from the beginning to the end none is made.
pub fn hibernate(begins: bool) -> Result<(), Errno> {
    let Some(all) = all() else { return Ok(()) };
    let all = all.lock();
    if begins && !all.is_empty() {
        return Err(Errno::EBUSY);
    }
    HIBERNATES.store(begins, SeqCst);
    Ok(())
}

/// A VM is there as soon as `make` has made it.
pub fn enter(machine: &Machine, make: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let all = all().ok_or(Errno::ENODEV)?;
    let mut all = all.lock();
    if CLOSED.load(SeqCst) {
        return Err(Errno::ENODEV);
    }
    if HIBERNATES.load(SeqCst) {
        return Err(Errno::EBUSY);
    }
    all.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
    make()?;
    all.push(Registered(machine));
    Ok(())
}

/// It goes.
pub fn strike(machine: &Machine) {
    if let Some(all) = all() {
        all.lock().retain(|one| !ptr::eq(one.0, machine));
    }
}
