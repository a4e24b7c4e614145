//! VMs: built from the OS's pages, and every page back at the end.
//!
//! Memory that is given to hyp can't be read any more, and whoever forgets that he gave it has lost
//! it. So a [`Vm`] keeps books: which ranges are out, and which flag-shadow pages are shared. A page is
//! entered *before* the call that donates it and struck out when the call was refused; at no point,
//! error paths included, does a page belong to nobody. [`Vm::destroy`] settles the books or comes back
//! with what is still open.
//!
//! Pages come from a [`PageSupplier`]. Everything hyp takes is physically contiguous per call. The books are lines
//! ([`Line`]) that the embedder gives: an array, a slice of its own, a vector. A line is 16 bytes and holds a
//! piece of memory, however large; neighbours share one.

mod books;

use crate::{fp::VcpuFp, hypercall::Hypervisor, vcpu::Vcpu};
use arrayvec::ArrayVec;
use books::Books;
use thiserror::Error;
use umbra_shared::{
    PAGE_SIZE,
    call::{
        MAX_PAGES_PER_CALL, MAX_VCPUS, Start, UntrustedAffinity, UntrustedPa, UntrustedPages,
        VM_PAGES, VcpuConfig, VcpuIndex, VmConfig, VmHandle,
    },
    error::Error as HypError,
    flags::FlagShadowPage,
    vcpu::VcpuFeatures,
};

pub use books::Line;

const PAGE: u64 = PAGE_SIZE as u64;

/// Pages for stage-2 tables that a VM is created with, and gets more of when it runs out.
const POOL_PAGES: u64 = 8;

const _: () = assert!(POOL_PAGES >= VM_PAGES && POOL_PAGES <= MAX_PAGES_PER_CALL);

/// The OS's page allocator.
pub trait PageSupplier {
    /// Takes `count` physically contiguous pages out of use and returns the address of the first.
    fn allocate(&mut self, count: u64) -> Option<u64>;

    /// Takes pages back. They are the host's again.
    fn free(&mut self, first: u64, count: u64);

    /// The allocated page at `pa` as an all-zero flag-shadow page. It stays allocated, and untouched
    /// by the OS, until [`PageSupplier::free`] gets it.
    fn flag_page(&mut self, pa: u64) -> &'static FlagShadowPage;
}

/// Why a VM could not be built or run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BuildError {
    /// The supplier has no pages.
    #[error("out of pages")]
    NoPages,
    /// The VM's books have no line left.
    #[error("the VM has no room to account for more pages")]
    NoRoom,
    /// Hyp refused.
    #[error("hyp refused: {0}")]
    Hyp(#[from] HypError),
    /// The page is none that the VM has.
    #[error("the VM does not have that page")]
    NotOut,
    /// The VM has the page already.
    #[error("the VM has that page already")]
    AlreadyOut,
    /// Not all vCPUs of the VM were handed in to be destroyed.
    #[error("vCPUs of the VM are still about")]
    VcpusLeft,
}

/// What stopped a call with many pages half-way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{error}, behind {done} pages")]
pub struct Interrupted {
    /// Pages, from the first one on, with which all was well.
    pub done: u64,
    /// What was wrong with the next one.
    pub error: BuildError,
}

impl From<Interrupted> for BuildError {
    fn from(interrupted: Interrupted) -> Self {
        interrupted.error
    }
}

/// What a vCPU is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuSettings {
    /// Its index in the VM, below [`MAX_VCPUS`]: one that no other has.
    pub index: VcpuIndex,
    /// Its affinity in the VM (MPIDR_EL1's Aff2, Aff1 and Aff0 in bits 23:0): one that no other has.
    pub affinity: UntrustedAffinity,
    /// What it has.
    pub features: VcpuFeatures,
    /// Where it starts. Of a protected VM vCPU 0 is on, and all others are off until the guest turns them
    /// on.
    pub start: Start,
}

/// A VM, with its books in `B`: as many lines bound the physically contiguous ranges that it is made of.
///
/// Dropping it forgets pages; [`Vm::destroy`] is the way out.
#[derive(Debug)]
#[must_use = "a VM holds pages until it is destroyed"]
pub struct Vm<B> {
    handle: VmHandle,
    config: VmConfig,
    out: Books<B>,
    /// Shared pages whose vCPU was never created, or has been handed back.
    flag_pages: ArrayVec<VcpuFp, MAX_VCPUS>,
    vcpus: usize,
    dying: bool,
}

/// A destruction that could not be finished: call [`Vm::destroy`] again.
#[derive(Debug)]
pub struct DestroyFailure<B> {
    /// The VM with everything still open.
    pub vm: Vm<B>,
    /// What stopped it.
    pub error: BuildError,
}

impl<B: AsRef<[Line]> + AsMut<[Line]>> Vm<B> {
    /// Creates a VM. What is in `lines` doesn't matter.
    ///
    /// # Errors
    ///
    /// [`BuildError`]; then nothing is out.
    pub fn create<H: Hypervisor, S: PageSupplier>(
        lines: B,
        hyp: &H,
        supplier: &mut S,
        config: VmConfig,
    ) -> Result<Self, BuildError> {
        let mut out = Books::new(lines);
        let first = supplier.allocate(POOL_PAGES).ok_or(BuildError::NoPages)?;
        let created = out
            .enter(first, POOL_PAGES)
            .and_then(|()| Ok(hyp.vm_create(first, POOL_PAGES, config)?));
        match created {
            Ok(handle) => Ok(Self {
                handle,
                config,
                out,
                flag_pages: ArrayVec::new(),
                vcpus: 0,
                dying: false,
            }),
            Err(error) => {
                supplier.free(first, POOL_PAGES);
                Err(error)
            }
        }
    }

    /// Its handle.
    pub fn handle(&self) -> VmHandle {
        self.handle
    }

    /// What it was created as.
    pub fn config(&self) -> VmConfig {
        self.config
    }

    /// Lines that its books have left: a piece of memory takes one at the most.
    pub fn lines_left(&self) -> usize {
        self.out.left()
    }

    /// Moves its books to storage of another size, and returns what they were in. The new lines come back if they are
    /// too few.
    pub fn move_books(&mut self, lines: B) -> Result<B, B> {
        self.out.move_to(lines)
    }

    /// Pages that hyp holds for it.
    pub fn pages_out(&self) -> u64 {
        self.out.pages()
    }

    /// Strikes out pages that were entered last and not taken.
    fn not_taken(&mut self, first: u64, count: u64) {
        let struck = self.out.strike(first, count);
        debug_assert_eq!(struck, Ok(()), "entered just now");
    }

    /// Allocates and donates pages with `donate`; if that is refused they are free again.
    fn donate<S: PageSupplier, T>(
        &mut self,
        supplier: &mut S,
        count: u64,
        donate: impl FnOnce(VmHandle, u64) -> Result<T, HypError>,
    ) -> Result<T, BuildError> {
        let first = supplier.allocate(count).ok_or(BuildError::NoPages)?;
        let entered = self.out.enter(first, count);
        let result = entered.and_then(|()| {
            donate(self.handle, first).map_err(|error| {
                self.not_taken(first, count);
                error.into()
            })
        });
        if result.is_err() {
            supplier.free(first, count);
        }
        result
    }

    /// Puts `count` pages at `first`, with their content, at guest-physical address `ipa` on. Where both addresses
    /// are multiples of 2 MiB they are blocks of a guest's tables.
    ///
    /// The pages, which came from `supplier`, are the VM's from here on, also if this fails half-way:
    /// those that could not be mapped go back to the supplier.
    ///
    /// # Errors
    ///
    /// [`BuildError::AlreadyOut`] if the VM has some of the pages already: then none goes anywhere.
    /// Any other [`BuildError`], and how many pages are in place.
    pub fn map<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
        first: u64,
        count: u64,
        ipa: u64,
    ) -> Result<(), Interrupted> {
        let mut done = 0;
        while done < count {
            if let Err(error) = self.out.enter(first + done * PAGE, count - done) {
                if error != BuildError::AlreadyOut {
                    supplier.free(first + done * PAGE, count - done);
                }
                return Err(Interrupted { done, error });
            }
            let refused = loop {
                if done == count {
                    return Ok(());
                }
                let (page, left) = (first + done * PAGE, count - done);
                // An address that wraps around is none to hyp either.
                let at = ipa.wrapping_add(done * PAGE);
                match hyp.vm_map_range(self.handle, page, left, at) {
                    Ok(more) => done += more,
                    Err(error) => break error,
                }
            };
            let (page, left) = (first + done * PAGE, count - done);
            // Before anything else takes the line that it may need.
            self.not_taken(page, left);
            let error = match refused {
                HypError::NoTables => match self.topup(hyp, supplier) {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                error => error.into(),
            };
            supplier.free(page, left);
            return Err(Interrupted { done, error });
        }
        Ok(())
    }

    /// More pages for stage-2 tables: for a guest's call that takes some ([`ExitHandler::tables`]).
    ///
    /// [`ExitHandler::tables`]: crate::vcpu::ExitHandler::tables
    pub fn topup<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
    ) -> Result<(), BuildError> {
        self.donate(supplier, POOL_PAGES, |vm, first| hyp.vm_topup(vm, first, POOL_PAGES))
    }

    /// A protected VM has its payload and all its vCPUs: from now on it runs. What is mapped later arrives empty,
    /// and no vCPU is made any more. A normal VM needs none of it, and nothing is done to it.
    pub fn seal<H: Hypervisor>(&mut self, hyp: &H) -> Result<(), BuildError> {
        if self.config.protected {
            hyp.vm_seal(self.handle)?;
        }
        Ok(())
    }

    /// Takes `count` pages from guest-physical address `ipa` on back from a normal guest, to the supplier.
    ///
    /// # Errors
    ///
    /// A [`BuildError`], and how many could be taken before.
    pub fn unmap<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
        ipa: u64,
        count: u64,
    ) -> Result<(), Interrupted> {
        let mut done = 0;
        while done < count {
            let at = ipa.wrapping_add(done * PAGE);
            match self.unmap_some(hyp, supplier, at, count - done) {
                Ok(more) => done += more,
                Err(error) => return Err(Interrupted { done, error }),
            }
        }
        Ok(())
    }

    /// Some of them, or none, if there is a table more for the next time.
    fn unmap_some<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
        ipa: u64,
        count: u64,
    ) -> Result<u64, BuildError> {
        // Pages from the middle of a run make two of it: room for that is made sure of first.
        if !self.out.have_room() {
            return Err(BuildError::NoRoom);
        }
        match hyp.vm_unmap_range(self.handle, ipa, count) {
            Ok((page, more)) => {
                self.out.strike(page, more)?;
                supplier.free(page, more);
                Ok(more)
            }
            // What is left of a block takes a table.
            Err(HypError::NoTables) => self.topup(hyp, supplier).map(|()| 0),
            Err(error) => Err(error.into()),
        }
    }

    /// The guest has given a page back ([`Reason::Relinquished`](umbra_shared::exit::Reason)): it goes
    /// to the supplier. [`BuildError::NoRoom`]: not yet, because the books have no line left for the rest
    /// of the run that it was in; it goes there when the VM is destroyed.
    pub fn returned<S: PageSupplier>(
        &mut self,
        supplier: &mut S,
        page: u64,
    ) -> Result<(), BuildError> {
        self.out.strike(page, 1)?;
        supplier.free(page, 1);
        Ok(())
    }

    /// Creates a vCPU.
    pub fn create_vcpu<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
        settings: VcpuSettings,
    ) -> Result<Vcpu, BuildError> {
        if self.vcpus == MAX_VCPUS || self.flag_pages.is_full() {
            return Err(BuildError::NoRoom);
        }
        let pa = supplier.allocate(1).ok_or(BuildError::NoPages)?;
        let page = supplier.flag_page(pa);
        let fp = match VcpuFp::vcpu_run_map_fp(hyp, page, pa) {
            Ok(fp) => fp,
            Err(error) => {
                supplier.free(pa, 1);
                return Err(error.into());
            }
        };
        let count = settings.features.pages();
        let created = self.donate(supplier, count, |vm, first| {
            hyp.vcpu_create(VcpuConfig {
                vm,
                index: settings.index,
                affinity: settings.affinity,
                pages: UntrustedPages { start: UntrustedPa(first), count },
                flag_page: UntrustedPa(pa),
                features: settings.features.into(),
                start: settings.start,
            })
        });
        match created {
            Ok(()) => {
                self.vcpus += 1;
                Ok(Vcpu::new(self.handle, settings.index, fp, settings.features))
            }
            Err(error) => {
                match fp.vcpu_run_unmap_fp(hyp) {
                    Ok(pa) => supplier.free(pa, 1),
                    // Still shared: it stays in the books, and destroy tries again.
                    Err((fp, _)) => self.flag_pages.push(fp),
                }
                Err(error)
            }
        }
    }

    /// Takes the VM down: every page is reclaimed and goes back to the supplier. All its vCPUs have
    /// to be handed in, for their flag-shadow pages go too.
    #[allow(clippy::result_large_err, reason = "there is no heap to put it on")]
    pub fn destroy<H: Hypervisor, S: PageSupplier>(
        mut self,
        hyp: &H,
        supplier: &mut S,
        vcpus: impl IntoIterator<Item = Vcpu>,
    ) -> Result<(), DestroyFailure<B>> {
        for vcpu in vcpus {
            if vcpu.vm() == self.handle {
                self.vcpus -= 1;
                self.flag_pages.push(vcpu.into_fp());
            }
        }
        match self.settle(hyp, supplier) {
            Ok(()) => Ok(()),
            Err(error) => Err(DestroyFailure { vm: self, error }),
        }
    }

    fn settle<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
    ) -> Result<(), BuildError> {
        if self.vcpus != 0 {
            return Err(BuildError::VcpusLeft);
        }
        if !self.dying {
            match hyp.vm_destroy(self.handle) {
                // DYING: somebody else has begun it.
                Ok(()) | Err(HypError::Dying) => self.dying = true,
                Err(error) => return Err(error.into()),
            }
        }
        while let Some((first, count)) = self.out.first() {
            let back = match hyp.vm_reclaim_range(self.handle, first, count) {
                Ok((_, back)) => back,
                // The guest gave it back when the books had no room to say so.
                Err(HypError::NotOwned) => 1,
                Err(error) => return Err(error.into()),
            };
            // From a run's beginning: no line more.
            self.out.strike(first, back)?;
            supplier.free(first, back);
        }
        while let Some(fp) = self.flag_pages.pop() {
            match fp.vcpu_run_unmap_fp(hyp) {
                Ok(pa) => supplier.free(pa, 1),
                Err((fp, error)) => {
                    self.flag_pages.push(fp);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
