//! One SMMU: brought up so that no transaction passes untranslated, and asked to forget what it has kept of
//! pages that change hands.
//!
//! - While it is brought up all transactions abort (`GBPA.ABORT`): bypass, which is what many reset to, would
//!   let a device that is still running reach anything.
//! - The old owner has lost a page only when the SMMU's TLB has (`CMD_TLBI_S2_IPA`) and when transactions that used
//!   it have ended, which is what `CMD_SYNC` waits for (IHI 0070, 4.7.3 and 3.21.1). Before that nobody wipes it
//!   or gives it to anybody.
//! - Waits are bounded by count. An SMMU that stops at a command, or that doesn't answer, keeps what it
//!   should have lost: [`Trouble`], and the machine stops.

#![forbid(unsafe_code)]

use super::block::Block;
use super::commands::{self, Command};
use super::examine::Facts;
use super::registers::*;
use super::streams::Streams;
use core::fmt;

/// An SMMU's registers, and what orders them against memory.
pub trait Registers {
    /// Reads 32 bits at this offset.
    fn read(&self, offset: u32) -> u32;

    /// Writes 32 bits.
    fn write(&mut self, offset: u32, value: u32);

    /// Writes 64 bits.
    fn write64(&mut self, offset: u32, value: u64);

    /// DSB SY: stores to memory before it are the SMMU's to see, and what comes after it begins after loads of
    /// registers before it.
    fn barrier(&self);
}

/// An SMMU doesn't do as it is told. Nothing can be said of what devices reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A register doesn't take what is written to it.
    Register(&'static str),
    /// It has stopped at a command (`SMMU_GERROR.CMDQ_ERR`), for this reason.
    Command(&'static str),
    /// It has failed (`SMMU_GERROR.SFM_ERR`).
    Failure,
    /// Commands are not consumed.
    Hung,
    /// It is off.
    Off,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register(name) => write!(f, "{name} does not take what is written"),
            Self::Command(why) => write!(f, "stopped at a command: {why}"),
            Self::Failure => write!(f, "in Service Failure Mode"),
            Self::Hung => write!(f, "commands are not consumed"),
            Self::Off => write!(f, "off"),
        }
    }
}

/// How often a register is read until it says what it should. A number and no time; an SMMU of silicon answers within
/// some thousand.
const LOOKS: u32 = 1 << 21;

/// The address in `SMMU_STRTAB_BASE`.
const ADDRESS: u64 = 0x000f_ffff_ffff_ffc0;

/// Doublewords of a command, and of a record of an event.
const COMMAND_WORDS: usize = 2;
const EVENT_WORDS: usize = 4;

/// `SMMU_EVENTQ_PROD.OVFLG` and `SMMU_EVENTQ_CONS.OVACKFLG`.
const OVERFLOW: u32 = 1 << 31;

/// An SMMU of hyp's.
#[derive(Debug)]
pub struct Smmu<R> {
    registers: R,
    facts: Facts,
    commands: Block,
    events: Block,
    /// log2 of the commands in the queue.
    size: u32,
    /// `SMMU_CMDQ_PROD` as it will be: index and wrap bit.
    produced: u32,
    /// `SMMU_CMDQ_CONS` as it was last read.
    consumed: u32,
    /// Events that were seen.
    seen: u64,
    /// `SMMU_STRTAB_BASE`.
    streams: u64,
}

impl<R: Registers> Smmu<R> {
    /// This one. Its queues lie in `commands` and `events`, which are aligned to their sizes, powers of two.
    pub fn new(registers: R, facts: Facts, commands: Block, events: Block) -> Self {
        let size = log2(commands.len() / COMMAND_WORDS).min(facts.commands);
        Self {
            registers,
            facts,
            commands,
            events,
            size,
            produced: 0,
            consumed: 0,
            seen: 0,
            streams: 0,
        }
    }

    /// Nothing passes any more: off, and what comes in meanwhile aborts. Whatever it was before.
    ///
    /// # Errors
    ///
    /// [`Trouble::Register`].
    pub fn close(&mut self) -> Result<(), Trouble> {
        self.expect("SMMU_GBPA", GBPA, GBPA_UPDATE, 0)?;
        let old = self.registers.read(GBPA);
        self.registers.write(GBPA, old | GBPA_ABORT | GBPA_UPDATE);
        self.expect("SMMU_GBPA", GBPA, GBPA_UPDATE | GBPA_ABORT, GBPA_ABORT)?;
        self.enable(0)
    }

    /// Brings it up, from whatever it was: every stream goes through what `streams` say.
    ///
    /// # Errors
    ///
    /// Any [`Trouble`]; then it lets nothing pass, or nobody knows what it does.
    pub fn start(&mut self, streams: &Streams) -> Result<(), Trouble> {
        self.close()?;
        self.registers.write(IRQ_CTRL, 0);
        self.expect("SMMU_IRQ_CTRL", IRQ_CTRLACK, u32::MAX, 0)?;
        self.registers.write(CR1, CR1_WRITE_BACK);
        self.registers.write(CR2, CR2_PTM | CR2_RECINVSID);
        let (base, config) = streams.registers(self.facts.stream_bits);
        self.registers.write64(STRTAB_BASE, base);
        self.streams = base;
        self.registers.write(STRTAB_BASE_CFG, config);

        for (queue, size, [base, prod, cons]) in [
            (&self.commands, self.size, [CMDQ_BASE, CMDQ_PROD, CMDQ_CONS]),
            (&self.events, self.event_size(), [EVENTQ_BASE, EVENTQ_PROD, EVENTQ_CONS]),
        ] {
            self.registers.write64(base, queue.pa() | BASE_ALLOCATE | u64::from(size));
            self.registers.write(prod, 0);
            self.registers.write(cons, 0);
        }
        (self.produced, self.consumed) = (0, 0);
        // What went wrong before is nobody's any more, but for a failure that lasts.
        let errors = self.registers.read(GERROR);
        if (errors ^ self.registers.read(GERRORN)) & GERROR_SFM_ERR != 0 {
            return Err(Trouble::Failure);
        }
        self.registers.write(GERRORN, errors);

        self.enable(CR0_CMDQEN)?;
        // One kind at a time: cores have errata about both between two SYNCs (MMU-700 2812531).
        self.issue(Command::ForgetStreams)?;
        self.sync()?;
        self.issue(Command::ForgetTranslations)?;
        self.sync()?;
        self.enable(CR0_CMDQEN | CR0_EVENTQEN)?;
        self.enable(self.on())
    }

    /// `SMMU_CR0` of an SMMU that is on.
    const fn on(&self) -> u32 {
        let check = if self.facts.ats { CR0_ATSCHK } else { 0 };
        CR0_SMMUEN | CR0_EVENTQEN | CR0_CMDQEN | check
    }

    /// Whether it is as [`Self::start`] left it: a machine that slept may have taken its power away.
    pub fn is_on(&self) -> bool {
        let base = u64::from(self.registers.read(STRTAB_BASE))
            | u64::from(self.registers.read(STRTAB_BASE + 4)) << 32;
        self.registers.read(CR0ACK) == self.on()
            && (base ^ self.streams) & ADDRESS == 0
            && self.registers.read(GBPA) & GBPA_ABORT != 0
            && self.registers.read(CMDQ_PROD) == self.produced
    }

    /// What it keeps of a page of the devices' stage 2 is to be forgotten: begun, and done at [`Self::settle`].
    ///
    /// # Errors
    ///
    /// Any [`Trouble`].
    pub fn forget_page(&mut self, vmid: u16, ipa: u64) -> Result<(), Trouble> {
        self.issue(Command::ForgetPage { vmid, ipa })
    }

    /// All that is kept of translations is to be forgotten: they are hyp's, every one.
    ///
    /// # Errors
    ///
    /// Any [`Trouble`].
    pub fn forget_everything(&mut self) -> Result<(), Trouble> {
        self.issue(Command::ForgetTranslations)
    }

    /// All that was begun is done: pages are forgotten, and no transaction is under way that has used them.
    ///
    /// # Errors
    ///
    /// Any [`Trouble`].
    pub fn settle(&mut self) -> Result<(), Trouble> {
        self.sync()?;
        // One that somebody has turned off forgets all, and lets everything pass.
        if self.registers.read(CR0ACK) & CR0_SMMUEN == 0 {
            return Err(Trouble::Off);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Trouble> {
        self.issue(Command::Sync)?;
        self.ring();
        self.wait(|smmu| smmu.consumed == smmu.produced)?;
        // Nothing that comes now has begun before.
        self.registers.barrier();
        Ok(())
    }

    /// Events since the machine began, read from the queue: transactions that were aborted and told of.
    /// Those that found it full are not among them.
    pub fn events(&mut self) -> u64 {
        let (end, begin) = (self.registers.read(EVENTQ_PROD), self.registers.read(EVENTQ_CONS));
        let mask = (2 << self.event_size()) - 1;
        self.seen += u64::from(end.wrapping_sub(begin) & mask);
        self.registers.write(EVENTQ_CONS, end & mask | end & OVERFLOW);
        self.seen
    }

    /// log2 of the records in the event queue.
    fn event_size(&self) -> u32 {
        log2(self.events.len() / EVENT_WORDS).min(self.facts.events)
    }

    /// Puts a command into the queue, once there is room.
    fn issue(&mut self, command: Command) -> Result<(), Trouble> {
        if self.is_full() {
            self.ring();
            self.wait(|smmu| !smmu.is_full())?;
        }
        let index = self.produced as usize & ((1 << self.size) - 1);
        for (n, word) in command.encode().into_iter().enumerate() {
            self.commands.store(COMMAND_WORDS * index + n, word);
        }
        // The bit above the index says how often the queue has wrapped.
        self.produced = self.produced.wrapping_add(1) & self.mask();
        Ok(())
    }

    const fn mask(&self) -> u32 {
        (2 << self.size) - 1
    }

    const fn is_full(&self) -> bool {
        self.produced ^ self.consumed == 1 << self.size
    }

    /// The SMMU is told of what the queue holds.
    fn ring(&mut self) {
        self.registers.barrier();
        self.registers.write(CMDQ_PROD, self.produced);
    }

    /// Waits until enough is consumed.
    fn wait(&mut self, enough: impl Fn(&Self) -> bool) -> Result<(), Trouble> {
        for _ in 0..LOOKS {
            let consumed = self.registers.read(CMDQ_CONS);
            self.consumed = consumed & self.mask();
            let errors = self.registers.read(GERROR) ^ self.registers.read(GERRORN);
            if errors & GERROR_SFM_ERR != 0 {
                return Err(Trouble::Failure);
            }
            if errors & GERROR_CMDQ_ERR != 0 {
                return Err(Trouble::Command(commands::error(consumed)));
            }
            if enough(self) {
                return Ok(());
            }
        }
        Err(Trouble::Hung)
    }

    /// Writes `SMMU_CR0` and waits for its acknowledgment.
    fn enable(&mut self, value: u32) -> Result<(), Trouble> {
        // Tables and commands are there before it looks.
        self.registers.barrier();
        self.registers.write(CR0, value);
        self.expect("SMMU_CR0", CR0ACK, u32::MAX, value)
    }

    fn expect(
        &self,
        name: &'static str,
        offset: u32,
        mask: u32,
        value: u32,
    ) -> Result<(), Trouble> {
        let answers = (0..LOOKS).any(|_| self.registers.read(offset) & mask == value);
        if answers { Ok(()) } else { Err(Trouble::Register(name)) }
    }
}

/// log2 of a power of two; 0 for nothing.
const fn log2(n: usize) -> u32 {
    match n.checked_ilog2() {
        Some(log) => log,
        None => 0,
    }
}
