//! Power: the host's PSCI as it is decided ([`psci`], [`protect`]) and as it is put into effect (`hw`), and guests'
//! ([`guest`]).

#![forbid(unsafe_code)]

pub mod guest;
#[cfg(target_os = "none")]
pub mod hw;
pub mod protect;
pub mod psci;
