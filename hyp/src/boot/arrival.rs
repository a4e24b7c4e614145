//! What every CPU goes through on its own stack and on the final page tables: the boot CPU once, the
//! others when firmware starts them, each of them again whenever it comes out of reset.
//!
//! The boot CPU brings the others up one after the other, looks at what they found out about their vector
//! lengths, sizes the host images, and enters the host; the others are held until the host turns them on.

use crate::arch::console;
use crate::arch::end;
use crate::arch::fatal::refuse;
use crate::arch::lock::{send_event, wait_for_event};
use crate::arch::percpu::CoreIndex;
use crate::arch::reset::{BOOT_PARAMS, boot_params_address, secondary_entry_address};
use crate::arch::sysreg::sys;
use crate::arch::sysreg::{isb, read_cntpct_el0};
use crate::arch::{Lock, MAX_CPUS};
use crate::boot::bring_up::{bring_up, start_host};
use crate::boot::devices;
use crate::boot::host_memory::{HostMemory, make_host_stage2};
use crate::boot::options::Options;
use crate::boot::platform::Range;
use crate::boot::pool::Pool;
use crate::boot::ranges::{Chunks, Pieces};
use crate::cpu::Cpu;
use crate::fp::host_storage;
use crate::fp::hw::Image;
use crate::fp::lengths::Lengths;
use crate::guest::entropy;
use crate::irq::{self, frames::Described};
use crate::machine::{MACHINE, Machine, SHARED, machine};
use crate::memory::frames::linear;
use crate::memory::hw;
use crate::memory::pages::MAX_BANKS;
use crate::memory::tables::Stage2Shape;
use crate::power::{
    self,
    protect::Protection,
    psci::{HostEntry, Power},
};
use crate::world::controls::Controls;
use crate::world::features::id::IdRegisters;
use crate::world::features::{self, Control, Features, Name};
use arrayvec::ArrayVec;
use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use percore::{ExceptionLock, PerCore, exception_free};
use spin::Once;
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::Policy;
use umbra_shared::vl::{Vq, VqSet};

/// How long a CPU may take to come up, in seconds of the generic timer.
const CPU_ON_SECONDS: u64 = 10;

/// How often each CPU went through [`umbra_cpu_reset_main`].
static RESETS: PerCore<[ExceptionLock<Cell<u64>>; MAX_CPUS], CoreIndex> =
    PerCore::new([const { ExceptionLock::new(Cell::new(0)) }; MAX_CPUS]);

/// What is left to do on the final page tables, and what with.
#[derive(Debug)]
pub struct Finish {
    /// CPUs in the device tree.
    pub cpus: usize,
    /// The command line's options.
    pub options: Options,
    /// Protected VMs can be made: nothing reaches them but CPUs.
    pub protects: bool,
    /// ID registers of the boot CPU.
    pub id: IdRegisters,
    /// What the host's stage 2 is made of, once all CPUs have said how large it may be.
    pub host_memory: HostMemory,
    /// RAM.
    pub banks: ArrayVec<Range, MAX_BANKS>,
    /// What of it holds nothing that anybody needs.
    pub free: Pieces,
    /// TTBR0_EL2 of a translation of all RAM.
    pub ram_ttbr: u64,
    /// The GIC, and memory for its tables.
    pub gic: Described,
    /// See `gic`.
    pub gic_area: Range,
    /// Memory for host images.
    pub images: Pool,
    /// The console's physical address.
    pub uart: Option<u64>,
    /// Where the host begins.
    pub host: HostEntry,
}

/// What is wiped at boot, by all CPUs together.
static BOOT_WIPE: Once<Chunks> = Once::new();

static FINISH: Lock<Option<Finish>> = Lock::new(None);

/// What the boot CPU does once it is on the final tables.
pub fn finish_with(finish: Finish) {
    FINISH.lock().replace(finish);
}

// Every CPU comes here, on its own stack and on the final page tables: the boot CPU once, others when
// firmware starts them.
#[unsafe(no_mangle)]
extern "C" fn umbra_cpu_reset_main(index: u64) -> ! {
    let cpu = BOOT_PARAMS[index as usize].cpu.load(Ordering::Relaxed) as *mut Cpu;
    // SAFETY: made by `make_cpu` for this CPU, which has just come out of reset: nobody else holds it.
    let cpu = unsafe { &mut *cpu }.install();
    end::arrived(index as usize);
    let first = exception_free(|token| {
        let resets = RESETS.get().borrow(token);
        resets.replace(resets.get() + 1) == 0
    });
    let finish = FINISH.lock().take();
    if let Some(uart) = finish.as_ref().and_then(|finish| finish.uart) {
        // Its window in the boot tables is gone: before anything can go wrong here.
        // SAFETY: mapped there by the final tables.
        unsafe { console::init(console::FINAL_ADDRESS + (uart % PAGE_SIZE as u64) as usize) };
    }
    bring_up(cpu);
    if let Some(finish) = finish {
        finish_boot(cpu, finish);
    }
    if MACHINE.is_completed() {
        let asleep = hw::with(|memory| memory.wake_smmus());
        if asleep != 0 {
            log::warn!("CPU {index}: {asleep} SMMUs were off and are on again");
        }
        let asleep = irq::hw::wake();
        if asleep != 0 {
            log::warn!("CPU {index}: {asleep} ITSs and redistributors were not as they were left");
        }
    }
    if first && MACHINE.is_completed() {
        log::info!("CPU {index} comes late");
        let (held, machine) = (cpu.host_lengths(), machine());
        report_host_vq(index as usize, "VL", cpu.shared.vqs(), held.vq);
        report_host_vq(index as usize, "SVL", cpu.shared.svqs(), held.svq);
        report_missing(index as usize, "VL", &machine.lengths, cpu.shared.vqs());
        report_missing(index as usize, "SVL", &machine.streaming, cpu.shared.svqs());
        let missing = machine.features.less(cpu.shared.features());
        for feature in features::ALL.iter().filter(|feature| missing.has(feature.name)) {
            if let Some(whose) = feature.relied_on.whose() {
                log::warn!("CPU {index} lacks {} and does not run {whose}", feature.arm);
            }
        }
    }
    if first && power::hw::cell(cpu.index()).state() == Power::Off {
        power::hw::cell(cpu.index()).set(Power::Held);
        send_event();
    }
    loop {
        end::stop_if_asked();
        help_to_wipe();
        if let Some(entry) = power::hw::cell(cpu.index()).take_entry() {
            if !cpu.has_image {
                cpu.set_image(host_image(index as usize));
            }
            start_host(cpu, entry);
        }
        wait_for_event();
    }
}

/// On the final tables, on the boot CPU.
fn finish_boot(cpu: &mut Cpu, mut finish: Finish) {
    end::arm(finish.ram_ttbr);
    let affinities = SHARED[..finish.cpus].iter().map(|cpu| cpu.mpidr.load(Ordering::Relaxed));
    irq::hw::init(&finish.gic, finish.gic_area, affinities);
    start_others(cpu.index(), finish.cpus);
    let protection = power::hw::protect_memory(&finish.banks);
    wipe(protection, core::mem::take(&mut finish.free), finish.options.boot_wipe_off);
    let online = || SHARED[..finish.cpus].iter().filter(|s| s.online());
    let sets = || online().map(|s| s.vqs());
    let streaming = || online().map(|s| s.svqs());
    let common = finish.options.host_vl_common;
    let (lengths, streaming_lengths) =
        (Lengths::new(sets(), common), Lengths::new(streaming(), common));
    let host_storage = host_storage(sets(), streaming());
    let image_bytes = host_storage.bytes();
    for n in 0..finish.cpus {
        let pa = finish.images.take(image_bytes);
        BOOT_PARAMS[n].image.store(linear(pa) as u64, Ordering::Relaxed);
        SHARED[n].image_bytes.store(image_bytes as u64, Ordering::Relaxed);
    }
    for (n, shared) in SHARED[..finish.cpus].iter().enumerate().filter(|(_, s)| s.online()) {
        report_host_vq(n, "VL", shared.vqs(), lengths.host(shared.vqs()));
        report_host_vq(n, "SVL", shared.svqs(), streaming_lengths.host(shared.svqs()));
    }
    let describe = |set: VqSet| set.max().map_or(0, |vq| vq.vl_bytes());
    log::info!(
        "{} CPUs, largest VL {} bytes, guests up to {}, largest SVL {} bytes, guests up to {}, \
         host images {image_bytes} bytes",
        finish.cpus,
        lengths.largest.map_or(0, |vq| vq.vl_bytes()),
        describe(lengths.common),
        streaming_lengths.largest.map_or(0, |vq| vq.vl_bytes()),
        describe(streaming_lengths.common),
    );
    match finish.options.protected_policy() {
        Policy::Scrub => {
            log::info!("FP registers of protected VMs: scrubbed at every exit");
        }
        _ => {
            log::warn!("FP registers of protected VMs: left on the CPU (umbra.protected-fp=lazy)");
        }
    }
    let id = online().fold(finish.id, |common, s| common.common(&s.id()));
    // What no CPU here runs without is a CPU's, not the machine's: one that can't is asked at VCPU_LOAD.
    let features = online()
        .fold(Features::ALL, |common, s| common.and(s.features()))
        .and(Features::read(&id))
        .or(Features::SHOWN);
    let id = id.without(Features::read(&finish.id).less(features));
    let shape = Stage2Shape::new(id.pa_bits());
    let host_vttbr = make_host_stage2(&finish.host_memory, shape);
    devices::start(&finish.host_memory, id.pa_bits());
    hw::with(|memory| memory.guests_see_caches = features.has(Name::Fwb));
    MACHINE.call_once(|| Machine {
        cpus: finish.cpus,
        protects: finish.protects,
        displace: finish.options.displace,
        stats: finish.options.stats,
        protected_policy: finish.options.protected_policy(),
        lengths,
        streaming: streaming_lengths,
        host_storage,
        id,
        features,
        firmware_trng: entropy::firmware_has_it(),
        guest_hcr: Controls::new(features, 0).guest[Control::Hcr as usize],
        stage2: shape,
        host_vttbr,
    });
    #[cfg(feature = "transition-log")]
    log_beginning();
    cpu.set_image(host_image(cpu.index()));
    start_host(cpu, finish.host)
}

/// Wipes all memory that nobody needs: a reset that hyp was not told of may have left anything there. Says what
/// is done about memory at resets.
fn wipe(protection: Protection, free: Pieces, off: bool) {
    match protection {
        Protection::On { .. } => log::info!("memory at a reset: firmware wipes it (MEM_PROTECT)"),
        Protection::InPart => {
            log::warn!("memory at a reset: MEM_PROTECT does not cover all of it, hyp wipes it");
        }
        Protection::None => log::info!("memory at a reset: hyp wipes what is not the host's"),
    }
    if protection == (Protection::On { before: true }) {
        log::info!("memory at boot: firmware has wiped it");
        return;
    }
    if off {
        log::warn!("memory at boot: left as it is (umbra.boot-wipe=off)");
        return;
    }
    let began = read_cntpct_el0();
    let chunks = BOOT_WIPE.call_once(|| Chunks::new(free));
    send_event();
    help_to_wipe();
    while !chunks.are_done() {
        // SAFETY: a hint.
        unsafe { core::arch::asm!("yield", options(nomem, nostack)) };
    }
    let ticks = read_cntpct_el0().wrapping_sub(began);
    let milliseconds = ticks.saturating_mul(1000) / sys::read_cntfrq_el0().bits().max(1);
    log::info!("memory at boot: {} MiB wiped in {milliseconds} ms", chunks.bytes() >> 20);
}

/// Wipes what is left to be wiped at boot, with others.
fn help_to_wipe() {
    let Some(chunks) = BOOT_WIPE.get() else { return };
    while let Some((start, end)) = chunks.take() {
        // SAFETY: the host doesn't run yet, and this is neither hyp's nor anything that the loader left for
        // somebody: nobody uses it, nor has hyp mapped it.
        unsafe { end::zero(start, end) };
        chunks.finish();
    }
}

/// Says so if the host can't use all of a CPU's VLs or SVLs.
fn report_host_vq(n: usize, what: &str, vqs: VqSet, held: Option<Vq>) {
    let (max, held) = (vqs.max().map_or(0, Vq::vl_bytes), held.map_or(0, Vq::vl_bytes));
    if held < max {
        log::info!("CPU {n}: {what} {max} bytes, the host is held to {held}");
    }
}

/// Says so if a CPU that came late lacks VLs or SVLs that guests may have: they can't be loaded there.
fn report_missing(n: usize, what: &str, lengths: &Lengths, vqs: VqSet) {
    let here = lengths.guests(vqs);
    let missing = lengths.common.iter().find(|&vq| !here.contains(vq));
    if let Some(vq) = missing {
        log::warn!("CPU {n} does not run guests of {what} {} bytes and more", vq.vl_bytes());
    }
}

/// A CPU's host image, for the CPU itself, once.
fn host_image(index: usize) -> Image {
    let base = BOOT_PARAMS[index].image.load(Ordering::Relaxed) as usize;
    let base = NonNull::new(base as *mut u8).expect("images are placed before the host runs");
    // SAFETY: taken from the pool for this CPU in `finish_boot`, mapped, used by its engine alone.
    unsafe { Image::new(base, machine().host_storage) }
}

/// Starts the other CPUs one after the other and waits for each to be held.
fn start_others(this: usize, cpus: usize) {
    let limit = CPU_ON_SECONDS * sys::read_cntfrq_el0().bits();
    for (n, shared) in SHARED[..cpus].iter().enumerate().filter(|(n, _)| *n != this) {
        let mpidr = shared.mpidr.load(Ordering::Relaxed);
        let result = smccc::psci::cpu_on::<smccc::Smc>(
            mpidr,
            secondary_entry_address(),
            boot_params_address(n),
        );
        if let Err(error) = result {
            log::warn!("CPU {n} ({mpidr:#x}) can't be started: {error}");
            continue;
        }
        let since = read_cntpct_el0();
        while power::hw::cell(n).state() != Power::Held {
            if read_cntpct_el0().wrapping_sub(since) > limit {
                refuse(format_args!("CPU {n} ({mpidr:#x}) was started and did not arrive"));
            }
            // SAFETY: a hint.
            unsafe { core::arch::asm!("yield", options(nomem, nostack)) };
        }
    }
    isb();
}

/// What there is at first, for the log.
#[cfg(feature = "transition-log")]
fn log_beginning() {
    use crate::arch::log::{forget, note};
    use crate::world::features::Name;
    use umbra_shared::record::Kind;
    let machine = machine();
    let root = machine.stage2.root_level as u64;
    let bits = u64::from(machine.stage2.ipa_bits);
    let (vqs, svqs) = (machine.lengths.common.bits(), machine.streaming.common.bits());
    let (vqs, svqs) = (vqs.into(), svqs.into());
    let aarch32 = machine.features.has(Name::Aarch32).into();
    let alias = u64::from(machine.stage2.alias_bit().trailing_zeros());
    let policy = machine.protected_policy as u64 | u64::from(machine.protects) << 8 | alias << 16;
    note(Kind::Machine, [machine.cpus as u64, vqs, bits, root, svqs, aarch32, policy]);
    hw::with(|memory| {
        for (pa, count, change) in memory.pages.runs() {
            let change = hw::with_devices(memory.devices.as_ref(), change);
            note(Kind::Pages, [count, pa, change.encode(), 0, 0, 0, 0]);
        }
    });
    forget();
}
