//! The GIC in the tree: found, translated, and refused if it lies.

use super::*;
use crate::irq::frames::Described;

/// The whole tree with another GIC, behind a bus if that has `ranges`.
fn with_gic(gic: DeviceTreeNode, ranges: Option<Vec<u8>>) -> Result<Described, PlatformError> {
    let whole = tree(&["intc"]);
    let mut tree = DeviceTree::from_fdt(&Fdt::new(&whole).unwrap());
    match ranges {
        None => tree.root.add_child(gic),
        Some(ranges) => {
            let cells = |n| cells(&[n]);
            let properties =
                [("#address-cells", cells(2)), ("#size-cells", cells(2)), ("ranges", ranges)];
            let mut bus = node("soc", &properties);
            bus.add_child(gic);
            tree.root.add_child(bus);
        }
    }
    let dtb = tree.to_dtb();
    Platform::read(&Fdt::new(&dtb).unwrap()).map(|platform| platform.gic)
}

const REGION: [u32; 4] = [0, 0x80a_0000, 0, 0x10_0000];

/// A GIC with these registers, beside the distributor's.
fn gic_with(reg: &[u32], more: &[(&str, Vec<u8>)], its: &[[u32; 4]]) -> DeviceTreeNode {
    let all = [&[0, 0x800_0000, 0, 0x1_0000], reg].concat();
    let mut properties = vec![
        ("compatible", string("arm,gic-v3")),
        ("reg", cells(&all)),
        ("#address-cells", cells(&[2])),
        ("#size-cells", cells(&[2])),
        ("ranges", vec![]),
    ];
    properties.extend(more.iter().cloned());
    let mut gic = node("intc@8000000", &properties);
    for (n, reg) in its.iter().enumerate() {
        let properties = [("compatible", string("arm,gic-v3-its")), ("reg", cells(reg))];
        gic.add_child(node(&format!("its@{n}"), &properties));
    }
    gic
}

#[test]
fn registers_of_the_gic_are_found_and_translated() {
    let found = with_gic(plain_gic(), None).unwrap();
    assert_eq!(found.distributor, (0x800_0000, 0x801_0000));
    assert_eq!(found.redistributors[..], [(0x80a_0000, 0x900_0000)]);
    // It is there, disabled or not.
    assert_eq!(found.its[..], [(0x808_0000, 0x80a_0000)]);
    assert_eq!(found.stride, None);
    let more =
        [("#redistributor-regions", cells(&[2])), ("redistributor-stride", cells(&[0, 0x4_0000]))];
    let reg = [&REGION[..], &[3, 0, 0, 0x20_0000], &[0, 0x700_0000, 0, 0x1000]].concat();
    let its = [[0, 0x808_0000, 0, 0x2_0000], [2, 0, 0, 0x4_0000]];
    let found = with_gic(gic_with(&reg, &more, &its), None).unwrap();
    assert_eq!(
        found.redistributors[..],
        [(0x80a_0000, 0x81a_0000), (3 << 32, (3 << 32) + 0x20_0000)]
    );
    assert_eq!(found.stride, Some(0x4_0000));
    assert_eq!(found.its.len(), 2);
    // A bus that moves what is behind it.
    let ranges = cells(&[0, 0, 8, 0, 0, 0x1000_0000]);
    let found = with_gic(plain_gic(), Some(ranges)).unwrap();
    assert_eq!(found.redistributors[..], [(0x8_080a_0000, 0x8_0900_0000)]);
    assert_eq!(found.its[..], [(0x8_0808_0000, 0x8_080a_0000)]);
    assert_eq!(with_gic(plain_gic(), Some(vec![])).unwrap().its[..], [(0x808_0000, 0x80a_0000)]);
}

#[test]
fn two_gics_are_refused() {
    let whole = tree(&[]);
    let mut tree = DeviceTree::from_fdt(&Fdt::new(&whole).unwrap());
    let second = node(
        "intc@20000000",
        &[
            ("compatible", string("arm,gic-v3")),
            ("reg", cells(&[0, 0x2000_0000, 0, 0x1_0000, 0, 0x2010_0000, 0, 0x10_0000])),
        ],
    );
    tree.root.add_child(second);
    let dtb = tree.to_dtb();
    assert_eq!(Platform::read(&Fdt::new(&dtb).unwrap()).unwrap_err(), PlatformError::BadGic);
}

/// Nobody would look after it, and a host might find it all the same.
#[test]
fn parts_of_a_gic_where_no_device_can_be_are_refused() {
    let whole = tree(&[]);
    let registers = cells(&[0, 0x2000_0000, 0, 0x2_0000, 0, 0x2010_0000, 0, 0x10_0000]);
    for compatible in ["arm,gic-v3", "arm,gic-v3-its"] {
        let part =
            || node("part", &[("compatible", string(compatible)), ("reg", registers.clone())]);
        for kind in ["options", "pci", "nothing"] {
            let mut tree = DeviceTree::from_fdt(&Fdt::new(&whole).unwrap());
            let name = if kind == "pci" { "pcie@30000000" } else { kind };
            let mut parent = node(name, &[("device_type", string(kind))]);
            if kind != "nothing" {
                parent.add_child(part());
            }
            tree.root.add_child(parent);
            let dtb = tree.to_dtb();
            let read = Platform::read(&Fdt::new(&dtb).unwrap());
            let expected = (kind != "nothing").then_some(PlatformError::BadGic);
            assert_eq!(read.err(), expected, "{compatible} below {kind}");
        }
    }
}

#[test]
fn a_gic_that_lies_is_refused() {
    let bad = |reg: &[u32], more: &[(&str, Vec<u8>)], its: &[[u32; 4]]| {
        with_gic(gic_with(reg, more, its), None).unwrap_err()
    };
    let one = PlatformError::BadGic;
    assert_eq!(bad(&[], &[], &[]), one, "no redistributors");
    assert_eq!(bad(&REGION, &[("#redistributor-regions", cells(&[2]))], &[]), one, "too few");
    assert_eq!(bad(&REGION, &[("#redistributor-regions", cells(&[0]))], &[]), one, "none");
    let many = [("#redistributor-regions", cells(&[u32::MAX]))];
    assert_eq!(bad(&REGION, &many, &[]), one);
    for reg in [[0, 0x80a_1000, 0, 0x10_0000], [0, 0x80a_0000, 0, 0x1000], [0, 0x80a_0000, 0, 0]] {
        assert_eq!(bad(&reg, &[], &[]), one, "{reg:x?}");
    }
    let beyond = [0xffff_ffff, 0xffff_0000, 0, 0x2_0000];
    assert_eq!(bad(&beyond, &[], &[]), PlatformError::BadTree);
    for stride in [0, 0x1_0000, 0x2_1000] {
        let stride = [("redistributor-stride", cells(&[0, stride]))];
        assert_eq!(bad(&REGION, &stride, &[]), one);
    }
    for its in
        [[0, 0x80a_0000, 0, 0x2_0000], [0, 0x808_8000, 0, 0x2_0000], [0, 0x808_0000, 0, 0x1_0000]]
    {
        assert_eq!(bad(&REGION, &[], &[its]), one, "{its:x?}");
    }
    let memory = PlatformError::GicInMemory;
    assert_eq!(bad(&[0, 0x4fff_0000, 0, 0x2_0000], &[], &[]), memory);
    assert_eq!(bad(&REGION, &[], &[[0, 0x4000_0000, 0, 0x2_0000]]), memory);
    // A bus on which it isn't.
    let elsewhere = cells(&[0, 0, 8, 0, 0, 0x80a_0000]);
    assert_eq!(with_gic(plain_gic(), Some(elsewhere)).unwrap_err(), one);
    // A bus that moves it out of the address space, and says something else later: the first counts.
    let first = [0, 0, 0xffff_ffff, 0xfff0_0000, 0, 0x1000_0000];
    let twice = cells(&[&first[..], &[0, 0, 8, 0, 0, 0x1000_0000]].concat());
    assert_eq!(with_gic(plain_gic(), Some(twice)).unwrap_err(), one);
}
