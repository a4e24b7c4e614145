//! Per-CPU data and what every CPU goes through when it comes up at EL2.
//!
//! [`Cpu`] is private to its CPU: hyp runs with interrupts masked and handles one exception at a
//! time, so the exclusive reference that a trap handler makes from TPIDR_EL2 is the only one.
//! [`Shared`] is what other CPUs may look at.

use crate::arch::log::{self, Transition};
use crate::arch::stats::Stats;
use crate::arch::sysreg::sys;
use crate::arch::sysreg::*;
use crate::boot::options::Options;
use crate::boot::platform::MAX_CPUS;
use crate::fp::hw::{Cpu as FpCpu, Image};
use crate::fp::lengths::Lengths;
use crate::fp::{Access, CpuFp, FpHw, Svcr};
use crate::power::psci::{HostEntry, Power, PowerCell};
use crate::world::cpufeatures::{CpuFeatures, FpExtras, Gaps, IdRegisters};
use crate::world::switch::{El1Context, PSTATE_EL1H_MASKED, World};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use percore::Cores;
use spin::Once;
use umbra_shared::record::Kind;
use umbra_shared::sme::Storage;
use umbra_shared::vl::{Vq, VqSet};

use crate::vm::slots::Loaded;

/// What one CPU keeps to itself. vectors.S knows `emergency_stack`.
#[derive(Debug)]
#[repr(C)]
pub struct Cpu {
    /// Stack for the message about a broken stack: its top.
    pub emergency_stack: u64,
    /// Its number: the order of the device tree.
    pub index: usize,
    /// Top of its stack.
    pub stack_top: u64,
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
    pub version: crate::host::calls::Results,
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

/// What other CPUs may look at.
#[derive(Debug)]
pub struct Shared {
    /// Counters.
    pub stats: Stats,
    /// PSCI.
    pub power: PowerCell,
    /// MPIDR_EL1 affinity.
    pub mpidr: AtomicU64,
    /// Set of VQs.
    vqs: AtomicU16,
    /// Set of streaming VQs.
    svqs: AtomicU16,
    /// Its EL1 can be AArch32.
    aarch32: AtomicBool,
    /// [`FpExtras`].
    fp_extras: AtomicU8,
    /// It has been up at EL2.
    online: AtomicBool,
    /// Bytes of its host image.
    pub image_bytes: AtomicU64,
}

impl Shared {
    const fn new() -> Self {
        Self {
            stats: Stats::new(),
            power: PowerCell::new(Power::Off),
            mpidr: AtomicU64::new(0),
            vqs: AtomicU16::new(0),
            svqs: AtomicU16::new(0),
            aarch32: AtomicBool::new(false),
            fp_extras: AtomicU8::new(0),
            online: AtomicBool::new(false),
            image_bytes: AtomicU64::new(0),
        }
    }

    /// Its vector lengths.
    pub fn vqs(&self) -> VqSet {
        VqSet::from_bits(self.vqs.load(Ordering::Relaxed))
    }

    /// Its streaming vector lengths.
    pub fn svqs(&self) -> VqSet {
        VqSet::from_bits(self.svqs.load(Ordering::Relaxed))
    }

    /// What it has of what guests may be shown.
    pub fn fp_extras(&self) -> FpExtras {
        FpExtras::from_bits_truncate(self.fp_extras.load(Ordering::Relaxed))
    }

    /// Whether its EL1 can be AArch32.
    pub fn aarch32(&self) -> bool {
        self.aarch32.load(Ordering::Relaxed)
    }

    /// Whether it has been up at EL2.
    pub fn online(&self) -> bool {
        self.online.load(Ordering::Acquire)
    }
}

/// All CPUs', by number.
pub static SHARED: [Shared; MAX_CPUS] = [const { Shared::new() }; MAX_CPUS];

/// What is the same on all CPUs, known once all have been looked at.
#[derive(Debug)]
pub struct Machine {
    /// CPUs.
    pub cpus: usize,
    /// What the command line asks for.
    pub options: Options,
    /// Vector lengths.
    pub lengths: Lengths,
    /// Streaming vector lengths.
    pub streaming: Lengths,
    /// What the host's registers take.
    pub host_storage: Storage,
    /// EL1 can be AArch32, on every CPU that was up at boot.
    pub aarch32: bool,
    /// ID registers of the boot CPU, without what other CPUs lack of [`FpExtras`].
    pub id: IdRegisters,
    /// What guests are shown of those.
    pub fp_extras: FpExtras,
    /// The features of such a CPU.
    pub features: CpuFeatures,
    /// Stage 2.
    pub stage2: crate::memory::tables::Stage2Shape,
    /// VTTBR_EL2 of the host.
    pub host_vttbr: u64,
}

/// Set before the host runs.
pub static MACHINE: Once<Machine> = Once::new();

/// The machine.
///
/// # Panics
///
/// Before boot has looked at all CPUs.
pub fn machine() -> &'static Machine {
    MACHINE.get().expect("the machine is known before the host runs")
}

/// `percore`'s idea of which CPU this is.
#[derive(Debug)]
pub struct CoreIndex;

// SAFETY: TPIDR_EL2 points to this CPU's own `Cpu`, whose index is unique.
unsafe impl Cores for CoreIndex {
    fn core_index() -> usize {
        Cpu::current_index().unwrap_or(0)
    }
}

impl Cpu {
    /// CPU number `index`, with its stacks' tops.
    pub fn new(index: usize, stack_top: u64, emergency_stack: u64) -> Self {
        Self {
            emergency_stack,
            index,
            stack_top,
            world: World::default(),
            hw: FpCpu::new(&CpuFeatures::default()),
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
        let this = sys::read_tpidr_el2().bits() as *mut Self;
        // SAFETY: set by `install` before anything can trap; exclusive as the caller promises.
        unsafe { &mut *this }
    }

    /// A trap has made the guest's FP state live.
    #[inline]
    pub fn note_opening(&mut self) {
        if cfg!(feature = "transition-log") {
            self.opened += 1;
        }
    }

    /// The loaded vCPU as the log names it; 0: none.
    pub fn loaded_name(&self) -> u64 {
        self.loaded.as_ref().map_or(0, Loaded::name)
    }

    /// This CPU's number, if it has got that far.
    pub fn current_index() -> Option<usize> {
        let this = sys::read_tpidr_el2().bits() as *const Self;
        // SAFETY: null or set by `install`; the index never changes after that.
        (!this.is_null()).then(|| unsafe { (*this).index })
    }

    /// Makes this the running CPU's data.
    pub fn install(&'static mut self) -> &'static mut Self {
        let this: *mut Self = self;
        // SAFETY: TPIDR_EL2 is hyp's own; it points to data that lives forever.
        unsafe { sys::write_tpidr_el2(sys::TpidrEl2::from_bits_retain(this as u64)) };
        // SAFETY: derived from the exclusive reference just consumed.
        unsafe { &mut *this }
    }

    /// Brings EL2 of this CPU into hyp's state, from whatever reset or firmware left: every register
    /// is set whole. Reads the CPU's vector lengths anew.
    pub fn bring_up(&mut self) {
        let features = CpuFeatures::new(&read_id_registers());
        self.hw = FpCpu::new(&features);
        self.world = World::new(&features, sys::read_mpidr_el1().bits());
        self.world.init_host();
        self.hw.set_access(Access::Full);
        self.hw.sync();
        // Whatever is there is nobody's. Before any vector length is relied on: in streaming mode RDVL
        // gives another.
        if features.sme {
            self.hw.stop(Svcr::all());
        }
        let (mut vqs, mut svqs) = (VqSet::EMPTY, VqSet::EMPTY);
        for vq in (0..16).rev().map(Vq::from_len) {
            if features.sve {
                self.hw.set_clamp(vq);
                vqs = vqs.with(self.hw.vq());
            }
            if features.sme {
                self.hw.set_streaming_clamp(vq);
                svqs = svqs.with(self.hw.svq());
            }
        }
        self.shared.vqs.store(vqs.bits(), Ordering::Relaxed);
        self.shared.svqs.store(svqs.bits(), Ordering::Relaxed);
        self.shared.aarch32.store(features.aarch32, Ordering::Relaxed);
        self.shared.fp_extras.store(features.fp_extras().bits(), Ordering::Relaxed);
        self.shared.mpidr.store(sys::read_mpidr_el1().bits() & MPIDR_AFFINITY, Ordering::Relaxed);
        self.shared.online.store(true, Ordering::Release);
        self.hw.set_access(Access::Closed);
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

    /// Begins the host's life on this CPU: EL1 in its reset state.
    pub fn start_host(&mut self, entry: HostEntry) -> ! {
        let host = self.host_lengths();
        // SVE or SME of which the host may use no length, because other CPUs have none: closed for good.
        if host.vq.is_none() {
            self.hw.hide_sve();
        }
        if host.svq.is_none() {
            self.hw.hide_sme();
        }
        self.fp.reset(&mut self.hw, host);
        if machine().options.displace {
            self.world.trap_host_displacement(true);
        }
        self.loaded = None;
        log::forget();
        log::write(&self.fp, 0, || {
            let held = |vq: Option<Vq>| vq.map_or(0, |vq| vq.quadwords() as u64);
            let (vqs, svqs) = (self.shared.vqs().bits(), self.shared.svqs().bits());
            let args = [vqs.into(), held(host.vq), svqs.into(), held(host.svq), 0, 0, 0];
            Transition::new(Kind::Reset, args)
        });
        crate::world::switch::switch_el1(&self.world, &mut self.host, &El1Context::reset());
        crate::world::switch::switch_pauth(&self.world, &mut self.host, &El1Context::reset());
        self.version = crate::host::calls::version();
        let [ctl, cval] = self.suspended_timer.take().unwrap_or_default();
        write_cntv_ctl_el0(0);
        write_cntv_cval_el0(cval);
        write_cntv_ctl_el0(ctl);
        self.host_vttbr = machine().host_vttbr;
        write_vttbr_el2(self.host_vttbr);
        // SAFETY: stage 2 of the host is complete; VTCR_EL2 matches its root level.
        unsafe { sys::write_vtcr_el2(sys::VtcrEl2::from_bits_retain(machine().stage2.vtcr)) };
        // SAFETY: return state for the ERET below.
        unsafe {
            sys::write_elr_el2(sys::ElrEl2::from_bits_retain(entry.pc));
            sys::write_spsr_el2(sys::SpsrEl2::from_bits_retain(PSTATE_EL1H_MASKED));
        }
        isb();
        // What a TLB holds after reset is anything, for every VMID.
        // SAFETY: dropping translations is always sound.
        unsafe { asm!("tlbi alle1", "ic iallu", "dsb nsh", "isb", options(nostack)) };
        self.shared.power.set(Power::On);
        // SAFETY: everything is set up; the stack is not needed any more.
        unsafe { umbra_enter_host_fresh(entry.context, self.stack_top) }
    }
}

// SAFETY: defined in vectors.S with this signature.
unsafe extern "C" {
    fn umbra_enter_host_fresh(context: u64, stack_top: u64) -> !;
}

/// Aff3 and Aff2..Aff0.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// This CPU's ID registers.
pub fn read_id_registers() -> IdRegisters {
    // ID registers of what the CPU lacks are RAZ, but for SMIDR_EL1 and AArch32's.
    let gaps = Gaps {
        zfr0: read_id_aa64zfr0_el1(),
        smfr0: read_id_aa64smfr0_el1(),
        fpfr0: read_id_aa64fpfr0_el1(),
        smidr: 0,
    };
    let mut id = IdRegisters::read(gaps);
    let features = CpuFeatures::new(&id);
    if features.sme {
        id.smidr = read_smidr_el1();
    }
    if features.aarch32 {
        id.aarch32 = read_aarch32_id_registers();
    }
    id
}

/// WFE.
pub fn wait_for_event() {
    // SAFETY: a hint.
    unsafe { asm!("wfe", options(nostack, preserves_flags)) };
}

/// WFI: until an interrupt is pending, masked or not.
pub fn wait_for_interrupt() {
    // SAFETY: barriers and a hint.
    unsafe { asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// Wakes CPUs in [`wait_for_event`], after what was written before is visible to them.
pub fn send_event() {
    // SAFETY: a barrier and a hint.
    unsafe { asm!("dsb ish", "sev", options(nostack, preserves_flags)) };
}
