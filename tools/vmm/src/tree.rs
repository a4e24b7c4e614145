//! The guest's device tree.
#![forbid(unsafe_code)]

use crate::layout;
use anyhow::{Context, Result};
use vm_fdt::{Error, FdtWriter};

/// What it tells of.
#[derive(Debug)]
pub struct Tree<'a> {
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Affinities.
    pub cpus: &'a [u64],
    /// Bytes of memory.
    pub memory: u64,
    /// Address and bytes.
    pub initrd: Option<(u64, u64)>,
    /// Virtio's devices.
    pub virtio: usize,
    /// Whether the guest is a protected one, which has firmware where others have a hypervisor.
    pub protected: bool,
    /// What devices' addresses have on top: for one that doesn't know that it is protected, the bit of what it shares.
    pub alias: u64,
}

const GIC: u32 = 1;
const CLOCK: u32 = 2;
/// Interrupt specifiers of a GIC: kind, number, flags.
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE: u32 = 1;
const LEVEL: u32 = 4;

impl Tree<'_> {
    /// The flattened tree.
    ///
    /// # Errors
    ///
    /// The command line has a zero in it, or there is no room for all vCPUs.
    pub fn write(&self) -> Result<Vec<u8>> {
        self.nodes().map_err(|error| anyhow::anyhow!("{error}")).context("the device tree")
    }

    /// The name of a device's node.
    fn node(&self, name: &str, address: u64) -> String {
        format!("{name}@{:x}", self.alias | address)
    }

    fn nodes(&self) -> Result<Vec<u8>, Error> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "linux,dummy-virt")?;
        fdt.property_string("model", "umbra-vmm")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        fdt.property_u32("interrupt-parent", GIC)?;

        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.command_line)?;
        fdt.property_string("stdout-path", &format!("/{}", self.node("serial", layout::SERIAL)))?;
        if let Some((start, bytes)) = self.initrd {
            fdt.property_u64("linux,initrd-start", start)?;
            fdt.property_u64("linux,initrd-end", start + bytes)?;
        }
        fdt.end_node(chosen)?;

        let memory = fdt.begin_node(&format!("memory@{:x}", layout::RAM))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[layout::RAM, self.memory])?;
        fdt.end_node(memory)?;

        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 0)?;
        for &affinity in self.cpus {
            let cpu = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("compatible", "arm,armv8")?;
            fdt.property_string("enable-method", "psci")?;
            fdt.property_u64("reg", affinity)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)?;

        let psci = fdt.begin_node("psci")?;
        fdt.property_string_list(
            "compatible",
            vec!["arm,psci-1.0".to_owned(), "arm,psci-0.2".to_owned()],
        )?;
        // Linux asks whether it is in a realm by SMC, and only if PSCI is there, too.
        fdt.property_string("method", if self.protected { "smc" } else { "hvc" })?;
        fdt.end_node(psci)?;

        let timer = fdt.begin_node("timer")?;
        fdt.property_string("compatible", "arm,armv8-timer")?;
        // Secure and non-secure physical, virtual, EL2's.
        let interrupts = [13, 14, 11, 10].map(|ppi| [PPI, ppi, LEVEL]);
        fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
        fdt.property_null("always-on")?;
        fdt.end_node(timer)?;

        let gic = fdt.begin_node(&self.node("interrupt-controller", layout::GICD))?;
        fdt.property_string("compatible", "arm,gic-v3")?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 3)?;
        let redistributors = layout::GICR_BYTES * self.cpus.len() as u64;
        let [distributor, first] = [layout::GICD, layout::GICR].map(|frame| self.alias | frame);
        let frames = [distributor, layout::GICD_BYTES, first, redistributors];
        fdt.property_array_u64("reg", &frames)?;
        fdt.property_phandle(GIC)?;
        fdt.end_node(gic)?;

        let clock = fdt.begin_node("clock")?;
        fdt.property_string("compatible", "fixed-clock")?;
        fdt.property_u32("#clock-cells", 0)?;
        fdt.property_u32("clock-frequency", 1_843_200)?;
        fdt.property_phandle(CLOCK)?;
        fdt.end_node(clock)?;

        let serial = fdt.begin_node(&self.node("serial", layout::SERIAL))?;
        fdt.property_string("compatible", "ns16550a")?;
        let serial_at = self.alias | layout::SERIAL;
        fdt.property_array_u64("reg", &[serial_at, layout::SERIAL_BYTES])?;
        fdt.property_array_u32("interrupts", &[SPI, layout::SERIAL_SPI, EDGE])?;
        fdt.property_u32("clocks", CLOCK)?;
        fdt.end_node(serial)?;

        for index in 0..self.virtio {
            let (address, spi) = layout::virtio(index);
            let device = fdt.begin_node(&self.node("virtio_mmio", address))?;
            fdt.property_string("compatible", "virtio,mmio")?;
            fdt.property_array_u64("reg", &[self.alias | address, layout::VIRTIO_BYTES])?;
            fdt.property_array_u32("interrupts", &[SPI, spi, EDGE])?;
            fdt.property_null("dma-coherent")?;
            fdt.end_node(device)?;
        }

        fdt.end_node(root)?;
        fdt.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    fn cells(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
    }

    #[test]
    fn it_says_what_there_is() {
        let tree = Tree {
            command_line: "console=ttyS0 quiet",
            cpus: &[0, 1, 0x100],
            memory: 1 << 30,
            initrd: Some((0x9000_0000, 0x1234)),
            virtio: 3,
            protected: false,
            alias: 0,
        };
        let blob = tree.write().unwrap();
        let fdt = Fdt::new(&blob).unwrap();
        let node = |path: &str| fdt.find_node(path).unwrap_or_else(|| panic!("{path}"));
        let value = |path: &str, name: &str| {
            let property = node(path).property(name);
            property.unwrap_or_else(|| panic!("{path}: {name}")).value().to_vec()
        };
        assert_eq!(value("/chosen", "bootargs"), b"console=ttyS0 quiet\0");
        assert_eq!(cells(&value("/chosen", "linux,initrd-end")), [0, 0x9000_1234]);
        assert_eq!(cells(&value("/memory@80000000", "reg")), [0, 0x8000_0000, 0, 1 << 30]);
        assert_eq!(cells(&value("/cpus/cpu@100", "reg")), [0, 0x100]);
        let frames = cells(&value("/interrupt-controller@8000000", "reg"));
        assert_eq!(frames[7], 3 * layout::GICR_BYTES as u32);
        for index in 0..3 {
            let (address, spi) = layout::virtio(index);
            let path = format!("/virtio_mmio@{address:x}");
            assert_eq!(value(&path, "compatible"), b"virtio,mmio\0");
            assert_eq!(cells(&value(&path, "reg")), [0, address as u32, 0, 0x1000]);
            assert_eq!(cells(&value(&path, "interrupts")), [SPI, spi, EDGE]);
        }
        assert!(fdt.find_node("/virtio_mmio@a003000").is_none());
    }

    #[test]
    fn devices_are_where_a_guest_shares_what_it_accesses() {
        let tree = Tree {
            command_line: "",
            cpus: &[0],
            memory: 1 << 30,
            initrd: None,
            virtio: 0,
            protected: true,
            alias: 1 << 40,
        };
        let blob = tree.write().unwrap();
        let fdt = Fdt::new(&blob).unwrap();
        let value = |path: &str, name: &str| {
            let node = fdt.find_node(path).unwrap_or_else(|| panic!("{path}"));
            node.property(name).unwrap_or_else(|| panic!("{path}: {name}")).value().to_vec()
        };
        assert_eq!(cells(&value("/serial@10009000000", "reg"))[..2], [0x100, 0x0900_0000]);
        let frames = cells(&value("/interrupt-controller@10008000000", "reg"));
        assert_eq!(
            (&frames[..2], &frames[4..6]),
            (&[0x100, 0x0800_0000][..], &[0x100, 0x080a_0000][..])
        );
        assert_eq!(value("/chosen", "stdout-path"), b"/serial@10009000000\0");
        assert_eq!(cells(&value("/memory@80000000", "reg"))[..2], [0, 0x8000_0000]);
    }

    #[test]
    fn a_command_line_has_no_zero_in_it() {
        let tree = Tree {
            command_line: "a\0b",
            cpus: &[0],
            memory: 1 << 30,
            initrd: None,
            virtio: 0,
            protected: false,
            alias: 0,
        };
        assert!(tree.write().is_err());
    }
}
