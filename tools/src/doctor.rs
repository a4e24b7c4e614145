//! `xtask doctor`: what is there, what is missing, what to install. It changes nothing.

use anyhow::Result;

use crate::dtc;
use crate::fvp;
use crate::process;
use crate::qemu::Qemu;
use crate::toolchain::{Missing, Toolchain, cargo};

/// Prints the report; whether everything that `boot` and `test` need is there.
pub fn report() -> Result<bool> {
    let mut complete = true;
    let mut line = |name: &str, found: Result<String, String>| match found {
        Ok(what) => println!("ok       {name:<10} {what}"),
        Err(advice) => {
            complete = false;
            println!("MISSING  {name:<10} {advice}");
        }
    };
    let toolchain = Toolchain::find();
    line(
        "compiler",
        match &toolchain {
            Ok(toolchain) => Ok(toolchain.to_string()),
            Err(Missing::Linker) => Ok("found".to_owned()),
            Err(Missing::Compiler) => Err(Missing::Compiler.advice()),
        },
    );
    line(
        "linker",
        match &toolchain {
            Ok(toolchain) => Ok(toolchain.linker.display().to_string()),
            Err(Missing::Linker) => Err(Missing::Linker.advice()),
            Err(Missing::Compiler) => Err("looked for once there is a compiler".to_owned()),
        },
    );
    line(
        "qemu",
        match Qemu::find(None) {
            Ok(Some(qemu)) => {
                Ok(format!("{}.{} ({})", qemu.version.0, qemu.version.1, qemu.path.display()))
            }
            Ok(None) => Err(Qemu::advice()),
            Err(error) => Err(format!("{error:#}")),
        },
    );
    let optional = |name: &str, found: Option<String>, advice: &str| match found {
        Some(what) => println!("ok       {name:<10} {what}"),
        None => println!("optional {name:<10} {advice}"),
    };
    for (name, verb, advice) in [
        ("rustfmt", "fmt", "for `xtask check`: rustup component add rustfmt"),
        ("clippy", "clippy", "for `xtask check`: rustup component add clippy"),
    ] {
        let version = process::stdout(cargo().args([verb, "--version"])).ok();
        optional(name, version.map(|text| text.trim().to_owned()), advice);
    }
    let usual = Qemu::find(None).ok().flatten();
    optional(
        "newer qemu",
        Qemu::find_newer(usual.as_ref())
            .map_err(|error| eprintln!("{error:#}"))
            .ok()
            .flatten()
            .map(|qemu| format!("{}.{} ({})", qemu.version.0, qemu.version.1, qemu.path.display())),
        &format!(
            "fetched on Debian by `xtask test` and `xtask setup`; {}",
            Qemu::advice_on_newer()
        ),
    );
    optional(
        "dtc",
        dtc::find().map(|path| path.display().to_string()),
        "for `xtask test`, which installs it if it may: the package device-tree-compiler",
    );
    optional(
        "fvp",
        fvp::Model::find().ok().flatten().map(|model| model.program.display().to_string()),
        "for `xtask fvp`: Arm's Base RevC model; `xtask fvp boot` says more",
    );
    optional(
        "gdb",
        process::find_on_path("gdb-multiarch").map(|path| path.display().to_string()),
        "for `xtask gdb`: install the package gdb-multiarch",
    );
    if !complete {
        println!("`cargo xtask boot` and `cargo xtask test` install what is missing.");
    }
    Ok(complete)
}
