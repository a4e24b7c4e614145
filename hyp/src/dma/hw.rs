//! SMMUs on the target.

use super::block::Block;
use super::registers::FRAME_BYTES;
use super::smmu::{Registers, Smmu, Trouble};
use super::streams::Streams;
use crate::arch::sysreg::dsb_sy;
use arrayvec::ArrayVec;
use core::sync::atomic::AtomicU64;

/// SMMUs that hyp drives, at the most: as many as a tree may have, which the reader of trees asserts.
pub const MAX_SMMUS: usize = 16;

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

/// All SMMUs of hyp's, which are on, each with the physical address of its registers; and what they translate
/// with. A failure names the one that failed.
#[derive(Debug)]
pub struct All {
    smmus: ArrayVec<(u64, Smmu<Frame>), MAX_SMMUS>,
    streams: Streams,
    vmid: u16,
}

impl All {
    /// None yet.
    pub const fn new(streams: Streams, vmid: u16) -> Self {
        Self { smmus: ArrayVec::new_const(), streams, vmid }
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.smmus.len()
    }

    /// Brings one up, for good.
    ///
    /// # Errors
    ///
    /// Any [`Trouble`] of its.
    pub fn start(&mut self, base: u64, mut smmu: Smmu<Frame>) -> Result<(), (u64, Trouble)> {
        smmu.start(&self.streams).map_err(|trouble| (base, trouble))?;
        self.smmus.push((base, smmu));
        Ok(())
    }

    /// Brings up again what has lost its state. Returns how many have.
    ///
    /// # Errors
    ///
    /// Any [`Trouble`].
    pub fn wake(&mut self) -> Result<usize, (u64, Trouble)> {
        let mut asleep = 0;
        // All are closed before the first is brought up, which takes longer.
        for closed in [true, false] {
            asleep = 0;
            for (base, smmu) in self.smmus.iter_mut().filter(|(_, smmu)| !smmu.is_on()) {
                asleep += 1;
                let done = if closed { smmu.close() } else { smmu.start(&self.streams) };
                done.map_err(|trouble| (*base, trouble))?;
            }
        }
        Ok(asleep)
    }

    /// What is kept of a page is to be forgotten.
    ///
    /// # Errors
    ///
    /// Any [`Trouble`].
    pub fn forget_page(&mut self, ipa: u64) -> Result<(), (u64, Trouble)> {
        self.smmus.iter_mut().try_for_each(|(base, smmu)| {
            smmu.forget_page(self.vmid, ipa).map_err(|trouble| (*base, trouble))
        })
    }

    /// It is, and nothing is under way that has used it.
    ///
    /// # Errors
    ///
    /// Any [`Trouble`].
    pub fn settle(&mut self) -> Result<(), (u64, Trouble)> {
        self.smmus
            .iter_mut()
            .try_for_each(|(base, smmu)| smmu.settle().map_err(|trouble| (*base, trouble)))
    }

    /// Transactions that all of them have aborted and told of.
    pub fn events(&mut self) -> u64 {
        self.smmus.iter_mut().map(|(_, smmu)| smmu.events()).sum()
    }
}
