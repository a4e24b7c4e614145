//! Where things are, guest-physical.
#![forbid(unsafe_code)]

/// The distributor.
pub const GICD: u64 = 0x0800_0000;
/// Its bytes.
pub const GICD_BYTES: u64 = 0x1_0000;
/// The redistributors, one after another.
pub const GICR: u64 = 0x080a_0000;
/// Bytes of each.
pub const GICR_BYTES: u64 = 0x2_0000;
/// The serial port.
pub const SERIAL: u64 = 0x0900_0000;
/// Its bytes.
pub const SERIAL_BYTES: u64 = 0x1000;
/// Its interrupt, among SPIs.
pub const SERIAL_SPI: u32 = 0;
/// Memory.
pub const RAM: u64 = 0x8000_0000;
/// INTIDs that there are.
pub const INTIDS: u32 = 64;
/// What is put at the end of memory begins at multiples of this: the tree, and before it the initrd.
pub const GRANULE: u64 = 2 << 20;
