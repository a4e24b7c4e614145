//! EL3 test firmware.
//!
//! It makes machines that the emulator's command line can't: CPUs of different vector length
//! (ZCR_EL3.LEN and SMCR_EL3.LEN are each CPU's own), CPUs that come late, and a PSCI that forgets
//! as hardware does. A CPU that comes out of CPU_ON or of a power-down state finds junk in every
//! register that the architecture leaves UNKNOWN there, so a hypervisor that relies on leftovers is
//! caught here and not on somebody's board. With a seed it refuses calls, takes its time over them, and
//! lets CPUs come late, as firmware may; with one more word it hands on a device tree that has everything.
//!
//! What decides is in this library and tested on the development machine: what PSCI answers
//! ([`psci`]), which calls meet trouble ([`trouble`]), what the device tree says and is made to say
//! ([`tree`], [`odd`]), which registers the CPU has ([`features`]). What acts is in the binary's `el3` and in assembly.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod config;
pub mod features;
pub mod odd;
pub mod psci;
pub mod tree;
pub mod trng;
pub mod trouble;
