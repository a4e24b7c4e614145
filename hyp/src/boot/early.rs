//! The boot page tables, which boot.S begins and which are in force until the final ones are: what boot needs to see
//! through them is mapped in windows, a block of 2 MiB each, and hyp's memory where it will be.

use crate::arch::fatal::refuse;
use crate::arch::layout::{self, IMAGE_BASE, LINEAR_BASE};
use crate::arch::{Lock, reset};
use crate::boot::platform::Range;
use crate::boot::platform::smmus::MAX_SMMUS;
use arrayvec::ArrayVec;
use core::cell::Cell;
use umbra_shared::PAGE_SIZE;

/// GiBs that hyp's memory may lie in.
const POOL_GIBS: usize = 6;
/// Boot page tables: L0; L1, L2 of the image; L1, L2 of the identity map; L1 of the pool, and an L2 for each GiB.
pub const BOOT_TABLES: usize = 6 + POOL_GIBS;

/// Bytes of a block, which a window is.
pub const BLOCK: u64 = 2 << 20;

/// The console's window in the boot tables: one 2 MiB block at this level-2 index.
const CONSOLE_WINDOW_L2: usize = 260;
/// And those of SMMUs: as many as a tree may have.
const SMMU_WINDOWS_L2: usize = 264;

// SAFETY: a symbol of boot.S, of which only the address is used.
unsafe extern "C" {
    static umbra_boot_tables: Cell<[[u64; 512]; BOOT_TABLES]>;
}

/// Sets a descriptor of the boot tables.
fn set_boot_descriptor(table: usize, index: usize, value: u64) {
    // SAFETY: boot CPU alone, on its boot stack; the tables are in .bss and mapped. The entry was
    // invalid, so no TLB holds it.
    unsafe {
        let entry =
            (&raw const umbra_boot_tables).cast::<u64>().cast_mut().add(table * 512 + index);
        entry.write_volatile(value);
        core::arch::asm!("dsb ishst", "isb", options(nostack));
    }
}

/// Maps the block around `pa` at a level-2 index below [`IMAGE_BASE`], where nothing is. Returns the address of `pa`.
fn map_device_for_boot(index: usize, pa: u64, el2: bool) -> usize {
    // Device-nGnRE, never executable, and AP[1] as the translation regime wants it.
    let attributes = 3 << 53 | 1 << 10 | 1 << 2 | 1 | if el2 { 1 << 6 } else { 0 };
    set_boot_descriptor(2, index, (pa / BLOCK * BLOCK) | attributes);
    IMAGE_BASE + index * BLOCK as usize + (pa % BLOCK) as usize
}

/// The console's window, at EL2 or, for saying why hyp can't run, at EL1.
pub fn console_window(uart: u64, el2: bool) -> usize {
    map_device_for_boot(CONSOLE_WINDOW_L2, uart, el2)
}

/// A window on a device in the boot tables, for the `n`th that asks: 16 at the most, each once.
pub fn device_window(n: usize, pa: u64) -> usize {
    assert!(n < MAX_SMMUS);
    map_device_for_boot(SMMU_WINDOWS_L2 + n, pa, true)
}

/// Maps hyp's memory, whole blocks, where the final tables have it.
pub fn map_pool_for_boot((start, end): Range) {
    let mut pa = start;
    while pa < end {
        map_block_for_boot(pa);
        pa += BLOCK;
    }
}

/// Maps a block of the linear map in the boot tables: tables 5 (L1) and from 6 on (L2).
pub fn map_block_for_boot(pa: u64) {
    static L2_OF: Lock<ArrayVec<u64, POOL_GIBS>> = Lock::new(ArrayVec::new_const());
    let table_pa =
        |n: usize| reset::image_pa(&raw const umbra_boot_tables) + (n * PAGE_SIZE) as u64;
    let gib = pa >> 30;
    let mut l2 = L2_OF.lock();
    let n = l2.iter().position(|&g| g == gib).unwrap_or_else(|| {
        if l2.iter().any(|&g| g >> 9 != gib >> 9) || l2.try_push(gib).is_err() {
            refuse(format_args!("hyp's memory lies too far apart"));
        }
        set_boot_descriptor(0, (LINEAR_BASE >> 39) + (pa >> 39) as usize, table_pa(5) | 3);
        set_boot_descriptor(5, (gib & 511) as usize, table_pa(6 + l2.len() - 1) | 3);
        l2.len() - 1
    });
    set_boot_descriptor(6 + n, (pa >> 21 & 511) as usize, pa | layout::BLOCK_FLAGS_EL2 | 1 << 54);
}
