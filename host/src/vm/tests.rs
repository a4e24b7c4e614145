//! A fake hyp that keeps books of its own and can refuse any call once.

use super::*;
use crate::hypercall::{Exit, Results};
use std::{cell::RefCell, collections::BTreeSet};
use umbra_shared::interrupt::{Entry, States};
use umbra_shared::{
    call::{Call, Policy},
    exit::RunFlags,
    vl::Vq,
};

#[derive(Default)]
struct State {
    calls: usize,
    fail_at: Option<usize>,
    /// Pages that are hyp's.
    held: BTreeSet<u64>,
    shared: BTreeSet<u64>,
    in_use: BTreeSet<u64>,
    tables: u64,
    mapped: u64,
    vcpus: u64,
    alive: bool,
    dying: bool,
}

#[derive(Default)]
struct Fake(RefCell<State>);

/// Mappings that one table page of the fake lasts for: few, so that topups happen.
const START: Start = Start::At { entry: 0x8000_0000, argument: 0 };
const MAPPINGS_PER_TABLE: u64 = 2;

impl State {
    fn take(&mut self, pages: UntrustedPages) -> Result<(), HypError> {
        let all = (0..pages.count).map(|n| pages.start.0 + n * PAGE);
        if all.clone().any(|p| self.held.contains(&p) || self.shared.contains(&p)) {
            return Err(HypError::NotOwned);
        }
        self.held.extend(all);
        Ok(())
    }

    fn do_call(&mut self, call: &Call) -> Result<u64, HypError> {
        match *call {
            Call::VmCreate { pages, .. } => {
                assert!(!self.alive);
                self.take(pages)?;
                self.tables = pages.count;
                self.alive = true;
            }
            Call::VmTopup { pages, .. } => {
                self.take(pages)?;
                self.tables += pages.count;
            }
            Call::VmMap { page, .. } => {
                if self.mapped == self.tables * MAPPINGS_PER_TABLE {
                    return Err(HypError::NoTables);
                }
                self.take(UntrustedPages { start: page, count: 1 })?;
                self.mapped += 1;
            }
            Call::ShareFlagPage { page } => assert!(self.shared.insert(page.0)),
            Call::UnshareFlagPage { page } => {
                if self.in_use.contains(&page.0) {
                    return Err(HypError::Busy);
                }
                assert!(self.shared.remove(&page.0));
            }
            Call::VcpuCreate(config) => {
                assert!(self.shared.contains(&config.flag_page.0));
                self.take(config.pages)?;
                self.in_use.insert(config.flag_page.0);
                self.vcpus += 1;
                return Ok(self.vcpus - 1);
            }
            Call::VmDestroy { .. } => {
                assert!(!self.dying);
                self.dying = true;
                self.in_use.clear();
            }
            Call::VmReclaim { page, .. } => {
                assert!(self.dying && self.held.remove(&page.0));
                if self.held.is_empty() {
                    self.alive = false;
                }
                return Ok(self.held.len() as u64);
            }
            ref other => panic!("{other:?}"),
        }
        Ok(7)
    }
}

impl Hypervisor for Fake {
    fn call(&self, call: &Call) -> Result<Results, HypError> {
        let mut state = self.0.borrow_mut();
        state.calls += 1;
        if state.fail_at == Some(state.calls) {
            return Err(HypError::Limit);
        }
        state.do_call(call).map(|r| [r, 0, 0, 0, 0, 0, 0, 0])
    }

    fn vcpu_run(&self, _: RunFlags, _: [u64; 4]) -> Result<Exit, HypError> {
        Err(HypError::NotLoaded)
    }

    fn vcpu_run_with(
        &self,
        flags: RunFlags,
        answer: [u64; 4],
        _: &[Entry],
    ) -> Result<(Exit, States), HypError> {
        self.vcpu_run(flags, answer).map(|exit| (exit, States::default()))
    }
}

struct Supplier {
    next: u64,
    out: BTreeSet<u64>,
    /// Allocations until it has none left.
    left: usize,
}

impl Supplier {
    fn new(left: usize) -> Self {
        Self { next: 0x4000_0000, out: BTreeSet::new(), left }
    }
}

impl PageSupplier for Supplier {
    fn allocate(&mut self, count: u64) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        let first = self.next;
        // A gap, so that ranges don't merge by accident.
        self.next += (count + 1) * PAGE;
        self.out.extend((0..count).map(|n| first + n * PAGE));
        Some(first)
    }

    fn free(&mut self, first: u64, count: u64) {
        for n in 0..count {
            assert!(self.out.remove(&(first + n * PAGE)), "freed twice");
        }
    }

    fn flag_page(&mut self, pa: u64) -> &'static FlagShadowPage {
        assert!(self.out.contains(&pa));
        Box::leak(Box::new(FlagShadowPage::new()))
    }
}

const MEMORY_PAGES: u64 = 40;

fn settings(n: usize) -> VcpuSettings {
    VcpuSettings {
        index: VcpuIndex(n as u64),
        affinity: UntrustedAffinity(n as u64),
        features: VcpuFeatures::FPSIMD,
        start: START,
    }
}

/// Builds a VM with 40 pages of memory and two vCPUs, and takes it down, whatever happens between.
/// True if nothing was refused.
fn life<const RANGES: usize>(hyp: &Fake, supplier: &mut Supplier) -> bool {
    let config = VmConfig { policy: Policy::Lazy, protected: true };
    let Ok(mut vm) = Vm::<RANGES>::create(hyp, supplier, config) else { return false };
    let mut good = true;
    match supplier.allocate(MEMORY_PAGES) {
        Some(memory) => good &= vm.map(hyp, supplier, memory, MEMORY_PAGES, 0x8000_0000).is_ok(),
        None => good = false,
    }
    let mut vcpus = Vec::new();
    for (n, vq) in [Some(Vq::MAX), None].into_iter().enumerate() {
        let settings = VcpuSettings { features: VcpuFeatures::sve(vq), ..settings(n) };
        match vm.create_vcpu(hyp, supplier, settings) {
            Ok(vcpu) => vcpus.push(vcpu),
            Err(_) => good = false,
        }
    }
    let held = hyp.0.borrow().held.len() as u64;
    assert_eq!(vm.pages_out(), held, "books differ");
    let mut result = vm.destroy(hyp, supplier, vcpus);
    while let Err(failure) = result {
        good = false;
        assert!(matches!(failure.error, BuildError::Hyp(HypError::Limit)));
        let state = hyp.0.borrow().held.len() as u64;
        assert_eq!(failure.vm.pages_out(), state, "books differ");
        result = failure.vm.destroy(hyp, supplier, []);
    }
    good
}

#[test]
fn r16_every_call_fails_once_and_every_page_comes_back() {
    let count = {
        let hyp = Fake::default();
        let mut supplier = Supplier::new(usize::MAX);
        assert!(life::<16>(&hyp, &mut supplier));
        assert!(supplier.out.is_empty());
        hyp.0.borrow().calls
    };
    assert!(count > 100, "{count}");
    for fail_at in 1..=count {
        let hyp = Fake::default();
        hyp.0.borrow_mut().fail_at = Some(fail_at);
        let mut supplier = Supplier::new(usize::MAX);
        assert!(!life::<16>(&hyp, &mut supplier), "call {fail_at} was not noticed");
        assert!(supplier.out.is_empty(), "call {fail_at}: {:x?} lost", supplier.out);
        let state = hyp.0.borrow();
        assert!(state.held.is_empty() && state.shared.is_empty() && !state.alive);
    }
}

#[test]
fn r16_every_allocation_fails_once_and_every_page_comes_back() {
    for left in 0.. {
        let hyp = Fake::default();
        let mut supplier = Supplier::new(left);
        let good = life::<16>(&hyp, &mut supplier);
        assert!(supplier.out.is_empty(), "{left} allocations: {:x?} lost", supplier.out);
        if good {
            assert!(left > 6);
            break;
        }
    }
}

#[test]
fn full_books_refuse_and_lose_nothing() {
    let hyp = Fake::default();
    let mut supplier = Supplier::new(usize::MAX);
    assert!(!life::<2>(&hyp, &mut supplier));
    assert!(supplier.out.is_empty());
    assert!(hyp.0.borrow().held.is_empty());
}

#[test]
fn a_vm_with_vcpus_about_is_not_destroyed() {
    let hyp = Fake::default();
    let mut supplier = Supplier::new(usize::MAX);
    let mut vm = Vm::<16>::create(&hyp, &mut supplier, VmConfig::default()).unwrap();
    let vcpu = vm.create_vcpu(&hyp, &mut supplier, settings(0)).unwrap();
    let failure = vm.destroy(&hyp, &mut supplier, []).unwrap_err();
    assert_eq!(failure.error, BuildError::VcpusLeft);
    failure.vm.destroy(&hyp, &mut supplier, [vcpu]).unwrap();
    assert!(supplier.out.is_empty());
}
