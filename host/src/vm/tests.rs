//! A fake hyp that keeps books of its own and can refuse any call once.

use super::*;
use crate::hypercall::{Exit, Results};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};
use umbra_shared::interrupt::{Entry, States};
use umbra_shared::{
    call::{Call, UntrustedPages},
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
    /// Guest address to page.
    memory: BTreeMap<u64, u64>,
    split: bool,
    vcpus: u64,
    alive: bool,
    dying: bool,
}

#[derive(Default)]
struct Fake(RefCell<State>);

const START: Start = Start::At { entry: 0x8000_0000, argument: 0 };
/// Calls that map something for which one table page of the fake lasts: few, so that topups happen.
const MAPPINGS_PER_TABLE: u64 = 1;
/// Pages that a call does at the most.
const PAGES_A_CALL: u64 = 3;

impl State {
    fn take(&mut self, pages: UntrustedPages) -> Result<(), HypError> {
        let all = (0..pages.count).map(|n| pages.start.0 + n * PAGE);
        if all.clone().any(|p| self.held.contains(&p) || self.shared.contains(&p)) {
            return Err(HypError::NotOwned);
        }
        self.held.extend(all);
        Ok(())
    }

    /// x1 and x2.
    fn do_call(&mut self, call: &Call) -> Result<(u64, u64), HypError> {
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
            Call::VmMap { pages, ipa, .. } => {
                if self.mapped == self.tables * MAPPINGS_PER_TABLE {
                    return Err(HypError::NoTables);
                }
                // As an interrupt would have it.
                let count = pages.count.min(PAGES_A_CALL);
                self.take(UntrustedPages { count, ..pages })?;
                self.memory
                    .extend((0..count).map(|n| (ipa.0 + n * PAGE, pages.start.0 + n * PAGE)));
                self.mapped += 1;
                return Ok((count, 0));
            }
            Call::VmUnmap { ipa, count, .. } => {
                let first = *self.memory.get(&ipa.0).ok_or(HypError::NotMapped)?;
                // The rest of a block takes a table, the first time.
                if !core::mem::replace(&mut self.split, true) {
                    return Err(HypError::NoTables);
                }
                let mut done = 0;
                while done < count.min(PAGES_A_CALL)
                    && self.memory.get(&(ipa.0 + done * PAGE)) == Some(&(first + done * PAGE))
                {
                    self.memory.remove(&(ipa.0 + done * PAGE));
                    assert!(self.held.remove(&(first + done * PAGE)));
                    done += 1;
                }
                return Ok((first, done));
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
                return Ok((self.vcpus - 1, 0));
            }
            Call::VmDestroy { .. } => {
                assert!(!self.dying);
                self.dying = true;
                self.in_use.clear();
            }
            Call::VmReclaim { pages, .. } => {
                assert!(self.dying);
                let mut done = 0;
                while done < pages.count.min(PAGES_A_CALL)
                    && self.held.remove(&(pages.start.0 + done * PAGE))
                {
                    done += 1;
                }
                if done == 0 {
                    return Err(HypError::NotOwned);
                }
                if self.held.is_empty() {
                    self.alive = false;
                }
                return Ok((self.held.len() as u64, done));
            }
            ref other => panic!("{other:?}"),
        }
        Ok((7, 0))
    }
}

impl Hypervisor for Fake {
    fn call(&self, call: &Call) -> Result<Results, HypError> {
        let mut state = self.0.borrow_mut();
        state.calls += 1;
        if state.fail_at == Some(state.calls) {
            return Err(HypError::Limit);
        }
        state.do_call(call).map(|(x1, x2)| [x1, x2, 0, 0, 0, 0, 0, 0])
    }

    fn vcpu_run_with(
        &self,
        _: RunFlags,
        _: [u64; 4],
        _: &[Entry],
    ) -> Result<(Exit, States), HypError> {
        Err(HypError::NotLoaded)
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

const CONFIGS: [VmConfig; 2] = [VmConfig::normal(), VmConfig::protected()];

/// Builds a VM with 40 pages of memory and two vCPUs, and takes it down, whatever happens between; a normal one loses
/// some of its memory before. True if nothing was refused.
fn life(hyp: &Fake, supplier: &mut Supplier, config: VmConfig, lines: usize) -> bool {
    let lines = vec![Line::FREE; lines];
    let Ok(mut vm) = Vm::create(lines, hyp, supplier, config) else { return false };
    let mut good = true;
    for n in 0..2 {
        match supplier.allocate(MEMORY_PAGES / 2) {
            Some(memory) => {
                let ipa = 0x8000_0000 + n * MEMORY_PAGES / 2 * PAGE;
                good &= vm.map(hyp, supplier, memory, MEMORY_PAGES / 2, ipa).is_ok();
            }
            None => good = false,
        }
    }
    if !config.protected {
        // Over the gap between the two.
        good &= vm.unmap(hyp, supplier, 0x8000_0000 + 15 * PAGE, 10).is_ok();
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
    for config in CONFIGS {
        let count = {
            let hyp = Fake::default();
            let mut supplier = Supplier::new(usize::MAX);
            assert!(life(&hyp, &mut supplier, config, 16));
            assert!(supplier.out.is_empty());
            hyp.0.borrow().calls
        };
        assert!(count > 40, "{count}");
        for fail_at in 1..=count {
            let hyp = Fake::default();
            hyp.0.borrow_mut().fail_at = Some(fail_at);
            let mut supplier = Supplier::new(usize::MAX);
            let good = life(&hyp, &mut supplier, config, 16);
            assert!(!good, "call {fail_at} was not noticed");
            assert!(supplier.out.is_empty(), "call {fail_at}: {:x?} lost", supplier.out);
            let state = hyp.0.borrow();
            assert!(state.held.is_empty() && state.shared.is_empty() && !state.alive);
        }
    }
}

#[test]
fn r16_every_allocation_fails_once_and_every_page_comes_back() {
    for config in CONFIGS {
        for left in 0.. {
            let hyp = Fake::default();
            let mut supplier = Supplier::new(left);
            let good = life(&hyp, &mut supplier, config, 16);
            assert!(supplier.out.is_empty(), "{left} allocations: {:x?} lost", supplier.out);
            if good {
                assert!(left > 6);
                break;
            }
        }
    }
}

/// With any number of lines, up to as many as it takes; and with each of them any call may fail.
#[test]
fn full_books_refuse_and_lose_nothing() {
    for config in CONFIGS {
        let mut enough = 0;
        for (lines, fail_at) in (0..16).flat_map(|lines| (0..60).map(move |n| (lines, n))) {
            let hyp = Fake::default();
            hyp.0.borrow_mut().fail_at = (fail_at != 0).then_some(fail_at);
            let mut supplier = Supplier::new(usize::MAX);
            let good = life(&hyp, &mut supplier, config, lines);
            enough += usize::from(good && fail_at == 0);
            assert!(supplier.out.is_empty(), "{lines} lines, call {fail_at}");
            assert!(hyp.0.borrow().held.is_empty(), "{lines} lines, call {fail_at}");
        }
        assert!((4..12).contains(&enough), "{enough}");
    }
}

/// Pages that the VM has already are not given twice, and stay where they are.
#[test]
fn no_page_is_given_twice() {
    let hyp = Fake::default();
    let mut supplier = Supplier::new(usize::MAX);
    let mut vm = Vm::create([Line::FREE; 8], &hyp, &mut supplier, VmConfig::default()).unwrap();
    let memory = supplier.allocate(4).unwrap();
    vm.map(&hyp, &mut supplier, memory, 4, 0x8000_0000).unwrap();
    let calls = hyp.0.borrow().calls;
    let again = vm.map(&hyp, &mut supplier, memory + 3 * PAGE, 1, 0x9000_0000);
    assert_eq!(again, Err(Interrupted { done: 0, error: BuildError::AlreadyOut }));
    assert_eq!(hyp.0.borrow().calls, calls, "hyp was asked");
    assert!(supplier.out.contains(&(memory + 3 * PAGE)), "it was freed");
    vm.destroy(&hyp, &mut supplier, []).unwrap();
    assert!(supplier.out.is_empty());
}

/// Whatever call fails, or when the supplier has no page left: the VM has exactly the pages that it is said to have.
#[test]
fn what_was_done_before_a_failure_is_told() {
    const IPA: u64 = 0x8000_0000;
    let mut failures = [0; 2];
    for (call, left) in (1..60).map(|n| (Some(n), usize::MAX)).chain((2..20).map(|n| (None, n))) {
        let hyp = Fake::default();
        let mut supplier = Supplier::new(left);
        let mut vm =
            Vm::create([Line::FREE; 64], &hyp, &mut supplier, VmConfig::default()).unwrap();
        let memory = supplier.next;
        supplier.next += MEMORY_PAGES * PAGE;
        supplier.out.extend((0..MEMORY_PAGES).map(|n| memory + n * PAGE));
        let has = || hyp.0.borrow().memory.keys().map(|ipa| (ipa - IPA) / PAGE).collect::<Vec<_>>();
        hyp.0.borrow_mut().fail_at = call.map(|n| n + 1);
        let mapped = vm.map(&hyp, &mut supplier, memory, MEMORY_PAGES, IPA);
        let there = mapped.map_or_else(|it| it.done, |()| MEMORY_PAGES);
        assert!(has().into_iter().eq(0..there), "{mapped:?}");
        failures[0] += usize::from(mapped.is_err());
        let unmapped = vm.unmap(&hyp, &mut supplier, IPA, there);
        let gone = unmapped.map_or_else(|it| it.done, |()| there);
        assert!(has().into_iter().eq(gone..there), "{unmapped:?}");
        failures[1] += usize::from(unmapped.is_err());
        hyp.0.borrow_mut().fail_at = None;
        vm.destroy(&hyp, &mut supplier, []).unwrap();
        assert!(supplier.out.is_empty());
    }
    assert!(failures.iter().all(|&n| n > 5), "{failures:?}");
}

#[test]
fn a_vm_with_vcpus_about_is_not_destroyed() {
    let hyp = Fake::default();
    let mut supplier = Supplier::new(usize::MAX);
    // In storage of the embedder's, as a slice.
    let mut lines = [Line::FREE; 16];
    let mut vm = Vm::create(&mut lines[..], &hyp, &mut supplier, VmConfig::default()).unwrap();
    let vcpu = vm.create_vcpu(&hyp, &mut supplier, settings(0)).unwrap();
    let failure = vm.destroy(&hyp, &mut supplier, []).unwrap_err();
    assert_eq!(failure.error, BuildError::VcpusLeft);
    failure.vm.destroy(&hyp, &mut supplier, [vcpu]).unwrap();
    assert!(supplier.out.is_empty());
}
