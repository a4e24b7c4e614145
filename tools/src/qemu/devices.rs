//! What a machine has beside the board's own: the SMMU, and devices behind it.

use std::path::PathBuf;
use std::process::Command;

use super::doubled_commas;

/// The SMMU of the virt board, which stands in front of PCIe and of nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Smmu {
    /// None.
    #[default]
    None,
    /// An SMMUv3. What its stages are is the emulator's release's, and the board's.
    V3,
    /// The device tree says that there is one, and that PCIe is behind it; but PCIe isn't.
    Bypassed,
}

impl Smmu {
    /// What `-M` says of it.
    pub(super) const fn options(self) -> &'static str {
        match self {
            Self::None => "",
            Self::V3 => ",iommu=smmuv3",
            Self::Bypassed => ",iommu=smmuv3,default-bus-bypass-iommu=on",
        }
    }
}

/// How a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// virtio-blk-pci with so many queues.
    Virtio(u32),
    /// NVMe with so many queues for I/O.
    Nvme(u32),
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its content, raw. What the machine writes to it is forgotten with the machine.
    pub file: PathBuf,
    /// How it is attached.
    pub attached: Attached,
}

/// A device on PCIe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// QEMU's teaching device (docs/specs/edu), which reads and writes memory as it is told. It has 40
    /// address bits.
    Edu,
    /// The same behind a root port, so that its bus number, and with it its StreamID, is up to
    /// whoever writes to the port's configuration space.
    EduBehindPort,
    /// A disk.
    Disk(Disk),
    /// A network of the emulator's own: QEMU's user network, in which the folder is served by TFTP.
    Network {
        /// What there is to fetch.
        folder: PathBuf,
    },
}

/// The arguments for `devices`, in their order.
pub(super) fn add(command: &mut Command, devices: &[Device]) {
    const EDU: &str = "edu,dma_mask=0xffffffffff";
    for (n, device) in devices.iter().enumerate() {
        let mut argument = |name: &str, value: String| {
            command.arg(name).arg(value);
        };
        match device {
            Device::Edu => argument("-device", EDU.to_owned()),
            Device::EduBehindPort => {
                argument("-device", format!("pcie-root-port,id=port{n},chassis={n}"));
                argument("-device", format!("{EDU},bus=port{n}"));
            }
            Device::Disk(disk) => {
                let file = doubled_commas(&disk.file);
                argument(
                    "-drive",
                    format!("if=none,id=disk{n},format=raw,snapshot=on,file={file}"),
                );
                argument(
                    "-device",
                    match disk.attached {
                        Attached::Virtio(queues) => {
                            format!("virtio-blk-pci,drive=disk{n},num-queues={queues}")
                        }
                        Attached::Nvme(queues) => {
                            format!("nvme,drive=disk{n},serial=disk{n},max_ioqpairs={queues}")
                        }
                    },
                );
            }
            Device::Network { folder } => {
                let folder = doubled_commas(folder);
                let net = "restrict=on";
                argument("-netdev", format!("user,id=net{n},{net},tftp={folder}"));
                // No ROM: nothing boots from it, and its file may not be there.
                argument("-device", format!("virtio-net-pci,netdev=net{n},romfile="));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::{Machine, Qemu};
    use std::path::Path;

    fn line(machine: &Machine) -> String {
        let qemu = Qemu { path: PathBuf::from("qemu"), version: (10, 0) };
        crate::process::line(&qemu.command(machine, Path::new("x.img")))
    }

    #[test]
    fn what_a_machine_has_is_on_its_command_line() {
        let disk = |attached| Device::Disk(Disk { file: PathBuf::from("a,b"), attached });
        let network = Device::Network { folder: PathBuf::from("f") };
        let devices = vec![
            Device::Edu,
            Device::EduBehindPort,
            disk(Attached::Virtio(4)),
            disk(Attached::Nvme(3)),
            network,
        ];
        let machine = Machine { smmu: Smmu::V3, devices, ..Machine::default() };
        let line = line(&machine);
        for part in [
            "-M virt,virtualization=on,gic-version=3,dtb-randomness=off,iommu=smmuv3 ",
            "-device edu,dma_mask=0xffffffffff -device pcie-root-port,id=port1,chassis=1 ",
            "-device edu,dma_mask=0xffffffffff,bus=port1 ",
            "-drive if=none,id=disk2,format=raw,snapshot=on,file=a,,b -device virtio-blk-pci,drive=disk2,num-queues=4 ",
            "-device nvme,drive=disk3,serial=disk3,max_ioqpairs=3 ",
            "-netdev user,id=net4,restrict=on,tftp=f -device virtio-net-pci,netdev=net4,romfile=",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn a_board_may_be_an_older_releases() {
        let machine = Machine { board: Some((9, 1)), smmu: Smmu::Bypassed, ..Machine::default() };
        let line = line(&machine);
        assert!(line.contains("-M virt-9.1,virtualization=on,"), "{line}");
        assert!(line.contains(",iommu=smmuv3,default-bus-bypass-iommu=on "), "{line}");
    }
}
