//! What `cargo xtask` tells the EL3 test firmware, in the firmware's own file.
//!
//! QEMU's `-cpu` is one for all CPUs, but ZCR_EL3.LEN is each CPU's own: firmware that writes
//! different values makes CPUs of different width. Which, stands in a [`FirmwareConfig`] at
//! [`FIRMWARE_CONFIG_OFFSET`] of the file; the firmware is linked with an empty one. The packed image
//! that it starts at EL2 is at [`FIRMWARE_BOOT_ADDRESS`], put there by the emulator's loader.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset of the [`FirmwareConfig`], bytes from the start of the file.
pub const FIRMWARE_CONFIG_OFFSET: usize = 64;

/// "UMBRAEL3" in memory order.
pub const FIRMWARE_MAGIC: u64 = u64::from_le_bytes(*b"UMBRAEL3");

/// Version of the layout below.
pub const FIRMWARE_VERSION: u32 = 1;

/// CPUs that fit.
pub const FIRMWARE_CPUS: usize = 64;

/// Where the image for EL2 is in memory: physical, a 2 MiB boundary behind the device tree.
pub const FIRMWARE_BOOT_ADDRESS: u64 = 0x4020_0000;

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
    /// The most that each CPU's SVE and SME vector length may be, in bytes, in the device tree's
    /// order; zero: all that the CPU has.
    pub vl_bytes: [u16; FIRMWARE_CPUS],
    /// How many CPU_ON calls for each CPU are DENIED before one succeeds: CPUs that come late.
    pub refusals: [u8; FIRMWARE_CPUS],
}
