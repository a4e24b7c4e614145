//! A Linux that runs virtual machines: what it needs for that, and has to leave behind.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use umbra_patterns::digest;

use super::{devices, root, scenarios};

use crate::console::{Fields, Table};
use crate::kernel::{Debian, Kernel};
use crate::module::{self, Headers};
use crate::qemu::{Machine, Qemu};
use crate::report::{Columns, Report, table, value};
use crate::toolchain::Toolchain;
use crate::{vmm, workspace};

/// GiB of memory that it needs.
pub const MEMORY: u32 = 2;
/// Bytes of a guest's disk.
const DISK_BYTES: usize = 4 << 20;

/// What a Linux runs virtual machines with.
#[derive(Clone, Debug)]
pub struct VirtualMachines {
    /// The kernel module ([`crate::module`]).
    pub module: PathBuf,
    /// The monitor ([`crate::vmm`]).
    pub vmm: PathBuf,
    /// Random ioctls.
    pub ioctls: PathBuf,
}

impl VirtualMachines {
    /// Builds them, for a host with this kernel. `hunts`: with a module that looks for protected guests' registers in the host.
    pub fn build(toolchain: &Toolchain, kernel: Debian, hunts: bool) -> Result<Self> {
        Self::build_in(toolchain, kernel, hunts, &workspace::root(), &workspace::target_dir())
    }

    /// The same for a checkout in `root`, with a target directory of its own.
    pub fn build_in(
        toolchain: &Toolchain,
        kernel: Debian,
        hunts: bool,
        root: &Path,
        target: &Path,
    ) -> Result<Self> {
        let headers = Headers::debian(kernel)?;
        let module = module::build_in(toolchain, &headers, hunts, root, &target.join("module"))?;
        let programs = target.join("vmm");
        let program = |package| vmm::build_in(package, root, &programs);
        Ok(Self { module, vmm: program(vmm::MONITOR)?, ioctls: program(vmm::IOCTLS)? })
    }

    /// Their names in the initrd, and where they are.
    pub(super) fn files(&self) -> [(&'static str, &Path); 3] {
        [("umbra.ko", &self.module), ("umbra-vmm", &self.vmm), ("umbra-ioctls", &self.ioctls)]
    }
}

/// How much longer than others a machine with guests may take, and say nothing: guests that come up don't, and are emulated
/// twice.
pub const PATIENCE: u32 = 3;

/// What guests at once are called.
const BESIDE: [&str; 4] = ["guest", "guest-2", "guest-3", "guest-4"];

/// What protected guests are called.
pub(super) const PROTECTED: [&str; 1] = ["protected"];

/// One of a kernel that doesn't know that it is one, and one in its monitor's own memory.
const UNAWARE: &str = "unaware";
const OWN_MEMORY: &str = "own-memory";
/// One whose boot is compared with a protected one's.
const NORMAL: &str = "normal";

/// What guests are called, whose lines on the console begin so.
pub fn guest_names() -> Vec<&'static str> {
    let others = [UNAWARE, OWN_MEMORY, NORMAL];
    BESIDE.into_iter().chain(PROTECTED).chain(others).chain(scenarios::GUESTS).collect()
}

/// Gives a person the machine's console, to its end; whether QEMU ended by itself.
pub(super) fn interact(qemu: &Qemu, machine: &Machine, image: &Path) -> Result<bool> {
    let mut command = qemu.command(machine, image);
    Ok(command.status().with_context(|| qemu.path.display().to_string())?.success())
}

/// How many exits each guest took, and what for: out of the line that its monitor says at its end.
pub(super) fn exits(console: &[String]) -> Option<String> {
    const COLUMNS: &Columns = &[
        ("guest", "guest"),
        ("exits", "exits"),
        ("irq_exits", "host's interrupts"),
        ("mmio_exit_kernel", "MMIO in the kernel"),
        ("mmio_exit_user", "MMIO in the monitor"),
        ("wfi_exit_stat", "WFI"),
        ("hvc_exit_stat", "HVC"),
        ("fault_exits", "memory faults"),
        ("table_exits", "tables"),
        ("power_exits", "power"),
        ("sharing_exits", "sharing"),
        ("signal_exits", "signals"),
    ];
    let rows: Vec<Fields> = console
        .iter()
        .filter_map(|line| {
            let (guest, rest) = line.split_once(": ")?;
            let report: serde_json::Value = serde_json::from_str(rest).ok()?;
            let exits = report["exits"].as_object().filter(|exits| !exits.is_empty())?;
            let name = ("guest".to_owned(), guest.to_owned());
            let counts = exits.iter().map(|(key, count)| (key.clone(), count.to_string()));
            Some([name].into_iter().chain(counts).collect())
        })
        .collect();
    (!rows.is_empty()).then(|| table(COLUMNS, &rows.iter().collect::<Vec<_>>()))
}

/// What virtual machines do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guests {
    /// They keep patterns in their registers while the host does; then come random ioctls, and monitors that are
    /// killed.
    Beside {
        /// How many at once, with two vCPUs each.
        guests: u32,
        /// Rounds of random ioctls.
        rounds: u64,
        /// Monitors that are killed.
        kills: u64,
        /// First comes one with Debian's user space, which says what it sees and reads all of its disk.
        debian: bool,
    },
    /// One of each kind, one after the other: what they see is compared.
    Scenarios,
    /// A protected one, of Debian's newest kernel whatever the host's is: the release's knows of no realm.
    Protected {
        /// And then one that keeps patterns in its registers while a normal one and the host do.
        beside: bool,
        /// Monitors that are killed, every other one of a protected guest.
        kills: u64,
        /// The module looks for its registers in the host behind every exit.
        hunt: bool,
    },
    /// A normal one and a protected one that come up to user space, and no further.
    Costs,
    /// One for a person, with a shell.
    Shell,
}

impl Guests {
    /// Words for hyp and Linux.
    pub(super) fn kernel_words(self) -> &'static str {
        match self {
            Self::Shell => "quiet loglevel=1",
            // There are protected VMs where no device reaches all memory.
            Self::Protected { .. } | Self::Costs => "umbra.dma=isolate",
            Self::Beside { .. } | Self::Scenarios => "",
        }
    }

    /// Whether the module is one that hunts.
    pub fn hunts(self) -> bool {
        matches!(self, Self::Protected { hunt: true, .. })
    }

    /// The kernel that guests have, whose host has another one; `None`: the same.
    ///
    /// # Errors
    ///
    /// It can't be had.
    pub fn kernel(self) -> Result<Option<Kernel>> {
        let is_protected = matches!(self, Self::Protected { .. } | Self::Costs);
        is_protected.then(|| Kernel::debian(Debian::Newest)).transpose()
    }

    /// The module by which they read what they are measured by, if they are, or why there is none.
    pub fn realm(self) -> Option<Result<PathBuf, String>> {
        let build = || module::build_realm(&Headers::debian(Debian::Newest)?);
        let is_protected = matches!(self, Self::Protected { .. });
        is_protected.then(|| build().map_err(|error| format!("{error:#}")))
    }

    /// The kernel of a protected guest that doesn't know that it is one.
    ///
    /// # Errors
    ///
    /// It can't be had.
    pub fn unaware_kernel(self) -> Result<Option<Kernel>> {
        let is_protected = matches!(self, Self::Protected { .. });
        is_protected.then(|| Kernel::debian(Debian::Release)).transpose()
    }

    /// The words for our program.
    pub(super) fn words(self, patterns: &str) -> String {
        match self {
            Self::Beside { guests, rounds, kills, debian } => {
                let debian = if debian { "debian " } else { "" };
                format!(
                    "vm {debian}ciphers guests={guests} rounds={rounds} kills={kills} {patterns}"
                )
            }
            Self::Scenarios => "vm scenarios".to_owned(),
            Self::Protected { beside, kills, hunt } => {
                let beside = if beside { "beside ciphers guests=1 " } else { "" };
                let hunt = if hunt { "hunt " } else { "" };
                format!("withheld vm protected {beside}{hunt}kills={kills} {patterns}")
            }
            Self::Costs => "withheld vm costs".to_owned(),
            Self::Shell => "vm shell".to_owned(),
        }
    }

    /// Disks for them: names in the initrd, and contents.
    pub(super) fn disks(self) -> Result<Vec<(String, Vec<u8>)>> {
        let root = || {
            let path = root::disk()?;
            let content = fs::read(&path).with_context(|| path.display().to_string())?;
            anyhow::Ok(("guest-root".to_owned(), content))
        };
        Ok(match self {
            Self::Beside { debian: false, .. } | Self::Costs => Vec::new(),
            Self::Beside { .. } | Self::Protected { .. } | Self::Shell => vec![root()?],
            Self::Scenarios => {
                let disk = devices::noise(DISK_BYTES, 3);
                let words = format!("disk={DISK_BYTES} digest={}", digest::whole(&disk));
                let named = |name: &str, content| (name.to_owned(), content);
                vec![
                    named("guest-disk", disk),
                    named("guest-disk-words", words.into_bytes()),
                    root()?,
                ]
            }
        })
    }

    /// What a Linux that ran them has to have left behind.
    pub(super) fn verify(self, report: &Report) -> Result<(), String> {
        let runs =
            report.rows(Table::Cpu).filter_map(|row| value(row, "runs")?.parse::<u64>().ok());
        if runs.sum::<u64>() == 0 {
            return Err("hyp has run no guest".to_owned());
        }
        let named = |what: &str, is: &str| (what.to_owned(), is.to_owned());
        // As Linux counts them, without a VM, and as hyp does, when Linux has ended with one.
        let mut expected = vec![named("pages", "all-back"), named("pages-of-VMs", "0")];
        if let Self::Beside { guests, kills, .. } = self {
            let names = BESIDE.get(..guests as usize);
            let names = names.ok_or_else(|| format!("{guests} guests have no names"))?;
            expected.extend(names.iter().map(|name| named(name, "2-vCPUs")));
            expected.push(named("ioctls", "endured"));
            expected.push(named("killed", &kills.to_string()));
        }
        if let Self::Protected { beside, kills, hunt } = self {
            expected.extend(hunt.then(|| named("hunt", "found-0")));
            expected.push(named("killed", &kills.to_string()));
            expected.push(named(UNAWARE, "console-only"));
            expected.push(named(OWN_MEMORY, "well"));
            expected.push(named("protected-VMs", "exact"));
            expected.push(named("ioctls", "endured"));
            let names = PROTECTED.iter().chain(&BESIDE[..1]).filter(|_| beside);
            expected.extend(names.map(|name| named(name, "2-vCPUs")));
        }
        for (what, is) in &expected {
            let mut rows = report.rows(Table::Seen);
            if !rows.any(|row| value(row, "what") == Some(what) && value(row, "is") == Some(is)) {
                return Err(format!("{what} was not {is}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_read_out_of_the_monitors_last_line() {
        let line = |text: &str| text.to_owned();
        let text = exits(&[
            line("debian: anything"),
            line(r#"debian: {"end":"off","exits":{"exits":12,"wfi_exit_stat":5}}"#),
            line(r#"{"exits":{"exits":1}}"#),
            line(r#"guest: {"exits":{}}"#),
        ])
        .unwrap();
        assert!(text.contains("debian     12    5"), "{text}");
        assert!(!text.contains("guest: "), "{text}");
        assert_eq!(exits(&[line("guest: @verdict ok")]), None);
    }
}
