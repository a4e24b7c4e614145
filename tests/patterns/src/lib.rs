//! Patterns over the whole FP/SVE register file, such that every byte says whose it is.
//!
//! A context (the host on one CPU, a vCPU) fills Z0-Z31, P0-P15, FFR, FPSR and FPCR with values made of
//! its [`tag::Tag`], and later looks whether they are still there. What it finds instead is as telling as that
//! something is missing: the mixing is a bijection, so a stray 64-bit lane gives away its owner, the
//! register and lane it belongs into, and its age.
//!
//! - [`tag`]: what a lane is made of, and back;
//! - [`pattern`]: whole images in the layout of [`umbra_shared::sve`], and their comparison;
//! - [`digest`]: of what a disk holds;
//! - [`model`]: what must be there after any sequence of uses, and what else may be;
//! - `regs`: the registers themselves (bare-metal soft-float targets only);
//! - [`realm`]: a Linux's protected guests, which are measured;
//! - [`protocol`]: what the test guest and its host say to each other.
//!
//! All but `regs` run on any machine, so that tests of tools and simulated machines
//! use the same patterns.

#![cfg_attr(not(test), no_std)]

pub mod digest;
pub mod model;
pub mod pattern;
pub mod protocol;
pub mod realm;
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub mod regs;
pub mod tag;
