//! Where the image lies, and what a CPU finds when it comes out of reset with its MMU off.

use super::layout::IMAGE_BASE;
use crate::arch::MAX_CPUS;
use core::sync::atomic::{AtomicU64, Ordering};

// SAFETY: a symbol of boot.S, of which only the address is used.
unsafe extern "C" {
    static umbra_secondary_entry: u8;
}

/// What a CPU finds when it comes up with its MMU off: boot.S knows the offsets of the first four.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct BootParams {
    /// TTBR0_EL2.
    pub ttbr: AtomicU64,
    /// TCR_EL2.
    pub tcr: AtomicU64,
    /// Top of its stack.
    pub stack_top: AtomicU64,
    /// Its number.
    pub index: AtomicU64,
    /// Where its data are; read with the MMU on.
    pub cpu: AtomicU64,
    /// Where its host image is; set before the host runs.
    pub image: AtomicU64,
}

/// All CPUs', by number.
pub static BOOT_PARAMS: [BootParams; MAX_CPUS] = [const {
    BootParams {
        ttbr: AtomicU64::new(0),
        tcr: AtomicU64::new(0),
        stack_top: AtomicU64::new(0),
        index: AtomicU64::new(0),
        cpu: AtomicU64::new(0),
        image: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Physical address of the image.
static IMAGE_PA: AtomicU64 = AtomicU64::new(0);

/// The loader put the image at this physical address.
pub fn image_is_at(pa: u64) {
    IMAGE_PA.store(pa, Ordering::Relaxed);
}

/// The physical address of something in the image.
pub fn image_pa<T: ?Sized>(of: *const T) -> u64 {
    of.addr() as u64 - IMAGE_BASE as u64 + IMAGE_PA.load(Ordering::Relaxed)
}

/// The physical address of the image itself.
pub fn image_begins() -> u64 {
    IMAGE_PA.load(Ordering::Relaxed)
}

/// Where firmware starts CPUs: physical.
pub fn secondary_entry_address() -> u64 {
    image_pa(&raw const umbra_secondary_entry)
}

/// What it passes to CPU `n`: physical.
pub fn boot_params_address(n: usize) -> u64 {
    image_pa(&raw const BOOT_PARAMS[n])
}
