//! What a guest traps on: running it (`run`, `enter.S`), what becomes of its calls (`calls`; [`trng`], with
//! `entropy`) and of its other exceptions (`traps`; `traps32` for one in AArch32; `access` for what they have in
//! common), and how they are understood ([`syndrome`], [`aarch32`]).

pub mod aarch32;
#[cfg(target_os = "none")]
pub mod access;
#[cfg(target_os = "none")]
pub mod calls;
#[cfg(target_os = "none")]
pub mod entropy;
#[cfg(target_os = "none")]
pub mod run;
pub mod syndrome;
#[cfg(target_os = "none")]
pub mod traps;
#[cfg(target_os = "none")]
pub mod traps32;
pub mod trng;
