//! A Linux that runs virtual machines: what it needs for that, and has to leave behind.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::console::Table;
use crate::kernel::Debian;
use crate::module::{self, Headers};
use crate::report::{Report, value};
use crate::toolchain::Toolchain;
use crate::{vmm, workspace};

/// GiB of memory that it needs.
pub const MEMORY: u32 = 2;

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
    /// Builds them, for a host with this kernel.
    pub fn build(toolchain: &Toolchain, kernel: Debian) -> Result<Self> {
        Self::build_in(toolchain, kernel, &workspace::root(), &workspace::target_dir())
    }

    /// The same for a checkout in `root`, with a target directory of its own.
    pub fn build_in(
        toolchain: &Toolchain,
        kernel: Debian,
        root: &Path,
        target: &Path,
    ) -> Result<Self> {
        let headers = Headers::debian(kernel)?;
        let module = module::build_in(toolchain, &headers, root, &target.join("module"))?;
        let programs = target.join("vmm");
        let program = |package| vmm::build_in(package, root, &programs);
        Ok(Self { module, vmm: program(vmm::MONITOR)?, ioctls: program(vmm::IOCTLS)? })
    }

    /// Their names in the initrd, and where they are.
    pub(super) fn files(&self) -> [(&'static str, &Path); 3] {
        [("umbra.ko", &self.module), ("umbra-vmm", &self.vmm), ("umbra-ioctls", &self.ioctls)]
    }
}

/// What a Linux that ran virtual machines has to have left behind.
pub fn verify(report: &Report) -> Result<(), String> {
    let runs = report.rows(Table::Cpu).filter_map(|row| value(row, "runs")?.parse::<u64>().ok());
    if runs.sum::<u64>() == 0 {
        return Err("hyp has run no guest".to_owned());
    }
    for (what, is) in [("guest", "2-vCPUs"), ("ioctls", "endured"), ("pages", "all-back")] {
        let mut rows = report.rows(Table::Seen);
        if !rows.any(|row| value(row, "what") == Some(what) && value(row, "is") == Some(is)) {
            return Err(format!("{what} was not {is}"));
        }
    }
    Ok(())
}
