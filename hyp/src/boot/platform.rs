//! What the device tree says of the machine, and what hyp says in the device tree it hands on.
//!
//! Reading and editing are pure functions over the blob, tested on any machine.

#![forbid(unsafe_code)]

mod edit;

pub use edit::{HostBoot, hand_over};

use crate::arch::MAX_CPUS;
use crate::memory::pages::MAX_BANKS;
use arrayvec::{ArrayString, ArrayVec};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use thiserror::Error;
use umbra_shared::PAGE_SIZE;
use umbra_shared::package::COMMAND_LINE_BYTES;

/// Ranges that a device tree may reserve.
const MAX_RESERVED: usize = 32;

/// A range of physical addresses, start inclusive, end exclusive.
pub type Range = (u64, u64);

/// How firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// HVC: firmware would have to be at EL2, where hyp is.
    Hvc,
    /// SMC.
    Smc,
}

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
    #[error("the device tree has no /psci (or none that is called with smc)")]
    NoPsci,
    #[error("the device tree lists no CPUs, or more than {MAX_CPUS}")]
    BadCpus,
    #[error("more than {MAX_BANKS} banks of memory")]
    TooManyBanks,
    #[error("more than {MAX_RESERVED} reserved ranges")]
    TooManyReserved,
    #[error("no room for the edited device tree")]
    NoRoom,
    #[error("the device tree has no /chosen to tell the host its initrd and command line in")]
    NoChosen,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Platform {
    /// RAM, whole pages.
    pub banks: ArrayVec<Range, MAX_BANKS>,
    /// What of it is spoken for.
    pub reserved: ArrayVec<Range, MAX_RESERVED>,
    /// MPIDR_EL1 affinities in device-tree order.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// The console: a PL011's address.
    pub uart: Option<u64>,
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

/// Depth-first search. Buses are taken to map one to one, as simple-bus with empty ranges does.
fn find_compatible<'a>(node: FdtNode<'a>, compatible: &str) -> Option<FdtNode<'a>> {
    if node.is_compatible(compatible) {
        return Some(node);
    }
    node.children().find_map(|child| find_compatible(child, compatible))
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
        find_compatible(fdt.root(), "arm,gic-v3").ok_or(PlatformError::NoGic)?;
        if conduit(fdt) != Some(Conduit::Smc) {
            return Err(PlatformError::NoPsci);
        }
        let mut cpus = ArrayVec::new();
        for cpu in fdt.cpus().map_err(|_| PlatformError::BadCpus)?.cpus() {
            let property = cpu.property("reg").ok_or(PlatformError::BadCpus)?;
            let id = match property.value() {
                [a, b, c, d] => u64::from(u32::from_be_bytes([*a, *b, *c, *d])),
                bytes => u64::from_be_bytes(bytes.try_into().map_err(|_| PlatformError::BadCpus)?),
            };
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
        Ok(Self { banks, reserved, cpus, uart: console(fdt), command_line })
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

/// How many of the root's children this name may mean. The host's tree is edited by names: of two that
/// one name finds, the second would stay as it is.
fn named(fdt: &Fdt<'_>, name: &str) -> usize {
    let matches = |node: &FdtNode<'_>| node.name() == name || node.name_without_address() == name;
    fdt.root().children().filter(matches).count()
}

const fn overlaps(a: Range, b: Range) -> bool {
    a.0 < b.1 && b.0 < a.1
}

fn ranges<'a>(
    node: FdtNode<'a>,
) -> Result<impl Iterator<Item = Result<Range, PlatformError>> + 'a, PlatformError> {
    let regs = node.reg().map_err(|_| PlatformError::BadTree)?;
    Ok(regs.into_iter().flatten().map(|reg| {
        let start = reg.address::<u64>().map_err(|_| PlatformError::BadTree)?;
        let size = reg.size::<u64>().map_err(|_| PlatformError::BadTree)?;
        Ok((start, start.checked_add(size).ok_or(PlatformError::BadTree)?))
    }))
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

#[cfg(test)]
mod tests {
    use super::edit::{is_editable, word};
    use super::*;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
    use proptest::prelude::*;

    fn cells(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    fn node(name: &str, properties: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
        let mut builder = DeviceTreeNode::builder(name).unwrap();
        for (name, value) in properties {
            builder = builder.property(DeviceTreeProperty::new(*name, value.as_slice()).unwrap());
        }
        builder.build()
    }

    fn string(s: &str) -> Vec<u8> {
        let mut bytes = s.as_bytes().to_vec();
        bytes.push(0);
        bytes
    }

    /// A tree like QEMU virt's, without the nodes in `without`.
    fn tree(without: &[&str]) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        let root = [("#address-cells", cells(&[2])), ("#size-cells", cells(&[2]))];
        tree.root = node("", &root);
        let mut cpus =
            node("cpus", &[("#address-cells", cells(&[1])), ("#size-cells", cells(&[0]))]);
        for n in 0..2u32 {
            let properties = [("device_type", string("cpu")), ("reg", cells(&[n << 8]))];
            cpus.add_child(node(&format!("cpu@{n}"), &properties));
        }
        let memory = cells(&[0, 0x4000_0000, 0, 0x1000_0000, 1, 0, 0, 0x0800_0000]);
        let nodes = [
            node("memory@40000000", &[("device_type", string("memory")), ("reg", memory)]),
            node(
                "chosen",
                &[("stdout-path", string("/pl011@9000000")), ("bootargs", string("a=b"))],
            ),
            node("psci", &[("compatible", string("arm,psci-1.0")), ("method", string("smc"))]),
            node("intc@8000000", &[("compatible", string("arm,gic-v3"))]),
            node(
                "pl011@9000000",
                &[("compatible", string("arm,pl011")), ("reg", cells(&[0, 0x900_0000, 0, 0x1000]))],
            ),
            cpus,
        ];
        for node in nodes {
            let name = dtoolkit::Node::name(&node).to_string();
            if !without.iter().any(|w| name.starts_with(w)) {
                tree.root.add_child(node);
            }
        }
        tree.to_dtb()
    }

    fn read(without: &[&str]) -> Result<Platform, PlatformError> {
        let dtb = tree(without);
        Platform::read(&Fdt::new(&dtb).unwrap())
    }

    #[test]
    fn a_whole_tree() {
        let platform = read(&[]).unwrap();
        assert_eq!(
            platform.banks[..],
            [(0x4000_0000, 0x5000_0000), (0x1_0000_0000, 0x1_0800_0000)]
        );
        assert_eq!(platform.cpus[..], [0, 0x100]);
        assert_eq!(platform.uart, Some(0x900_0000));
        assert_eq!(&platform.command_line, "a=b");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (name, error) in [
            ("memory", PlatformError::NoMemory),
            ("intc", PlatformError::NoGic),
            ("psci", PlatformError::NoPsci),
            ("cpus", PlatformError::BadCpus),
        ] {
            assert_eq!(read(&[name]).map(|_| ()), Err(error), "{name}");
        }
        assert_eq!(read(&["pl011"]).unwrap().uart, None);
    }

    #[test]
    fn the_host_is_told_what_is_left() {
        let dtb = tree(&[]);
        let mut room = vec![0; dtb.len() + 4096];
        let hyp = [(0x4020_0000, 0x4040_0000), (0x4f00_0000, 0x5000_0000)];
        let boot =
            HostBoot { hyp: &hyp, initrd: Some((0x4500_0000, 0x4500_1234)), command_line: "x y" };
        let bytes = hand_over(&dtb, &mut room, &boot).unwrap();
        let fdt = Fdt::new(&room[..bytes]).unwrap();
        let platform = Platform::read(&fdt).unwrap();
        assert_eq!(
            platform.banks[..],
            [
                (0x4000_0000, 0x4020_0000),
                (0x4040_0000, 0x4f00_0000),
                (0x1_0000_0000, 0x1_0800_0000),
            ]
        );
        assert_eq!(&platform.command_line, "x y");
        let chosen = fdt.find_node("/chosen").unwrap();
        let number = |name| chosen.property(name).unwrap().value_as::<u64>().unwrap();
        assert_eq!(number("linux,initrd-start"), 0x4500_0000);
        assert_eq!(number("linux,initrd-end"), 0x4500_1234);
    }

    /// A tree with one more node at the end of the root's.
    fn tree_with(extra: DeviceTreeNode) -> Vec<u8> {
        let mut tree = DeviceTree::from_fdt(&Fdt::new(&tree(&[])).unwrap());
        tree.root.add_child(extra);
        tree.to_dtb()
    }

    #[test]
    fn a_name_that_may_mean_two_nodes_is_refused() {
        let memory = cells(&[2, 0, 0, 0x1000_0000]);
        for (name, fine) in [("memory@200000000", true), ("memory", false)] {
            let dtb = tree_with(node(name, &[("reg", memory.clone())]));
            let read = Platform::read(&Fdt::new(&dtb).unwrap());
            assert_eq!(read.map(|_| ()), if fine { Ok(()) } else { Err(PlatformError::BadTree) });
        }
        let boot = HostBoot { hyp: &[], initrd: Some((0, 1)), command_line: "" };
        let dtb = tree_with(node("chosen@1", &[]));
        let mut room = vec![0; dtb.len() + 4096];
        assert_eq!(hand_over(&dtb, &mut room, &boot), Err(PlatformError::BadTree));
    }

    #[test]
    fn what_cannot_be_edited_is_refused() {
        let good = tree(&[]);
        assert!(is_editable(&good));
        let field = |at: usize| word(&good, at).unwrap();
        let (strings, structure_bytes) = (field(12), field(36));
        let put = |at: usize, value: usize| {
            let mut dtb = good.clone();
            dtb[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
            dtb
        };
        // The structure block ends before its tokens do, or behind them.
        assert!(!is_editable(&put(36, structure_bytes - 4)));
        assert!(!is_editable(&put(36, structure_bytes + 4)));
        // Strings in front of it; without an end; of no characters.
        assert!(!is_editable(&put(12, 40)));
        assert!(!is_editable(&put(32, field(32) - 1)));
        let mut dtb = good.clone();
        dtb[strings] = 0xff;
        assert!(!is_editable(&dtb));
        let boot = HostBoot { hyp: &[], initrd: None, command_line: "x" };
        let mut room = vec![0; dtb.len() + 4096];
        assert_eq!(hand_over(&dtb, &mut room, &boot), Err(PlatformError::BadTree));
        for bytes in 0..40 {
            assert!(!is_editable(&good[..bytes]));
        }
    }

    #[test]
    fn no_room_and_no_chosen_are_said() {
        let dtb = tree(&[]);
        let boot = HostBoot { hyp: &[], initrd: Some((0, 1)), command_line: "" };
        let mut room = vec![0; dtb.len() - 1];
        assert_eq!(hand_over(&dtb, &mut room, &boot), Err(PlatformError::NoRoom));
        let dtb = tree(&["chosen"]);
        let mut room = vec![0; dtb.len() + 4096];
        assert_eq!(hand_over(&dtb, &mut room, &boot), Err(PlatformError::NoChosen));
    }

    proptest! {
        #[test]
        fn a_place_is_free_and_in_its_bank(
            obstacles in prop::collection::vec((0u64..0x1000, 1u64..0x100), 0..6),
            megabytes in 1u64..64,
        ) {
            let mut platform = read(&[]).unwrap();
            for (start, pages) in obstacles {
                let start = 0x4000_0000 + start * 0x1_0000;
                platform.reserved.push((start, start + pages * 0x1000));
            }
            let taken = [(0x4020_0000, 0x4080_0000)];
            if let Some(place) = platform.place(0x4020_0000, megabytes << 20, 2 << 20, &taken) {
                prop_assert_eq!(place.1 - place.0, megabytes << 20);
                prop_assert_eq!(place.0 % (2 << 20), 0);
                prop_assert!(place.0 >= 0x4000_0000 && place.1 <= 0x5000_0000);
                for other in platform.reserved.iter().chain(&taken) {
                    prop_assert!(!overlaps(place, *other));
                }
            }
        }

        /// Reading a damaged tree gives an error or a platform, and ends.
        #[test]
        fn damage_does_no_harm(damage in prop::collection::vec((0usize..2000, any::<u8>()), 1..8)) {
            let mut dtb = tree(&[]);
            for (at, byte) in damage {
                let at = at % dtb.len();
                dtb[at] = byte;
            }
            if let Ok(fdt) = Fdt::new(&dtb) {
                let _ = Platform::read(&fdt);
            }
        }
    }
}
