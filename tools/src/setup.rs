//! Setting a machine up: everything that building and running needs, found or installed.

use std::path::Path;

use anyhow::Result;

use crate::packages::SetupLock;
use crate::qemu::Qemu;
use crate::toolchain::{self, Toolchain};

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

/// What `xtask check` needs: rustfmt and clippy.
pub fn components() -> Result<()> {
    let _lock = SetupLock::take()?;
    toolchain::set_up_components()
}
