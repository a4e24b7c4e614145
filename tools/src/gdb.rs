//! `xtask gdb`: the machine, paused before its first instruction, and a debugger's way in.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::bounds::Bounds;
use crate::build;
use crate::process::{self, Running};
use crate::qemu::Machine;
use crate::setup;

const DEBUGGER: &str = "gdb-multiarch";

/// What `xtask gdb` is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The machine, with its debugger port.
    pub machine: Machine,
    /// A QEMU by name.
    pub qemu: Option<PathBuf>,
    /// The demonstration's command line.
    pub command_line: String,
    /// Debug the on-target tests.
    pub tests: bool,
    /// Start the debugger here.
    pub start: bool,
}

/// Boots paused; whether the machine and the debugger ended well.
pub fn debug(request: &Request) -> Result<bool> {
    let qemu = setup::qemu(request.qemu.as_deref())?;
    let toolchain = setup::toolchain()?;
    let built = if request.tests {
        build::tests(&toolchain)?
    } else {
        build::demo(&toolchain, &request.command_line)?
    };
    let port = request.machine.gdb_port.context("no debugger port")?;
    let mut debugger = Command::new(DEBUGGER);
    // hyp is where execution begins; the others' symbols are at the addresses they run at.
    debugger
        .arg(&built.hyp)
        .args(["-ex", "set architecture aarch64"])
        .args(["-ex", &format!("add-symbol-file {}", built.host.display())])
        .args(["-ex", &format!("target remote 127.0.0.1:{port}")]);

    if request.start {
        let mut machine = qemu.command(&request.machine, &built.image);
        // The debugger has the terminal; the console goes to a file beside the image.
        let console = built.image.with_extension("console");
        machine.stdin(std::process::Stdio::null()).stdout(std::fs::File::create(&console)?);
        // Ctrl-C stops the program in the debugger: it must end neither us nor the machine.
        process::leave_interrupts_to_child();
        machine.process_group(0);
        let _machine = Running::start(&mut machine)?;
        println!("console: {}", build::shown(&console));
        let debugger = Running::start(&mut debugger)
            .with_context(|| format!("install the package {DEBUGGER}"))?;
        let child = Arc::clone(debugger.child());
        return Ok(child.wait()?.success());
    }

    println!("paused; connect with:\n\n    {}\n", process::line(&debugger));
    let mut symbols = built.symbols();
    let end = qemu.run(&request.machine, &built.image, Bounds::NONE, &mut |line| {
        println!("{}", symbols.show(line));
    })?;
    if let Some(failure) = end.failure() {
        eprintln!("{failure}");
        return Ok(false);
    }
    Ok(true)
}
