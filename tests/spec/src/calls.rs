//! Every hypercall: what it must answer, and what it changes.

use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{
    Call, MAX_PAGES_PER_CALL, NO_PAGE, Start, UntrustedIpa, UntrustedPages, VM_PAGES, VcpuConfig,
};
use umbra_shared::error::Error;
use umbra_shared::record::PageState;
use umbra_shared::vcpu::{UntrustedFeatures, VcpuFeatures};
use umbra_shared::vl::{Vq, VqSet};

use crate::memory::{Changes, Owner};
use crate::vm::{self, Life, Power, Vcpu};
use crate::{Spec, VCPUS};

/// What a call must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// x0.
    pub result: Result<(), Error>,
    /// x1, where the specification has an opinion.
    pub x1: Option<u64>,
    /// x2, likewise.
    pub x2: Option<u64>,
    /// Pages whose states it changes.
    pub changes: Changes,
}

impl Outcome {
    /// It does what it is asked, and changes no page.
    pub(crate) fn ok() -> Self {
        Self { result: Ok(()), x1: None, x2: None, changes: Changes::new() }
    }

    /// It is refused, and nothing changes.
    pub(crate) fn refused(error: Error) -> Self {
        Self { result: Err(error), ..Self::ok() }
    }

    fn with(x1: u64) -> Self {
        Self { x1: Some(x1), ..Self::ok() }
    }

    fn changing(changes: Changes) -> Self {
        Self { changes, ..Self::ok() }
    }
}

/// What hyp has answered, where there is a choice.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// It refused the call because there is no slot for another VM.
    pub no_slot: bool,
    /// x1.
    pub x1: u64,
    /// It refused to show a system register, or to give it a value.
    pub register: Option<Error>,
    /// x2.
    pub x2: u64,
}

/// What VCPU_CREATE and VCPU_RESET take as a start.
fn check_start(features: VcpuFeatures, start: Start) -> Result<(), Error> {
    match start {
        Start::Off => Ok(()),
        Start::At { entry, argument } => {
            let wide = (entry | argument) > u64::from(u32::MAX);
            if entry % 4 != 0 || features.aarch32 && wide {
                return Err(Error::InvalidArgument);
            }
            Ok(())
        }
    }
}

fn one(page: u64, owner: Owner) -> Changes {
    Changes::from([(page, owner)])
}

fn all(pages: std::ops::Range<u64>, owner: Owner) -> Changes {
    pages.map(|page| (page, owner)).collect()
}

impl Spec {
    /// A call of the host's on a CPU. A refused one changes nothing, but for VM_DESTROY's BUSY.
    pub fn call(&mut self, cpu: usize, call: &Call, choice: Choice) -> Outcome {
        let result = self.perform(cpu, call, choice);
        match result {
            Ok(outcome) => {
                self.memory.apply(&outcome.changes);
                outcome
            }
            Err(error) => {
                let mut outcome = Outcome::refused(error);
                // It says how many it takes.
                outcome.x1 = match (error, call) {
                    (Error::TooFewPages, Call::VmCreate { .. }) => Some(VM_PAGES),
                    (Error::TooFewPages, Call::VcpuCreate(config)) => {
                        Some(self.features(config.features).map_or(0, VcpuFeatures::pages))
                    }
                    _ => Some(0),
                };
                outcome
            }
        }
    }

    fn perform(&mut self, cpu: usize, call: &Call, choice: Choice) -> Result<Outcome, Error> {
        match *call {
            Call::Version => Ok(Outcome::ok()),
            Call::VlInfo { cpu: None } => Ok(Outcome::with(self.platform.guest_vqs.bits().into())),
            Call::VlInfo { cpu: Some(n) } | Call::Stats { cpu: n, .. } => {
                if n < self.platform.cpus as u64 { Ok(Outcome::ok()) } else { Err(Error::BadCpu) }
            }
            Call::NextSharedPage { .. } => Ok(self.next_shared_page(choice)),
            Call::ShareFlagPage { page } => {
                let page = self.memory.lookup(page.0)?;
                self.memory.require_host(page)?;
                Ok(Outcome::changing(one(page, Owner::of(PageState::FlagPage, 0))))
            }
            Call::UnshareFlagPage { page } => {
                let page = self.memory.lookup(page.0)?;
                self.memory.require_free_flag_page(page)?;
                Ok(Outcome::changing(one(page, Owner::HOST)))
            }
            Call::VmCreate { pages, config } => {
                let free = self.vms.iter().filter(|vm| vm.life == Life::Free).count();
                // Slots are asked one by one: others may come and go meanwhile.
                if free == 0 || (choice.no_slot && free <= self.platform.cpus) {
                    return Err(Error::Limit);
                }
                if config.protected && !self.platform.protects {
                    return Err(Error::NotIsolated);
                }
                if pages.count < VM_PAGES {
                    return Err(Error::TooFewPages);
                }
                // Which slot it is, and so whose the pages are, is hyp's choice.
                let slot = vm::slot(umbra_shared::call::VmHandle(choice.x1)).unwrap_or(0);
                let changes = self.donate(pages, slot)?;
                let policy =
                    if config.protected { self.platform.protected_policy } else { config.policy };
                let vm = &mut self.vms[usize::from(slot)];
                if vm.life != Life::Free {
                    // A handle of a VM that is there already: no answer can be right.
                    return Ok(Outcome::with(!choice.x1));
                }
                *vm = vm::Vm {
                    life: Life::Alive,
                    generation: vm.generation + 1,
                    protected: config.protected,
                    junk: config.junk,
                    policy,
                    table_pages: pages.count,
                    pages_out: pages.count,
                    ..vm::Vm::default()
                };
                let handle = vm::handle(slot, vm.generation);
                Ok(Outcome { x1: Some(handle.0), ..Outcome::changing(changes) })
            }
            Call::VmTopup { vm, pages } => {
                let slot = vm::slot(vm)?;
                self.vms[usize::from(slot)].check_alive(vm)?;
                let changes = self.donate(pages, slot)?;
                let vm = &mut self.vms[usize::from(slot)];
                vm.table_pages += pages.count;
                vm.pages_out += pages.count;
                Ok(Outcome::changing(changes))
            }
            Call::VmMap { vm: handle, pages, ipa } => {
                let slot = vm::slot(handle)?;
                let vm = &self.vms[usize::from(slot)];
                vm.check_alive(handle)?;
                self.check_ipa(ipa)?;
                if vm.protected && self.private_address(ipa.0).is_some() {
                    return Err(Error::BadIpa);
                }
                let count = self.in_block(ipa.0, pages.count)?;
                let end = ipa.0 + count * PAGE_SIZE as u64;
                let in_use = vm.maps.range(ipa.0..end).next().is_some();
                let mut marked = vm.enrolled.range(ipa.0..end).chain(vm.aliased.range(ipa.0..end));
                if in_use || marked.next().is_some() {
                    return Err(Error::IpaInUse);
                }
                // What a guest has said is EMPTY stays so; a range ends where it is.
                let count = match vm.said_until(ipa.0) {
                    Some(end) => count.min((end - ipa.0) / PAGE_SIZE as u64),
                    None if vm.interface == Some(vm::Interface::Rsi) => {
                        return Err(Error::IpaInUse);
                    }
                    None => count,
                };
                if !vm.has_tables() {
                    return Err(Error::NoTables);
                }
                let range = self.memory.range(UntrustedPages { count, ..pages })?;
                range.clone().try_for_each(|page| self.memory.require_host(page))?;
                let state =
                    if vm.protected { PageState::Guest } else { PageState::SharedWithGuest };
                // What keeps its content is measured, page by page.
                let stretch = if vm.protected && !vm.sealed { 1 } else { self.platform.stretch };
                let done = Self::done(stretch, count, choice.x1);
                let first = range.start;
                self.vms[usize::from(slot)].map(&self.platform, ipa.0, first, done);
                let changes = all(first..first + done, Owner::of(state, slot));
                Ok(Outcome { x1: Some(done), ..Outcome::changing(changes) })
            }
            Call::VmUnmap { vm: handle, ipa, count } => {
                let slot = vm::slot(handle)?;
                let vm = &self.vms[usize::from(slot)];
                vm.check_alive(handle)?;
                self.check_ipa(ipa)?;
                let count = self.in_block(ipa.0, count)?;
                let page = *vm.maps.get(&ipa.0).ok_or(Error::NotMapped)?;
                if vm.protected {
                    return Err(Error::NotOwned);
                }
                let done = vm.run(ipa.0, count);
                if !vm.has_tables_to_unmap(&self.platform, ipa.0, done) {
                    return Err(Error::NoTables);
                }
                self.vms[usize::from(slot)].unmap(&self.platform, ipa.0, done);
                let changes = all(page..page + done, Owner::HOST);
                let x1 = Some(page * PAGE_SIZE as u64);
                Ok(Outcome { x1, x2: Some(done), ..Outcome::changing(changes) })
            }
            Call::VmSeal { vm: handle } => {
                let vm = &mut self.vms[usize::from(vm::slot(handle)?)];
                vm.check_alive(handle)?;
                match (vm.protected, vm.sealed, vm.vcpus.contains_key(&0)) {
                    (false, ..) => Err(Error::NotProtected),
                    (true, true, _) => Err(Error::Sealed),
                    (true, false, false) => Err(Error::BadVcpu),
                    (true, false, true) => {
                        vm.sealed = true;
                        Ok(Outcome::ok())
                    }
                }
            }
            Call::VmLookup { vm: handle, ipa } => {
                let vm = &self.vms[usize::from(vm::slot(handle)?)];
                vm.check_alive(handle)?;
                self.check_ipa(ipa)?;
                let (alias, protected) = (self.platform.alias_bit, vm.protected);
                if protected && ipa.0 & alias != 0 {
                    return Err(Error::BadIpa);
                }
                let at = if vm.aliased.contains(&ipa.0) { ipa.0 | alias } else { ipa.0 };
                let page = *vm.maps.get(&at).ok_or(Error::NotMapped)?;
                let shared = self.memory.get(page).is_some_and(Owner::host_has_access);
                let x1 = Some(page * PAGE_SIZE as u64);
                Ok(Outcome { x1, x2: Some(shared.into()), ..Outcome::ok() })
            }
            Call::VmDestroy { vm: handle } => {
                let vm = &mut self.vms[usize::from(vm::slot(handle)?)];
                vm.check(handle)?;
                if vm.life == Life::Dying {
                    return Err(Error::Dying);
                }
                if vm.vcpus.values().any(|vcpu| vcpu.loaded_on.is_some()) {
                    vm.life = Life::Closing;
                    return Err(Error::Busy);
                }
                vm.life = Life::Dying;
                vm.maps.clear();
                vm.blocks.clear();
                vm.aliased.clear();
                vm.ram.clear();
                let unused = Owner::of(PageState::FlagPage, 0);
                let vcpus = core::mem::take(&mut vm.vcpus);
                let changes = vcpus.values().map(|vcpu| (vcpu.flag_page, unused)).collect();
                Ok(Outcome::changing(changes))
            }
            Call::VmReclaim { vm: handle, pages } => {
                let slot = vm::slot(handle)?;
                let vm = &self.vms[usize::from(slot)];
                vm.check(handle)?;
                if vm.life != Life::Dying {
                    return Err(Error::NotDying);
                }
                let count = self.in_block(pages.start.0, pages.count)?;
                let range = self.memory.range(UntrustedPages { count, ..pages })?;
                let is_its = |page: &u64| {
                    let owner = self.memory.get(*page).unwrap_or(Owner::HOST);
                    let of_a_vm = matches!(
                        owner.state,
                        PageState::Vm
                            | PageState::Guest
                            | PageState::SharedWithGuest
                            | PageState::SharedByGuest
                    );
                    of_a_vm && owner.vm == slot
                };
                let theirs = range.clone().take_while(is_its).count() as u64;
                if theirs == 0 {
                    return Err(Error::NotOwned);
                }
                let (told, stretches) = (choice.x2, self.stretches(range.start, theirs));
                let done = if stretches.contains(&told) { told } else { theirs };
                let vm = &mut self.vms[usize::from(slot)];
                vm.pages_out -= done;
                if vm.pages_out == 0 {
                    vm.life = Life::Free;
                }
                let changes = all(range.start..range.start + done, Owner::HOST);
                let x1 = Some(vm.pages_out);
                Ok(Outcome { x1, x2: Some(done), ..Outcome::changing(changes) })
            }
            Call::VcpuCreate(config) => self.create_vcpu(&config),
            Call::VcpuLoad { vm: handle, vcpu } => {
                if self.cpus[cpu].loaded.is_some() {
                    return Err(Error::Busy);
                }
                let slot = vm::slot(handle)?;
                let vm = &mut self.vms[usize::from(slot)];
                vm.check_alive(handle)?;
                if vm.protected && !vm.sealed {
                    return Err(Error::NotSealed);
                }
                let index = usize::try_from(vcpu.0).map_err(|_| Error::BadVcpu)?;
                let vcpu = vm.vcpus.get_mut(&index).ok_or(Error::BadVcpu)?;
                if vcpu.loaded_on.is_some() {
                    return Err(Error::Busy);
                }
                if vm.ended || vcpu.power == Power::Off {
                    return Err(Error::PoweredOff);
                }
                // What a guest may select below its clamp must be the same on every CPU.
                let (cpu_has, guests) = (&self.cpus[cpu], &self.platform);
                let vqs = VqSet::common([cpu_has.vqs, guests.guest_vqs]);
                let svqs = VqSet::common([cpu_has.svqs, guests.guest_svqs]);
                let lacks =
                    |wanted: Option<Vq>, here: VqSet| wanted.is_some_and(|vq| !here.contains(vq));
                if lacks(vcpu.features.vq, vqs) || lacks(vcpu.features.svq, svqs) {
                    return Err(Error::VlMismatch);
                }
                vcpu.loaded_on = Some(cpu);
                if vcpu.power == Power::Pending {
                    *vcpu = vcpu.anew(Power::On);
                }
                self.cpus[cpu].loaded = Some((slot, index));
                Ok(Outcome::ok())
            }
            Call::VcpuPut => {
                if self.put(cpu) {
                    Ok(Outcome::ok())
                } else {
                    Err(Error::NotLoaded)
                }
            }
            Call::VcpuRead { vm, vcpu, register } => {
                self.register(vm, vcpu, register, None, choice)
            }
            Call::VcpuWrite { vm, vcpu, register, value } => {
                self.register(vm, vcpu, register, Some(value), choice)
            }
            Call::VcpuReset { vm: handle, vcpu, start } => {
                let vm = &mut self.vms[usize::from(vm::slot(handle)?)];
                vm.check_alive(handle)?;
                if vm.protected {
                    return Err(Error::Protected);
                }
                let index = usize::try_from(vcpu.0).map_err(|_| Error::BadVcpu)?;
                let vcpu = vm.vcpus.get_mut(&index).ok_or(Error::BadVcpu)?;
                if vcpu.loaded_on.is_some() {
                    return Err(Error::Busy);
                }
                check_start(vcpu.features, start)?;
                *vcpu = match start {
                    Start::At { .. } => vcpu.anew(Power::On),
                    Start::Off => Vcpu { power: Power::Off, ..vcpu.clone() },
                };
                Ok(Outcome::ok())
            }
        }
    }

    /// The vCPU loaded on a CPU is loaded no longer; whether there was one.
    pub fn put(&mut self, cpu: usize) -> bool {
        let Some((slot, index)) = self.cpus[cpu].loaded.take() else { return false };
        if let Some(vcpu) = self.vms[usize::from(slot)].vcpus.get_mut(&index) {
            vcpu.loaded_on = None;
        }
        self.cpus[cpu].fp = self.cpus[cpu].fp.map(crate::fp::Fp::put);
        true
    }

    pub(crate) fn check_ipa(&self, ipa: UntrustedIpa) -> Result<(), Error> {
        if !ipa.0.is_multiple_of(PAGE_SIZE as u64) {
            Err(Error::Unaligned)
        } else if ipa.0 >> self.platform.ipa_bits != 0 {
            Err(Error::BadIpa)
        } else {
            Ok(())
        }
    }

    /// As many of `count` pages from an address on as are in its block.
    fn in_block(&self, address: u64, count: u64) -> Result<u64, Error> {
        let block = self.platform.block_pages;
        let left = block - address / PAGE_SIZE as u64 % block;
        if count == 0 { Err(Error::InvalidArgument) } else { Ok(count.min(left)) }
    }

    /// What hyp may have done of `count` pages: all, or whole stretches, if an interrupt waited.
    fn done(stretch: u64, count: u64, told: u64) -> u64 {
        let stopped = told != 0 && told < count && told.is_multiple_of(stretch);
        if stopped { told } else { count }
    }

    /// Where hyp may stop that reclaims these pages. Where the next page has been something else, that counts as one more.
    fn stretches(&self, first: u64, count: u64) -> Vec<u64> {
        let state = |n| self.memory.get(first + n).map(|owner| owner.state);
        let is_other = |n| state(n) != state(n - 1);
        let (mut stops, mut cost) = (Vec::new(), 1);
        for n in 1..count {
            cost += u64::from(is_other(n));
            if cost >= self.platform.stretch {
                stops.push(n);
                cost = 0;
            }
            cost += 1;
        }
        stops
    }

    fn donate(&self, pages: UntrustedPages, slot: u8) -> Result<Changes, Error> {
        if pages.count > MAX_PAGES_PER_CALL {
            return Err(Error::InvalidArgument);
        }
        self.memory.donate(pages, slot)
    }

    /// I6: whatever page of the host's hyp has mapped is a flag-shadow page.
    fn next_shared_page(&self, choice: Choice) -> Outcome {
        if choice.x1 == NO_PAGE {
            return Outcome::ok();
        }
        let state = self.memory.lookup(choice.x1).ok().and_then(|page| self.memory.get(page));
        match state.map(|owner| owner.state) {
            Some(PageState::FlagPage | PageState::FlagPageUsed) => Outcome::ok(),
            _ => Outcome::with(NO_PAGE),
        }
    }

    /// What a vCPU has of which this was asked.
    fn features(&self, asked: UntrustedFeatures) -> Result<VcpuFeatures, Error> {
        let length = |bytes, available: VqSet, none| match Vq::from_vl(bytes) {
            None if bytes == 0 => Ok(None),
            _ if available.is_empty() => Err(none),
            Some(vq) if available.contains(vq) => Ok(Some(vq)),
            _ => Err(Error::BadVl),
        };
        if asked.has_reserved() {
            return Err(Error::InvalidArgument);
        }
        let features = VcpuFeatures {
            vq: length(asked.vl_bytes(), self.platform.guest_vqs, Error::NoSve)?,
            svq: length(asked.svl_bytes(), self.platform.guest_svqs, Error::NoSme)?,
            aarch32: asked.aarch32(),
        };
        match features {
            VcpuFeatures { aarch32: false, .. } => Ok(features),
            VcpuFeatures { vq: None, svq: None, .. } if self.platform.aarch32 => Ok(features),
            VcpuFeatures { vq: None, svq: None, .. } => Err(Error::NoAarch32),
            _ => Err(Error::InvalidArgument),
        }
    }

    fn create_vcpu(&mut self, config: &VcpuConfig) -> Result<Outcome, Error> {
        let slot = vm::slot(config.vm)?;
        let vm = &self.vms[usize::from(slot)];
        vm.check_alive(config.vm)?;
        if vm.sealed {
            return Err(Error::Sealed);
        }
        let (index, affinity) = (config.index.0 as usize, config.affinity.0);
        if index >= VCPUS {
            return Err(Error::BadVcpu);
        }
        let taken = vm.vcpus.values().any(|vcpu| vcpu.affinity == affinity);
        if taken || vm.vcpus.contains_key(&index) {
            return Err(Error::VcpuInUse);
        }
        let features = self.features(config.features)?;
        if config.pages.count < features.pages() {
            return Err(Error::TooFewPages);
        }
        check_start(features, config.start)?;
        let off = config.start == Start::Off;
        if config.pages.count > features.pages() || vm.protected && off == (index == 0) {
            return Err(Error::InvalidArgument);
        }
        self.memory.range(config.pages)?;
        let flag_page = self.memory.lookup(config.flag_page.0)?;
        let mut changes = self.memory.donate(config.pages, slot)?;
        self.memory.require_free_flag_page(flag_page)?;
        changes.insert(flag_page, Owner::of(PageState::FlagPageUsed, 0));
        let vm = &mut self.vms[usize::from(slot)];
        let power = if off { Power::Off } else { Power::On };
        vm.vcpus.insert(index, Vcpu { flag_page, features, affinity, power, ..Vcpu::default() });
        vm.pages_out += config.pages.count;
        Ok(Outcome::changing(changes))
    }
}
