//! Who can write memory beside CPUs, and what holds each of them to what is the host's.
//!
//! A device with registers is a master unless it is known not to be: there is a list of those, and everything
//! else counts. A master is covered if the tree says that all its transactions go through an SMMU that is hyp's;
//! hyp can't check that. What no SMMU covers is withheld from the host, or makes the machine unfit for protected VMs:
//! `umbra.dma` decides ([`super::super::options::Dma`]).

use super::bus::{Device, Path, each_device, each_memory};
use super::debug;
use super::smmus::{self, COUNTERS, SmmuNodes};
use super::tree::{MAX_DEVICE_RANGES, MAX_WITHHELD, PlatformError};
use crate::boot::range_set::{Range, RangeSet};
use arrayvec::ArrayVec;
use core::fmt;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

#[cfg(test)]
mod tests;

/// What the host may have beside RAM.
pub type DeviceRanges = RangeSet<MAX_DEVICE_RANGES>;

/// Devices that have no way to memory, by the name that says most of them: UARTs without DMA of their own, timers,
/// watchdogs, GPIOs, flash, memory that is no RAM; and the GIC, whose way to memory hyp mediates (`irq`).
const NO_MASTERS: &[&str] = &[
    "arm,armv7-timer-mem",
    "arm,gic-v3",
    "arm,gic-v3-its",
    "arm,pl011",
    "arm,pl031",
    "arm,pl050",
    "arm,pl061",
    "arm,sbsa-gwdt",
    "arm,sbsa-uart",
    "arm,sp804",
    "arm,sp805",
    "cfi-flash",
    "mmio-sram",
    "ns16550",
    "ns16550a",
    "simple-bus",
    "snps,dw-apb-gpio",
    "snps,dw-apb-uart",
    "snps,dw-wdt",
];

/// Why nothing covers a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The tree names no SMMU for it.
    NoSmmu,
    /// It names one that is not hyp's.
    NotHyps,
    /// It is an SMMU that hyp can't use.
    IsSmmu,
    /// `iommus` or `iommu-map` is not what it should be.
    Malformed,
    /// A stream beyond those that the SMMU translates.
    Stream,
    /// `iommu-map` leaves out a requester, this one.
    Hole(u32),
    /// `iommu-map` says two things of a requester, this one.
    Overlap(u32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSmmu => write!(f, "behind no SMMU"),
            Self::NotHyps => write!(f, "behind something that is no SMMU of hyp's"),
            Self::IsSmmu => write!(f, "an SMMU that hyp can't use"),
            Self::Malformed => write!(f, "its iommus or iommu-map is damaged"),
            Self::Stream => write!(f, "a stream that its SMMU doesn't know"),
            Self::Hole(rid) => write!(f, "its iommu-map leaves out requester {rid:#x}"),
            Self::Overlap(rid) => write!(f, "its iommu-map has requester {rid:#x} twice"),
        }
    }
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not there, without registers, or without a way to memory.
    Harmless,
    /// Hyp's own, or never the host's.
    Hyps,
    /// A master behind an SMMU of hyp's, this one of the tree's.
    Covered(usize),
    /// A master that nothing holds.
    Uncovered(Why),
}

/// The one SMMU of hyp's that this is the phandle of, if streams up to `last` are translated.
fn behind(smmus: &SmmuNodes, phandle: u32, last: u32) -> Result<usize, Why> {
    let n = smmus.iter().position(|smmu| smmu.phandle == Some(phandle)).ok_or(Why::NotHyps)?;
    let facts = smmus[n].facts.map_err(|_| Why::NotHyps)?;
    if u64::from(last) < 1 << facts.stream_bits { Ok(n) } else { Err(Why::Stream) }
}

/// The big-endian words of a property.
fn words(value: &[u8]) -> impl Iterator<Item = u32> + Clone {
    value.chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
}

/// `iommus`: phandle and stream, one after the other (an SMMUv3 has one cell).
fn by_stream(value: &[u8], smmus: &SmmuNodes) -> Result<usize, Why> {
    if value.is_empty() || !value.len().is_multiple_of(8) {
        return Err(Why::Malformed);
    }
    let mut words = words(value);
    let mut found = Err(Why::Malformed);
    while let (Some(phandle), Some(stream)) = (words.next(), words.next()) {
        found = Ok(behind(smmus, phandle, stream)?);
    }
    found
}

/// Entries of an `iommu-map`; one that has more is taken for damaged.
const MAX_MAP: usize = 256;

/// `iommu-map`: first requester, phandle, first stream, length (Linux, bindings/pci/pci-iommu.txt). Every requester
/// is to be behind an SMMU of hyp's.
fn by_requester(value: &[u8], mask: u32, smmus: &SmmuNodes) -> Result<usize, Why> {
    let entries = value.len() / 16;
    if !value.len().is_multiple_of(16) || entries == 0 || entries > MAX_MAP {
        return Err(Why::Malformed);
    }
    let entry = |n: usize| {
        let mut words = words(&value[16 * n..16 * n + 16]);
        let mut next = || words.next().unwrap_or(0);
        (next(), next(), next(), next())
    };
    // Past the last requester that the mask leaves.
    let end = 1u64 << (32 - (mask & 0xffff).leading_zeros());
    let mut at = 0u64;
    let mut found = Err(Why::Malformed);
    while at < end {
        let covers = |&(first, _, _, length): &(u32, u32, u32, u32)| {
            (u64::from(first)..u64::from(first) + u64::from(length)).contains(&at)
        };
        let mut here = (0..entries).map(entry).filter(covers);
        let (first, phandle, stream, length) = here.next().ok_or(Why::Hole(at as u32))?;
        let next = u64::from(first) + u64::from(length);
        // Another that covers this one, or one that begins before its end.
        let other = (0..entries)
            .map(|n| u64::from(entry(n).0))
            .find(|&begin| at < begin && begin < next.min(end));
        if here.next().is_some() {
            return Err(Why::Overlap(at as u32));
        }
        if let Some(begin) = other {
            return Err(Why::Overlap(begin as u32));
        }
        let last = stream.checked_add(length - 1).ok_or(Why::Stream)?;
        found = Ok(behind(smmus, phandle, last)?);
        at = next;
    }
    found
}

/// What a device is, `smmus` being those of the tree. One that is disabled is harmless.
///
/// # Errors
///
/// [`PlatformError::BadTree`].
pub fn judge(device: &Device<'_, '_>, smmus: &SmmuNodes) -> Result<Verdict, PlatformError> {
    Ok(match of_its_kind(device, smmus)? {
        Verdict::Hyps => Verdict::Hyps,
        _ if !device.is_there => Verdict::Harmless,
        verdict => verdict,
    })
}

/// What a device is, or would be if it were enabled: its registers are there all the same.
fn of_its_kind(device: &Device<'_, '_>, smmus: &SmmuNodes) -> Result<Verdict, PlatformError> {
    let node = &device.node;
    if debug::is_one(node) || node.is_compatible(COUNTERS) {
        return Ok(Verdict::Hyps);
    }
    if !device.has_registers()? {
        return Ok(Verdict::Harmless);
    }
    if node.is_compatible(smmus::COMPATIBLE) {
        let mine = smmus.iter().any(|smmu| smmu.path == *device.path && smmu.facts.is_ok());
        let hyps = mine && device.is_there;
        return Ok(if hyps { Verdict::Hyps } else { Verdict::Uncovered(Why::IsSmmu) });
    }
    if node.compatible().and_then(|mut all| all.next()).is_some_and(|c| NO_MASTERS.contains(&c)) {
        return Ok(Verdict::Harmless);
    }
    let iommus = node.property("iommus");
    let map = node.property("iommu-map");
    let verdict = match (iommus, map) {
        (None, None) => Err(Why::NoSmmu),
        (Some(iommus), None) => by_stream(iommus.value(), smmus),
        (iommus, Some(map)) => {
            // The Devicetree's default: all of the requester counts.
            let mask = node.property("iommu-map-mask");
            let mask = mask.map_or(Some(0xffff), |mask| mask.value_as::<u32>().ok());
            let own = iommus.map_or(Ok(0), |iommus| by_stream(iommus.value(), smmus));
            let mask = mask.ok_or(Why::Malformed);
            own.and(mask).and_then(|mask| by_requester(map.value(), mask, smmus))
        }
    };
    Ok(match verdict {
        Ok(smmu) => Verdict::Covered(smmu),
        Err(why) => Verdict::Uncovered(why),
    })
}

/// Masters of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Masters<'a> {
    /// The first of them in the tree.
    pub first: Path,
    first_node: FdtNode<'a>,
    /// How many there are.
    pub count: u32,
    /// What all of them are.
    pub verdict: Verdict,
}

/// A line of the boot console's table.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Whom it is about.
    pub masters: &'a Masters<'a>,
    /// The tree's SMMUs.
    pub smmus: &'a SmmuNodes,
    /// What nothing covers is withheld.
    pub isolate: bool,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Masters { first, count, verdict, .. } = self.masters;
        write!(f, "{first}")?;
        if *count > 1 {
            write!(f, " and {} more of its kind", count - 1)?;
        }
        match verdict {
            Verdict::Covered(n) => write!(f, ": covered by {}", self.smmus[*n].path),
            Verdict::Uncovered(why) if self.isolate => write!(f, ": withheld ({why})"),
            Verdict::Uncovered(why) => write!(f, ": reaches all memory ({why})"),
            Verdict::Hyps | Verdict::Harmless => Ok(()),
        }
    }
}

/// Kinds of masters that are told apart.
pub const MAX_KINDS: usize = 48;

/// The masters of the machine, by kind.
#[derive(Clone, Debug, Default)]
pub struct Survey<'a> {
    /// Each kind.
    pub kinds: ArrayVec<Masters<'a>, MAX_KINDS>,
    /// Masters that nothing covers.
    pub uncovered: u32,
    /// Masters of further kinds, for which there is no room in the list.
    pub others: u32,
}

fn alike(a: &FdtNode<'_>, b: &FdtNode<'_>) -> bool {
    match (a.property("compatible"), b.property("compatible")) {
        (Some(a), Some(b)) => a.value() == b.value(),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// Looks for all of them.
///
/// # Errors
///
/// [`PlatformError::BadTree`].
pub fn survey<'a>(fdt: &Fdt<'a>, smmus: &SmmuNodes) -> Result<Survey<'a>, PlatformError> {
    let mut survey = Survey::default();
    each_device(fdt, &mut |device| {
        let verdict = judge(device, smmus)?;
        if !matches!(verdict, Verdict::Covered(_) | Verdict::Uncovered(_)) {
            return Ok(());
        }
        survey.uncovered += u32::from(matches!(verdict, Verdict::Uncovered(_)));
        let full = survey.kinds.is_full();
        let same = survey
            .kinds
            .iter_mut()
            .rev()
            .find(|kind| kind.verdict == verdict && alike(&kind.first_node, &device.node));
        match same {
            Some(kind) => kind.count += 1,
            None if full => survey.others += 1,
            None => survey.kinds.push(Masters {
                first: *device.path,
                first_node: device.node,
                count: 1,
                verdict,
            }),
        }
        Ok(())
    })?;
    Ok(survey)
}

/// What is not the host's beside RAM: it finds it disabled, and nothing where its registers are.
pub fn is_withheld(verdict: Verdict, isolate: bool) -> bool {
    match verdict {
        Verdict::Hyps => true,
        Verdict::Uncovered(_) => isolate,
        Verdict::Harmless | Verdict::Covered(_) => false,
    }
}

/// The registers that the host may have, without those of what is withheld, and without RAM. What is disabled is
/// not there: no page of a device that is no master holds the registers of a master that is disabled.
///
/// Memory that the tree reserves and that is in no bank is the host's as a device is, and so is a frame buffer that
/// /chosen names.
///
/// # Errors
///
/// [`PlatformError::BadTree`], [`PlatformError::TooManyDevices`], [`PlatformError::TooManyWithheld`].
pub fn host_devices(
    fdt: &Fdt<'_>,
    smmus: &SmmuNodes,
    isolate: bool,
    banks: &[Range],
    ranges: &mut DeviceRanges,
) -> Result<(), PlatformError> {
    let full = PlatformError::TooManyDevices;
    let mut withheld = RangeSet::<MAX_WITHHELD>::new();
    // First what has no way to memory, less what has one; then what has one and is the host's.
    each_device(fdt, &mut |device| match judge(device, smmus)? {
        Verdict::Harmless if device.is_there => device.add_to(ranges, full),
        _ => Ok(()),
    })?;
    each_device(fdt, &mut |device| match of_its_kind(device, smmus)? {
        Verdict::Covered(_) | Verdict::Uncovered(_) if !device.is_there => {
            device.each_range(|range| ranges.remove(range).map_err(|_| full))
        }
        _ => Ok(()),
    })?;
    each_device(fdt, &mut |device| match judge(device, smmus)? {
        verdict if is_withheld(verdict, isolate) => {
            device.add_to(&mut withheld, PlatformError::TooManyWithheld)
        }
        Verdict::Harmless => Ok(()),
        _ => device.add_to(ranges, full),
    })?;
    each_memory(fdt, &mut |range| ranges.insert(range).map_err(|_| full))?;
    for &gone in withheld.pieces().iter().chain(banks) {
        ranges.remove(gone).map_err(|_| full)?;
    }
    Ok(())
}
