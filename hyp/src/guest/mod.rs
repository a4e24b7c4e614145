//! What a guest traps on: running it (`run`, `enter.S`), what becomes of its calls (`calls`, `rsi`; [`trng`], with
//! `entropy`), of its aborts (`access`) and of its other exceptions (`traps`; `traps32` for one in AArch32), what its
//! host is told (`exit`), and how all that is understood ([`syndrome`], [`aarch32`]).

pub mod aarch32;
#[cfg(target_os = "none")]
pub mod access;
#[cfg(target_os = "none")]
pub mod calls;
#[cfg(target_os = "none")]
pub mod entropy;
#[cfg(target_os = "none")]
pub mod exit;
#[cfg(target_os = "none")]
pub mod rsi;
#[cfg(target_os = "none")]
pub mod run;
pub mod syndrome;
#[cfg(target_os = "none")]
pub mod traps;
#[cfg(target_os = "none")]
pub mod traps32;
pub mod trng;
