//! SMMUs on the target.

use super::block::Block;
use super::registers::FRAME_BYTES;
use super::smmu::Registers;
use crate::arch::sysreg::dsb_sy;
use core::sync::atomic::AtomicU64;

/// Memory of hyp's as a device sees it, too.
///
/// # Safety
///
/// `words` doublewords are mapped at `va` for good, are at the physical address `pa`, and hyp's for nothing else.
pub unsafe fn block(va: usize, pa: u64, words: usize) -> Block {
    // SAFETY: mapped for good, as the caller promises, and aligned, being whole pages; what a device writes there is
    // a valid value whenever it comes.
    Block::new(pa, unsafe { core::slice::from_raw_parts(va as *const AtomicU64, words) })
}

/// An SMMU's two pages of registers.
#[derive(Debug)]
pub struct Frame(usize);

impl Frame {
    /// # Safety
    ///
    /// [`FRAME_BYTES`] at `va` are the registers of an SMMU, mapped as Device memory for as long as this is used,
    /// and driven by nobody else.
    pub const unsafe fn new(va: usize) -> Self {
        Self(va)
    }

    fn at(&self, offset: u32, bytes: u32) -> usize {
        assert!(u64::from(offset + bytes) <= FRAME_BYTES && offset.is_multiple_of(bytes));
        self.0 + offset as usize
    }
}

impl Registers for Frame {
    fn read(&self, offset: u32) -> u32 {
        let at = self.at(offset, 4) as *const u32;
        // SAFETY: a register of the SMMU (`new`, `at`); reads have no effect but to give its value.
        unsafe { at.read_volatile() }
    }

    fn write(&mut self, offset: u32, value: u32) {
        let at = self.at(offset, 4) as *mut u32;
        // SAFETY: a register of the SMMU (`new`, `at`), which is this one's to drive.
        unsafe { at.write_volatile(value) };
    }

    fn write64(&mut self, offset: u32, value: u64) {
        let at = self.at(offset, 8) as *mut u64;
        // SAFETY: as above.
        unsafe { at.write_volatile(value) };
    }

    fn barrier(&self) {
        dsb_sy();
    }
}
