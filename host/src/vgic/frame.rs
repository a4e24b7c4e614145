//! Frames: where a guest finds the registers, and its accesses to them.

use super::{
    Events, Vgic,
    registers::{DISTRIBUTOR_BYTES, REDISTRIBUTOR_BYTES, Width},
};
use umbra_shared::exit::MmioAccess;

/// Whose registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The distributor's.
    Distributor,
    /// Those of this vCPU's redistributor.
    Redistributor(usize),
}

impl Frame {
    /// The frame that an address lies in, and where in it. `redistributors`: where runs of them begin, and how many are
    /// in each; they are the vCPUs' in their order.
    pub fn at(
        address: u64,
        distributor: Option<u64>,
        redistributors: impl IntoIterator<Item = (u64, usize)>,
    ) -> Option<(Self, u64)> {
        let inside = |base: u64, bytes: u64| address.checked_sub(base).filter(|&at| at < bytes);
        if let Some(at) = distributor.and_then(|base| inside(base, DISTRIBUTOR_BYTES.into())) {
            return Some((Self::Distributor, at));
        }
        let bytes = u64::from(REDISTRIBUTOR_BYTES);
        let mut first = 0;
        for (base, count) in redistributors {
            if let Some(at) = inside(base, bytes * count as u64) {
                return Some((Self::Redistributor(first + (at / bytes) as usize), at % bytes));
            }
            first += count;
        }
        None
    }
}

impl Vgic<'_> {
    /// A guest's access to a frame: what it loads, or zero for a store. `None`: registers are of 1, 2, 4 or 8 bytes.
    pub fn access(
        &self,
        frame: Frame,
        offset: u64,
        access: MmioAccess,
        data: u64,
        events: &mut impl Events,
    ) -> Option<u64> {
        let width = Width::from_bytes(access.bytes.into())?;
        Some(match (frame, access.write) {
            (Frame::Distributor, true) => {
                self.write_distributor(offset, width, data, events);
                0
            }
            (Frame::Distributor, false) => self.read_distributor(offset, width),
            (Frame::Redistributor(vcpu), true) => {
                self.write_redistributor(vcpu, offset, width, data, events);
                0
            }
            (Frame::Redistributor(vcpu), false) => self.read_redistributor(vcpu, offset, width),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_where_they_were_put() {
        const GICD: u64 = 0x800_0000;
        let regions = [(0xa00_0000, 2), (0x900_0000, 1)];
        let at = |address| Frame::at(address, Some(GICD), regions);
        for (address, found) in [
            (GICD - 1, None),
            (GICD, Some((Frame::Distributor, 0))),
            (GICD + 0xffff, Some((Frame::Distributor, 0xffff))),
            (GICD + 0x1_0000, None),
            (0x9ff_ffff, None),
            (0xa00_0000, Some((Frame::Redistributor(0), 0))),
            (0xa01_ffff, Some((Frame::Redistributor(0), 0x1_ffff))),
            (0xa02_0008, Some((Frame::Redistributor(1), 8))),
            (0xa04_0000, None),
            // In the order of the runs, not of their addresses.
            (0x900_0004, Some((Frame::Redistributor(2), 4))),
            (0x902_0000, None),
            (u64::MAX, None),
        ] {
            assert_eq!(at(address), found, "{address:#x}");
        }
        assert_eq!(Frame::at(GICD, None, regions), None);
    }
}
