//! Memory: who owns each page ([`pages`]).

pub mod pages;
