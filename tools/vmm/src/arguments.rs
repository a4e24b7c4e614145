//! The command line.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
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
    Run(Run),
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
    /// Its command line, behind `console=ttyS0`.
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
    /// The terminal's input goes to the guest's console.
    #[arg(long)]
    pub console: bool,
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
    bytes.ok_or_else(|| format!("{text} is not 16M or more"))
}
