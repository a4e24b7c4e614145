//! The GIC in the device tree: where the registers are that can make it read and write memory.
//!
//! Bindings: arm,gic-v3 (Linux, bindings/interrupt-controller/arm,gic-v3.yaml). An ITS is looked for wherever it
//! may be, and counts whether it is disabled or not: its registers are there.

use super::{PlatformError, Range, overlaps};
use crate::irq::frames::Described;
use crate::irq::registers::FRAME;
use dtoolkit::fdt::FdtNode;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// A bus and the buses above it.
struct Bus<'a, 'b> {
    node: FdtNode<'a>,
    above: Option<&'b Bus<'a, 'b>>,
}

/// What a bus makes of a range of its children's: one to one, unless it says otherwise.
fn translate(bus: Option<&Bus<'_, '_>>, (start, end): Range) -> Result<Range, PlatformError> {
    let Some(bus) = bus else { return Ok((start, end)) };
    let mut ranges = match bus.node.ranges().map_err(|_| PlatformError::BadTree)? {
        Some(ranges) => ranges.peekable(),
        None => return translate(bus.above, (start, end)),
    };
    if ranges.peek().is_none() {
        return translate(bus.above, (start, end));
    }
    for range in ranges {
        let child = range.child_bus_address::<u64>().map_err(|_| PlatformError::BadTree)?;
        let parent = range.parent_bus_address::<u64>().map_err(|_| PlatformError::BadTree)?;
        let length = range.length::<u64>().map_err(|_| PlatformError::BadTree)?;
        if start >= child && end - child <= length {
            let moved = |at: u64| parent.checked_add(at - child).ok_or(PlatformError::BadTree);
            return translate(bus.above, (moved(start)?, moved(end)?));
        }
    }
    Err(PlatformError::BadGic)
}

/// Every node below one, with the buses above it.
fn each<'a>(
    parent: FdtNode<'a>,
    bus: Option<&Bus<'a, '_>>,
    f: &mut impl FnMut(FdtNode<'a>, Option<&Bus<'a, '_>>) -> Result<(), PlatformError>,
) -> Result<(), PlatformError> {
    for node in parent.children() {
        f(node, bus)?;
        each(node, Some(&Bus { node, above: bus }), f)?;
    }
    Ok(())
}

/// The registers of a node, whole frames all of them.
fn registers<'a>(
    node: FdtNode<'a>,
    bus: Option<&Bus<'a, '_>>,
) -> Result<impl Iterator<Item = Result<Range, PlatformError>>, PlatformError> {
    Ok(super::ranges(node)?.map(move |range| {
        let (start, end) = translate(bus, range?)?;
        let whole = start.is_multiple_of(FRAME) && end.is_multiple_of(FRAME) && start < end;
        if whole { Ok((start, end)) } else { Err(PlatformError::BadGic) }
    }))
}

/// A number of one cell or two; `None`: there is none.
fn number(node: &FdtNode<'_>, name: &str) -> Result<Option<u64>, PlatformError> {
    let Some(property) = node.property(name) else { return Ok(None) };
    match property.value() {
        [a, b, c, d] => Ok(Some(u32::from_be_bytes([*a, *b, *c, *d]).into())),
        bytes => {
            let bytes = bytes.try_into().map_err(|_| PlatformError::BadGic)?;
            Ok(Some(u64::from_be_bytes(bytes)))
        }
    }
}

/// Reads it. None of it may be in `banks`.
pub(super) fn read(root: FdtNode<'_>, banks: &[Range]) -> Result<Described, PlatformError> {
    let mut gic = Described::default();
    let mut found = false;
    each(root, None, &mut |node, bus| {
        if node.is_compatible("arm,gic-v3") && super::is_okay(&node) {
            // A second one would be a master that nobody looks after.
            if found {
                return Err(PlatformError::BadGic);
            }
            found = true;
            let regions = number(&node, "#redistributor-regions")?.unwrap_or(1);
            gic.stride = number(&node, "redistributor-stride")?;
            let mut all = registers(node, bus)?;
            gic.distributor = all.next().ok_or(PlatformError::BadGic)??;
            for _ in 0..regions {
                let region = all.next().ok_or(PlatformError::BadGic)??;
                gic.redistributors.try_push(region).map_err(|_| PlatformError::BadGic)?;
            }
        }
        Ok(())
    })?;
    if !found {
        return Err(PlatformError::NoGic);
    }
    each(root, None, &mut |node, bus| {
        if node.is_compatible("arm,gic-v3-its") {
            let range = registers(node, bus)?.next().ok_or(PlatformError::BadGic)??;
            // A control frame and GITS_TRANSLATER's.
            if range.1 - range.0 < 2 * FRAME {
                return Err(PlatformError::BadGic);
            }
            gic.its.try_push(range).map_err(|_| PlatformError::BadGic)?;
        }
        Ok(())
    })?;
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
