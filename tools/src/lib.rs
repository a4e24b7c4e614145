//! Everything a person does with Umbra on a development machine, as a library: the `xtask` binary
//! is its command line, and the on-target test harness in `tests/` is its other user.
//!
//! The modules follow a file on its way to a running machine: [`toolchain`] and [`packages`] find
//! (or install) what is needed, [`build`] compiles the bare-metal binaries, [`image`] packs them
//! into one bootable file, [`qemu`] runs it within [`bounds`] and [`console`] understands what it says, with
//! [`symbols`] turning code addresses into source lines. [`kernel`] gets a Linux, which [`linux`] boots
//! as the host. A person sees it by [`watch`]. [`boot`], [`harness`], [`gdb`] and [`check`] are what people ask for by name, and so is
//! [`fuzz`]; [`fvp`] is another machine to run it all on; [`fpcheck`] is the check of invariant I5 on the
//! built image, [`budget`] that of where hyp is unsafe, and [`plants`] shows that the tests notice what they are there for.

pub mod bench;
pub mod board;
pub mod boot;
pub mod bounds;
pub mod budget;
pub mod build;
pub mod check;
pub mod console;
pub mod cpio;
pub mod doctor;
pub mod dtc;
pub mod elf;
pub mod firmware;
pub mod fpcheck;
pub mod fuzz;
pub mod fvp;
pub mod gdb;
pub mod harness;
pub mod image;
pub mod kernel;
pub mod linux;
pub mod module;
pub mod packages;
pub mod plants;
pub mod process;
pub mod qemu;
pub mod remains;
pub mod report;
pub mod setup;
pub mod symbols;
pub mod test;
pub mod toolchain;
pub mod transcript;
pub mod vmm;
pub mod watch;
pub mod workspace;
