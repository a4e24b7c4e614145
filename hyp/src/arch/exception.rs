//! EL2's exception vectors (vectors.S): one table for while the host runs, one for while a guest runs.
//!
//! What comes from a lower EL is handed to the rooms above, by name: the host's synchronous exceptions to
//! `umbra_host_call` (HVC), `umbra_host_abort` and `umbra_host_trap` (the rest), a guest's to `umbra_guest_exit_sync` and its neighbours. An exception of EL2's own is the end
//! ([`super::fatal`]).

use super::fatal::FatalFrame;
use super::layout;
use super::percpu::PerCpu;
use super::sysreg::sys::{VbarEl2, write_vbar_el2};
use core::mem::offset_of;
use static_assertions::const_assert;

/// ESR_EL2.EC of an HVC.
const EC_HVC64: u64 = 0x16;
/// The entry in the guest's vectors of an SError from EL2 itself, with its own stack pointer.
const SERROR_AT_EL2: u64 = 16 + 7;

core::arch::global_asm!(
    include_str!("vectors.S"),
    FATAL_FRAME_BYTES = const size_of::<FatalFrame>(),
    HOST_FRAME_BYTES = const size_of::<HostFrame>(),
    HOST_FRAME_X19 = const offset_of!(HostFrame, x19),
    EC_HVC64 = const EC_HVC64,
    SERROR_AT_EL2 = const SERROR_AT_EL2,
    STACK_SHIFT = const layout::STACK_SHIFT,
    CPU_EMERGENCY_STACK = const offset_of!(PerCpu, emergency_stack),
);

// SAFETY: vectors.S defines them so.
unsafe extern "C" {
    static umbra_host_vectors: u8;
    static umbra_guest_vectors: u8;
    safe fn umbra_take_serror() -> u64;
    fn umbra_probe_dbgauthstatus() -> u64;
    fn umbra_probe_device(va: usize) -> u64;
    fn umbra_enter_host_fresh(context: u64, stack_top: u64) -> !;
}

/// The host's registers at a trap: vectors.S stores x0-x18 and x30 at these offsets, and at an abort x19-x29.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct HostFrame {
    /// x0-x17: arguments and results.
    pub x: [u64; 18],
    x18: u64,
    x30: u64,
    /// ELR_EL2, for those who run something else before they return to the host.
    pub elr: u64,
    /// SPSR_EL2.
    pub spsr: u64,
    x19: [u64; 11],
}

impl HostFrame {
    /// Xn at an abort; 31 is XZR.
    pub fn register(&self, n: u8) -> u64 {
        match n {
            0..=17 => self.x[usize::from(n)],
            18 => self.x18,
            19..=29 => self.x19[usize::from(n) - 19],
            30 => self.x30,
            _ => 0,
        }
    }

    /// Writes Xn at an abort; XZR takes nothing.
    pub fn set_register(&mut self, n: u8, value: u64) {
        match n {
            0..=17 => self.x[usize::from(n)] = value,
            18 => self.x18 = value,
            19..=29 => self.x19[usize::from(n) - 19] = value,
            30 => self.x30 = value,
            _ => {}
        }
    }
}

const_assert!(offset_of!(HostFrame, x18) == 144);

/// Exceptions come from the host.
#[inline]
pub fn set_host_vectors() {
    set_vectors(&raw const umbra_host_vectors);
}

/// Exceptions come from a guest.
#[inline]
pub fn set_guest_vectors() {
    set_vectors(&raw const umbra_guest_vectors);
}

#[inline]
fn set_vectors(vectors: *const u8) {
    // SAFETY: called with one of the two vector tables of vectors.S.
    unsafe { write_vbar_el2(VbarEl2::from_bits_retain(vectors.addr() as u64)) };
}

/// Takes an SError that is pending, here, and goes on. Returns whether there was one. For CPUs without ESB.
pub fn take_pending_serror() -> bool {
    umbra_take_serror() != 0
}

/// DBGAUTHSTATUS_EL1, if the CPU has it. For boot: what an exception leaves in ELR_EL2 and the like is lost.
pub fn read_dbgauthstatus() -> Option<u64> {
    // SAFETY: interrupts are masked, and nothing else between the two writes of VBAR_EL2 can cause an
    // exception; a read of the register has no effect but to give its value.
    let value = unsafe { umbra_probe_dbgauthstatus() };
    (value != u64::MAX).then_some(value)
}

/// 32 bits of a device; `None` if nothing answers there, or if they are all ones. For boot: what an exception leaves
/// in ELR_EL2 and the like is lost.
///
/// # Safety
///
/// `va` is mapped as Device memory, aligned to 4 bytes, and a read there changes nothing.
pub unsafe fn probe_device(va: usize) -> Option<u32> {
    // SAFETY: interrupts are masked, and nothing but the read can cause an exception between the two
    // writes of VBAR_EL2; the read is harmless, as the caller promises.
    let value = unsafe { umbra_probe_device(va) };
    u32::try_from(value).ok().filter(|&value| value != u32::MAX)
}

/// Begins the host's life on this CPU with `context` in x0: ERET.
///
/// # Safety
///
/// ELR_EL2, SPSR_EL2 and all of EL1 are set for it, `stack_top` is the top of this CPU's stack, and nothing
/// on that is needed any more.
pub unsafe fn enter_host_fresh(context: u64, stack_top: u64) -> ! {
    // SAFETY: as the caller promises.
    unsafe { umbra_enter_host_fresh(context, stack_top) }
}
