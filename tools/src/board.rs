//! Boards that the EL3 test firmware runs on: what it has to know before it can read a device tree.
//!
//! The rest (UART, GIC, memory, CPUs, power-off) it finds in the tree. Its code is in flash at 0, where
//! CPUs start, on every board; what it writes is in secure RAM, which is somewhere else on each. So the
//! translation tables are the board's, too, and are written into the firmware's file: it maps the first
//! GiB, its own data at one virtual address, and the memory that it puts the device tree into.

use umbra_shared::firmware::{
    FIRMWARE_DATA_ADDRESS, FIRMWARE_DATA_BYTES, FIRMWARE_TABLES_BYTES, FIRMWARE_TABLES_OFFSET,
};

/// A board.
#[derive(Clone, Debug)]
pub struct Board {
    /// Flash at 0 that CPUs start in, bytes.
    pub flash_bytes: u64,
    /// Secure RAM for the firmware, physical.
    pub secure_ram: u64,
    /// Where the machine's device tree is.
    pub dtb: u64,
    /// Where memory of EL2 begins; the firmware puts the edited tree there.
    pub ram: u64,
    /// Where the emulator puts the image for EL2.
    pub boot_address: u64,
    /// The control frame of a system counter that EL3 has to start.
    pub counter: Option<u64>,
    /// MPIDR_EL1 affinity of each CPU.
    pub affinity: fn(u32) -> u64,
}

impl Board {
    /// QEMU's virt with a secure world: the tree is at the start of RAM.
    pub const VIRT: Self = Self {
        flash_bytes: 64 << 20,
        secure_ram: 0x0e00_0000,
        dtb: 0x4000_0000,
        ram: 0x4000_0000,
        boot_address: 0x4020_0000,
        counter: None,
        affinity: virt_affinity,
    };

    /// The same with at least 3 GiB, of which EL2 gets only what lies from 2 GiB on: as on boards that
    /// have RAM nowhere else.
    pub const VIRT_HIGH: Self = Self { ram: 0x8000_0000, boot_address: 0x8020_0000, ..Self::VIRT };

    /// Arm's Base RevC model (Arm Fast Models FVP Reference Guide, "Base Platform memory map").
    pub const FVP: Self = Self {
        flash_bytes: 64 << 20,
        secure_ram: 0x0600_0000,
        dtb: 0x8000_0000,
        ram: 0x8000_0000,
        boot_address: 0x8020_0000,
        counter: Some(0x2a43_0000),
        affinity: fvp_affinity,
    };
}

/// How QEMU numbers CPUs with a GICv3.
fn virt_affinity(cpu: u32) -> u64 {
    u64::from(cpu / 16) << 8 | u64::from(cpu % 16)
}

/// The model has clusters of four. Aff0 is the thread, of which there is one.
fn fvp_affinity(cpu: u32) -> u64 {
    u64::from(cpu / 4) << 16 | u64::from(cpu % 4) << 8
}

const GIB: u64 = 1 << 30;
const BLOCK: u64 = 2 << 20;
const ENTRIES: usize = 512;

/// Descriptors of stage 1 at EL3 (Arm ARM D8.3).
mod bits {
    pub const TABLE: u64 = 3;
    /// A valid block, AP\[1\] RES1, accessed.
    pub const BLOCK: u64 = 1 | 1 << 6 | 1 << 10;
    /// Inner shareable, attributes 0 of MAIR_EL3.
    pub const NORMAL: u64 = 3 << 8;
    /// Attributes 1.
    pub const DEVICE: u64 = 1 << 2;
    pub const NON_SECURE: u64 = 1 << 5;
    pub const READ_ONLY: u64 = 1 << 7;
    pub const NEVER_EXECUTE: u64 = 1 << 54;
}

impl Board {
    /// The translation tables for the firmware's file.
    pub fn tables(&self) -> [u8; FIRMWARE_TABLES_BYTES] {
        let mut level1 = [0; ENTRIES];
        level1[0] = (FIRMWARE_TABLES_OFFSET + size_of_val(&level1)) as u64 | bits::TABLE;
        for gib in [self.dtb / GIB, self.ram / GIB] {
            let normal = bits::BLOCK | bits::NORMAL | bits::NON_SECURE | bits::NEVER_EXECUTE;
            level1[gib as usize] = (gib * GIB) | normal;
        }
        let mut level2 = [0; ENTRIES];
        let data = FIRMWARE_DATA_ADDRESS..FIRMWARE_DATA_ADDRESS + FIRMWARE_DATA_BYTES;
        for (n, entry) in level2.iter_mut().enumerate() {
            let address = n as u64 * BLOCK;
            *entry = bits::BLOCK
                | if address < self.flash_bytes {
                    address | bits::NORMAL | bits::READ_ONLY
                } else if data.contains(&address) {
                    let physical = self.secure_ram + (address - data.start);
                    physical | bits::NORMAL | bits::NEVER_EXECUTE
                } else {
                    address | bits::DEVICE | bits::NEVER_EXECUTE
                };
        }
        let mut bytes = [0; FIRMWARE_TABLES_BYTES];
        for (to, entry) in bytes.chunks_exact_mut(8).zip(level1.iter().chain(&level2)) {
            to.copy_from_slice(&entry.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOARDS: [Board; 3] = [Board::VIRT, Board::VIRT_HIGH, Board::FVP];

    /// What the tables make of an address, as the CPU walks them: the physical address and the
    /// descriptor.
    fn walk(board: &Board, address: u64) -> Option<(u64, u64)> {
        let tables = board.tables();
        let entry = |offset: u64| {
            let at = offset as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        let output = |descriptor: u64, bytes: u64| descriptor & 0xff_ffff_f000 & !(bytes - 1);
        let level1 = entry(address / GIB * 8);
        let (descriptor, bytes) = match level1 & 3 {
            1 => (level1, GIB),
            3 => {
                let table = (level1 & !0xfff) - FIRMWARE_TABLES_OFFSET as u64;
                (entry(table + address % GIB / BLOCK * 8), BLOCK)
            }
            _ => return None,
        };
        (descriptor & 3 == 1).then(|| (output(descriptor, bytes) + address % bytes, descriptor))
    }

    #[test]
    fn code_is_executed_where_it_lies_and_nothing_else_is() {
        for board in BOARDS {
            for address in [0, 0x1234, board.flash_bytes - 4] {
                let (physical, descriptor) = walk(&board, address).unwrap();
                assert_eq!(physical, address);
                assert_eq!(descriptor & bits::NEVER_EXECUTE, 0);
                assert_ne!(descriptor & bits::READ_ONLY, 0);
            }
            let others = [board.flash_bytes, FIRMWARE_DATA_ADDRESS, 0x3fff_fff8, board.ram];
            for address in others {
                let (_, descriptor) = walk(&board, address).unwrap();
                assert_ne!(descriptor & bits::NEVER_EXECUTE, 0, "{address:#x}");
                assert_eq!(descriptor & bits::READ_ONLY, 0, "{address:#x}");
            }
        }
    }

    #[test]
    fn data_is_in_the_boards_secure_ram() {
        for board in BOARDS {
            for offset in [0, 0x1008, FIRMWARE_DATA_BYTES - 8] {
                let (physical, descriptor) = walk(&board, FIRMWARE_DATA_ADDRESS + offset).unwrap();
                assert_eq!(physical, board.secure_ram + offset);
                assert_eq!(descriptor & (bits::DEVICE | bits::NON_SECURE), 0);
            }
        }
    }

    #[test]
    fn devices_and_trees_are_where_they_are() {
        // UART, GIC, power of each board.
        let devices = [
            (Board::VIRT, [0x0900_0000, 0x0800_0000, 0x090b_0000]),
            (Board::FVP, [0x1c09_0000, 0x2f00_0000, 0x1c01_00a4]),
        ];
        for (board, addresses) in devices {
            for address in addresses.into_iter().chain(board.counter) {
                let (physical, descriptor) = walk(&board, address).unwrap();
                assert_eq!(physical, address);
                assert_ne!(descriptor & bits::DEVICE, 0);
            }
        }
        for board in BOARDS {
            for address in [board.dtb, board.ram, board.boot_address - 8] {
                let (physical, descriptor) = walk(&board, address).unwrap();
                assert_eq!(physical, address);
                assert_ne!(descriptor & bits::NON_SECURE, 0);
                assert_eq!(descriptor & bits::DEVICE, 0);
            }
            // What the firmware has no business with is not mapped.
            assert_eq!(walk(&board, 0x10_0000_0000), None);
        }
    }

    #[test]
    fn every_cpu_has_an_affinity_of_its_own() {
        assert_eq!([0, 1, 15, 16, 63].map(Board::VIRT.affinity), [0, 1, 15, 0x100, 0x30f]);
        assert_eq!([0, 1, 3, 4, 7].map(Board::FVP.affinity), [0, 0x100, 0x300, 0x1_0000, 0x1_0300]);
    }
}
