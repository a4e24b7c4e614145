//! The life of VMs and vCPUs: what is decided about them ([`life`], [`ranges`], [`features`], [`power`], [`calls`],
//! [`rsi`], [`measurement`], [`registers`]), over a machine that is a trait ([`hardware`]), and what it is put into effect with (`slots`,
//! `vcpu`, `state`).

pub mod calls;
pub mod features;
pub mod hardware;
pub mod life;
pub mod measurement;
pub mod power;
pub mod ranges;
pub mod registers;
pub mod ripas;
pub mod rsi;
#[cfg(target_os = "none")]
pub mod slots;
#[cfg(target_os = "none")]
mod state;
#[cfg(target_os = "none")]
pub mod vcpu;
