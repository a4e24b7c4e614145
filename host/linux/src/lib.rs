//! KVM's interface on Umbra's host crate, for an unmodified arm64 Linux.
//!
//! Linux calls what entry.rs has (module/umbra.h declares it), and is called through the modules of linux/. A file that it
//! hands out stands for an object of ours, which is released with it.
//!
//! | what | where |
//! |---|---|
//! | KVM's numbers and structures | [`abi`] |
//! | what Linux does for us: the unsafe half | linux/ |
//! | a VM and its file, its vCPUs, its GIC | machine.rs, vcpu.rs, gic.rs |
//! | the files of vCPUs and of the GIC | vcpu_file/, machine/device.rs |
//! | eventfds that are interrupts, or that a store signals | machine/wires.rs |
//! | a build that looks for a protected guest's registers at every exit (`--features hunt`) | hunt.rs |
//! | pages, pins and slots | memory.rs, [`slots`] |
//! | files of protected VMs' memory | memory_file.rs |
//! | KVM's names for registers | [`registers`], vcpu_file/one_reg.rs; of the GIC's CPU interface [`icc`] |
//!
//! # Where it is unsafe
//!
//! `cargo xtask check` compares the table with the sources.
//!
//! | module | blocks | other | for |
//! |---|---|---|---|
//! | `entry.rs` | 10 | 21 | what C calls, and the objects that its files keep |
//! | `gic.rs` | 4 | 2 | a GIC and the cells that it refers to, in one object |
//! | `hunt.rs` | 1 | 1 | hunt.S, which runs a guest and keeps what it leaves |
//! | `linux/events.rs` | 21 | 9 | C's files, sleepers, eventfds and work |
//! | `linux/heap.rs` | 4 | 5 | the allocator, and single values in memory of their own |
//! | `linux/mappings.rs` | 7 | 4 | who has mapped a memory file, and their accesses |
//! | `linux/mod.rs` | 15 | 0 | C's functions that have no better place |
//! | `linux/pages.rs` | 22 | 5 | C's pages; kvm_run, which user space writes meanwhile |
//! | `linux/shim.rs` | 0 | 1 | C's functions |
//! | `linux/sync.rs` | 23 | 7 | mutexes, counted owners, and what is replaced under its readers |
//! | `linux/user.rs` | 2 | 0 | copies from and to user space |
//! | `machine.rs` | 2 | 0 | its irqfds, and its end in the background |
//! | `machine/all.rs` | 3 | 1 | the list of VMs |
//! | `machine/files.rs` | 1 | 5 | what files stand for |
//! | `machine/wires.rs` | 3 | 1 | an irqfd's way back to its VM, and what is read while nobody replaces it |
//! | `memory.rs` | 3 | 0 | pins and flag-shadow pages that a VM gives back |
//! | `memory_file.rs` | 1 | 0 | a page that is mapped until it is taken away |

#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod abi;
#[cfg(target_os = "none")]
#[macro_use]
mod linux;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod gic;
#[cfg(all(target_os = "none", feature = "hunt"))]
mod hunt;
pub mod icc;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod memory_file;
pub mod registers;
pub mod slots;
pub mod stats;
#[cfg(target_os = "none")]
mod vcpu;
#[cfg(target_os = "none")]
mod vcpu_file;
