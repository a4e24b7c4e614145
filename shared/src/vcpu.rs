//! What a vCPU has beside what every vCPU has.

use crate::sme::Storage;
use crate::vl::Vq;

/// Pages of a vCPU beside its FP image: the register context.
pub const VCPU_CONTEXT_PAGES: u64 = 1;

/// What a vCPU has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VcpuFeatures {
    /// Its largest VL; `None`: no SVE.
    pub vq: Option<Vq>,
    /// Its largest SVL; `None`: no SME.
    pub svq: Option<Vq>,
    /// Its EL1 and EL0 are AArch32. It has neither SVE nor SME then.
    pub aarch32: bool,
}

impl VcpuFeatures {
    /// AArch64 with Advanced SIMD alone.
    pub const FPSIMD: Self = Self { vq: None, svq: None, aarch32: false };

    /// AArch32.
    pub const AARCH32: Self = Self { vq: None, svq: None, aarch32: true };

    /// AArch64 with this largest VL; `None`: without SVE.
    pub const fn sve(vq: Option<Vq>) -> Self {
        Self { vq, svq: None, aarch32: false }
    }

    /// AArch64 with this largest SVL, and SVE if there is a VL.
    pub const fn sme(vq: Option<Vq>, svq: Vq) -> Self {
        Self { vq, svq: Some(svq), aarch32: false }
    }

    /// Memory for its registers.
    pub const fn storage(self) -> Storage {
        Storage::new(self.vq, self.svq)
    }

    /// The pages that VCPU_CREATE takes for it.
    pub const fn pages(self) -> u64 {
        VCPU_CONTEXT_PAGES + self.storage().pages() as u64
    }
}

/// What a vCPU is to have, as the host named it: it may be anything.
///
/// | bits | |
/// |---|---|
/// | 15:0 | largest VL in bytes; 0: no SVE |
/// | 31:16 | largest SVL in bytes; 0: no SME |
/// | 32 | AArch32 at EL1 and EL0: without SVE and SME |
/// | 63:33 | zero |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct UntrustedFeatures(pub u64);

impl UntrustedFeatures {
    const AARCH32: u64 = 1 << 32;
    const RESERVED: u64 = !0 << 33;

    /// Its largest VL in bytes, or 0.
    pub const fn vl_bytes(self) -> u64 {
        self.0 & 0xffff
    }

    /// Its largest SVL in bytes, or 0.
    pub const fn svl_bytes(self) -> u64 {
        self.0 >> 16 & 0xffff
    }

    /// AArch32 at EL1 and EL0.
    pub const fn aarch32(self) -> bool {
        self.0 & Self::AARCH32 != 0
    }

    /// Bits are set that mean nothing.
    pub const fn has_reserved(self) -> bool {
        self.0 & Self::RESERVED != 0
    }
}

impl From<VcpuFeatures> for UntrustedFeatures {
    fn from(features: VcpuFeatures) -> Self {
        let bytes = |vq: Option<Vq>| vq.map_or(0, |vq| vq.vl_bytes() as u64);
        let aarch32 = if features.aarch32 { Self::AARCH32 } else { 0 };
        Self(bytes(features.vq) | bytes(features.svq) << 16 | aarch32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_asked_for_arrives(vq in 0u64..17, svq in 0u64..17, aarch32: bool) {
            let (vq, svq) = (Vq::new(vq), Vq::new(svq));
            let raw = UntrustedFeatures::from(VcpuFeatures { vq, svq, aarch32 });
            prop_assert!(!raw.has_reserved());
            prop_assert_eq!(Vq::from_vl(raw.vl_bytes()), vq);
            prop_assert_eq!(Vq::from_vl(raw.svl_bytes()), svq);
            prop_assert_eq!(raw.aarch32(), aarch32);
        }

        #[test]
        fn nothing_beyond_bit_32_means_anything(raw: u64) {
            prop_assert_eq!(UntrustedFeatures(raw).has_reserved(), raw >> 33 != 0);
        }
    }
}
