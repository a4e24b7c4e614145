//! The list of all VMs.

use super::Machine;
use crate::{
    abi::Errno,
    linux::{self, Mutex, discard, place},
};
use alloc::vec::Vec;
use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst},
};

/// All VMs, for an end that can't wait for their files.
static ALL: AtomicPtr<Mutex<Vec<Registered>>> = AtomicPtr::new(ptr::null_mut());

/// No more are made: the kernel ends. Written with the list locked.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// None is made for now: the kernel hibernates. Written with the list locked.
static HIBERNATES: AtomicBool = AtomicBool::new(false);

/// VMs that are in the list no longer, and are not taken down yet. Raised with the list locked.
static ENDING: AtomicUsize = AtomicUsize::new(0);

/// A VM's end, from when it leaves the list until nothing of it is hyp's any more.
#[derive(Debug)]
pub struct Ending(());

impl Drop for Ending {
    fn drop(&mut self) {
        ENDING.fetch_sub(1, SeqCst);
    }
}

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
    unsafe { discard(ALL.swap(ptr::null_mut(), SeqCst)) };
}

fn all() -> Option<&'static Mutex<Vec<Registered>>> {
    // SAFETY: it is there from the module's beginning to its end.
    unsafe { ALL.load(SeqCst).as_ref() }
}

/// Takes all VMs down, whatever their files are used for, and waits for those that go already.
pub fn shutdown() {
    let Some(all) = all() else { return };
    {
        let all = all.lock();
        CLOSED.store(true, SeqCst);
        for one in all.iter() {
            // SAFETY: it is in the list, whose lock this has.
            unsafe { &*one.0 }.close();
        }
    }
    while ENDING.load(SeqCst) != 0 {
        linux::sleep();
    }
}

/// The kernel writes an image of itself, or reads one: what begins there knows of no page that is a VM's. EBUSY while there
/// is one, or its end is under way; from the beginning to the end none is made.
pub fn hibernate(begins: bool) -> Result<(), Errno> {
    let Some(all) = all() else { return Ok(()) };
    let all = all.lock();
    if begins && (!all.is_empty() || ENDING.load(SeqCst) != 0) {
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

/// It goes: what this returns is dropped when it has gone.
pub fn strike(machine: &Machine) -> Ending {
    let mut all = all().map(Mutex::lock);
    // Whoever looks finds it in the list or here.
    ENDING.fetch_add(1, SeqCst);
    if let Some(all) = &mut all {
        all.retain(|one| !ptr::eq(one.0, machine));
    }
    Ending(())
}
