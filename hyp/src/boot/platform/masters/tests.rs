//! Buses, SMMUs that lie, maps with holes, and what is left for the host.

use super::super::smmus;
use super::super::tests::{cells, node, string, tree};
use super::*;
use crate::boot::platform::{HostBoot, Platform, hand_over};
use crate::dma::examine::{Facts, Refusal};
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

const GOOD: Facts = Facts { stream_bits: 16, output_bits: 44, commands: 8, events: 8, ats: false };
const SMMU: u32 = 7;

fn with(properties: &[(&str, Vec<u8>)], compatible: &str, reg: &[u32]) -> Vec<(String, Vec<u8>)> {
    let own = [("compatible", string(compatible)), ("reg", cells(reg))];
    let all = own.iter().chain(properties);
    all.map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

fn device(name: &str, compatible: &str, reg: &[u32], more: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
    let properties = with(more, compatible, reg);
    let properties: Vec<_> =
        properties.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    node(name, &properties)
}

fn smmu(name: &str, base: u32, phandle: u32, more: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
    let mut properties = vec![("phandle", cells(&[phandle]))];
    properties.extend(more.iter().cloned());
    device(name, smmus::COMPATIBLE, &[0, base, 0, 0x2_0000], &properties)
}

fn pci(more: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
    let windows = [0x0100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000];
    let mut properties = vec![
        ("device_type", string("pci")),
        ("#address-cells", cells(&[3])),
        ("#size-cells", cells(&[2])),
        ("ranges", cells(&windows)),
    ];
    properties.extend(more.iter().cloned());
    device(
        "pcie@10000000",
        "pci-host-ecam-generic",
        &[0x40, 0x1000_0000, 0, 0x1000_0000],
        &properties,
    )
}

fn tree_with(nodes: Vec<DeviceTreeNode>) -> Vec<u8> {
    let mut whole = DeviceTree::from_fdt(&Fdt::new(&tree(&[])).unwrap());
    nodes.into_iter().for_each(|node| whole.root.add_child(node));
    whole.to_dtb()
}

/// The tree's SMMUs, all good that nothing is known against.
fn smmus_of(dtb: &[u8]) -> SmmuNodes {
    let mut smmus = Platform::read(&Fdt::new(dtb).unwrap()).unwrap().smmus;
    for smmu in &mut smmus {
        if smmu.facts.is_ok() {
            smmu.facts = Ok(GOOD);
        }
    }
    smmus
}

fn verdict(dtb: &[u8], path: &str) -> Verdict {
    let smmus = smmus_of(dtb);
    let mut found = None;
    each_device(&Fdt::new(dtb).unwrap(), &mut |device| {
        if *device.path == *path {
            found = Some(judge(device, &smmus)?);
        }
        Ok(())
    })
    .unwrap();
    found.unwrap_or_else(|| panic!("no {path}"))
}

#[test]
fn what_is_not_known_to_be_harmless_is_a_master() {
    let reg = [0, 0xa00_0000, 0, 0x200];
    let unreachable = node("i2c", &[("#address-cells", cells(&[1])), ("#size-cells", cells(&[0]))]);
    let mut unreachable = unreachable;
    unreachable.add_child(device("sensor@48", "x", &[0x48], &[]));
    let off = device("off@a000000", "virtio,mmio", &reg, &[("status", string("disabled"))]);
    let both = b"virtio,mmio\0arm,pl011\0".to_vec();
    let mut sounds = device("sounds@a000000", "x", &reg, &[]);
    sounds.add_property(DeviceTreeProperty::new("compatible", both.as_slice()).unwrap());
    let dtb = tree_with(vec![
        device("virtio_mmio@a000000", "virtio,mmio", &reg, &[]),
        device("fw-cfg@9020000", "qemu,fw-cfg-mmio", &[0, 0x902_0000, 0, 0x18], &[]),
        device("unnamed@a000000", "", &reg, &[]),
        node("nothing@a000000", &[("reg", cells(&reg))]),
        node("gpio-keys", &[("compatible", string("gpio-keys"))]),
        device("pmcg@b000000", COUNTERS, &reg, &[]),
        sounds,
        off,
        unreachable,
    ]);
    for path in [
        "/virtio_mmio@a000000",
        "/fw-cfg@9020000",
        "/unnamed@a000000",
        "/nothing@a000000",
        "/sounds@a000000",
    ] {
        assert_eq!(verdict(&dtb, path), Verdict::Uncovered(Why::NoSmmu), "{path}");
    }
    for path in ["/pl011@9000000", "/gpio-keys", "/off@a000000", "/i2c/sensor@48", "/psci"] {
        assert_eq!(verdict(&dtb, path), Verdict::Harmless, "{path}");
    }
    assert_eq!(verdict(&dtb, "/pmcg@b000000"), Verdict::Hyps);
}

#[test]
fn streams_are_behind_an_smmu_of_hyps() {
    let reg = [0, 0xa00_0000, 0, 0x1000];
    let of = |iommus: &[u32]| {
        let dma = device("dma@a000000", "x,dma", &reg, &[("iommus", cells(iommus))]);
        let dtb = tree_with(vec![smmu("smmu@b000000", 0xb00_0000, SMMU, &[]), dma]);
        verdict(&dtb, "/dma@a000000")
    };
    let uncovered = Verdict::Uncovered;
    assert_eq!(of(&[SMMU, 0]), Verdict::Covered(0));
    assert_eq!(of(&[SMMU, 0xffff, SMMU, 3]), Verdict::Covered(0));
    assert_eq!(of(&[SMMU, 0x1_0000]), uncovered(Why::Stream));
    assert_eq!(of(&[SMMU, 3, SMMU + 1, 3]), uncovered(Why::NotHyps));
    assert_eq!(of(&[SMMU + 1, 3]), uncovered(Why::NotHyps));
    assert_eq!([of(&[]), of(&[SMMU]), of(&[SMMU, 1, SMMU])], [uncovered(Why::Malformed); 3]);
}

#[test]
fn every_requester_is_behind_an_smmu_of_hyps() {
    let of = |map: &[u32], mask: Option<u32>| {
        let mut more = vec![("iommu-map", cells(map))];
        more.extend(mask.map(|mask| ("iommu-map-mask", cells(&[mask]))));
        let dtb = tree_with(vec![smmu("smmu@b000000", 0xb00_0000, SMMU, &[]), pci(&more)]);
        verdict(&dtb, "/pcie@10000000")
    };
    let uncovered = Verdict::Uncovered;
    // QEMU's.
    assert_eq!(of(&[0, SMMU, 0, 0x1_0000], None), Verdict::Covered(0));
    // In pieces, in any order; more than there are.
    let pieces = [0x100, SMMU, 0, 0xff00, 0, SMMU, 0xff00, 0x100];
    assert_eq!(of(&pieces, None), Verdict::Covered(0));
    assert_eq!(of(&[0, SMMU, 0, 0x1_0000, 0x1_0000, 99, 0, 1], None), Verdict::Covered(0));
    // Holes, at each end and between.
    assert_eq!(of(&[0, SMMU, 0, 0xffff], None), uncovered(Why::Hole(0xffff)));
    assert_eq!(of(&[1, SMMU, 1, 0xffff], None), uncovered(Why::Hole(0)));
    let hole = [0, SMMU, 0, 0x100, 0x101, SMMU, 0x101, 0xfeff];
    assert_eq!(of(&hole, None), uncovered(Why::Hole(0x100)));
    // Twice: whatever the second says, and wherever it begins.
    let twice = [0, SMMU, 0, 0x1_0000, 0x80, SMMU, 0, 1];
    assert_eq!(of(&twice, None), uncovered(Why::Overlap(0x80)));
    let twice = [0, SMMU, 0, 0x1_0000, 0, SMMU, 0, 0x1_0000];
    assert_eq!(of(&twice, None), uncovered(Why::Overlap(0)));
    let twice = [0, SMMU, 0, 0x200, 0x1ff, SMMU, 0, 0xff00];
    assert_eq!(of(&twice, None), uncovered(Why::Overlap(0x1ff)));
    // Somebody else's, for one of them.
    let other = [0, SMMU, 0, 0xffff, 0xffff, SMMU + 1, 0, 1];
    assert_eq!(of(&other, None), uncovered(Why::NotHyps));
    assert_eq!(of(&[0, SMMU, 1, 0x1_0000], None), uncovered(Why::Stream));
    assert_eq!(of(&[0, SMMU, u32::MAX, 0x1_0000], None), uncovered(Why::Stream));
    assert_eq!(of(&[0, SMMU, 0], None), uncovered(Why::Malformed));
    assert_eq!(of(&[], None), uncovered(Why::Malformed));
    assert_eq!(of(&vec![0; 4 * (MAX_MAP + 1)], None), uncovered(Why::Malformed));
    // A mask leaves fewer requesters.
    assert_eq!(of(&[0, SMMU, 0, 0x100], Some(0xff)), Verdict::Covered(0));
    assert_eq!(of(&[0, SMMU, 0, 1], Some(0)), Verdict::Covered(0));
    assert_eq!(of(&[0, SMMU, 0, 0x100], Some(0xf0)), Verdict::Covered(0));
    assert_eq!(of(&[0, SMMU, 0, 0xff], Some(0x80)), uncovered(Why::Hole(0xff)));
    assert_eq!(of(&[0, SMMU, 0, 0x100], Some(0x1ff)), uncovered(Why::Hole(0x100)));
}

/// An SMMU on a bus that the host can turn off.
fn powered_bus() -> DeviceTreeNode {
    let mut bus = node(
        "bus",
        &[
            ("#address-cells", cells(&[2])),
            ("#size-cells", cells(&[2])),
            ("ranges", vec![]),
            ("power-domains", cells(&[1])),
        ],
    );
    bus.add_child(smmu("smmu@b000000", 0xb00_0000, SMMU, &[]));
    bus
}

#[test]
fn an_smmu_that_can_not_be_used_covers_nothing() {
    let reg = [0, 0xa00_0000, 0, 0x1000];
    let dma = || device("dma@a000000", "x,dma", &reg, &[("iommus", cells(&[SMMU, 0]))]);
    let odd = |name: &str, base, more: &[(&str, Vec<u8>)]| smmu(name, base, SMMU, more);
    let short = device(
        "smmu@b000000",
        smmus::COMPATIBLE,
        &[0, 0xb00_0000, 0, 0x1_0000],
        &[("phandle", cells(&[SMMU]))],
    );
    let off = odd("smmu@b000000", 0xb00_0000, &[("status", string("disabled"))]);
    let cases: Vec<(&str, Vec<DeviceTreeNode>, Option<Refusal>)> = vec![
        ("unaligned", vec![odd("smmu@b001000", 0xb00_1000, &[])], Some(Refusal::Place)),
        ("in memory", vec![odd("smmu@40000000", 0x4000_0000, &[])], Some(Refusal::Place)),
        (
            "at the end of memory",
            vec![odd("smmu@3fff0000", 0x3fff_0000, &[])],
            Some(Refusal::Place),
        ),
        ("short", vec![short], Some(Refusal::Place)),
        (
            "two at one address",
            vec![odd("smmu@b000000", 0xb00_0000, &[]), smmu("smmu@b010000", 0xb01_0000, 9, &[])],
            Some(Refusal::Place),
        ),
        (
            "two of one name",
            vec![odd("smmu@b000000", 0xb00_0000, &[]), odd("smmu@c000000", 0xc00_0000, &[])],
            Some(Refusal::Place),
        ),
        (
            "power",
            vec![odd("smmu@b000000", 0xb00_0000, &[("power-domains", cells(&[1]))])],
            Some(Refusal::Power),
        ),
        (
            "clock",
            vec![odd("smmu@b000000", 0xb00_0000, &[("clocks", cells(&[1, 2]))])],
            Some(Refusal::Power),
        ),
        (
            "over another device",
            vec![
                odd("smmu@b000000", 0xb00_0000, &[]),
                device("x@b01f000", "x", &[0, 0xb01_f000, 0, 0x1000], &[]),
            ],
            Some(Refusal::Place),
        ),
        ("off", vec![off], None),
        ("none", vec![], None),
        (
            "reset",
            vec![odd("smmu@b000000", 0xb00_0000, &[("resets", cells(&[1, 2]))])],
            Some(Refusal::Power),
        ),
        ("power of the bus", vec![powered_bus()], Some(Refusal::Power)),
    ];
    for (name, mut nodes, refusal) in cases {
        nodes.push(dma());
        let dtb = tree_with(nodes);
        if let Some(refusal) = refusal {
            let facts = smmus_of(&dtb)[0].facts;
            assert_eq!(facts, Err(refusal), "{name}");
        }
        assert_eq!(verdict(&dtb, "/dma@a000000"), Verdict::Uncovered(Why::NotHyps), "{name}");
    }
}

#[test]
fn registers_are_where_buses_put_them() {
    // Two buses that move, a third that has no addresses; ranges that are too short.
    let words = [("#address-cells", cells(&[1])), ("#size-cells", cells(&[1]))];
    let bus = |name: &str, ranges: &[u32]| {
        let mut all = words.to_vec();
        all.push(("ranges", cells(ranges)));
        node(name, &all)
    };
    let mut inner = bus("inner", &[0x100, 0x20_0000, 0x1000, 0x2000, 0x30_0000, 0x1000]);
    inner.add_child(device("a@100", "x", &[0x100, 0x1000], &[]));
    inner.add_child(device("b@2800", "x", &[0x2800, 0x100], &[]));
    inner.add_child(device("short@2800", "x", &[0x2800, 0x900], &[]));
    inner.add_child(device("low@0", "x", &[0, 0x10], &[]));
    let mut outer =
        bus("soc", &[0x20_0000, 1, 0x8000_0000, 0x10_0000, 0x30_0000, 0, 0xb00_0000, 0x1000]);
    outer.add_child(inner);
    let mut closed = node("closed", &words);
    closed.add_child(device("c@100", "x", &[0x100, 0x1000], &[]));
    outer.add_child(closed);
    let dtb = tree_with(vec![outer]);
    let fdt = Fdt::new(&dtb).unwrap();
    let mut found = Vec::new();
    each_device(&fdt, &mut |device| {
        device.each_range(|range| {
            found.push((device.path.to_string(), range));
            Ok(())
        })
    })
    .unwrap();
    found.retain(|(path, _)| path.starts_with("/soc"));
    let expected = [
        ("/soc/inner/a@100".to_owned(), (0x1_8000_0000, 0x1_8000_1000)),
        ("/soc/inner/b@2800".to_owned(), (0xb00_0000, 0xb00_1000)),
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_host_has_what_it_may_have_and_nothing_else() {
    let map = [("iommu-map", cells(&[0, SMMU, 0, 0x1_0000]))];
    let virtio = |n: u32| {
        let base = 0xa00_0000 + 0x200 * n;
        device(&format!("virtio_mmio@{base:x}"), "virtio,mmio", &[0, base, 0, 0x200], &[])
    };
    let off =
        device("off@d000000", "x", &[0, 0xd00_0000, 0, 0x1000], &[("status", string("disabled"))]);
    let mut nodes = vec![smmu("smmu@b000000", 0xb00_0000, SMMU, &[]), pci(&map), off];
    nodes.extend((0..4).map(virtio));
    let dtb = tree_with(nodes);
    let fdt = Fdt::new(&dtb).unwrap();
    let smmus = smmus_of(&dtb);
    let banks = Platform::read(&fdt).unwrap().banks;
    // The GIC's and, behind its redistributors, the UART's.
    let (gicd, uart) = ((0x800_0000, 0x801_0000), (0x80a_0000, 0x900_1000));
    let (io, ecam) = ((0x3eff_0000, 0x3f00_0000), (0x40_1000_0000, 0x40_2000_0000));
    for (isolate, expected) in [
        (true, vec![gicd, uart, io, ecam]),
        (false, vec![gicd, uart, (0xa00_0000, 0xa00_1000), io, ecam]),
    ] {
        let mut ranges = DeviceRanges::new();
        host_devices(&fdt, &smmus, isolate, &banks, &mut ranges).unwrap();
        assert_eq!(ranges.pieces(), expected, "{isolate}");
        let mut room = vec![0; dtb.len() + 4096];
        let boot = HostBoot { hyp: &[], initrd: None, command_line: "", smmus: &smmus, isolate };
        let bytes = hand_over(&dtb, &mut room, &boot).unwrap();
        let edited = Fdt::new(&room[..bytes]).unwrap();
        let status = |path: &str| {
            edited.find_node(path).unwrap().property("status").map(|s| s.value().to_vec())
        };
        let disabled = Some(b"disabled\0".to_vec());
        assert_eq!(status("/smmu@b000000"), disabled);
        assert_eq!(status("/pcie@10000000"), None);
        assert_eq!(status("/pl011@9000000"), None);
        for n in 0..4 {
            let path = format!("/virtio_mmio@{:x}", 0xa00_0000 + 0x200 * n);
            assert_eq!(status(&path), disabled.clone().filter(|_| isolate), "{path}");
        }
    }
    let survey = survey(&fdt, &smmus).unwrap();
    assert_eq!(survey.uncovered, 4);
    let lines = |isolate| {
        let line = |masters| Line { masters, smmus: &smmus, isolate }.to_string();
        survey.kinds.iter().map(line).collect::<Vec<_>>()
    };
    let virtio = "/virtio_mmio@a000000 and 3 more of its kind";
    let pci = "/pcie@10000000: covered by /smmu@b000000".to_owned();
    assert_eq!(lines(true), [pci.clone(), format!("{virtio}: withheld (behind no SMMU)")]);
    assert_eq!(lines(false), [pci, format!("{virtio}: reaches all memory (behind no SMMU)")]);
}

#[test]
fn a_disabled_master_is_in_no_page_of_the_hosts() {
    let off = &[("status", string("disabled"))];
    let dtb = tree_with(vec![
        // A UART that shares its page with a DMA engine; a bus that is all over the place.
        device("uart@a000000", "ns16550a", &[0, 0xa00_0000, 0, 0x100], &[]),
        device("dma@a000800", "x,dma", &[0, 0xa00_0800, 0, 0x100], off),
        device("bus@b000000", "simple-bus", &[0, 0xb00_0000, 0, 0x10_0000], &[]),
        smmu("smmu@b040000", 0xb04_0000, SMMU, off),
        // The same registers by two names: one of them is there.
        device("usb@c000000", "x,host", &[0, 0xc00_0000, 0, 0x1000], &[]),
        device("otg@c000000", "x,otg", &[0, 0xc00_0000, 0, 0x1000], off),
    ]);
    let fdt = Fdt::new(&dtb).unwrap();
    let banks = Platform::read(&fdt).unwrap().banks;
    let mut ranges = DeviceRanges::new();
    host_devices(&fdt, &SmmuNodes::new(), false, &banks, &mut ranges).unwrap();
    let kept: Vec<_> =
        ranges.pieces().iter().copied().filter(|range| range.0 >= 0xa00_0000).collect();
    assert_eq!(
        kept,
        [(0xb00_0000, 0xb04_0000), (0xb06_0000, 0xb10_0000), (0xc00_0000, 0xc00_1000)]
    );
}

#[test]
fn what_is_reserved_beside_memory_is_the_hosts() {
    let mut reserved = node(
        "reserved-memory",
        &[("#address-cells", cells(&[2])), ("#size-cells", cells(&[2])), ("ranges", vec![])],
    );
    reserved.add_child(node("smem@20000000", &[("reg", cells(&[0, 0x2000_0000, 0, 0x1800]))]));
    reserved.add_child(node("in@41000000", &[("reg", cells(&[0, 0x4100_0000, 0, 0x1000]))]));
    let dtb = tree_with(vec![reserved]);
    let fdt = Fdt::new(&dtb).unwrap();
    let banks = Platform::read(&fdt).unwrap().banks;
    let mut ranges = DeviceRanges::new();
    host_devices(&fdt, &SmmuNodes::new(), true, &banks, &mut ranges).unwrap();
    assert_eq!(ranges.pieces().last(), Some(&(0x2000_0000, 0x2000_2000)));
}

#[test]
fn masters_for_which_there_is_no_room_are_counted() {
    let many = (0..MAX_KINDS as u32 + 3).map(|n| {
        let base = 0xa00_0000 + 0x1000 * n;
        device(&format!("m@{base:x}"), &format!("x,{n}"), &[0, base, 0, 0x1000], &[])
    });
    let dtb = tree_with(many.collect());
    let survey = survey(&Fdt::new(&dtb).unwrap(), &SmmuNodes::new()).unwrap();
    assert_eq!((survey.kinds.len(), survey.others), (MAX_KINDS, 3));
    assert_eq!(survey.uncovered, MAX_KINDS as u32 + 3);
}

#[test]
fn smmus_for_which_there_is_no_room_cover_nothing() {
    let count = smmus::MAX_SMMUS as u32 + 1;
    let base = |n: u32| 0xb00_0000 + 0x2_0000 * n;
    let mut nodes: Vec<_> =
        (0..count).map(|n| smmu(&format!("smmu@{:x}", base(n)), base(n), 10 + n, &[])).collect();
    for n in [0, count - 1] {
        let reg = [0, 0xa00_0000 + 0x1000 * n, 0, 0x1000];
        nodes.push(device(&format!("dma@{n}"), "x,dma", &reg, &[("iommus", cells(&[10 + n, 0]))]));
    }
    let dtb = tree_with(nodes);
    assert_eq!(verdict(&dtb, "/dma@0"), Verdict::Covered(0));
    let last = format!("/dma@{}", count - 1);
    assert_eq!(verdict(&dtb, &last), Verdict::Uncovered(Why::NotHyps));
    let last = format!("/smmu@{:x}", base(count - 1));
    assert_eq!(verdict(&dtb, &last), Verdict::Uncovered(Why::IsSmmu));
}

#[test]
fn an_alias_of_memory_is_not_the_hosts() {
    // A device that says that it lies over memory.
    let dtb = tree_with(vec![device("x@30000000", "x", &[0, 0x3000_0000, 0, 0x4000_0000], &[])]);
    let fdt = Fdt::new(&dtb).unwrap();
    let banks = Platform::read(&fdt).unwrap().banks;
    let mut ranges = DeviceRanges::new();
    host_devices(&fdt, &SmmuNodes::new(), false, &banks, &mut ranges).unwrap();
    let beside = [
        (0x800_0000, 0x801_0000),
        (0x80a_0000, 0x900_1000),
        (0x3000_0000, 0x4000_0000),
        (0x5000_0000, 0x7000_0000),
    ];
    assert_eq!(ranges.pieces(), beside);
}
