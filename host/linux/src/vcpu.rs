//! A vCPU: what everybody who knows of its VM may do to it. Its file is [`crate::vcpu_file`]'s.

#![forbid(unsafe_code)]

use crate::{
    abi::*,
    linux::{self, Mutex, RunPage, Sleeper, with_room},
    memory_file::Leaving,
    stats::Counts,
};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};
use umbra_host::vcpu::{MmioAnswer, Supplied, Vcpu as Inside};
use umbra_shared::{call::BLOCK_PAGES, exit::MmioAccess, vcpu::VcpuFeatures, vl::VqSet};

/// It is on no CPU.
pub const NOWHERE: i32 = -1;

/// What whoever has a vCPU's lock does before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Request {
    /// Its machine has been turned off or reset: it is off, too (KVM_REQ_SLEEP).
    PowerOff = 1 << 0,
    /// The VM's clock has been set.
    Clock = 1 << 1,
}

/// Requests that were made of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Requests(u32);

impl Requests {
    /// Whether this one was.
    pub const fn has(self, request: Request) -> bool {
        self.0 & request as u32 != 0
    }
}

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
    /// Bits of [`Request`].
    requests: AtomicU32,
    counts: Counts,
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
    /// What hyp is to make of the first vCPU of a protected VM, when that runs.
    pub primary: Option<Primary>,
    /// A page that its guest is about to take back from us.
    pub leaving: Option<Leaving>,
    /// The MMIO access that the VMM is to answer.
    pub open: Option<MmioAccess>,
    /// What the next load answers with.
    pub answer: Option<MmioAnswer>,
    pub supplied: Option<Supplied>,
    /// Hyp let it be loaded the last time.
    pub was_loaded: bool,
    /// KVM_SET_SIGNAL_MASK: signals that are blocked in KVM_RUN.
    pub signals: Option<u64>,
    pub scratch: Vec<u64>,
    /// What an exit leaves in the CPU.
    #[cfg(feature = "hunt")]
    pub left: Vec<u64>,
}

/// The first vCPU of a protected VM, before that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Primary {
    pub features: VcpuFeatures,
    /// PC and x0, which are all that its host chooses.
    pub entry: u64,
    pub argument: u64,
}

impl State {
    /// What hyp has made it with, or is to.
    pub fn features(&self) -> Option<VcpuFeatures> {
        let made = self.inside.as_ref().map(Inside::features);
        made.or(self.primary.map(|primary| primary.features))
    }
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
            primary: None,
            leaving: None,
            open: None,
            answer: None,
            supplied: None,
            was_loaded: false,
            signals: None,
            scratch,
            #[cfg(feature = "hunt")]
            left: crate::hunt::room()?,
        };
        Ok(Self {
            index,
            sleeper: Sleeper::new()?,
            page: RunPage::new()?,
            cpu: AtomicI32::new(NOWHERE),
            on: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            counts: Counts::default(),
            state: Mutex::new(state)?,
        })
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What it counts.
    pub fn counts(&self) -> &Counts {
        &self.counts
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

    /// Has something done by who has its lock, soon. In any context.
    pub fn request(&self, request: Request) {
        // Before it is looked at where it is: who enters its guest says where, and then asks for this.
        self.requests.fetch_or(request as u32, SeqCst);
        self.kick();
    }

    /// Whether something is to be done before it is entered.
    pub fn has_requests(&self) -> bool {
        self.requests.load(SeqCst) != 0
    }

    /// What is to be done, once.
    pub fn take_requests(&self) -> Requests {
        Requests(self.requests.swap(0, SeqCst))
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
