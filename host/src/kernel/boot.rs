//! From the first instruction to the binary's main function.

use super::{
    console, gic, layout,
    machine::{self, Machine},
    mmu, pages, power, smp,
    sync::Once,
    timer,
};
use core::arch::global_asm;
use umbra_shared::package::IMAGE_MAGIC;

/// Image header flags: little-endian, 4 KiB pages, anywhere in memory.
const IMAGE_FLAGS: u64 = 1 << 1 | 1 << 3;

global_asm!(
    include_str!("boot.S"),
    IMAGE_FLAGS = const IMAGE_FLAGS,
    IMAGE_MAGIC = const IMAGE_MAGIC,
    BLOCK_NORMAL = const mmu::BOOT_BLOCK,
    KERNEL_L1 = const layout::l1_index(layout::KERNEL),
    WINDOW_L1 = const layout::l1_index(layout::WINDOW),
    MAIR = const mmu::MAIR,
    TCR = const mmu::TCR,
    SCTLR = const mmu::SCTLR,
    STACK_SLOT = const layout::STACK_SLOT,
    primary = sym primary,
    secondary = sym secondary,
);

unsafe extern "Rust" {
    /// The binary's main function: see [`kernel_main`](crate::kernel_main).
    safe fn umbra_kernel_main(machine: &'static Machine) -> !;
}

static MACHINE: Once<Machine> = Once::new();

/// The boot CPU, on its stack, MMU on with the boot tables. `dtb` and `image` are physical.
extern "C" fn primary(dtb: u64, image: u64) -> ! {
    mmu::note_image(image);
    let tree = match machine::boot_tree(dtb) {
        Ok(tree) => tree,
        Err(error) => panic!("device tree at {dtb:#x}: {error}"),
    };
    if let Some(uart) = machine::console(&tree) {
        console::early(uart);
    }
    let machine = match Machine::from_tree(&tree, dtb) {
        Ok(machine) => MACHINE.call_once(|| machine),
        Err(error) => panic!("device tree: {error}"),
    };
    power::init(machine.conduit);
    mmu::init(machine);
    console::init(machine);
    pages::init(machine);
    gic::init(machine);
    cpu_init(0);
    umbra_kernel_main(machine)
}

/// Another CPU, on its stack, with the kernel's tables.
extern "C" fn secondary(cpu: usize) -> ! {
    cpu_init(cpu);
    smp::enter(cpu)
}

fn cpu_init(cpu: usize) {
    mmu::drop_identity_map();
    gic::init_cpu(cpu);
    timer::init_cpu();
    super::sysreg::unmask_interrupts();
}
