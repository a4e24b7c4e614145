//! Power: PSCI as it is decided ([`psci`]) and as it is put into effect (`hw`).

#[cfg(target_os = "none")]
pub mod hw;
pub mod psci;
