//! What the device tree says of the machine, and what hyp says in the device tree it hands on.
//!
//! Reading and editing are pure functions over the blob, tested on any machine.

#![forbid(unsafe_code)]

pub mod bus;
mod debug;
mod edit;
mod gic;
pub mod masters;
pub mod smmus;
#[cfg(test)]
mod tests;
mod tree;

pub use crate::boot::range_set::Range;
pub use crate::boot::ranges::MAX_RESERVED;
pub use debug::external_debug;
pub use edit::{HostBoot, hand_over};
pub use tree::{MAX_WITHHELD, PlatformError};

use crate::arch::MAX_CPUS;
use crate::boot::ranges::MAX_TAKEN;
use crate::irq::frames::Described;
use crate::memory::pages::MAX_BANKS;
use arrayvec::{ArrayString, ArrayVec};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use tree::{is_okay, named, number, overlaps, ranges};
use umbra_shared::PAGE_SIZE;
use umbra_shared::package::COMMAND_LINE_BYTES;

/// How firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// HVC: firmware would have to be at EL2, where hyp is.
    Hvc,
    /// SMC.
    Smc,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Platform {
    /// RAM, whole pages.
    pub banks: ArrayVec<Range, MAX_BANKS>,
    /// What of it is spoken for.
    pub reserved: ArrayVec<Range, MAX_RESERVED>,
    /// SMMUv3s.
    pub smmus: smmus::SmmuNodes,
    /// The GIC's registers.
    pub gic: Described,
    /// MPIDR_EL1 affinities in device-tree order.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// The console: a PL011's address.
    pub uart: Option<u64>,
    /// The loader's initrd, as /chosen has it.
    pub initrd: Option<Range>,
    /// The kernel command line in the tree.
    pub command_line: ArrayString<COMMAND_LINE_BYTES>,
}

/// The console's address: all that can be told before anything else is checked.
pub fn console(fdt: &Fdt<'_>) -> Option<u64> {
    let named = fdt
        .chosen()
        .and_then(|chosen| {
            let path = chosen.stdout_path().ok().flatten()?;
            ArrayString::<128>::from(path).ok()
        })
        .and_then(|path| {
            let path = path.split(':').next().unwrap_or("");
            fdt.find_node(path).filter(|node| node.is_compatible("arm,pl011"))
        });
    let node = named.or_else(|| find_compatible(fdt.root(), "arm,pl011"))?;
    node.reg().ok()??.next()?.address().ok()
}

/// Depth-first search for a device. Buses are taken to map one to one, as simple-bus with empty ranges
/// does.
fn find_compatible<'a>(node: FdtNode<'a>, compatible: &str) -> Option<FdtNode<'a>> {
    if node.is_compatible(compatible) && is_okay(&node) {
        return Some(node);
    }
    node.children().find_map(|child| find_compatible(child, compatible))
}

/// Where the loader has put its initrd. The bounds have one cell or two, whatever #address-cells says
/// (Linux, `early_init_dt_check_for_initrd`).
fn initrd(fdt: &Fdt<'_>) -> Option<Range> {
    let chosen = fdt.root().children().find(|node| node.name() == "chosen")?;
    let bound = |name| number(chosen.property(name)?.value());
    let range = (bound("linux,initrd-start")?, bound("linux,initrd-end")?);
    (range.0 < range.1).then_some(range)
}

fn pages_of((start, end): Range) -> Range {
    let page = PAGE_SIZE as u64;
    (start.div_ceil(page) * page, end / page * page)
}

impl Platform {
    /// Reads the tree.
    ///
    /// # Errors
    ///
    /// What is missing from it.
    pub fn read(fdt: &Fdt<'_>) -> Result<Self, PlatformError> {
        let mut banks = ArrayVec::new();
        let mut reserved = ArrayVec::new();
        for node in fdt.root().children() {
            let is = |name| node.name_without_address() == name;
            if is("memory") {
                if named(fdt, node.name()) != 1 {
                    return Err(PlatformError::BadTree);
                }
                for range in ranges(node)? {
                    let bank = pages_of(range?);
                    if bank.0 < bank.1 {
                        banks.try_push(bank).map_err(|_| PlatformError::TooManyBanks)?;
                    }
                }
            } else if is("reserved-memory") {
                for child in node.children() {
                    for range in ranges(child)? {
                        reserved.try_push(range?).map_err(|_| PlatformError::TooManyReserved)?;
                    }
                }
            }
        }
        if banks.is_empty() {
            return Err(PlatformError::NoMemory);
        }
        banks.sort_unstable();
        if banks.windows(2).any(|pair| pair[0].1 > pair[1].0) {
            return Err(PlatformError::BadTree);
        }
        for r in fdt.memory_reservations() {
            let end = r.address().checked_add(r.size()).ok_or(PlatformError::BadTree)?;
            reserved.try_push((r.address(), end)).map_err(|_| PlatformError::TooManyReserved)?;
        }
        let gic = gic::read(fdt, &banks)?;
        if conduit(fdt) != Some(Conduit::Smc) {
            return Err(PlatformError::NoPsci);
        }
        let mut cpus = ArrayVec::new();
        for cpu in fdt.cpus().map_err(|_| PlatformError::BadCpus)?.cpus() {
            let property = cpu.property("reg").ok_or(PlatformError::BadCpus)?;
            let id = number(property.value()).ok_or(PlatformError::BadCpus)?;
            cpus.try_push(id).map_err(|_| PlatformError::BadCpus)?;
        }
        if cpus.is_empty() {
            return Err(PlatformError::BadCpus);
        }
        let command_line = fdt
            .chosen()
            .and_then(|chosen| {
                chosen.bootargs().ok().flatten().and_then(|args| ArrayString::from(args).ok())
            })
            .unwrap_or_default();
        let uart = console(fdt);
        let smmus = smmus::read(fdt, &banks)?;
        Ok(Self { banks, reserved, smmus, gic, cpus, uart, initrd: initrd(fdt), command_line })
    }

    /// What is in memory when hyp boots and is not to be written, beside what is reserved: the `image` with
    /// its package, the `dtb`, the loader's initrd. Wherever they are: a loader may put them at the top of
    /// RAM.
    pub fn loaded(&self, image: &[Range], dtb: Range) -> ArrayVec<Range, MAX_TAKEN> {
        let parts = image.iter().copied().chain([dtb]).chain(self.initrd);
        parts.take(MAX_TAKEN).collect()
    }

    /// A place for `bytes` in the bank that holds `near`: the highest that touches neither a reserved
    /// range nor one of `taken`.
    pub fn place(&self, near: u64, bytes: u64, align: u64, taken: &[Range]) -> Option<Range> {
        let &(bank_start, bank_end) =
            self.banks.iter().find(|bank| (bank.0..bank.1).contains(&near))?;
        let mut end = bank_end;
        loop {
            let start = end.checked_sub(bytes)? / align * align;
            if start < bank_start {
                return None;
            }
            let range = (start, start + bytes);
            match self
                .reserved
                .iter()
                .chain(taken)
                .filter(|other| overlaps(range, **other))
                .map(|other| other.0)
                .min()
            {
                None => return Some(range),
                // Below whatever is in the way; always lower than before.
                Some(obstacle) => end = obstacle.min(range.1 - 1),
            }
        }
    }
}

/// How PSCI is called, if there is PSCI.
pub fn conduit(fdt: &Fdt<'_>) -> Option<Conduit> {
    let psci = fdt.root().children().find(|node| {
        ["arm,psci", "arm,psci-0.2", "arm,psci-1.0"].iter().any(|c| node.is_compatible(c))
    })?;
    match psci.property("method")?.value_as::<&str>().ok()? {
        "smc" => Some(Conduit::Smc),
        "hvc" => Some(Conduit::Hvc),
        _ => None,
    }
}
