//! Hyp's own decisions (`umbra_hyp::vm::life`, `memory`, `fp`) against the specification, call by call, on a
//! machine that is a few vectors: every answer, every page's owner, what is mapped for whom, what is in
//! the pages, and whose FP registers are live.

mod machine;
mod realm;
mod sharing;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use machine::*;
use proptest::prelude::*;
use realm::rsi_call;
use sha2::{Digest, Sha256};
use umbra_hyp::arch::stats::Stats;
use umbra_hyp::fp::{CpuFp, GuestTrap, HostImage, Live, Svcr, TrapClass};
use umbra_hyp::memory::pages::{Pages, State, VmId};
use umbra_hyp::power::guest::{Action, decide};
use umbra_hyp::power::psci::error;
use umbra_hyp::vm::calls::{Caller, Parting};
use umbra_hyp::vm::hardware::{Boot, Machine, There};
use umbra_hyp::vm::life::{self, Interface, Vm};
use umbra_shared::call::{
    Call, MAX_VMS, Policy, Start, UntrustedAffinity, UntrustedIpa, UntrustedPa, UntrustedPages,
    VcpuConfig, VcpuIndex, VmConfig, VmHandle,
};
use umbra_shared::error::Error;
use umbra_shared::exit::Reason;
use umbra_shared::flags::HostFlags;
use umbra_shared::guest::GuestFunction;
use umbra_shared::measurement::{Record, Value, input};
use umbra_shared::record::PageState;
use umbra_shared::register::Register;
use umbra_shared::rsi::{FUNCTIONS, RsiFunction};
use umbra_shared::sme::Storage;
use umbra_shared::vcpu::{UntrustedFeatures, VcpuFeatures};
use umbra_shared::vl::{Vq, VqSet};
use umbra_spec::calls::{Choice, Outcome};
use umbra_spec::fp::{Fp, Held};
use umbra_spec::guest::GuestCall;
use umbra_spec::memory::{Memory as SpecMemory, Owner};
use umbra_spec::vm::{Life, Power};
use umbra_spec::{Platform, Spec};

const CPUS: usize = 2;

struct Cpu {
    hw: NoRegisters,
    fp: CpuFp<()>,
    loaded: Option<(VmId, usize, VcpuCell)>,
}

/// Hyp without hardware, and beside it what it should be.
struct World {
    target: Target,
    vms: Vec<Vm<Tables, VcpuCell>>,
    cpus: Vec<Cpu>,
    stats: Stats,
    spec: Spec,
    handles: Vec<VmHandle>,
    /// vCPUs that are to make their last call again.
    again: BTreeSet<(VmId, usize)>,
    /// What each VM should be measured by, if it is protected.
    measured: BTreeMap<VmId, Value>,
}

fn vq(n: u64) -> Vq {
    Vq::new(n).unwrap()
}

impl World {
    fn new(protected_policy: Policy, protects: bool) -> Self {
        let banks = [(BASE, BASE + PAGES * PAGE)];
        let entries = Box::leak(vec![State::Host; PAGES as usize].into_boxed_slice());
        let mut pages = Pages::new(&banks, entries);
        pages.take_for_hyp(BASE + HYPS * PAGE, 1).unwrap();
        pages.reserve(BASE + RESERVED * PAGE, BASE + PAGES * PAGE);
        let all = || (0..PAGES).map(|n| BASE + n * PAGE);
        let memory = Memory {
            pages,
            host: all().filter(|&pa| pa != BASE + HYPS * PAGE).collect(),
            hyp: BTreeSet::new(),
            underway: BTreeSet::new(),
            content: all().map(|pa| (pa, Content::Hosts)).collect(),
            guests_see_caches: false,
            shown: BTreeMap::new(),
            arrived: BTreeMap::new(),
            written: None,
            junk: BTreeSet::new(),
            patience: Cell::new(usize::MAX),
        };
        let vqs = [1, 2, 4].map(vq).into_iter().fold(VqSet::EMPTY, VqSet::with);
        let svqs = [1, 2].map(vq).into_iter().fold(VqSet::EMPTY, VqSet::with);
        let target = Target {
            memory: RefCell::new(memory),
            given: RefCell::new([0; MAX_VMS]),
            vqs,
            svqs,
            protects,
            protected_policy,
            forgotten: Cell::new(0),
            stopped: RefCell::default(),
        };
        let mut cpus = Vec::new();
        for _ in 0..CPUS {
            let mut cpu = Cpu { hw: NoRegisters::new(), fp: CpuFp::new(()), loaded: None };
            cpu.fp.reset(&mut cpu.hw, Storage::new(Some(vq(4)), Some(vq(2))));
            cpus.push(cpu);
        }
        let mut owners = SpecMemory::default();
        owners.add(BASE / PAGE, HYPS, Owner::HOST);
        owners.add(BASE / PAGE + HYPS, 1, Owner::of(PageState::Hyp, 0));
        owners.add(BASE / PAGE + RESERVED, 1, Owner::of(PageState::Reserved, 0));
        let platform = Platform {
            cpus: CPUS,
            guest_vqs: vqs,
            guest_svqs: svqs,
            aarch32: true,
            protects,
            protected_policy,
            ipa_bits: 40,
            alias_bit: ALIAS_BIT,
            root_level: 0,
            block_pages: BLOCK_PAGES,
            stretch: STRETCH as u64,
        };
        let mut spec = Spec::new(platform, owners);
        for cpu in &mut spec.cpus {
            cpu.vqs = vqs;
            cpu.svqs = svqs;
            cpu.held = Held { vq: 4, svq: 2 };
            cpu.fp = Some(Fp::RESET);
        }
        // The second CPU came late and lacks a length.
        spec.cpus[1].vqs = [1, 2].map(vq).into_iter().fold(VqSet::EMPTY, VqSet::with);
        spec.cpus[1].svqs = VqSet::EMPTY.with(vq(1));
        let vms = (0..MAX_VMS).map(|_| Vm::new()).collect();
        Self {
            target,
            vms,
            cpus,
            stats: Stats::new(),
            spec,
            handles: vec![VmHandle(0)],
            again: BTreeSet::new(),
            measured: BTreeMap::new(),
        }
    }

    /// As `host::calls` and `vm::slots` do it.
    fn perform(&mut self, cpu: usize, call: Call) -> Result<(u64, u64), Error> {
        macro_rules! on {
            ($handle:expr, $method:ident, $($arg:expr),*) => {{
                let Self { target, vms, .. } = self;
                let slot = life::slot($handle)?;
                vms[usize::from(slot)].$method(target, $($arg),*)
            }};
        }
        let x1 = match call {
            Call::VmUnmap { vm, ipa, count } => return on!(vm, unmap, vm, ipa, count),
            Call::VmReclaim { vm, pages } => return on!(vm, reclaim, vm, pages),
            Call::VmLookup { vm, ipa } => {
                return on!(vm, find, vm, ipa).map(|(page, shared)| (page, shared.into()));
            }
            Call::ShareFlagPage { page } => self.target.memory(|memory| {
                let page = memory.pages.lookup(page.0)?;
                memory.pages.share_flag_page(page).map(|()| 0)
            }),
            Call::UnshareFlagPage { page } => self.target.memory(|memory| {
                let page = memory.pages.lookup(page.0)?;
                memory.pages.unshare_flag_page(page).map(|()| 0)
            }),
            Call::VmCreate { pages, config } => {
                let Self { target, vms, .. } = self;
                let free = vms.iter().position(Vm::is_free).ok_or(Error::Limit)?;
                vms[free].create(target, free as VmId, pages, config).map(|handle| handle.0)
            }
            Call::VmTopup { vm, pages } => on!(vm, topup, vm, pages).map(|()| 0),
            Call::VmMap { vm, pages, ipa } => on!(vm, map, vm, pages, ipa),
            Call::VmSeal { vm } => {
                life::slot(vm).and_then(|slot| self.vms[usize::from(slot)].seal(vm)).map(|()| 0)
            }
            Call::VmDestroy { vm } => on!(vm, destroy, vm).map(|()| 0),
            Call::VcpuCreate(config) => on!(config.vm, create_vcpu, &config).map(|()| 0),
            Call::VcpuLoad { vm, vcpu } => {
                if self.cpus[cpu].loaded.is_some() {
                    return Err(Error::Busy);
                }
                let vqs = VqSet::common([self.spec.cpus[cpu].vqs, self.target.vqs]);
                let slot = life::slot(vm)?;
                let svqs = VqSet::common([self.spec.cpus[cpu].svqs, self.target.svqs]);
                let fits = |cell: &VcpuCell| cell.borrow().check_load(vqs, svqs);
                let (cell, index) = on!(vm, load, vm, vcpu, cpu, fits)?;
                self.cpus[cpu].loaded = Some((slot, index, cell.clone()));
                Ok(0)
            }
            Call::VcpuPut => self.put(cpu).map(|()| 0),
            Call::VcpuReset { vm, vcpu, start } => on!(vm, reset_vcpu, vm, vcpu, start).map(|()| 0),
            // Of a vCPU's registers this is the only one that is not in its pages.
            Call::VcpuRead { vm, vcpu, .. } => {
                let slot = usize::from(life::slot(vm)?);
                self.vms[slot].power(vm, vcpu).map(u64::from)
            }
            Call::VcpuWrite { vm, vcpu, value: [on, _], .. } => {
                on!(vm, set_power, vm, vcpu, on != 0).map(|()| 0)
            }
            _ => Ok(0),
        };
        x1.map(|x1| (x1, 0))
    }

    fn put(&mut self, cpu: usize) -> Result<(), Error> {
        let Cpu { hw, fp, loaded } = &mut self.cpus[cpu];
        let (slot, index, cell) = loaded.take().ok_or(Error::NotLoaded)?;
        fp.put(hw, &mut cell.borrow_mut(), &self.stats);
        self.vms[usize::from(slot)].put(index);
        Ok(())
    }

    /// A call of the host's, by hyp and by the specification.
    fn call(&mut self, cpu: usize, call: Call) {
        let before = self.target.memory.borrow().content.clone();
        let result = self.perform(cpu, call);
        let register = result
            .err()
            .filter(|error| matches!(error, Error::BadRegister | Error::InvalidArgument));
        let (x1, x2) = result.unwrap_or_default();
        let choice = Choice { no_slot: false, x1, x2, register };
        let expected = self.spec.call(cpu, &call, choice);
        self.compare(&format!("{call:?}"), result, &expected);
        if let (Call::VmCreate { .. }, Ok((handle, _))) = (call, result) {
            self.handles.push(VmHandle(handle));
        }
        if result.is_ok() {
            self.measure(&call, x1, &before);
        }
    }

    /// What a call adds to what its VM is made of, as documented.
    fn measure(&mut self, call: &Call, x1: u64, before: &BTreeMap<u64, Content>) {
        let (handle, records) = match *call {
            Call::VmCreate { config, .. } => {
                let slot = life::slot(VmHandle(x1)).unwrap();
                self.measured.remove(&slot);
                if config.protected {
                    self.measured.insert(slot, [0; 32]);
                }
                (VmHandle(x1), vec![Record::Create { ipa_width: 40 }])
            }
            Call::VmMap { vm, pages, ipa } => {
                let page = |n: u64| {
                    let pa = pages.start.0 + n * PAGE;
                    let content = digest_of(pa, before[&pa]);
                    Record::Page { ipa: ipa.0 + n * PAGE, content }
                };
                let sealed = self.spec.vms[usize::from(life::slot(vm).unwrap())].sealed;
                (vm, if sealed { Vec::new() } else { (0..x1).map(page).collect() })
            }
            Call::VcpuCreate(VcpuConfig { vm, index, affinity, features, start, .. }) => {
                let start = match start {
                    Start::At { entry, argument } => Some([entry, argument]),
                    Start::Off => None,
                };
                let (index, affinity, features) = (index.0, affinity.0, features.0);
                (vm, vec![Record::Vcpu { index, affinity, features, start }])
            }
            _ => return,
        };
        let slot = life::slot(handle).unwrap();
        if let Some(value) = self.measured.get_mut(&slot) {
            for record in records {
                *value = Sha256::digest(input(value, &record)).into();
            }
        }
    }

    /// A call of the guest that is loaded. If it was to make one again and has not `forgotten` that, this is the one.
    fn guest_call(&mut self, cpu: usize, function: u32, args: [u64; 3], forgotten: bool) {
        let Some((slot, index, ref cell)) = self.cpus[cpu].loaded else { return };
        let Self { target, vms, .. } = self;
        let vm = &mut vms[usize::from(slot)];
        if self.spec.vms[usize::from(slot)].vcpus[&index].power != Power::On
            || vm_ended(&self.spec, slot)
        {
            // It executes nothing.
            return;
        }
        let aarch32 = cell.borrow().aarch32();
        let protected = self.spec.vms[usize::from(slot)].protected;
        let args = if aarch32 { args.map(|x| x & 0xffff_ffff) } else { args };
        let ipa = UntrustedIpa(args[0]);
        let again = self.again.remove(&(slot, index)) && !forgotten;
        let caller = Caller { vm: slot, index, again };
        let plain = |x0: i64| (Some(x0), None, false);
        if FUNCTIONS.contains(&function) && !aarch32 {
            let vm = &mut vms[usize::from(slot)];
            let (found, words) = rsi_call(vm, target, caller, protected, function, args);
            if found.2 {
                self.again.insert((slot, index));
            }
            let call = GuestCall { function, args, again, x1: words[0] };
            let expected = self.spec.guest_call(cpu, call);
            let should = (expected.x0, expected.exit, expected.again);
            assert_eq!(found, should, "{function:#x} {args:x?}");
            if let Some(should) = expected.words {
                assert_eq!(words, should, "{function:#x} {args:x?}");
            }
            // Neither what was private nor what the host has written goes over.
            let memory = self.target.memory.borrow();
            for (&page, owner) in &expected.changes {
                let shared = owner.state == PageState::SharedByGuest;
                let seen = if shared { &memory.shown } else { &memory.arrived };
                assert_eq!(seen[&(page * PAGE)], Content::Zero, "{owner:?}");
            }
            return;
        }
        // As `guest::calls` does it.
        let found = match (GuestFunction::from_id(function), decide(function, args, aarch32)) {
            (Some(function), _)
                if protected && !aarch32 && function.decides() && !vm.uses(Interface::Kvm) =>
            {
                plain(-1)
            }
            (Some(function), _) if protected && !aarch32 => {
                let result = match function {
                    GuestFunction::MemShare => vm.guest_share(target, caller, ipa).map(|()| None),
                    GuestFunction::MemUnshare => vm.guest_unshare(target, caller, ipa).map(Some),
                    GuestFunction::MmioGuard => vm.guest_enrol(target, caller, ipa).map(|()| None),
                    GuestFunction::MemRelinquish => {
                        vm.guest_relinquish(target, caller, ipa).map(Some)
                    }
                    GuestFunction::Uid | GuestFunction::Features => return,
                    GuestFunction::HypMeminfo if args == [0; 3] => {
                        let call = GuestCall { function: function as u32, args, again, x1: 0 };
                        assert_eq!(self.spec.guest_call(cpu, call).x0, Some(PAGE as i64));
                        return;
                    }
                    GuestFunction::HypMeminfo => Err(Error::InvalidArgument),
                };
                match result {
                    Ok(Some(Parting::Tell(_))) => (None, Some(Reason::Unshare), true),
                    Ok(_) if function == GuestFunction::MemRelinquish => {
                        (Some(0), Some(Reason::Relinquished), false)
                    }
                    Ok(_) => (Some(0), None, false),
                    Err(Error::NotMapped) if function == GuestFunction::MemShare => {
                        (None, Some(Reason::Fault), true)
                    }
                    Err(Error::NoTables) => (None, Some(Reason::Tables), true),
                    Err(_) => plain(-3),
                }
            }
            (Some(_), _) => return,
            (None, Action::Answer(x0)) => plain(x0),
            (None, Action::Standby) => (Some(0), Some(Reason::Wfi), false),
            (None, Action::CpuOff) => {
                vm.cpu_off(target, slot, index);
                (Some(0), Some(Reason::CpuOff), false)
            }
            (None, Action::CpuOn { target: affinity, entry, context }) => {
                let boot = Boot { entry, argument: context, big_endian: false };
                match vm.cpu_on(target, affinity, boot) {
                    Ok(on) => {
                        assert_eq!(on as u64, affinity);
                        (Some(0), Some(Reason::CpuOn), false)
                    }
                    Err(code) => plain(error(code)),
                }
            }
            (None, Action::AffinityInfo { target }) => match vm.affinity_info(target) {
                Ok(affinity) => plain(affinity as i64),
                Err(code) => plain(error(code)),
            },
            (None, Action::System { .. }) => {
                assert_eq!(vm.end(target, slot), protected);
                (Some(-6), Some(Reason::System), false)
            }
        };
        if found.2 {
            self.again.insert((slot, index));
        }
        let call = GuestCall { function, args, again, x1: 0 };
        let expected = self.spec.guest_call(cpu, call);
        let should = (expected.x0, expected.exit, expected.again);
        assert_eq!(found, should, "{function:#x} {args:x?}");
    }

    /// An entry into the loaded vCPU, which uses these one after the other, and leaves SVCR like this
    /// where it has SME.
    fn run(&mut self, cpu: usize, hint: HostFlags, uses: &[TrapClass], svcr: Svcr) {
        let Cpu { hw, fp, loaded } = &mut self.cpus[cpu];
        let Some((slot, index, cell)) = loaded else { return };
        let stopped = self.target.stopped.borrow().contains(&(*slot, *index));
        let vcpus = &self.spec.vms[usize::from(*slot)].vcpus;
        let off = vcpus[index].power != Power::On || vm_ended(&self.spec, *slot);
        assert_eq!(stopped, off, "vCPU {index} of VM {slot}");
        if stopped {
            return;
        }
        let spec = &self.spec.vms[usize::from(*slot)];
        let (policy, features) = (spec.policy, spec.vcpus[index].features);
        let mut vcpu = cell.borrow_mut();
        fp.enter(hw, &vcpu, hint, &self.stats);
        let mut opened = 0;
        for &class in uses {
            let opens = fp.guest_opens(&vcpu, class);
            let trap = fp.guest_trap(hw, &mut vcpu, class, &self.stats);
            assert_eq!(trap == GuestTrap::Opened, opens);
            opened += u64::from(opens);
        }
        if fp.za() == Live::Guest && fp.live() == Live::Guest {
            hw.svcr = svcr;
        }
        let word = fp.exit(hw, &mut vcpu, &self.stats);
        let this = &mut self.spec.cpus[cpu];
        let before = this.fp.expect("after reset");
        let possible = before.run(hint, opened, features, policy, this.held);
        let found = spec_fp(fp);
        assert!(possible.contains(&found), "{found:?} is none of {possible:?}");
        this.fp = Some(found);
        assert_eq!(word, found.word());
    }

    /// The host uses FP, or SME and leaves SVCR like this.
    fn host_fp(&mut self, cpu: usize, class: TrapClass, svcr: Svcr) {
        let Cpu { hw, fp, loaded } = &mut self.cpus[cpu];
        let sme = class == TrapClass::Sme;
        let this = &mut self.spec.cpus[cpu];
        let before = this.fp.expect("after reset");
        assert_eq!(fp.host_opens(class), before.host_may_trap(sme));
        if fp.host_opens(class) {
            let mut vcpu = loaded.as_ref().map(|(.., cell)| cell.borrow_mut());
            fp.host_trap(hw, vcpu.as_deref_mut(), class, &self.stats);
            this.fp = Some(before.host_trap(sme, this.held));
        }
        if sme {
            hw.svcr = svcr;
        }
    }

    fn compare(&self, what: &str, result: Result<(u64, u64), Error>, expected: &Outcome) {
        assert_eq!(result.map(|_| ()), expected.result, "{what}");
        if let (Ok((x1, _)), Some(should)) = (result, expected.x1) {
            assert_eq!(x1, should, "x1 of {what}");
        }
        if let (Ok((_, x2)), Some(should)) = (result, expected.x2) {
            assert_eq!(x2, should, "x2 of {what}");
        }
    }

    /// Everything that can be seen of both.
    fn check(&self) {
        let memory = self.target.memory.borrow();
        for n in 0..PAGES {
            let page = memory.pages.lookup(BASE + n * PAGE).unwrap();
            let owner = owner(memory.pages.state(page));
            assert_eq!(Some(owner), self.spec.memory.get(BASE / PAGE + n), "page {n}");
            let (host, hyp) = (memory.host.contains(&page.pa()), memory.hyp.contains(&page.pa()));
            assert_eq!(host, owner.host_has_access(), "page {n} for the host: {owner:?}");
            assert_eq!(hyp, owner.state == PageState::Vm, "page {n} for hyp: {owner:?}");
            let content = memory.content[&page.pa()];
            let allowed = match owner.state {
                PageState::Hyp | PageState::Reserved => true,
                PageState::Vm | PageState::Guest | PageState::SharedByGuest => {
                    content == Content::Of(owner.vm)
                }
                // What a normal guest wrote the host could read all along.
                _ => true,
            };
            assert!(allowed, "page {n}, {owner:?}, holds {content:?}");
        }
        for (slot, vm) in self.spec.vms.iter().enumerate().filter(|(_, vm)| vm.life == Life::Alive)
        {
            let left = self.target.tables_left(slot as VmId) as u64;
            assert_eq!(left, vm.tables_left(), "tables of VM {slot}");
            if vm.protected {
                let measured = self.measured.get(&(slot as VmId)).copied();
                assert_eq!(self.vms[slot].measurement(0), measured, "VM {slot}");
            }
            let there = |ipa| self.vms[slot].lookup(&self.target, ipa);
            for (&ipa, &page) in &vm.maps {
                assert_eq!(there(ipa), There::Memory(page * PAGE), "VM {slot} at {ipa:#x}");
            }
            for &ipa in &vm.enrolled {
                assert_eq!(there(ipa), There::Device, "VM {slot} at {ipa:#x}");
            }
            for (ripas, ipa) in vm.ram.iter().flat_map(|&(from, to)| {
                [(true, from), (true, to - PAGE), (false, from.wrapping_sub(PAGE)), (false, to)]
            }) {
                let empty = there(ipa) == There::Empty;
                let is_else = vm.maps.contains_key(&ipa) || vm.aliased.contains(&ipa);
                assert!(empty != ripas || is_else || ipa >= ALIAS_BIT, "VM {slot} at {ipa:#x}");
            }
            for &ipa in &vm.aliased {
                assert_eq!(there(ipa), There::Aliased, "VM {slot} at {ipa:#x}");
                assert!(vm.maps.contains_key(&(ipa | ALIAS_BIT)), "VM {slot} at {ipa:#x}");
            }
        }
        for (n, (cpu, spec)) in self.cpus.iter().zip(&self.spec.cpus).enumerate() {
            let loaded = cpu.loaded.as_ref().map(|(slot, index, _)| (*slot, *index));
            assert_eq!(loaded, spec.loaded, "CPU {n}");
            assert_eq!(Some(spec_fp(&cpu.fp)), spec.fp, "CPU {n}");
        }
    }
}

fn vm_ended(spec: &Spec, slot: VmId) -> bool {
    spec.vms[usize::from(slot)].ended
}

fn spec_fp(fp: &CpuFp<()>) -> Fp {
    let owner = |live| match live {
        Live::Host => umbra_spec::fp::Live::Host,
        Live::Guest => umbra_spec::fp::Live::Guest,
        Live::Nobody => umbra_spec::fp::Live::Nobody,
    };
    let image = match fp.host_image() {
        HostImage::None => umbra_spec::fp::Image::None,
        HostImage::Fpsimd => umbra_spec::fp::Image::Fpsimd,
        HostImage::Full(vq) => umbra_spec::fp::Image::Full(vq.quadwords() as u8),
        HostImage::Streaming(vq) => umbra_spec::fp::Image::Streaming(vq.quadwords() as u8),
    };
    let host_za = fp.host_za().map_or(0, |vq| vq.quadwords() as u8);
    Fp { live: owner(fp.live()), za: owner(fp.za()), image, host_za }
}

fn owner(state: State) -> Owner {
    match state {
        State::Host => Owner::HOST,
        State::FlagPage { used: false } => Owner::of(PageState::FlagPage, 0),
        State::FlagPage { used: true } => Owner::of(PageState::FlagPageUsed, 0),
        State::Reserved => Owner::of(PageState::Reserved, 0),
        State::Hyp => Owner::of(PageState::Hyp, 0),
        State::Vm(vm) => Owner::of(PageState::Vm, vm),
        State::Guest(vm) => Owner::of(PageState::Guest, vm),
        State::SharedWithGuest(vm) => Owner::of(PageState::SharedWithGuest, vm),
        State::SharedByGuest(vm) => Owner::of(PageState::SharedByGuest, vm),
    }
}

/// Where a vCPU starts: mostly somewhere, now and then in the wrong place.
fn start(b: u16, c: u16) -> Start {
    if b.is_multiple_of(3) {
        Start::Off
    } else {
        Start::At { entry: 0x8000_0000 + u64::from(c % 16 == 1), argument: 0 }
    }
}

/// Dice for one step: what it is, and numbers to choose by.
type Dice = (u8, u16, u16, u16);

impl World {
    fn page(&self, n: u16) -> UntrustedPa {
        // Now and then one that is none.
        match n % 70 {
            n @ 0..64 => UntrustedPa(BASE + u64::from(n) * PAGE),
            64 => UntrustedPa(BASE + 8),
            65 => UntrustedPa(BASE - PAGE),
            66 => UntrustedPa(u64::MAX),
            n => UntrustedPa(BASE + u64::from(n) * PAGE),
        }
    }

    /// The first of so many pages of the host's in a row, from somewhere on.
    fn run_of(&self, from: u16, count: u64) -> UntrustedPa {
        let free = |n: u64| self.spec.memory.get(BASE / PAGE + n) == Some(Owner::HOST);
        let found = (0..PAGES)
            .map(|n| (n + u64::from(from)) % PAGES)
            .find(|&first| first + count <= PAGES && (first..first + count).all(free));
        UntrustedPa(BASE + found.unwrap_or(u64::from(from) % PAGES) * PAGE)
    }

    /// Pages of the host's, from somewhere on: often a block, or what is left of one.
    fn range_of(&self, from: u16, count: u64) -> UntrustedPages {
        let from = if count >= BLOCK_PAGES { from / 8 * 8 } else { from };
        UntrustedPages { start: self.run_of(from, count.min(BLOCK_PAGES)), count }
    }

    /// The first page of such a VM.
    fn page_of(&self, from: u16, wanted: impl Fn(Owner) -> bool) -> UntrustedPa {
        let found = (0..PAGES)
            .map(|n| (n + u64::from(from)) % PAGES)
            .find(|&n| self.spec.memory.get(BASE / PAGE + n).is_some_and(&wanted));
        UntrustedPa(BASE + found.unwrap_or(u64::from(from) % PAGES) * PAGE)
    }

    fn handle(&self, n: u16) -> VmHandle {
        // Mostly one of the last that were made.
        let count = self.handles.len();
        self.handles[count - 1 - usize::from(n) % count.min(4)]
    }

    fn step(&mut self, (kind, a, b, c): Dice) {
        let cpu = usize::from(a) % CPUS;
        let handle = self.handle(b);
        let slot = usize::from(life::slot(handle).unwrap_or(0));
        let of_it =
            |owner: Owner| usize::from(owner.vm) == slot && !matches!(owner.state, PageState::Host);
        let ipa = |n: u16| {
            UntrustedIpa(match n % 12 {
                n @ 0..8 if n % 2 == 0 => 0x8000_0000 + u64::from(n) / 4 * BLOCK_PAGES * PAGE,
                n @ 0..8 => 0x8000_0000 + u64::from(n) * PAGE,
                n @ 8..10 => u64::from(n) << 30,
                10 => 1 << 40,
                _ => 0x8000_0008,
            })
        };
        // No place for a protected VM's memory.
        let at_some_alias = |n: u16, UntrustedIpa(ipa)| {
            UntrustedIpa(if n % 32 == 1 { ipa | ALIAS_BIT } else { ipa })
        };
        // None, one, less than a block, a block, more, whatever comes.
        let count = |n: u16| match n / 16 % 8 {
            0 => 1,
            1 => u64::from(n) % 8,
            2..7 => BLOCK_PAGES,
            _ => [BLOCK_PAGES + 1, 40, u64::MAX][usize::from(n) % 3],
        };
        {
            let mut memory = self.target.memory.borrow_mut();
            memory.guests_see_caches = b & 1 != 0;
            memory.patience.set(if a & 4 == 0 { usize::from(a / 8) % 3 } else { usize::MAX });
        }
        match kind % 33 {
            0 | 1 => self.call(cpu, Call::ShareFlagPage { page: self.run_of(b, 1) }),
            2 => self.call(cpu, Call::ShareFlagPage { page: self.page(b) }),
            3 => self.call(cpu, Call::UnshareFlagPage { page: self.page(b) }),
            4 | 5 => {
                let policy = [Policy::Lazy, Policy::Eager, Policy::Scrub][usize::from(b) % 3];
                let (protected, junk) = (c % 2 == 0, c % 4 == 0);
                let config = VmConfig { policy, protected, junk };
                let count = 3 + u64::from(c) % 5;
                let pages = UntrustedPages { start: self.run_of(b, count), count };
                self.call(cpu, Call::VmCreate { pages, config });
            }
            6 => {
                let count = u64::from(c) % 4;
                let pages = UntrustedPages { start: self.run_of(b, count), count };
                self.call(cpu, Call::VmTopup { vm: handle, pages });
            }
            7..12 => {
                let pages = self.range_of(c, count(c));
                self.call(cpu, Call::VmMap { vm: handle, pages, ipa: at_some_alias(c, ipa(c)) });
            }
            12 => {
                let pages = UntrustedPages { start: self.page(b), count: count(c) };
                self.call(cpu, Call::VmMap { vm: handle, pages, ipa: ipa(c) });
            }
            13 => self.call(cpu, Call::VmUnmap { vm: handle, ipa: ipa(c), count: count(b) }),
            14..17 => {
                let vl_bytes = [0, 16, 32, 64, 48, 128][usize::from(c) % 6];
                let svl_bytes = [0, 0, 0, 16, 32, 64][usize::from(c) / 6 % 6];
                let aarch32 = c % 7 == 0;
                let asked = VcpuFeatures {
                    vq: Vq::from_vl(vl_bytes),
                    svq: Vq::from_vl(svl_bytes),
                    aarch32,
                };
                let count = asked.pages() + u64::from(c % 16 == 0);
                let raw = vl_bytes | svl_bytes << 16 | u64::from(aarch32) << 32;
                let free = |owner: Owner| owner.state == PageState::FlagPage;
                let index = u64::from(c) / 64 % 4;
                let config = VcpuConfig {
                    vm: handle,
                    index: VcpuIndex(if c == 77 { 64 } else { index }),
                    affinity: UntrustedAffinity(if c % 5 == 0 { 0x1_0200 } else { index }),
                    pages: UntrustedPages { start: self.run_of(b, count), count },
                    flag_page: self.page_of(c, free),
                    features: UntrustedFeatures(raw),
                    start: start(b, c),
                };
                self.call(cpu, Call::VcpuCreate(config));
            }
            17..20 => {
                let vcpu = VcpuIndex(u64::from(c) % 3);
                self.call(cpu, Call::VcpuLoad { vm: handle, vcpu });
            }
            20 | 21 => self.call(cpu, Call::VcpuPut),
            22 if c % 4 == 0 => self.call(cpu, Call::VmDestroy { vm: handle }),
            22 if c % 4 == 1 => {
                let alias = if a & 64 != 0 { ALIAS_BIT } else { 0 };
                let ipa = UntrustedIpa(ipa(b).0 | alias);
                self.call(cpu, Call::VmLookup { vm: handle, ipa });
            }
            22 => self.call(cpu, Call::VmSeal { vm: handle }),
            23..27 => {
                let pages = UntrustedPages { start: self.page_of(c, of_it), count: count(b) };
                self.call(cpu, Call::VmReclaim { vm: handle, pages });
            }
            27 => {
                let pages = UntrustedPages { start: self.page(c), count: count(b) };
                self.call(cpu, Call::VmReclaim { vm: handle, pages });
            }
            // Guests of every other VM use RSI, mostly.
            28 | 32 if (slot % 2 == 0) == (b & 7 != 0) => {
                let function = RsiFunction::ALL[usize::from(b / 8) % RsiFunction::ALL.len()];
                let function = if b & 256 != 0 { RsiFunction::IpaStateSet } else { function };
                let alias = if a & 0xc0 == 0xc0 { ALIAS_BIT } else { 0 };
                let base = ipa(c).0 | alias;
                let count = [1, 2, 8, 20][usize::from(b / 512) % 4];
                let ripas = u64::from(c / 16 % 2);
                let measurement = matches!(
                    function,
                    RsiFunction::MeasurementRead | RsiFunction::MeasurementExtend
                );
                let args = if measurement {
                    [u64::from(c) % 7, u64::from(c) / 7 % 70, 0]
                } else {
                    [base, base.wrapping_add(count * PAGE), ripas]
                };
                self.guest_call(cpu, function as u32, args, a & 16 != 0);
                if a & 32 != 0 {
                    self.guest_call(cpu, function as u32, args, false);
                }
            }
            28 | 32 => {
                let function = GuestFunction::ALL[usize::from(b) % GuestFunction::ALL.len()];
                let function = function as u32;
                let alias = if a & 64 != 0 { ALIAS_BIT } else { 0 };
                let args = [ipa(c).0 | alias, 0, 0];
                self.guest_call(cpu, function, args, a & 16 != 0);
                if a & 32 != 0 {
                    // At once, or as soon as somebody else has done something.
                    self.guest_call(cpu, function, args, false);
                }
            }
            29 if b % 8 == 0 => {
                let vcpu = VcpuIndex(u64::from(c) % 3);
                self.call(cpu, Call::VcpuReset { vm: handle, vcpu, start: start(b / 8, c) });
            }
            29 if b % 8 == 1 => {
                let vcpu = VcpuIndex(u64::from(c) % 3);
                let register = Register::Power.encode();
                let value = [u64::from(b) / 8 % 2, 0];
                match b / 16 % 4 {
                    0 => self.call(cpu, Call::VcpuRead { vm: handle, vcpu, register }),
                    _ => self.call(cpu, Call::VcpuWrite { vm: handle, vcpu, register, value }),
                }
            }
            29 => {
                let number = [2, 3, 3, 3, 4, 1, 0xa, 8][usize::from(b) / 8 % 8];
                // SYSTEM_OFF ends what others need.
                let number = if number == 8 && c % 8 != 0 { 3 } else { number };
                let smc64 = u32::from(number != 2 && number != 8 && number != 0xa) << 30;
                let entry = 0x8000_0000 + u64::from(c / 4 % 16 == 1);
                let level = if number == 3 { entry } else { u64::from(c / 4 % 8 == 0) };
                let args = [u64::from(c) % 4, level, 7];
                self.guest_call(cpu, 0x8400_0000 | smc64 | number, args, a & 16 != 0);
            }
            30 => {
                let hint = HostFlags::from_bits_truncate(u64::from(b));
                let classes = [TrapClass::Fpsimd, TrapClass::Sve, TrapClass::Sme];
                let uses = [c % 4, c / 4 % 4].map(usize::from);
                let uses: Vec<_> = uses.iter().filter_map(|&n| classes.get(n).copied()).collect();
                self.run(cpu, hint, &uses, Svcr::from_bits_truncate((c / 16).into()));
            }
            _ => {
                let class = if c % 2 == 0 { TrapClass::Fpsimd } else { TrapClass::Sme };
                self.host_fp(cpu, class, Svcr::from_bits_truncate((c / 2).into()));
            }
        }
        self.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn hyp_decides_as_specified(
            lazy in any::<bool>(),
            protects in proptest::bool::weighted(0.8),
            dice in proptest::collection::vec(any::<Dice>(), 0..220),
        ) {
        let mut world = World::new(if lazy { Policy::Lazy } else { Policy::Scrub }, protects);
        for dice in dice {
            world.step(dice);
        }
    }
}

/// The whole life of a protected VM, for a reader; and that the random one above gets as deep.
#[test]
fn a_protected_vms_life() {
    let mut world = World::new(Policy::Scrub, true);
    let page = |n: u64| UntrustedPa(BASE + n * PAGE);
    let config = VmConfig { policy: Policy::Lazy, protected: true, ..VmConfig::normal() };
    let pages = |first: u64, count: u64| UntrustedPages { start: page(first), count };
    world.call(0, Call::VmCreate { pages: pages(0, 6), config });
    let vm = world.handles[1];
    world.call(0, Call::VmMap { vm, pages: pages(10, 1), ipa: UntrustedIpa(0x8000_0000) });
    world.call(0, Call::ShareFlagPage { page: page(11) });
    let count = VcpuFeatures::sve(Some(vq(4))).pages();
    let vcpu = VcpuConfig {
        vm,
        index: VcpuIndex(0),
        affinity: UntrustedAffinity(0),
        pages: pages(20, count),
        flag_page: page(11),
        features: VcpuFeatures::sve(Some(vq(4))).into(),
        start: Start::At { entry: 0x8000_0000, argument: 7 },
    };
    world.call(0, Call::VmSeal { vm });
    world.call(0, Call::VcpuCreate(vcpu));
    world.call(0, Call::VcpuLoad { vm, vcpu: VcpuIndex(0) });
    assert!(world.cpus[0].loaded.is_none(), "it is not sealed");
    world.call(0, Call::VmSeal { vm });
    // Nothing comes in behind the seal, but for an empty page.
    world.call(0, Call::VmSeal { vm });
    world.call(0, Call::ShareFlagPage { page: page(12) });
    let late = VcpuConfig {
        index: VcpuIndex(1),
        affinity: UntrustedAffinity(1),
        pages: pages(40, count),
        flag_page: page(12),
        start: Start::Off,
        ..vcpu
    };
    world.call(0, Call::VcpuCreate(late));
    world.call(0, Call::VmMap { vm, pages: pages(13, 1), ipa: UntrustedIpa(0x8000_1000) });
    // CPU 1 lacks its length.
    world.call(1, Call::VcpuLoad { vm, vcpu: VcpuIndex(0) });
    world.call(0, Call::VcpuLoad { vm, vcpu: VcpuIndex(0) });
    world.host_fp(0, TrapClass::Sve, Svcr::empty());
    world.run(0, HostFlags::empty(), &[TrapClass::Fpsimd], Svcr::empty());
    world.check();
    // The lazy policy is what the host has asked for.
    assert_eq!(world.cpus[0].fp.live(), Live::Nobody);
    world.guest_call(0, GuestFunction::MemShare as u32, [0x8000_0000, 0, 0], false);
    world.check();
    world.call(0, Call::VmDestroy { vm });
    world.call(0, Call::VcpuPut);
    world.call(0, Call::VmDestroy { vm });
    for n in (0..6).chain([10, 13]).chain(20..20 + count) {
        world.call(0, Call::VmReclaim { vm, pages: pages(n, 1) });
        world.check();
    }
    world.call(0, Call::VmReclaim { vm, pages: pages(0, 1) });
    assert!(world.vms[0].is_free());
    assert_eq!(world.spec.memory.get(BASE / PAGE + 20), Some(Owner::HOST));
}
