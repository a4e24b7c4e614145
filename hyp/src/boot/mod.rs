//! Boot: what the loader and the device tree say ([`platform`], [`options`]), from the first instruction to
//! the final page tables (`start`, `boot.S`), and every CPU out of reset (`arrival`).

#[cfg(target_os = "none")]
pub mod arrival;
pub mod options;
pub mod platform;
#[cfg(target_os = "none")]
pub mod start;
