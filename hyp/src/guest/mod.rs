//! What a guest traps on: running it (`run`, `enter.S`), what becomes of its exceptions (`traps`; `traps32`
//! for one in AArch32; `access` for what they have in common), how they are understood ([`syndrome`],
//! [`aarch32`]), and the calls that hyp answers itself ([`trng`], with `entropy`).

pub mod aarch32;
#[cfg(target_os = "none")]
pub mod access;
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
