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

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset of the [`FirmwareConfig`], bytes from the start of the file.
pub const FIRMWARE_CONFIG_OFFSET: usize = 64;

/// "UMBRAEL3" in memory order.
pub const FIRMWARE_MAGIC: u64 = u64::from_le_bytes(*b"UMBRAEL3");

/// Version of the layout below.
pub const FIRMWARE_VERSION: u32 = 3;

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
    /// Zero.
    pub reserved: u32,
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
