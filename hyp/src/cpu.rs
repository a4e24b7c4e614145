//! Per-CPU data: all that a CPU keeps to itself, and the vCPU that is loaded there.
//!
//! [`Cpu`] is private to its CPU: hyp runs with interrupts masked and handles one exception at a
//! time, so the exclusive reference that a trap handler makes from TPIDR_EL2 is the only one. Rooms below are
//! handed what they need of it. [`Shared`] is what other CPUs may look at.

use crate::arch::log::{self, Transition};
use crate::arch::percpu::PerCpu;
use crate::fp::CpuFp;
use crate::fp::hw::{Cpu as FpCpu, Image};
use crate::machine::{SHARED, Shared, machine};
use crate::vm::slots::{self, Loaded};
use crate::world::features::Features;
use crate::world::switch::{El1Context, World};
use core::mem::offset_of;
use static_assertions::const_assert;
use umbra_shared::call::{VcpuIndex, VmHandle};
use umbra_shared::error::Error;
use umbra_shared::sme::Storage;

/// What one CPU keeps to itself.
#[derive(Debug)]
#[repr(C)]
pub struct Cpu {
    /// What the ground knows of it.
    base: PerCpu,
    /// EL2's controls per world.
    pub world: World,
    /// FP hardware.
    pub hw: FpCpu,
    /// FP state.
    pub fp: CpuFp<Image>,
    /// The host's EL1 while a guest runs.
    pub host: El1Context,
    /// VTTBR_EL2 of the host, beside what a run needs.
    pub host_vttbr: u64,
    /// FP traps that made a guest's state live in the run that goes on: for the log.
    pub opened: u64,
    /// What VERSION answers, beside the stack that it is answered on.
    pub version: [u64; 8],
    /// Whether `fp` has memory for the host's registers.
    pub has_image: bool,
    /// The vCPU loaded here.
    pub loaded: Option<Loaded>,
    /// The host's CNTV_CTL_EL0 and CNTV_CVAL_EL0 while its CPU is suspended: where the device tree calls
    /// the timer always-on, the host counts on them behind a power-down, whatever firmware leaves.
    pub suspended_timer: Option<[u64; 2]>,
    /// What others may look at.
    pub shared: &'static Shared,
}

const_assert!(offset_of!(Cpu, base) == 0);

impl Cpu {
    /// CPU number `index`, with its stacks' tops.
    pub fn new(index: usize, stack_top: u64, emergency_stack: u64) -> Self {
        Self {
            base: PerCpu { emergency_stack, index, stack_top },
            world: World::default(),
            hw: FpCpu::new(Features::NONE),
            fp: CpuFp::new(Image::empty()),
            host: El1Context::default(),
            host_vttbr: 0,
            opened: 0,
            version: [0; 8],
            has_image: false,
            loaded: None,
            suspended_timer: None,
            shared: &SHARED[index],
        }
    }

    /// This CPU's data.
    ///
    /// # Safety
    ///
    /// At most one reference may exist: only the outermost function of an exception or of the boot
    /// path calls this, once.
    pub unsafe fn current() -> &'static mut Self {
        let this = PerCpu::current_address() as *mut Self;
        // SAFETY: set by `install` before anything can trap; `base` is where a `Cpu` begins; exclusive as
        // the caller promises.
        unsafe { &mut *this }
    }

    /// Makes this the running CPU's data.
    pub fn install(&'static mut self) -> &'static mut Self {
        let this: *mut Self = self;
        // SAFETY: a `Cpu` begins with its `base`, and the pointer reaches all of it; it is this CPU's own and
        // lives forever. The reference is derived from the exclusive one just consumed.
        unsafe {
            PerCpu::set_current(this.cast());
            &mut *this
        }
    }

    /// Its number: the order of the device tree.
    pub const fn index(&self) -> usize {
        self.base.index
    }

    /// Top of its stack.
    pub const fn stack_top(&self) -> u64 {
        self.base.stack_top
    }

    /// A trap has made the guest's FP state live.
    #[inline]
    pub fn note_opening(&mut self) {
        if cfg!(feature = "transition-log") {
            self.opened += 1;
        }
    }

    /// A transition is over, for the log.
    #[inline(always)]
    pub fn log(&self, transition: impl FnOnce() -> Transition) {
        log::write(|| (self.fp.record(), self.loaded.as_ref().map_or(0, Loaded::name)), transition);
    }

    /// VCPU_LOAD.
    ///
    /// # Errors
    ///
    /// BUSY if another is loaded here, and those of [`slots::load`].
    pub fn load(&mut self, handle: VmHandle, index: VcpuIndex) -> Result<(), Error> {
        if self.loaded.is_some() {
            return Err(Error::Busy);
        }
        let loaded = self.loaded.insert(slots::load(self.index(), self.shared, handle, index)?);
        // What its page says is of an earlier life, on another CPU perhaps.
        loaded.vcpu().flags.publish(self.fp.flags());
        Ok(())
    }

    /// VCPU_PUT.
    ///
    /// # Errors
    ///
    /// NOT_LOADED.
    pub fn put(&mut self) -> Result<(), Error> {
        let loaded = self.loaded.take().ok_or(Error::NotLoaded)?;
        slots::put(loaded, &mut self.fp, &mut self.hw, &self.shared.stats);
        Ok(())
    }

    /// Gives the engine memory for the host's registers; once.
    pub fn set_image(&mut self, image: Image) {
        self.fp = CpuFp::new(image);
        self.has_image = true;
    }

    /// The most that the host may use on this CPU.
    pub fn host_lengths(&self) -> Storage {
        let machine = machine();
        Storage::new(
            machine.lengths.host(self.shared.vqs()),
            machine.streaming.host(self.shared.svqs()),
        )
    }
}
