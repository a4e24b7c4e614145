//! The GIC's side that works on memory, as a driver has it: an ITS and LPIs.
//!
//! What such a driver gives the GIC stays the host's for good, so it is taken once, before the first test.

use crate::{
    context::context,
    ledger::PAGE,
    runner::{Skip, catch},
    workers,
};
use arm_gic::IntId;
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering},
};
use umbra_host::kernel::{
    MAX_CPUS, gic, layout,
    machine::Machine,
    mmu, pages, smp,
    sync::{Lock, Once},
    timer,
};

/// A register of an ITS.
pub mod gits {
    pub const CTLR: u64 = 0x0;
    pub const TYPER: u64 = 0x8;
    pub const CBASER: u64 = 0x80;
    pub const CWRITER: u64 = 0x88;
    pub const CREADR: u64 = 0x90;
    pub const BASER: u64 = 0x100;
    pub const PIDR2: u64 = 0xffe8;
    /// GITS_TRANSLATER, in the frame behind.
    pub const TRANSLATER: u64 = 0x1_0040;
}

/// A register of a redistributor.
pub mod gicr {
    pub const CTLR: u64 = 0x0;
    pub const TYPER: u64 = 0x8;
    pub const WAKER: u64 = 0x14;
    pub const PROPBASER: u64 = 0x70;
    pub const PENDBASER: u64 = 0x78;
    pub const INVLPIR: u64 = 0xa0;
}

pub const VALID: u64 = 1 << 63;
/// Inner shareable; write-back where a redistributor has that, and where an ITS has it.
const GICR_NORMAL: u64 = 7 << 7 | 1 << 10;
const ITS_NORMAL: u64 = 7 << 59 | 1 << 10;

/// A command.
pub type Command = [u64; 4];

/// Bytes of the queue.
const QUEUE: u64 = 4096;

/// What the driver has.
pub struct Driver {
    its: u64,
    redistributors: u64,
    /// The configuration table, 64 KiB.
    pub configuration: u64,
    /// Another one.
    pub second: u64,
    /// A page for an ITT, which this hyp has no use for.
    pub itt: u64,
    /// Nine pages for tables: nor for those.
    tables: u64,
    queue: u64,
    writer: Lock<u64>,
    /// How often it began anew.
    turn: Lock<u64>,
}

static DRIVER: Once<Option<Driver>> = Once::new();

/// Takes the memory that it needs, if there is an ITS.
pub fn init(machine: &Machine) {
    DRIVER.call_once(|| {
        let its = machine.its.as_ref()?.start;
        let configuration = pages::allocate(16, 16).expect("64 KiB");
        let second = pages::allocate(16, 16).expect("64 KiB");
        let queue = pages::allocate(1, 1).expect("a page");
        let itt = pages::allocate(1, 1).expect("a page");
        let tables = pages::allocate(9, 1).expect("nine pages");
        let redistributors = machine.gicr.start;
        let (writer, turn) = (Lock::new(0), Lock::new(0));
        Some(Driver {
            its,
            redistributors,
            configuration,
            second,
            itt,
            tables,
            queue,
            writer,
            turn,
        })
    });
}

/// The driver; a machine without an ITS has none.
pub fn driver() -> Result<&'static Driver, Skip> {
    gic::set_handler(interrupt);
    DRIVER.get().and_then(Option::as_ref).ok_or(Skip("no ITS"))
}

fn register(pa: u64) -> *mut u8 {
    layout::device::<u8>(pa).as_ptr()
}

// Not as volatile accesses, for which a compiler may take an instruction that writes its address register back: one
// such hyp can't emulate.

/// Loads 64 bits of a device's.
pub fn read(pa: u64) -> u64 {
    let value;
    // SAFETY: registers of the GIC, which the kernel has mapped.
    unsafe { asm!("ldr {0}, [{1}]", out(reg) value, in(reg) register(pa), options(nostack)) };
    value
}

/// Loads 32.
pub fn read32(pa: u64) -> u32 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("ldr {0:w}, [{1}]", out(reg) value, in(reg) register(pa), options(nostack)) };
    value
}

/// Stores 64 bits.
pub fn write(pa: u64, value: u64) {
    // SAFETY: as above; what the GIC does then to memory is what tests are about.
    unsafe {
        asm!("dsb sy", "str {0}, [{1}]", in(reg) value, in(reg) register(pa), options(nostack));
    }
}

/// Stores 32.
pub fn write32(pa: u64, value: u32) {
    // SAFETY: as above.
    unsafe {
        asm!("dsb sy", "str {0:w}, [{1}]", in(reg) value, in(reg) register(pa), options(nostack));
    }
}

impl Driver {
    /// A register of the ITS.
    pub const fn its(&self, offset: u64) -> u64 {
        self.its + offset
    }

    /// A register of a CPU's redistributor.
    pub fn rd(&self, cpu: usize, offset: u64) -> u64 {
        let affinity = context().machine.cpus[cpu];
        let mut at = self.redistributors;
        loop {
            let typer = read(at + gicr::TYPER);
            let of = typer >> 32;
            if of & 0xff_ffff | of >> 24 << 32 == affinity {
                return at + offset;
            }
            assert_eq!(typer >> 4 & 1, 0, "no redistributor of CPU {cpu}");
            at += if typer >> 1 & 1 == 1 { 0x4_0000 } else { 0x2_0000 };
        }
    }

    /// The queue that it has.
    pub const fn queue(&self) -> u64 {
        self.queue
    }

    /// Writes a word of a command, whoever reads it meanwhile.
    pub fn scribble(&self, command: u64, word: u64, value: u64) {
        let at = mmu::linear::<u64>(self.queue + 32 * command + 8 * word);
        // SAFETY: the queue is the driver's.
        unsafe { at.write_volatile(value) };
    }

    /// A CPU's redistributor as commands name it.
    pub fn target(&self, cpu: usize) -> u64 {
        if read(self.its(gits::TYPER)) >> 19 & 1 == 1 {
            self.rd(cpu, 0)
        } else {
            (read(self.rd(cpu, gicr::TYPER)) >> 8 & 0xffff) << 16
        }
    }

    /// The place of a table in GITS_BASER, by its type.
    pub fn baser(&self, kind: u64) -> u64 {
        (0..8)
            .map(|n| self.its(gits::BASER + 8 * n))
            .find(|&register| read(register) >> 56 & 7 == kind)
            .expect("a table of that kind")
    }

    /// The ITS is off, and then has these tables (others than before), and an empty queue at `queue`.
    pub fn begin_with(&self, devices: u64, collections: u64, queue: u64) {
        write32(self.its(gits::CTLR), 0);
        assert!(timer::wait_until(10, || read32(self.its(gits::CTLR)) >> 31 == 1), "quiescent");
        for (kind, pa) in [(1, devices), (4, collections)] {
            write(self.baser(kind), VALID | ITS_NORMAL | pa);
        }
        write(self.its(gits::CBASER), VALID | ITS_NORMAL | queue);
        write(self.its(gits::CWRITER), 0);
        *self.writer.lock() = 0;
        write32(self.its(gits::CTLR), 1);
    }

    /// It begins anew, with nothing mapped.
    pub fn begin(&self) {
        let mut turn = self.turn.lock();
        *turn += 1;
        // That nothing is there is nobody's business but hyp's.
        let tables = self.tables + *turn % 8 * PAGE;
        self.begin_with(tables, tables + PAGE, self.queue);
    }

    /// LPIs are on, on all CPUs, all of them disabled.
    pub fn enable_lpis(&self) {
        // SAFETY: the table is the driver's.
        unsafe { mmu::linear::<u8>(self.configuration).write_bytes(0, 0x1_0000) };
        for cpu in 0..context().cpus {
            self.enable_lpis_of(cpu);
        }
    }

    /// On one.
    pub fn enable_lpis_of(&self, cpu: usize) {
        let ctlr = self.rd(cpu, gicr::CTLR);
        if read32(ctlr) & 1 == 0 {
            self.enable_lpis_with(cpu, self.configuration);
        }
        assert_eq!(read32(ctlr) & 1, 1, "LPIs of CPU {cpu}");
    }

    /// With this configuration table.
    pub fn enable_lpis_with(&self, cpu: usize, configuration: u64) {
        let ctlr = self.rd(cpu, gicr::CTLR);
        write(self.rd(cpu, gicr::PROPBASER), configuration | GICR_NORMAL | 15);
        write(self.rd(cpu, gicr::PENDBASER), self.queue & !0xffff | GICR_NORMAL);
        write32(ctlr, 1);
        assert_eq!(read32(ctlr) & 1, 1, "LPIs of CPU {cpu}");
    }

    /// An LPI is enabled at a high priority, or not. The GIC isn't told.
    pub fn configure(&self, intid: u64, enabled: bool) {
        let byte = mmu::linear::<u8>(self.configuration + intid - 8192);
        // SAFETY: the table is the driver's.
        unsafe { byte.write_volatile(0x22 | u8::from(enabled)) };
    }

    /// Puts commands into the queue and waits until they have been read. `false`: the ITS stands still.
    pub fn try_send(&self, commands: &[Command]) -> bool {
        let mut writer = self.writer.lock();
        for command in commands {
            for (n, word) in command.iter().enumerate() {
                // SAFETY: the queue is the driver's.
                unsafe { mmu::linear::<u64>(self.queue + *writer).add(n).write_volatile(*word) };
            }
            *writer = (*writer + 32) % QUEUE;
        }
        write(self.its(gits::CWRITER), *writer);
        timer::wait_until(2, || read(self.its(gits::CREADR)) == *writer)
    }

    /// The same where it must work.
    #[track_caller]
    pub fn send(&self, commands: &[Command]) {
        assert!(self.try_send(commands), "GITS_CREADR {:#x}", read(self.its(gits::CREADR)));
    }

    /// Collection `icid` is at a CPU.
    pub fn mapc(&self, icid: u64, cpu: usize) -> Command {
        [0x09, 0, VALID | self.target(cpu) | icid, 0]
    }
}

/// MAPD for 16 events.
pub const fn mapd(device: u64, itt: u64) -> Command {
    [device << 32 | 0x08, 3, VALID | itt, 0]
}

/// MAPTI.
pub const fn mapti(device: u64, event: u64, intid: u64, icid: u64) -> Command {
    [device << 32 | 0x0a, intid << 32 | event, icid, 0]
}

/// A command about an event: INT, CLEAR, INV, DISCARD.
pub const fn event(command: u64, device: u64, event: u64) -> Command {
    [device << 32 | command, event, 0, 0]
}

pub const INT: u64 = 0x03;
pub const CLEAR: u64 = 0x04;
pub const INV: u64 = 0x0c;
pub const DISCARD: u64 = 0x0f;

/// MOVI.
pub const fn movi(device: u64, number: u64, icid: u64) -> Command {
    [device << 32 | 0x01, number, icid, 0]
}

/// The last LPI that each CPU has taken since somebody asked; 0: none.
static TAKEN: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

fn interrupt(intid: IntId) {
    if u32::from(intid) >= 8192 {
        TAKEN[smp::cpu()].store(u32::from(intid).into(), Ordering::SeqCst);
    }
}

/// The LPI that this CPU has taken since the last time, if it has one within `milliseconds`.
pub fn taken(milliseconds: u64) -> Option<u64> {
    let mine = &TAKEN[smp::cpu()];
    let until = timer::now() + timer::frequency() / 1000 * milliseconds;
    loop {
        match mine.swap(0, Ordering::SeqCst) {
            0 if timer::now() > until => return None,
            0 => core::hint::spin_loop(),
            intid => return Some(intid),
        }
    }
}

/// The same on another CPU.
pub fn taken_on(cpu: usize, milliseconds: u64) -> Option<u64> {
    let found = AtomicU64::new(0);
    workers::on(cpu, || found.store(taken(milliseconds).unwrap_or(0), Ordering::SeqCst));
    Some(found.into_inner()).filter(|&intid| intid != 0)
}

/// Whether an access ends in a synchronous external abort.
pub fn aborts(access: impl FnOnce()) -> bool {
    // The runner says which exception it was that nobody had expected: DFSC 0b010000.
    catch(access).is_err_and(|why| {
        why.split("ESR 0x").nth(1).is_some_and(|esr| {
            let esr = esr.split(' ').next().and_then(|esr| u64::from_str_radix(esr, 16).ok());
            esr.is_some_and(|esr| esr >> 26 & 0x3f == 0x25 && esr & 0x3f == 0x10)
        })
    })
}
