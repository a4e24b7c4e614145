//! All SMMUs of the machine, as one: what one of them has not forgotten is not forgotten.

#![forbid(unsafe_code)]

use super::smmu::{Registers, Smmu, Trouble};
use super::streams::Streams;
use arrayvec::ArrayVec;

/// SMMUs that hyp drives, at the most.
pub const MAX_SMMUS: usize = 16;

/// All SMMUs of hyp's, which are on, each with the physical address of its registers; and what they translate
/// with. A failure names the one that failed.
#[derive(Debug)]
pub struct All<R> {
    smmus: ArrayVec<(u64, Smmu<R>), MAX_SMMUS>,
    streams: Streams,
    vmid: u16,
}

impl<R: Registers> All<R> {
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
    pub fn start(&mut self, base: u64, mut smmu: Smmu<R>) -> Result<(), (u64, Trouble)> {
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

    /// All that is kept of translations is.
    ///
    /// # Errors
    ///
    /// Any [`Trouble`].
    pub fn forget_everything(&mut self) -> Result<(), (u64, Trouble)> {
        self.smmus.iter_mut().try_for_each(|(base, smmu)| {
            smmu.forget_everything().map_err(|trouble| (*base, trouble))
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
