//! The device tree: what the firmware learns from it, and what it adds.
//!
//! With a secure world, QEMU leaves PSCI to the firmware: no /psci, no enable-method. Devices of the
//! secure world are in the tree, disabled; who runs below EL3 can't reach them, so the tree that it
//! gets does not have them.
//!
//! What CPU_SUSPEND takes is in /cpus/idle-states, as the binding has it (Linux,
//! Documentation/devicetree/bindings/cpu/idle-states.yaml): so that who runs below knows that there is
//! a CPU_SUSPEND to call, which QEMU's own PSCI answers by never waking up. The CPUs refer to them: the
//! states save nothing, so a Linux uses them at every chance, and loses its registers as often.

use crate::config::SuspendFormat;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use thiserror::Error;
use umbra_shared::firmware::FIRMWARE_CPUS;

/// A range of physical addresses, start inclusive, end exclusive.
pub type Range = (u64, u64);

/// Memory banks that fit.
const MAX_BANKS: usize = 8;
/// Redistributor regions that fit.
const MAX_REGIONS: usize = 4;

/// Why the firmware can't run on the machine that a tree describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TreeError {
    #[error("the device tree is damaged")]
    Damaged,
    #[error("the device tree lists no CPUs, or more than {FIRMWARE_CPUS}")]
    Cpus,
    #[error("the device tree describes no GICv3 (QEMU: -M virt,gic-version=3)")]
    NoGic,
    #[error("the device tree has no memory, or more than {MAX_BANKS} banks")]
    Memory,
    #[error(
        "the device tree has neither a secure gpio-poweroff (QEMU: -M virt,secure=on) nor a Versatile \
         Express's system registers"
    )]
    NoPowerOff,
}

/// What turns the machine off, and resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Pins that do, driven high.
    Pins {
        /// Turns it off.
        off: Pin,
        /// Resets it.
        reset: Option<Pin>,
    },
    /// A Versatile Express's system registers (Linux, vexpress-sysreg.txt), at this address.
    SystemRegisters(u64),
}

/// A pin of a PL061.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The PL061's address.
    pub pl061: u64,
    /// Which of its eight pins.
    pub number: u32,
}

/// What the tree says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// MPIDR affinities, in the tree's order.
    pub affinities: ArrayVec<u64, FIRMWARE_CPUS>,
    /// Memory of the non-secure world.
    pub banks: ArrayVec<Range, MAX_BANKS>,
    /// The GIC's distributor.
    pub distributor: u64,
    /// The regions of its redistributors.
    pub redistributors: ArrayVec<Range, MAX_REGIONS>,
    /// The console: a PL011.
    pub uart: Option<u64>,
    /// What turns the machine off.
    pub power: Power,
}

fn cells(bytes: &[u8]) -> Option<u64> {
    match bytes {
        [a, b, c, d] => Some(u64::from(u32::from_be_bytes([*a, *b, *c, *d]))),
        _ => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
    }
}

fn ranges(node: FdtNode<'_>) -> impl Iterator<Item = Option<Range>> {
    node.reg().ok().flatten().into_iter().flatten().map(|reg| {
        let start = reg.address::<u64>().ok()?;
        Some((start, start.checked_add(reg.size::<u64>().ok()?)?))
    })
}

/// The pin that the node of this kind names.
fn pin(fdt: &Fdt<'_>, compatible: &str) -> Option<Pin> {
    let node = fdt.root().children().find(|node| node.is_compatible(compatible))?;
    let gpios = node.property("gpios")?;
    let (phandle, rest) = gpios.value().split_first_chunk::<4>()?;
    let number = u32::from_be_bytes(*rest.first_chunk::<4>()?);
    let controller = fdt.root().children().find(|node| {
        node.is_compatible("arm,pl061")
            && node.property("phandle").is_some_and(|property| property.value() == phandle)
    })?;
    let (pl061, _) = ranges(controller).next()??;
    (number < 8).then_some(Pin { pl061, number })
}

fn power(fdt: &Fdt<'_>) -> Option<Power> {
    if let Some(off) = pin(fdt, "gpio-poweroff") {
        return Some(Power::Pins { off, reset: pin(fdt, "gpio-restart") });
    }
    let node = fdt.root().children().find(|node| node.is_compatible("arm,vexpress-sysreg"))?;
    let (start, _) = ranges(node).next()??;
    Some(Power::SystemRegisters(start))
}

/// What of a range of memory is at `ram` or above.
fn above((start, end): Range, ram: u64) -> Option<Range> {
    (end > ram).then_some((start.max(ram), end))
}

impl Facts {
    /// Reads a tree. Memory below `ram` is not the non-secure world's.
    ///
    /// # Errors
    ///
    /// What is missing from it.
    pub fn read(fdt: &Fdt<'_>, ram: u64) -> Result<Self, TreeError> {
        let mut affinities = ArrayVec::new();
        for cpu in fdt.cpus().map_err(|_| TreeError::Cpus)?.cpus() {
            let id = cpu.property("reg").and_then(|reg| cells(reg.value()));
            affinities.try_push(id.ok_or(TreeError::Cpus)?).map_err(|_| TreeError::Cpus)?;
        }
        if affinities.is_empty() {
            return Err(TreeError::Cpus);
        }
        let mut banks = ArrayVec::new();
        let root = fdt.root();
        for node in root.children().filter(|node| node.name_without_address() == "memory") {
            for range in ranges(node) {
                if let Some(bank) = above(range.ok_or(TreeError::Damaged)?, ram) {
                    banks.try_push(bank).map_err(|_| TreeError::Memory)?;
                }
            }
        }
        if banks.is_empty() {
            return Err(TreeError::Memory);
        }
        let gic = root.children().find(|node| node.is_compatible("arm,gic-v3"));
        let gic = gic.ok_or(TreeError::NoGic)?;
        let regions = gic
            .property("#redistributor-regions")
            .and_then(|property| cells(property.value()))
            .unwrap_or(1);
        let mut regs = ranges(gic);
        let (distributor, _) = regs.next().flatten().ok_or(TreeError::NoGic)?;
        let mut redistributors = ArrayVec::new();
        for _ in 0..regions {
            let region = regs.next().flatten().ok_or(TreeError::NoGic)?;
            redistributors.try_push(region).map_err(|_| TreeError::NoGic)?;
        }
        let uart = root
            .children()
            .find(|node| node.is_compatible("arm,pl011") && node.property("status").is_none())
            .and_then(|node| ranges(node).next()?)
            .map(|(start, _)| start);
        Ok(Self {
            affinities,
            banks,
            distributor,
            redistributors,
            uart,
            power: power(fdt).ok_or(TreeError::NoPowerOff)?,
        })
    }
}

fn property(name: &str, value: &str) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}

fn psci() -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("psci");
    let mut compatible = Vec::new();
    for name in ["arm,psci-1.0", "arm,psci-0.2"] {
        compatible.extend_from_slice(name.as_bytes());
        compatible.push(0);
    }
    node.add_property(DeviceTreeProperty::new_unchecked("compatible", compatible.as_slice()));
    node.add_property(property("method", "smc"));
    node
}

fn idle_state(name: &str, handle: u32, power_state: u32, loses_timer: bool) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    node.add_property(property("compatible", "arm,idle-state"));
    for (name, value) in [
        ("phandle", handle),
        ("arm,psci-suspend-param", power_state),
        ("entry-latency-us", 1),
        ("exit-latency-us", 1),
        ("min-residency-us", 2),
    ] {
        let cell = value.to_be_bytes();
        node.add_property(DeviceTreeProperty::new_unchecked(name, cell.as_slice()));
    }
    if loses_timer {
        let nothing: &[u8] = &[];
        node.add_property(DeviceTreeProperty::new_unchecked("local-timer-stop", nothing));
    }
    node
}

/// The states' phandles: QEMU's begin at 0x8000.
const IDLE_HANDLES: [u32; 2] = [0x10, 0x11];

fn idle_states(format: SuspendFormat) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("idle-states");
    node.add_property(property("entry-method", "psci"));
    let [standby, power_down] = IDLE_HANDLES;
    node.add_child(idle_state("cpu-standby", standby, SuspendFormat::STANDBY, false));
    node.add_child(idle_state("cpu-power-down", power_down, format.power_down(), true));
    node
}

/// The reg of a node of memory without what is below `ram`, in the root's cells; `None`: nothing is
/// left.
fn memory_above(fdt: &Fdt<'_>, node: FdtNode<'_>, ram: u64) -> Option<Vec<u8>> {
    // The defaults are the Devicetree Specification's (2.3.5).
    let cells = |name, default| {
        let property = fdt.root().property(name);
        let cells = property.and_then(|p| p.value_as::<u32>().ok()).unwrap_or(default);
        8 - 4 * cells.clamp(1, 2) as usize
    };
    let (address, size) = (cells("#address-cells", 2), cells("#size-cells", 1));
    let mut reg = Vec::new();
    for (start, end) in ranges(node).flatten().filter_map(|range| above(range, ram)) {
        reg.extend_from_slice(&start.to_be_bytes()[address..]);
        reg.extend_from_slice(&(end - start).to_be_bytes()[size..]);
    }
    (!reg.is_empty()).then_some(reg)
}

/// The tree for EL2: with PSCI, without the secure world, without memory below `ram`.
pub fn hand_over(fdt: &Fdt<'_>, format: SuspendFormat, ram: u64) -> Vec<u8> {
    let secure: Vec<_> = fdt
        .root()
        .children()
        .filter(|node| node.property("secure-status").is_some())
        .filter(|node| {
            node.property("status").is_some_and(|status| status.value() == b"disabled\0")
        })
        .map(|node| node.name())
        .collect();
    let mut tree = DeviceTree::from_fdt(fdt);
    for name in secure {
        tree.root.remove_child(name);
    }
    for memory in fdt.root().children().filter(|node| node.name_without_address() == "memory") {
        match memory_above(fdt, memory, ram) {
            None => {
                tree.root.remove_child(memory.name());
            }
            Some(reg) => {
                if let Some(node) = tree.root.child_mut(memory.name()) {
                    node.add_property(DeviceTreeProperty::new_unchecked("reg", reg.as_slice()));
                }
            }
        }
    }
    tree.root.add_child(psci());
    if let Some(cpus) = tree.root.child_mut("cpus") {
        cpus.add_child(idle_states(format));
        for cpu in cpus.children_mut() {
            let is_cpu =
                (*cpu).property("device_type").is_some_and(|property| property.value() == b"cpu\0");
            if is_cpu {
                cpu.add_property(property("enable-method", "psci"));
                let states: Vec<u8> = IDLE_HANDLES.into_iter().flat_map(u32::to_be_bytes).collect();
                cpu.add_property(DeviceTreeProperty::new_unchecked(
                    "cpu-idle-states",
                    states.as_slice(),
                ));
            }
        }
    }
    tree.to_dtb()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn bytes(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    fn string(text: &str) -> Vec<u8> {
        [text.as_bytes(), b"\0"].concat()
    }

    fn node(name: &str, properties: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
        let mut node = DeviceTreeNode::new(name).unwrap();
        for (name, value) in properties {
            node.add_property(DeviceTreeProperty::new(*name, value.as_slice()).unwrap());
        }
        node
    }

    fn secure(name: &str, properties: &[(&str, Vec<u8>)]) -> DeviceTreeNode {
        let mut node = node(name, properties);
        for (name, value) in [("status", "disabled"), ("secure-status", "okay")] {
            node.add_property(property(name, value));
        }
        node
    }

    /// A tree as QEMU's virt board has it with a secure world, without the nodes in `without`.
    pub(crate) fn tree(without: &[&str]) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        tree.root = node("", &[("#address-cells", bytes(&[2])), ("#size-cells", bytes(&[2]))]);
        let mut cpus =
            node("cpus", &[("#address-cells", bytes(&[1])), ("#size-cells", bytes(&[0]))]);
        cpus.add_child(node("cpu-map", &[]));
        for n in 0..2 {
            let properties = [("device_type", string("cpu")), ("reg", bytes(&[n]))];
            cpus.add_child(node(&format!("cpu@{n}"), &properties));
        }
        let pin = |number| ("gpios", bytes(&[0x8008, number, 0]));
        let compatible = |name| ("compatible", string(name));
        let reg = |base, size| ("reg", bytes(&[0, base, 0, size]));
        let nodes = [
            node(
                "memory@40000000",
                &[("device_type", string("memory")), reg(0x4000_0000, 0x4000_0000)],
            ),
            secure("gpio-restart", &[compatible("gpio-restart"), pin(1)]),
            secure("gpio-poweroff", &[compatible("gpio-poweroff"), pin(0)]),
            node(
                "pl061@9030000",
                &[compatible("arm,pl061"), ("phandle", bytes(&[0x8007])), reg(0x903_0000, 0x1000)],
            ),
            secure(
                "pl061@90b0000",
                &[compatible("arm,pl061"), ("phandle", bytes(&[0x8008])), reg(0x90b_0000, 0x1000)],
            ),
            secure("pl011@9040000", &[compatible("arm,pl011"), reg(0x904_0000, 0x1000)]),
            secure("secram@e000000", &[("device_type", string("memory")), reg(0xe00_0000, 0x1000)]),
            node("pl011@9000000", &[compatible("arm,pl011"), reg(0x900_0000, 0x1000)]),
            node(
                "intc@8000000",
                &[
                    compatible("arm,gic-v3"),
                    ("reg", bytes(&[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000])),
                ],
            ),
            cpus,
        ];
        for node in nodes {
            let name = Node::name(&node).to_string();
            if !without.iter().any(|missing| name.starts_with(missing)) {
                tree.root.add_child(node);
            }
        }
        tree.to_dtb()
    }

    fn read(without: &[&str]) -> Result<Facts, TreeError> {
        Facts::read(&Fdt::new(&tree(without)).unwrap(), 0)
    }

    #[test]
    fn the_machine_is_read() {
        let facts = read(&[]).unwrap();
        assert_eq!(facts.affinities[..], [0, 1]);
        assert_eq!(facts.banks[..], [(0x4000_0000, 0x8000_0000)]);
        assert_eq!(facts.distributor, 0x800_0000);
        assert_eq!(facts.redistributors[..], [(0x80a_0000, 0x900_0000)]);
        assert_eq!(facts.uart, Some(0x900_0000));
        let pin = |number| Pin { pl061: 0x90b_0000, number };
        assert_eq!(facts.power, Power::Pins { off: pin(0), reset: Some(pin(1)) });
    }

    #[test]
    fn memory_can_begin_higher() {
        for (ram, left) in [
            (0, (0x4000_0000, 0x8000_0000)),
            (0x4000_0000, (0x4000_0000, 0x8000_0000)),
            (0x6000_0000, (0x6000_0000, 0x8000_0000)),
        ] {
            let dtb = tree(&[]);
            let fdt = Fdt::new(&dtb).unwrap();
            assert_eq!(Facts::read(&fdt, ram).unwrap().banks[..], [left]);
            let edited = hand_over(&fdt, SuspendFormat::Original, ram);
            // Who reads the edited tree finds the same.
            let again = Fdt::new(&edited).unwrap();
            let memory = again.root().children().find(|n| n.name_without_address() == "memory");
            assert_eq!(ranges(memory.unwrap()).collect::<Vec<_>>(), [Some(left)]);
        }
        let dtb = tree(&[]);
        let fdt = Fdt::new(&dtb).unwrap();
        assert_eq!(Facts::read(&fdt, 0x8000_0000).map(|_| ()), Err(TreeError::Memory));
        let edited = hand_over(&fdt, SuspendFormat::Original, 0x8000_0000);
        let edited = Fdt::new(&edited).unwrap();
        assert!(!edited.root().children().any(|n| n.name_without_address() == "memory"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (name, error) in [
            ("cpus", TreeError::Cpus),
            ("memory", TreeError::Memory),
            ("intc", TreeError::NoGic),
            ("gpio-poweroff", TreeError::NoPowerOff),
            ("pl061@90b", TreeError::NoPowerOff),
        ] {
            assert_eq!(read(&[name]).map(|_| ()), Err(error), "{name}");
        }
    }

    #[test]
    fn el2_gets_psci_and_no_secure_world() {
        let dtb = tree(&[]);
        let edited = hand_over(&Fdt::new(&dtb).unwrap(), SuspendFormat::Extended, 0);
        let fdt = Fdt::new(&edited).unwrap();
        let text = |path: &str, name: &str| {
            let property = fdt.find_node(path).unwrap().property(name)?;
            Some(property.value_as::<&str>().unwrap().to_owned())
        };
        assert_eq!(text("/psci", "method").as_deref(), Some("smc"));
        assert!(fdt.find_node("/psci").unwrap().is_compatible("arm,psci-1.0"));
        assert_eq!(text("/cpus/cpu@1", "enable-method").as_deref(), Some("psci"));
        assert_eq!(text("/cpus/cpu-map", "enable-method"), None);
        let states = fdt.find_node("/cpus/idle-states").unwrap();
        let parameters: Vec<_> = states
            .children()
            .map(|state| state.property("arm,psci-suspend-param").unwrap().value().to_vec())
            .collect();
        assert_eq!(parameters, [[0, 0, 0, 0], [0x40, 0, 0, 0]]);
        let used = fdt.find_node("/cpus/cpu@1").unwrap().property("cpu-idle-states").unwrap();
        let handles: Vec<u8> = states
            .children()
            .flat_map(|state| state.property("phandle").unwrap().value().to_vec())
            .collect();
        assert_eq!(used.value(), handles);
        assert_eq!(fdt.cpus().unwrap().cpus().count(), 2);
        let names: Vec<_> = fdt.root().children().map(|node| node.name().to_owned()).collect();
        assert!(names.contains(&"pl011@9000000".to_owned()));
        assert!(names.contains(&"pl061@9030000".to_owned()));
        for hidden in ["pl011@9040000", "pl061@90b0000", "secram@e000000", "gpio-poweroff"] {
            assert!(!names.contains(&hidden.to_owned()), "{hidden}");
        }
    }
}
