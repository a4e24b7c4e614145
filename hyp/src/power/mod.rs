//! Power: PSCI as it is decided ([`psci`], [`protect`]) and as it is put into effect (`hw`).

#![forbid(unsafe_code)]

#[cfg(target_os = "none")]
pub mod hw;
pub mod protect;
pub mod psci;
