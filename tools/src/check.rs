//! `xtask check`: formatting, lints, documentation, and I5 on the built images.

use std::process::Command;

use anyhow::Result;

use crate::build;
use crate::fpcheck;
use crate::process;
use crate::setup;
use crate::toolchain::{Toolchain, cargo};

/// Runs every check, also after one failed; whether all passed.
pub fn check() -> Result<bool> {
    let toolchain = setup::toolchain()?;
    setup::components()?;
    let mut failed = Vec::new();
    let mut step = |name: &'static str, result: Result<()>| match result {
        Ok(()) => eprintln!("ok: {name}"),
        Err(error) => {
            eprintln!("FAILED: {name}: {error:#}");
            failed.push(name);
        }
    };
    step("formatting", run(cargo().args(["fmt", "--all", "--check"])));
    step("lints on this machine", {
        let mut command = cargo();
        command.args(["clippy", "--all-targets", "--", "-D", "warnings"]);
        run(&mut command)
    });
    step("documentation", {
        let mut command = cargo();
        command.args(["doc", "--no-deps"]);
        run(command.env("RUSTDOCFLAGS", "-D warnings"))
    });
    step("lints on the target", lint_target(&toolchain));
    step("I5: FP/SIMD/SVE instructions", instructions(&toolchain));
    if failed.is_empty() {
        return Ok(true);
    }
    eprintln!("failed: {}", failed.join(", "));
    Ok(false)
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("checking: {}", process::line(command));
    process::run(command)
}

/// clippy on the bare-metal binaries. clippy is a compiler, and can use only a `core` of its own
/// release.
fn lint_target(toolchain: &Toolchain) -> Result<()> {
    if !toolchain.active {
        eprintln!(
            "the bare-metal binaries are built by {}, which the active toolchain's clippy does \
             not match: only their libraries are linted, on this machine",
            toolchain.rustc
        );
        return Ok(());
    }
    for binary in build::BINARIES {
        let mut command = toolchain.cargo("clippy");
        binary.select(&mut command);
        run(command.args(["--", "-D", "warnings"]))?;
    }
    Ok(())
}

fn instructions(toolchain: &Toolchain) -> Result<()> {
    let hyp = build::binary(toolchain, build::HYP)?;
    let summary = fpcheck::check_hyp(&hyp)?;
    eprintln!(
        "hyp: {} instructions, {} of them FP/SIMD/SVE, all in {:?} routines",
        summary.instructions,
        summary.allowed,
        fpcheck::HYP_ALLOWED
    );
    let host = build::binary(toolchain, build::HOST)?;
    fpcheck::check_host(&host)?;
    Ok(())
}
