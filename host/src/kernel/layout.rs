//! Where things are in the kernel's address space, and how large its stacks are: numbers, and what can be
//! computed from them alone. Who maps it so is [`mmu`](super::mmu).

use core::ptr::NonNull;

/// Where all RAM is: this + physical address.
pub const LINEAR: usize = 0xffff_ff80_0000_0000;
/// Where devices are: this + physical address.
pub const DEVICES: usize = 0xffff_ffc0_0000_0000;
/// A PCIe host bridge's configuration space, its first [`ECAM_BYTES`]: it may be anywhere.
pub const ECAM: usize = 0xffff_ffff_4000_0000;
/// Configuration space that is mapped: of 16 buses.
pub const ECAM_BYTES: u64 = 16 << 20;
/// Bytes of the window for BARs that are mapped.
pub const WINDOW_OF_BARS: u64 = 32 << 20;
/// The boot window: two 2 MiB blocks of device tree, then one of the early console.
pub const WINDOW: usize = 0xffff_ffff_8000_0000;
/// Where the image is linked.
pub const KERNEL: usize = 0xffff_ffff_c000_0000;
/// Physical addresses below this can be in the linear map and in the device map.
pub const MAX_PA: u64 = (DEVICES - LINEAR) as u64;

/// Index in the level 1 table, which spans 39 bits.
pub const fn l1_index(va: usize) -> usize {
    va >> 30 & 511
}

/// A stack is this many bytes: 64 KiB.
pub const STACK_SHIFT: u32 = 16;
/// A stack with its guard below it: the guard is the lower half.
pub const STACK_SLOT: usize = 2 << STACK_SHIFT;

/// The pointer to RAM at a physical address.
pub fn linear<T>(pa: u64) -> *mut T {
    debug_assert!(pa < MAX_PA);
    core::ptr::with_exposed_provenance_mut(LINEAR + pa as usize)
}

/// The pointer to the registers of a device at a physical address.
pub fn device<T>(pa: u64) -> NonNull<T> {
    let va = DEVICES + pa as usize;
    NonNull::new(core::ptr::with_exposed_provenance_mut(va)).expect("not zero")
}
