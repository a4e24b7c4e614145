//! Memory: who owns each page ([`pages`]), and in which order it changes hands ([`handover`]).

#[cfg(feature = "transition-log")]
mod changes;
pub mod handover;
pub mod pages;
