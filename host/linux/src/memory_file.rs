//! Memory of protected VMs (KVM_CREATE_GUEST_MEMFD): what is there before a VM runs is its payload, whoever maps the file may
//! write it; afterwards its pages are the guest's, and who maps them finds those that the guest shares, as long as it does.
//!
//! Nothing here is pinned: the file is mapped as page frames, which nobody can pin, and taken away by unmapping it. So a
//! page that a guest takes back is in nobody's hands when hyp takes it from this kernel: whoever copies from there
//! then gets EFAULT.
//!
//! Whether a page may be mapped hyp says, at each access that finds none ([`Function::VmLookup`]). A guest that is about to take
//! one back has told its vCPU's thread; until that has come out of its guest again it is mapped no more.
//!
//! [`Function::VmLookup`]: umbra_shared::call::Function::VmLookup

use crate::{
    abi::*,
    linux::{Fault, Mappings, Mutex, Page, Pages, Shared, try_push, with_room},
};
use alloc::vec::Vec;
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    PAGE_SIZE,
    call::{BLOCK_PAGES, MAX_VCPUS, VmHandle},
};

const PAGE: u64 = PAGE_SIZE as u64;
/// No page's number.
const NONE: u64 = u64::MAX;

/// A file's pages.
#[derive(Debug)]
pub struct MemoryFile {
    pages: u64,
    /// GUEST_MEMFD_FLAG_MMAP
    may_be_mapped: bool,
    mappings: Mappings,
    /// Taken by who has an address space's lock, and by who has a VM's memory.
    content: Mutex<Content>,
}

#[derive(Debug)]
struct Content {
    phase: Phase,
    slots: Vec<Binding>,
    /// Of each vCPU, the page that its guest is about to take back.
    leaving: [u64; MAX_VCPUS],
}

#[derive(Debug)]
enum Phase {
    /// The VM is being built: the pages that there are.
    Built(Blocks),
    /// It is about to run: nobody finds those any more.
    Closed(Blocks),
    /// It runs: what there is hyp knows.
    Guests,
    /// It runs no more, and nobody finds anything.
    Ended,
}

/// Pages by their numbers, in blocks of [`BLOCK_PAGES`], of which one is empty where nothing is.
type Blocks = Vec<Vec<Option<Page>>>;

/// Where a VM has pages of the file.
#[derive(Clone, Copy, Debug)]
struct Binding {
    vm: VmHandle,
    ipa: u64,
    first: u64,
    count: u64,
}

impl MemoryFile {
    /// KVM_CREATE_GUEST_MEMFD.
    ///
    /// # Errors
    ///
    /// EINVAL as KVM: no size, or not in pages, unknown flags. A file that can be mapped is shared with the host at first, until
    /// its VM runs, and has to say so. ENOMEM for more than a guest has addresses for, which end at `ipa_end`.
    pub fn new(create: &CreateGuestMemfd, ipa_end: u64) -> Result<Self, Errno> {
        const BOTH: u64 = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
        let CreateGuestMemfd { size, flags, .. } = *create;
        // What can be addressed with a file's offset.
        let size_is_good = size != 0 && size.is_multiple_of(PAGE) && size <= i64::MAX as u64;
        if !size_is_good || flags != 0 && flags != BOTH {
            return Err(Errno::EINVAL);
        }
        if size > ipa_end {
            return Err(Errno::ENOMEM);
        }
        let pages = size / PAGE;
        let blocks = pages.div_ceil(BLOCK_PAGES) as usize;
        let mut none = with_room(blocks)?;
        none.extend((0..blocks).map(|_| Vec::new()));
        let content =
            Content { phase: Phase::Built(none), slots: Vec::new(), leaving: [NONE; MAX_VCPUS] };
        Ok(Self {
            pages,
            may_be_mapped: flags & GUEST_MEMFD_FLAG_MMAP != 0,
            mappings: Mappings::new()?,
            content: Mutex::new(content)?,
        })
    }

    /// Whether it can be mapped.
    pub const fn may_be_mapped(&self) -> bool {
        self.may_be_mapped
    }

    /// Who has mapped it.
    pub const fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// A slot of a VM that does not run yet has `count` pages from `first` on.
    ///
    /// # Errors
    ///
    /// EINVAL: the file doesn't have them, or some are another slot's.
    pub fn bind(&self, vm: VmHandle, ipa: u64, first: u64, count: u64) -> Result<(), Errno> {
        let end = first.checked_add(count).filter(|&end| end <= self.pages).ok_or(Errno::EINVAL)?;
        let mut content = self.content.lock();
        let mut others = content.slots.iter();
        if others.any(|other| first < other.first + other.count && other.first < end) {
            return Err(Errno::EINVAL);
        }
        try_push(&mut content.slots, Binding { vm, ipa, first, count })
    }

    /// It has them no longer.
    pub fn unbind(&self, ipa: u64) {
        self.content.lock().slots.retain(|slot| slot.ipa != ipa);
    }

    /// The VM is about to run: no process finds any of its pages from here on.
    pub fn close(&self) {
        {
            let phase = &mut self.content.lock().phase;
            if let Phase::Built(pages) = phase {
                *phase = Phase::Closed(core::mem::take(pages));
            }
        }
        self.mappings.unmap(0, self.pages);
    }

    /// Takes pages out that there are, from number `from` on and below `end`, which lie one behind the other in memory and in one
    /// block: the number of the first, where it is, and how many. They are the VM's to have from here on. The file has been closed.
    pub fn take(&self, from: u64, end: u64) -> Option<(u64, u64, u64)> {
        let mut content = self.content.lock();
        let Phase::Closed(blocks) = &mut content.phase else { return None };
        let mut at = from;
        while at < end {
            let (block, inside) = ((at / BLOCK_PAGES) as usize, (at % BLOCK_PAGES) as usize);
            let next = (at / BLOCK_PAGES + 1) * BLOCK_PAGES;
            let left = (end.min(next) - at) as usize;
            let some = blocks.get_mut(block)?.get_mut(inside..).unwrap_or_default();
            let left = left.min(some.len());
            let some = &mut some[..left];
            if let Some(skipped) = some.iter().position(Option::is_some) {
                let some = &mut some[skipped..];
                let first = some[0].take()?;
                let pa = first.pa();
                let is_next = |&(n, ref page): &(usize, &mut Option<Page>)| {
                    page.as_ref().is_some_and(|page| page.pa() == pa + n as u64 * PAGE)
                };
                let mut count = 1;
                let others = (1..).zip(some[1..].iter_mut()).take_while(is_next);
                let others = others.filter_map(|(_, page)| page.take()).inspect(|_| count += 1);
                Page::give(first, others);
                return Some((at + skipped as u64, pa, count));
            }
            at = next;
        }
        None
    }

    /// What is not taken now is nobody's: its VM runs.
    pub fn run(&self) {
        self.content.lock().phase = Phase::Guests;
    }

    /// The VM ends, whoever has mapped it.
    pub fn end(&self) {
        let phase = core::mem::replace(&mut self.content.lock().phase, Phase::Ended);
        self.mappings.unmap(0, self.pages);
        // Pages that nobody has been given are freed when nobody has them mapped.
        drop(phase);
    }

    /// Its guest is about to take a page back: when this returns no process has it mapped, and until [`Self::has_left`] none maps
    /// it.
    pub fn leaves(&self, vcpu: u32, page: u64) {
        if let Some(leaving) = self.content.lock().leaving.get_mut(vcpu as usize) {
            *leaving = page;
        }
        // Whoever found it before that has it mapped by now.
        self.mappings.unmap(page, 1);
    }

    /// It has, or has thought better of it.
    pub fn has_left(&self, vcpu: u32) {
        if let Some(leaving) = self.content.lock().leaving.get_mut(vcpu as usize) {
            *leaving = NONE;
        }
    }

    /// A process has accessed a page of the file that it has mapped. What the fault handler returns; 0: it is not there for
    /// it.
    pub fn fault(&self, page: u64, fault: Fault<'_>) -> u32 {
        /// VM_FAULT_OOM
        const NO_MEMORY: u32 = 1;
        if page >= self.pages {
            return 0;
        }
        // Held until it is mapped: who takes the page away unmaps it after that.
        let mut content = self.content.lock();
        let Content { phase, slots, leaving } = &mut *content;
        let pa = match phase {
            Phase::Built(blocks) => match populate(blocks, self.pages, page) {
                None => return NO_MEMORY,
                pa => pa,
            },
            Phase::Guests if leaving.contains(&page) => None,
            Phase::Guests => shared(slots, page),
            Phase::Closed(_) | Phase::Ended => None,
        };
        // SAFETY: `close`, `leaves` and `end` unmap it, and none of them has begun with this page.
        pa.map_or(0, |pa| unsafe { fault.finish(pa) })
    }
}

/// A page that there has to be; `None` if there is no memory for it. All of the 2 MiB around it come with it, so that what the
/// payload is doesn't depend on how much memory lies one behind the other: they are blocks of the guest's where they do.
fn populate(blocks: &mut Blocks, pages: u64, page: u64) -> Option<u64> {
    let (block, inside) = ((page / BLOCK_PAGES) as usize, (page % BLOCK_PAGES) as usize);
    let count = BLOCK_PAGES.min(pages - page / BLOCK_PAGES * BLOCK_PAGES);
    let around = blocks.get_mut(block)?;
    if around.is_empty() {
        let mut new = with_room(count as usize).ok()?;
        match Pages::alloc(count) {
            Some(whole) => new.extend(whole.map(Some)),
            None => {
                for _ in 0..count {
                    new.push(Some(Pages::alloc(1)?.next()?));
                }
            }
        }
        *around = new;
    }
    around.get(inside)?.as_ref().map(Page::pa)
}

/// A page that its guest has and shares.
fn shared(slots: &[Binding], page: u64) -> Option<u64> {
    let slot = slots.iter().find(|slot| (slot.first..slot.first + slot.count).contains(&page))?;
    let ipa = slot.ipa + (page - slot.first) * PAGE;
    match Hvc.vm_lookup(slot.vm, ipa) {
        Ok((pa, true)) => Some(pa),
        Ok((_, false)) | Err(_) => None,
    }
}

/// A page of a file that a vCPU's guest is about to take back.
#[derive(Debug)]
pub struct Leaving {
    file: Shared<MemoryFile>,
    vcpu: u32,
}

impl Leaving {
    /// It is on its way from here on, until this is dropped.
    pub fn new(file: Shared<MemoryFile>, vcpu: u32, page: u64) -> Self {
        file.leaves(vcpu, page);
        Self { file, vcpu }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.file.has_left(self.vcpu);
    }
}
