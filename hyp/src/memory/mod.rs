//! Memory: who owns each page ([`pages`]), and in which order it changes hands ([`handover`]).

pub mod handover;
pub mod pages;
