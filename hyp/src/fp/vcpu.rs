//! The FP part of a vCPU.

#![forbid(unsafe_code)]

use super::hardware::{Access, Svcr};
use umbra_shared::call::Policy;
use umbra_shared::error::Error;
use umbra_shared::sve::{FPSIMD_BYTES, Layout};
use umbra_shared::vcpu::VcpuFeatures;
use umbra_shared::vl::{Vq, VqSet};

/// Whose state is in the registers.
///
/// `Guest` names no vCPU because it can mean only one: the vCPU loaded on this CPU. A put makes it
/// `Nobody` before another can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Live {
    /// That of the vCPU loaded on this CPU.
    Guest,
    /// The host's.
    Host,
    /// Nobody's: whatever is there must not be seen, and need not be kept.
    Nobody,
}

/// FPEXC32_EL2.EN.
pub(super) const FPEXC_EN: u64 = 1 << 30;
/// FPEXC32_EL2 after reset: EN clear; VECITR is RES1.
const FPEXC_RESET: u64 = 0x700;

/// The FP part of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VcpuFp<I> {
    pub(super) image: I,
    features: VcpuFeatures,
    policy: Policy,
    /// What is open to it while its file is live, and while its matrix is, too.
    open: [Access; 2],
    pub(super) zcr_el1: u64,
    pub(super) smcr_el1: u64,
    /// Of what is in the image: SM: the registers are those of streaming mode; ZA: there is ZA.
    pub(super) svcr: Svcr,
    /// FPEXC32_EL2, of an AArch32 vCPU: as much its own as any register of its.
    pub(super) fpexc: u64,
}

impl<I> VcpuFp<I> {
    /// A vCPU in its reset state. `image` must hold zeroes, and as many bytes as `features` needs.
    pub const fn new(image: I, features: VcpuFeatures, policy: Policy) -> Self {
        Self {
            image,
            features,
            policy,
            open: match features.vq {
                Some(_) => [Access::Sve, Access::Full],
                None => [Access::Fpsimd, Access::Sme],
            },
            zcr_el1: 0,
            smcr_el1: 0,
            svcr: Svcr::empty(),
            fpexc: FPEXC_RESET,
        }
    }

    /// The reset state again, of a vCPU that is loaded nowhere: `wipe` zeroes its image.
    pub fn reset(&mut self, wipe: impl FnOnce(&mut I)) {
        wipe(&mut self.image);
        self.zcr_el1 = 0;
        self.smcr_el1 = 0;
        self.svcr = Svcr::empty();
        self.fpexc = FPEXC_RESET;
    }

    /// The vCPU's largest VL; `None`: it has no SVE.
    pub const fn vq(&self) -> Option<Vq> {
        self.features.vq
    }

    /// The vCPU's largest SVL; `None`: it has no SME.
    pub const fn svq(&self) -> Option<Vq> {
        self.features.svq
    }

    /// Its EL1 is AArch32.
    pub const fn aarch32(&self) -> bool {
        self.features.aarch32
    }

    /// When its registers move.
    pub const fn policy(&self) -> Policy {
        self.policy
    }

    /// Its registers in memory, while it is loaded nowhere.
    pub const fn image(&mut self) -> &mut I {
        &mut self.image
    }

    /// Whether what is there is streaming mode's.
    pub const fn is_streaming(&self) -> bool {
        self.svcr.contains(Svcr::SM)
    }

    /// SVCR, likewise.
    pub const fn svcr_bits(&self) -> u64 {
        self.svcr.bits()
    }

    /// ZCR_EL1, likewise.
    pub const fn zcr_el1(&mut self) -> &mut u64 {
        &mut self.zcr_el1
    }

    /// SMCR_EL1, likewise.
    pub const fn smcr_el1(&mut self) -> &mut u64 {
        &mut self.smcr_el1
    }

    /// FPEXC32_EL2, likewise.
    pub const fn fpexc(&mut self) -> &mut u64 {
        &mut self.fpexc
    }

    /// Whether a CPU of which guests can use these VLs and SVLs can provide exactly the vCPU's.
    ///
    /// # Errors
    ///
    /// [`Error::VlMismatch`] if not: a vCPU is never silently narrowed.
    pub fn check_load(&self, vqs: VqSet, svqs: VqSet) -> Result<(), Error> {
        let fits = |wanted: Option<Vq>, set: VqSet| wanted.is_none_or(|vq| set.contains(vq));
        if fits(self.vq(), vqs) && fits(self.svq(), svqs) { Ok(()) } else { Err(Error::VlMismatch) }
    }

    /// What is open to it while its registers are live.
    pub(super) const fn open(&self, za: Live) -> Access {
        self.open[matches!(za, Live::Guest) as usize]
    }

    /// Whether it can't go on without ZA and SMCR being its own.
    pub(super) const fn uses_sme(&self) -> bool {
        !self.svcr.is_empty()
    }
}

/// Bytes of Z, P and FFR at a VL or SVL, or of V.
pub(super) const fn file_bytes(vq: Option<Vq>) -> u64 {
    match vq {
        Some(vq) => Layout::new(vq).image_bytes() as u64,
        None => FPSIMD_BYTES as u64,
    }
}

/// For the exhaustive check, which fills memory that must not matter with what would be noticed.
#[cfg(test)]
impl<I> VcpuFp<I> {
    pub(super) fn image_mut(&mut self) -> &mut I {
        &mut self.image
    }
}
