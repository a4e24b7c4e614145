//! Memory changing hands: the decisions of [`crate::memory::pages`] put into effect.
//!
//! One lock guards the page table of owners, hyp's stage 1 and the host's stage 2 together, because a
//! transition touches all three. It is taken after a VM's lock and never held across a run.
//!
//! The order of a transition's steps is that of [`crate::memory::handover`].

use crate::arch::Lock;
use crate::arch::layout::LINEAR_BASE;
use crate::arch::log;
use crate::arch::sysreg::{dsb_sy, read_dczid_el0, read_isr_el1, sys};
use crate::dma::all::All;
use crate::dma::hw::Frame;
use crate::dma::smmu::Trouble;
use crate::memory::devices::{Devices, Smmus};
use crate::memory::frames::linear;
use crate::memory::handover::Hands;
use crate::memory::junk::Junk;
use crate::memory::pages::{Page, PageRange, Pages, State};
use crate::memory::stage2::{self, Fault, HostFault, Stage2};
use crate::memory::tables::{HypTables, Stage2Tables, Tlbs, Use};
use core::arch::asm;
use sha2::{Digest, Sha256};
use spin::Once;
use umbra_shared::PAGE_SIZE;
use umbra_shared::error::Error;
use umbra_shared::flags::FlagShadowPage;
use umbra_shared::measurement::Value;

/// Last-level tables that one NEXT_SHARED_PAGE looks at: what bounds its time.
const TABLES_LOOKED_AT: usize = 64;
/// Bytes that a last-level table maps.
const TABLE_SPAN: u64 = 2 << 20;

/// All that [`MEMORY`]'s lock guards.
#[derive(Debug)]
pub struct Memory {
    /// Who owns what.
    pub pages: Pages<'static>,
    /// Hyp's own translation.
    pub hyp: HypTables,
    /// The host's stage 2.
    pub host: Stage2<Stage2Tables>,
    /// What is in there in the place of guests' pages.
    pub junk: Junk,
    /// That of devices, if there is an SMMU to walk it.
    pub devices: Option<Devices<Stage2Tables, All<Frame>>>,
    /// Guests find what is in caches, whatever attributes they use (FEAT_S2FWB, on every CPU that runs any).
    pub guests_see_caches: bool,
}

/// What an SMMU keeps can't be told any more: no page may change hands again.
fn done<T>(result: Result<T, (u64, Trouble)>) -> T {
    result.unwrap_or_else(|(base, trouble)| panic!("SMMU at {base:#x}: {trouble}"))
}

impl Smmus for All<Frame> {
    fn stores_done(&self) {
        dsb_sy();
    }

    fn forget_page(&mut self, ipa: u64) {
        done(Self::forget_page(self, ipa));
    }

    fn forget_everything(&mut self) {
        done(Self::forget_everything(self));
    }

    fn settle(&mut self) {
        done(Self::settle(self));
    }
}

// SAFETY: the raw table pointers inside lead to hyp's pool, which every CPU has mapped alike.
unsafe impl Send for Memory {}

static MEMORY: Once<Lock<Memory>> = Once::new();

/// Hands memory over to its lock; once, at boot.
pub fn init(memory: Memory) {
    MEMORY.call_once(|| Lock::new(memory));
}

/// Does something with memory, under its lock.
///
/// # Panics
///
/// Before [`init`].
pub fn with<R>(f: impl FnOnce(&mut Memory) -> R) -> R {
    let mut memory = MEMORY.get().expect("memory is set up before the host runs").lock();
    log::locked();
    let result = f(&mut memory);
    #[cfg(feature = "transition-log")]
    {
        let Memory { pages, devices, .. } = &mut *memory;
        log::touched(pages.take_changes().map(|change| with_devices(devices.as_ref(), change)));
    }
    result
}

/// A change of pages, and whether devices reach them, in the stage 2 that SMMUs walk.
///
/// # Panics
///
/// If they reach some of them: their owner is one.
#[cfg(feature = "transition-log")]
pub fn with_devices(
    devices: Option<&Devices<Stage2Tables, All<Frame>>>,
    change: umbra_shared::record::Change,
) -> umbra_shared::record::Change {
    let reach = |n: u64| devices.is_some_and(|it| it.reach((change.page + n) * PAGE_SIZE as u64));
    let count = (0..u64::from(change.count)).filter(|&n| reach(n)).count();
    assert!(count == 0 || count == usize::from(change.count), "devices reach some of {change:?}");
    umbra_shared::record::Change { devices: count != 0, ..change }
}

impl Memory {
    /// Shares a host page as a flag-shadow page and maps it for hyp.
    ///
    /// # Errors
    ///
    /// As [`Pages::share_flag_page`].
    pub fn share_flag_page(&mut self, page: Page) -> Result<(), Error> {
        self.pages.share_flag_page(page)?;
        self.hyp.map(linear(page.pa()), page.pa(), PAGE_SIZE, Use::ReadWrite);
        Ok(())
    }

    /// Ends that.
    ///
    /// # Errors
    ///
    /// As [`Pages::unshare_flag_page`].
    pub fn unshare_flag_page(&mut self, page: Page) -> Result<(), Error> {
        self.pages.unshare_flag_page(page)?;
        self.hyp.unmap(linear(page.pa()), PAGE_SIZE);
        Ok(())
    }

    /// The first host page at or above `from` that hyp has mapped, read from hyp's own tables, in a
    /// bounded stretch of memory; and where to go on looking, if there is more.
    pub fn next_host_page_mapped(&self, from: u64) -> (Option<u64>, Option<u64>) {
        let mut from = from;
        for _ in 0..TABLES_LOOKED_AT {
            let Some(page) = self.pages.next_from(from) else { return (None, None) };
            let end = (page.pa() & !(TABLE_SPAN - 1)) + TABLE_SPAN;
            let found = self.hyp.find_page(linear(page.pa()), linear(end), |va| {
                let page = self.pages.lookup((va - LINEAR_BASE) as u64);
                page.is_ok_and(|page| self.pages.state(page).host_has_access())
            });
            if let Some(va) = found {
                return (Some((va - LINEAR_BASE) as u64), Some(end));
            }
            from = end;
        }
        (None, self.pages.next_from(from).map(Page::pa))
    }

    /// A CPU is back that may have slept with the rest of the machine: SMMUs that have lost their state are brought up
    /// again, before the host runs there. Returns how many had.
    pub fn wake_smmus(&mut self) -> usize {
        self.devices.as_mut().map_or(0, |devices| done(devices.smmus().wake()))
    }

    /// Does something with a page that is the host's alone, mapped for hyp at the address that `f` is given for
    /// as long as that takes. `None`: it is no such page. The host may write it meanwhile.
    pub fn with_host_page<R>(&mut self, pa: u64, f: impl FnOnce(usize) -> R) -> Option<R> {
        let page = self.pages.lookup(pa).ok()?;
        if self.pages.state(page) != State::Host {
            return None;
        }
        self.map_for_hyp(page.alone());
        let result = f(linear(pa));
        self.unmap_for_hyp(page.alone());
        Some(result)
    }

    /// Pages that some VM has: a guest's memory, shared with the host or not, and what hyp keeps of it.
    pub fn pages_of_vms(&self) -> usize {
        self.pages.count(|state| state.is_a_vms() || matches!(state, State::SharedWithGuest(_)))
    }

    /// The host took a stage-2 translation fault.
    pub fn host_fault(&mut self, fault: Fault) -> HostFault {
        let Self { pages, host, junk, .. } = self;
        stage2::host_fault(pages, host, junk, &Tlbs, fault, |pa| {
            // SAFETY: a page of hyp's pool, which all of is mapped; `Junk` alone has it, and the host has lost it.
            unsafe { zero(linear(pa), PAGE_SIZE) };
            // Whatever attributes the host's access has.
            clean_invalidate_range(linear(pa), PAGE_SIZE);
        })
    }
}

/// The flag-shadow page that a vCPU has pinned.
pub fn flag_page(page: Page) -> &'static FlagShadowPage {
    // SAFETY: the page is shared, hence mapped, and stays so while it is pinned. All of it is atomics,
    // valid for any content, so the host may write it meanwhile.
    unsafe { &*(linear(page.pa()) as *const FlagShadowPage) }
}

/// The words of a page from a byte on, to its end.
fn words_of(page: Page, at: usize) -> impl Iterator<Item = *mut u64> {
    const WORD: usize = size_of::<u64>();
    let base = linear(page.pa());
    (at.next_multiple_of(WORD)..PAGE_SIZE).step_by(WORD).map(move |at| (base + at) as *mut u64)
}

/// Pages that are wiped and cleaned before hyp looks whether an interrupt waits: with all around them about
/// [`umbra_shared::call::MASKED_INSTRUCTIONS`].
const STRETCH: usize = 64;

impl Hands for Memory {
    const STRETCH: usize = STRETCH;

    fn take_from_host(&mut self, pages: PageRange) {
        self.host.unmap(&Tlbs, pages.start(), pages.bytes());
        if let Some(devices) = &mut self.devices {
            devices.take(pages.start(), pages.bytes());
        }
    }

    fn devices_are_done(&mut self) {
        if let Some(devices) = &mut self.devices {
            devices.settle();
        }
    }

    fn give_to_host(&mut self, pages: PageRange) {
        stage2::give_to_host(&self.pages, &mut self.host, &mut self.junk, &Tlbs, pages);
        if let Some(devices) = &mut self.devices {
            devices.give(pages.start(), pages.bytes());
        }
    }

    fn leave_to_host(&mut self, pages: PageRange) {
        stage2::make_whole(&self.pages, &mut self.host, &Tlbs, pages);
    }

    fn map_for_hyp(&mut self, pages: PageRange) {
        let (pa, bytes) = (pages.start(), pages.count() * PAGE_SIZE);
        self.hyp.map(linear(pa), pa, bytes, Use::ReadWrite);
    }

    fn unmap_for_hyp(&mut self, pages: PageRange) {
        self.hyp.unmap(linear(pages.start()), pages.count() * PAGE_SIZE);
    }

    fn wipe(&mut self, pages: PageRange) {
        // SAFETY: mapped for hyp, taken from their old owner and not yet given to a new one, as
        // `handover` orders it.
        unsafe { zero(linear(pages.start()), pages.count() * PAGE_SIZE) };
    }

    fn clean(&mut self, pages: PageRange) {
        clean_invalidate_range(linear(pages.start()), pages.count() * PAGE_SIZE);
    }

    fn digest(&mut self, page: Page) -> Value {
        let at = linear(page.pa()) as *const u8;
        // SAFETY: a page that is mapped for hyp, and that nobody writes: it is taken from its old owner and not yet given
        // to a new one, as `handover` orders it.
        Sha256::digest(unsafe { core::slice::from_raw_parts(at, PAGE_SIZE) }).into()
    }

    fn write(&mut self, page: Page, at: usize, words: impl Iterator<Item = u64>) {
        for (word, place) in words.zip(words_of(page, at)) {
            // SAFETY: inside a page that is mapped for hyp. Its guest may use it meanwhile: what is stored is a word.
            unsafe { place.write_volatile(word) };
        }
    }

    fn read(&mut self, page: Page, at: usize, words: &mut [u64]) {
        for (word, place) in words.iter_mut().zip(words_of(page, at)) {
            // SAFETY: inside a page that is mapped for hyp. Its guest may write it meanwhile: any word is one.
            *word = unsafe { place.read_volatile() };
        }
    }

    fn guests_see_caches(&self) -> bool {
        self.guests_see_caches
    }

    fn is_waited_for(&self) -> bool {
        read_isr_el1() != 0
    }

    fn forget_instructions(&mut self) {
        // What was stored before is what a fetch finds behind it, whether it had to be cleaned or not (Arm ARM B2.4.4).
        // SAFETY: dropping instructions from caches is always sound.
        unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack)) };
    }
}

/// Zeroes pages, by DC ZVA where that is allowed and its block is no larger than a page.
///
/// # Safety
///
/// `bytes` bytes at `va`, whole pages, are mapped as Normal memory, and nobody else's.
unsafe fn zero(va: usize, bytes: usize) {
    let dczid = read_dczid_el0();
    // DZP; the block's size in words, as a power of two.
    let (prohibited, block) = (dczid & 1 << 4 != 0, 4usize << (dczid & 0xf));
    // Four at a time.
    if prohibited || block > PAGE_SIZE / 4 {
        // SAFETY: as the caller promises.
        unsafe { (va as *mut u8).write_bytes(0, bytes) };
        return;
    }
    // SAFETY: it zeroes aligned blocks, which pages are made of, of the caller's memory.
    unsafe {
        asm!(
            "2:",
            "dc     zva, {at}",
            "add    {at}, {at}, {block}",
            "dc     zva, {at}",
            "add    {at}, {at}, {block}",
            "dc     zva, {at}",
            "add    {at}, {at}, {block}",
            "dc     zva, {at}",
            "add    {at}, {at}, {block}",
            "cmp    {at}, {end}",
            "b.lo   2b",
            at = inout(reg) va => _,
            block = in(reg) block,
            end = in(reg) va + bytes,
            options(nostack),
        );
    }
}

/// Cleans and invalidates mapped memory to the point of coherency.
pub fn clean_invalidate_range(va: usize, bytes: usize) {
    let line = 4usize << (sys::read_ctr_el0().bits() >> 16 & 0xf);
    if bytes == 0 {
        return;
    }
    // SAFETY: cache maintenance by VA on mapped memory changes no content; a barrier.
    unsafe {
        asm!(
            "2:",
            "dc     civac, {at}",
            "add    {at}, {at}, {line}",
            "cmp    {at}, {end}",
            "b.lo   2b",
            "dsb    sy",
            at = inout(reg) va & !(line - 1) => _,
            line = in(reg) line,
            end = in(reg) va + bytes,
            options(nostack),
        );
    }
}
