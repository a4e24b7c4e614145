//! External debug and trace through the memory map (CoreSight): what halts a CPU, reads and writes its registers,
//! samples it, or writes memory with what it did, whatever exception level it is at.
//!
//! Whoever can write a CPU's external debug registers can halt it at EL2 and execute there (Arm ARM, Part
//! H), if EL3 leaves it enabled; trace units say where EL2 branches, and a trace router is a master that
//! writes memory. So none of them is the host's: neither their registers nor, in its tree, the nodes. What a
//! tree doesn't describe is not known; that is EL3's to close. SPE and TRBE have no registers in
//! memory.

use super::{PlatformError, Range};
use arrayvec::{ArrayString, ArrayVec};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::fdt_mut::{FdtMut, SliceBuffer};
use dtoolkit::{Node, Property};
use umbra_shared::PAGE_SIZE;

/// Ranges of them, after those that touch have become one.
pub const MAX_WITHHELD: usize = 128;

/// Names of such a component: Arm's and others' bindings all have it (Linux, bindings/arm/arm,coresight-*,
/// qcom,coresight-*).
const NAME: &[u8] = b",coresight-";

/// Whether a node describes one. Whether it is disabled makes no difference: its registers are there.
fn is_one(node: &FdtNode<'_>) -> bool {
    node.property("compatible").is_some_and(|compatible| {
        compatible
            .value()
            .split(|&byte| byte == 0)
            .any(|name| name.windows(NAME.len()).any(|part| part == NAME))
    })
}

fn each<'a>(
    node: FdtNode<'a>,
    f: &mut impl FnMut(&FdtNode<'a>) -> Result<(), PlatformError>,
) -> Result<(), PlatformError> {
    if is_one(&node) {
        f(&node)?;
    }
    node.children().try_for_each(|child| each(child, f))
}

/// Where their registers are. Buses are taken to map one to one.
pub(super) fn withheld(fdt: &Fdt<'_>) -> Result<ArrayVec<Range, MAX_WITHHELD>, PlatformError> {
    let mut all = ArrayVec::<Range, MAX_WITHHELD>::new();
    let page = PAGE_SIZE as u64;
    each(fdt.root(), &mut |node| {
        for range in super::ranges(*node)? {
            let (start, end) = range?;
            let end = end.checked_next_multiple_of(page).ok_or(PlatformError::BadTree)?;
            insert(&mut all, (start / page * page, end))?;
        }
        Ok(())
    })?;
    Ok(all)
}

/// Adds a range to ranges that are in order and apart.
fn insert(all: &mut ArrayVec<Range, MAX_WITHHELD>, mut new: Range) -> Result<(), PlatformError> {
    if new.0 >= new.1 {
        return Ok(());
    }
    all.retain(|&mut old| {
        let touches = old.0 <= new.1 && new.0 <= old.1;
        if touches {
            new = (new.0.min(old.0), new.1.max(old.1));
        }
        !touches
    });
    let at = all.iter().take_while(|old| old.0 < new.0).count();
    all.try_insert(at, new).map_err(|_| PlatformError::TooManyDebug)
}

/// What an external debugger may do to a CPU in Non-secure state, EL2 included, as DBGAUTHSTATUS_EL1 has it
/// (Arm ARM, DBGAUTHSTATUS_EL1: NSID and NSNID, bits 1:0 and 3:2, are 0b11 where it is implemented and
/// enabled, 0b10 where it is implemented and disabled). `None`: the CPU doesn't say.
pub const fn external_debug(authentication: Option<u64>) -> &'static str {
    match authentication {
        Some(status) if status & 0b11 == 0b11 => "open to halt CPUs (firmware can close it)",
        Some(status) if status >> 2 & 0b11 == 0b11 => "open to sample CPUs, not to halt them",
        Some(_) => "closed",
        None => "unknown",
    }
}

type Path = ArrayString<256>;

/// The path of the first that is not disabled, below `node`, whose own path is `above`.
fn first_enabled(node: &FdtNode<'_>, above: &Path) -> Result<Option<Path>, PlatformError> {
    for child in node.children() {
        let mut path = *above;
        let push = |path: &mut Path, text| path.try_push_str(text).is_ok();
        if !push(&mut path, "/") || !push(&mut path, child.name()) {
            return Err(PlatformError::BadTree);
        }
        let disabled = child.property("status").is_some_and(|s| s.value() == b"disabled\0");
        if is_one(&child) && !disabled {
            return Ok(Some(path));
        }
        if let Some(found) = first_enabled(&child, &path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// In the tree that the host gets, none of them is there to be used.
pub(super) fn disable(fdt: &mut FdtMut<SliceBuffer<'_>>) -> Result<(), PlatformError> {
    let mut last = None;
    while let Some(path) = first_enabled(&fdt.as_read_only().root(), &Path::new())? {
        // Of two that one name finds the second would stay as it is.
        if last == Some(path) {
            return Err(PlatformError::BadTree);
        }
        let mut node = fdt.find_node_mut(&path).ok_or(PlatformError::BadTree)?;
        node.remove_property("status");
        node.add_property("status", "disabled").map_err(|_| PlatformError::NoRoom)?;
        last = Some(path);
    }
    Ok(())
}
