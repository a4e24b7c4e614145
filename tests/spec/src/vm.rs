//! VMs and vCPUs.

use std::collections::{BTreeMap, BTreeSet};

use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{Policy, VmHandle};
use umbra_shared::error::Error;
use umbra_shared::vcpu::VcpuFeatures;

use crate::Platform;

const PAGE: u64 = PAGE_SIZE as u64;

/// Bits of a handle that are the slot.
const SLOT_BITS: u32 = 8;
/// Tables that one mapping may need: what must be left for it.
const TABLES_FOR_ONE: u64 = 3;

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// There is none.
    #[default]
    Free,
    /// It lives.
    Alive,
    /// Its end was asked for while vCPUs were loaded.
    Closing,
    /// Its pages are reclaimed.
    Dying,
}

/// Whether a vCPU is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Power {
    /// It may be loaded and run.
    #[default]
    On,
    /// It may, from its reset state on.
    Pending,
    /// It may not.
    Off,
}

/// A vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vcpu {
    /// Its flag-shadow page's number.
    pub flag_page: u64,
    /// What it has.
    pub features: VcpuFeatures,
    /// Aff2, Aff1, Aff0.
    pub affinity: u64,
    /// Where it is loaded.
    pub loaded_on: Option<usize>,
    /// Whether it is on.
    pub power: Power,
    /// It has turned itself off in a run whose end is still to be judged.
    pub leaves: bool,
    /// Runs that may end as any does although its VM has ended: the one that it was in, and one that had begun
    /// before all CPUs could see it.
    pub last_runs: u8,
    /// It can't go on.
    pub broken: bool,
    /// Guest address of the page that its host was told, by its last call, that it is about to lose.
    pub told: Option<u64>,
    /// Its last call is to be made again, in a run whose end is still to be judged.
    pub put_off: bool,
    /// And its guest has not left since.
    pub open: bool,
    /// No run has begun since but such as only finish: ABORT lets it fail.
    pub fails: bool,
    /// It has made another call instead, which only a host can have brought about that let the first one fail: in a
    /// run whose end is still to be judged.
    pub must_have_failed: bool,
}

/// By which calls a protected guest deals with its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// KVM's.
    Kvm,
    /// RSI's.
    Rsi,
}

/// A VM, or a slot for one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vm {
    /// Where it is in its life.
    pub life: Life,
    /// How often the slot was used.
    pub generation: u64,
    /// Its memory is its own.
    pub protected: bool,
    /// Its host's kernel finds junk there.
    pub junk: bool,
    /// It is built no more.
    pub sealed: bool,
    /// It is protected and has turned itself off.
    pub ended: bool,
    /// When its FP registers move.
    pub policy: Policy,
    /// vCPUs, by index.
    pub vcpus: BTreeMap<usize, Vcpu>,
    /// Its memory: guest address to page.
    pub maps: BTreeMap<u64, u64>,
    /// Guest addresses of blocks among it.
    pub blocks: BTreeSet<u64>,
    /// Guest addresses of pages that are devices'.
    pub enrolled: BTreeSet<u64>,
    /// Guest addresses of pages that are shared at their aliases: of nothing, themselves.
    pub aliased: BTreeSet<u64>,
    /// What its guest has used first.
    pub interface: Option<Interface>,
    /// What it has said is RAM: from where to where, in order, apart from each other.
    pub ram: Vec<(u64, u64)>,
    /// Pages it was given for tables.
    pub table_pages: u64,
    /// Tables in use beside the root: level, and what the address is above the level's span.
    pub tables: BTreeSet<(u32, u64)>,
    /// Pages that the host has not got back.
    pub pages_out: u64,
}

/// The slot that a handle names.
pub fn slot(handle: VmHandle) -> Result<u8, Error> {
    let slot = handle.0 & ((1 << SLOT_BITS) - 1);
    if slot < crate::VMS as u64 { Ok(slot as u8) } else { Err(Error::BadVm) }
}

/// The handle of a slot that has been used so often.
pub fn handle(slot: u8, generation: u64) -> VmHandle {
    VmHandle(generation << SLOT_BITS | u64::from(slot))
}

impl Vcpu {
    /// It in its reset state.
    pub fn anew(&self, power: Power) -> Self {
        let Self { flag_page, features, affinity, loaded_on, .. } = *self;
        Self { flag_page, features, affinity, loaded_on, power, ..Self::default() }
    }
}

impl Vm {
    /// Whether the handle names this VM.
    pub fn check(&self, handle: VmHandle) -> Result<(), Error> {
        let known = handle.0 >> SLOT_BITS == self.generation && self.life != Life::Free;
        if known { Ok(()) } else { Err(Error::BadVm) }
    }

    /// ... and it is neither dying nor about to.
    pub fn check_alive(&self, handle: VmHandle) -> Result<(), Error> {
        self.check(handle)?;
        if self.life == Life::Alive { Ok(()) } else { Err(Error::Dying) }
    }

    /// The tables that a mapping of `ipa` hangs in, below the root, down to the table of pages.
    fn tables_of(platform: &Platform, ipa: u64) -> impl Iterator<Item = (u32, u64)> {
        let bits = platform.block_pages.trailing_zeros();
        (platform.root_level + 1..=3).map(move |level| (level, ipa >> (12 + bits * (4 - level))))
    }

    /// Where the block around an address begins.
    fn block(platform: &Platform, ipa: u64) -> u64 {
        ipa - ipa % (platform.block_pages * PAGE)
    }

    /// Tables that are left.
    pub fn tables_left(&self) -> u64 {
        self.table_pages - 1 - self.tables.len() as u64
    }

    /// Whether there are tables for any mapping in one block.
    pub fn has_tables(&self) -> bool {
        self.tables_left() >= TABLES_FOR_ONE
    }

    /// Whether there is a table for the rest, if it takes one to take so many pages away.
    pub fn has_tables_to_unmap(&self, platform: &Platform, ipa: u64, count: u64) -> bool {
        let cut = self.blocks.contains(&Self::block(platform, ipa)) && count < platform.block_pages;
        !cut || self.tables_left() != 0
    }

    /// Maps pages that lie one behind the other: a block, if they are one and as many, else pages.
    pub fn map(&mut self, platform: &Platform, ipa: u64, page: u64, count: u64) {
        let tables = Self::tables_of(platform, ipa);
        if count == platform.block_pages && page.is_multiple_of(count) {
            self.blocks.insert(ipa);
            self.tables.extend(tables.filter(|&(level, _)| level != 3));
            // One that was there for pages is free.
            let pages = Self::tables_of(platform, ipa).last();
            self.tables.retain(|&table| Some(table) != pages);
        } else {
            self.tables.extend(tables);
        }
        for n in 0..count {
            self.maps.insert(ipa + n * PAGE, page + n);
        }
        self.pages_out += count;
    }

    /// Whether there are tables to move a page to its alias.
    pub fn has_tables_for_an_alias(&self, platform: &Platform, ipa: u64) -> bool {
        let cut = self.blocks.contains(&Self::block(platform, ipa));
        self.tables_left() >= TABLES_FOR_ONE + u64::from(cut)
    }

    /// Moves a page to its alias, or back.
    pub fn move_page(&mut self, platform: &Platform, from: u64, to: u64) {
        let page = self.maps[&from];
        self.unmap(platform, from, 1);
        self.map(platform, to, page, 1);
    }

    /// A page is shared: the host may use it anew, and what it was told before is old.
    pub fn forget_told(&mut self, ipa: u64) {
        for vcpu in self.vcpus.values_mut().filter(|vcpu| vcpu.told == Some(ipa)) {
            vcpu.told = None;
        }
    }

    /// Enrols a page.
    pub fn enrol(&mut self, platform: &Platform, ipa: u64) {
        self.tables.extend(Self::tables_of(platform, ipa));
        self.enrolled.insert(ipa);
    }

    /// How many of `count` pages, one at least, lie one behind the other from an address on where there is one.
    pub fn run(&self, ipa: u64, count: u64) -> u64 {
        let page = self.maps[&ipa];
        let alike = |n: &u64| self.maps.get(&(ipa + n * PAGE)) == Some(&(page + n));
        (0..count).take_while(alike).count() as u64
    }

    /// Takes mappings away. What is left of a block hangs in a table; a table of pages that are all taken is free,
    /// others stay.
    pub fn unmap(&mut self, platform: &Platform, ipa: u64, count: u64) {
        let last = Self::tables_of(platform, ipa).last();
        if count == platform.block_pages {
            self.tables.retain(|&table| Some(table) != last);
        } else if self.blocks.contains(&Self::block(platform, ipa)) {
            self.tables.extend(last);
        }
        self.blocks.remove(&Self::block(platform, ipa));
        for n in 0..count {
            self.maps.remove(&(ipa + n * PAGE));
        }
        self.pages_out -= count;
    }
}
