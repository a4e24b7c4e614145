//! QEMU's teaching device (docs/specs/edu): it copies between memory and a buffer of its own, 100 ms of
//! the machine's time after it is told to.

use super::pci::{self, Function};
use crate::{
    context::context,
    ledger::{self, PAGE},
    runner::Skip,
};
use arrayvec::ArrayVec;
use umbra_host::kernel::{
    exception::{probe_read, probe_write},
    layout,
    machine::Pcie,
    timer,
};

const IDENTITY: u32 = 0x11e8_1234;
/// Registers.
const SOURCE: u64 = 0x80;
const TARGET: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
/// COMMAND: go on; from the buffer to memory.
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;
/// Where the device sees its buffer.
const BUFFER: u64 = 0x4_0000;

/// Seconds that a copy may take: a hundred times what it does.
const PATIENCE: u64 = 10;

/// What is in the buffer before the device reads something.
pub const CANARY: u64 = 0xca4a_4a4a_4a4a_4aca;

const MIB: u64 = 1 << 20;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Edu {
    /// Where its registers are, physical.
    pub registers: u64,
    /// A page of the test's.
    scratch: u64,
    /// The bridge that it is behind.
    port: Option<Function>,
}

/// All there are, ready.
pub fn all() -> Result<ArrayVec<Edu, 2>, Skip> {
    let pcie = context().machine.masters.pcie.as_ref();
    let pcie = pcie.filter(|pcie| pcie.ecam.enabled).ok_or(Skip("no PCIe"))?;
    let mut found = ArrayVec::new();
    for (n, function) in (1..).zip(pci::functions(0)) {
        if function.identity() == IDENTITY {
            found.push(Edu::at(function, pcie.window.start + n * MIB, None));
        } else if function.is_bridge()
            && let Some(edu) = behind(function, 1, pcie)
        {
            found.push(edu);
        }
    }
    if found.is_empty() { Err(Skip("no device that does as it is told")) } else { Ok(found) }
}

/// The one behind a port whose secondary bus gets this number.
fn behind(port: Function, bus: u32, pcie: &Pcie) -> Option<Edu> {
    let window = pcie.window.start + 16 * MIB;
    port.open_bridge(bus, window, 2);
    let function = pci::functions(bus).find(|function| function.identity() == IDENTITY)?;
    Some(Edu::at(function, window, Some(port)))
}

impl Edu {
    fn at(function: Function, registers: u64, port: Option<Function>) -> Self {
        function.enable_at(registers);
        let edu = Self { registers, scratch: ledger::take(1), port };
        assert_eq!(edu.register(0) & 0xff, 0xed, "the device is where its BAR says");
        edu
    }

    /// The same device on another bus: with another requester ID, and another StreamID.
    pub fn moved_to(&self, bus: u32) -> Option<Self> {
        let pcie = context().machine.masters.pcie.as_ref()?;
        behind(self.port?, bus, pcie)
    }

    /// A register of 32 bits.
    fn register(&self, offset: u64) -> u32 {
        // SAFETY: a register of the device's, which is this test's.
        unsafe { layout::device::<u32>(self.registers + offset).read_volatile() }
    }

    fn pointer(&self, offset: u64) -> core::ptr::NonNull<u64> {
        layout::device(self.registers + offset)
    }

    fn copy(&self, source: u64, target: u64, bytes: u64, command: u64) {
        // SAFETY: registers of the device's. What it does to memory is what the test is about; pages that
        // it may write to are the test's.
        unsafe {
            // What it is to read has been written before it is told.
            core::arch::asm!("dsb sy", options(nostack));
            self.pointer(SOURCE).write_volatile(source);
            self.pointer(TARGET).write_volatile(target);
            self.pointer(COUNT).write_volatile(bytes);
            self.pointer(COMMAND).write_volatile(command | RUN);
        }
    }

    fn wait(&self) {
        // SAFETY: as above.
        let command = || unsafe { self.pointer(COMMAND).read_volatile() };
        assert!(timer::wait_until(PATIENCE, || command() & RUN == 0), "the device does not end");
    }

    /// Starts to copy memory to its buffer.
    pub fn begin_to_fetch(&self, pa: u64, offset: u64, bytes: u64) {
        self.copy(pa, BUFFER + offset, bytes, 0);
    }

    /// Copies memory to its buffer, as far as it can.
    pub fn fetch(&self, pa: u64, offset: u64, bytes: u64) {
        self.begin_to_fetch(pa, offset, bytes);
        self.wait();
    }

    /// Copies its buffer to memory, as far as it can.
    pub fn deliver(&self, pa: u64, offset: u64, bytes: u64) {
        self.copy(BUFFER + offset, pa, bytes, TO_MEMORY);
        self.wait();
    }

    /// Its buffer is full of [`CANARY`].
    pub fn clear(&self) {
        for n in 0..PAGE / 8 {
            // SAFETY: a page of the test's.
            unsafe { probe_write(self.scratch + 8 * n, CANARY) }.expect("a page of the test's");
        }
        self.fetch(self.scratch, 0, PAGE);
    }

    /// What is in its buffer.
    pub fn buffer(&self) -> impl Iterator<Item = u64> {
        let scratch = self.scratch;
        self.deliver(scratch, 0, PAGE);
        (0..PAGE / 8).map(move |n| probe_read(scratch + 8 * n).expect("a page of the test's"))
    }

    /// This word is in its buffer.
    pub fn hold(&self, value: u64) {
        // SAFETY: a page of the test's.
        unsafe { probe_write(self.scratch, value) }.expect("a page of the test's");
        self.fetch(self.scratch, 0, 8);
    }

    /// The word in its buffer.
    pub fn held(&self) -> u64 {
        self.deliver(self.scratch, 0, 8);
        probe_read(self.scratch).expect("a page of the test's")
    }

    /// What it finds at an address.
    pub fn read(&self, pa: u64) -> u64 {
        self.hold(CANARY);
        self.fetch(pa, 0, 8);
        self.held()
    }

    /// Writes to an address, if it can.
    pub fn write(&self, pa: u64, value: u64) {
        self.hold(value);
        self.deliver(pa, 0, 8);
    }
}

/// Whether a word can be what a device got that was refused: what it had, or nothing.
pub fn is_nothing(word: u64) -> bool {
    word == CANARY || word == 0
}
