//! `umbra-vmm run --kernel Image --initrd initrd.img --cpus 2 --memory 512M` boots an arm64 Linux and is over when the guest
//! turns itself off; `umbra-vmm control PATH status` asks one that runs, `umbra-vmm measure` says what a protected one is measured by. The exit status of `run` says why it ended:
//!
//! | status | why |
//! |---|---|
//! | 0 | the guest has turned itself off |
//! | 1 | the monitor could not set it up, or go on |
//! | 2 | the guest has reset itself |
//! | 3 | a vCPU can't go on |
//! | 4 | the operator has stopped it: by the control socket, the terminal or a signal |
//!
//! A line of JSON on standard error says the same with counters (`report.rs`). `control` ends with 0 if the machine did
//! what it was asked for, `measure` if it could be computed, otherwise with 1.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use clap::Parser;
    use std::io::Write;
    use std::process::ExitCode;
    use umbra_vmm::arguments::{Arguments, Verb};
    use umbra_vmm::report::complain;

    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Not clap's status, which would be a guest's that has reset itself. Help is no error.
            let well = error.print().is_ok() && !error.use_stderr();
            return ExitCode::from(u8::from(!well));
        }
    };
    let result = match arguments.verb {
        Verb::Run(run) => self::run(&run),
        Verb::Measure(measure) => umbra_vmm::measure::measure(&measure).map(|value| {
            let said = writeln!(std::io::stdout(), "{}", umbra_vmm::measure::hex(&value)).is_ok();
            ExitCode::from(u8::from(!said))
        }),
        Verb::Control { path, request } => {
            umbra_vmm::control::ask(&path, request).map(|(answer, well)| {
                // An answer that nobody reads is none.
                let said = writeln!(std::io::stdout(), "{answer}").is_ok();
                ExitCode::from(u8::from(!(well && said)))
            })
        }
    };
    result.unwrap_or_else(|error| {
        complain(format_args!("{error:#}"));
        ExitCode::from(1)
    })
}

#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
fn run(arguments: &umbra_vmm::arguments::Run) -> anyhow::Result<std::process::ExitCode> {
    umbra_vmm::machine::run(arguments).map(|end| end.status())
}

#[cfg(all(not(target_arch = "aarch64"), target_os = "linux"))]
fn run(_: &umbra_vmm::arguments::Run) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("virtual machines of arm64 run on arm64 Linux")
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("umbra-vmm: virtual machines of arm64 run on arm64 Linux");
    std::process::ExitCode::from(1)
}
