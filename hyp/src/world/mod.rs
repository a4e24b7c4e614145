//! What EL1 and EL2 hold per world: which registers there are, what of them is switched, trapped or shown,
//! and the switch itself.
//!
//! | file | what |
//! |---|---|
//! | [`features`] | one file for each CPU feature: all that Umbra does about it, as data |
//! | [`el1`] | the registers that every CPU has |
//! | [`controls`] | EL2's control values of both worlds, for every set of features |
//! | [`idregs`] | what guests read from ID registers |
//! | [`registers`] | the table below, made from the data |
//! | `switch` | all that put into effect |
//! | [`entries`] | the interrupts of a run, checked |
//! | `aarch32`, `interrupts` | what AArch32 adds; a guest's virtual timer and GIC CPU interface |
//!
#![doc = include_str!("registers.md")]

#[cfg(target_os = "none")]
pub mod aarch32;
pub mod controls;
pub mod el1;
pub mod el2;
pub mod entries;
pub mod errata;
pub mod features;
pub mod idregs;
#[cfg(target_os = "none")]
pub mod interrupts;
pub mod midr;
pub mod registers;
#[cfg(target_os = "none")]
pub mod switch;
