//! The command line.
#![forbid(unsafe_code)]

use crate::control::Verb as Request;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// A small virtual machine monitor on KVM's interface.
#[derive(Debug, Parser)]
#[command(name = "umbra-vmm")]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Boot an arm64 Linux, and end when it does.
    ///
    /// SIGTERM, SIGINT and SIGHUP stop it in order, and so does Ctrl-A x if its input is a terminal (Ctrl-A Ctrl-A
    /// is one Ctrl-A for the guest). The exit status says why it ended: 0, the guest has turned itself off; 1, it couldn't be
    /// set up or go on; 2, the guest has reset itself; 3, a vCPU can't go on; 4, it was stopped.
    Run(Box<Run>),
    /// Say what a protected machine is measured by, from its files alone: what its guest reads as RSI's initial measurement.
    ///
    /// Takes the arguments of `run`, and what the machine that runs it decides otherwise: --sve and --address-bits, which a
    /// machine tells in its report (`protected`). Disks and networks need not be there.
    Measure(Box<Measure>),
    /// Ask a machine that runs for something; its answer is a line of JSON.
    Control {
        /// Its control socket.
        path: PathBuf,
        /// What to ask for.
        request: Request,
    },
}

/// The virtual machine.
#[derive(Debug, Args)]
pub struct Run {
    /// An arm64 `Image`.
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Its initrd.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Its command line, behind `console=ttyS0` or, with `--console virtio`, `console=hvc0`, and with `--protected` buffers for
    /// devices (`swiotlb=`).
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,
    /// vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cpus: u8,
    /// Memory: bytes, or with K, M or G.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    pub memory: u64,
    /// The largest vector length in bytes, 0 for no SVE; without, all that there is.
    #[arg(long, value_name = "BYTES")]
    pub sve: Option<u64>,
    /// A protected VM, whose memory and registers are out of the host's reach. Its kernel must know that, as a guest of Arm's
    /// Confidential Compute Architecture (RSI), or see `--unaware`.
    #[arg(long)]
    pub protected: bool,
    /// A protected VM's memory is this process's own, as of monitors that know no guest_memfd.
    #[arg(long, requires = "protected")]
    pub own_memory: bool,
    /// The kernel of a protected VM doesn't know that: it finds the GIC and the serial port where it shares what it accesses, and
    /// nothing else, as it shares no memory.
    #[arg(long, requires = "protected", conflicts_with_all = ["disk", "net"])]
    pub unaware: bool,
    /// A disk: a raw file or a block device. May be given several times.
    #[arg(long, value_name = "FILE[,ro]", value_parser = disk)]
    pub disk: Vec<Disk>,
    /// A network card at a TAP interface, with an address of its own or one that is made up. May be given several times.
    #[arg(long, value_name = "tap=NAME[,mac=ADDRESS]", value_parser = net)]
    pub net: Vec<Net>,
    /// Which console the terminal's input goes to: the serial port, or a virtio console, which is there only then. Output of
    /// both goes to the terminal.
    #[arg(long, value_name = "WHICH", num_args = 0..=1, default_missing_value = "serial")]
    pub console: Option<Console>,
    /// A Unix socket for `umbra-vmm control`, made at this path.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// A machine to measure.
#[derive(Debug, Args)]
pub struct Measure {
    /// As it is run.
    #[command(flatten)]
    pub run: Run,
    /// Bits of an address that its guest finds, of which the highest tells what it shares (KVM_CAP_ARM_VM_IPA_SIZE of the VM).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(32..=52))]
    pub address_bits: u32,
}

/// A console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Console {
    /// The serial port, `ttyS0`.
    Serial,
    /// A virtio console, `hvc0`.
    Virtio,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Where it is.
    pub path: PathBuf,
    /// The guest can't write to it.
    pub read_only: bool,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// The host's interface.
    pub tap: String,
    /// The card's address.
    pub mac: Option<[u8; 6]>,
}

impl Run {
    /// The whole command line of the kernel.
    pub fn command_line(&self) -> String {
        let console = match self.console {
            Some(Console::Virtio) => "console=hvc0",
            _ => "console=ttyS0",
        };
        // All that devices read and write goes through buffers that a protected guest shares. As many as Linux sets aside by itself
        // are too few for a network's (7.3), and its own default, 32768 of 2 KiB, it takes for no wish.
        let says_so = self.cmdline.split_whitespace().any(|word| word.starts_with("swiotlb="));
        let buffers =
            if self.protected && !self.unaware && !says_so { "swiotlb=16384 " } else { "" };
        format!("{console} {buffers}{}", self.cmdline).trim_end().to_owned()
    }
}

/// A size in bytes.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        other => return Err(format!("{other} is no unit: K, M or G")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{digits}: {error}"))?;
    let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes >= 16 << 20);
    let bytes = bytes.ok_or_else(|| format!("{text} is not 16M or more"))?;
    if bytes.is_multiple_of(1 << 16) {
        Ok(bytes)
    } else {
        Err(format!("{text} is no multiple of 64K"))
    }
}

fn disk(text: &str) -> Result<Disk, String> {
    let (path, read_only) = match text.strip_suffix(",ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    if path.is_empty() {
        return Err("it needs a file".to_owned());
    }
    Ok(Disk { path: path.into(), read_only })
}

fn net(text: &str) -> Result<Net, String> {
    let (mut tap, mut mac) = (None, None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tap", name)) if tap.is_none() && !name.is_empty() => tap = Some(name.to_owned()),
            Some(("mac", address)) if mac.is_none() => mac = Some(self::mac(address)?),
            _ => return Err(format!("{part} is none of tap=NAME, mac=ADDRESS, once each")),
        }
    }
    Ok(Net { tap: tap.ok_or("it needs tap=NAME")?, mac })
}

/// Six pairs of hexadecimal digits, of one station.
fn mac(text: &str) -> Result<[u8; 6], String> {
    let complain = || format!("{text} is no address of a card");
    let pair = |pair: &str| {
        let digits = pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
        if digits { u8::from_str_radix(pair, 16).ok() } else { None }
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(pair).collect();
    let mac: [u8; 6] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(complain)?;
    // Neither a group's nor nobody's.
    if mac[0] & 1 == 0 && mac != [0; 6] { Ok(mac) } else { Err(complain()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &str) -> Result<Run, String> {
        let words =
            ["umbra-vmm", "run", "--kernel", "Image"].into_iter().chain(words.split_whitespace());
        match Arguments::try_parse_from(words).map_err(|error| error.to_string())?.verb {
            Verb::Run(run) => Ok(*run),
            _ => Err("not run".to_owned()),
        }
    }

    #[test]
    fn what_is_not_said() {
        let run = run("").unwrap();
        assert_eq!((run.cpus, run.memory, run.sve, run.console), (1, 512 << 20, None, None));
        assert!(run.disk.is_empty() && run.net.is_empty() && run.control.is_none());
        assert_eq!(run.command_line(), "console=ttyS0");
        assert!(!run.protected);
    }

    #[test]
    fn protected_guests_have_buffers_to_share() {
        let line = |words| run(words).unwrap().command_line();
        assert_eq!(line("--protected --cmdline quiet"), "console=ttyS0 swiotlb=16384 quiet");
        assert_eq!(line("--protected --cmdline swiotlb=9"), "console=ttyS0 swiotlb=9");
        assert_eq!(line("--protected --unaware --cmdline quiet"), "console=ttyS0 quiet");
        assert!(run("--unaware").is_err() && run("--protected --unaware --disk a").is_err());
    }

    #[test]
    fn consoles() {
        assert_eq!(run("--console").unwrap().console, Some(Console::Serial));
        assert_eq!(run("--console --cpus 2").unwrap().console, Some(Console::Serial));
        let run = run("--console virtio --cmdline quiet").unwrap();
        assert_eq!(run.console, Some(Console::Virtio));
        assert_eq!(run.command_line(), "console=hvc0 quiet");
        assert!(super::tests::run("--console video").is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(run("--memory 16M").unwrap().memory, 16 << 20);
        assert_eq!(run("--memory 3g").unwrap().memory, 3 << 30);
        for wrong in ["15M", "16", "1T", "M", "-1G", "99999999999999G", "16777217"] {
            assert!(run(&format!("--memory={wrong}")).is_err(), "{wrong}");
        }
        assert!(run("--cpus 0").is_err() && run("--cpus 65").is_err());
    }

    #[test]
    fn disks_and_nets() {
        let run =
            run("--disk a.img --disk /dev/vdb,ro --net tap=t0 --net mac=02:00:00:00:00:0a,tap=t1")
                .unwrap();
        let disk = |path: &str, read_only| Disk { path: path.into(), read_only };
        assert_eq!(run.disk, [disk("a.img", false), disk("/dev/vdb", true)]);
        let net = |tap: &str, mac| Net { tap: tap.to_owned(), mac };
        assert_eq!(run.net, [net("t0", None), net("t1", Some([2, 0, 0, 0, 0, 10]))]);
        for wrong in [
            "--disk ,ro",
            "--net t0",
            "--net mac=02:00:00:00:00:0a",
            "--net tap=",
            "--net tap=a,tap=b",
            "--net tap=a,mac=01:00:00:00:00:00",
            "--net tap=a,mac=00:00:00:00:00:00",
            "--net tap=a,mac=02:00:00:00:00",
            "--net tap=a,mac=2:0:0:0:0:0",
            "--net tap=a,mac=+2:00:00:00:00:00",
        ] {
            assert!(super::tests::run(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn requests() {
        let words = ["umbra-vmm", "control", "/tmp/s", "pause"];
        match Arguments::try_parse_from(words).unwrap().verb {
            Verb::Control { path, request } => {
                assert_eq!((path, request), (PathBuf::from("/tmp/s"), Request::Pause));
            }
            _ => panic!("it's a request"),
        }
    }
}
