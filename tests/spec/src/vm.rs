//! VMs and vCPUs.

use std::collections::{BTreeMap, BTreeSet};

use umbra_shared::call::{Policy, VmHandle};
use umbra_shared::error::Error;
use umbra_shared::vcpu::VcpuFeatures;

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
    /// Guest addresses of pages that are devices'.
    pub enrolled: BTreeSet<u64>,
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

    /// The tables that a mapping of `ipa` hangs in, below the root.
    fn tables_of(root_level: u32, ipa: u64) -> impl Iterator<Item = (u32, u64)> {
        (root_level + 1..=3).map(move |level| (level, ipa >> (12 + 9 * (4 - level))))
    }

    /// Whether there are tables for any mapping.
    pub fn has_tables(&self) -> bool {
        self.table_pages - 1 - self.tables.len() as u64 >= TABLES_FOR_ONE
    }

    /// Maps a page.
    pub fn map(&mut self, root_level: u32, ipa: u64, page: u64) {
        self.tables.extend(Self::tables_of(root_level, ipa));
        self.maps.insert(ipa, page);
        self.pages_out += 1;
    }

    /// Enrols a page.
    pub fn enrol(&mut self, root_level: u32, ipa: u64) {
        self.tables.extend(Self::tables_of(root_level, ipa));
        self.enrolled.insert(ipa);
    }

    /// Takes a mapping away. Tables stay.
    pub fn unmap(&mut self, ipa: u64) {
        self.maps.remove(&ipa);
        self.pages_out -= 1;
    }
}
