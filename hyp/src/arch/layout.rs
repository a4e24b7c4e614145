//! Hyp's virtual addresses: fixed, wherever RAM is.
//!
//! 48 bits with a 4 KiB granule, one region per purpose, each in level-0 entries of its own:
//!
//! | from | what |
//! |---|---|
//! | the boot code's physical address | identity map of `.idmap`, one page or two |
//! | [`IMAGE_BASE`] | the image, by section permissions |
//! | [`STACKS_BASE`] | stacks, each below a hole of its own size |
//! | [`DEVICE_BASE`] | the console; SMMUs, from [`SMMU_BASE`] |
//! | [`LINEAR_BASE`] | physical memory at its address plus this: hyp's own, donated and shared pages; a guest's page for as long as it is wiped or cleaned; nothing else |

#![forbid(unsafe_code)]

/// Where the image is linked (image.ld).
pub const IMAGE_BASE: usize = 0x4000_0000_0000;
/// Stacks.
pub const STACKS_BASE: usize = 0x4100_0000_0000;
/// Device registers that hyp uses itself.
pub const DEVICE_BASE: usize = 0x4200_0000_0000;
/// Registers of SMMUs, one behind the other.
pub const SMMU_BASE: usize = DEVICE_BASE + 0x1_0000_0000;
/// Physical memory, page by page as it becomes hyp's.
pub const LINEAR_BASE: usize = 0x8000_0000_0000;

/// Physical addresses that hyp can handle lie below this: the identity map must not reach
/// [`IMAGE_BASE`].
pub const PA_LIMIT_SHIFT: u32 = 46;

/// log2 of the bytes of a stack.
pub const STACK_SHIFT: u32 = 14;
/// Bytes of a stack.
pub const STACK_BYTES: usize = 1 << STACK_SHIFT;

/// The address one past stack number `n`.
pub const fn stack_top(n: usize) -> usize {
    STACKS_BASE + (n + 1) * 2 * STACK_BYTES
}

/// The DTB's window in the boot page tables: two 2 MiB blocks at this level-2 index below
/// [`IMAGE_BASE`].
pub const DTB_WINDOW_L2: usize = 256;

/// Level-0 index of [`IMAGE_BASE`].
pub const IMAGE_BASE_L0: usize = IMAGE_BASE >> 39;

/// MAIR_EL2: attribute 0 is Normal write-back, 1 is Device-nGnRE.
pub const MAIR: u64 = 0x04ff;

/// TCR without the physical address size: 48-bit addresses, 4 KiB granule, tables Normal write-back,
/// inner shareable. EL2's format; bits 31 and 23 are RES1.
pub const TCR_EL2: u64 = 1 << 31 | 1 << 23 | 3 << 12 | 1 << 10 | 1 << 8 | 16;
/// The same in EL1's format, TTBR1 off.
pub const TCR_EL1: u64 = 1 << 23 | 16 << 16 | 2 << 30 | 3 << 12 | 1 << 10 | 1 << 8 | 16;

/// SCTLR_EL2: MMU, caches and SP alignment checks on, nothing writable executable; the rest is RES1
/// or what has no effect at EL2.
pub const SCTLR_EL2: u64 = SCTLR_EL2_BOOT | 1 << 19;
/// SCTLR_EL2 while the image is mapped by blocks, writable and executable at once.
pub const SCTLR_EL2_BOOT: u64 = 0x30c5_0830 | 1 << 12 | 1 << 3 | 1 << 2 | 1;
/// SCTLR_EL2.EIS and EOS: exceptions to EL2 and returns from it synchronise context. Where FEAT_ExS is, they can be
/// off; a world switch counts on them being on: behind its last MSR comes an ERET and no ISB.
pub const SCTLR_EIS_EOS: u64 = 1 << 22 | 1 << 11;
const _: () = assert!(SCTLR_EL2 & SCTLR_EIS_EOS == SCTLR_EIS_EOS);
const _: () = assert!(SCTLR_EL2_BOOT & SCTLR_EIS_EOS == SCTLR_EIS_EOS);

/// SCTLR_EL1 for saying why hyp can't run.
pub const SCTLR_EL1_BOOT: u64 = 0x30d0_0980 | 1 << 12 | 1 << 3 | 1 << 2 | 1;

/// A 2 MiB block of Normal memory: valid, AF, inner shareable, attribute 0.
pub const BLOCK_FLAGS_EL1: u64 = 1 << 10 | 3 << 8 | 1;
/// The same for EL2, where AP\[1\] is RES1.
pub const BLOCK_FLAGS_EL2: u64 = BLOCK_FLAGS_EL1 | 1 << 6;
