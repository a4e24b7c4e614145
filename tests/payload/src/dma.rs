//! Devices that read and write memory by themselves, driven against whoever memory belongs to.
//!
//! They are told physical addresses, and no page table of a CPU is asked.

pub mod edu;
pub mod fw_cfg;
mod pci;
