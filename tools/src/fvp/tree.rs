//! The device tree of the model: it has none of its own.
//!
//! What the firmware, hyp and our kernels need, with Linux's bindings, so that Linux finds its way, too.
//! It is what the EL3 firmware reads: PSCI is the firmware's to add, and what is EL3's own is marked as
//! QEMU marks it. Addresses and interrupts: Arm Fast Models FVP Reference Guide, "Base Platform memory
//! map" and "Base Platform interrupt assignments".

use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use crate::board::Board;

/// CPUs of the model: two clusters of four.
pub const MAX_CPUS: u32 = 8;

const RAM_BYTES: u64 = 2 << 30;

const SYSTEM_REGISTERS: u64 = 0x1c01_0000;
const UART: u64 = 0x1c09_0000;
/// Its SPI.
const UART_INTERRUPT: u32 = 5;
const UART_HERTZ: u32 = 24_000_000;

/// Distributor, redistributors, and the CPU interface in memory with its hypervisor and guest halves.
const GIC: [(u64, u64); 5] = [
    (0x2f00_0000, 0x1_0000),
    (0x2f10_0000, 0x20_0000),
    (0x2c00_0000, 0x2000),
    (0x2c01_0000, 0x2000),
    (0x2c02_f000, 0x2000),
];

const GIC_PHANDLE: u32 = 1;
const CLOCK_PHANDLE: u32 = 2;

/// Kinds and triggers of interrupts (Linux, arm-gic.h).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
const LEVEL_LOW: u32 = 8;

/// PPIs of the generic timer: EL3's, EL1's, the virtual one, EL2's.
const TIMER: [u32; 4] = [13, 14, 11, 10];
/// The GIC's maintenance interrupt.
const MAINTENANCE: u32 = 9;

/// A property's value.
enum Value<'a> {
    Nothing,
    Cells(&'a [u32]),
    Strings(&'a [&'a str]),
    /// Addresses and sizes of two cells each.
    Regions(&'a [(u64, u64)]),
}

impl Value<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Cells(cells) => cells.iter().flat_map(|cell| cell.to_be_bytes()).collect(),
            Self::Strings(strings) => {
                strings.iter().flat_map(|text| [text.as_bytes(), b"\0"].concat()).collect()
            }
            Self::Regions(regions) => {
                let number = |&(start, bytes): &(u64, u64)| [start, bytes].map(u64::to_be_bytes);
                regions.iter().flat_map(number).flatten().collect()
            }
        }
    }
}

fn node(name: &str, properties: &[(&str, Value<'_>)]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(name);
    for (name, value) in properties {
        node.add_property(DeviceTreeProperty::new_unchecked(*name, value.bytes()));
    }
    node
}

fn cpus(count: u32) -> DeviceTreeNode {
    use Value::*;
    let mut cpus = node("cpus", &[("#address-cells", Cells(&[2])), ("#size-cells", Cells(&[0]))]);
    for affinity in (0..count).map(Board::FVP.affinity) {
        let reg = [(affinity >> 32) as u32, affinity as u32];
        cpus.add_child(node(
            &format!("cpu@{affinity:x}"),
            &[
                ("device_type", Strings(&["cpu"])),
                ("compatible", Strings(&["arm,armv8"])),
                ("reg", Cells(&reg)),
            ],
        ));
    }
    cpus
}

/// The tree of a model with so many CPUs.
pub fn tree(count: u32) -> Vec<u8> {
    use Value::*;
    let uart = format!("serial@{UART:x}");
    let uart_path = format!("/{uart}");
    let timer: Vec<u32> = TIMER.into_iter().flat_map(|ppi| [PPI, ppi, LEVEL_LOW]).collect();
    let mut tree = DeviceTree::new();
    tree.root = node(
        "",
        &[
            ("model", Strings(&["FVP Base RevC"])),
            ("compatible", Strings(&["arm,fvp-base-revc", "arm,vexpress"])),
            ("interrupt-parent", Cells(&[GIC_PHANDLE])),
            ("#address-cells", Cells(&[2])),
            ("#size-cells", Cells(&[2])),
        ],
    );
    let nodes = [
        node("chosen", &[("stdout-path", Strings(&[&uart_path]))]),
        node("aliases", &[("serial0", Strings(&[&uart_path]))]),
        cpus(count),
        node(
            &format!("memory@{:x}", Board::FVP.ram),
            &[
                ("device_type", Strings(&["memory"])),
                ("reg", Regions(&[(Board::FVP.ram, RAM_BYTES)])),
            ],
        ),
        node(
            &format!("interrupt-controller@{:x}", GIC[0].0),
            &[
                ("compatible", Strings(&["arm,gic-v3"])),
                ("#interrupt-cells", Cells(&[3])),
                ("#address-cells", Cells(&[0])),
                ("interrupt-controller", Nothing),
                ("reg", Regions(&GIC)),
                ("interrupts", Cells(&[PPI, MAINTENANCE, LEVEL_HIGH])),
                ("phandle", Cells(&[GIC_PHANDLE])),
            ],
        ),
        node(
            "timer",
            &[("compatible", Strings(&["arm,armv8-timer"])), ("interrupts", Cells(&timer))],
        ),
        node(
            "clock-24mhz",
            &[
                ("compatible", Strings(&["fixed-clock"])),
                ("#clock-cells", Cells(&[0])),
                ("clock-frequency", Cells(&[UART_HERTZ])),
                ("phandle", Cells(&[CLOCK_PHANDLE])),
            ],
        ),
        node(
            &uart,
            &[
                ("compatible", Strings(&["arm,pl011", "arm,primecell"])),
                ("reg", Regions(&[(UART, 0x1000)])),
                ("interrupts", Cells(&[SPI, UART_INTERRUPT, LEVEL_HIGH])),
                ("clocks", Cells(&[CLOCK_PHANDLE, CLOCK_PHANDLE])),
                ("clock-names", Strings(&["uartclk", "apb_pclk"])),
            ],
        ),
        // By these the firmware turns the machine off; nobody below EL3 is to.
        node(
            &format!("sysreg@{SYSTEM_REGISTERS:x}"),
            &[
                ("compatible", Strings(&["arm,vexpress-sysreg"])),
                ("reg", Regions(&[(SYSTEM_REGISTERS, 0x1000)])),
                ("status", Strings(&["disabled"])),
                ("secure-status", Strings(&["okay"])),
            ],
        ),
    ];
    for node in nodes {
        tree.root.add_child(node);
    }
    tree.to_dtb()
}
