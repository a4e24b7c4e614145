//! What the host has: RAM but for hyp's, and the devices that it may have; and its stage 2, made of that.

#![forbid(unsafe_code)]

use crate::arch::Lock;
use crate::arch::fatal::refuse;
use crate::boot::early::BLOCK;
use crate::boot::platform::Range;
use crate::boot::platform::masters::DeviceRanges;
use crate::boot::ranges::{Pieces, without};
use crate::irq::{
    self,
    frames::{Described, MAX_REDISTRIBUTORS},
};
use crate::memory::frames::{FrameList, Tables};
use crate::memory::hw;
use crate::memory::pages::MAX_BANKS;
use crate::memory::stage2::Stage2;
use crate::memory::tables::{Stage2Shape, Stage2Tables};
use arrayvec::ArrayVec;

/// Tables of the host's stage 2.
pub static HOST_TABLES: Lock<FrameList> = Lock::new(FrameList::new());

/// What the host may have beside RAM.
pub static HOST_DEVICES: Lock<DeviceRanges> = Lock::new(DeviceRanges::new());

/// Tables that a page-by-page mapping of all banks can take, with `fixed` for what is beside RAM.
pub fn worst_case_tables(banks: &[Range], fixed: usize) -> usize {
    let spanned = |shift: u32| -> usize {
        banks.iter().map(|(start, end)| ((end - start) >> shift) as usize + 2).sum()
    };
    spanned(21) + spanned(30) + spanned(39) + fixed
}

/// Tables that the host's stage 2 can take.
pub fn host_tables(banks: &[Range], gic: &Described) -> usize {
    worst_case_tables(banks, 4 + device_tables() + gic_tables(gic))
}

/// Tables that the host's devices can take in its stage 2.
fn device_tables() -> usize {
    // A range is cut at both ends: into pages of one block, blocks of one GiB, GiB of one table. Many
    // ranges share a table.
    let ranges = HOST_DEVICES.lock();
    [21, 30, 39]
        .iter()
        .map(|shift| {
            let mut last = None;
            let ends = ranges.pieces().iter().flat_map(|range| [range.0, range.1 - 1]);
            ends.map(|end| end >> shift).filter(|&part| last.replace(part) != Some(part)).count()
        })
        .sum()
}

/// Tables of the host's stage 2 that the GIC's registers cut: their ends, and where redistributors are far apart one
/// for each.
fn gic_tables(gic: &Described) -> usize {
    let regions = gic.redistributors.iter();
    let spans = regions.map(|(start, end)| ((end - start) / BLOCK) as usize + 2);
    let cut = spans.map(|blocks| blocks.min(MAX_REDISTRIBUTORS + 2) + 6).sum::<usize>();
    cut + 6 * gic.its.len()
}

/// What of physical memory is RAM, and what of that hyp has.
#[derive(Clone, Debug)]
pub struct HostMemory {
    /// RAM.
    pub banks: ArrayVec<Range, MAX_BANKS>,
    /// Hyp's.
    pub hyp: [Range; 2],
}

impl HostMemory {
    /// The host's RAM.
    pub fn ram(&self) -> Pieces {
        let Some(pieces) = without(&self.banks, &self.hyp) else {
            refuse(format_args!("memory is in too many pieces"))
        };
        pieces
    }
}

/// Makes the host's stage 2 of this shape, in the place of the empty one. Returns its VTTBR_EL2.
pub fn make_host_stage2(host: &HostMemory, shape: Stage2Shape) -> u64 {
    let stage2 = host_stage2(host, shape);
    let vttbr = stage2.vttbr().bits();
    hw::with(|memory| memory.host = stage2);
    vttbr
}

fn host_stage2(host: &HostMemory, shape: Stage2Shape) -> Stage2<Stage2Tables> {
    let mut stage2 = Stage2Tables::new(Tables(&HOST_TABLES), shape);
    let limit = 1 << shape.ipa_bits;
    if host.banks.iter().any(|bank| bank.1 > limit) {
        refuse(format_args!("memory above {} bits of address", shape.ipa_bits));
    }
    for (start, end) in host.ram() {
        stage2.map_identity_ram(start, end);
    }
    // What the host's addresses don't reach it does without.
    for &(start, end) in HOST_DEVICES.lock().pieces() {
        map_around_gic(&mut stage2, (start.min(limit), end.min(limit)));
    }
    stage2.with_vmid(0)
}

/// Devices, but for the GIC's registers that come to hyp.
fn map_around_gic(stage2: &mut Stage2Tables, (mut from, end): Range) {
    irq::hw::for_each_frame(|frame| {
        if frame.start < end && frame.end > from {
            let (start, behind) = (frame.start.max(from), frame.end.min(end));
            stage2.map_identity_device(from, start);
            from = behind;
        }
    });
    stage2.map_identity_device(from, end);
}
