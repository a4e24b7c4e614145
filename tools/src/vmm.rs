//! Programs for arm64 Linux that have a standard library: the tree's virtual machine monitor, and random ioctls. Static, with
//! musl.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::toolchain::cargo;
use crate::workspace;

/// What it is built for.
const TARGET: &str = "aarch64-unknown-linux-musl";
/// The monitor's package.
pub const MONITOR: &str = "umbra-vmm";
/// That of random ioctls.
pub const IOCTLS: &str = "umbra-ioctls";

/// Builds one of them and returns its ELF.
///
/// # Errors
///
/// The compiler has no standard library for it, and rustup has none either.
pub fn build(package: &str) -> Result<PathBuf> {
    build_in(package, &workspace::root(), &workspace::target_dir().join("vmm"))
}

/// The same for a checkout in `root`, with a target directory of its own.
///
/// # Errors
///
/// As [`build`].
pub fn build_in(package: &str, root: &Path, target: &Path) -> Result<PathBuf> {
    ensure_target()?;
    let mut command = cargo();
    command
        .current_dir(root)
        .args([
            "build",
            "--profile",
            PROFILE,
            "--package",
            package,
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target)
        // What the target's standard library brings along links it, with the compiler's own linker: no cross compiler.
        .env("RUSTFLAGS", "-Clink-self-contained=yes -Clinker=rust-lld -Cstrip=debuginfo");
    process::run(&mut command).with_context(|| package.to_owned())?;
    Ok(target.join(TARGET).join(PROFILE).join(package))
}

/// What the monitor says that a protected machine with these arguments is measured by: the monitor of this checkout, on this
/// machine, whichever booted it.
///
/// # Errors
///
/// It can't be built, or can't say that.
pub fn measure(arguments: impl IntoIterator<Item = OsString>) -> Result<String> {
    let mut command = cargo();
    command
        .args(["run", "--quiet", "--profile", PROFILE, "--package", MONITOR, "--target-dir"])
        .arg(workspace::target_dir().join("vmm"))
        .args(["--", "measure"])
        .args(arguments);
    Ok(process::stdout(&mut command)?.trim().to_owned())
}

/// Of Cargo.toml.
const PROFILE: &str = "program";

/// The standard library that it is built with, which rustup gets if there is one to be had.
pub fn ensure_target() -> Result<()> {
    let mut sysroot = Command::new("rustc");
    let root =
        process::stdout(sysroot.current_dir(workspace::root()).args(["--print", "sysroot"]))?;
    let library = PathBuf::from(root.trim()).join("lib/rustlib").join(TARGET);
    if library.exists() {
        return Ok(());
    }
    if process::find_on_path("rustup").is_none() {
        bail!("no standard library for {TARGET}, and no rustup to get it with");
    }
    let mut add = Command::new("rustup");
    add.current_dir(workspace::root()).args(["target", "add", TARGET]).stdout(std::io::stderr());
    eprintln!("setting up: {}", process::line(&add));
    process::run(&mut add).with_context(|| format!("no standard library for {TARGET}"))
}
