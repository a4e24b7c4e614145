//! Devices that read and write memory, and the SMMUv3s that hold them to what is the host's.
//!
//! An SMMU belongs to hyp alone: its registers, its tables, its queues. Every stream goes through one stage 2,
//! the devices' own ([`crate::memory::devices`]), in which a page is exactly if the host may use it; nothing else
//! is there but the doorbell of an interrupt controller. So the host may program devices as it likes,
//! move streams by renumbering a bus, and tell hyp nothing of it. Linux finds the SMMU's node disabled and gives
//! devices physical addresses, which they then translate to themselves.
//!
//! [`examine`] says what an SMMU must have, [`streams`] and [`commands`] what it reads in memory, [`smmu`] in
//! which order it is brought up and asked to forget, [`all`] the same for all of them; `hw` is its registers on the target. What covers which master,
//! and what becomes of those that nothing covers, is decided from the device tree
//! ([`crate::boot::platform::masters`]).
//!
//! Sources: Arm IHI 0070 (SMMUv3), by the names of its registers, structures and commands.

pub mod all;
pub mod block;
pub mod commands;
pub mod examine;
#[cfg(target_os = "none")]
pub mod hw;
pub mod registers;
#[cfg(test)]
pub mod sim;
pub mod smmu;
pub mod streams;
#[cfg(test)]
mod tests;
