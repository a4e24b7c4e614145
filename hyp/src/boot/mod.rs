//! Boot: what the loader and the device tree say ([`platform`], [`options`]), from the first instruction to
//! the final page tables (`start`, `boot.S`, through the tables of `early`, with memory from `pool` and [`ranges`]), what the
//! host has (`host_memory`) and devices reach (`devices`), and every CPU out of reset (`arrival`,
//! `bring_up`).

#[cfg(target_os = "none")]
pub mod arrival;
#[cfg(target_os = "none")]
pub mod bring_up;
#[cfg(target_os = "none")]
pub mod devices;
#[cfg(target_os = "none")]
pub mod early;
#[cfg(target_os = "none")]
pub mod host_memory;
pub mod options;
pub mod platform;
#[cfg(target_os = "none")]
pub mod pool;
pub mod range_set;
pub mod ranges;
#[cfg(target_os = "none")]
pub mod start;
