//! An SMMU that does what the architecture allows and an emulator doesn't: it keeps translations until it is told
//! to forget them, has transactions under way that end when it likes but for a `CMD_SYNC`, takes commands when
//! it pleases, and stops at one that it doesn't know.

use super::block::Block;
use super::commands::Command;
use super::registers::*;
use super::smmu::Registers;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;

/// Memory of so many doublewords, for as long as the tests run.
pub fn leak(pa: u64, words: usize) -> Block {
    Block::new(pa, Box::leak((0..words).map(|_| AtomicU64::new(0)).collect::<Box<[_]>>()))
}

/// What a stage 2 has at a page: from the root's address and the page's to the page behind it.
type Walk = Box<dyn Fn(u64, u64) -> Option<u64>>;

/// A write of a device's that has been let through and not yet arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underway {
    /// Where it will arrive.
    pub pa: u64,
    /// The page that it was translated with.
    ipa: u64,
}

/// The state of an SMMU.
pub struct State {
    registers: BTreeMap<u32, u32>,
    /// Memory that it may read and write, by physical address.
    blocks: Vec<Block>,
    walk: Walk,
    /// Translations that it has kept: (VMID, page) and what is behind it.
    tlb: BTreeMap<(u16, u64), u64>,
    /// STEs that it has kept, by stream.
    streams: BTreeMap<u32, [u64; 4]>,
    /// Pages of which a translation was dropped since the last CMD_SYNC.
    dropped: BTreeSet<u64>,
    /// Writes that are under way.
    pub underway: Vec<Underway>,
    /// Writes that arrived, by physical address, in order.
    pub arrived: Vec<u64>,
    /// Commands in the order in which it took them.
    pub taken: Vec<[u64; 2]>,
    /// How many commands it takes each time somebody looks; 0: it hangs.
    pub pace: u32,
    /// It never acknowledges this register.
    pub deaf_to: Option<u32>,
    /// Transactions that it let pass untranslated.
    pub bypassed: u32,
    /// Aborted transactions, of which it told.
    pub aborted: u32,
}

/// An SMMU, shared between whoever drives it and whoever looks at it.
#[derive(Clone)]
pub struct Sim(pub Rc<RefCell<State>>);

impl Sim {
    /// Out of reset: off, and everything passes. `blocks` are tables and queues, `walk` reads stage 2.
    pub fn new(blocks: Vec<Block>, walk: Walk) -> Self {
        Self(Rc::new(RefCell::new(State {
            registers: BTreeMap::new(),
            blocks,
            walk,
            tlb: BTreeMap::new(),
            streams: BTreeMap::new(),
            dropped: BTreeSet::new(),
            underway: Vec::new(),
            arrived: Vec::new(),
            taken: Vec::new(),
            pace: u32::MAX,
            deaf_to: None,
            bypassed: 0,
            aborted: 0,
        })))
    }

    /// A device of this stream begins a write to this address. Whether it was let through.
    pub fn begin_write(&self, stream: u32, address: u64) -> bool {
        self.0.borrow_mut().begin_write(stream, address)
    }

    /// One of the writes under way arrives.
    pub fn arrive(&self, n: usize) {
        let mut state = self.0.borrow_mut();
        if !state.underway.is_empty() {
            let at = n % state.underway.len();
            let write = state.underway.remove(at);
            state.arrived.push(write.pa);
        }
    }

    /// Firmware has left it so.
    pub fn set(&self, register: u32, value: u32) {
        self.0.borrow_mut().registers.insert(register, value);
    }

    /// What a register holds.
    pub fn get(&self, register: u32) -> u32 {
        self.0.borrow().get(register)
    }
}

impl State {
    fn get(&self, register: u32) -> u32 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    fn get64(&self, register: u32) -> u64 {
        u64::from(self.get(register)) | u64::from(self.get(register + 4)) << 32
    }

    /// This memory instead of what was at its address.
    pub fn use_block(&mut self, block: Block) {
        self.blocks.retain(|old| old.pa() != block.pa());
        self.blocks.push(block);
    }

    fn load(&self, pa: u64) -> u64 {
        let block = self
            .blocks
            .iter()
            .find(|block| (block.pa()..block.pa() + 8 * block.len() as u64).contains(&pa));
        let block =
            block.unwrap_or_else(|| panic!("it reads {pa:#x}, which is none of its memory"));
        block.load(((pa - block.pa()) / 8) as usize)
    }

    fn ste(&mut self, stream: u32) -> Option<[u64; 4]> {
        if let Some(&ste) = self.streams.get(&stream) {
            return Some(ste);
        }
        const ADDRESS: u64 = 0x000f_ffff_ffff_ffc0;
        let (base, config) = (self.get64(STRTAB_BASE) & ADDRESS, self.get(STRTAB_BASE_CFG));
        let (bits, split) = (config & 0x3f, config >> 6 & 0x1f);
        if u64::from(stream) >= 1 << bits {
            return None;
        }
        let at = if config & STRTAB_TWO_LEVEL == 0 {
            base + 64 * u64::from(stream)
        } else {
            let level1 = self.load(base + 8 * u64::from(stream >> split));
            let index = u64::from(stream) & ((1 << split) - 1);
            let span = level1 & 0x1f;
            if span == 0 || index >= 1 << (span - 1) {
                return None;
            }
            (level1 & ADDRESS) + 64 * index
        };
        let ste = [0, 8, 16, 24].map(|offset| self.load(at + offset));
        self.streams.insert(stream, ste);
        Some(ste)
    }

    fn begin_write(&mut self, stream: u32, address: u64) -> bool {
        if self.get(CR0ACK) & CR0_SMMUEN == 0 {
            if self.get(GBPA) & GBPA_ABORT == 0 {
                self.bypassed += 1;
                self.underway.push(Underway { pa: address, ipa: u64::MAX });
                return true;
            }
            return false;
        }
        let page = address & !0xfff;
        let to = self.ste(stream).filter(|ste| ste[0] & 0xf == 0b1101).and_then(|ste| {
            let (vmid, root) = (ste[2] as u16, ste[3]);
            if let Some(&kept) = self.tlb.get(&(vmid, page)) {
                return Some(kept);
            }
            let found = (self.walk)(root, page)?;
            self.tlb.insert((vmid, page), found);
            Some(found)
        });
        match to {
            Some(to) => self.underway.push(Underway { pa: to | address & 0xfff, ipa: page }),
            None => self.event(),
        }
        to.is_some()
    }

    /// Tells of an abort, if there is room.
    fn event(&mut self) {
        self.aborted += 1;
        let (prod, cons) = (self.get(EVENTQ_PROD), self.get(EVENTQ_CONS));
        let size = self.get(EVENTQ_BASE) & 0x1f;
        if self.get(CR0ACK) & CR0_EVENTQEN != 0 && (prod ^ cons) & ((2 << size) - 1) != 1 << size {
            self.registers.insert(EVENTQ_PROD, (prod + 1) & ((2 << size) - 1));
        }
    }

    /// Takes as many commands as it likes to.
    fn work(&mut self) {
        for _ in 0..self.pace {
            let (prod, cons) = (self.get(CMDQ_PROD), self.get(CMDQ_CONS));
            if self.get(CR0ACK) & CR0_CMDQEN == 0
                || prod == cons
                || (self.get(GERROR) ^ self.get(GERRORN)) & GERROR_CMDQ_ERR != 0
            {
                return;
            }
            let base = self.get64(CMDQ_BASE);
            let size = base as u32 & 0x1f;
            let at = (base & 0x000f_ffff_ffff_ffe0) + 16 * u64::from(cons & ((1 << size) - 1));
            let command = [self.load(at), self.load(at + 8)];
            if !self.take(command) {
                self.registers.insert(GERROR, self.get(GERROR) ^ GERROR_CMDQ_ERR);
                self.registers.insert(CMDQ_CONS, cons | 1 << 24);
                return;
            }
            self.taken.push(command);
            self.registers.insert(CMDQ_CONS, (cons + 1) & ((2 << size) - 1));
        }
    }

    fn take(&mut self, command: [u64; 2]) -> bool {
        if command == Command::ForgetStreams.encode() {
            self.streams.clear();
        } else if command == Command::ForgetTranslations.encode() {
            self.dropped.extend(self.tlb.keys().map(|&(_, page)| page));
            self.tlb.clear();
        } else if command == Command::Sync.encode() {
            // What used a translation that was dropped has ended.
            let dropped = std::mem::take(&mut self.dropped);
            let (ended, others) = std::mem::take(&mut self.underway)
                .into_iter()
                .partition(|write| dropped.contains(&write.ipa));
            self.underway = others;
            self.arrived.extend(Vec::<Underway>::into_iter(ended).map(|write| write.pa));
        } else if command[0] & 0xff == 0x2a {
            let (vmid, page) = ((command[0] >> 32) as u16, command[1] & !0xfff);
            self.tlb.remove(&(vmid, page));
            self.dropped.insert(page);
        } else {
            return false;
        }
        true
    }
}

impl Registers for Sim {
    fn read(&self, offset: u32) -> u32 {
        let mut state = self.0.borrow_mut();
        if offset == CMDQ_CONS {
            state.work();
        }
        state.get(offset)
    }

    fn write(&mut self, offset: u32, value: u32) {
        let mut state = self.0.borrow_mut();
        let off = state.get(CR0ACK) & CR0_SMMUEN == 0;
        match offset {
            GBPA if value & GBPA_UPDATE == 0 => panic!("a write of GBPA that has no effect"),
            GBPA if state.deaf_to == Some(GBPA) => return,
            GBPA => _ = state.registers.insert(GBPA, value & !GBPA_UPDATE),
            CR2 | STRTAB_BASE_CFG | CR1 => {
                assert!(off, "{offset:#x} is written while the SMMU is on");
                state.registers.insert(offset, value);
            }
            _ => _ = state.registers.insert(offset, value),
        }
        let acknowledged = match offset {
            CR0 => Some(CR0ACK),
            IRQ_CTRL => Some(IRQ_CTRLACK),
            _ => None,
        };
        if let Some(acknowledged) = acknowledged
            && state.deaf_to != Some(offset)
        {
            state.registers.insert(acknowledged, value);
        }
    }

    fn write64(&mut self, offset: u32, value: u64) {
        let mut state = self.0.borrow_mut();
        assert_eq!(state.get(CR0ACK), 0, "{offset:#x} is written while something is on");
        state.registers.insert(offset, value as u32);
        state.registers.insert(offset + 4, (value >> 32) as u32);
    }

    fn barrier(&self) {}
}
