//! AArch32 vCPUs of a program: `driven.S` of `tests/guest32`, which keeps VFP registers of its own.

use crate::puppet32::{self, Routine};
use umbra_host::{
    hypercall::Hvc,
    kernel::{mmu, supply::Pages},
    vm::{Line, PageSupplier, Vm},
};
use umbra_patterns::protocol::{BASE, Command};
use umbra_shared::PAGE_SIZE;

/// Where its code lies in a VM, beside the AArch64 guest's.
const CODE: u64 = 0x9000_0000;

/// Gives a VM the code.
pub fn map(vm: &mut Vm<[Line; 64]>) {
    let code = puppet32::code();
    let count = code.len().div_ceil(PAGE_SIZE);
    let first = Pages.allocate(count as u64).expect("memory for the AArch32 guest");
    let start = mmu::linear::<u8>(first);
    // SAFETY: the pages are ours, and `count` of them hold more than the code.
    unsafe {
        start.write_bytes(0, count * PAGE_SIZE);
        start.copy_from_nonoverlapping(code.as_ptr(), code.len());
    }
    if let Err(error) = vm.map(&Hvc, &mut Pages, first, count as u64, CODE) {
        panic!("VM_MAP: {error}");
    }
}

/// Where a vCPU begins.
pub fn entry() -> u64 {
    CODE + (Routine::Driven.address() - BASE)
}

/// r0 at its start.
pub fn argument(owner: u16, vcpu: u8) -> u64 {
    u64::from(owner) | u64::from(vcpu) << 16
}

/// r0 and r1 for a command that is `number` from its beginning: what it can do of it. It looks at its
/// registers whatever it is told.
pub fn encode(command: Command, number: u64) -> [u64; 2] {
    let what = match command {
        Command::Fill(_) | Command::FillFpsimd | Command::Churn(_) | Command::FillZa => 1,
        Command::Wfi => 2,
        Command::Spin(_) => 3,
        _ => 0,
    };
    [what, number + 1]
}

/// What it found: the word's number, or what comes behind them, found, expected.
pub fn failed([what, found, expected]: [u64; 3]) -> ! {
    match what {
        0..64 => panic!("AArch32 guest: word {what} of D0-D31 is {found:#x}, not {expected:#x}"),
        64 => panic!("AArch32 guest: FPSCR is {found:#x}, not {expected:#x}"),
        65 => panic!("AArch32 guest: FPEXC is {found:#x}, without EN"),
        _ => panic!("AArch32 guest: exception by vector {} at {found:#x}", what - 66),
    }
}
