//! Memory: who owns each page ([`pages`], [`state`]), in which order it changes hands ([`handover`]), what
//! becomes of translations and TLBs ([`stage2`]), and of devices' ([`devices`]), what a host's kernel may find in the place of guests'
//! memory ([`junk`]); and on the target what that is put into effect with
//! (`hw`), page tables (`tables`) and the pages they are made of (`frames`).

#[cfg(feature = "transition-log")]
mod changes;
pub mod devices;
#[cfg(target_os = "none")]
pub mod frames;
pub mod handover;
#[cfg(target_os = "none")]
pub mod hw;
pub mod junk;
pub mod pages;
pub mod stage2;
pub mod state;
#[cfg(target_os = "none")]
pub mod tables;
