//! Kernel-mode FP: the host's kernel takes the registers from whatever has them, uses them, and gives
//! them back. In a task it may be interrupted by an interrupt handler that does the same.

use super::{cover, cpu};
use crate::{host, workers::POKE};
use arm_gic::IntId;
use core::sync::atomic::{AtomicBool, Ordering};
use umbra_fuzz::coverage::Kind;
use umbra_host::kernel::{MAX_CPUS, gic, smp, sync::Lock};
use umbra_patterns::regs::{self, Displaced, Registers, Width};

/// Owners: + CPU.
const TASK_OWNER: u16 = 0x120;
const IRQ_OWNER: u16 = 0x140;

/// The kernel's own use of the registers, and what it displaced.
struct Kernel {
    registers: Registers,
    displaced: Displaced,
}

impl Kernel {
    const fn new() -> Self {
        Self { registers: Registers::new(0, None), displaced: Displaced::new() }
    }

    fn use_registers(&mut self) {
        // A task may have SVE closed in streaming mode, which is left here.
        regs::with_everything_open(|| self.use_open_registers());
    }

    fn use_open_registers(&mut self) {
        let width = host::width();
        self.displaced.save(width);
        if width == Width::Sve {
            self.registers.model().set_vq(regs::rdvl());
        }
        self.registers.fill();
        let found = self.registers.check();
        self.displaced.restore(width);
        if let Err(mismatch) = found {
            panic!("kernel-mode FP: {mismatch}");
        }
    }
}

static TASKS: [Lock<Kernel>; MAX_CPUS] = [const { Lock::new(Kernel::new()) }; MAX_CPUS];
static HANDLERS: [Lock<Kernel>; MAX_CPUS] = [const { Lock::new(Kernel::new()) }; MAX_CPUS];

/// The next timer interrupt of each CPU uses FP.
static WANTED: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// Before a program.
pub fn begin(cpu: usize) {
    TASKS[cpu].lock().registers.model().set_owner(TASK_OWNER + cpu as u16);
    HANDLERS[cpu].lock().registers.model().set_owner(IRQ_OWNER + cpu as u16);
    at_next_tick(false);
}

/// In the current task.
pub fn in_task() {
    TASKS[smp::cpu()].lock().use_registers();
}

/// In the handler of this CPU's next timer interrupt.
pub fn at_next_tick(wanted: bool) {
    WANTED[smp::cpu()].store(wanted, Ordering::SeqCst);
}

/// The interrupt handler.
pub fn interrupt(intid: IntId) {
    let cpu = smp::cpu();
    let wanted = match intid {
        POKE => true,
        gic::VIRTUAL_TIMER => WANTED[cpu].swap(false, Ordering::SeqCst),
        _ => false,
    };
    if wanted {
        cover(cpu::pair(Kind::Softirq, None));
        // Only this handler takes it, and it is not interrupted.
        HANDLERS[cpu].lock().use_registers();
        cpu::touched();
    }
}
