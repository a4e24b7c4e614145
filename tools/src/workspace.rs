//! Where things lie: the checkout and its build directories.
//!
//! Bare-metal builds have a target directory of their own. They use another compiler, other flags
//! and sometimes a `core` built from source; sharing a directory with the development machine's
//! builds would make each invalidate the other.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The target that hyp, the host kernel and the payloads are built for: no floating-point registers
/// in compiled code, so that those registers belong to whoever runs above.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The target that what AArch32 guests run is built for.
pub const TARGET32: &str = "armv7a-none-eabi";

/// The root of the checkout.
pub fn root() -> PathBuf {
    let here = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    // Any package of the workspace may be the one that runs: the root is the folder with the lock
    // file.
    here.ancestors()
        .find(|folder| folder.join("Cargo.lock").exists() && folder.join("tools").is_dir())
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), Path::to_path_buf)
}

/// Rust's source files in a folder and below it.
///
/// # Errors
///
/// A folder that can't be read.
pub fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Target directory of the bare-metal builds.
pub fn bare_metal_dir() -> PathBuf {
    target_dir().join("umbra")
}

/// Where packed images go.
pub fn image_dir() -> PathBuf {
    target_dir().join("images")
}

/// Where tools are unpacked that the system could not install.
pub fn tools_dir() -> PathBuf {
    target_dir().join("tools")
}

/// Where fetched Linux kernels are kept.
pub fn kernel_dir() -> PathBuf {
    target_dir().join("linux")
}
