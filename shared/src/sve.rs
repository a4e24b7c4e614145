//! The one layout of a saved SVE register file.
//!
//! ```text
//! 0              Z0 .. Z31     32 registers of VL bytes
//! 32 * VL        P0 .. P15     16 registers of VL / 8 bytes
//! 34 * VL        FFR           VL / 8 bytes
//! ```
//!
//! Every offset follows from the VL in force when the image was written, never from a constant or
//! from another CPU's VL: an FFR offset taken from elsewhere is the classic way to lose it. Nothing
//! outside this module computes one.
//!
//! FPSR, FPCR, ZCR_EL1 and the like have fixed sizes and live beside an image, not in it.

use crate::{PAGE_SIZE, vl::Vq};
use static_assertions::const_assert_eq;

/// Bytes of V0..V31, the Advanced SIMD register file.
pub const FPSIMD_BYTES: usize = 32 * 16;

/// An image is aligned to this many bytes: what LDR/STR (vector) of a whole register wants.
pub const IMAGE_ALIGN: usize = 16;

/// Where the registers of an image written at a given VL lie. All units are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    vq: Vq,
}

impl Layout {
    /// The layout of an image written with `vq` in force.
    pub const fn new(vq: Vq) -> Self {
        Self { vq }
    }

    /// The VL this layout is for.
    pub const fn vq(self) -> Vq {
        self.vq
    }

    /// Bytes of one Z register.
    pub const fn z_bytes(self) -> usize {
        self.vq.vl_bytes()
    }

    /// Bytes of one predicate register, and of FFR.
    pub const fn p_bytes(self) -> usize {
        self.vq.vl_bytes() / 8
    }

    /// Offset of Zn, n in 0..32.
    pub const fn z(self, n: usize) -> usize {
        assert!(n < 32);
        n * self.z_bytes()
    }

    /// Offset of Pn, n in 0..16.
    pub const fn p(self, n: usize) -> usize {
        assert!(n < 16);
        32 * self.z_bytes() + n * self.p_bytes()
    }

    /// Offset of FFR.
    pub const fn ffr(self) -> usize {
        32 * self.z_bytes() + 16 * self.p_bytes()
    }

    /// Bytes of the whole image: 546 per quadword.
    pub const fn image_bytes(self) -> usize {
        self.ffr() + self.p_bytes()
    }

    /// Pages that hold the image.
    pub const fn pages(self) -> usize {
        self.image_bytes().div_ceil(PAGE_SIZE)
    }
}

const_assert_eq!(Layout::new(Vq::MIN).image_bytes(), 546);
const_assert_eq!(Layout::new(Vq::MAX).image_bytes(), 16 * 546);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps_and_nothing_is_left_between() {
        for vq in (1..=16).filter_map(Vq::new) {
            let l = Layout::new(vq);
            let mut end = 0;
            for n in 0..32 {
                assert_eq!(l.z(n), end);
                end += l.z_bytes();
            }
            for n in 0..16 {
                assert_eq!(l.p(n), end);
                end += l.p_bytes();
            }
            assert_eq!(l.ffr(), end);
            assert_eq!(l.image_bytes(), end + l.p_bytes());
            assert_eq!(l.image_bytes(), 546 * vq.quadwords());
        }
    }
}
