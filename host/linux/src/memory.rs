//! The pages that a VM is made of: the kernel's own, for what hyp keeps there, and its guest's memory.
//!
//! A normal guest's are pages of user space, which are pinned while the guest has them and count against RLIMIT_MEMLOCK. Its memory is put in place where it is accessed first, in blocks of 2 MiB where the slot allows that and the
//! user has so much there. The pages stay the guest's until their slot is deleted or moved, or the VM ends, whatever becomes of the
//! user's mapping meanwhile: who unmaps memory of a slot and maps something else there gives the guest nothing of it.
//!
//! A protected guest's are the kernel's own where its slots are of memory files ([`crate::memory_file`]), and user space's as above where
//! they are not. What is there when its first vCPU runs is its payload, and given to hyp in the order of the guest's addresses. After that
//! its slots stay as they are, and pages arrive where they are accessed first, empty. User space's stay mapped: it finds those that the
//! guest shares, of others its own accesses end in SIGBUS, and those of this kernel for it find junk
//! ([`VmConfig::junk`]).

use crate::{
    abi::{Errno, MemoryRegion},
    linux::{self, Mm, Pages, Pinned, Shared, with_room},
    memory_file::MemoryFile,
    slots::{Change, Place, Slots},
};
use alloc::vec::Vec;
use umbra_host::{
    hypercall::Hvc,
    vcpu::Vcpu,
    vm::{BuildError, Line, PageSupplier, VcpuSettings, Vm},
};
use umbra_shared::{
    PAGE_SIZE,
    call::{BLOCK_PAGES, VmConfig, VmHandle},
    error::Error,
    flags::FlagShadowPage,
};

const PAGE: u64 = PAGE_SIZE as u64;
const BLOCK: u64 = BLOCK_PAGES * PAGE;

/// Lines of the books that are always left: enough for what hyp keeps of a VM, and for a cut through a run.
const LINES_LEFT: usize = 64;

/// What linux thinks of an error of the host crate's.
pub fn errno(error: BuildError) -> Errno {
    match error {
        BuildError::NoPages | BuildError::NoRoom => Errno::ENOMEM,
        BuildError::AlreadyOut | BuildError::NotOut | BuildError::VcpusLeft => Errno::EIO,
        BuildError::Hyp(error) => refused(error),
    }
}

/// What it thinks of one of hyp's.
pub const fn refused(error: Error) -> Errno {
    match error {
        Error::Limit => Errno::ENOMEM,
        Error::Busy => Errno::EBUSY,
        Error::VcpuInUse => Errno::EEXIST,
        Error::InvalidArgument | Error::BadVcpu => Errno::EINVAL,
        Error::BadRegister => Errno::ENOENT,
        Error::Protected | Error::Sealed => Errno::EPERM,
        _ => Errno::EIO,
    }
}

/// The books of a VM.
type Lines = Vec<Line>;

/// Where pages come from, and go.
struct Supplier<'a>(&'a Mm);

impl PageSupplier for Supplier<'_> {
    fn allocate(&mut self, count: u64) -> Option<u64> {
        Pages::alloc(count).map(Pages::give)
    }

    fn free(&mut self, first: u64, count: u64) {
        // SAFETY: what a VM has was given or lent to it; it gives back what neither hyp nor a guest has any more.
        let pinned = unsafe { linux::take_back(first, count) };
        self.0.unlock_pages(pinned);
        linux::cond_resched();
    }

    fn flag_page(&mut self, pa: u64) -> &'static FlagShadowPage {
        // SAFETY: allocated above; it is the VM's until that gives it back, which has no use for it then.
        unsafe { linux::flag_page(pa) }
    }
}

/// How far a protected VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its slots can be changed.
    Built,
    /// It has begun to get its payload, and may have been interrupted.
    Sealing,
    /// It runs.
    Sealed,
    /// It has not got all of its payload, and never runs.
    Broken,
}

/// A VM in hyp, and the pages that it has.
#[derive(Debug)]
pub struct Memory {
    vm: Vm<Lines>,
    /// How many its books have.
    lines: usize,
    mm: Shared<Mm>,
    slots: Slots<Shared<MemoryFile>>,
    /// How far a protected one is.
    stage: Stage,
    /// Up to which of its addresses it has been given what its user has there.
    looked: u64,
    /// Where guest-physical addresses end.
    ipa_end: u64,
}

/// What there is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory of a slot's, which is in place now.
    Memory,
    /// Nothing: a device's.
    Nothing,
}

impl Memory {
    /// A VM without memory.
    pub fn new(mm: Shared<Mm>, config: VmConfig, ipa_end: u64) -> Result<Self, Errno> {
        let vm = Vm::create(lines(2 * LINES_LEFT)?, &Hvc, &mut Supplier(&mm), config);
        let (vm, slots) = (vm.map_err(errno)?, Slots::default());
        let (lines, stage) = (2 * LINES_LEFT, Stage::Built);
        Ok(Self { vm, lines, mm, slots, stage, looked: 0, ipa_end })
    }

    fn parts(&mut self) -> (&mut Vm<Lines>, Supplier<'_>) {
        (&mut self.vm, Supplier(&self.mm))
    }

    /// Its handle.
    pub fn handle(&self) -> VmHandle {
        self.vm.handle()
    }

    /// Sees to it that the books have lines for so many pieces more.
    fn make_room(&mut self, pieces: usize) -> Result<(), Errno> {
        let left = self.vm.lines_left();
        if left >= LINES_LEFT + pieces {
            return Ok(());
        }
        // Twice as many as there are: what is moved so is moved seldom.
        let count = 2 * self.lines + pieces;
        self.vm.move_books(lines(count)?).map_err(|_| Errno::ENOMEM)?;
        self.lines = count;
        Ok(())
    }

    /// KVM_SET_USER_MEMORY_REGION, and of KVM_SET_USER_MEMORY_REGION2 the file and the number of the slot's first page there, which
    /// protected VMs alone have. Their slots stay as they are once they run.
    pub fn set_slot(
        &mut self,
        region: MemoryRegion,
        file: Option<(Shared<MemoryFile>, u64)>,
    ) -> Result<(), Errno> {
        if self.vm.config().protected {
            return self.set_private_slot(region, file);
        }
        if file.is_some() {
            return Err(Errno::EINVAL);
        }
        // Each page that is taken back may leave a run in two.
        self.make_room(self.slots.present_of(region.slot) as usize)?;
        let (Change::Gone(slot) | Change::Moved(slot)) =
            self.slots.set(region, None, self.ipa_end)?
        else {
            return Ok(());
        };
        let mut refused = None;
        for (ipa, count) in slot.present() {
            let (vm, mut supplier) = self.parts();
            if let Err(interrupted) = vm.unmap(&Hvc, &mut supplier, ipa, count) {
                refused = Some((interrupted.error, ipa + interrupted.done * PAGE));
                break;
            }
        }
        match refused {
            None => Ok(()),
            Some((error, ipa)) => {
                let gone = ipa - slot.first();
                self.slots.restore(slot, gone);
                Err(errno(error))
            }
        }
    }

    fn set_private_slot(
        &mut self,
        region: MemoryRegion,
        file: Option<(Shared<MemoryFile>, u64)>,
    ) -> Result<(), Errno> {
        if self.stage != Stage::Built {
            return Err(Errno::EPERM);
        }
        let MemoryRegion { guest_phys_addr: ipa, memory_size: bytes, .. } = region;
        match self.slots.set(region, file.clone(), self.ipa_end)? {
            Change::Made => {
                let bound = file.map_or(Ok(()), |(file, first)| {
                    file.bind(self.handle(), ipa, first, bytes / PAGE)
                });
                if bound.is_err() {
                    let gone = MemoryRegion { memory_size: 0, ..region };
                    self.slots.set(gone, None, self.ipa_end)?;
                }
                bound
            }
            // Nothing of it was the guest's yet.
            Change::Gone(slot) => {
                if let Some((file, _)) = slot.file() {
                    file.unbind(slot.first());
                }
                Ok(())
            }
            Change::Moved(_) | Change::None => Ok(()),
        }
    }

    /// A protected VM is about to run: what is in its files and its user's memory is given to hyp, and then nothing of it changes but by
    /// its guest. `scratch` has room for some pages.
    ///
    /// # Errors
    ///
    /// EINTR: the caller has a signal, and this goes on the next time. Whatever else is wrong leaves a VM that never runs, as
    /// EIO says from then on.
    pub fn seal(&mut self, scratch: &mut [u64]) -> Result<(), Errno> {
        match self.stage {
            Stage::Sealed => return Ok(()),
            Stage::Broken => return Err(Errno::EIO),
            Stage::Built | Stage::Sealing => {}
        }
        let slots = self.slots.in_order()?;
        let mut pieces = with_room(slots.len())?;
        for slot in slots {
            pieces.push((slot.file().cloned(), slot.user(), slot.pages(), slot.first()));
        }
        let files = || pieces.iter().filter_map(|(file, ..)| file.as_ref());
        self.stage = Stage::Sealing;
        files().for_each(|(file, _)| file.close());
        let mut give_all = || {
            for (file, user, pages, ipa) in &pieces {
                match file {
                    Some((file, first)) => self.give_of_file(file, *first, *pages, *ipa)?,
                    None => self.give_of_user(*user, *pages, *ipa, scratch)?,
                }
            }
            self.vm.seal(&Hvc).map_err(errno)
        };
        let given = give_all();
        self.stage = match given {
            Ok(()) => Stage::Sealed,
            Err(Errno::EINTR) => Stage::Sealing,
            Err(_) => Stage::Broken,
        };
        given?;
        files().for_each(|(file, _)| file.run());
        Ok(())
    }

    /// Gives what a file has from its page `first` on, which is at `ipa`.
    fn give_of_file(
        &mut self,
        file: &MemoryFile,
        first: u64,
        pages: u64,
        ipa: u64,
    ) -> Result<(), Errno> {
        let mut next = first;
        loop {
            // Before the pages are in nobody's books.
            self.make_room(1)?;
            let taken = file.take(next, first + pages);
            let Some((number, page, count)) = taken else { return Ok(()) };
            next = number + count;
            self.put_pages(page, count, ipa + (number - first) * PAGE).map_err(errno)?;
            pause()?;
        }
    }

    /// Gives what the caller has at `user`, which is at `ipa`, behind what it has looked at of that.
    fn give_of_user(
        &mut self,
        user: u64,
        pages: u64,
        ipa: u64,
        scratch: &mut [u64],
    ) -> Result<(), Errno> {
        let looked = self.looked.saturating_sub(ipa).min(pages * PAGE);
        let mut rest = user + looked..user + pages * PAGE;
        let mm = self.mm.clone();
        loop {
            let pinned = mm.pin_present(&mut rest, scratch);
            // Or who gets signals often enough would look through the same nothing for ever. A mapping may be more than the slot.
            self.looked = ipa + (rest.start.min(rest.end) - user);
            let Some(pages) = pinned? else { return Ok(()) };
            rest.start += pages.addresses().len() as u64 * PAGE;
            self.put_in_place(self.looked, pages)?;
            self.looked = ipa + (rest.start - user);
            pause()?;
        }
    }

    /// Puts pages in place, which lie one behind the other, and have been given or lent.
    fn put_pages(&mut self, first: u64, count: u64, ipa: u64) -> Result<(), BuildError> {
        let (vm, mut supplier) = self.parts();
        let mapped = vm.map(&Hvc, &mut supplier, first, count, ipa);
        let done = mapped.map_or_else(|interrupted| interrupted.done, |()| count);
        self.slots.set_present(ipa, done, true);
        mapped.map_err(BuildError::from)
    }

    /// The guest has given a page back: it is nobody's.
    pub fn returned(&mut self, ipa: u64, page: u64) {
        self.slots.set_present(ipa, 1, false);
        // Its neighbours may be two runs without it. If there is no room for that it comes back with the VM.
        if self.make_room(1).is_ok() {
            let (vm, mut supplier) = self.parts();
            let _ = vm.returned(&mut supplier, page);
        }
    }

    /// What is at a guest-physical address, if it is in a slot.
    pub fn place(&self, address: u64) -> Option<Place<Shared<MemoryFile>>> {
        self.slots.find(address)
    }

    /// Pages that it has: pinned ones of user space's, and the kernel's own that hyp keeps it in.
    pub fn pages(&self) -> u64 {
        self.vm.pages_out()
    }

    /// More pages for tables.
    pub fn topup(&mut self) -> Result<(), Errno> {
        self.make_room(1)?;
        let (vm, mut supplier) = self.parts();
        vm.topup(&Hvc, &mut supplier).map_err(errno)
    }

    /// Creates a vCPU.
    pub fn create_vcpu(&mut self, settings: VcpuSettings) -> Result<Vcpu, Errno> {
        self.make_room(1)?;
        let (vm, mut supplier) = self.parts();
        vm.create_vcpu(&Hvc, &mut supplier, settings).map_err(errno)
    }

    /// Puts pages in place that have been pinned, from `ipa` on, and unpins what is not needed.
    fn put_in_place(&mut self, ipa: u64, pages: Pinned<'_>) -> Result<(), Errno> {
        let mut all = pages;
        let mut at = ipa;
        while let rest @ [first, ..] = all.addresses() {
            let present = self.slots.find(at).is_none_or(|place| place.present);
            // As many as lie one behind the other, and are alike.
            let count = (0..rest.len())
                .take_while(|&n| {
                    let is_next = rest[n] == first + n as u64 * PAGE;
                    let place = self.slots.find(at + n as u64 * PAGE);
                    is_next && place.is_none_or(|place| place.present) == present
                })
                .count();
            let (these, others) = all.split_at(count);
            if !present {
                self.map(these, at)?;
            }
            all = others;
            at += count as u64 * PAGE;
        }
        Ok(())
    }

    /// They lie one behind the other.
    fn map(&mut self, pages: Pinned<'_>, ipa: u64) -> Result<(), Errno> {
        let (first, count) = (pages.addresses()[0], pages.addresses().len() as u64);
        // Of these this kernel's devices would meet an abort that nobody but its file system has asked for.
        if self.vm.config().protected && !pages.are_memory() {
            return Err(Errno::EFAULT);
        }
        self.make_room(1)?;
        self.mm.lock_pages(count)?;
        pages.lend();
        match self.put_pages(first, count, ipa) {
            Ok(()) => Ok(()),
            // The user has this page at two places of the guest's memory: then it is the VM's already, and stays.
            Err(BuildError::AlreadyOut) => {
                // SAFETY: the VM has taken none of them.
                unsafe { linux::unpin(first, count) };
                self.mm.unlock_pages(count);
                Err(Errno::EFAULT)
            }
            Err(error) => Err(errno(error)),
        }
    }

    /// The end, once nobody runs it: every page comes back.
    pub fn destroy(self, vcpus: Vec<Vcpu>) {
        let Self { vm, mm, slots, .. } = self;
        slots.files().for_each(|file| file.end());
        if let Err(failure) = vm.destroy(&Hvc, &mut Supplier(&mm), vcpus) {
            // Hyp's and ours no longer agree: what it has is lost, and nothing of it is touched.
            let (error, pages) = (failure.error, failure.vm.pages_out());
            log!("a VM can't be taken down ({error}): {pages} pages are lost");
            core::mem::forget(failure.vm);
        }
    }
}

/// Whoever waits for the CPU gets it, and a signal its way.
fn pause() -> Result<(), Errno> {
    linux::cond_resched();
    if linux::signal_pending() { Err(Errno::EINTR) } else { Ok(()) }
}

fn lines(count: usize) -> Result<Lines, Errno> {
    let mut lines = with_room(count)?;
    lines.resize(count, Line::FREE);
    Ok(lines)
}

/// Memory that several vCPUs fault on.
pub trait Faults {
    /// Uses it alone, and not for long.
    ///
    /// # Errors
    ///
    /// EIO: it has been taken down.
    fn memory<R>(&self, f: impl FnOnce(&mut Memory) -> R) -> Result<R, Errno>;

    /// The VM's address space, which is the caller's.
    fn mm(&self) -> &Mm;

    /// The guest has accessed an address: its memory is put in place. `scratch` has room for a block's pages.
    fn supply(&self, address: u64, scratch: &mut [u64]) -> Result<Backing, Errno> {
        let (place, generation, protected) = self.memory(|memory| {
            let Memory { slots, vm, .. } = memory;
            (slots.find(address), slots.generation(), vm.config().protected)
        })?;
        let Some(place) = place else { return Ok(Backing::Nothing) };
        if place.present {
            return Ok(Backing::Memory);
        }
        if place.file.is_some() {
            return self.supply_private(&place).map(|()| Backing::Memory);
        }
        let put = |ipa, pages: Pinned<'_>| {
            self.memory(|memory| {
                // If the slots have changed meanwhile the guest tries again.
                let is_same = memory.slots.generation() == generation;
                if is_same { memory.put_in_place(ipa, pages) } else { Ok(()) }
            })?
        };
        // A block, if the user's memory lies as it does.
        if let Some(inside) = place.in_block(BLOCK)
            && place.ipa % BLOCK == place.user % BLOCK
            && let Some(scratch) = scratch.get_mut(..BLOCK_PAGES as usize)
        {
            match self.mm().pin(place.user - inside, scratch) {
                Ok(pages) if pages.addresses().len() as u64 > inside / PAGE => {
                    match put(place.ipa - inside, pages) {
                        // A block is more than may be locked, perhaps, or than a protected guest takes for memory (RSI).
                        Err(error) if error == Errno::ENOMEM || protected => {}
                        put => return put.map(|()| Backing::Memory),
                    }
                }
                // Of the rest of the block there is not enough.
                Ok(_) | Err(_) => {}
            }
        }
        let mut one = [0];
        let pages = self.mm().pin(place.user, &mut one)?;
        put(place.ipa, pages)?;
        Ok(Backing::Memory)
    }

    /// A protected guest's: nobody's pages, a block of them if all of it is in the slot, none of it is there, the guest takes all of
    /// it for memory (RSI), and so many lie one behind the other.
    fn supply_private(&self, place: &Place<Shared<MemoryFile>>) -> Result<(), Errno> {
        let put = |ipa, count: u64, pages: Pages| {
            self.memory(|memory| {
                memory.make_room(1)?;
                if memory.slots.has_none(ipa, count) {
                    memory.put_pages(pages.give(), count, ipa).map_err(errno)?;
                }
                Ok(())
            })?
        };
        let first = place.in_block(BLOCK).map(|inside| place.ipa - inside);
        if let Some(first) = first
            && self.memory(|memory| memory.slots.has_none(first, BLOCK_PAGES))?
            && let Some(pages) = Pages::alloc(BLOCK_PAGES)
            && put(first, BLOCK_PAGES, pages).is_ok()
        {
            return Ok(());
        }
        put(place.ipa, 1, Pages::alloc(1).ok_or(Errno::ENOMEM)?)
    }
}
