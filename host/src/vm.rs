//! VMs: built from the OS's pages, and every page back at the end.
//!
//! Memory that is given to hyp can't be read any more, and whoever forgets that he gave it has lost
//! it. So a [`Vm`] keeps books: which ranges are out, and which flag-shadow pages are shared. A page is
//! entered *before* the call that donates it and struck out when the call was refused; at no point,
//! error paths included, does a page belong to nobody. [`Vm::destroy`] settles the books or comes back
//! with what is still open.
//!
//! Pages come from a [`PageSupplier`]. Everything hyp takes is physically contiguous per call.

use crate::{fp::VcpuFp, hypercall::Hypervisor, vcpu::Vcpu};
use arrayvec::ArrayVec;
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
    /// Not all vCPUs of the VM were handed in to be destroyed.
    #[error("vCPUs of the VM are still about")]
    VcpusLeft,
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

/// The pages of a VM that hyp holds: `[first, first + count)` pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Out {
    first: u64,
    count: u64,
}

/// A VM. `RANGES` bounds the physically contiguous ranges it is made of.
///
/// Dropping it forgets pages; [`Vm::destroy`] is the way out.
#[derive(Debug)]
#[must_use = "a VM holds pages until it is destroyed"]
pub struct Vm<const RANGES: usize> {
    handle: VmHandle,
    config: VmConfig,
    out: ArrayVec<Out, RANGES>,
    /// Shared pages whose vCPU was never created, or has been handed back.
    flag_pages: ArrayVec<VcpuFp, MAX_VCPUS>,
    vcpus: usize,
    dying: bool,
}

/// A destruction that could not be finished: call [`Vm::destroy`] again.
#[derive(Debug)]
pub struct DestroyFailure<const RANGES: usize> {
    /// The VM with everything still open.
    pub vm: Vm<RANGES>,
    /// What stopped it.
    pub error: BuildError,
}

impl<const RANGES: usize> Vm<RANGES> {
    /// Creates a VM.
    pub fn create<H: Hypervisor, S: PageSupplier>(
        hyp: &H,
        supplier: &mut S,
        config: VmConfig,
    ) -> Result<Self, BuildError> {
        const { assert!(RANGES > 0) };
        let first = supplier.allocate(POOL_PAGES).ok_or(BuildError::NoPages)?;
        match hyp.vm_create(first, POOL_PAGES, config) {
            Ok(handle) => {
                let mut out = ArrayVec::new();
                out.push(Out { first, count: POOL_PAGES });
                Ok(Self {
                    handle,
                    config,
                    out,
                    flag_pages: ArrayVec::new(),
                    vcpus: 0,
                    dying: false,
                })
            }
            Err(error) => {
                supplier.free(first, POOL_PAGES);
                Err(error.into())
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

    /// Pages that hyp holds for it.
    pub fn pages_out(&self) -> u64 {
        self.out.iter().map(|range| range.count).sum()
    }

    /// Enters pages that are about to be donated. Full books refuse.
    fn enter(&mut self, first: u64, count: u64) -> Result<(), BuildError> {
        if let Some(last) = self.out.last_mut()
            && last.first + last.count * PAGE == first
        {
            last.count += count;
            return Ok(());
        }
        self.out.try_push(Out { first, count }).map_err(|_| BuildError::NoRoom)
    }

    /// Strikes out the pages entered last: they were not taken.
    fn strike_last(&mut self, count: u64) {
        if let Some(last) = self.out.last_mut() {
            last.count -= count;
            if last.count == 0 {
                self.out.pop();
            }
        }
    }

    /// Allocates and donates pages with `donate`; if that is refused they are free again.
    fn donate<S: PageSupplier, T>(
        &mut self,
        supplier: &mut S,
        count: u64,
        donate: impl FnOnce(VmHandle, u64) -> Result<T, HypError>,
    ) -> Result<T, BuildError> {
        let first = supplier.allocate(count).ok_or(BuildError::NoPages)?;
        let entered = self.enter(first, count);
        let result = entered.and_then(|()| {
            donate(self.handle, first).map_err(|error| {
                self.strike_last(count);
                error.into()
            })
        });
        if result.is_err() {
            supplier.free(first, count);
        }
        result
    }

    /// Puts `count` pages at `first`, with their content, at guest-physical address `ipa` on.
    ///
    /// The pages, which came from `supplier`, are the VM's from here on, also if this fails half-way:
    /// those that could not be mapped go back to the supplier.
    pub fn map<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
        first: u64,
        count: u64,
        ipa: u64,
    ) -> Result<(), BuildError> {
        for n in 0..count {
            let page = first + n * PAGE;
            if let Err(error) = self.map_page(hyp, supplier, page, ipa + n * PAGE) {
                supplier.free(page, count - n);
                return Err(error);
            }
        }
        Ok(())
    }

    fn map_page<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
        page: u64,
        ipa: u64,
    ) -> Result<(), BuildError> {
        loop {
            self.enter(page, 1)?;
            match hyp.vm_map(self.handle, page, ipa) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.strike_last(1);
                    if error != HypError::NoTables {
                        return Err(error.into());
                    }
                    self.topup(hyp, supplier)?;
                }
            }
        }
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

    /// Takes the page at guest-physical address `ipa` back from a normal guest, to the supplier.
    pub fn unmap<H: Hypervisor, S: PageSupplier>(
        &mut self,
        hyp: &H,
        supplier: &mut S,
        ipa: u64,
    ) -> Result<(), BuildError> {
        // A page from the middle of a range makes two of it: room for that is made sure of first.
        if self.out.is_full() {
            return Err(BuildError::NoRoom);
        }
        let page = hyp.vm_unmap(self.handle, ipa)?;
        self.returned(supplier, page)
    }

    /// The guest has given a page back ([`Reason::Relinquished`](umbra_shared::exit::Reason)): it goes
    /// to the supplier. [`BuildError::NoRoom`]: not yet, because the books have no line left for the rest
    /// of the range that it was in; it goes there when the VM is destroyed.
    pub fn returned<S: PageSupplier>(
        &mut self,
        supplier: &mut S,
        page: u64,
    ) -> Result<(), BuildError> {
        let holds = |range: &Out| (range.first..range.first + range.count * PAGE).contains(&page);
        let Some(at) = self.out.iter().position(holds) else { return Err(BuildError::NotOut) };
        let Out { first, count } = self.out[at];
        let before = (page - first) / PAGE;
        let after = count - before - 1;
        if before != 0 && after != 0 && self.out.is_full() {
            return Err(BuildError::NoRoom);
        }
        self.out.remove(at);
        for rest in [Out { first: page + PAGE, count: after }, Out { first, count: before }] {
            if rest.count != 0 {
                self.out.insert(at, rest);
            }
        }
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
    ) -> Result<(), DestroyFailure<RANGES>> {
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
        while let Some(last) = self.out.last_mut() {
            let page = last.first + (last.count - 1) * PAGE;
            match hyp.vm_reclaim(self.handle, page) {
                // NOT_OWNED: the guest gave it back when the books had no room to say so.
                Ok(_) | Err(HypError::NotOwned) => {}
                Err(error) => return Err(error.into()),
            }
            self.strike_last(1);
            supplier.free(page, 1);
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
