//! Setting a machine up: everything that building and running needs, found or installed.

use std::path::Path;

use anyhow::Result;

use crate::dtc;
use crate::kernel::{Debian, Kernel};
use crate::linux;
use crate::packages::{self, SetupLock};
use crate::qemu::{Newer, Qemu};
use crate::toolchain::{self, Toolchain};
use crate::{module, vmm};

/// What building for the target needs.
pub fn toolchain() -> Result<Toolchain> {
    let _lock = SetupLock::take()?;
    Toolchain::set_up()
}

/// What running needs; `chosen` is a QEMU that was asked for by name.
pub fn qemu(chosen: Option<&Path>) -> Result<Qemu> {
    let _lock = SetupLock::take()?;
    Qemu::set_up(chosen)
}

/// A QEMU for the machines that `usual` is too old for, or why there is none.
pub fn newer_qemu(usual: &Qemu) -> Newer {
    let fetched = SetupLock::take().and_then(|_lock| Qemu::set_up_newer(Some(usual)));
    fetched.map_err(|error| format!("{error:#}"))
}

/// All that any of this needs, and what is only fetched when it is needed first. What Linux's virtual machines take need
/// not be there: tests leave them out, and say so.
///
/// # Errors
///
/// What can't be had here.
pub fn everything() -> Result<()> {
    toolchain()?;
    components()?;
    device_tree_compiler();
    let usual = qemu(None)?;
    newer_qemu(&usual).map_err(anyhow::Error::msg)?;
    Kernel::debian(Debian::Release)?;
    if let Err(error) = module::Headers::debian(Debian::Release).and_then(|_| module::compiler()) {
        eprintln!("no kernel module can be built here: {error:#}");
    }
    if let Err(error) = linux::guest_disk() {
        eprintln!("no disk for guests can be made here: {error:#}");
    }
    if let Err(error) = vmm::ensure_target() {
        eprintln!("no virtual machine monitor can be built here: {error:#}");
    }
    Ok(())
}

/// What the tests look at device trees with. Without it they leave that out, and say so.
pub fn device_tree_compiler() {
    const PACKAGE: &str = "device-tree-compiler";
    if dtc::find().is_some() {
        return;
    }
    if let Err(error) = packages::install(&[PACKAGE]) {
        eprintln!("no dtc: the generated device tree goes unchecked by it: {error:#}");
    }
}

/// What `xtask check` needs: rustfmt and clippy.
pub fn components() -> Result<()> {
    let _lock = SetupLock::take()?;
    toolchain::set_up_components()
}
