//! Random programs over a whole system: what they are made of, and how they are made.
//!
//! A program is a list of [`Step`](program::Step)s, each an event on a CPU: the host uses its FP
//! registers, builds and destroys VMs, loads and runs vCPUs, lets interrupts come at odd moments, turns
//! CPUs off and on, makes hypercalls with junk. `cargo xtask fuzz` makes programs from seeds
//! ([`generate`]); the payload (`tests/payload`, `fuzz` module) carries them out and judges, and both
//! speak of a program in the same way, as text ([`program`]), which is also what a person reads:
//!
//! ```text
//! program 0x1f replay
//! 0 vm 1 lazy protected
//! 0 vcpu 1.0 64
//! 2 fill 256
//! 2 load 1.0
//! 2 run churn 3 hint discarded once
//! ```
//!
//! In **replay** mode the order of the lines is the order of events: a CPU that is not on turn waits in
//! WFI. In **storm** mode each CPU goes through its own lines as fast as it can.
//!
//! [`coverage`] counts which event met which state of the registers.

#![no_std]
#![forbid(unsafe_code)]

pub mod coverage;
pub mod generate;
pub mod program;
