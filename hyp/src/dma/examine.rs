//! What hyp needs of an SMMU, and why it refuses one.

#![forbid(unsafe_code)]

use super::streams::{MAX_STREAM_BITS, SPLIT};
use thiserror::Error;

/// Why an SMMU can't hold devices to what is the host's. The masters behind it are covered by nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("its registers are not at a whole 64 KiB, or overlap memory or another device's")]
    Place,
    #[error("nothing answers at its address")]
    Nobody,
    #[error("it has no stage 2 (SMMU_IDR0.S2P)")]
    NoStage2,
    #[error("it reads no AArch64 tables of 4 KiB pages (SMMU_IDR0.TTF, SMMU_IDR5.GRAN4K)")]
    Tables,
    #[error("it reads tables big-endian only (SMMU_IDR0.TTENDIAN)")]
    BigEndian,
    #[error("what it reads is not coherent with the CPUs' caches (SMMU_IDR0.COHACC)")]
    NotCoherent,
    #[error("transactions that fault wait for software (SMMU_IDR0.STALL_MODEL)")]
    Stalls,
    #[error("its tables or queues are fixed in memory (SMMU_IDR1.TABLES_PRESET, QUEUES_PRESET)")]
    Preset,
    #[error("its address or stream sizes are reserved values (SMMU_IDR1, SMMU_IDR5)")]
    Sizes,
    #[error("its output addresses (SMMU_IDR5.OAS) do not reach all of memory")]
    Reach,
    #[error(
        "its power, clock or reset is the host's (power-domains, clocks, resets, of a bus above as well)"
    )]
    Power,
}

/// The identification registers of an SMMU, as it gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// `SMMU_IDR0`.
    pub idr0: u32,
    /// `SMMU_IDR1`.
    pub idr1: u32,
    /// `SMMU_IDR5`.
    pub idr5: u32,
}

/// An SMMU that hyp can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Streams of which the numbers have so many bits go through the devices' stage 2; all others abort.
    pub stream_bits: u32,
    /// Bits of the addresses that come out of it.
    pub output_bits: u32,
    /// log2 of the commands that its queue may hold.
    pub commands: u32,
    /// log2 of the records that its event queue may hold.
    pub events: u32,
    /// Devices may say that they have translated an address (ATS).
    pub ats: bool,
}

impl Id {
    const fn bits(register: u32, low: u32, width: u32) -> u32 {
        register >> low & ((1 << width) - 1)
    }

    /// What it is good for.
    ///
    /// # Errors
    ///
    /// The first thing that it lacks.
    pub const fn examine(self) -> Result<Facts, Refusal> {
        let Self { idr0, idr1, idr5 } = self;
        if (idr0 == 0 && idr1 == 0) || (idr0 == u32::MAX && idr1 == u32::MAX) {
            return Err(Refusal::Nobody);
        }
        if idr0 & 1 == 0 {
            return Err(Refusal::NoStage2);
        }
        if Self::bits(idr0, 2, 2) & 2 == 0 || Self::bits(idr5, 4, 1) == 0 {
            return Err(Refusal::Tables);
        }
        // 0: either; 2: little-endian; 1 is reserved.
        if Self::bits(idr0, 21, 2) & 1 != 0 {
            return Err(Refusal::BigEndian);
        }
        if Self::bits(idr0, 4, 1) == 0 {
            return Err(Refusal::NotCoherent);
        }
        // 0: an STE says whether they do; 1: they never do; 2: they always do; 3 is reserved.
        if Self::bits(idr0, 24, 2) >= 2 {
            return Err(Refusal::Stalls);
        }
        if Self::bits(idr1, 29, 2) != 0 {
            return Err(Refusal::Preset);
        }
        let output_bits = match Self::bits(idr5, 0, 3) {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            5 => 48,
            6 => 52,
            _ => return Err(Refusal::Sizes),
        };
        let (sid, commands, events) =
            (Self::bits(idr1, 0, 6), Self::bits(idr1, 21, 5), Self::bits(idr1, 16, 5));
        if sid > 32 || commands > 19 || events > 19 {
            return Err(Refusal::Sizes);
        }
        let two_levels = Self::bits(idr0, 27, 2) == 1;
        let most = if two_levels { MAX_STREAM_BITS } else { SPLIT };
        let stream_bits = if sid < most { sid } else { most };
        let ats = Self::bits(idr0, 10, 1) != 0;
        Ok(Facts { stream_bits, output_bits, commands, events, ats })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU 10.0's (`-M virt,iommu=smmuv3`).
    const QEMU: Id = Id { idr0: 0x0d44_101b, idr1: 0x0273_0010, idr5: 0x74 };

    #[test]
    fn qemus_is_good() {
        let facts =
            Facts { stream_bits: 16, output_bits: 44, commands: 19, events: 19, ats: false };
        assert_eq!(QEMU.examine(), Ok(facts));
    }

    #[test]
    fn what_is_missing_is_named() {
        let without0 = |bits: u32| Id { idr0: QEMU.idr0 & !bits, ..QEMU };
        let with0 = |bits: u32| Id { idr0: QEMU.idr0 | bits, ..QEMU };
        let with1 = |bits: u32| Id { idr1: QEMU.idr1 | bits, ..QEMU };
        let refused = [
            (Id { idr0: 0, idr1: 0, idr5: 0 }, Refusal::Nobody),
            (Id { idr0: u32::MAX, idr1: u32::MAX, idr5: u32::MAX }, Refusal::Nobody),
            // QEMU 7.2's, which has stage 1 only.
            (Id { idr0: 0x0d40_101a, ..QEMU }, Refusal::NoStage2),
            (without0(1 << 3), Refusal::Tables),
            (Id { idr5: QEMU.idr5 & !(1 << 4), ..QEMU }, Refusal::Tables),
            (with0(1 << 21), Refusal::BigEndian),
            (Id { idr0: QEMU.idr0 & !(3 << 21) | 1 << 21, ..QEMU }, Refusal::BigEndian),
            (without0(1 << 4), Refusal::NotCoherent),
            (Id { idr0: QEMU.idr0 & !(3 << 24) | 2 << 24, ..QEMU }, Refusal::Stalls),
            (with0(3 << 24), Refusal::Stalls),
            (with1(1 << 29), Refusal::Preset),
            (with1(1 << 30), Refusal::Preset),
            (Id { idr5: QEMU.idr5 | 7, ..QEMU }, Refusal::Sizes),
            (Id { idr1: QEMU.idr1 & !0x3f | 33, ..QEMU }, Refusal::Sizes),
            (with1(31 << 21), Refusal::Sizes),
            (with1(31 << 16), Refusal::Sizes),
        ];
        for (id, why) in refused {
            assert_eq!(id.examine(), Err(why), "{id:x?}");
        }
    }

    #[test]
    fn streams_are_covered_as_far_as_a_table_reaches() {
        let with = |sid: u32, levels: u32| {
            let (idr0, idr1) = (QEMU.idr0 & !(3 << 27) | levels << 27, QEMU.idr1 & !0x3f | sid);
            Id { idr0, idr1, ..QEMU }.examine().unwrap().stream_bits
        };
        assert_eq!([with(0, 1), with(7, 1), with(24, 1), with(32, 1)], [0, 7, 24, MAX_STREAM_BITS]);
        assert_eq!([with(0, 0), with(8, 0), with(9, 0), with(32, 0)], [0, 8, SPLIT, SPLIT]);
    }
}
