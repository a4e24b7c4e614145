//! Everything a person does with Umbra on a development machine, as a library: the `xtask` binary
//! is its command line, and the on-target test harness in `tests/` is its other user.
//!
//! The modules follow a file on its way to a running machine: [`toolchain`] and [`packages`] find
//! (or install) what is needed, [`build`] compiles the bare-metal binaries, [`image`] packs them
//! into one bootable file, [`qemu`] runs it and [`console`] understands what it says, with
//! [`symbols`] turning code addresses into source lines. [`boot`] and [`gdb`] are what
//! people ask for by name.

pub mod boot;
pub mod build;
pub mod console;
pub mod cpio;
pub mod doctor;
pub mod elf;
pub mod gdb;
pub mod image;
pub mod packages;
pub mod process;
pub mod qemu;
pub mod report;
pub mod setup;
pub mod symbols;
pub mod toolchain;
pub mod workspace;
