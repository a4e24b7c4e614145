//! A guest whose host has interrupts for it: what is left of them is offered again with every entry.

use crate::{
    instruction::{self as insn, SysReg, sysreg},
    puppet::{Event, Machine, Puppet, Routine},
};
use arrayvec::ArrayVec;
use core::cell::{Cell, RefCell};
use umbra_host::{
    hypercall::{Exit, Hvc, Hypervisor},
    kernel::sysreg as host,
};
use umbra_shared::{
    error::Error,
    exit::{Reason, RunFlags},
    interrupt::{Entry, MAX_ENTRIES, State, States},
};

/// Exits by interrupts in a row after which a guest is said to make no progress.
const MOST_INTERRUPTS: usize = 10_000;

/// The guest, and what it is offered.
pub struct Interrupted {
    puppet: Puppet,
    entries: RefCell<ArrayVec<Entry, MAX_ENTRIES>>,
    underflow: Cell<bool>,
    stops: Cell<usize>,
    eois: Cell<usize>,
}

impl Interrupted {
    /// A new guest that takes interrupts of group 1.
    pub fn new() -> Self {
        let puppet = Machine::normal().started(None);
        puppet.write(sysreg::ICC_PMR, 0xf8);
        puppet.write(sysreg::ICC_IGRPEN1, 1);
        Self::of(puppet)
    }

    /// This one, of which nothing is asked yet.
    pub fn of(puppet: Puppet) -> Self {
        Self {
            puppet,
            entries: RefCell::default(),
            underflow: Cell::new(false),
            stops: Cell::new(0),
            eois: Cell::new(0),
        }
    }

    /// The guest, for what has nothing to do with interrupts.
    pub fn puppet(&self) -> Puppet {
        self.puppet
    }

    /// It is offered this from now on, until it has completed it.
    pub fn offer(&self, entry: Entry) {
        self.entries.borrow_mut().push(entry);
    }

    /// It is offered nothing any more. Returns what was left.
    pub fn withdraw(&self) -> ArrayVec<Entry, MAX_ENTRIES> {
        self.entries.take()
    }

    /// Whether fewer than two entries stop the guest.
    pub fn underflow(&self, wanted: bool) {
        self.underflow.set(wanted);
    }

    /// What is left, by INTID.
    pub fn left(&self) -> ArrayVec<(u16, State), MAX_ENTRIES> {
        self.entries.borrow().iter().map(|entry| (entry.intid(), entry.state())).collect()
    }

    /// How often an interrupt has stopped it since the last time this was asked.
    pub fn stops(&self) -> usize {
        self.stops.take()
    }

    /// How often it has ended what no entry had, since the last time this was asked.
    pub fn eois(&self) -> usize {
        self.eois.take()
    }

    /// One VCPU_RUN with what is offered, with interrupts masked.
    pub fn try_enter(&self, flags: RunFlags, answer: [u64; 4]) -> Result<Exit, Error> {
        let entries = &mut *self.entries.borrow_mut();
        if entries.is_empty() {
            return self.puppet.try_enter(flags, answer);
        }
        let mut flags = flags;
        flags.set(RunFlags::UNDERFLOW, self.underflow.get() && entries.len() > 1);
        let (exit, states) = run_with(flags, answer, entries)?;
        self.eois.set(self.eois.get() + usize::from(states.eoi_count()));
        let mut n = 0;
        entries.retain(|entry| {
            let left = entry.left(states.get(n));
            n += 1;
            *entry = left.unwrap_or(*entry);
            left.is_some()
        });
        Ok(exit)
    }

    /// Enters until something happens that is no interrupt of the host's.
    #[track_caller]
    pub fn resume(&self, answer: [u64; 4]) -> Event {
        let mut answer = answer;
        for _ in 0..MOST_INTERRUPTS {
            match self.try_enter(RunFlags::empty(), answer) {
                Ok(exit) if exit.info.reason() == Some(Reason::Irq) => {
                    self.stops.set(self.stops.get() + 1);
                    answer = [0; 4];
                }
                Ok(exit) => return Event::new(exit),
                Err(error) => panic!("VCPU_RUN: {error}"),
            }
        }
        panic!("the guest makes no progress")
    }

    /// Executes an instruction whatever comes of it.
    #[track_caller]
    pub fn attempt(&self, instruction: u32, value: u64) -> Event {
        let at = self.puppet.instruction_address();
        self.resume([Routine::Exec.address(), at, instruction.into(), value])
    }

    /// Executes an instruction and returns x0.
    #[track_caller]
    pub fn exec(&self, instruction: u32, value: u64) -> u64 {
        self.attempt(instruction, value).executed(instruction)
    }

    /// MRS.
    #[track_caller]
    pub fn read(&self, register: SysReg) -> u64 {
        self.exec(register.mrs(), 0)
    }

    /// MSR.
    #[track_caller]
    pub fn write(&self, register: SysReg, value: u64) {
        self.exec(register.msr(), value);
    }

    /// Unmasks interrupts and takes one: its INTID.
    #[track_caller]
    pub fn take(&self) -> u64 {
        match self.attempt(insn::UNMASK_IRQ, 0) {
            Event::Interrupt { intid } => intid,
            event => panic!("no interrupt in the guest: {event:x?}"),
        }
    }
}

/// VCPU_RUN with these, with interrupts masked; what is pending is taken afterwards.
pub fn run_with(
    flags: RunFlags,
    answer: [u64; 4],
    entries: &[Entry],
) -> Result<(Exit, States), Error> {
    let daif = host::mask_interrupts();
    let result = Hvc.vcpu_run_with(flags, answer, entries);
    host::restore_interrupts(daif);
    result
}
