//! Registers of the GIC that can name memory, and how wide an access is.
//!
//! Offsets and fields are those of IHI 0069 (12.11 for GICR_*, 12.19 for GITS_*).

#![forbid(unsafe_code)]

/// Bytes of a frame of registers.
pub const FRAME: u64 = 64 << 10;

/// The smallest INTID of an LPI.
pub const FIRST_LPI: u32 = 8192;

/// How wide an access to a register is. Those with 64 bits may be accessed by halves; nothing here takes
/// less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 32 bits.
    Word,
    /// 64 bits.
    Doubleword,
}

impl Width {
    /// Of so many bytes.
    pub const fn of(bytes: u64) -> Option<Self> {
        match bytes {
            4 => Some(Self::Word),
            8 => Some(Self::Doubleword),
            _ => None,
        }
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Word => 4,
            Self::Doubleword => 8,
        }
    }
}

/// A 64-bit register after a store of `value` at `offset`, which may be to a half of it.
pub const fn merge(old: u64, offset: u32, width: Width, value: u64) -> u64 {
    match (width, offset & 4) {
        (Width::Doubleword, _) => value,
        (Width::Word, 0) => old & !0xffff_ffff | value & 0xffff_ffff,
        (Width::Word, _) => old & 0xffff_ffff | value << 32,
    }
}

/// What a load at `offset` finds of a 64-bit register.
pub const fn part(register: u64, offset: u32, width: Width) -> u64 {
    match (width, offset & 4) {
        (Width::Doubleword, _) => register,
        (Width::Word, 0) => register & 0xffff_ffff,
        (Width::Word, _) => register >> 32,
    }
}

/// Inner shareable, Read-allocate Write-allocate write-back: what hyp asks for, where the cacheability is at
/// bit 59 (GITS_*) and where it is at bit 7 (GICR_*).
pub const ITS_NORMAL: u64 = 7 << 59 | 1 << 10;
/// See [`ITS_NORMAL`].
pub const GICR_NORMAL: u64 = 7 << 7 | 1 << 10;
/// Shareability: the same place everywhere.
pub const SHAREABILITY: u64 = 3 << 10;
/// Inner cacheability in GITS_CBASER and GITS_BASER: the field, and Normal non-cacheable.
pub const ITS_CACHEABILITY: u64 = 7 << 59;
/// See [`ITS_CACHEABILITY`].
pub const ITS_NON_CACHEABLE: u64 = 1 << 59;

/// Registers of a redistributor's RD_base frame.
pub mod gicr {
    /// GICR_CTLR.
    pub const CTLR: u32 = 0x0000;
    /// GICR_CTLR.EnableLPIs.
    pub const ENABLE_LPIS: u32 = 1;
    /// GICR_CTLR.RWP: a store to the register is still taking effect.
    pub const RWP: u32 = 1 << 3;
    /// GICR_CTLR.DPG1S, DPG1NS, DPG0.
    pub const DPG: u32 = 7 << 24;
    /// GICR_TYPER.
    pub const TYPER: u32 = 0x0008;
    /// GICR_TYPER.PLPIS: it has LPIs.
    pub const TYPER_PLPIS: u64 = 1;
    /// GICR_TYPER.VLPIS: GICv4, with two more frames.
    pub const TYPER_VLPIS: u64 = 1 << 1;
    /// GICR_TYPER.Last of a region.
    pub const TYPER_LAST: u64 = 1 << 4;
    /// GICR_TYPER.DirectLPI: registers that set, clear and invalidate LPIs.
    pub const TYPER_DIRECT_LPI: u64 = 1 << 3;
    /// GICR_TYPER.RVPEID: GICv4.1.
    pub const TYPER_RVPEID: u64 = 1 << 7;
    /// GICR_CTLR.IR: GICR_INVLPIR and GICR_INVALLR are there.
    pub const INVALIDATE: u32 = 1 << 2;
    /// GICR_IIDR.
    pub const IIDR: u32 = 0x0004;
    /// GICR_SYNCR.
    pub const SYNCR: u32 = 0x00c0;
    /// GICR_STATUSR: what went wrong, written with one to clear.
    pub const STATUSR: u32 = 0x0010;
    /// The bits of GICR_STATUSR.
    pub const STATUSR_BITS: u32 = 0xf;
    /// GICR_WAKER.
    pub const WAKER: u32 = 0x0014;
    /// GICR_WAKER.ProcessorSleep.
    pub const PROCESSOR_SLEEP: u32 = 1 << 1;
    /// GICR_SETLPIR, where LPIs need no ITS.
    pub const SETLPIR: u32 = 0x0040;
    /// GICR_CLRLPIR.
    pub const CLRLPIR: u32 = 0x0048;
    /// GICR_PROPBASER: the LPI configuration table.
    pub const PROPBASER: u32 = 0x0070;
    /// GICR_PROPBASER.Physical_Address.
    pub const PROPBASER_ADDRESS: u64 = 0xf_ffff_ffff_f000;
    /// GICR_PROPBASER: OuterCache, Shareability, InnerCache.
    pub const PROPBASER_ATTRIBUTES: u64 = 7 << 56 | 3 << 10 | 7 << 7;
    /// GICR_PROPBASER.IDbits: bits of an INTID less one.
    pub const PROPBASER_IDBITS: u64 = 0x1f;
    /// GICR_PENDBASER: the LPI pending table.
    pub const PENDBASER: u32 = 0x0078;
    /// GICR_PENDBASER.PTZ: the table is all zero.
    pub const PENDBASER_PTZ: u64 = 1 << 62;
    /// GICR_PENDBASER.Physical_Address.
    pub const PENDBASER_ADDRESS: u64 = 0xf_ffff_ffff_0000;
    /// GICR_INVLPIR.
    pub const INVLPIR: u32 = 0x00a0;
    /// GICR_INVALLR.
    pub const INVALLR: u32 = 0x00b0;
}

/// Registers of an ITS's control frame.
pub mod gits {
    /// GITS_CTLR.
    pub const CTLR: u32 = 0x0000;
    /// GITS_CTLR.Enabled.
    pub const ENABLED: u32 = 1;
    /// GITS_CTLR.Quiescent.
    pub const QUIESCENT: u32 = 1 << 31;
    /// GITS_IIDR.
    pub const IIDR: u32 = 0x0004;
    /// GITS_TYPER.
    pub const TYPER: u32 = 0x0008;
    /// GITS_CBASER: the command queue.
    pub const CBASER: u32 = 0x0080;
    /// GITS_CBASER.Valid and GITS_BASER.Valid.
    pub const VALID: u64 = 1 << 63;
    /// GITS_CBASER.Physical_Address.
    pub const CBASER_ADDRESS: u64 = 0xf_ffff_ffff_f000;
    /// GITS_CBASER: what it has of fields.
    pub const CBASER_FIELDS: u64 = VALID | 7 << 59 | 7 << 53 | CBASER_ADDRESS | 3 << 10 | 0xff;
    /// GITS_CWRITER: behind the last command.
    pub const CWRITER: u32 = 0x0088;
    /// GITS_CWRITER.Retry.
    pub const RETRY: u64 = 1;
    /// GITS_CREADR: the next command.
    pub const CREADR: u32 = 0x0090;
    /// GITS_CREADR.Stalled.
    pub const STALLED: u64 = 1;
    /// The offset in GITS_CWRITER and GITS_CREADR.
    pub const QUEUE_OFFSET: u64 = 0xf_ffe0;
    /// GITS_BASER0; seven more follow.
    pub const BASER: u32 = 0x0100;
    /// How many GITS_BASER there are.
    pub const BASERS: usize = 8;
    /// GITS_BASER.Indirect.
    pub const INDIRECT: u64 = 1 << 62;
    /// GITS_BASER: what software may not choose, Type and Entry_Size.
    pub const BASER_FIXED: u64 = 7 << 56 | 0x1f << 48;
    /// GITS_BASER.Page_Size: 4, 16, 64 KiB.
    pub const PAGE_SIZE: u64 = 3 << 8;
    /// GITS_PIDR2.
    pub const PIDR2: u32 = 0xffe8;
    /// The identification registers: GITS_PIDR4 is the first, GITS_CIDR3 the last.
    pub const IDENTIFICATION: core::ops::RangeInclusive<u32> = 0xffd0..=0xfffc;

    /// GITS_BASER.Type.
    pub const fn table(baser: u64) -> u64 {
        baser >> 56 & 7
    }

    /// The table of devices.
    pub const DEVICES: u64 = 1;
    /// The table of virtual PEs.
    pub const VIRTUAL_PES: u64 = 2;
    /// The table of collections.
    pub const COLLECTIONS: u64 = 4;

    /// Bytes of an entry.
    pub const fn entry_bytes(baser: u64) -> u64 {
        (baser >> 48 & 0x1f) + 1
    }

    /// Bytes of a page of a table. What is reserved counts as 64 KiB (IHI 0069, GITS_BASER).
    pub const fn page_bytes(baser: u64) -> u64 {
        match baser >> 8 & 3 {
            0 => 4 << 10,
            1 => 16 << 10,
            _ => 64 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_make_a_whole() {
        let old = 0x1111_2222_3333_4444;
        assert_eq!(merge(old, 0x70, Width::Doubleword, 5), 5);
        assert_eq!(merge(old, 0x70, Width::Word, 0xffff_ffff_0000_0005), 0x1111_2222_0000_0005);
        assert_eq!(merge(old, 0x74, Width::Word, 0xffff_ffff_0000_0005), 0x0000_0005_3333_4444);
        assert_eq!(part(old, 0x70, Width::Doubleword), old);
        assert_eq!(part(old, 0x70, Width::Word), 0x3333_4444);
        assert_eq!(part(old, 0x74, Width::Word), 0x1111_2222);
        for bytes in 0..32 {
            assert_eq!(Width::of(bytes).map_or(bytes, Width::bytes), bytes);
            assert_eq!(Width::of(bytes).is_some(), bytes == 4 || bytes == 8);
        }
    }

    #[test]
    fn fields_of_a_table() {
        let baser = 4 << 56 | 7 << 48 | 2 << 8;
        assert_eq!((gits::table(baser), gits::entry_bytes(baser)), (gits::COLLECTIONS, 8));
        assert_eq!(gits::page_bytes(baser), 64 << 10);
        assert_eq!([0, 1, 3].map(|n| gits::page_bytes(n << 8)), [4 << 10, 16 << 10, 64 << 10]);
        // No field is in two masks.
        assert_eq!(gits::BASER_FIXED & (gits::VALID | gits::INDIRECT | gits::PAGE_SIZE), 0);
        assert_eq!(gicr::PROPBASER_ADDRESS & gicr::PROPBASER_ATTRIBUTES, 0);
    }
}
