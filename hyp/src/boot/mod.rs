//! Boot: what the loader and the device tree say ([`platform`], [`options`]), from the first instruction to
//! the final page tables (`start`, `boot.S`, with memory from `pool` and [`ranges`]), and every CPU out of reset (`arrival`,
//! `bring_up`).

#[cfg(target_os = "none")]
pub mod arrival;
#[cfg(target_os = "none")]
pub mod bring_up;
#[cfg(target_os = "none")]
pub mod devices;
pub mod options;
pub mod platform;
#[cfg(target_os = "none")]
pub mod pool;
pub mod range_set;
pub mod ranges;
#[cfg(target_os = "none")]
pub mod start;
