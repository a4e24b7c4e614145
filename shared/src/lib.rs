//! What Umbra's host (EL1) and hyp (EL2) both know, and nothing else: hypercall numbers and argument
//! types ([`call`]), what guests call hyp for ([`guest`], [`rsi`]), what a vCPU run takes and returns ([`exit`]), interrupts in it ([`interrupt`]), a vCPU's registers ([`register`]), error codes ([`error`]), the
//! flag-shadow page ([`flags`]), vector lengths ([`vl`]), what a vCPU can have ([`vcpu`]), what a VM is measured by ([`measurement`]), the one
//! layout of a saved SVE register file ([`sve`]) and of what SME adds to it ([`sme`]), the bootable
//! file ([`package`]), sets of flags ([`bits`]), what a test build writes down ([`record`]), and what the test firmware is told
//! ([`firmware`]).
//!
//! This crate holds no `unsafe` and touches no hardware. Everything a host passes to hyp is
//! untrusted: the types here only *decode*; what a value means for memory or for a vCPU is decided
//! by hyp's own records.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod bits;
pub mod call;
pub mod error;
pub mod exit;
pub mod firmware;
pub mod flags;
pub mod guest;
pub mod interrupt;
pub mod measurement;
mod numbered;
pub mod package;
pub mod record;
pub mod register;
pub mod rsi;
pub mod sme;
pub mod sve;
pub mod vcpu;
pub mod vl;

pub use bitflags;

/// Bytes in a translation granule (and so in a page of every interface here): 4 KiB.
pub const PAGE_SIZE: usize = 4096;
