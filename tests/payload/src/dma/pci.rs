//! PCIe configuration space through an ECAM, as far as the attackers need it (PCI Express Base
//! Specification, chapter 7; PCI-to-PCI Bridge Architecture Specification, chapter 3).

use umbra_host::kernel::{layout, machine::BUS_BYTES};

const VENDOR: usize = 0x00;
const COMMAND: usize = 0x04;
const HEADER_TYPE: usize = 0x0c;
const BAR0: usize = 0x10;
/// Of a bridge.
const BUSES: usize = 0x18;
const MEMORY_WINDOW: usize = 0x20;

/// COMMAND: the function answers to memory accesses, and makes some.
const MEMORY_AND_MASTER: u32 = 0x6;
/// In the third byte of HEADER_TYPE's word: a bridge.
const BRIDGE: u32 = 1;
const FUNCTION_BYTES: usize = 4096;
const DEVICES: usize = 32;
const MIB: u64 = 1 << 20;

/// A function's configuration space.
#[derive(Clone, Copy, Debug)]
pub struct Function(usize);

impl Function {
    fn pointer(self, offset: usize) -> *mut u32 {
        core::ptr::with_exposed_provenance_mut(self.0 + offset)
    }

    fn read(self, offset: usize) -> u32 {
        // SAFETY: configuration space, which the kernel has mapped and no driver uses.
        unsafe { self.pointer(offset).read_volatile() }
    }

    fn write(self, offset: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.pointer(offset).write_volatile(value) };
    }

    /// Vendor in the lower half, device in the upper.
    pub fn identity(self) -> u32 {
        self.read(VENDOR)
    }

    /// Whether it is a bridge.
    pub fn is_bridge(self) -> bool {
        self.read(HEADER_TYPE) >> 16 & 0x7f == BRIDGE
    }

    /// Its first BAR, 32 bits of memory, is here from now on, and it may use memory.
    pub fn enable_at(self, pa: u64) {
        self.write(BAR0, pa as u32);
        self.write(COMMAND, self.read(COMMAND) | MEMORY_AND_MASTER);
    }

    /// A bridge hands on what is for `bus`, and for so many MiB of memory from `pa` on.
    pub fn open_bridge(self, bus: u32, pa: u64, mebibytes: u64) {
        let upper = |pa: u64| (pa >> 16) as u32 & 0xfff0;
        self.write(BUSES, bus << 8 | bus << 16);
        self.write(MEMORY_WINDOW, upper(pa) | upper(pa + (mebibytes - 1) * MIB) << 16);
        self.write(COMMAND, self.read(COMMAND) | MEMORY_AND_MASTER);
    }
}

/// The functions 0 that there are on a bus.
pub fn functions(bus: u32) -> impl Iterator<Item = Function> {
    assert!(u64::from(bus) * BUS_BYTES < layout::ECAM_BYTES, "bus {bus} is not mapped");
    let first = layout::ECAM + bus as usize * BUS_BYTES as usize;
    let all = (0..DEVICES).map(move |device| Function(first + device * 8 * FUNCTION_BYTES));
    all.filter(|function| function.identity() & 0xffff != 0xffff)
}
