//! `xtask test`: everything, by cargo's own test runner, so that it ends with cargo's summary.

use std::path::Path;

use anyhow::Result;

use crate::build;
use crate::harness::{Failures, Settings};
use crate::kernel::Debian;
use crate::linux::VirtualMachines;
use crate::process;
use crate::setup;
use crate::toolchain::{Toolchain, cargo};

/// What a Linux runs virtual machines with. What it takes can't be had everywhere; then those tests are left out.
fn virtual_machines(toolchain: &Toolchain) -> Result<VirtualMachines, String> {
    VirtualMachines::build(toolchain, Debian::Release, false).map_err(|error| {
        let why = format!("no virtual machines: {error:#}");
        eprintln!("{why}");
        why
    })
}

/// Sets up, builds the on-target tests, and runs `cargo test` with `arguments`; whether all passed.
pub fn test(qemu: Option<&Path>, arguments: &[String]) -> Result<bool> {
    let qemu = setup::qemu(qemu)?;
    let newer = setup::newer_qemu(&qemu);
    if let Err(why) = &newer {
        eprintln!("machines that need a newer QEMU are left out: {why}");
    }
    setup::device_tree_compiler();
    let toolchain = setup::toolchain()?;
    let settings = Settings {
        tests: build::tests(&toolchain)?,
        hyp_log: build::binary(&toolchain, build::HYP_LOG)?,
        host_library: build::host_library(&toolchain)?,
        firmware: build::binary(&toolchain, build::FIRMWARE)?,
        linux: build::binary(&toolchain, build::LINUX)?,
        virtual_machines: virtual_machines(&toolchain),
        qemu: qemu.path,
        newer_qemu: newer.map(|qemu| qemu.path),
        compiler: toolchain.rustc.release()?,
    };
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]).args(arguments);
    settings.export(&mut command);
    let failures = Failures::new()?;
    failures.export(&mut command);
    match process::run(&mut command) {
        Ok(()) => Ok(true),
        Err(error) => {
            eprintln!("{error:#}\n\n{}", failures.read()?);
            Ok(false)
        }
    }
}
