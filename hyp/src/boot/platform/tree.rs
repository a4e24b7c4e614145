//! What every reader of a tree goes by: nodes, numbers and ranges in it, and what may be wrong with one.

use crate::arch::MAX_CPUS;
use crate::boot::range_set::Range;
use crate::boot::ranges::MAX_RESERVED;
use crate::memory::pages::MAX_BANKS;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use thiserror::Error;

/// Pieces of device memory that are withheld from the host, those that touch taken for one.
pub const MAX_WITHHELD: usize = 256;
/// Pieces of what the host may have of the address space beside RAM.
pub const MAX_DEVICE_RANGES: usize = 512;

/// Why hyp can't run on the machine that a device tree describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PlatformError {
    #[error("the device tree is damaged")]
    BadTree,
    #[error("the device tree has no /memory")]
    NoMemory,
    #[error("the device tree describes no GICv3 (arm,gic-v3); QEMU: -M virt,gic-version=3")]
    NoGic,
    #[error("the device tree's registers of the GIC are not whole frames of their own")]
    BadGic,
    #[error("the device tree has registers of the GIC in memory")]
    GicInMemory,
    #[error("the device tree has no /psci (or none that is called with smc)")]
    NoPsci,
    #[error("the device tree lists no CPUs, or more than {MAX_CPUS}")]
    BadCpus,
    #[error("more than {MAX_BANKS} banks of memory")]
    TooManyBanks,
    #[error("more than {MAX_RESERVED} reserved ranges")]
    TooManyReserved,
    #[error("more than {MAX_WITHHELD} ranges of devices that the host can't have")]
    TooManyWithheld,
    #[error("more than {MAX_DEVICE_RANGES} ranges of devices")]
    TooManyDevices,
    #[error("no room for the edited device tree")]
    NoRoom,
    #[error("the device tree has no /chosen to tell the host its initrd and command line in")]
    NoChosen,
}

/// Whether a device is there to be used. (For a CPU, "disabled" says that it is off.)
pub(super) fn is_okay(node: &FdtNode<'_>) -> bool {
    node.property("status").is_none_or(|status| matches!(status.value(), b"okay\0" | b"ok\0"))
}

/// A number of one cell or two.
pub(super) fn number(value: &[u8]) -> Option<u64> {
    match value {
        [a, b, c, d] => Some(u32::from_be_bytes([*a, *b, *c, *d]).into()),
        bytes => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
    }
}

/// How many of the root's children this name may mean. The host's tree is edited by names: of two that
/// one name finds, the second would stay as it is.
pub(super) fn named(fdt: &Fdt<'_>, name: &str) -> usize {
    let matches = |node: &FdtNode<'_>| node.name() == name || node.name_without_address() == name;
    fdt.root().children().filter(matches).count()
}

/// Whether two ranges have an address in common.
pub(super) const fn overlaps(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// The ranges in a node's `reg`, as its bus has them.
pub(super) fn ranges<'a>(
    node: FdtNode<'a>,
) -> Result<impl Iterator<Item = Result<Range, PlatformError>> + 'a, PlatformError> {
    let regs = node.reg().map_err(|_| PlatformError::BadTree)?;
    Ok(regs.into_iter().flatten().map(|reg| {
        let start = reg.address::<u64>().map_err(|_| PlatformError::BadTree)?;
        let size = reg.size::<u64>().map_err(|_| PlatformError::BadTree)?;
        Ok((start, start.checked_add(size).ok_or(PlatformError::BadTree)?))
    }))
}
