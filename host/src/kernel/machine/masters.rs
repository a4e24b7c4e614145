//! What of the machine reads and writes memory by itself, or stands between such a device and memory.
//!
//! A hypervisor may withhold any of them: then the node is disabled in the tree that this kernel gets. Where
//! its registers are is told all the same.

use super::{PhysicalRange, find, layout, registers};
use dtoolkit::{
    Node, Property,
    fdt::{Fdt, FdtNode},
    standard::NodeStandard,
};

/// Bytes of a bus in a PCIe host bridge's ECAM (PCI Express Base Specification, 7.2.2).
pub const BUS_BYTES: u64 = 1 << 20;

/// A device's registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Where they are.
    pub range: PhysicalRange,
    /// The tree lets this kernel use them.
    pub enabled: bool,
}

/// A PCIe host bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pcie {
    /// Configuration space, as much of it as is mapped at [`layout::ECAM`].
    pub ecam: Registers,
    /// The window for 32-bit BARs, as much of it as is mapped; its addresses are the same on both sides.
    pub window: PhysicalRange,
}

/// All of them that tests know how to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masters {
    /// The first PCIe host bridge with an ECAM.
    pub pcie: Option<Pcie>,
    /// QEMU's fw_cfg.
    pub fw_cfg: Option<Registers>,
    /// The first virtio-mmio transport.
    pub virtio: Option<Registers>,
    /// The first SMMUv3.
    pub smmu: Option<Registers>,
}

impl Masters {
    pub(super) fn of(tree: &Fdt) -> Self {
        Self {
            pcie: find(tree.root(), &mut pcie),
            fw_cfg: device(tree, "qemu,fw-cfg-mmio"),
            virtio: device(tree, "virtio,mmio"),
            smmu: device(tree, "arm,smmu-v3"),
        }
    }

    /// The registers that are mapped with those of the devices that drivers use.
    pub(super) fn devices(&self) -> impl Iterator<Item = PhysicalRange> + '_ {
        let alone = [&self.fw_cfg, &self.virtio, &self.smmu];
        let alone = alone.into_iter().flatten().map(|device| device.range.clone());
        alone.chain(self.pcie.iter().map(|pcie| pcie.window.clone()))
    }
}

fn is_enabled(node: &FdtNode) -> bool {
    node.property("status").is_none_or(|status| {
        status.value_as::<&str>().is_ok_and(|status| matches!(status, "ok" | "okay"))
    })
}

/// The first node of a kind.
fn device(tree: &Fdt, kind: &str) -> Option<Registers> {
    find(tree.root(), &mut |node| {
        let found = node.is_compatible(kind).then(|| registers(node, 0)).flatten()?;
        Some(Registers { range: found, enabled: is_enabled(node) })
    })
}

fn numbers(value: &[u8]) -> impl Iterator<Item = u64> + '_ {
    value.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}

/// A host bridge in a node whose parent has two cells for addresses and two for sizes.
fn pcie(node: &FdtNode) -> Option<Pcie> {
    /// Of `ranges`: what kind of space, the address there, ours, and how large.
    const RANGE_BYTES: usize = 4 + 3 * 8;
    /// A 32-bit memory space (IEEE 1275's PCI bus binding, `phys.hi`).
    const MEMORY32: u8 = 2;
    if !node.is_compatible("pci-host-ecam-generic") {
        return None;
    }
    let reg = node.property("reg")?;
    let mut reg = numbers(reg.value());
    let (start, bytes) = (reg.next()?, reg.next()?);
    let ranges = node.property("ranges")?;
    let window = ranges.value().chunks_exact(RANGE_BYTES).find_map(|range| {
        let mut words = numbers(&range[4..]);
        let (theirs, ours, bytes) = (words.next()?, words.next()?, words.next()?);
        let end = ours.checked_add(bytes.min(layout::WINDOW_OF_BARS))?;
        let usable = range[0] & 3 == MEMORY32 && theirs == ours && end <= layout::MAX_PA;
        usable.then_some(ours..end)
    })?;
    let range = start..start.checked_add(bytes.min(layout::ECAM_BYTES))?;
    Some(Pcie { ecam: Registers { range, enabled: is_enabled(node) }, window })
}
