//! The device tree that has everything: what the specification allows and emulators' trees don't have.
//!
//! Memory in two nodes; memory that is reserved in every way there is, and one reservation that is yet to
//! be placed; sizes of one cell at the root and numbers of two for CPUs; CPUs that are "disabled", which
//! for a CPU means that somebody has to turn it on (Devicetree Specification 3.8.1).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;
use dtoolkit::fdt::Fdt;
use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property};
use umbra_shared::firmware::{ODD_CUT, ODD_DEBUG, ODD_INITRD, ODD_RESERVED};

fn property(name: &str, value: &[u8]) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}

fn cells(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

/// An address of two cells and a size of one.
fn reg(ranges: &[(u64, u64)]) -> Vec<u8> {
    let words =
        |&(start, end): &(u64, u64)| [(start >> 32) as u32, start as u32, (end - start) as u32];
    cells(&ranges.iter().flat_map(words).collect::<Vec<_>>())
}

/// A child of /reserved-memory.
fn reservation(name: &str, ranges: &[(u64, u64)], words: &[&str]) -> DeviceTreeNode {
    let start = ranges.first().map_or(0, |range| range.0);
    let mut node = DeviceTreeNode::new_unchecked(format!("{name}@{start:x}"));
    node.add_property(property("reg", &reg(ranges)));
    for word in words {
        node.add_property(property(word, &[]));
    }
    node
}

fn reserved_memory() -> DeviceTreeNode {
    let [firmware, first, second, idle, _, other, _] = ODD_RESERVED;
    let mut node = DeviceTreeNode::new_unchecked("reserved-memory");
    node.add_property(property("#address-cells", &cells(&[2])));
    node.add_property(property("#size-cells", &cells(&[1])));
    node.add_property(property("ranges", &[]));
    node.add_child(reservation("firmware", &[firmware], &["no-map"]));
    let mut pool = reservation("pool", &[first, second], &["reusable"]);
    pool.add_property(property("compatible", b"shared-dma-pool\0"));
    node.add_child(pool);
    let mut idle = reservation("idle", &[idle], &[]);
    idle.add_property(property("status", b"disabled\0"));
    node.add_child(idle);
    node.add_child(reservation("other", &[other], &["no-map"]));
    // To be placed by whoever boots: nothing is reserved yet.
    let mut dynamic = DeviceTreeNode::new_unchecked("dynamic");
    dynamic.add_property(property("size", &cells(&[0x10_0000])));
    dynamic.add_property(property("alignment", &cells(&[0x1000])));
    dynamic.add_property(property("alloc-ranges", &reg(&[(0x6800_0000, 0x7000_0000)])));
    node.add_child(dynamic);
    node
}

/// A bus with what can halt a CPU on it.
fn bus_with_debug() -> DeviceTreeNode {
    let mut bus = DeviceTreeNode::new_unchecked("soc");
    bus.add_property(property("compatible", b"simple-bus\0"));
    bus.add_property(property("#address-cells", &cells(&[2])));
    bus.add_property(property("#size-cells", &cells(&[1])));
    bus.add_property(property("ranges", &[]));
    let mut debug = DeviceTreeNode::new_unchecked(format!("debug@{:x}", ODD_DEBUG.0));
    let compatible = b"arm,coresight-cpu-debug\0arm,primecell\0";
    debug.add_property(property("compatible", compatible));
    debug.add_property(property("reg", &reg(&[ODD_DEBUG])));
    bus.add_child(debug);
    bus
}

/// The ranges of a `reg` whose addresses and sizes have two cells each; what of them is too large for a
/// size of one cell is left out.
fn ranges(value: &[u8]) -> Vec<(u64, u64)> {
    let (words, _) = value.as_chunks::<8>();
    let numbers: Vec<_> = words.iter().map(|word| u64::from_be_bytes(*word)).collect();
    let (pairs, _) = numbers.as_chunks::<2>();
    let fits = |&&[_, size]: &&[u64; 2]| u32::try_from(size).is_ok();
    pairs.iter().filter(fits).map(|&[start, size]| (start, start + size)).collect()
}

/// Makes a tree of QEMU's such a one.
pub fn make_odd(dtb: &[u8]) -> Vec<u8> {
    let Ok(fdt) = Fdt::new(dtb) else { return dtb.to_vec() };
    let mut tree = DeviceTree::from_fdt(&fdt);
    tree.root.add_property(property("#size-cells", &cells(&[1])));
    let mut banks = Vec::new();
    let mut memories = Vec::new();
    for node in tree.root.children_mut() {
        let is_memory = (*node).name_without_address() == "memory";
        let Some(property) = node.property_mut("reg") else { continue };
        let found = ranges((&*property).value());
        property.set_value(reg(&found).as_slice());
        if is_memory {
            memories.push((*node).name().to_owned());
            banks.extend(found);
        }
    }
    for name in memories {
        tree.root.remove_child(&name);
    }
    for (start, end) in banks {
        for (start, end) in [(start, end.min(ODD_CUT)), (start.max(ODD_CUT), end)] {
            if start < end {
                let mut node = DeviceTreeNode::new_unchecked(format!("memory@{start:x}"));
                node.add_property(property("device_type", b"memory\0"));
                node.add_property(property("reg", &reg(&[(start, end)])));
                tree.root.add_child(node);
            }
        }
    }
    tree.root.add_child(reserved_memory());
    for (start, end) in [ODD_RESERVED[4], ODD_RESERVED[6]] {
        tree.memory_reservations.push(MemoryReservation::new(start, end - start));
    }
    if let Some(chosen) = tree.root.child_mut("chosen") {
        let (start, end) = ODD_INITRD;
        chosen.add_property(property("linux,initrd-start", &cells(&[start as u32])));
        chosen.add_property(property("linux,initrd-end", &end.to_be_bytes()));
    }
    tree.root.add_child(bus_with_debug());
    if let Some(cpus) = tree.root.child_mut("cpus") {
        cpus.add_property(property("#address-cells", &cells(&[2])));
        let mut first = true;
        for cpu in cpus.children_mut() {
            let is_cpu = (*cpu).property("device_type").is_some_and(|p| p.value() == b"cpu\0");
            if !is_cpu {
                continue;
            }
            if let Some(reg) = cpu.property_mut("reg") {
                let wide: Vec<u8> = [&[0; 4], (&*reg).value()].concat();
                reg.set_value(wide.as_slice());
            }
            if !first {
                cpu.add_property(property("status", b"disabled\0"));
            }
            first = false;
        }
    }
    tree.to_dtb()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Facts;

    #[test]
    fn it_has_everything_and_says_the_same() {
        let plain = crate::tree::tests::tree(&[]);
        let before = Facts::read(&Fdt::new(&plain).unwrap(), 0).unwrap();
        let odd = make_odd(&plain);
        let fdt = Fdt::new(&odd).unwrap();
        let after = Facts::read(&fdt, 0).unwrap();
        assert_eq!(after.affinities, before.affinities);
        assert_eq!((after.uart, after.distributor), (before.uart, before.distributor));
        assert_eq!(after.redistributors, before.redistributors);
        assert_eq!(after.banks[..], [(0x4000_0000, ODD_CUT), (ODD_CUT, 0x8000_0000)]);
        let mut reserved: Vec<_> =
            fdt.memory_reservations().map(|r| (r.address(), r.address() + r.size())).collect();
        for child in fdt.find_node("/reserved-memory").unwrap().children() {
            for reg in child.reg().unwrap().into_iter().flatten() {
                let start = reg.address::<u64>().unwrap();
                reserved.push((start, start + reg.size::<u64>().unwrap()));
            }
        }
        reserved.sort_unstable();
        let mut expected = ODD_RESERVED;
        expected.sort_unstable();
        assert_eq!(reserved, expected);
        let cpus = fdt.find_node("/cpus").unwrap();
        let disabled = cpus.children().filter(|cpu| cpu.property("status").is_some()).count();
        assert_eq!(disabled, 1, "the second of two");
    }
}
