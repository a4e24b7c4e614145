//! A small virtual machine monitor on KVM's interface: Umbra's (`host/linux`) or Linux's own, which it doesn't tell apart.
//!
//! It is made of rust-vmm's crates. The command line is in [`arguments`]; what a machine has and how it is set up is in
//! `machine.rs`, and where things are in [`layout`]. Machines are of arm64, and so is what runs them; all else is
//! built on any Linux.
#![cfg(target_os = "linux")]

pub mod arguments;
pub mod console;
pub mod control;
pub mod events;
pub mod gate;
pub mod layout;
#[cfg(target_arch = "aarch64")]
pub mod machine;
pub mod report;
pub mod signals;
pub mod supervisor;
pub mod tap;
pub mod tree;
#[cfg(target_arch = "aarch64")]
mod vcpu;
pub mod virtio;
