//! `xtask check`: formatting, lints, documentation, the unsafe budget, and I5 on the built images.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::budget;
use crate::build;
use crate::fpcheck;
use crate::module;
use crate::process;
use crate::setup;
use crate::toolchain::{Toolchain, cargo};
use crate::workspace;

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
    step("formatting of the fuzz targets", run(fuzz_targets("fmt").arg("--check")));
    step("lints of the fuzz targets", lint_fuzz_targets());
    step("lints on the target", lint_target(&toolchain));
    step("unsafe budget", budget::check());
    step("sets of flags", flag_sets());
    step("I5: FP/SIMD/SVE instructions of hyp", hyp_instructions(&toolchain));
    step("I5: FP/SIMD/SVE instructions of the host library", host_instructions(&toolchain));
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

/// A cargo command on the decoders' fuzz targets, which stand apart from the workspace: to be run they
/// need a nightly compiler, to be looked at they don't.
fn fuzz_targets(verb: &str) -> Command {
    let mut command = cargo();
    command
        .arg(verb)
        .arg("--manifest-path")
        .arg(workspace::root().join("tests/decoders/fuzz/Cargo.toml"))
        .env("CARGO_TARGET_DIR", workspace::target_dir().join("decoders"));
    command
}

fn lint_fuzz_targets() -> Result<()> {
    if process::find_on_path("c++").is_none() {
        eprintln!("note: libFuzzer is C++, and there is no c++: the fuzz targets go unchecked");
        return Ok(());
    }
    run(fuzz_targets("clippy").args(["--", "-D", "warnings"]))
}

/// The bare-metal binaries: clippy where it can, otherwise the compiler's own lints.
fn lint_target(toolchain: &Toolchain) -> Result<()> {
    for binary in build::BINARIES {
        let mut command;
        if toolchain.active {
            command = binary.cargo(toolchain, "clippy");
            command.args(["--", "-D", "warnings"]);
        } else {
            command = binary.cargo(toolchain, "build");
            // Denied by cargo and not by a compiler flag, so that no other crate is built anew.
            // The configuration is unstable in the releases that we support.
            command
                .arg("-Zwarnings")
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_BUILD_WARNINGS", "deny");
        }
        run(&mut command)?;
    }
    lint_module(toolchain)?;
    if !toolchain.active {
        eprintln!(
            "note: clippy can't use the core of {}, which is not the active toolchain's: on the \
             target only the compiler's lints are checked",
            toolchain.rustc
        );
    }
    Ok(())
}

/// The kernel module's Rust half, which is no binary, in both of its builds.
fn lint_module(toolchain: &Toolchain) -> Result<()> {
    let verb = if toolchain.active { "clippy" } else { "build" };
    for features in [&[][..], &["--features", "hunt"]] {
        let mut command = toolchain.cargo(verb);
        command.args(["--release", "--package", module::PACKAGE]).args(features);
        if toolchain.active {
            command.args(["--", "-D", "warnings"]);
        }
        run(&mut command)?;
    }
    Ok(())
}

/// Sets of flags are made by the one macro that sees to it that no bit is in two (`shared/src/bits.rs`).
fn flag_sets() -> Result<()> {
    let macro_itself = workspace::root().join("shared/src/bits.rs");
    for folder in ["hyp/src", "host/src", "shared/src"] {
        for path in workspace::rust_files(&workspace::root().join(folder))? {
            let text = std::fs::read_to_string(&path)?;
            let code = text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
            let mut words =
                code.filter(|line| line.contains("bitflags") && *line != "pub use bitflags;");
            let own = path != macro_itself && words.next().is_some();
            ensure!(!own, "{} makes a set of flags without flag_set!", path.display());
        }
    }
    Ok(())
}

fn hyp_instructions(toolchain: &Toolchain) -> Result<()> {
    let summary = fpcheck::check_hyp(&build::binary(toolchain, build::HYP)?)?;
    eprintln!(
        "hyp: {} instructions, {} of them FP/SIMD/SVE, all in {:?} routines",
        summary.instructions,
        summary.allowed,
        fpcheck::HYP_ALLOWED
    );
    Ok(())
}

fn host_instructions(toolchain: &Toolchain) -> Result<()> {
    let summary = fpcheck::check_library(&build::host_library(toolchain)?)?;
    eprintln!("host library: {} instructions, none of them FP/SIMD/SVE", summary.instructions);
    Ok(())
}
