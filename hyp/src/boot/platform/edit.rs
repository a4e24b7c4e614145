//! The tree that the host gets: hyp's memory taken out of it, initrd and command line put in.

use super::bus::{Device, Path, each_device};
use super::masters::{is_withheld, judge};
use super::smmus::SmmuNodes;
use super::tree::{PlatformError, is_okay, named, ranges};
use crate::boot::range_set::Range;
use arrayvec::{ArrayString, ArrayVec};
use dtoolkit::fdt::Fdt;
use dtoolkit::fdt_mut::{FdtMut, SliceBuffer};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

/// What the host is told.
#[derive(Clone, Copy, Debug)]
pub struct HostBoot<'a> {
    /// Memory that is not the host's: it disappears from /memory.
    pub hyp: &'a [Range],
    /// The initrd, if there is one.
    pub initrd: Option<Range>,
    /// The command line; empty: the one in the tree stays.
    pub command_line: &'a str,
    /// The tree's SMMUs: those of hyp's are not the host's.
    pub smmus: &'a SmmuNodes,
    /// Masters that no SMMU covers are not the host's.
    pub isolate: bool,
}

/// The big-endian word at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*word)).ok()
}

/// Whether a tree that can be read can be edited, too. Reading stops at the first FDT_END; editing also
/// believes what the header says of the blocks, moves what lies behind a block that grows, and looks for
/// names in all of the strings. So the blocks must lie one behind the other, as compilers write them,
/// the structure block must end where its tokens do, and the strings must be strings (Devicetree
/// Specification, chapter 5).
pub(super) fn is_editable(dtb: &[u8]) -> bool {
    let check = || {
        let (structure, strings, reservations) = (word(dtb, 8)?, word(dtb, 12)?, word(dtb, 16)?);
        let (strings_bytes, structure_bytes) = (word(dtb, 32)?, word(dtb, 36)?);
        let structure_end = structure.checked_add(structure_bytes)?;
        let tokens = dtb.get(structure..structure_end)?;
        let names = dtb.get(strings..strings.checked_add(strings_bytes)?)?;
        let names_end = names.last().is_none_or(|&end| end == 0);
        Some(
            reservations < structure
                && structure_end <= strings
                && structure_length(tokens)? == tokens.len()
                && names_end
                && core::str::from_utf8(names).is_ok(),
        )
    };
    check() == Some(true)
}

/// Bytes up to and with FDT_END.
fn structure_length(tokens: &[u8]) -> Option<usize> {
    const BEGIN_NODE: usize = 1;
    const END_NODE: usize = 2;
    const PROP: usize = 3;
    const NOP: usize = 4;
    const END: usize = 9;
    let mut at = 0;
    loop {
        let token = word(tokens, at)?;
        at += 4;
        match token {
            BEGIN_NODE => at += tokens.get(at..)?.iter().position(|&byte| byte == 0)? + 1,
            PROP => at = at.checked_add(8)?.checked_add(word(tokens, at)?)?,
            END_NODE | NOP => {}
            END => return Some(at),
            _ => return None,
        }
        at = at.checked_next_multiple_of(4)?;
    }
}

/// Copies `dtb` into `room` and edits it there for the host. Returns the bytes it takes.
///
/// # Errors
///
/// If the tree can't say what it has to.
pub fn hand_over(dtb: &[u8], room: &mut [u8], boot: &HostBoot<'_>) -> Result<usize, PlatformError> {
    if !is_editable(dtb) {
        return Err(PlatformError::BadTree);
    }
    room.get_mut(..dtb.len()).ok_or(PlatformError::NoRoom)?.copy_from_slice(dtb);
    let mut fdt = FdtMut::from_slice(room).map_err(|_| PlatformError::BadTree)?;
    for n in 0.. {
        let Some((name, value)) = memory_without(&fdt.as_read_only(), n, boot.hyp)? else { break };
        let mut root = fdt.root_mut();
        let mut node = root.child_mut(&name).ok_or(PlatformError::BadTree)?;
        let mut reg = node.property_mut("reg").ok_or(PlatformError::BadTree)?;
        reg.set_value(value.as_slice()).map_err(|_| PlatformError::NoRoom)?;
    }
    disable(&mut fdt, &mut |device| {
        let out_of_reach = is_okay(&device.node)
            && OUT_OF_REACH.iter().any(|compatible| device.node.is_compatible(compatible));
        Ok(out_of_reach || is_withheld(judge(device, boot.smmus)?, boot.isolate))
    })?;
    if boot.initrd.is_some() || !boot.command_line.is_empty() {
        if named(&fdt.as_read_only(), "chosen") > 1 {
            return Err(PlatformError::BadTree);
        }
        let mut root = fdt.root_mut();
        let mut chosen = root.child_mut("chosen").ok_or(PlatformError::NoChosen)?;
        if let Some((start, end)) = boot.initrd {
            for (name, value) in [("linux,initrd-start", start), ("linux,initrd-end", end)] {
                chosen.remove_property(name);
                chosen.add_property(name, value).map_err(|_| PlatformError::NoRoom)?;
            }
        }
        if !boot.command_line.is_empty() {
            chosen.remove_property("bootargs");
            chosen
                .add_property("bootargs", boot.command_line)
                .map_err(|_| PlatformError::NoRoom)?;
        }
    }
    Ok(fdt.as_read_only().data().len())
}

/// Devices whose drivers use IMPLEMENTATION DEFINED registers, which HCR_EL2.TIDCP keeps from the host: the event
/// counters of a DynamIQ Shared Unit (drivers/perf/arm_dsu_pmu.c), the clocks of NVIDIA's Carmel
/// (drivers/cpufreq/tegra194-cpufreq.c), Qualcomm's L2 window (drivers/clk/qcom/clk-cpu-8996.c). Linux finds them
/// disabled; at EL1 it uses no such register by itself.
pub(super) const OUT_OF_REACH: [&str; 5] = [
    "arm,dsu-pmu",
    "arm,dsu-110-pmu",
    "nvidia,tegra194-ccplex",
    "qcom,msm8996-apcc",
    "qcom,msm8996pro-apcc",
];

/// In the tree that the host gets, what is `wanted` is not there to be used.
fn disable(
    fdt: &mut FdtMut<SliceBuffer<'_>>,
    wanted: &mut impl FnMut(&Device<'_, '_>) -> Result<bool, PlatformError>,
) -> Result<(), PlatformError> {
    let mut last = None;
    loop {
        let mut found: Option<Path> = None;
        each_device(&fdt.as_read_only(), &mut |device| {
            let disabled =
                device.node.property("status").is_some_and(|s| s.value() == b"disabled\0");
            if found.is_none() && !disabled && wanted(device)? {
                found = Some(*device.path);
            }
            Ok(())
        })?;
        let Some(path) = found else { return Ok(()) };
        // Of two that one name finds the second would stay as it is.
        if last == Some(path) {
            return Err(PlatformError::BadTree);
        }
        let mut node = fdt.find_node_mut(&path).ok_or(PlatformError::BadTree)?;
        node.remove_property("status");
        node.add_property("status", "disabled").map_err(|_| PlatformError::NoRoom)?;
        last = Some(path);
    }
}

type RegBytes = ArrayVec<u8, 512>;

/// The `n`th memory node: its name, and its reg less `hyp`.
fn memory_without(
    fdt: &Fdt<'_>,
    n: usize,
    hyp: &[Range],
) -> Result<Option<(ArrayString<64>, RegBytes)>, PlatformError> {
    let Some(node) =
        fdt.root().children().filter(|node| node.name_without_address() == "memory").nth(n)
    else {
        return Ok(None);
    };
    // The defaults are the Devicetree Specification's (2.3.5).
    let cells = |name, default| {
        fdt.root().property(name).and_then(|p| p.value_as::<u32>().ok()).unwrap_or(default) as usize
    };
    let (address_cells, size_cells) = (cells("#address-cells", 2), cells("#size-cells", 1));
    let mut value = RegBytes::new();
    for range in ranges(node)? {
        let mut rest = ArrayVec::<Range, 8>::new();
        rest.push(range?);
        for &hole in hyp {
            let mut next = ArrayVec::<Range, 8>::new();
            for part in rest {
                for piece in [(part.0, part.1.min(hole.0)), (part.0.max(hole.1), part.1)] {
                    if piece.0 < piece.1 {
                        next.try_push(piece).map_err(|_| PlatformError::NoRoom)?;
                    }
                }
            }
            rest = next;
        }
        for (start, end) in rest {
            for (number, cells) in [(start, address_cells), (end - start, size_cells)] {
                let bytes = number.to_be_bytes();
                let skipped = 8usize.checked_sub(4 * cells).ok_or(PlatformError::BadTree)?;
                let bytes = bytes.get(skipped..).ok_or(PlatformError::BadTree)?;
                value.try_extend_from_slice(bytes).map_err(|_| PlatformError::NoRoom)?;
            }
        }
    }
    let name = ArrayString::from(node.name()).map_err(|_| PlatformError::BadTree)?;
    Ok(Some((name, value)))
}
