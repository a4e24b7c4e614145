//! The guest's device tree.
#![forbid(unsafe_code)]

use crate::layout;
use anyhow::{Context, Result};
use vm_fdt::{Error, FdtWriter};

/// What it tells of.
#[derive(Debug)]
pub struct Tree<'a> {
    /// Behind `console=ttyS0`.
    pub command_line: &'a str,
    /// Affinities.
    pub cpus: &'a [u64],
    /// Bytes of memory.
    pub memory: u64,
    /// Address and bytes.
    pub initrd: Option<(u64, u64)>,
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
    pub fn write(&self) -> Result<Vec<u8>> {
        self.nodes().map_err(|error| anyhow::anyhow!("{error}")).context("the device tree")
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
        let command_line = format!("console=ttyS0 {}", self.command_line);
        fdt.property_string("bootargs", command_line.trim_end())?;
        fdt.property_string("stdout-path", &format!("/serial@{:x}", layout::SERIAL))?;
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
        fdt.property_string("method", "hvc")?;
        fdt.end_node(psci)?;

        let timer = fdt.begin_node("timer")?;
        fdt.property_string("compatible", "arm,armv8-timer")?;
        // Secure and non-secure physical, virtual, EL2's.
        let interrupts = [13, 14, 11, 10].map(|ppi| [PPI, ppi, LEVEL]);
        fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
        fdt.property_null("always-on")?;
        fdt.end_node(timer)?;

        let gic = fdt.begin_node(&format!("interrupt-controller@{:x}", layout::GICD))?;
        fdt.property_string("compatible", "arm,gic-v3")?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#interrupt-cells", 3)?;
        let redistributors = layout::GICR_BYTES * self.cpus.len() as u64;
        let frames = [layout::GICD, layout::GICD_BYTES, layout::GICR, redistributors];
        fdt.property_array_u64("reg", &frames)?;
        fdt.property_phandle(GIC)?;
        fdt.end_node(gic)?;

        let clock = fdt.begin_node("clock")?;
        fdt.property_string("compatible", "fixed-clock")?;
        fdt.property_u32("#clock-cells", 0)?;
        fdt.property_u32("clock-frequency", 1_843_200)?;
        fdt.property_phandle(CLOCK)?;
        fdt.end_node(clock)?;

        let serial = fdt.begin_node(&format!("serial@{:x}", layout::SERIAL))?;
        fdt.property_string("compatible", "ns16550a")?;
        fdt.property_array_u64("reg", &[layout::SERIAL, layout::SERIAL_BYTES])?;
        fdt.property_array_u32("interrupts", &[SPI, layout::SERIAL_SPI, EDGE])?;
        fdt.property_u32("clocks", CLOCK)?;
        fdt.end_node(serial)?;

        fdt.end_node(root)?;
        fdt.finish()
    }
}
