//! A small virtual machine monitor on KVM's interface: Umbra's (`host/linux`) or Linux's own, which it doesn't tell apart.
//!
//! It is made of rust-vmm's crates. The command line is in [`arguments`]; what a machine has and how it is set up is in
//! `machine.rs`, and where things are in [`layout`]. Threads:
//!
//! | thread | |
//! |---|---|
//! | the first one | sets up, then decides about pauses and the end ([`supervisor`]) |
//! | `vcpu` | one for each vCPU: runs the guest, answers loads and stores by the [`bus`] |
//! | `devices` | all [`virtio`] devices' work, and the serial port's input ([`events`]) |
//! | `control` | the control socket, and signals ([`control`]) |
//! | `terminal` | waits for input, if there is any to be had ([`terminal`]) |
//!
//! Whatever ends the machine: vCPUs leave the guest and their threads end, then those of devices and of the socket, files
//! are flushed, and the [`report`] is written.
//!
//! Machines are of arm64, and so is what runs them; devices and all else is tested on any Linux.
#![cfg(target_os = "linux")]
// They panic when nobody reads any more.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod arguments;
pub mod boot;
pub mod bus;
pub mod control;
pub mod devices;
pub mod events;
pub mod gate;
pub mod layout;
pub mod measure;
pub mod report;
pub mod serial;
pub mod signals;
pub mod stats;
pub mod supervisor;
pub mod tap;
pub mod terminal;
pub mod tree;
pub mod virtio;

#[cfg(target_arch = "aarch64")]
mod gic;
#[cfg(target_arch = "aarch64")]
pub mod machine;
#[cfg(target_arch = "aarch64")]
mod ram;
#[cfg(target_arch = "aarch64")]
mod vcpu;
