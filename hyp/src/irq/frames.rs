//! Where the GIC's registers are, and what the host may do there.

#![forbid(unsafe_code)]

use super::registers::FRAME;
use crate::arch::MAX_CPUS;
use arrayvec::ArrayVec;

/// A range of physical addresses, start inclusive, end exclusive.
pub type Range = (u64, u64);

/// Regions of redistributors in a device tree.
pub const MAX_REGIONS: usize = 16;
/// ITSs that hyp serves. Those beyond are the host's as little as these are.
pub const MAX_ITS: usize = 8;
/// ITSs in a device tree.
pub const MAX_ITS_NODES: usize = 32;
/// Redistributors.
pub const MAX_REDISTRIBUTORS: usize = MAX_CPUS;

/// What a device tree says of the GIC. Ranges are whole frames, apart from each other and from RAM.
#[derive(Clone, Debug, Default)]
pub struct Described {
    /// The distributor.
    pub distributor: Range,
    /// Regions of redistributors.
    pub redistributors: ArrayVec<Range, MAX_REGIONS>,
    /// Bytes from one redistributor to the next, where the tree says so.
    pub stride: Option<u64>,
    /// The registers of each ITS.
    pub its: ArrayVec<Range, MAX_ITS_NODES>,
}

/// What a range of registers is to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The RD_base frame of a redistributor: all accesses come to hyp.
    Redistributor(usize),
    /// Nothing: zero to loads, stores are ignored. VLPI frames, and an ITS that hyp can't serve.
    Silent,
    /// The control frame of an ITS: all accesses come to hyp.
    Its(usize),
    /// GITS_TRANSLATER, which is for devices: an abort.
    Doorbell,
}

/// A range of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its first byte.
    pub start: u64,
    /// The byte behind its last.
    pub end: u64,
    /// What it is.
    pub kind: Kind,
}

/// Frames at most: two of each redistributor, what a region has beyond, two of each ITS.
pub const MAX_FRAMES: usize = 2 * MAX_REDISTRIBUTORS + 2 * MAX_ITS_NODES;

/// All that is not simply the host's, in the order of addresses.
#[derive(Debug)]
pub struct Frames(ArrayVec<Frame, MAX_FRAMES>);

/// Two frames lie over each other, or there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misplaced;

impl Frames {
    /// None.
    pub const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Adds one. An empty one is none.
    ///
    /// # Errors
    ///
    /// If it overlaps one that is there, or there are too many.
    pub fn add(&mut self, start: u64, end: u64, kind: Kind) -> Result<(), Misplaced> {
        if start >= end {
            return Ok(());
        }
        let at = self.0.iter().take_while(|frame| frame.start < start).count();
        let before = at.checked_sub(1).is_none_or(|n| self.0[n].end <= start);
        let behind = self.0.get(at).is_none_or(|frame| end <= frame.start);
        if !before || !behind {
            return Err(Misplaced);
        }
        self.0.try_insert(at, Frame { start, end, kind }).map_err(|_| Misplaced)
    }

    /// An ITS's, of which `served` is its number if hyp serves it.
    ///
    /// # Errors
    ///
    /// As [`Self::add`].
    pub fn add_its(&mut self, (start, end): Range, served: Option<usize>) -> Result<(), Misplaced> {
        let control = end.min(start + FRAME);
        self.add(start, control, served.map_or(Kind::Silent, Kind::Its))?;
        self.add(control, end, Kind::Doorbell)
    }

    /// The frame at an address.
    pub fn find(&self, pa: u64) -> Option<Frame> {
        let behind = self.0.partition_point(|frame| frame.start <= pa);
        let frame = *self.0.get(behind.checked_sub(1)?)?;
        (pa < frame.end).then_some(frame)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = Frame> + '_ {
        self.0.iter().copied()
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_one_frame_or_in_none() {
        let mut frames = Frames::default();
        frames.add(0x8_0000, 0x9_0000, Kind::Redistributor(1)).unwrap();
        frames.add_its((0x2_0000, 0x4_0000), Some(0)).unwrap();
        frames.add(0x5_0000, 0x6_0000, Kind::Silent).unwrap();
        frames.add(0x7_0000, 0x7_0000, Kind::Silent).unwrap();
        for (start, end) in
            [(0, 0x2_1000), (0x3_ffff, 0x4_0000), (0x5_0000, 0x6_0000), (0, 0xf_0000)]
        {
            assert_eq!(frames.add(start, end, Kind::Silent), Err(Misplaced), "{start:#x}");
        }
        let kind = |pa| frames.find(pa).map(|frame| frame.kind);
        assert_eq!(kind(0x1_ffff), None);
        assert_eq!(kind(0x2_0000), Some(Kind::Its(0)));
        assert_eq!(kind(0x3_0040), Some(Kind::Doorbell));
        assert_eq!(kind(0x4_0000), None);
        assert_eq!(kind(0x5_ffff), Some(Kind::Silent));
        assert_eq!(kind(0x8_fff8), Some(Kind::Redistributor(1)));
        assert_eq!((kind(0), kind(u64::MAX)), (None, None));
        assert!(frames.iter().zip(frames.iter().skip(1)).all(|(a, b)| a.end <= b.start));
    }

    #[test]
    fn an_its_that_is_not_served_is_nothing() {
        let mut frames = Frames::new();
        frames.add_its((0x2_0000, 0x6_0000), None).unwrap();
        frames.add_its((0x8_0000, 0x9_0000), Some(3)).unwrap();
        let kinds: Vec<_> = frames.iter().map(|frame| frame.kind).collect();
        assert_eq!(kinds, [Kind::Silent, Kind::Doorbell, Kind::Its(3)]);
    }
}
