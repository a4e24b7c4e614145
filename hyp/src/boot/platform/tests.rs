//! Trees whole, damaged, odd, and each word's neighbours.

use super::edit::{is_editable, word};
use super::masters::{DeviceRanges, host_devices};
use super::smmus::SmmuNodes;
use super::*;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use proptest::prelude::*;

mod gic;

pub(super) fn cells(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

pub(super) fn node(name: &str, properties: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
    let mut builder = DeviceTreeNode::builder(name).unwrap();
    for (name, value) in properties {
        builder = builder.property(DeviceTreeProperty::new(*name, value.as_slice()).unwrap());
    }
    builder.build()
}

pub(super) fn string(s: &str) -> Vec<u8> {
    let mut bytes = s.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A GIC like QEMU virt's.
fn plain_gic() -> DeviceTreeNode {
    let reg = cells(&[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000]);
    let its = [
        ("compatible", string("arm,gic-v3-its")),
        ("reg", cells(&[0, 0x808_0000, 0, 0x2_0000])),
        ("status", string("disabled")),
    ];
    let properties = [
        ("compatible", string("arm,gic-v3")),
        ("reg", reg),
        ("#address-cells", cells(&[2])),
        ("#size-cells", cells(&[2])),
        ("ranges", vec![]),
    ];
    let mut gic = node("intc@8000000", &properties);
    gic.add_child(node("its@8080000", &its));
    gic
}

/// A tree like QEMU virt's, without the nodes in `without`.
pub(super) fn tree(without: &[&str]) -> Vec<u8> {
    let mut tree = DeviceTree::new();
    let root = [("#address-cells", cells(&[2])), ("#size-cells", cells(&[2]))];
    tree.root = node("", &root);
    let mut cpus = node("cpus", &[("#address-cells", cells(&[1])), ("#size-cells", cells(&[0]))]);
    for n in 0..2u32 {
        let properties = [("device_type", string("cpu")), ("reg", cells(&[n << 8]))];
        cpus.add_child(node(&format!("cpu@{n}"), &properties));
    }
    let memory = cells(&[0, 0x4000_0000, 0, 0x1000_0000, 1, 0, 0, 0x0800_0000]);
    let nodes = [
        node("memory@40000000", &[("device_type", string("memory")), ("reg", memory)]),
        node("chosen", &[("stdout-path", string("/pl011@9000000")), ("bootargs", string("a=b"))]),
        node("psci", &[("compatible", string("arm,psci-1.0")), ("method", string("smc"))]),
        plain_gic(),
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

const NONE: &SmmuNodes = &ArrayVec::new_const();

/// What the host may have beside RAM.
fn devices(fdt: &Fdt<'_>, smmus: &SmmuNodes, isolate: bool) -> Vec<Range> {
    let banks = Platform::read(fdt).unwrap().banks;
    let mut ranges = DeviceRanges::new();
    host_devices(fdt, smmus, isolate, &banks, &mut ranges).unwrap();
    ranges.pieces().to_vec()
}

fn read(without: &[&str]) -> Result<Platform, PlatformError> {
    let dtb = tree(without);
    Platform::read(&Fdt::new(&dtb).unwrap())
}

#[test]
fn a_whole_tree() {
    let platform = read(&[]).unwrap();
    assert_eq!(platform.banks[..], [(0x4000_0000, 0x5000_0000), (0x1_0000_0000, 0x1_0800_0000)]);
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
    let boot = HostBoot {
        hyp: &hyp,
        initrd: Some((0x4500_0000, 0x4500_1234)),
        command_line: "x y",
        smmus: NONE,
        isolate: false,
    };
    let bytes = hand_over(&dtb, &mut room, &boot).unwrap();
    let fdt = Fdt::new(&room[..bytes]).unwrap();
    let platform = Platform::read(&fdt).unwrap();
    assert_eq!(
        platform.banks[..],
        [(0x4000_0000, 0x4020_0000), (0x4040_0000, 0x4f00_0000), (0x1_0000_0000, 0x1_0800_0000),]
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
    let boot =
        HostBoot { hyp: &[], initrd: Some((0, 1)), command_line: "", smmus: NONE, isolate: false };
    let dtb = tree_with(node("chosen@1", &[]));
    let mut room = vec![0; dtb.len() + 4096];
    assert_eq!(hand_over(&dtb, &mut room, &boot), Err(PlatformError::BadTree));
}

/// What a tree comes to with one of its nodes under another name, or with another property.
fn changed(path: &str, change: impl Fn(&mut DeviceTreeNode)) -> Vec<u8> {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(&tree(&[])).unwrap());
    change(tree.find_node_mut(path).unwrap());
    tree.to_dtb()
}

fn platform(dtb: &[u8]) -> Result<Platform, PlatformError> {
    Platform::read(&Fdt::new(dtb).unwrap())
}

#[test]
fn a_node_is_its_own_and_no_neighbours() {
    let whole = read(&[]).unwrap();
    let reg = cells(&[2, 0, 0, 0x1000_0000]);
    for name in ["memory-controller@200000000", "memor@200000000", "memoryx", "xmemory", "Memory"] {
        let found = platform(&tree_with(node(name, &[("reg", reg.clone())]))).unwrap();
        assert_eq!(found.banks, whole.banks, "{name} is no memory");
    }
    let second = platform(&tree_with(node("memory@200000000", &[("reg", reg)]))).unwrap();
    assert_eq!(second.banks[2..], [(0x2_0000_0000, 0x2_1000_0000)]);
    for (name, reserves) in [
        ("reserved-memory", true),
        ("reserved-memory2", false),
        ("reserved-memor", false),
        ("xreserved-memory", false),
        ("reserved_memory", false),
    ] {
        let words = [("#address-cells", cells(&[2])), ("#size-cells", cells(&[2]))];
        let mut parent = node(name, &words);
        let ranges = cells(&[0, 0x4100_0000, 0, 0x1000, 0, 0x4200_0000, 0, 0x2000]);
        parent.add_child(node("a@41000000", &[("reg", ranges), ("no-map", vec![])]));
        // Not placed yet; and disabled, but reserved.
        parent.add_child(node("b", &[("size", cells(&[0, 0x1000]))]));
        let idle = [("reg", cells(&[0, 0x4300_0000, 0, 1])), ("status", string("disabled"))];
        parent.add_child(node("c@43000000", &idle));
        let expected: &[Range] =
            &[(0x4100_0000, 0x4100_1000), (0x4200_0000, 0x4200_2000), (0x4300_0000, 0x4300_0001)];
        let found = platform(&tree_with(parent)).unwrap().reserved;
        assert_eq!(found[..], if reserves { expected } else { &[] }[..], "{name}");
    }
}

#[test]
fn what_is_compatible_is_so_to_the_letter() {
    let with = |path: &'static str, names: &[&str]| {
        let list: Vec<u8> = names.iter().flat_map(|name| string(name)).collect();
        platform(&changed(path, |node| {
            node.add_property(DeviceTreeProperty::new("compatible", list.as_slice()).unwrap());
        }))
    };
    let gic = |names: &[&str]| with("/intc@8000000", names).map(|_| ());
    for names in [&["arm,gic-v3"][..], &["vendor,gic", "arm,gic-v3"], &["arm,gic-v3", "arm,gic-v2"]]
    {
        assert_eq!(gic(names), Ok(()), "{names:?}");
    }
    for name in ["arm,gic-v3-its", "arm,gic-v", "arm,gic-v2", "xarm,gic-v3", "Arm,GIC-v3", ""] {
        assert_eq!(gic(&[name]), Err(PlatformError::NoGic), "{name}");
    }
    let psci = |names: &[&str]| with("/psci", names).map(|_| ());
    for names in [&["arm,psci"][..], &["arm,psci-0.2"], &["arm,psci-1.1", "arm,psci-1.0"]] {
        assert_eq!(psci(names), Ok(()), "{names:?}");
    }
    for name in ["arm,psci-1", "arm,psci-1.00", "arm,psci-", "arm,psc", "psci", "arm,psci-0.1"] {
        assert_eq!(psci(&[name]), Err(PlatformError::NoPsci), "{name}");
    }
    for method in ["hvc", "smcc", "sm", "SMC", "smc ", ""] {
        let found = platform(&changed("/psci", |node| {
            let value = string(method);
            node.add_property(DeviceTreeProperty::new("method", value.as_slice()).unwrap());
        }));
        assert_eq!(found.map(|_| ()), Err(PlatformError::NoPsci), "{method}");
    }
    let uart = |names: &[&str]| with("/pl011@9000000", names).unwrap().uart;
    assert_eq!(uart(&["arm,pl011", "arm,primecell"]), Some(0x900_0000));
    assert_eq!(uart(&["arm,primecell", "arm,pl011"]), Some(0x900_0000));
    for name in ["arm,pl011-axi", "arm,pl01", "arm,pl0111", "arm,primecell"] {
        assert_eq!(uart(&[name]), None, "{name}");
    }
}

#[test]
fn of_two_consoles_the_chosen_one_or_one_that_is_there() {
    let second = |status: Option<&str>| {
        let reg = cells(&[0, 0x800_1000, 0, 0x1000]);
        let mut words = vec![("compatible", string("arm,pl011")), ("reg", reg)];
        words.extend(status.map(|status| ("status", string(status))));
        node("pl011@8001000", &words)
    };
    let with = |status: Option<&str>, path: Option<&str>| {
        let mut tree = DeviceTree::from_fdt(&Fdt::new(&tree(&["pl011"])).unwrap());
        // The first that is found.
        tree.root.add_child(second(status));
        let other = [("compatible", string("arm,pl011")), ("reg", cells(&[0, 0x900_0000, 0, 1]))];
        tree.root.add_child(node("pl011@9000000", &other));
        let chosen = tree.root.child_mut("chosen").unwrap();
        chosen.remove_property("stdout-path");
        if let Some(path) = path {
            let value = string(path);
            let property = DeviceTreeProperty::new("stdout-path", value.as_slice()).unwrap();
            chosen.add_property(property);
        }
        platform(&tree.to_dtb()).unwrap().uart
    };
    for (status, path, expected) in [
        (None, None, 0x800_1000),
        (Some("okay"), None, 0x800_1000),
        (Some("ok"), None, 0x800_1000),
        (Some("disabled"), None, 0x900_0000),
        (Some("reserved"), None, 0x900_0000),
        (Some("fail-x"), None, 0x900_0000),
        (None, Some("/pl011@9000000"), 0x900_0000),
        (None, Some("/pl011@9000000:115200n8"), 0x900_0000),
        (None, Some("/pl011@90000000"), 0x800_1000),
        (None, Some("/intc@8000000"), 0x800_1000),
        (None, Some(":115200"), 0x800_1000),
    ] {
        assert_eq!(with(status, path), Some(expected), "{status:?} {path:?}");
    }
    let off = changed("/intc@8000000", |node| {
        let value = string("disabled");
        node.add_property(DeviceTreeProperty::new("status", value.as_slice()).unwrap());
    });
    assert_eq!(platform(&off).map(|_| ()), Err(PlatformError::NoGic));
    // A CPU that is off is there.
    let off = changed("/cpus/cpu@1", |node| {
        let value = string("disabled");
        node.add_property(DeviceTreeProperty::new("status", value.as_slice()).unwrap());
    });
    assert_eq!(platform(&off).unwrap().cpus[..], [0, 0x100]);
}

#[test]
fn numbers_have_as_many_cells_as_the_tree_says() {
    let (start, size) = (0x4000_0000_u32, 0x1000_0000_u32);
    for (address_cells, size_cells, memory) in [
        (1, 1, vec![start, size]),
        (1, 2, vec![start, 0, size]),
        (2, 1, vec![0, start, size]),
        (2, 2, vec![0, start, 0, size]),
    ] {
        let whole = tree(&["memory", "pl011", "intc"]);
        let mut tree = DeviceTree::from_fdt(&Fdt::new(&whole).unwrap());
        let number = |cells, n| (1..cells).map(|_| 0).chain([n]).collect::<Vec<u32>>();
        let frames = [(0x800_0000, 0x1_0000), (0x80a_0000, 0x10_0000)];
        let reg = frames
            .map(|(at, length)| [number(address_cells, at), number(size_cells, length)].concat());
        let properties = [("compatible", string("arm,gic-v3")), ("reg", cells(&reg.concat()))];
        tree.root.add_child(node("intc@8000000", &properties));
        for (name, count) in [("#address-cells", address_cells), ("#size-cells", size_cells)] {
            let value = cells(&[count]);
            let property = DeviceTreeProperty::new(name, value.as_slice()).unwrap();
            tree.root.add_property(property);
        }
        tree.root.add_child(node("memory@40000000", &[("reg", cells(&memory))]));
        let dtb = tree.to_dtb();
        let found = platform(&dtb).unwrap();
        assert_eq!(found.banks[..], [(0x4000_0000, 0x5000_0000)]);
        let mut room = vec![0; dtb.len() + 4096];
        let hyp = [(0x4f00_0000, 0x5000_0000)];
        let boot =
            HostBoot { hyp: &hyp, initrd: None, command_line: "", smmus: NONE, isolate: false };
        let bytes = hand_over(&dtb, &mut room, &boot).unwrap();
        let left = platform(&room[..bytes]).unwrap();
        assert_eq!(left.banks[..], [(0x4000_0000, 0x4f00_0000)]);
    }
    let wide = changed("/cpus", |cpus| {
        let value = cells(&[2]);
        cpus.add_property(DeviceTreeProperty::new("#address-cells", value.as_slice()).unwrap());
        for (n, cpu) in cpus.children_mut().enumerate() {
            let reg = cells(&[n as u32, 7]);
            cpu.add_property(DeviceTreeProperty::new("reg", reg.as_slice()).unwrap());
        }
    });
    assert_eq!(platform(&wide).unwrap().cpus[..], [7, 1 << 32 | 7]);
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
    let boot = HostBoot { hyp: &[], initrd: None, command_line: "x", smmus: NONE, isolate: false };
    let mut room = vec![0; dtb.len() + 4096];
    assert_eq!(hand_over(&dtb, &mut room, &boot), Err(PlatformError::BadTree));
    for bytes in 0..40 {
        assert!(!is_editable(&good[..bytes]));
    }
}

#[test]
fn no_room_and_no_chosen_are_said() {
    let dtb = tree(&[]);
    let boot =
        HostBoot { hyp: &[], initrd: Some((0, 1)), command_line: "", smmus: NONE, isolate: false };
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

/// What only works with IMPLEMENTATION DEFINED registers is disabled in the host's tree, at the root and on a
/// bus; its neighbours are not (r41).
#[test]
fn r41_devices_behind_implementation_defined_registers_are_disabled() {
    let mut made = DeviceTree::from_fdt(&Fdt::new(&tree(&[])).unwrap());
    let mut bus = node("soc", &[("compatible", string("simple-bus"))]);
    for (n, compatible) in super::edit::OUT_OF_REACH.iter().enumerate() {
        let properties = [("compatible", string(compatible)), ("status", string("okay"))];
        made.root.add_child(node(&format!("a{n}"), &properties[..1 + n % 2]));
        bus.add_child(node(&format!("b{n}"), &properties[..1 + n % 2]));
    }
    bus.add_child(node("other", &[("compatible", string("arm,dsu-pmu2"))]));
    made.root.add_child(bus);
    let dtb = made.to_dtb();
    let mut room = vec![0; dtb.len() + 4096];
    let host = HostBoot { hyp: &[], initrd: None, command_line: "", smmus: NONE, isolate: false };
    let length = hand_over(&dtb, &mut room, &host).unwrap();
    let edited = Fdt::new(&room[..length]).unwrap();
    for n in 0..super::edit::OUT_OF_REACH.len() {
        for path in [format!("/a{n}"), format!("/soc/b{n}")] {
            assert!(!is_okay(&edited.find_node(&path).unwrap()), "{path}");
        }
    }
    for path in ["/soc/other", "/pl011@9000000", "/psci", "/soc"] {
        assert!(is_okay(&edited.find_node(path).unwrap()), "{path}");
    }
}

/// One of a CPU's debug components at this address.
fn component(name: &str, compatible: &str, reg: &[u32]) -> DeviceTreeNode {
    node(name, &[("compatible", string(compatible)), ("reg", cells(reg))])
}

#[test]
fn debug_components_are_withheld_and_disabled() {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(&tree(&[])).unwrap());
    let words =
        [("#address-cells", cells(&[2])), ("#size-cells", cells(&[1])), ("ranges", Vec::new())];
    let mut bus = node("soc", &words);
    // One device over all of them.
    bus.add_child(component("all@20000000", "x", &[0, 0x2000_0000, 0xf000_0000]));
    bus.add_child(component("all@1,0", "x", &[1, 0, 0x8000_2000]));
    let mut two = component("debug@21000000", "x", &[0, 0x2100_0000, 0x1000]);
    let both = b"arm,coresight-cpu-debug\0arm,primecell\0";
    two.add_property(DeviceTreeProperty::new("compatible", both.as_slice()).unwrap());
    let mut idle = component("etm@23000000", "arm,coresight-etm4x", &[0, 0x2300_0800, 0x10]);
    idle.add_property(DeviceTreeProperty::new("status", b"okay\0".as_slice()).unwrap());
    // One behind the other, in no order; one with two ranges; somebody else's name for it.
    bus.add_child(component("cti@21001000", "arm,coresight-cti", &[0, 0x2100_1000, 0x1000]));
    bus.add_child(two);
    bus.add_child(idle);
    bus.add_child(component("tpdm@24000000", "qcom,coresight-tpdm", &[1, 0, 1, 1, 0x8000_0000, 1]));
    // What only sounds like it.
    bus.add_child(component("cs@25000000", "arm,coresighted", &[0, 0x2500_0000, 0x1000]));
    tree.root.add_child(bus);
    let dtb = tree.to_dtb();
    let fdt = Fdt::new(&dtb).unwrap();
    let left = [
        (0x800_0000, 0x801_0000),
        (0x80a_0000, 0x900_1000),
        (0x2000_0000, 0x2100_0000),
        (0x2100_2000, 0x2300_0000),
        (0x2300_1000, 0x4000_0000),
        (0x5000_0000, 0x1_0000_0000),
        (0x1_0800_0000, 0x1_8000_0000),
        (0x1_8000_1000, 0x1_8000_2000),
    ];
    assert_eq!(devices(&fdt, NONE, false), left);
    let mut room = vec![0; dtb.len() + 4096];
    let boot = HostBoot { hyp: &[], initrd: None, command_line: "", smmus: NONE, isolate: false };
    let bytes = hand_over(&dtb, &mut room, &boot).unwrap();
    let fdt = Fdt::new(&room[..bytes]).unwrap();
    // Nothing of the rest has changed, and the host that looks itself withholds the same.
    assert_eq!(devices(&fdt, NONE, false), left);
    let bus = fdt.find_node("/soc").unwrap();
    for child in bus.children() {
        let status = child.property("status").map(|status| status.value().to_vec());
        let kept = child.name().starts_with("cs@") || child.name().starts_with("all@");
        assert_eq!(
            status,
            if kept { None } else { Some(b"disabled\0".to_vec()) },
            "{}",
            child.name()
        );
    }
    // A tree that has no room for it is refused, not handed on as it is.
    let boot = HostBoot { hyp: &[], initrd: None, command_line: "", smmus: NONE, isolate: false };
    let mut room = vec![0; dtb.len()];
    assert_eq!(hand_over(&dtb, &mut room, &boot), Err(PlatformError::NoRoom));
}

#[test]
fn what_a_debugger_may_do() {
    for status in [0, 0b1010, 0b10, 0b1000, 0b1010_1010] {
        assert_eq!(external_debug(Some(status)), "closed", "{status:#b}");
    }
    for status in [0b11, 0b1111, 0b1011] {
        assert!(external_debug(Some(status)).contains("halt CPUs ("), "{status:#b}");
    }
    assert!(external_debug(Some(0b1110)).contains("sample"));
    assert_eq!(external_debug(None), "unknown");
}

#[test]
fn of_two_debug_components_of_one_name_none_is_missed() {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(&tree(&[])).unwrap());
    for n in 0..2 {
        let mut bus = node(&format!("bus@{n}"), &[]);
        bus.add_child(component("debug", "arm,coresight-cpu-debug", &[]));
        tree.root.add_child(bus);
    }
    let mut nested = component("debug@1", "arm,coresight-funnel", &[]);
    nested.add_child(component("port", "arm,coresight-stm", &[]));
    tree.root.add_child(nested);
    let dtb = tree.to_dtb();
    let mut room = vec![0; dtb.len() + 4096];
    let boot = HostBoot { hyp: &[], initrd: None, command_line: "", smmus: NONE, isolate: false };
    let bytes = hand_over(&dtb, &mut room, &boot).unwrap();
    let fdt = Fdt::new(&room[..bytes]).unwrap();
    for path in ["/bus@0/debug", "/bus@1/debug", "/debug@1", "/debug@1/port"] {
        let status = fdt.find_node(path).unwrap().property("status").unwrap();
        assert_eq!(status.value(), b"disabled\0", "{path}");
    }
}

#[test]
fn the_loaders_initrd_is_where_chosen_says() {
    let with = |start: Vec<u8>, end: Vec<u8>| {
        let dtb = changed("/chosen", |chosen| {
            for (name, value) in [("linux,initrd-start", &start), ("linux,initrd-end", &end)] {
                let property = DeviceTreeProperty::new(name, value.as_slice()).unwrap();
                chosen.add_property(property);
            }
        });
        platform(&dtb).unwrap().initrd
    };
    let wide = |n: u64| n.to_be_bytes().to_vec();
    let place = Some((0x4f00_0000, 0x4f00_1234));
    assert_eq!(with(cells(&[0x4f00_0000]), cells(&[0x4f00_1234])), place);
    assert_eq!(with(wide(0x4f00_0000), wide(0x4f00_1234)), place);
    assert_eq!(with(cells(&[0x4f00_0000]), wide(0x4f00_1234)), place);
    assert_eq!(with(cells(&[5]), cells(&[5])), None);
    assert_eq!(with(cells(&[6]), cells(&[5])), None);
    assert_eq!(with(vec![1, 2, 3], cells(&[5])), None);
    assert_eq!(read(&[]).unwrap().initrd, None);
}

proptest! {
    /// Wherever the loader has put its tree and its initrd, and whatever is reserved: hyp's memory lies
    /// over none of it, and where there is room it finds some.
    #[test]
    fn r45_the_pool_lies_over_nothing(
        dtb in 0u64..0x1_0000,
        initrd in 0u64..0x1_0000,
        initrd_bytes in 1u64..0x200_0000,
        at_the_top in 0u8..4,
        reserved in prop::collection::vec((0u64..0x1_0000, 1u64..0x40_0000), 0..6),
        megabytes in 1u64..24,
    ) {
        let (start, end) = (0x4000_0000u64, 0x5000_0000u64);
        let place = |page: u64, bytes: u64, top: bool| {
            let at = if top { end - bytes } else { start + page * 0x1000 };
            (at, (at + bytes).min(end))
        };
        let mut platform = read(&[]).unwrap();
        for (page, bytes) in reserved {
            platform.reserved.push(place(page, bytes, false));
        }
        let dtb = place(dtb, 0x1_2345, at_the_top & 1 != 0);
        platform.initrd = Some(place(initrd, initrd_bytes, at_the_top & 2 != 0));
        let image = [(0x4020_0000, 0x4080_0000), (0x4080_0000, 0x40a0_0000)];
        let loaded = platform.loaded(&image, dtb);
        let there: Vec<Range> = image.into_iter().chain([dtb]).chain(platform.initrd).collect();
        let taken: Vec<Range> = there.into_iter().chain(platform.reserved.clone()).collect();
        let bytes = megabytes << 20;
        match platform.place(image[0].0, bytes, 2 << 20, &loaded) {
            Some(pool) => {
                prop_assert_eq!(pool.1 - pool.0, bytes);
                prop_assert!(pool.0 >= start && pool.1 <= end);
                for other in &taken {
                    prop_assert!(!overlaps(pool, *other), "{:x?} {:x?}", pool, other);
                }
            }
            None => {
                // Then there is none.
                let free = (start..=end - bytes).step_by(2 << 20).any(|at| {
                    taken.iter().all(|other| !overlaps((at, at + bytes), *other))
                });
                prop_assert!(!free);
            }
        }
        // And what is wiped at boot is none of it, either.
        let free = crate::boot::ranges::without(&[(start, end)], &taken).unwrap();
        for piece in free {
            prop_assert!(taken.iter().all(|other| !overlaps(piece, *other)));
        }
    }
}
