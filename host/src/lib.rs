//! lib
#![cfg_attr(not(test), no_std)]
#[cfg(feature = "kernel")]
pub mod kernel;
