//! The stream table: which stage 2 a device's transactions go through. All streams go through one, so one
//! level-2 table serves for all of them, and one level-1 table for all SMMUs.

#![forbid(unsafe_code)]

use super::block::Block;
use super::registers::{BASE_ALLOCATE, STRTAB_TWO_LEVEL};

/// log2 of the STEs in a level-2 table: one bus of PCI.
pub const SPLIT: u32 = 8;
/// Stream numbers of more bits are not translated: they abort.
pub const MAX_STREAM_BITS: u32 = 24;

/// Doublewords of an STE.
const STE_WORDS: usize = 8;
/// Doublewords of a level-2 table.
pub const LEVEL2_WORDS: usize = STE_WORDS << SPLIT;
/// What a level-2 table is aligned to, its bytes.
pub const LEVEL2_BYTES: usize = 8 * LEVEL2_WORDS;

/// Bytes of a level-1 table for numbers of so many bits, which it is aligned to: eight for each
/// level-2 table.
pub const fn level1_bytes(stream_bits: u32) -> usize {
    8 << stream_bits.saturating_sub(SPLIT)
}

/// A stage 2 as an STE describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStage2 {
    /// Its VMID.
    pub vmid: u16,
    /// Physical address of its root table.
    pub root: u64,
    /// `VTCR_EL2` of a CPU that walked it: T0SZ to PS are what the STE has.
    pub vtcr: u64,
}

impl StreamStage2 {
    /// An STE: valid, stage 2 only, no ATS (`EATS` = 0), no stalls (`S2S` = 0), faults told of, shareability as
    /// the device says.
    pub const fn ste(self) -> [u64; STE_WORDS] {
        const VALID: u64 = 1;
        const STAGE2: u64 = 0b110 << 1;
        const SHCFG_INCOMING: u64 = 1 << 44;
        const S2AA64: u64 = 1 << 51;
        // A walk through what a stage 2 maps as a device faults.
        const S2PTW: u64 = 1 << 54;
        const S2R: u64 = 1 << 58;
        // T0SZ, SL0, IRGN0, ORGN0, SH0, TG0 and PS lie in VTCR_EL2 as they lie here.
        const VTCR_FIELDS: u64 = (1 << 19) - 1;
        let stage2 = self.vmid as u64 | (self.vtcr & VTCR_FIELDS) << 32 | S2AA64 | S2PTW | S2R;
        let root = self.root & 0x000f_ffff_ffff_fff0;
        [VALID | STAGE2, SHCFG_INCOMING, stage2, root, 0, 0, 0, 0]
    }
}

/// The tables in memory.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    level1: Block,
    level2: Block,
}

impl Streams {
    /// Writes them. `level1` and `level2` are aligned to their sizes ([`level1_bytes`], [`LEVEL2_BYTES`]). They
    /// are to be visible to devices before an SMMU is told of them.
    pub fn new(level1: Block, level2: Block, stage2: StreamStage2) -> Self {
        let ste = stage2.ste();
        for n in 0..level2.len() {
            level2.store(n, ste[n % STE_WORDS]);
        }
        for n in 0..level1.len() {
            // Span: 2^(Span - 1) STEs.
            level1.store(n, level2.pa() | (SPLIT + 1) as u64);
        }
        Self { level1, level2 }
    }

    /// `SMMU_STRTAB_BASE` and `SMMU_STRTAB_BASE_CFG` for streams of so many bits.
    pub fn registers(&self, stream_bits: u32) -> (u64, u32) {
        if stream_bits <= SPLIT {
            (self.level2.pa() | BASE_ALLOCATE, stream_bits)
        } else {
            (self.level1.pa() | BASE_ALLOCATE, STRTAB_TWO_LEVEL | SPLIT << 6 | stream_bits)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::sim::leak;

    const STAGE2: StreamStage2 =
        StreamStage2 { vmid: 0x41, root: 0x7654_3000, vtcr: 0x8003_3598 | 4 << 16 };

    #[test]
    fn an_ste_is_stage_2_and_nothing_else() {
        let ste = STAGE2.ste();
        let field = |low: usize, width: usize| ste[low / 64] >> (low % 64) & ((1 << width) - 1);
        assert_eq!(field(0, 1), 1, "V");
        assert_eq!(field(1, 3), 0b110, "Config");
        assert_eq!(field(92, 2), 0, "EATS");
        assert_eq!(field(108, 2), 1, "SHCFG");
        assert_eq!(field(128, 16), 0x41, "S2VMID");
        assert_eq!(field(160, 6), STAGE2.vtcr & 0x3f, "S2T0SZ");
        assert_eq!(field(166, 2), STAGE2.vtcr >> 6 & 3, "S2SL0");
        assert_eq!(field(168, 8), STAGE2.vtcr >> 8 & 0xff, "S2IR0, S2OR0, S2SH0, S2TG");
        assert_eq!(field(176, 3), STAGE2.vtcr >> 16 & 7, "S2PS");
        assert_eq!(field(179, 1), 1, "S2AA64");
        assert_eq!(field(180, 1), 0, "S2ENDI");
        assert_eq!(field(181, 1), 0, "S2AFFD");
        assert_eq!(field(182, 1), 1, "S2PTW");
        assert_eq!(field(183, 2), 0, "S2HD, S2HA");
        assert_eq!(field(185, 2), 0b10, "S2S, S2R");
        assert_eq!(ste[3], STAGE2.root);
        assert_eq!(ste[4..], [0; 4]);
    }

    #[test]
    fn every_stream_finds_the_same() {
        let (level1, level2) = (leak(0x1_0000, 1 << 8), leak(0x2_0000, LEVEL2_WORDS));
        let streams = Streams::new(level1, level2, STAGE2);
        let (base, config) = streams.registers(16);
        assert_eq!((base & !BASE_ALLOCATE, config), (0x1_0000, 1 << 16 | 8 << 6 | 16));
        assert!((0..256).all(|n| level1.load(n) == 0x2_0000 | 9));
        let ste = STAGE2.ste();
        assert!((0..LEVEL2_WORDS).all(|n| level2.load(n) == ste[n % 8]));
        // Few streams: the level-2 table by itself.
        let (base, config) = streams.registers(5);
        assert_eq!((base & !BASE_ALLOCATE, config), (0x2_0000, 5));
    }

    #[test]
    fn a_table_has_a_doubleword_for_each_256_streams() {
        assert_eq!([level1_bytes(0), level1_bytes(8), level1_bytes(9)], [8, 8, 16]);
        assert_eq!([level1_bytes(16), level1_bytes(24)], [2048, 512 << 10]);
    }
}
