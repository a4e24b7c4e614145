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
/// The registers of virtio's devices, one after another.
pub const VIRTIO: u64 = 0x0a00_0000;
/// Bytes of each.
pub const VIRTIO_BYTES: u64 = 0x1000;
/// The interrupt of the first one, among SPIs; the others' follow.
pub const VIRTIO_SPI: u32 = 1;
/// How many there can be.
pub const VIRTIO_DEVICES: usize = 24;
/// Memory.
pub const RAM: u64 = 0x8000_0000;
/// INTIDs that there are.
pub const INTIDS: u32 = 64;
/// What is put at the end of memory begins at multiples of this: the tree, and before it the initrd.
pub const GRANULE: u64 = 2 << 20;

/// Where the registers of virtio's device `index` are, and its SPI.
pub fn virtio(index: usize) -> (u64, u32) {
    (VIRTIO + VIRTIO_BYTES * index as u64, VIRTIO_SPI + index as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        let (virtio_end, _) = virtio(VIRTIO_DEVICES);
        let places = [
            GICD..GICD + GICD_BYTES,
            GICR..GICR + 64 * GICR_BYTES,
            SERIAL..SERIAL + SERIAL_BYTES,
            VIRTIO..virtio_end,
        ];
        assert!(places.is_sorted_by(|a, b| a.end <= b.start));
        assert!(virtio_end <= RAM);
        // The first 32 are no SPIs.
        let (_, last) = virtio(VIRTIO_DEVICES - 1);
        assert!(SERIAL_SPI < VIRTIO_SPI && 32 + last < INTIDS);
    }
}
