//! What `cargo xtask` tells the EL3 test firmware, in the firmware's own file.
//!
//! QEMU's `-cpu` is one for all CPUs, but ZCR_EL3.LEN and SMCR_EL3.LEN are each CPU's own: firmware that
//! writes different values makes CPUs of different width. Which, stands in a [`FirmwareConfig`] at
//! [`FIRMWARE_CONFIG_OFFSET`] of the file; the firmware is linked with an empty one.
//!
//! One firmware runs on several boards. What a device tree says of a board (UART, GIC, memory, CPUs,
//! power-off) it takes from there. What it has to know before it can read a tree is in the file: the
//! rest of the configuration, and its translation tables ([`FIRMWARE_TABLES_OFFSET`]), through which
//! its own data is at [`FIRMWARE_DATA_ADDRESS`] wherever the board has secure RAM.

use crate::flag_set;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset of the [`FirmwareConfig`], bytes from the start of the file.
pub const FIRMWARE_CONFIG_OFFSET: usize = 64;

/// "UMBRAEL3" in memory order.
pub const FIRMWARE_MAGIC: u64 = u64::from_le_bytes(*b"UMBRAEL3");

/// Version of the layout below.
pub const FIRMWARE_VERSION: u32 = 6;

/// Offset of the translation tables, bytes from the start of the file: level 1, then the level 2 table
/// of the first GiB. Zero in a firmware that was not configured.
pub const FIRMWARE_TABLES_OFFSET: usize = 0x1000;

/// Bytes of the tables: two pages.
pub const FIRMWARE_TABLES_BYTES: usize = 0x2000;

/// Where the firmware finds what it writes: virtual, in the first GiB.
pub const FIRMWARE_DATA_ADDRESS: u64 = 0x3000_0000;

/// Bytes of secure RAM that it takes there.
pub const FIRMWARE_DATA_BYTES: u64 = 16 << 20;

/// Bytes that the machine's device tree may have.
pub const FIRMWARE_DTB_BYTES: u64 = 2 << 20;

/// CPUs that fit.
pub const FIRMWARE_CPUS: usize = 64;

/// `suspend_format`: CPU_SUSPEND's power_state has the original format (bit 16 is power-down).
pub const SUSPEND_ORIGINAL: u32 = 0;
/// `suspend_format`: CPU_SUSPEND's power_state has the extended StateID format (bit 30).
pub const SUSPEND_EXTENDED: u32 = 1;

/// `tree`: what EL2 is given is the machine's tree, as far as it goes.
pub const TREE_PLAIN: u32 = 0;
/// `tree`: it is one that has everything a tree may have and emulators' don't ([`ODD_RESERVED`]).
pub const TREE_ODD: u32 = 1;

/// What [`TREE_ODD`] reserves of memory, start and end, wherever the tree says so; filled with
/// [`odd_content`] before EL2 runs. QEMU's memory begins at 1 GiB; it is cut in two at [`ODD_CUT`], and what
/// is reserved lies where somebody would take memory who takes it from a bank's end.
pub const ODD_RESERVED: [(u64, u64); 7] = [
    // In /reserved-memory: no-map, at the very end of the first bank.
    (0x5ff0_0000, 0x6000_0000),
    // With a mapping; two ranges of one node.
    (0x5fa0_0000, 0x5fa0_1000),
    (0x5f80_3000, 0x5f80_5000),
    // For a driver that is disabled: reserved all the same.
    (0x5f40_0000, 0x5f41_0000),
    // /memreserve/, which knows no pages.
    (0x5f20_0f00, 0x5f20_2100),
    // In the second bank: no-map, and /memreserve/.
    (0x6000_0000, 0x6000_1000),
    (0x7fff_f000, 0x8000_0000),
];

/// Where [`TREE_ODD`] has one /memory end and the next begin.
pub const ODD_CUT: u64 = 0x6000_0000;

/// Where [`TREE_ODD`] lies itself, and an initrd that it names, filled with [`odd_content`]: at the top of what
/// is not reserved, where somebody would take memory who looks at nothing else.
pub const ODD_DTB: u64 = 0x5f10_0000;
/// See [`ODD_DTB`].
pub const ODD_INITRD: (u64, u64) = (0x5ec0_0000, 0x5ed2_3458);

/// What [`TREE_ODD`] calls a CPU's external debug registers, and a device that is none. On QEMU's board they are a
/// clock that can be read and flash memory: whoever is kept out is kept out by EL2.
pub const ODD_DEBUG: (u64, u64) = (0x0901_0000, 0x0901_1000);
/// See [`ODD_DEBUG`].
pub const ODD_NO_DEBUG: u64 = 0x0400_0000;

/// What a word at an address of [`ODD_RESERVED`] or [`ODD_INITRD`] holds.
pub const fn odd_content(address: u64) -> u64 {
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x0dd
}

flag_set! {
    /// `extras`: what firmware does that not all firmware does.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FirmwareExtras: u64 {
        /// It has PSCI MEM_PROTECT: memory is wiped before the machine is reset or turned off.
        const MEM_PROTECT = 1 << 0;
        /// MIGRATE_INFO_TYPE returns to an address where nothing is mapped: whoever called is hurt. That is
        /// how a test has a hypervisor find out that it has a defect.
        const RETURNS_NOWHERE = 1 << 1;
        /// CPU_SUSPEND's standby returns only when another CPU has called for the end of the machine, and that
        /// waits until what it returned to has had time: whoever suspended a CPU comes late.
        const RETURNS_LATE = 1 << 2;
    }
}

/// Where [`FirmwareExtras::RETURNS_NOWHERE`] returns to.
pub const FIRMWARE_NOWHERE: u64 = 0x1234_5678_9000;

/// What a protected guest of the tests has in memory, word by word. Nobody else's memory holds any of it.
pub const fn secret(n: u64) -> u64 {
    (n + 1).wrapping_mul(0xd6e8_feb8_6659_fd93) ^ 0x5ec2_e75e_c2e7_5ec2
}

/// The machine that the firmware makes.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FirmwareConfig {
    /// [`FIRMWARE_MAGIC`]; zero in a firmware that was not configured.
    pub magic: u64,
    /// [`FIRMWARE_VERSION`].
    pub version: u32,
    /// CPUs that the lists below speak of; the machine must have as many.
    pub cpus: u32,
    /// [`SUSPEND_ORIGINAL`] or [`SUSPEND_EXTENDED`].
    pub suspend_format: u32,
    /// [`TREE_PLAIN`] or [`TREE_ODD`].
    pub tree: u32,
    /// Where the machine's device tree is, physical.
    pub dtb: u64,
    /// Memory of EL2 and below begins here, whatever the tree says, and with the edited tree: physical,
    /// a page boundary.
    pub ram: u64,
    /// Where the image for EL2 is, physical: a 2 MiB boundary behind the edited tree.
    pub boot_address: u64,
    /// The control frame (CNTControlBase) of a system counter that is to be started, and that says what
    /// CNTFRQ_EL0 is to be; zero: both are as they should be at reset.
    pub counter: u64,
    /// Not zero: calls are refused and delayed, which ones and how follows from this number; and so does
    /// what a CPU finds in its registers when it comes up.
    pub trouble: u64,
    /// Not zero: there is a TRNG (DEN0098). What it gives follows from this number: it is for tests.
    pub trng: u64,
    /// [`FirmwareExtras`].
    pub extras: u64,
    /// MPIDR_EL1 affinity of each CPU, in the device tree's order; [`u64::MAX`] behind the last.
    pub affinities: [u64; FIRMWARE_CPUS],
    /// The most that each CPU's vector length may be, in bytes, in the device tree's order; zero: all
    /// that the CPU has.
    pub vl_bytes: [u16; FIRMWARE_CPUS],
    /// The most that each CPU's streaming vector length may be, likewise.
    pub svl_bytes: [u16; FIRMWARE_CPUS],
    /// How many CPU_ON calls for each CPU are DENIED before one succeeds: CPUs that come late.
    pub refusals: [u8; FIRMWARE_CPUS],
}
