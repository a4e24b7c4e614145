//! Linux, as `module/*.c` offers it: each function there has one here, with the promises that its caller makes kept by
//! types.

mod events;
mod heap;
mod mappings;
mod pages;
mod shim;
mod sync;
mod user;

pub use events::{EventFd, IrqFd, Kind, NewFile, Object, Signals, Sleeper, Work, stop};
pub use heap::{discard, place, try_push, with_room};
pub use mappings::{Fault, Mappings, OpenFile};
pub use pages::{Mm, Page, Pages, Pinned, RunPage, flag_page, pages_out, take_back, unpin};
pub use sync::{Mutex, NoPreemption, Once, Published, Shared};
pub use user::User;

use crate::abi::Errno;
use core::fmt::{self, Write};
use shim::*;

/// What a function of C's has returned.
fn check(value: i32) -> Result<i32, Errno> {
    if value < 0 { Err(Errno(-value)) } else { Ok(value) }
}

/// A line for Linux's log, cut off where it is too long.
#[derive(Debug)]
pub struct LogLine {
    text: [u8; 200],
    used: usize,
}

impl LogLine {
    /// Writes it.
    pub fn log(arguments: fmt::Arguments<'_>) {
        let mut line = Self { text: [0; 200], used: 0 };
        let _ = line.write_fmt(arguments);
        // SAFETY: so many bytes of text that lives on.
        unsafe { shim_log(line.text.as_ptr(), line.used) };
    }
}

impl Write for LogLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.text[self.used..];
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.used += count;
        Ok(())
    }
}

/// A line for Linux's log.
macro_rules! log {
    ($($argument:tt)*) => { $crate::linux::LogLine::log(format_args!($($argument)*)) };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    log!("{info}");
    // SAFETY: it ends the kernel, which a bug of ours has left in an unknown state.
    unsafe { shim_panic() }
}

/// SMCCC's answer to who the hypervisor is, by SMC.
pub fn vendor_uid(function: u32) -> [u32; 4] {
    let mut uid = [0; 4];
    // SAFETY: it fills in four words.
    unsafe { shim_vendor_uid(function, uid.as_mut_ptr()) };
    uid
}

/// Whether somebody else wants the CPU, or the task has a signal or work to do before it runs a guest.
pub fn must_leave() -> bool {
    // SAFETY: two reads.
    unsafe { shim_must_leave() != 0 }
}

/// Whether the task has a signal.
pub fn signal_pending() -> bool {
    // SAFETY: a read.
    unsafe { shim_signal_pending() != 0 }
}

/// Does what a task does on its way to user space, and so before it runs a guest: it lets others run, works off
/// what was queued for it (`task_work`), and waits where its memory cgroup is beyond memory.high. EINTR: it has a signal.
pub fn work_before_a_guest() -> Result<(), Errno> {
    // SAFETY: where it may sleep, with no lock but a vCPU's.
    check(unsafe { shim_guest_work() }).map(drop)
}

/// Lets others run, if they wait.
pub fn cond_resched() {
    // SAFETY: where it may sleep, which is where preemption is enabled.
    unsafe { shim_cond_resched() };
}

/// Sleeps for some milliseconds.
pub fn sleep() {
    // SAFETY: where it may.
    unsafe { shim_sleep() };
}

/// Masks this CPU's interrupts.
pub fn irq_disable() {
    // SAFETY: the run loop enables them again.
    unsafe { shim_irq_disable() };
}

/// Unmasks them.
pub fn irq_enable() {
    // SAFETY: they were enabled before the run loop disabled them.
    unsafe { shim_irq_enable() };
}

/// The physical counter.
pub fn counter() -> u64 {
    // SAFETY: a read.
    unsafe { shim_counter() }
}

/// Masks or unmasks PPI 27 of this CPU.
pub fn mask_virtual_timer(masked: bool) {
    // SAFETY: what `irq_set_irqchip_state` does at the redistributor of this CPU; the run loop unmasks what it masks.
    unsafe { shim_mask_virtual_timer(masked.into()) };
}

/// TIF_FOREIGN_FPSTATE of the current task.
pub fn foreign_fpstate() -> bool {
    // SAFETY: a read.
    unsafe { shim_foreign_fpstate() != 0 }
}

/// TIF_SME of the current task.
pub fn task_sme() -> bool {
    // SAFETY: a read.
    unsafe { shim_task_sme() != 0 }
}

/// What the machine has that Linux uses: SVE (bit 0), SME (bit 1).
#[cfg(feature = "hunt")]
pub fn vectors() -> u64 {
    // SAFETY: a read of what doesn't change.
    unsafe { shim_vectors() }
}
