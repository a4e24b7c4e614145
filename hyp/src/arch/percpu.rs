//! What a CPU finds of itself: TPIDR_EL2 leads to its own data, which begin with this.
//!
//! Hyp runs with interrupts masked and handles one exception at a time, so the exclusive reference to all of
//! it that the outermost function of an exception makes is the only one.

use super::sysreg::sys;
use percore::Cores;

/// The beginning of a CPU's data. vectors.S knows `emergency_stack`.
#[derive(Debug)]
#[repr(C)]
pub struct PerCpu {
    /// Stack for the message about a broken stack: its top.
    pub emergency_stack: u64,
    /// The CPU's number: the order of the device tree.
    pub index: usize,
    /// Top of its stack.
    pub stack_top: u64,
}

impl PerCpu {
    /// This CPU's number, if it has got that far.
    pub fn current_index() -> Option<usize> {
        let this = sys::read_tpidr_el2().bits() as *const Self;
        // SAFETY: null or set by `set_current`; the index never changes after that.
        (!this.is_null()).then(|| unsafe { (*this).index })
    }

    /// The address of the running CPU's data.
    pub fn current_address() -> u64 {
        sys::read_tpidr_el2().bits()
    }

    /// These are the running CPU's data from now on, for good.
    ///
    /// # Safety
    ///
    /// It is where the data of this CPU begin, all of which `this` may reach, which live forever, and which no
    /// other CPU uses.
    pub unsafe fn set_current(this: *mut Self) {
        // SAFETY: TPIDR_EL2 is hyp's own, and leads to what the caller promises.
        unsafe { sys::write_tpidr_el2(sys::TpidrEl2::from_bits_retain(this as u64)) };
    }
}

/// `percore`'s idea of which CPU this is.
#[derive(Debug)]
pub struct CoreIndex;

// SAFETY: TPIDR_EL2 leads to this CPU's own data, whose index is unique.
unsafe impl Cores for CoreIndex {
    fn core_index() -> usize {
        PerCpu::current_index().unwrap_or(0)
    }
}
