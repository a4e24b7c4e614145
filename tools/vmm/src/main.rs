//! A small virtual machine monitor on KVM's interface: Umbra's (`host/linux`) or Linux's own.
//!
//! `umbra-vmm run --kernel Image --initrd initrd.img --cpus 2 --memory 512M` boots an arm64 Linux and is over when the guest
//! turns itself off. What the guest has is in machine.rs. The exit status says why it ended:
//!
//! | status | why |
//! |---|---|
//! | 0 | the guest has turned itself off |
//! | 1 | the monitor could not set it up, or go on |
//! | 2 | the guest has reset itself |
//! | 3 | a vCPU can't go on |

#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
fn main() -> std::process::ExitCode {
    use clap::Parser;
    use umbra_vmm::arguments::{Arguments, Verb};
    let Arguments { verb: Verb::Run(run) } = Arguments::parse();
    match umbra_vmm::machine::run(&run) {
        Ok(end) => end.status(),
        Err(error) => {
            eprintln!("umbra-vmm: {error:#}");
            std::process::ExitCode::from(1)
        }
    }
}

#[cfg(not(all(target_arch = "aarch64", target_os = "linux")))]
fn main() -> std::process::ExitCode {
    eprintln!("umbra-vmm: virtual machines of arm64 run on arm64 Linux");
    std::process::ExitCode::from(1)
}
