//! The target's side: the GIC's registers where hyp has mapped them, taken over at boot, and the host's accesses to
//! them as they trap.
//!
//! An ITS's lock, or the redistributors', is held while memory's is taken, never the other way round.

use super::command::Raw;
use super::frames::{
    Described, Frame, Frames, Kind, MAX_ITS, MAX_ITS_NODES, MAX_REDISTRIBUTORS, Range,
};
use super::its::{Hung, Its, Known, News, Unfit, stop};
use super::itts::Device;
use super::machine::{Machine, Place, read32, read64};
use super::redistributor::{MAX_LPI_BITS, PENDING_BYTES, Redistributors};
use super::registers::{FRAME, Width, gicr, gits};
use crate::arch::fatal::refuse;
use crate::arch::{Lock, layout};
use crate::memory::frames::linear;
use crate::memory::hw::{self, clean_invalidate_range};
use crate::memory::tables::Use;
use arrayvec::ArrayVec;
use spin::Once;
use umbra_shared::PAGE_SIZE;

/// Where hyp has the GIC's frames mapped, one behind the other: redistributors, ITSs, the distributor.
const WINDOW: usize = layout::DEVICE_BASE + 0x2_0000_0000;
/// Frames that hyp maps at the most.
const SLOTS: usize = MAX_REDISTRIBUTORS + MAX_ITS_NODES + 1;
/// Tables of hyp's that mapping them takes.
pub const TABLES: usize = SLOTS * FRAME as usize / (2 << 20) + 3;
/// Bytes that an ITS's tables are made of.
const ITS_BYTES: u64 = 1 << 20;
/// Devices that an ITS knows at the most.
const DEVICES: usize = 1024;

const GICD_TYPER: u32 = 0x0004;
const GICD_TYPER_LPIS: u32 = 1 << 17;
/// GICR_PIDR2 and GITS_PIDR2 have one place and one format.
const PIDR2: u32 = gits::PIDR2;

static FRAMES: Lock<Frames> = Lock::new(Frames::new());
static REDISTRIBUTORS: Lock<Redistributors> = Lock::new(Redistributors::new());
static ITS: [Lock<Option<Its<'static>>>; MAX_ITS] = [const { Lock::new(None) }; MAX_ITS];
static TARGETS: Once<ArrayVec<Known, MAX_REDISTRIBUTORS>> = Once::new();
/// ITSs that the tree names, the first of which are in [`ITS`].
static NODES: Once<usize> = Once::new();
static DOORBELLS: Lock<ArrayVec<u64, MAX_ITS>> = Lock::new(ArrayVec::new_const());

/// Hyp's own window, and memory.
struct Hw;

const fn slot(n: usize) -> usize {
    WINDOW + n * FRAME as usize
}

const fn its_slot(n: usize) -> usize {
    slot(MAX_REDISTRIBUTORS + n)
}

fn address(place: Place, offset: u32) -> usize {
    let frame = match place {
        Place::Redistributor(n) => slot(n),
        Place::Its(n) => its_slot(n),
    };
    frame + offset as usize
}

fn map(va: usize, pa: u64) {
    hw::with(|memory| memory.hyp.map(va, pa, FRAME as usize, Use::Device));
}

fn load(va: usize, width: Width) -> u64 {
    // SAFETY: an aligned register in a frame of `WINDOW` that has been mapped, as Device; loads of these have no
    // effect on memory.
    unsafe {
        match width {
            Width::Word => (va as *const u32).read_volatile().into(),
            Width::Doubleword => (va as *const u64).read_volatile(),
        }
    }
}

impl Machine for Hw {
    fn read(&mut self, place: Place, offset: u32, width: Width) -> u64 {
        load(address(place, offset), width)
    }

    fn write(&mut self, place: Place, offset: u32, width: Width, value: u64) {
        let va = address(place, offset);
        // SAFETY: as `load`'s; what the GIC does to memory because of it is in tables that are hyp's, which this
        // room decides. Stores to memory before have been cleaned, and waited for.
        unsafe {
            match width {
                Width::Word => (va as *mut u32).write_volatile(value as u32),
                Width::Doubleword => (va as *mut u64).write_volatile(value),
            }
        }
    }

    fn zero(&mut self, pa: u64, bytes: u64) {
        // SAFETY: in the memory that `init` was given, which is mapped and this room's alone; the GIC is told of it
        // behind this.
        unsafe { (linear(pa) as *mut u8).write_bytes(0, bytes as usize) };
        clean_invalidate_range(linear(pa), bytes as usize);
    }

    fn store(&mut self, pa: u64, words: &[u64]) {
        for (n, word) in words.iter().enumerate() {
            // SAFETY: as in `zero`.
            unsafe { (linear(pa) as *mut u64).add(n).write_volatile(word.to_le()) };
        }
        clean_invalidate_range(linear(pa), size_of_val(words));
    }

    fn fetch(&mut self, pa: u64, commands: &mut [Raw]) -> bool {
        let page = pa & !(PAGE_SIZE as u64 - 1);
        let bytes = size_of_val(commands);
        hw::with(|memory| {
            memory.with_host_page(page, |va| {
                let from = va + (pa - page) as usize;
                // The host's mapping may be another than hyp's: what hyp has of it in a cache is from before.
                clean_invalidate_range(from, bytes);
                for (n, word) in commands.as_flattened_mut().iter_mut().enumerate() {
                    // SAFETY: mapped for as long as this runs, aligned, in one page; the host may write it meanwhile,
                    // and each word is read once.
                    *word = u64::from_le(unsafe { (from as *const u64).add(n).read_volatile() });
                }
            })
        })
        .is_some()
    }

    fn pin(&mut self, pa: u64, pages: u64) -> bool {
        hw::with(|memory| {
            let range = memory.pages.lookup_range(pa, pages)?;
            memory.pages.pin(range)
        })
        .is_ok()
    }
}

/// Bytes that hyp's pool is to have for the tables of a GIC, with as many CPUs.
pub fn bytes(described: &Described, cpus: usize) -> u64 {
    let its = described.its.len().min(MAX_ITS) as u64;
    PENDING_BYTES + cpus as u64 * PENDING_BYTES + its * ITS_BYTES
}

/// Takes the GIC over: nothing that it does to memory is anybody's doing but hyp's from here on. For the boot CPU,
/// on the final tables, before the host runs. `area` is [`bytes`] of hyp's pool, `cpus` are the affinities of all CPUs
/// (MPIDR_EL1). The machine does not boot if the GIC can't be taken over.
pub fn init(described: &Described, area: Range, cpus: impl Iterator<Item = u64> + Clone) {
    Hw.zero(area.0, area.1 - area.0);
    let mut next = area.0.next_multiple_of(PENDING_BYTES);
    let lpi_bits = lpi_bits(described);
    REDISTRIBUTORS.lock().set_lpi_bits(lpi_bits);
    let mut targets = ArrayVec::new();
    for &region in &described.redistributors {
        redistributors(region, described.stride, &mut |pa, typer| {
            // GICR_TYPER.Affinity_Value is Aff3.Aff2.Aff1.Aff0.
            let affinity = typer >> 32;
            let mpidr = affinity & 0xff_ffff | affinity >> 24 << 32;
            let has_lpis = lpi_bits != 0 && typer & gicr::TYPER_PLPIS != 0;
            if !has_lpis || !cpus.clone().any(|cpu| cpu == mpidr) {
                return None;
            }
            let pending = next;
            next += PENDING_BYTES;
            if next > area.1 {
                refuse(format_args!("two redistributors of one CPU at {pa:#x}"));
            }
            targets.push(Known { pa, number: (typer >> 8) as u16 });
            Some(pending)
        });
    }
    TARGETS.call_once(|| targets);
    for (n, &range) in described.its.iter().enumerate() {
        map(its_slot(n), range.0);
        let served = its(n, &mut next, area.1, lpi_bits);
        if served.is_none()
            && let Err(why) = stop(&mut Hw, Place::Its(n))
        {
            refuse(format_args!("the ITS at {:#x}: {why}", range.0));
        }
        place(FRAMES.lock().add_its(range, served), range.0);
        if served.is_some() {
            DOORBELLS.lock().push(range.0 + FRAME);
        }
    }
    NODES.call_once(|| described.its.len());
    log::info!(
        "GIC: {} redistributors, LPIs of {lpi_bits} bits, {} of {} ITSs, {} KiB for their tables",
        REDISTRIBUTORS.lock().count(),
        DOORBELLS.lock().len(),
        described.its.len(),
        (area.1 - area.0) >> 10,
    );
}

fn place<E>(result: Result<(), E>, pa: u64) {
    if result.is_err() {
        refuse(format_args!("registers of the GIC lie over each other at {pa:#x}"));
    }
}

/// Bits of an LPI's INTID, as many as hyp has tables for; 0: there are no LPIs.
fn lpi_bits(described: &Described) -> u32 {
    let va = slot(SLOTS - 1);
    map(va, described.distributor.0);
    let typer = load(va + GICD_TYPER as usize, Width::Word) as u32;
    let bits = ((typer >> 19 & 0x1f) + 1).min(MAX_LPI_BITS);
    if typer & GICD_TYPER_LPIS == 0 || bits < 14 { 0 } else { bits }
}

/// Takes the redistributors of a region over. `pending` says of one, by its address and GICR_TYPER, where its pending
/// table is.
fn redistributors(
    (start, end): Range,
    stride: Option<u64>,
    pending: &mut impl FnMut(u64, u64) -> Option<u64>,
) {
    let mut at = start;
    while at < end {
        let n = REDISTRIBUTORS.lock().count();
        if n == MAX_REDISTRIBUTORS {
            refuse(format_args!("more than {MAX_REDISTRIBUTORS} redistributors"));
        }
        map(slot(n), at);
        let here = Place::Redistributor(n);
        if !matches!(read32(&mut Hw, here, PIDR2) >> 4 & 0xf, 3 | 4) {
            refuse(format_args!("there is no redistributor at {at:#x}"));
        }
        let typer = read64(&mut Hw, here, gicr::TYPER);
        let frames = if typer & gicr::TYPER_VLPIS != 0 { 4 } else { 2 };
        let step = stride.unwrap_or(frames * FRAME);
        if step < frames * FRAME || end - at < frames * FRAME {
            refuse(format_args!("no room for the redistributor at {at:#x}"));
        }
        let pending = pending(at, typer);
        if let Err(why) = REDISTRIBUTORS.lock().add(&mut Hw, pending) {
            refuse(format_args!("the redistributor at {at:#x}: {why}"));
        }
        let mut all = FRAMES.lock();
        place(all.add(at, at + FRAME, Kind::Redistributor(n)), at);
        // What comes behind SGI_base.
        place(all.add(at + 2 * FRAME, end.min(at + step), Kind::Silent), at);
        if typer & gicr::TYPER_LAST != 0 {
            // Whatever there may be behind it, of CPUs that nobody knows, is not the host's.
            if at + step < end {
                place(all.add(at + step, end, Kind::Silent), at);
            }
            return;
        }
        at += step;
    }
}

/// Starts an ITS, if hyp can serve it. Returns its number.
fn its(n: usize, next: &mut u64, end: u64, lpi_bits: u32) -> Option<usize> {
    let refused = |why: Unfit| {
        log::warn!("ITS {n} is withheld from the host: {why}");
        None
    };
    if n >= MAX_ITS || lpi_bits == 0 || end - *next < ITS_BYTES {
        return refused(Unfit::NoRoom);
    }
    let (start, tables) = (*next, *next + (DEVICES * size_of::<Device>()) as u64);
    *next += ITS_BYTES;
    // SAFETY: zeroed memory of this room's own, a multiple of 64 KiB, mapped, and nobody else's for good; zeroes are
    // a `Device`.
    let devices = unsafe { core::slice::from_raw_parts_mut(linear(start) as *mut Device, DEVICES) };
    match Its::start(&mut Hw, Place::Its(n), (tables, *next), devices, lpi_bits) {
        Ok(its) => {
            *ITS[n].lock() = Some(its);
            Some(n)
        }
        Err(why) => refused(why),
    }
}

/// All frames that are not simply the host's: for its stage 2.
pub fn for_each_frame(f: impl FnMut(Frame)) {
    FRAMES.lock().iter().for_each(f);
}

/// The pages of GITS_TRANSLATER of the ITSs that are served: what devices send their interrupts to, and all that they
/// are to reach beside memory.
pub fn doorbells() -> ArrayVec<u64, MAX_ITS> {
    DOORBELLS.lock().clone()
}

/// The frame at an address.
pub fn find(pa: u64) -> Option<Frame> {
    FRAMES.lock().find(pa)
}

/// What becomes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It loads this.
    Loaded(u64),
    /// It has stored.
    Stored,
    /// It is an external abort.
    Abort,
}

/// An access of the host's to `frame` at `pa`: a store of a value, or a load. `None` as the width: it is none that
/// registers take.
///
/// # Panics
///
/// If the ITS takes no commands any more and can't be turned off: hyp can't say what it does to memory.
pub fn access(frame: Frame, pa: u64, width: Option<Width>, store: Option<u64>) -> Answer {
    let Some(width) = width.filter(|width| pa.is_multiple_of(width.bytes())) else {
        return Answer::Abort;
    };
    let offset = (pa - frame.start) as u32;
    match (frame.kind, store) {
        (Kind::Doorbell, _) => Answer::Abort,
        (Kind::Silent, None) => Answer::Loaded(0),
        (Kind::Silent, Some(_)) => Answer::Stored,
        (Kind::Redistributor(n), None) => {
            Answer::Loaded(REDISTRIBUTORS.lock().load(&mut Hw, n, offset, width))
        }
        (Kind::Redistributor(n), Some(value)) => {
            REDISTRIBUTORS.lock().store(&mut Hw, n, offset, width, value);
            Answer::Stored
        }
        (Kind::Its(n), store) => its_access(n, offset, width, store),
    }
}

fn its_access(n: usize, offset: u32, width: Width, store: Option<u64>) -> Answer {
    let targets = TARGETS.get().map_or(&[][..], |targets| targets);
    let mut guard = ITS[n].lock();
    let Some(its) = guard.as_mut() else { return Answer::Abort };
    let answer = match store {
        None => its.load(&mut Hw, targets, offset, width).map(Answer::Loaded),
        Some(value) => its.store(&mut Hw, targets, offset, width, value).map(|()| Answer::Stored),
    };
    let news = its.take_news();
    drop(guard);
    tell(n, news);
    match answer {
        Ok(answer) => answer,
        Err(Hung) => panic!("ITS {n} takes no commands any more, and does not stop"),
    }
}

fn tell(n: usize, news: Option<News>) {
    if let Some(news) = news {
        log::warn!("ITS {n}: {news}");
    }
}

/// A CPU is back that may have slept with the rest of the machine: ITSs that aren't as hyp has left them are brought up
/// again, before the host runs there, and redistributors with LPIs on and other tables have them off. Returns how many
/// these were.
///
/// # Panics
///
/// If one of them doesn't stop: hyp can't say what it does to memory.
pub fn wake() -> usize {
    let redistributors = REDISTRIBUTORS.lock().wake(&mut Hw);
    let mut woken = match redistributors {
        Ok(strange) => strange,
        Err(n) => panic!(
            "redistributor {n} has tables that are not hyp's, and LPIs that can't be turned off"
        ),
    };
    for n in 0..NODES.get().copied().unwrap_or(0) {
        let mut guard = ITS.get(n).map(Lock::lock);
        let result = match guard.as_mut().and_then(|its| its.as_mut()) {
            Some(its) => {
                let result = its.wake(&mut Hw);
                let news = its.take_news();
                drop(guard);
                tell(n, news);
                result
            }
            // Nobody's.
            None if read32(&mut Hw, Place::Its(n), gits::CTLR) & gits::ENABLED == 0 => Ok(false),
            None => stop(&mut Hw, Place::Its(n)).map(|()| true).map_err(|_| Hung),
        };
        match result {
            Ok(was) => woken += usize::from(was),
            Err(Hung) => panic!("ITS {n} is not as it was, and does not stop"),
        }
    }
    woken
}
