//! What the device tree says of the machine.

mod masters;

use super::{MAX_CPUS, layout, sysreg};
use arrayvec::ArrayVec;
use core::ops::Range;
use dtoolkit::{
    Node, Property,
    fdt::{Fdt, FdtNode},
    standard::NodeStandard,
};
use thiserror::Error;

pub use masters::{BUS_BYTES, Masters, Pcie, Registers};

/// A range of physical addresses.
pub type PhysicalRange = Range<u64>;

const MAX_RAM: usize = 8;
const MAX_IDLE_STATES: usize = 8;
const MAX_RESERVED: usize = 32;
/// The boot protocol's limit.
const MAX_TREE_BYTES: usize = 2 << 20;

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC #0
    Smc,
    /// HVC #0
    Hvc,
}

/// Why this machine can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Not a flattened device tree, or a damaged one.
    #[error("not a valid flattened device tree")]
    Tree,
    /// No /memory.
    #[error("it names no memory")]
    NoMemory,
    /// No GICv3.
    #[error("it names no GICv3 interrupt controller")]
    NoGic,
    /// No PSCI node with a method.
    #[error("it names no PSCI conduit")]
    NoPsci,
    /// No CPUs, or the boot CPU isn't among them.
    #[error("it does not name the boot CPU")]
    NoCpus,
    /// More ranges than the kernel has room for.
    #[error("it has more {0} ranges than the kernel has room for")]
    TooMany(&'static str),
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    /// All RAM.
    pub ram: ArrayVec<PhysicalRange, MAX_RAM>,
    /// RAM that is somebody else's, the initrd and the device tree.
    pub reserved: ArrayVec<PhysicalRange, MAX_RESERVED>,
    /// MPIDR_EL1 affinities: the boot CPU, then the others as the tree lists them.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// The PL011, if there is one.
    pub uart: Option<PhysicalRange>,
    /// The GICv3's distributor.
    pub gicd: PhysicalRange,
    /// The GICv3's redistributors.
    pub gicr: PhysicalRange,
    /// The first ITS, if there is one. The kernel has no use for it.
    pub its: Option<PhysicalRange>,
    /// How to reach PSCI.
    pub conduit: Conduit,
    /// The initial RAM disk.
    pub initrd: Option<PhysicalRange>,
    /// The power_state of each idle state that CPU_SUSPEND takes.
    pub idle_states: ArrayVec<u32, MAX_IDLE_STATES>,
    /// What reads and writes memory by itself.
    pub masters: Masters,
    /// The kernel command line.
    pub bootargs: &'static str,
}

/// The device tree through the boot window.
pub(super) fn boot_tree(pa: u64) -> Result<Fdt<'static>, Error> {
    let offset = pa as usize & (MAX_TREE_BYTES - 1);
    let start: *const u8 = core::ptr::with_exposed_provenance(layout::WINDOW + offset);
    // SAFETY: the boot window maps 4 MiB from the block of `pa` on, and nobody writes to the tree.
    let header = unsafe { core::slice::from_raw_parts(start, 8) };
    if header[..4] != [0xd0, 0x0d, 0xfe, 0xed] {
        return Err(Error::Tree);
    }
    let bytes = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if bytes > MAX_TREE_BYTES {
        return Err(Error::Tree);
    }
    // SAFETY: as above; the length is within the window.
    Fdt::new(unsafe { core::slice::from_raw_parts(start, bytes) }).map_err(|_| Error::Tree)
}

/// Calls `f` for every node, parents first, until it returns something.
fn find<'a, T>(node: FdtNode<'a>, f: &mut impl FnMut(&FdtNode<'a>) -> Option<T>) -> Option<T> {
    f(&node).or_else(|| node.children().find_map(|child| find(child, f)))
}

fn registers(node: &FdtNode, n: usize) -> Option<PhysicalRange> {
    let reg = node.reg().ok()??.nth(n)?;
    let start = reg.address::<u64>().ok()?;
    let end = start.checked_add(reg.size::<u64>().ok()?)?;
    (end <= layout::MAX_PA).then_some(start..end)
}

/// Physical address of the PL011.
pub(super) fn console(tree: &Fdt) -> Option<u64> {
    uart(tree).map(|range| range.start)
}

fn uart(tree: &Fdt) -> Option<PhysicalRange> {
    find(tree.root(), &mut |node| {
        node.is_compatible("arm,pl011").then(|| registers(node, 0)).flatten()
    })
}

/// One or two cells.
fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => Some(u32::from_be_bytes(value.try_into().ok()?).into()),
        8 => Some(u64::from_be_bytes(value.try_into().ok()?)),
        _ => None,
    }
}

/// What doesn't fit is not used.
fn idle_states(tree: &Fdt) -> ArrayVec<u32, MAX_IDLE_STATES> {
    let states = tree.find_node("/cpus/idle-states");
    let states = states.iter().flat_map(|node| node.children());
    states
        .filter(|state| state.is_compatible("arm,idle-state"))
        .filter_map(|state| number(state.property("arm,psci-suspend-param")?.value()))
        .filter_map(|state| u32::try_from(state).ok())
        .take(MAX_IDLE_STATES)
        .collect()
}

impl Machine {
    pub(super) fn from_tree(tree: &Fdt<'static>, dtb: u64) -> Result<Self, Error> {
        let root = tree.root();

        let mut ram = ArrayVec::new();
        let mut reserved = ArrayVec::new();
        reserved.push(dtb..dtb + tree.data().len() as u64);
        for node in root.children() {
            let is_memory = node
                .property("device_type")
                .is_some_and(|p| p.value_as::<&str>().is_ok_and(|t| t == "memory"));
            if is_memory {
                for range in (0..).map_while(|n| registers(&node, n)) {
                    ram.try_push(range).map_err(|_| Error::TooMany("memory"))?;
                }
            }
            if node.name() == "reserved-memory" {
                for child in node.children() {
                    for range in (0..).map_while(|n| registers(&child, n)) {
                        reserved.try_push(range).map_err(|_| Error::TooMany("reserved"))?;
                    }
                }
            }
        }
        if ram.is_empty() {
            return Err(Error::NoMemory);
        }
        for entry in tree.memory_reservations() {
            let range = entry.address()..entry.address().saturating_add(entry.size());
            reserved.try_push(range).map_err(|_| Error::TooMany("reserved"))?;
        }

        let mut bootargs = "";
        let mut initrd = None;
        if let Some(chosen) = tree.find_node("/chosen") {
            if let Some(args) = chosen.property("bootargs") {
                // Lives as long as the tree, which is mapped only until the kernel's own tables are.
                bootargs = copy_bootargs(args.value());
            }
            let at = |name| number(chosen.property(name)?.value());
            if let (Some(start), Some(end)) = (at("linux,initrd-start"), at("linux,initrd-end"))
                && start < end
            {
                initrd = Some(start..end);
                reserved.try_push(start..end).map_err(|_| Error::TooMany("reserved"))?;
            }
        }

        let conduit = find(root, &mut |node| {
            let psci = ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"];
            if !psci.iter().any(|p| node.is_compatible(p)) {
                return None;
            }
            match node.property("method")?.value_as::<&str>().ok()? {
                "smc" => Some(Conduit::Smc),
                "hvc" => Some(Conduit::Hvc),
                _ => None,
            }
        })
        .ok_or(Error::NoPsci)?;

        let (gicd, gicr) = find(root, &mut |node| {
            if !node.is_compatible("arm,gic-v3") {
                return None;
            }
            Some((registers(node, 0)?, registers(node, 1)?))
        })
        .ok_or(Error::NoGic)?;
        let its = find(root, &mut |node| {
            node.is_compatible("arm,gic-v3-its").then(|| registers(node, 0)).flatten()
        });

        Ok(Self {
            ram,
            reserved,
            cpus: cpus(tree)?,
            uart: uart(tree),
            gicd,
            gicr,
            its,
            conduit,
            initrd,
            idle_states: idle_states(tree),
            masters: Masters::of(tree),
            bootargs,
        })
    }

    /// The registers that drivers use.
    pub fn devices(&self) -> impl Iterator<Item = PhysicalRange> + '_ {
        let own = self.uart.iter().cloned().chain([self.gicd.clone(), self.gicr.clone()]);
        own.chain(self.its.clone()).chain(self.masters.devices())
    }

    /// Whether the command line has this word.
    pub fn has_argument(&self, word: &str) -> bool {
        self.bootargs.split_ascii_whitespace().any(|w| w == word)
    }

    /// The value of `name=value` on the command line.
    pub fn argument(&self, name: &str) -> Option<&'static str> {
        self.arguments(name).next()
    }

    /// Its values, if it is there more than once.
    pub fn arguments(&self, name: &str) -> impl Iterator<Item = &'static str> {
        let words = self.bootargs.split_ascii_whitespace();
        words.filter_map(move |word| word.strip_prefix(name)?.strip_prefix('='))
    }
}

fn copy_bootargs(value: &[u8]) -> &'static str {
    static COPY: super::sync::Once<ArrayVec<u8, 1024>> = super::sync::Once::new();
    let copy =
        COPY.call_once(|| value.iter().copied().take_while(|&b| b != 0).take(1024).collect());
    core::str::from_utf8(copy).unwrap_or("")
}

/// Boot CPU first. CPUs beyond [`MAX_CPUS`] stay off.
fn cpus(tree: &Fdt) -> Result<ArrayVec<u64, MAX_CPUS>, Error> {
    let boot = sysreg::affinity();
    let all = || {
        let cpus = tree.find_node("/cpus");
        cpus.into_iter().flat_map(|node| {
            node.children().filter_map(|cpu| {
                if cpu.name_without_address() != "cpu" {
                    return None;
                }
                cpu.reg().ok()??.next()?.address::<u64>().ok()
            })
        })
    };
    if !all().any(|affinity| affinity == boot) {
        return Err(Error::NoCpus);
    }
    let others = all().filter(|&affinity| affinity != boot);
    Ok(core::iter::once(boot).chain(others).take(MAX_CPUS).collect())
}
