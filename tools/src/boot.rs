//! `xtask boot`: the demonstration, or a Linux, from nothing to its table.

use std::path::PathBuf;

use anyhow::Result;

use crate::build::{self, Built};
use crate::firmware;
use crate::linux;
use crate::setup;
use crate::symbols::Symbols;
use crate::watch::{Request, Watched, watch};

/// What boots above hyp.
#[derive(Clone, Debug, Default)]
pub enum Host {
    /// The demonstration.
    #[default]
    Demo,
    /// Whatever is in this packed file.
    Image(PathBuf),
    /// A Linux.
    Linux(linux::Options),
}

/// Builds and runs what is asked for; whether it went well.
pub fn boot(host: &Host, request: &Request) -> Result<bool> {
    let qemu = setup::qemu(request.qemu.as_deref())?;
    let (image, symbols) = match host {
        Host::Linux(options) => return linux::boot(&qemu, request, options),
        Host::Image(image) => (image.clone(), Symbols::default()),
        Host::Demo => {
            let built: Built = build::demo(&setup::toolchain()?, &request.command_line)?;
            let symbols = built.symbols();
            (built.image, symbols)
        }
    };
    let mut machine = request.machine.clone();
    if let Some(setup) = &request.firmware {
        let program = build::binary(&setup::toolchain()?, build::FIRMWARE)?;
        machine.firmware = Some(firmware::configure(&program, setup, "boot")?);
        eprintln!("EL3 firmware: {setup}");
    }
    let Watched { report, failure, .. } = watch(&qemu, &image, symbols, &machine, request)?;
    println!("{}", report.render(failure.as_deref()).trim_end());
    Ok(failure.is_none())
}
