//! A Linux that uses devices: a disk behind two kinds of controllers and a network, on PCIe behind the
//! SMMU, with drivers that are the kernel's modules.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use umbra_patterns::digest::{self, PIECE_BYTES};

use crate::console::Table;
use crate::image::write_whole;
use crate::qemu::{Attached, Device, Disk, Machine, Smmu};
use crate::report::{Report, value};
use crate::workspace;

/// Bytes of a disk that is made here.
const DISK_BYTES: usize = 24 << 20;
/// Bytes of the file that the network has: no whole number of blocks or pieces.
const FILE_BYTES: usize = 300_123;
/// What the file is called there.
const FILE: &str = "file";
/// O_DIRECT reads whole blocks.
const BLOCK_BYTES: u64 = 512;

/// What there is to read, and what it comes to.
#[derive(Clone, Debug)]
pub struct Content {
    disk: PathBuf,
    folder: PathBuf,
    disk_bytes: u64,
    disk_digest: u64,
    file_digest: u64,
}

impl Content {
    /// The disk in `file`, or one that is made here; what is written to either is forgotten. And a file for
    /// the network.
    ///
    /// # Errors
    ///
    /// It can't be read, or is no whole number of blocks.
    pub fn prepare(file: Option<&Path>) -> Result<Self> {
        let images = workspace::image_dir();
        let disk = match file {
            Some(file) => std::env::current_dir()?.join(file),
            None => {
                let disk = images.join("linux-disk.img");
                write_whole(&disk, &noise(DISK_BYTES, 1))?;
                disk
            }
        };
        let folder = images.join("linux-network");
        fs::create_dir_all(&folder)?;
        let content = noise(FILE_BYTES, 2);
        write_whole(&folder.join(FILE), &content)?;
        let (disk_bytes, disk_digest) = digest_of(&disk)?;
        ensure!(
            disk_bytes != 0 && disk_bytes.is_multiple_of(BLOCK_BYTES),
            "{}: {disk_bytes} bytes are no disk of blocks of {BLOCK_BYTES}",
            disk.display()
        );
        Ok(Self { disk, folder, disk_bytes, disk_digest, file_digest: digest::whole(&content) })
    }

    /// The words for our program.
    pub fn words(&self) -> String {
        let Self { disk_bytes, disk_digest, file_digest, .. } = self;
        format!(
            "disk={disk_bytes} digest={disk_digest} file={FILE_BYTES} file-digest={file_digest}"
        )
    }

    /// `machine` with all of it behind an SMMU: as many queues as there are CPUs.
    pub fn attach(&self, machine: &Machine) -> Machine {
        let queues = machine.smp;
        let disk = |attached| Device::Disk(Disk { file: self.disk.clone(), attached });
        let devices = vec![
            disk(Attached::Virtio(queues)),
            disk(Attached::Nvme(queues)),
            Device::Network { folder: self.folder.clone() },
        ];
        Machine { smmu: Smmu::V3, devices, ..machine.clone() }
    }
}

/// Bytes that nothing else has, the same for the same seed.
pub(super) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut words = std::iter::repeat_with(|| {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend(words.next().unwrap_or_default());
    }
    noise.truncate(bytes);
    noise
}

/// A file's length, and what it comes to.
fn digest_of(path: &Path) -> Result<(u64, u64)> {
    let complain = || path.display().to_string();
    let mut file = File::open(path).with_context(complain)?;
    let (mut total, mut sum) = (0, 0u64);
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    for number in 0.. {
        piece.clear();
        (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).with_context(complain)?;
        if piece.is_empty() {
            break;
        }
        total += piece.len() as u64;
        sum = sum.wrapping_add(digest::piece(number, &piece));
    }
    Ok((total, sum))
}

/// What a Linux that used them has to have left behind, beside what every Linux has ([`super::verify`]); why it
/// can't have, if it didn't.
pub fn verify(report: &Report, cpus: u32) -> Result<(), String> {
    let seen = |what: &str| {
        let row = report.rows(Table::Seen).find(|row| value(row, "what") == Some(what));
        let row = row.ok_or_else(|| format!("Linux says nothing of {what}"))?;
        Ok::<_, String>(value(row, "is").unwrap_or_default().to_owned())
    };
    for what in ["vda", "nvme0n1", "network", "vda-written", "nvme0n1-written"] {
        seen(what)?;
    }
    let plugged = seen("hotplugs-meanwhile")?.parse().unwrap_or(0);
    if plugged < cpus - 1 {
        return Err(format!("{plugged} CPUs went and came, of {}", cpus - 1));
    }
    for what in ["interrupts-of-vda", "interrupts-of-nvme0n1", "interrupts-of-network"] {
        let is = seen(what)?;
        let Some(list) = is.strip_prefix("MSI:") else {
            return Err(format!("{what} are no messages: {is}"));
        };
        let counts: Vec<u64> = list.split(',').map(|n| n.parse().unwrap_or(0)).collect();
        let on = counts.iter().filter(|&&count| count != 0).count();
        // Disks have a queue for each CPU, a network one at least.
        let wanted = if what == "interrupts-of-network" { 1 } else { cpus as usize };
        if on < wanted {
            return Err(format!("{what} came on {on} CPUs, not on {wanted}: {is}"));
        }
    }
    Ok(())
}

/// What a Linux that had to do without has to have left behind, and what the console must say of it: why it
/// can't have, if it didn't.
pub fn verify_withheld(report: &Report, console: &[String]) -> Result<(), String> {
    for (row, node) in [("PCI", "/pcie@"), ("fw_cfg", "/fw-cfg@"), ("virtio-mmio", "/virtio_mmio@")]
    {
        let seen = report.rows(Table::Seen).find(|found| value(found, "what") == Some(row));
        if seen.and_then(|found| value(found, "is")) != Some("disabled") {
            return Err(format!("Linux does not say that {row} is disabled"));
        }
        let told = |line: &String| line.contains(node) && line.contains("withheld");
        if !console.iter().any(told) {
            return Err(format!("hyp does not say that {node}... is withheld"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::parse;

    const LINES: [&str; 9] = [
        "@seen what=vda is=1-bytes",
        "@seen what=nvme0n1 is=1-bytes",
        "@seen what=network is=1-bytes",
        "@seen what=vda-written is=read-back",
        "@seen what=nvme0n1-written is=read-back",
        "@seen what=hotplugs-meanwhile is=3",
        "@seen what=interrupts-of-vda is=MSI:1,2,3,4",
        "@seen what=interrupts-of-nvme0n1 is=MSI:1,2,3,4",
        "@seen what=interrupts-of-network is=MSI:0,0,7,0",
    ];

    fn check(lines: &[&str]) -> Result<(), String> {
        let mut report = Report::default();
        lines.iter().for_each(|line| report.take(&parse(line)));
        verify(&report, 4)
    }

    #[test]
    fn every_row_is_asked_for() {
        assert_eq!(check(&LINES), Ok(()));
        for (at, left_out) in LINES.iter().enumerate() {
            let mut lines = LINES.to_vec();
            lines.remove(at);
            assert!(check(&lines).is_err(), "without {left_out}");
        }
    }

    #[test]
    fn a_queue_whose_interrupts_do_not_come_is_named() {
        let with = |at: usize, line| {
            let mut lines = LINES;
            lines[at] = line;
            check(&lines).unwrap_err()
        };
        assert!(with(6, "@seen what=interrupts-of-vda is=MSI:1,0,3,4").contains("on 3 CPUs"));
        assert!(
            with(7, "@seen what=interrupts-of-nvme0n1 is=line:9,0,0,0").contains("no messages")
        );
        assert!(with(5, "@seen what=hotplugs-meanwhile is=2").contains("2 CPUs"));
    }

    #[test]
    fn both_say_what_is_withheld() {
        let mut report = Report::default();
        let console = |nodes: &[&str]| -> Vec<String> {
            nodes.iter().map(|node| format!("umbra: master {node}1000: withheld")).collect()
        };
        let all = console(&["/pcie@", "/fw-cfg@", "/virtio_mmio@"]);
        for what in ["PCI", "fw_cfg", "virtio-mmio"] {
            assert!(verify_withheld(&report, &all).unwrap_err().contains(what));
            report.take(&parse(&format!("@seen what={what} is=disabled")));
        }
        assert_eq!(verify_withheld(&report, &all), Ok(()));
        assert!(verify_withheld(&report, &all[..2]).unwrap_err().contains("virtio_mmio"));
    }

    #[test]
    fn a_files_digest_is_its_contents() {
        let path = std::env::temp_dir().join(format!("umbra-digest-{}", std::process::id()));
        let content = noise(PIECE_BYTES + 7, 3);
        fs::write(&path, &content).unwrap();
        let found = digest_of(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(found.unwrap(), (content.len() as u64, digest::whole(&content)));
    }
}
