//! What devices reach, as boot brings it about: SMMUs looked at and closed, masters told of, what the host may have
//! beside RAM; and, once all CPUs are known, the devices' stage 2 in force.

use crate::arch::Lock;
use crate::arch::exception::probe_device;
use crate::arch::fatal::refuse;
use crate::arch::layout::SMMU_BASE;
use crate::boot::early::device_window;
use crate::boot::host_memory::{HOST_DEVICES, HostMemory, worst_case_tables};
use crate::boot::options::Dma;
use crate::boot::platform::masters::{Line, host_devices, survey};
use crate::boot::platform::smmus::{MAX_SMMUS, SmmuNodes};
use crate::boot::platform::{Platform, Range};
use crate::boot::pool::Pool;
use crate::dma::all::All;
use crate::dma::block::Block;
use crate::dma::examine::{Facts, Id, Refusal};
use crate::dma::hw::{self, Frame};
use crate::dma::registers::{FRAME_BYTES, IDR0, IDR1, IDR5};
use crate::dma::smmu::Smmu;
use crate::dma::streams::{LEVEL2_BYTES, StreamStage2, Streams, level1_bytes};
use crate::irq;
use crate::irq::frames::MAX_ITS;
use crate::memory::devices::Devices;
use crate::memory::frames::{FrameList, Tables, linear};
use crate::memory::hw as memory;
use crate::memory::tables::{HypTables, Stage2Shape, Stage2Tables, Use};
use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use umbra_shared::PAGE_SIZE;

/// The VMID of the devices' stage 2: no VM's and not the host's. CPUs never have it.
const DEVICES_VMID: u8 = 0xff;

/// Bytes of a command queue and of an event queue: 256 commands, 128 records.
const QUEUE_BYTES: usize = PAGE_SIZE;

/// Tables of the devices' stage 2 beside those for RAM: a root, and three for each doorbell.
const TABLES_BESIDE_RAM: usize = 2 + 3 * MAX_ITS;

/// Tables of the devices' stage 2.
static DEVICE_TABLES: Lock<FrameList> = Lock::new(FrameList::new());

/// SMMUs of hyp's: where they are, and what they are good for.
pub type Owned = ArrayVec<(u64, Facts), MAX_SMMUS>;

/// What is left to do once all CPUs are known.
static READY: Lock<Option<Ready>> = Lock::new(None);

/// SMMUs, and memory of theirs by its physical address.
#[derive(Debug)]
struct Ready {
    owned: Owned,
    level1: u64,
    level2: u64,
    queues: u64,
}

/// Looks at the SMMUs and closes those that can be used: from here on nothing passes them untranslated. What they
/// are good for is in the result.
pub fn examine(platform: &Platform, pa_bits: u32) -> SmmuNodes {
    let mut smmus = platform.smmus.clone();
    for (n, smmu) in smmus.iter_mut().enumerate() {
        smmu.facts = smmu.facts.and_then(|_| {
            let va = device_window(n, smmu.base);
            // SAFETY: just mapped, as Device; ID registers.
            let read = |offset: u32| unsafe { probe_device(va + offset as usize) };
            let (idr0, idr1, idr5) = (read(IDR0), read(IDR1), read(IDR5));
            let (Some(idr0), Some(idr1), Some(idr5)) = (idr0, idr1, idr5) else {
                return Err(Refusal::Nobody);
            };
            let facts = Id { idr0, idr1, idr5 }.examine()?;
            // Other CPUs may have fewer bits; then the host's own stage 2 doesn't reach all of memory either, and that is
            // refused before devices' is made.
            let reach = Stage2Shape::new(pa_bits.min(facts.output_bits)).ipa_bits;
            if platform.banks.iter().any(|bank| bank.1 > 1 << reach) {
                return Err(Refusal::Reach);
            }
            // SAFETY: the window maps the first page, and nothing beyond is used by `close`. Nobody else runs.
            let frame = unsafe { Frame::new(va) };
            let nothing = Block::new(0, &[]);
            match Smmu::new(frame, facts, nothing, nothing).close() {
                Ok(()) => Ok(facts),
                Err(trouble) => refuse(format_args!("SMMU {}: {trouble}", smmu.path)),
            }
        });
        match &smmu.facts {
            Ok(facts) => log::info!(
                "SMMU {}: hyp's, {} bits of streams, {} of addresses",
                smmu.path,
                facts.stream_bits,
                facts.output_bits
            ),
            Err(refusal) => log::warn!("SMMU {}: not used, {refusal}", smmu.path),
        }
    }
    smmus
}

/// What becomes of the machine's masters.
#[derive(Clone, Copy, Debug)]
pub struct Isolation {
    /// Those that nothing covers are withheld from the host.
    pub isolate: bool,
    /// Protected VMs can be made.
    pub protects: bool,
}

/// Tells of the masters, and decides what the host has of them and beside RAM.
pub fn decide(fdt: &Fdt<'_>, platform: &Platform, smmus: &SmmuNodes, dma: Dma) -> Isolation {
    let masters = match survey(fdt, smmus) {
        Ok(masters) => masters,
        Err(error) => refuse(format_args!("{error}")),
    };
    let isolate = dma == Dma::Isolate;
    for masters in &masters.kinds {
        log::info!("master {}", Line { masters, smmus, isolate });
    }
    if masters.others != 0 {
        log::info!("masters of other kinds: {}", masters.others);
    }
    let protects = masters.uncovered == 0 || dma != Dma::Auto;
    match (masters.uncovered, dma) {
        (0, _) => log::info!("devices reach what the host does"),
        (n, Dma::Isolate) => log::info!("devices reach what the host does: {n} are withheld"),
        (n, Dma::Unsafe) => {
            log::warn!("{n} devices reach protected VMs and hyp (umbra.dma=unsafe)");
        }
        (n, Dma::Auto) => log::warn!(
            "no protected VMs: nothing holds {n} devices (umbra.dma=isolate withholds them, \
             umbra.dma=unsafe leaves it so)"
        ),
    }
    let mut ranges = HOST_DEVICES.lock();
    if let Err(error) = host_devices(fdt, smmus, isolate, &platform.banks, &mut ranges) {
        refuse(format_args!("{error}"));
    }
    Isolation { isolate, protects }
}

/// Those of the tree's.
pub fn owned(smmus: &SmmuNodes) -> Owned {
    smmus.iter().filter_map(|smmu| Some((smmu.base, smmu.facts.ok()?))).collect()
}

/// Whether there is no need of a stage 2 for devices: nobody walks it, and no log has what is in it.
fn is_without(owned: &Owned) -> bool {
    owned.is_empty() && !cfg!(feature = "transition-log")
}

fn level1_bytes_of(owned: &Owned) -> usize {
    let bits = owned.iter().map(|(_, facts)| facts.stream_bits).max().unwrap_or(0);
    level1_bytes(bits).max(PAGE_SIZE)
}

/// Bytes of hyp's pool that all this takes.
pub fn pool_bytes(banks: &[Range], owned: &Owned) -> usize {
    if is_without(owned) {
        return 0;
    }
    let tables = worst_case_tables(banks, TABLES_BESIDE_RAM) * PAGE_SIZE;
    // Both levels are aligned to their sizes.
    tables + 2 * (LEVEL2_BYTES + level1_bytes_of(owned)) + 2 * QUEUE_BYTES * owned.len()
}

/// Takes that memory, and maps the SMMUs in the final tables.
pub fn prepare(tables: &mut HypTables, pool: &mut Pool, banks: &[Range], owned: Owned) {
    if is_without(&owned) {
        return;
    }
    pool.fill(&DEVICE_TABLES, worst_case_tables(banks, TABLES_BESIDE_RAM));
    let level2 = pool.take_aligned(LEVEL2_BYTES, LEVEL2_BYTES);
    let level1 = level1_bytes_of(&owned);
    let level1 = pool.take_aligned(level1, level1);
    let queues = pool.take(2 * QUEUE_BYTES * owned.len());
    for (n, (base, _)) in owned.iter().enumerate() {
        tables.map(smmu_address(n), *base, FRAME_BYTES as usize, Use::Device);
    }
    READY.lock().replace(Ready { owned, level1, level2, queues });
}

const fn smmu_address(n: usize) -> usize {
    SMMU_BASE + n * FRAME_BYTES as usize
}

/// Tables that hyp's stage 1 takes for that.
pub fn hyp_tables(owned: &Owned) -> usize {
    if is_without(owned) { 0 } else { 4 }
}

/// On the final tables: the devices' stage 2 of all of RAM but hyp's, with the ITSs' doorbells beside it, and the SMMUs
/// on.
#[inline(never)]
pub fn start(host: &HostMemory, pa_bits: u32) {
    let ready = READY.lock();
    let Some(Ready { owned, level1, level2, queues }) = &*ready else { return };
    let output_bits = owned.iter().map(|(_, facts)| facts.output_bits).min().unwrap_or(pa_bits);
    let shape = Stage2Shape::new(pa_bits.min(output_bits));
    let mut stage2 = Stage2Tables::new(Tables(&DEVICE_TABLES), shape);
    for (start, end) in host.ram() {
        stage2.map_identity_pages(start, end);
    }
    for doorbell in irq::hw::doorbells() {
        let end = doorbell + PAGE_SIZE as u64;
        if end <= 1 << shape.ipa_bits {
            stage2.map_identity_device(doorbell, end);
        } else {
            log::warn!("an ITS at {doorbell:#x} is out of devices' reach");
        }
    }
    let block = |pa: u64, bytes: usize| {
        // SAFETY: taken from the pool for this alone (`prepare`), which the final tables map.
        unsafe { hw::block(linear(pa), pa, bytes / 8) }
    };
    let walk = StreamStage2 { vmid: DEVICES_VMID.into(), root: stage2.root(), vtcr: shape.vtcr };
    let streams =
        Streams::new(block(*level1, level1_bytes_of(owned)), block(*level2, LEVEL2_BYTES), walk);
    memory::with(|memory| {
        // In its place: a CPU's stack is small.
        let devices =
            memory.devices.insert(Devices::new(stage2, All::new(streams, DEVICES_VMID.into())));
        for (n, &(base, facts)) in owned.iter().enumerate() {
            // SAFETY: mapped there by `prepare`, for good; nobody else drives it.
            let frame = unsafe { Frame::new(smmu_address(n)) };
            let queue = |m: usize| block(queues + ((2 * n + m) * QUEUE_BYTES) as u64, QUEUE_BYTES);
            let smmu = Smmu::new(frame, facts, queue(0), queue(1));
            if let Err((base, trouble)) = devices.smmus().start(base, smmu) {
                refuse(format_args!("SMMU at {base:#x}: {trouble}"));
            }
        }
    });
}
