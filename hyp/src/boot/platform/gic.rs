//! The GIC in the device tree: where the registers are that can make it read and write memory.
//!
//! Bindings: arm,gic-v3 (Linux, bindings/interrupt-controller/arm,gic-v3.yaml). An ITS counts whether it is disabled or
//! not: its registers are there. One where no device can be is refused.

use super::bus::each_device;
use super::tree::{self, PlatformError, is_okay, overlaps};
use crate::boot::range_set::Range;
use crate::irq::frames::Described;
use crate::irq::registers::FRAME;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// Registers of the GIC's, whole frames all of them.
fn frames(range: Option<Range>) -> Result<Range, PlatformError> {
    let whole = |range: &Range| {
        range.0.is_multiple_of(FRAME) && range.1.is_multiple_of(FRAME) && range.0 < range.1
    };
    range.filter(whole).ok_or(PlatformError::BadGic)
}

/// A number of one cell or two; `None`: there is none.
fn number(node: &FdtNode<'_>, name: &str) -> Result<Option<u64>, PlatformError> {
    let Some(property) = node.property(name) else { return Ok(None) };
    tree::number(property.value()).map(Some).ok_or(PlatformError::BadGic)
}

fn is_gic(node: &FdtNode<'_>) -> bool {
    node.is_compatible("arm,gic-v3") && is_okay(node)
}

fn is_its(node: &FdtNode<'_>) -> bool {
    node.is_compatible("arm,gic-v3-its")
}

/// Parts of a GIC below a node and in it, whatever it is.
fn parts(node: FdtNode<'_>) -> usize {
    usize::from(is_gic(&node) || is_its(&node)) + node.children().map(parts).sum::<usize>()
}

/// Reads it. None of it may be in `banks`.
pub(super) fn read(fdt: &Fdt<'_>, banks: &[Range]) -> Result<Described, PlatformError> {
    let mut gic = Described::default();
    let mut found = false;
    each_device(fdt, &mut |device| {
        let node = device.node;
        if is_gic(&node) {
            found = true;
            let regions = number(&node, "#redistributor-regions")?.unwrap_or(1);
            gic.stride = number(&node, "redistributor-stride")?;
            // The distributor's, the redistributors' regions, and what is nothing to us.
            let mut n = 0;
            device.each_register(|range| {
                if n == 0 {
                    gic.distributor = frames(range)?;
                } else if n <= regions {
                    let full = gic.redistributors.try_push(frames(range)?);
                    full.map_err(|_| PlatformError::BadGic)?;
                }
                n += 1;
                Ok(())
            })?;
            if n <= regions {
                return Err(PlatformError::BadGic);
            }
        }
        Ok(())
    })?;
    if !found {
        return Err(PlatformError::NoGic);
    }
    each_device(fdt, &mut |device| {
        if is_its(&device.node) {
            let mut first = None;
            device.each_register(|range| {
                first.get_or_insert(range);
                Ok(())
            })?;
            let range = frames(first.flatten())?;
            // A control frame and GITS_TRANSLATER's.
            if range.1 - range.0 < 2 * FRAME {
                return Err(PlatformError::BadGic);
            }
            gic.its.try_push(range).map_err(|_| PlatformError::BadGic)?;
        }
        Ok(())
    })?;
    // A second one would be a master that nobody looks after, and so is one where no device can be.
    if parts(fdt.root()) != 1 + gic.its.len() {
        return Err(PlatformError::BadGic);
    }
    let odd = |stride: u64| !stride.is_multiple_of(FRAME) || stride < 2 * FRAME;
    if gic.redistributors.is_empty() || gic.stride.is_some_and(odd) {
        return Err(PlatformError::BadGic);
    }
    let all = || {
        let rest = gic.redistributors.iter().chain(&gic.its);
        [gic.distributor].into_iter().chain(rest.copied())
    };
    for (n, range) in all().enumerate() {
        if all().take(n).any(|other| overlaps(range, other)) {
            return Err(PlatformError::BadGic);
        }
        if banks.iter().any(|bank| overlaps(range, *bank)) {
            return Err(PlatformError::GicInMemory);
        }
    }
    Ok(gic)
}
