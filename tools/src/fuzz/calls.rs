//! Programs of hypercalls that get deep: the specification is the guide. The generator carries its
//! calls out on a [`Spec`] of its own, so it knows which pages are whose and which VMs live, and mostly
//! asks for what makes sense; now and then one argument is another than it should be. On the machine
//! several CPUs go through their calls at the same time, so what was meant to work may not: what is
//! right then is for the other [`Spec`] to say, which sees what hyp wrote down. So that VMs get old all
//! the same, each CPU has pages and handles where it is at home, and mostly stays there.

use fastrand::Rng;
use umbra_fuzz::program::{Arg, BLOCK, Call, Event, HANDLES, PAGES, Step, cpu_of_page};
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::{self, Function, Policy, VmConfig, VmHandle};
use umbra_shared::exit::RunFlags;
use umbra_shared::guest::GuestFunction;
use umbra_shared::record::PageState;
use umbra_shared::rsi::{Ripas, RsiFunction};
use umbra_shared::vcpu::{UntrustedFeatures, VcpuFeatures};
use umbra_shared::vl::{Vq, VqSet};
use umbra_spec::calls::Choice;
use umbra_spec::guest::GuestCall;
use umbra_spec::memory::{Memory, Owner};
use umbra_spec::vm::{self, Life};
use umbra_spec::{Cpu, Platform, Spec};

/// Where the guide's pages are: anywhere, for it has no memory.
const FIRST: u64 = 0x10_0000;
const HYP: u64 = 0x20_0000;
/// The first page of the program's block.
const BLOCK_FIRST: u64 = 0x30_0000;
/// Where guests have pages of it, mostly: each at its place in a block.
const GUEST_BLOCK: u64 = GUEST + (1 << 30);
const PAGE: u64 = PAGE_SIZE as u64;
/// Where guests have their memory.
const GUEST: u64 = 0x8000_0000;
/// The alias bit of guests that are shown 40 bits of address.
const ALIAS_BIT: u64 = 1 << 39;
/// Upper half of what agents store (`tests/payload/src/fuzz/calls.rs`).
const AGENTS: u64 = 0xa6e7_0000_0000_0000;

// Where on the dice some calls are.
const SHARE_FLAG_PAGE: u8 = 23;
const VM_CREATE: u8 = 26;
const VCPU_CREATE: u8 = 32;
const VM_MAP: u8 = 40;
const VCPU_LOAD: u8 = 59;

/// Of so many steps one is a device's, which takes 200 ms of the machine's time.
const DEVICE_STEPS: u8 = 80;

/// A generator of calls.
struct Guide {
    rng: Rng,
    spec: Spec,
    cpus: u8,
    handles: [VmHandle; HANDLES],
    /// Pages with an agent in them, for guests to execute.
    written: [bool; PAGES],
    /// The CPU at whose home the next call is; `None`: anywhere.
    home: Option<u8>,
    /// What the guest on each CPU was last told to share.
    shared: Vec<Option<u64>>,
    /// Calls that did what they were asked, by the guide's own account.
    accepted: usize,
}

/// The steps of a program for a machine whose CPUs have these largest VLs and SVLs, bytes.
pub fn generate(seed: u64, vls: &[u16], svls: &[u16]) -> Vec<Step> {
    guided(seed, vls, svls).0
}

/// And how many of its calls were accepted on the way.
fn guided(seed: u64, vls: &[u16], svls: &[u16]) -> (Vec<Step>, usize) {
    let mut rng = Rng::with_seed(seed);
    let set = |vl: u16| {
        let lengths = (0..5).map(|n| 16u16 << n).filter(|&length| length <= vl);
        lengths.filter_map(|vl| Vq::from_vl(vl.into())).fold(VqSet::EMPTY, VqSet::with)
    };
    let mut memory = Memory::default();
    memory.add(FIRST, PAGES as u64, Owner::HOST);
    memory.add(HYP, 1, Owner::of(PageState::Hyp, 0));
    memory.add(BLOCK_FIRST, BLOCK.into(), Owner::HOST);
    let platform = Platform {
        cpus: vls.len(),
        guest_vqs: VqSet::common(vls.iter().map(|&vl| set(vl))),
        guest_svqs: VqSet::common(svls.iter().map(|&svl| set(svl))),
        // The machines are of a kind that has it.
        aarch32: true,
        protects: true,
        protected_policy: Policy::Scrub,
        ipa_bits: 40,
        alias_bit: ALIAS_BIT,
        root_level: 0,
        block_pages: call::BLOCK_PAGES,
        stretch: 64,
    };
    let count = rng.usize(100..420);
    let mut spec = Spec::new(platform, memory);
    for (cpu, (&vl, &svl)) in spec.cpus.iter_mut().zip(vls.iter().zip(svls)) {
        *cpu = Cpu { vqs: set(vl), svqs: set(svl), ..Cpu::default() };
    }
    let mut guide = Guide {
        rng,
        spec,
        cpus: vls.len() as u8,
        handles: [VmHandle(0); HANDLES],
        written: [false; PAGES],
        home: None,
        shared: vec![None; vls.len()],
        accepted: 0,
    };
    let mut steps = Vec::new();
    for cpu in 0..guide.cpus {
        guide.settle_in(cpu, &mut steps);
    }
    while steps.len() < count {
        steps.push(guide.step());
    }
    (steps, guide.accepted)
}

impl Guide {
    /// A VM with a vCPU at a CPU's home, to begin with.
    fn settle_in(&mut self, cpu: u8, steps: &mut Vec<Step>) {
        self.home = Some(cpu);
        steps.extend((0..4).map(|_| self.write()));
        for dice in [VM_CREATE, VM_MAP, VM_MAP, SHARE_FLAG_PAGE, VCPU_CREATE, VCPU_LOAD] {
            if let Some((function, args)) = self.call(cpu, dice) {
                let event = self.perform(cpu, function, args);
                steps.push(Step { cpu, event });
            }
        }
    }

    fn step(&mut self) -> Step {
        let cpu = self.rng.u8(..self.cpus);
        self.home = (self.rng.u8(..6) != 0).then_some(cpu);
        if self.rng.u8(..DEVICE_STEPS) == 0 {
            return self.device();
        }
        for _ in 0..20 {
            if let Some(step) = self.attempt(cpu) {
                return step;
            }
        }
        self.write()
    }

    /// What the dice say, if the state allows it.
    fn attempt(&mut self, cpu: u8) -> Option<Step> {
        let loaded = self.spec.cpus[usize::from(cpu)].loaded.is_some();
        let event = match self.rng.u8(..100) {
            10..40 if loaded => self.enter(cpu),
            0..10 => return Some(self.write()),
            10..16 => Event::Fill(16 << self.rng.u16(..5)),
            16..18 => Event::Check,
            18..20 => Event::Tick { after: 1 << self.rng.u32(6..18), kernel: false },
            dice => {
                let (function, args) = self.call(cpu, dice)?;
                self.perform(cpu, function, args)
            }
        };
        Some(Step { cpu, event })
    }

    /// A device's access takes its time: there are few, mostly of pages that have been written or given away.
    fn device(&mut self) -> Step {
        let write = self.rng.bool();
        let page = self.page(|this, page| {
            this.written[usize::from(page)] || !this.state(page).host_has_access()
        });
        let page = page.unwrap_or_else(|| self.rng.u8(..PAGES as u8));
        Step { cpu: self.cpu_of(page), event: Event::Device { page, write } }
    }

    /// A page's content is one CPU's to write.
    fn write(&mut self) -> Step {
        let any = |_: &Self, _: u8| true;
        let page = self.page(any).unwrap_or(0);
        if self.state(page).host_has_access() {
            self.written[usize::from(page)] = true;
        }
        Step { cpu: self.cpu_of(page), event: Event::Write(page) }
    }

    fn state(&self, page: u8) -> Owner {
        self.spec.memory.get(FIRST + u64::from(page)).unwrap_or(Owner::HOST)
    }

    /// The CPU at home in a page, which alone writes there.
    fn cpu_of(&self, page: u8) -> u8 {
        cpu_of_page(page, usize::from(self.cpus)) as u8
    }

    /// Some page that will do.
    fn page(&mut self, wanted: impl Fn(&Self, u8) -> bool) -> Option<u8> {
        let first = self.rng.u8(..PAGES as u8);
        let here = |page: u8| self.home.is_none_or(|cpu| self.cpu_of(page) == cpu);
        let mut all = (0..PAGES as u8).map(|n| (first + n) % PAGES as u8);
        all.find(|&page| here(page) && wanted(self, page))
    }

    fn page_in(&mut self, state: PageState) -> Option<u8> {
        self.page(|this, page| this.state(page).state == state)
    }

    /// Pages of a range: mostly a few, some of which may not be what the first is.
    fn count(&mut self) -> u64 {
        match self.rng.u8(..16) {
            0..8 => 1,
            8..14 => self.rng.u64(2..7),
            14 => PAGES as u64,
            _ => self.rng.u64(..1024),
        }
    }

    /// Pages of the block: all of it, or some.
    fn in_block(&mut self) -> (u16, u64) {
        match self.rng.u8(..4) {
            0 | 1 => (0, BLOCK.into()),
            2 => (0, self.rng.u64(1..u64::from(BLOCK))),
            _ => (self.rng.u16(..BLOCK), self.count()),
        }
    }

    /// So many pages of the host's in a row.
    fn run(&mut self, count: u64) -> Option<u8> {
        self.page(|this, page| {
            let end = u64::from(page) + count;
            end <= PAGES as u64 && (page..end as u8).all(|n| this.state(n) == Owner::HOST)
        })
    }

    /// A handle that is kept, of a VM like this.
    fn vm(&mut self, wanted: impl Fn(&vm::Vm) -> bool) -> Option<(u8, usize)> {
        let first = self.rng.usize(..HANDLES);
        let here =
            |n: usize| self.home.is_none_or(|cpu| n % usize::from(self.cpus) == usize::from(cpu));
        (0..HANDLES).map(|n| (first + n) % HANDLES).filter(|&n| here(n)).find_map(|n| {
            let handle = self.handles[n];
            let slot = usize::from(vm::slot(handle).ok()?);
            let vm = &self.spec.vms[slot];
            (vm.check(handle).is_ok() && wanted(vm)).then_some((n as u8, slot))
        })
    }

    fn call(&mut self, cpu: u8, dice: u8) -> Option<(Function, [Arg; 7])> {
        use Arg::{Block, Number, Page, Vm};
        let alive = |vm: &vm::Vm| vm.life == Life::Alive;
        let mut args = [Number(0); 7];
        let mut set = |from: &[Arg]| args[..from.len()].copy_from_slice(from);
        let function = match dice {
            0..=SHARE_FLAG_PAGE => {
                set(&[Page(self.page_in(PageState::Host)?, 0)]);
                Function::ShareFlagPage
            }
            24..26 => {
                set(&[Page(self.page_in(PageState::FlagPage)?, 0)]);
                Function::UnshareFlagPage
            }
            VM_CREATE..32 => {
                let count = self.rng.u64(4..10);
                let protected = self.rng.bool();
                let policies = [Policy::Lazy, Policy::Eager, Policy::Scrub];
                let policy = policies[self.rng.usize(..3)];
                let junk = self.rng.bool();
                let config = VmConfig { policy, protected, junk: junk && protected };
                set(&[Page(self.run(count)?, 0), Number(count), Number(config.encode())]);
                Function::VmCreate
            }
            VCPU_CREATE..40 => {
                let ready = |vm: &vm::Vm| !vm.maps.is_empty() || vm.generation.is_multiple_of(8);
                let (vm, slot) = self.vm(|vm| alive(vm) && vm.vcpus.len() < 6 && ready(vm))?;
                let (vqs, svqs) = (self.spec.platform.guest_vqs, self.spec.platform.guest_svqs);
                let (vq, svq) = (self.length(vqs), self.length(svqs));
                let features = match self.rng.u8(..6) {
                    0 => VcpuFeatures::AARCH32,
                    _ => VcpuFeatures { vq, svq, aarch32: false },
                };
                let count = features.pages();
                let flag_page = self.page_in(PageState::FlagPage)?;
                let pages = self.run(count)?;
                // Not in the block, where no code is.
                let maps = self.spec.vms[slot].maps.keys().copied();
                let maps: Vec<_> = maps.filter(|&ipa| ipa < GUEST_BLOCK).collect();
                let entry =
                    if maps.is_empty() { GUEST } else { maps[self.rng.usize(..maps.len())] };
                // In no order, but for a protected VM's first; and now and then one that is there already.
                let vm_of_it = &self.spec.vms[slot];
                let first = vm_of_it.protected && !vm_of_it.vcpus.contains_key(&0);
                let free: Vec<_> = (1..6).filter(|n| !vm_of_it.vcpus.contains_key(n)).collect();
                let index = match free.as_slice() {
                    _ if first => 0,
                    [] => self.rng.usize(..64),
                    free => free[self.rng.usize(..free.len())],
                } as u64;
                let affinity = if self.rng.u8(..4) == 0 { index ^ 1 } else { index };
                // Of a protected VM all but the first are off; of a normal one, some.
                let others = self.spec.vms[slot].protected && !first;
                let off = others || !self.spec.vms[slot].protected && self.rng.u8(..4) == 0;
                let features = UntrustedFeatures::from(features).0 | if off { OFF } else { 0 };
                let entry = if off { 0 } else { entry };
                let place = Number(count | index << 16 | affinity << 32);
                let (entry, features) = (Number(entry), Number(features));
                set(&[Vm(vm), Page(pages, 0), place, Page(flag_page, 0), features, entry]);
                Function::VcpuCreate
            }
            VM_MAP..54 if self.rng.u8(..6) == 0 => {
                let (vm, _) = self.vm(alive)?;
                let (start, count) = self.in_block();
                // Now and then where it makes no block.
                let shift = if self.rng.u8(..4) == 0 { PAGE } else { 0 };
                let ipa = GUEST_BLOCK + u64::from(start) * PAGE + shift;
                set(&[Vm(vm), Block(start), Number(ipa), Number(count)]);
                Function::VmMap
            }
            VM_MAP..54 => {
                let (vm, _) = self.vm(alive)?;
                let page = self.page(|this, page| {
                    this.state(page) == Owner::HOST && this.written[usize::from(page)]
                })?;
                let count = self.count();
                // Mostly close together; some far apart, which takes tables.
                let far = if self.rng.u8(..8) == 0 { self.rng.u64(..64) << 30 } else { GUEST };
                let alias = if self.rng.u8(..32) == 0 { ALIAS_BIT } else { 0 };
                let ipa = (far + self.rng.u64(..16) * PAGE) | alias;
                set(&[Vm(vm), Page(page, 0), Number(ipa), Number(count)]);
                Function::VmMap
            }
            54..57 => {
                let (vm, slot) = self.vm(|vm| alive(vm) && !vm.maps.is_empty())?;
                let maps: Vec<_> = self.spec.vms[slot].maps.keys().copied().collect();
                let (at, count) = (maps[self.rng.usize(..maps.len())], self.count());
                set(&[Vm(vm), Number(at), Number(count)]);
                Function::VmUnmap
            }
            57 if self.rng.bool() => {
                let (vm, slot) = self.vm(|vm| alive(vm) && !vm.maps.is_empty())?;
                let maps: Vec<_> = self.spec.vms[slot].maps.keys().copied().collect();
                let at = maps[self.rng.usize(..maps.len())];
                // A page that is shared at its alias is looked up where it was.
                let alias = if self.rng.u8(..8) == 0 { 0 } else { ALIAS_BIT };
                set(&[Vm(vm), Number(at & !alias)]);
                Function::VmLookup
            }
            57..59 => {
                let (vm, _) = self.vm(alive)?;
                let count = self.rng.u64(1..4);
                set(&[Vm(vm), Page(self.run(count)?, 0), Number(count)]);
                Function::VmTopup
            }
            VCPU_LOAD..69 => {
                if self.spec.cpus[usize::from(cpu)].loaded.is_some() {
                    return None;
                }
                let (vm, slot) = self.vm(|vm| alive(vm) && !vm.vcpus.is_empty())?;
                // What is built must be sealed before it runs; now and then it is tried without.
                let (protected, sealed) =
                    (self.spec.vms[slot].protected, self.spec.vms[slot].sealed);
                if protected && !sealed && self.rng.u8(..4) != 0 {
                    set(&[Vm(vm)]);
                    Function::VmSeal
                } else {
                    set(&[Vm(vm), Number(self.vcpu(slot))]);
                    Function::VcpuLoad
                }
            }
            69..74 => {
                self.spec.cpus[usize::from(cpu)].loaded?;
                Function::VcpuPut
            }
            74..76 => {
                let (vm, _) = self.vm(|vm| vm.life != Life::Dying)?;
                set(&[Vm(vm)]);
                Function::VmDestroy
            }
            76..92 => {
                let (vm, slot) = self.vm(|vm| vm.life == Life::Dying)?;
                let of_it = |owner: Owner| {
                    usize::from(owner.vm) == slot
                        && matches!(
                            owner.state,
                            PageState::Vm
                                | PageState::Guest
                                | PageState::SharedWithGuest
                                | PageState::SharedByGuest
                        )
                };
                let of_block = |&n: &u16| {
                    let page = BLOCK_FIRST + u64::from(n);
                    self.spec.memory.get(page).is_some_and(&of_it)
                };
                match (0..BLOCK).find(of_block).filter(|_| self.rng.u8(..3) == 0) {
                    Some(start) => {
                        let count = self.in_block().1;
                        set(&[Vm(vm), Block(start), Number(count)]);
                    }
                    None => {
                        let page = self.page(|this, page| of_it(this.state(page)))?;
                        let count = self.count();
                        set(&[Vm(vm), Page(page, 0), Number(count)]);
                    }
                }
                Function::VmReclaim
            }
            92 => {
                set(&[Page(0, 0)]);
                Function::NextSharedPage
            }
            93 => {
                let (vm, slot) = self.vm(|vm| alive(vm) && !vm.vcpus.is_empty())?;
                let (flags, entry) = if self.rng.bool() { (OFF, 0) } else { (0, GUEST) };
                let vcpu = Number(self.vcpu(slot));
                set(&[Vm(vm), vcpu, Number(flags), Number(entry)]);
                Function::VcpuReset
            }
            97 => {
                let (vm, slot) = self.vm(|vm| alive(vm) && !vm.vcpus.is_empty())?;
                let vcpu = Number(self.vcpu(slot));
                let (kind, n) = match self.rng.u64(..6) {
                    // TPIDR_EL0 and what is beside it, as often as any.
                    2 => (2, 0xde82 ^ self.rng.u64(..8)),
                    kind => (kind, self.rng.u64(..33)),
                };
                let register = Number(kind << 32 | n << 8 | u64::from(self.rng.u8(..3) == 2));
                // What may be written is harmless for the guest's agent, which has to go on.
                let harmless = matches!(kind, 2..=5);
                set(&[Vm(vm), vcpu, register, Number(self.rng.u64(..)), Number(0)]);
                if harmless && self.rng.bool() { Function::VcpuWrite } else { Function::VcpuRead }
            }
            94 => Function::Version,
            95 => {
                set(&[Number(self.rng.u64(..5)), Number(self.rng.u64(..4))]);
                Function::Stats
            }
            96 => {
                let all = if self.rng.bool() { u64::MAX } else { self.rng.u64(..5) };
                set(&[Number(all)]);
                Function::VlInfo
            }
            _ => {
                let functions = Function::ALL;
                let function = functions[self.rng.usize(..functions.len())];
                for arg in &mut args {
                    *arg = self.any();
                }
                return (function != Function::VcpuRun).then_some((function, args));
            }
        };
        if self.rng.u8(..8) == 0 {
            args[self.rng.usize(..4)] = self.any();
        }
        Some((function, args))
    }

    /// The index of a vCPU of a VM that has one.
    fn vcpu(&mut self, slot: usize) -> u64 {
        let all: Vec<_> = self.spec.vms[slot].vcpus.keys().collect();
        *all[self.rng.usize(..all.len())] as u64
    }

    /// One of these lengths, or none.
    fn length(&mut self, lengths: VqSet) -> Option<Vq> {
        let lengths: Vec<_> = lengths.iter().collect();
        if lengths.is_empty() || self.rng.u8(..3) == 0 {
            return None;
        }
        Some(lengths[self.rng.usize(..lengths.len())])
    }

    /// Anything. Never a number that is an address of RAM.
    fn any(&mut self) -> Arg {
        let rng = &mut self.rng;
        match rng.u8(..12) {
            0..4 => Arg::Page(rng.u8(..PAGES as u8), 0),
            4 => Arg::Page(rng.u8(..PAGES as u8), 1 << rng.u16(..12)),
            5 | 6 => Arg::Vm(rng.u8(..HANDLES as u8)),
            7 => Arg::Hyp,
            8 => Arg::Mmio,
            9 => Arg::Number(rng.u64(..20)),
            10 => Arg::Number(1 << 62 | 1 << rng.u64(..62)),
            _ => Arg::Number(rng.u64(..) | 1 << 63),
        }
    }

    /// Carries a call out on the guide's own specification.
    fn perform(&mut self, cpu: u8, function: Function, args: [Arg; 7]) -> Event {
        let slot = self.spec.vms.iter().position(|vm| vm.life == Life::Free).unwrap_or(0);
        let next = vm::handle(slot as u8, self.spec.vms[slot].generation + 1);
        let numbers = args.map(|arg| match arg {
            Arg::Number(n) => n,
            Arg::Page(n, offset) => (FIRST + u64::from(n)) * PAGE + u64::from(offset),
            Arg::Block(n) => (BLOCK_FIRST + u64::from(n)) * PAGE,
            Arg::Vm(n) => self.handles[usize::from(n)].0,
            Arg::Hyp => HYP * PAGE,
            Arg::Mmio => 0x0900_0000,
        });
        let keep = (function == Function::VmCreate).then(|| {
            let n = self.rng.u8(..HANDLES as u8);
            // At home, if there is one.
            self.home.map_or(n, |cpu| {
                let own = n / self.cpus * self.cpus + cpu;
                if usize::from(own) < HANDLES { own } else { cpu }
            })
        });
        let mut done = false;
        if let Ok(call) = call::Call::decode(function.id(), &numbers) {
            // No interrupt: x2 is then none of a range.
            let choice = Choice { no_slot: false, x1: next.0, x2: 0, register: None };
            let outcome = self.spec.call(usize::from(cpu), &call, choice);
            done = outcome.result.is_ok();
            // A page that comes back from a VM was wiped, or is what the guest made of it.
            if let call::Call::VmReclaim { .. } = call {
                for n in 0..PAGES as u8 {
                    if outcome.changes.contains_key(&(FIRST + u64::from(n))) {
                        self.written[usize::from(n)] = false;
                    }
                }
            }
        }
        self.accepted += usize::from(done);
        if let (Some(n), true) = (keep, done) {
            self.handles[usize::from(n)] = next;
        }
        Event::Call(Call { function, args, keep })
    }

    /// An entry into the loaded vCPU, for its agent to do something.
    fn enter(&mut self, cpu: u8) -> Event {
        let loaded = self.spec.cpus[usize::from(cpu)].loaded;
        let streams = loaded.is_some_and(|(slot, index)| {
            self.spec.vms[usize::from(slot)].vcpus[&index].features.svq.is_some()
        });
        let rng = &mut self.rng;
        let flags = match rng.u8(..32) {
            0..4 => {
                // More than fit, at times; which they are the payload chooses.
                let few = if rng.u8(..8) == 0 { rng.usize(..32) } else { rng.usize(1..5) };
                (RunFlags::from_bits_retain(rng.u64(..2))).with_entries(few).bits()
            }
            4 => rng.u64(..8),
            5 => rng.u64(..),
            _ => 0,
        };
        let mut command = [Arg::Number(0); 3];
        match rng.u8(..7) {
            0 => {
                command = [Arg::Number(1), Arg::Number(AGENTS | rng.u64(..1 << 48)), Arg::Number(0)]
            }
            1 => {
                // CPU_ON mostly, at the caller's own page, of a vCPU that there may be.
                let (what, function) = match rng.u8(..16) {
                    0 => (2, CPU_OFF),
                    1 => (2, SYSTEM_OFF + rng.u64(..2)),
                    2 | 3 => (2, AFFINITY_INFO),
                    4 => (2, PSCI + rng.u64(..0x20) + (rng.u64(..2) << 30)),
                    5 => (2, 0x8000_0000 + rng.u64(..4)),
                    _ => (5, CPU_ON),
                };
                let vcpu = rng.u64(..4);
                command = [Arg::Number(what), Arg::Number(function), Arg::Number(vcpu)];
                if function == CPU_ON {
                    // Most get there.
                    let function = CPU_ON as u32;
                    let args = [vcpu, GUEST, 0];
                    let call = GuestCall { function, args, again: false, x1: 0 };
                    self.spec.guest_call(usize::from(cpu), call);
                }
            }
            // Guests of every other VM use RSI, mostly: whoever uses both uses the first.
            2..4 if loaded.is_some_and(|(slot, _)| slot % 2 == 0) == (rng.u8(..8) != 0) => {
                let (function, range) = self.rsi(cpu);
                command = [Arg::Number(6), Arg::Number(function.id()), Arg::Number(range)];
            }
            2..4 => {
                let functions = GuestFunction::ALL;
                let function = functions[rng.usize(..functions.len())];
                let maps: Vec<_> = match loaded {
                    Some((slot, _)) if rng.u8(..4) != 0 => {
                        self.spec.vms[usize::from(slot)].maps.keys().copied().collect()
                    }
                    _ => Vec::new(),
                };
                let ipa = match maps.as_slice() {
                    [] => GUEST + rng.u64(..16) * PAGE,
                    maps => maps[rng.usize(..maps.len())],
                };
                // At its own address or at its alias, whichever it is not at, too.
                let ipa = if rng.u8(..3) == 0 { ipa ^ ALIAS_BIT } else { ipa };
                // And what has been shared is taken back, mostly.
                let (function, ipa) = match self.shared[usize::from(cpu)] {
                    Some(ipa) if rng.u8(..3) != 0 => (TAKEN_BACK[rng.usize(..4)], ipa),
                    _ => (function, ipa),
                };
                if function == GuestFunction::MemShare {
                    self.shared[usize::from(cpu)] = Some(ipa);
                }
                // Whether the guest gets there the guide can't know, so it does not count on it.
                command = [Arg::Number(2), Arg::Number(function.id()), Arg::Number(ipa)];
            }
            4 if streams => command = [Arg::Number(4), Arg::Number(rng.u64(..4)), Arg::Number(0)],
            4 | 5 => command[0] = Arg::Number(3),
            _ => {}
        }
        let [a, b, c] = command;
        Event::Enter([Arg::Number(flags), a, b, c])
    }
}

impl Guide {
    /// An RSI call, and the range that the agent makes it of.
    fn rsi(&mut self, cpu: u8) -> (RsiFunction, u64) {
        let loaded = self.spec.cpus[usize::from(cpu)].loaded;
        let rng = &mut self.rng;
        let maps: Vec<_> = loaded.map_or_else(Vec::new, |(slot, _)| {
            self.spec.vms[usize::from(slot)].maps.keys().copied().collect()
        });
        let ipa = match maps.as_slice() {
            maps @ [_, ..] if rng.u8(..4) != 0 => maps[rng.usize(..maps.len())],
            _ => GUEST + rng.u64(..16) * PAGE,
        };
        let function = match rng.u8(..8) {
            0 => RsiFunction::ALL[rng.usize(..RsiFunction::ALL.len())],
            1 | 2 => RsiFunction::IpaStateGet,
            _ => RsiFunction::IpaStateSet,
        };
        // What is EMPTY becomes RAM, mostly; and all around it.
        let (ipa, ripas) = match self.shared[usize::from(cpu)].take() {
            Some(ipa) if rng.u8(..4) != 0 => (ipa, Ripas::Ram as u64),
            _ => (ipa, rng.u64(..2)),
        };
        if ripas == Ripas::Empty as u64 && function == RsiFunction::IpaStateSet {
            self.shared[usize::from(cpu)] = Some(ipa);
        }
        let count = if rng.u8(..2) == 0 { 1 } else { rng.u64(..256) };
        // At times none of it: the upper half, a number that is no RIPAS, no page's address.
        let odd = match rng.u8(..16) {
            0 => ALIAS_BIT,
            1 => 2,
            _ => 0,
        };
        (function, (ipa | odd) + (count << 4) + ripas)
    }
}

/// In VCPU_CREATE's features and in VCPU_RESET's flags: off.
const OFF: u64 = 1 << 33;

/// What becomes of a page that a guest shares.
const TAKEN_BACK: [GuestFunction; 4] = [
    GuestFunction::MemUnshare,
    GuestFunction::MemUnshare,
    GuestFunction::MemRelinquish,
    GuestFunction::MemShare,
];

const PSCI: u64 = 0x8400_0000;
const CPU_OFF: u64 = 0x8400_0002;
const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;
const SYSTEM_OFF: u64 = 0x8400_0008;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn most_calls_are_meant_and_every_function_comes() {
        let (mut accepted, mut calls) = (0, 0);
        let mut seen = BTreeSet::new();
        for seed in 0..60 {
            let (steps, done) = guided(seed, &[64, 256, 16, 32], &[32, 128, 16, 64]);
            accepted += done;
            for step in steps {
                if let Event::Call(call) = step.event {
                    calls += 1;
                    seen.insert(call.function.name());
                }
            }
        }
        assert!(2 * accepted > calls, "{accepted} of {calls} calls accepted");
        assert_eq!(seen.len(), Function::ALL.len() - 1, "all but VCPU_RUN: {seen:?}");
    }

    #[test]
    fn one_seed_is_one_program() {
        let program = |seed| generate(seed, &[16, 16], &[16, 32]);
        assert_eq!(program(3), program(3));
        assert_ne!(program(3), program(4));
    }

    /// How many vCPUs of a machine's programs have SME, and how often one is told to change its mode.
    fn streaming(svls: &[u16]) -> (usize, usize) {
        let (mut created, mut told) = (0, 0);
        for seed in 0..60 {
            for step in generate(seed, &[64, 256], svls) {
                match step.event {
                    Event::Call(Call { function: Function::VcpuCreate, args, .. }) => {
                        let Arg::Number(features) = args[4] else { continue };
                        let features = UntrustedFeatures(features & !OFF);
                        let asked = !features.has_reserved() && features.svl_bytes() != 0;
                        created +=
                            usize::from(asked && Vq::from_vl(features.svl_bytes()).is_some());
                    }
                    Event::Enter([_, Arg::Number(4), ..]) => told += 1,
                    _ => {}
                }
            }
        }
        (created, told)
    }

    #[test]
    fn vcpus_have_sme_where_the_machine_has() {
        let (created, told) = streaming(&[64, 32]);
        assert!(created > 100 && told > 100, "{created} created, {told} told");
        assert_eq!(streaming(&[0, 0]), (0, 0));
    }
}
