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
    /// The VM is being built: by their numbers, the pages that there are.
    Built(Vec<Option<Page>>),
    /// It is about to run: nobody finds those any more.
    Closed(Vec<Option<Page>>),
    /// It runs: what there is hyp knows.
    Guests,
    /// It runs no more, and nobody finds anything.
    Ended,
}

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
    /// its VM runs, and has to say so.
    pub fn new(create: &CreateGuestMemfd) -> Result<Self, Errno> {
        const BOTH: u64 = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
        let CreateGuestMemfd { size, flags, .. } = *create;
        // What can be addressed with a file's offset.
        let size_is_good = size != 0 && size.is_multiple_of(PAGE) && size <= i64::MAX as u64;
        if !size_is_good || flags != 0 && flags != BOTH {
            return Err(Errno::EINVAL);
        }
        let pages = size / PAGE;
        let mut none = with_room(usize::try_from(pages).map_err(|_| Errno::ENOMEM)?)?;
        none.extend((0..pages).map(|_| None));
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

    /// Takes pages out that there are, from number `from` on and below `end`, which lie one behind the other in memory: the number
    /// of the first, where it is, and how many. They are the VM's to have from here on. The file has been closed.
    pub fn take(&self, from: u64, end: u64) -> Option<(u64, u64, u64)> {
        let mut content = self.content.lock();
        let Phase::Closed(pages) = &mut content.phase else { return None };
        let some = pages.get_mut(from as usize..end as usize)?;
        let skipped = some.iter().position(Option::is_some)?;
        let some = &mut some[skipped..];
        let first = some[0].as_ref()?.pa();
        let is_next = |(n, page): (usize, &Option<Page>)| {
            page.as_ref().is_some_and(|page| page.pa() == first + n as u64 * PAGE)
        };
        let count = some.iter().enumerate().take_while(|&(n, page)| is_next((n, page))).count();
        Page::give(some[..count].iter_mut().filter_map(Option::take));
        Some((from + skipped as u64, first, count as u64))
    }

    /// What is not taken now is nobody's: its VM runs.
    pub fn run(&self) {
        self.content.lock().phase = Phase::Guests;
    }

    /// The VM ends, whoever has mapped it.
    pub fn end(&self) {
        self.content.lock().phase = Phase::Ended;
        self.mappings.unmap(0, self.pages);
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
        // Held until it is mapped: who takes the page away unmaps it after that.
        let mut content = self.content.lock();
        let Content { phase, slots, leaving } = &mut *content;
        let pa = match phase {
            Phase::Built(pages) => populate(pages, page),
            Phase::Guests if leaving.contains(&page) => None,
            Phase::Guests => shared(slots, page),
            Phase::Closed(_) | Phase::Ended => None,
        };
        // SAFETY: `close`, `leaves` and `end` unmap it, and none of them has begun with this page.
        pa.map_or(0, |pa| unsafe { fault.finish(pa) })
    }
}

/// A page that there has to be. All of the 2 MiB around it come with it, so that what the payload is doesn't depend on how much
/// memory lies one behind the other: they are blocks of the guest's where they do.
fn populate(pages: &mut [Option<Page>], page: u64) -> Option<u64> {
    let page = usize::try_from(page).ok().filter(|&page| page < pages.len())?;
    if pages[page].is_none() {
        let block = BLOCK_PAGES as usize;
        let first = page / block * block;
        let end = (first + block).min(pages.len());
        let around = &mut pages[first..end];
        let whole = if around.len() == block { Pages::alloc(BLOCK_PAGES) } else { None };
        match whole {
            Some(whole) => around.iter_mut().zip(whole).for_each(|(page, new)| *page = Some(new)),
            None => {
                for n in 0..around.len() {
                    let Some(new) = Pages::alloc(1).and_then(|mut one| one.next()) else {
                        around.iter_mut().for_each(|page| *page = None);
                        return None;
                    };
                    around[n] = Some(new);
                }
            }
        }
    }
    pages[page].as_ref().map(Page::pa)
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
