//! The device-tree compiler, as somebody else who reads the trees that are made here.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process;

/// The compiler, if it is there.
pub fn find() -> Option<PathBuf> {
    process::find_on_path("dtc")
}

/// Has it read a tree. Returns its warnings.
pub fn check(compiler: &Path, dtb: &Path) -> Result<String> {
    let mut command = Command::new(compiler);
    command.args(["-I", "dtb", "-O", "dts", "-o", "/dev/null"]).arg(dtb);
    let output = process::output(&mut command)?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{} refuses {}: {words}", compiler.display(), dtb.display());
    Ok(words)
}
