//! Devices in the tree, and where CPUs find their registers: through the `ranges` of every bus above (Devicetree
//! Specification, 2.3.8).

use super::tree::{PlatformError, is_okay, ranges};
use crate::boot::range_set::{Range, RangeSet};
use arrayvec::ArrayString;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use umbra_shared::PAGE_SIZE;

/// A node's path.
pub type Path = ArrayString<256>;

/// Nodes above one that is looked at: deeper trees are refused, as their reader is a function that calls
/// itself.
const MAX_DEPTH: u32 = 16;

/// A node that is not about the machine as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a, 'b> {
    /// The node.
    pub node: FdtNode<'a>,
    /// Its path.
    pub path: &'b Path,
    /// Neither it nor a bus above is disabled.
    pub is_there: bool,
    bus: Option<&'b Bus<'a, 'b>>,
}

/// What lies between a device and the CPUs.
#[derive(Debug)]
struct Bus<'a, 'b> {
    node: FdtNode<'a>,
    above: Option<&'b Bus<'a, 'b>>,
}

/// An address space that the CPUs don't see, or a range that lies in it only in part.
struct NotMapped;

impl Bus<'_, '_> {
    /// A range of this bus's as CPUs address it.
    fn translate(&self, range: Range) -> Result<Range, NotMapped> {
        let mut entries = self.node.ranges().map_err(|_| NotMapped)?.ok_or(NotMapped)?;
        let empty = self.node.property("ranges").is_some_and(|p| p.value().is_empty());
        let up = if empty {
            range
        } else {
            let start = entries.find_map(|entry| {
                let child = entry.child_bus_address::<u64>().ok()?;
                let parent = entry.parent_bus_address::<u64>().ok()?;
                let length = entry.length::<u64>().ok()?;
                let offset = range.0.checked_sub(child)?;
                let fits = range.1.checked_sub(child)? <= length;
                fits.then(|| parent.checked_add(offset))
            });
            let start = start.flatten().ok_or(NotMapped)?;
            (start, start.checked_add(range.1 - range.0).ok_or(NotMapped)?)
        };
        above(self.above, up)
    }
}

/// A range as CPUs address it that lies below these buses.
fn above(bus: Option<&Bus<'_, '_>>, range: Range) -> Result<Range, NotMapped> {
    match bus {
        None => Ok(range),
        Some(bus) => bus.translate(range),
    }
}

/// Whether a node is a PCI host bridge: what is below it is not addressed as other devices are.
fn is_pci(node: &FdtNode<'_>) -> bool {
    node.property("device_type").is_some_and(|kind| kind.value() == b"pci\0")
}

impl Device<'_, '_> {
    /// Where CPUs find its registers, entry by entry of its `reg`; `None`: no CPU can address that one. Below a bus
    /// without `ranges` `reg` is a number of another kind, with sizes of no cells: there are none.
    ///
    /// # Errors
    ///
    /// [`PlatformError::BadTree`]; what `f` says.
    pub fn each_register(
        &self,
        mut f: impl FnMut(Option<Range>) -> Result<(), PlatformError>,
    ) -> Result<(), PlatformError> {
        if self.bus.is_none_or(|bus| bus.node.property("ranges").is_some()) {
            for range in ranges(self.node)? {
                f(above(self.bus, range?).ok())?;
            }
        }
        Ok(())
    }

    /// Where CPUs find its registers, and what else they reach through it (the windows of a PCI host bridge):
    /// whole pages. What no CPU can address is left out.
    ///
    /// # Errors
    ///
    /// [`PlatformError::BadTree`]; what `f` says.
    pub fn each_range(
        &self,
        mut f: impl FnMut(Range) -> Result<(), PlatformError>,
    ) -> Result<(), PlatformError> {
        let mut tell = |range: Option<Range>| match range {
            Some(range) => f(pages_around(range)?),
            None => Ok(()),
        };
        self.each_register(&mut tell)?;
        if is_pci(&self.node) {
            let windows = self.node.ranges().map_err(|_| PlatformError::BadTree)?;
            for window in windows.into_iter().flatten() {
                let start =
                    window.parent_bus_address::<u64>().map_err(|_| PlatformError::BadTree)?;
                let length = window.length::<u64>().map_err(|_| PlatformError::BadTree)?;
                let end = start.checked_add(length).ok_or(PlatformError::BadTree)?;
                tell(above(self.bus, (start, end)).ok())?;
            }
        }
        Ok(())
    }

    /// Whether CPUs find any registers of it.
    ///
    /// # Errors
    ///
    /// [`PlatformError::BadTree`].
    pub fn has_registers(&self) -> Result<bool, PlatformError> {
        let mut any = false;
        self.each_range(|range| {
            any |= range.0 < range.1;
            Ok(())
        })?;
        Ok(any)
    }

    /// Whether the host turns off what it runs on, its own or a bus's above: power, clock or reset.
    pub fn power_is_the_hosts(&self) -> bool {
        let has = |node: &FdtNode<'_>| {
            ["power-domains", "clocks", "resets"]
                .iter()
                .any(|name| node.property(name).is_some_and(|p| !p.value().is_empty()))
        };
        let mut bus = self.bus;
        let mut any = has(&self.node);
        while let Some(above) = bus {
            any |= has(&above.node);
            bus = above.above;
        }
        any
    }

    /// Adds its registers to a set.
    ///
    /// # Errors
    ///
    /// [`PlatformError::BadTree`]; `full`.
    pub fn add_to<const N: usize>(
        &self,
        set: &mut RangeSet<N>,
        full: PlatformError,
    ) -> Result<(), PlatformError> {
        self.each_range(|range| set.insert(range).map_err(|_| full))
    }
}

/// The pages that a range touches.
fn pages_around((start, end): Range) -> Result<Range, PlatformError> {
    let page = PAGE_SIZE as u64;
    let end = end.checked_next_multiple_of(page).ok_or(PlatformError::BadTree)?;
    Ok((start / page * page, end))
}

/// Does something with what the tree reserves, and with what /chosen names (a frame buffer): whole pages, wherever they
/// are.
///
/// # Errors
///
/// [`PlatformError::BadTree`]; what `f` says.
pub fn each_memory(
    fdt: &Fdt<'_>,
    f: &mut impl FnMut(Range) -> Result<(), PlatformError>,
) -> Result<(), PlatformError> {
    const PARENTS: [&str; 2] = ["reserved-memory", "chosen"];
    let parents =
        fdt.root().children().filter(|node| PARENTS.contains(&node.name_without_address()));
    for node in parents.flat_map(|parent| parent.children()).filter(is_okay) {
        for range in ranges(node)? {
            f(pages_around(range?)?)?;
        }
    }
    Ok(())
}

/// What at the root of a tree is no device, whatever it holds.
const NO_DEVICES: [&str; 6] = ["memory", "reserved-memory", "cpus", "chosen", "aliases", "options"];

/// Does something with every node that may be a device, in the order of the tree.
///
/// # Errors
///
/// [`PlatformError::BadTree`] for a tree that is too deep or has paths that are too long; what `f` says.
pub fn each_device<'a>(
    fdt: &Fdt<'a>,
    f: &mut impl FnMut(&Device<'a, '_>) -> Result<(), PlatformError>,
) -> Result<(), PlatformError> {
    let root = fdt.root();
    for node in root.children().filter(|n| !NO_DEVICES.contains(&n.name_without_address())) {
        visit(node, &Path::new(), true, None, MAX_DEPTH, f)?;
    }
    Ok(())
}

fn visit<'a>(
    node: FdtNode<'a>,
    parent: &Path,
    parent_is_there: bool,
    bus: Option<&Bus<'a, '_>>,
    depth: u32,
    f: &mut impl FnMut(&Device<'a, '_>) -> Result<(), PlatformError>,
) -> Result<(), PlatformError> {
    let mut path = *parent;
    for part in ["/", node.name()] {
        path.try_push_str(part).map_err(|_| PlatformError::BadTree)?;
    }
    let depth = depth.checked_sub(1).ok_or(PlatformError::BadTree)?;
    let is_there = parent_is_there && is_okay(&node);
    f(&Device { node, path: &path, is_there, bus })?;
    if is_pci(&node) {
        return Ok(());
    }
    let bus = Bus { node, above: bus };
    node.children().try_for_each(|child| visit(child, &path, is_there, Some(&bus), depth, f))
}
