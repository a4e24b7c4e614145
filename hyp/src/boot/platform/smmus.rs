//! SMMUv3s in the tree.

use super::bus::{Path, each_device};
use super::tree::{PlatformError, overlaps};
use crate::boot::range_set::Range;
use crate::dma::examine::{Facts, Refusal};
use crate::dma::registers::{FRAME_ALIGN, FRAME_BYTES};
use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use dtoolkit::standard::NodeStandard;

/// SMMUs that hyp drives: those that the tree has first.
pub use crate::dma::all::MAX_SMMUS;

/// The binding's name (Linux, bindings/iommu/arm,smmu-v3.yaml).
pub const COMPATIBLE: &str = "arm,smmu-v3";

/// Event counters of an SMMU: they send message-signalled interrupts to an address of their programmer's choice
/// (`SMMU_PMCG_IRQ_CFG0`, IHI 0070 10.4).
pub const COUNTERS: &str = "arm,smmu-v3-pmcg";

/// An SMMU as the tree has it.
#[derive(Clone, Debug)]
pub struct SmmuNode {
    /// Its path.
    pub path: Path,
    /// What masters name it by.
    pub phandle: Option<u32>,
    /// Physical address of its registers.
    pub base: u64,
    /// What it is good for, once it was looked at; till then, whether there is a reason not to.
    pub facts: Result<Facts, Refusal>,
}

/// All of them.
pub type SmmuNodes = ArrayVec<SmmuNode, MAX_SMMUS>;

/// What hyp knows before it has looked: enough to look.
const UNKNOWN: Facts = Facts { stream_bits: 0, output_bits: 0, commands: 0, events: 0, ats: false };

/// The SMMUs that are there, as many as there is room for.
///
/// # Errors
///
/// [`PlatformError::BadTree`].
pub fn read(fdt: &Fdt<'_>, banks: &[Range]) -> Result<SmmuNodes, PlatformError> {
    let mut all = SmmuNodes::new();
    each_device(fdt, &mut |device| {
        let node = device.node;
        if !device.is_there || !node.is_compatible(COMPATIBLE) {
            return Ok(());
        }
        let mut first = None;
        device.each_range(|range| {
            first.get_or_insert(range);
            Ok(())
        })?;
        let frame = first.map(|(start, end)| (start, end.min(start.saturating_add(FRAME_BYTES))));
        let fits = frame.is_some_and(|(start, end)| {
            start % FRAME_ALIGN == 0
                && end - start == FRAME_BYTES
                && !banks.iter().any(|bank| overlaps(*bank, (start, end)))
        });
        let facts = if !fits {
            Err(Refusal::Place)
        } else if device.power_is_the_hosts() {
            Err(Refusal::Power)
        } else {
            Ok(UNKNOWN)
        };
        let phandle = node.phandle().map_err(|_| PlatformError::BadTree)?;
        let base = frame.map_or(0, |frame| frame.0);
        let smmu = SmmuNode { path: *device.path, phandle, base, facts };
        // One that there is no room for is not hyp's.
        let _ = all.try_push(smmu);
        Ok(())
    })?;
    // Nor is it something else's. (Event counters lie among an SMMU's registers.)
    each_device(fdt, &mut |device| {
        let node = device.node;
        if !device.is_there || [COMPATIBLE, COUNTERS].iter().any(|it| node.is_compatible(it)) {
            return Ok(());
        }
        device.each_range(|range| {
            for smmu in all.iter_mut().filter(|smmu| smmu.facts.is_ok()) {
                if overlaps(range, (smmu.base, smmu.base + FRAME_BYTES)) {
                    smmu.facts = Err(Refusal::Place);
                }
            }
            Ok(())
        })
    })?;
    // One frame can't be two, and one name can't be two's.
    for n in 0..all.len() {
        let (base, phandle) = (all[n].base, all[n].phandle);
        let again = all.iter().enumerate().any(|(other, smmu)| {
            let near = smmu.base.abs_diff(base) < FRAME_BYTES;
            other != n && (near || (phandle.is_some() && smmu.phandle == phandle))
        });
        if again && all[n].facts.is_ok() {
            all[n].facts = Err(Refusal::Place);
        }
    }
    Ok(all)
}
