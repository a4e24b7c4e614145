//! A small EL1 kernel: enough of an operating system to embed this crate in, for the demonstration
//! and for the test payloads.
//!
//! It is entered as an arm64 Linux kernel is (Documentation/arch/arm64/booting.rst) and learns
//! everything of the machine from the device tree. Memory looks like this, 39 bits of it, all in
//! TTBR1:
//!
//! | from | what |
//! |---|---|
//! | `0xffff_ff80_0000_0000` | all RAM, linear: address + physical address |
//! | `0xffff_ffc0_0000_0000` | devices, the same way, as far as drivers asked for them |
//! | `0xffff_ffff_4000_0000` | a PCIe host bridge's configuration space, if there is one |
//! | `0xffff_ffff_8000_0000` | the boot window: device tree, early console |
//! | `0xffff_ffff_c000_0000` | the image |
//!
//! Reserved RAM is part of the linear map on purpose: whoever reserved it (hyp) must not depend on
//! this kernel's manners, and tests reach for it with [`exception::probe_read`].
//!
//! Its files stand on each other in one direction: system registers and the layout of memory below, then
//! what the device tree says of the machine, then the tables, the devices and PSCI, then exceptions and
//! the other CPUs, and `boot` on top.
//!
//! The kernel uses no FP register itself (it is built for a soft-float target), so interrupts neither
//! save nor disturb any: whatever a binary keeps in V, Z, P and FFR stays there until hyp or the
//! binary itself changes it.

pub mod boot;
pub mod console;
pub mod exception;
pub mod gic;
pub mod initrd;
pub mod layout;
pub mod machine;
pub mod mmu;
pub mod pages;
pub mod power;
pub mod smp;
pub mod supply;
pub mod sync;
pub mod sysreg;
pub mod timer;

/// The most CPUs the kernel brings up; the linker script has a stack for each.
pub const MAX_CPUS: usize = 8;

/// Names the function that the kernel runs on the boot CPU once everything is up:
/// `fn(&'static Machine) -> !`. Exactly one per binary.
#[macro_export]
macro_rules! kernel_main {
    ($main:path) => {
        /// What the kernel's start-up code calls.
        // SAFETY: no other symbol of this name exists; the kernel declares it with this type.
        #[unsafe(no_mangle)]
        extern "Rust" fn umbra_kernel_main(
            machine: &'static $crate::kernel::machine::Machine,
        ) -> ! {
            let main: fn(&'static $crate::kernel::machine::Machine) -> ! = $main;
            main(machine)
        }
    };
}

/// Fatal error: says why and where, and stops this CPU.
pub fn die(info: &core::panic::PanicInfo) -> ! {
    sysreg::mask_interrupts();
    log::error!("@fatal cpu {} {info}", sysreg::cpu());
    power::stop()
}
