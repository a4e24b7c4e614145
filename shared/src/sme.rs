//! What SME adds to a register file, and where it lies in memory.
//!
//! ZA is a square of SVL by SVL bytes, stored row after row; ZT0 (FEAT_SME2) has 64 bytes at any SVL.
//! In streaming mode Z, P and FFR are as long as the SVL says, in the layout of [`crate::sve`].
//!
//! Memory for one context's registers ([`Storage`]):
//!
//! ```text
//! 0                 Z, P, FFR at the VL in force, streaming or not (V0-V31 without either)
//! za_offset()       ZA, at the SVL in force
//! zt0_offset()      ZT0
//! ```
//!
//! FPSR, FPCR, FPMR, SVCR, ZCR_EL1, SMCR_EL1 and TPIDR2_EL0 have fixed sizes and live elsewhere.

use crate::sve::Layout;
use crate::vl::Vq;
use crate::{PAGE_SIZE, sve::FPSIMD_BYTES};
use static_assertions::const_assert_eq;

/// Bytes of ZT0.
pub const ZT0_BYTES: usize = 64;

/// ZA and ZT0 are stored at multiples of this many bytes.
pub const ZA_ALIGN: usize = 64;

/// Bytes of ZA at this SVL.
pub const fn za_bytes(svq: Vq) -> usize {
    svq.vl_bytes() * svq.vl_bytes()
}

/// Memory for the registers of one context: of the largest VL and SVL that it may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Storage {
    /// Its largest VL; `None`: no SVE.
    pub vq: Option<Vq>,
    /// Its largest SVL; `None`: no SME.
    pub svq: Option<Vq>,
}

impl Storage {
    /// For these lengths.
    pub const fn new(vq: Option<Vq>, svq: Option<Vq>) -> Self {
        Self { vq, svq }
    }

    /// Bytes for Z, P and FFR, or V.
    pub const fn file_bytes(self) -> usize {
        const fn of(vq: Option<Vq>) -> usize {
            match vq {
                Some(vq) => Layout::new(vq).image_bytes(),
                None => FPSIMD_BYTES,
            }
        }
        let (plain, streaming) = (of(self.vq), of(self.svq));
        if plain > streaming { plain } else { streaming }
    }

    /// Offset of ZA.
    pub const fn za_offset(self) -> usize {
        self.file_bytes().next_multiple_of(ZA_ALIGN)
    }

    /// Offset of ZT0.
    pub const fn zt0_offset(self) -> usize {
        self.za_offset()
            + match self.svq {
                Some(svq) => za_bytes(svq),
                None => 0,
            }
    }

    /// Bytes of it all.
    pub const fn bytes(self) -> usize {
        match self.svq {
            Some(_) => self.zt0_offset() + ZT0_BYTES,
            None => self.file_bytes(),
        }
    }

    /// Pages of it all.
    pub const fn pages(self) -> usize {
        self.bytes().div_ceil(PAGE_SIZE)
    }
}

const_assert_eq!(Storage::new(None, None).bytes(), FPSIMD_BYTES);
const_assert_eq!(Storage::new(Some(Vq::MAX), None).bytes(), Layout::new(Vq::MAX).image_bytes());
const_assert_eq!(Storage::new(None, Some(Vq::MAX)).bytes(), 8768 + 65536 + 64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap() {
        let lengths = || core::iter::once(None).chain((1..=16).map(Vq::new));
        for vq in lengths() {
            for svq in lengths() {
                let storage = Storage::new(vq, svq);
                for held in [vq, svq].into_iter().flatten() {
                    assert!(Layout::new(held).image_bytes() <= storage.za_offset());
                }
                let Some(svq) = svq else { continue };
                assert!(storage.za_offset().is_multiple_of(ZA_ALIGN));
                assert!(storage.zt0_offset().is_multiple_of(ZA_ALIGN));
                assert_eq!(storage.za_offset() + za_bytes(svq), storage.zt0_offset());
                assert_eq!(storage.zt0_offset() + ZT0_BYTES, storage.bytes());
            }
        }
    }
}
