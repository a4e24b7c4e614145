//! MIDR_EL1: whose core it is, which one, and which revision.

#![forbid(unsafe_code)]

/// A value of MIDR_EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Midr(u64);

impl Midr {
    /// Implementers (Arm ARM, "MIDR_EL1.Implementer"; Microsoft: Linux, asm/cputype.h).
    pub const ARM: u8 = 0x41;
    /// NVIDIA.
    pub const NVIDIA: u8 = 0x4e;
    /// Qualcomm.
    pub const QUALCOMM: u8 = 0x51;
    /// Microsoft.
    pub const MICROSOFT: u8 = 0x6d;

    /// Of a register's value.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The register's value.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Implementer.
    pub const fn implementer(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Part number.
    pub const fn part(self) -> u16 {
        (self.0 >> 4 & 0xfff) as u16
    }

    /// Variant and revision as one number that grows with both: r1p2 is 0x12.
    pub const fn revision(self) -> u8 {
        (self.0 >> 16 & 0xf0) as u8 | (self.0 & 0xf) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        // Cortex-A72 r0p3, Neoverse N1 r3p1.
        let a72 = Midr::new(0x410f_d083);
        assert_eq!((a72.implementer(), a72.part(), a72.revision()), (Midr::ARM, 0xd08, 0x03));
        let n1 = Midr::new(0x413f_d0c1);
        assert_eq!((n1.implementer(), n1.part(), n1.revision()), (Midr::ARM, 0xd0c, 0x31));
    }
}
