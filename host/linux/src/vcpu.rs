//! A vCPU: what everybody who knows of its VM may do to it. Its file is [`crate::vcpu_file`]'s.

#![forbid(unsafe_code)]

use crate::{
    abi::*,
    linux::{self, Mutex, RunPage, Sleeper, with_room},
};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use umbra_host::vcpu::{MmioAnswer, Supplied, Vcpu as Inside};
use umbra_shared::{
    call::{BLOCK_PAGES, Start},
    exit::MmioAccess,
    vl::VqSet,
};

/// It is on no CPU.
pub const NOWHERE: i32 = -1;

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) index: u32,
    pub(crate) sleeper: Sleeper,
    pub(crate) page: RunPage,
    /// The CPU that it is loaded on, or [`NOWHERE`].
    pub(crate) cpu: AtomicI32,
    /// Whether its guest, or its VMM, has turned it on.
    pub(crate) on: AtomicBool,
    pub(crate) state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    /// What KVM_ARM_VCPU_INIT has asked for.
    pub init: Option<Features>,
    /// KVM_REG_ARM64_SVE_VLS, if it was written.
    pub lengths: Option<VqSet>,
    /// What hyp has made, when all of that is known.
    pub inside: Option<Inside>,
    /// The MMIO access that the VMM is to answer.
    pub open: Option<MmioAccess>,
    /// What the next load answers with.
    pub answer: Option<MmioAnswer>,
    pub supplied: Option<Supplied>,
    /// Hyp let it be loaded the last time.
    pub was_loaded: bool,
    pub scratch: Vec<u64>,
}

/// What KVM_ARM_VCPU_INIT asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// It is off at first.
    pub power_off: bool,
    /// It has SVE.
    pub sve: bool,
    /// It has pointer authentication.
    pub pauth: bool,
}

impl Features {
    /// As KVM_ARM_VCPU_INIT has them, if the machine has them.
    pub fn of(init: &VcpuInit, lengths: VqSet, has_pauth: bool) -> Result<Self, Errno> {
        let has = |bit: u32| init.features[0] >> bit & 1 != 0;
        let known = [
            KVM_ARM_VCPU_POWER_OFF,
            KVM_ARM_VCPU_PSCI_0_2,
            KVM_ARM_VCPU_SVE,
            KVM_ARM_VCPU_PTRAUTH_ADDRESS,
            KVM_ARM_VCPU_PTRAUTH_GENERIC,
        ];
        let known = known.iter().fold(0, |all, bit| all | 1 << bit);
        if init.features[0] & !known != 0 || init.features[1..].iter().any(|&word| word != 0) {
            return Err(Errno::ENOENT);
        }
        let (address, generic) =
            (has(KVM_ARM_VCPU_PTRAUTH_ADDRESS), has(KVM_ARM_VCPU_PTRAUTH_GENERIC));
        let (sve, pauth) = (has(KVM_ARM_VCPU_SVE), address);
        let lacks = sve && lengths.max().is_none() || pauth && !has_pauth;
        if init.target != KVM_ARM_TARGET_GENERIC_V8 || address != generic || lacks {
            return Err(Errno::EINVAL);
        }
        Ok(Self { power_off: has(KVM_ARM_VCPU_POWER_OFF), sve, pauth })
    }

    /// Where it begins.
    pub fn start(self) -> Start {
        if self.power_off { Start::Off } else { Start::At { entry: 0, argument: 0 } }
    }
}

impl Vcpu {
    /// One that nothing is known of yet.
    pub fn new(index: u32) -> Result<Self, Errno> {
        let mut scratch = with_room(BLOCK_PAGES as usize)?;
        scratch.resize(BLOCK_PAGES as usize, 0);
        let state = State {
            init: None,
            lengths: None,
            inside: None,
            open: None,
            answer: None,
            supplied: None,
            was_loaded: false,
            scratch,
        };
        Ok(Self {
            index,
            sleeper: Sleeper::new()?,
            page: RunPage::new()?,
            cpu: AtomicI32::new(NOWHERE),
            on: AtomicBool::new(false),
            state: Mutex::new(state)?,
        })
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its kvm_run page.
    pub fn page(&self) -> &RunPage {
        &self.page
    }

    /// What hyp has of it, while it has a file, for an end that can't wait; `None`: its thread is somewhere else.
    pub fn take_inside(&self) -> Option<Option<Inside>> {
        self.kick();
        Some(self.state.try_lock()?.inside.take())
    }

    /// What hyp has of it, for the end.
    pub fn into_inside(self) -> Option<Inside> {
        let mut state = self.state;
        state.get_mut().inside.take()
    }

    /// It has to come out of its guest, if it is in there, or to look again, if it sleeps. In any context.
    pub fn kick(&self) {
        match self.cpu.load(SeqCst) {
            NOWHERE => self.sleeper.wake(),
            cpu => linux::stop(cpu),
        }
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.on.load(SeqCst)
    }

    /// Its guest has turned it on.
    pub fn turn_on(&self) {
        self.on.store(true, SeqCst);
        self.sleeper.wake();
    }
}
