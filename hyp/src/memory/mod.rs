//! Memory: who owns each page ([`pages`]), in which order it changes hands ([`handover`]), and what
//! becomes of translations and TLBs ([`stage2`]).

#![forbid(unsafe_code)]

#[cfg(feature = "transition-log")]
mod changes;
pub mod handover;
pub mod pages;
pub mod stage2;
