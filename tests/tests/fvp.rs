//! The device tree that we make for Arm's model, as those read it who boot from it: the EL3 firmware,
//! hyp, and the host behind hyp. So what differs from QEMU's board is exercised without the model: RAM,
//! UART, GIC and affinities elsewhere, power-off by other means.

use dtoolkit::fdt::Fdt;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use umbra_firmware::config::SuspendFormat;
use umbra_firmware::tree::{Facts, Power, hand_over};
use umbra_hyp::boot::platform::smmus::SmmuNodes;
use umbra_hyp::boot::platform::{self, Conduit, HostBoot, Platform};
use umbra_tools::board::Board;
use umbra_tools::dtc;
use umbra_tools::fvp::tree::{MAX_CPUS, tree};

const RAM: (u64, u64) = (0x8000_0000, 0x1_0000_0000);
const UART: u64 = 0x1c09_0000;

fn affinities(count: u32) -> Vec<u64> {
    (0..count).map(Board::FVP.affinity).collect()
}

/// What the firmware hands to EL2.
fn for_el2(count: u32) -> Vec<u8> {
    let dtb = tree(count);
    hand_over(&Fdt::new(&dtb).unwrap(), SuspendFormat::Original, Board::FVP.ram)
}

#[test]
fn the_firmware_finds_its_way() {
    for count in 1..=MAX_CPUS {
        let dtb = tree(count);
        let facts = Facts::read(&Fdt::new(&dtb).unwrap(), Board::FVP.ram).unwrap();
        assert_eq!(facts.affinities[..], affinities(count));
        assert_eq!(facts.banks[..], [RAM]);
        assert_eq!(facts.uart, Some(UART));
        assert_eq!(facts.distributor, 0x2f00_0000);
        // Eight redistributors fit, with or without frames for virtual LPIs.
        assert_eq!(facts.redistributors[..], [(0x2f10_0000, 0x2f30_0000)]);
        assert_eq!(facts.power, Power::SystemRegisters(0x1c01_0000));
    }
}

#[test]
fn hyp_finds_its_way() {
    let dtb = for_el2(MAX_CPUS);
    let fdt = Fdt::new(&dtb).unwrap();
    assert_eq!(platform::console(&fdt), Some(UART));
    assert_eq!(platform::conduit(&fdt), Some(Conduit::Smc));
    let platform = Platform::read(&fdt).unwrap();
    assert_eq!(platform.banks[..], [RAM]);
    assert_eq!(platform.reserved[..], []);
    assert_eq!(platform.cpus[..], affinities(MAX_CPUS));
    assert_eq!(platform.uart, Some(UART));
    // Hyp's pool goes to the end of that RAM, beside the image.
    let image = (Board::FVP.boot_address, Board::FVP.boot_address + (32 << 20));
    let pool = platform.place(image.0, 16 << 20, 2 << 20, &[image]).unwrap();
    assert_eq!(pool, (RAM.1 - (16 << 20), RAM.1));
    // Nothing below EL3 is told of what turns the machine off.
    assert!(fdt.root().children().all(|node| !node.is_compatible("arm,vexpress-sysreg")));
    // Nor would hyp run without the firmware's PSCI.
    let raw = tree(MAX_CPUS);
    assert!(Platform::read(&Fdt::new(&raw).unwrap()).is_err());
}

#[test]
fn the_host_is_told_what_is_left() {
    let dtb = for_el2(4);
    let mut room = vec![0; dtb.len() + 4096];
    let hyp = [(0x8020_0000, 0x8060_0000), (0xff00_0000, RAM.1)];
    let initrd = Some((0x8400_0000, 0x8400_1000));
    let smmus = &SmmuNodes::new();
    let command_line = "console=ttyAMA0";
    let boot = HostBoot { hyp: &hyp, initrd, command_line, smmus, isolate: true };
    let bytes = platform::hand_over(&dtb, &mut room, &boot).unwrap();
    let fdt = Fdt::new(&room[..bytes]).unwrap();
    let platform = Platform::read(&fdt).unwrap();
    assert_eq!(platform.banks[..], [(RAM.0, 0x8020_0000), (0x8060_0000, 0xff00_0000)]);
    assert_eq!(&platform.command_line, "console=ttyAMA0");
    assert_eq!(platform.cpus[..], affinities(4));
    let chosen = fdt.chosen().unwrap();
    let initrd = chosen.property("linux,initrd-start").unwrap();
    assert_eq!(initrd.value(), 0x8400_0000_u64.to_be_bytes());
}

#[test]
fn the_tree_compiler_accepts_it() {
    let Some(compiler) = dtc::find() else {
        println!("no dtc here: install device-tree-compiler");
        return;
    };
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    for (name, dtb) in [("model", tree(MAX_CPUS)), ("el2", for_el2(3))] {
        let path = folder.join(format!("fvp-{name}.dtb"));
        std::fs::write(&path, dtb).unwrap();
        let warnings = dtc::check(&compiler, &path).unwrap();
        assert_eq!(warnings, "", "{name}");
        // It does refuse what is wrong.
        std::fs::write(&path, &for_el2(3)[..200]).unwrap();
        assert!(dtc::check(&compiler, &path).is_err());
    }
}
