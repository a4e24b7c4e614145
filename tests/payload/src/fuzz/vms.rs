//! The VMs of a program, and entries into their vCPUs.

use super::{guest32, order};
use crate::{
    context::context,
    own_gic::{self, Own},
    task::Task,
    workers,
};
use core::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
};
use umbra_fuzz::{
    coverage::Kind,
    program::{Run, VCPUS, VMS, VcpuName},
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{
        supply::{self, Pages},
        sync::{Lock, Once},
        timer::Patience,
    },
    vcpu::{Answer, ExitHandler, LoadedVcpu, MmioAnswer, Supplied, Vcpu, Wait},
    vgic::{VcpuCell, Vgic},
    vm::{BuildError, Line, PageSupplier, VcpuSettings, Vm},
};
use umbra_patterns::{
    pattern::whose_of,
    protocol::{ARGUMENT, Argument, BASE, Command, FAIL, Failure, Mode, NEXT, counter},
};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuIndex, VmConfig, VmHandle},
    error::Error,
    exit::{MmioAccess, SystemEvent},
    flags::{FlagShadowPage, HostFlags},
    guest::{NOT_SUPPORTED, is_hosts},
    vcpu::VcpuFeatures,
    vl::{Vq, VqSet},
};

/// Owners of guests' tags: each vCPU has one of its own, so that none is taken for one that lived
/// before it in the same place.
const OWNERS: core::ops::Range<u16> = 0x200..0x1e00;
/// Seconds that a guest may take for one command, and looks in each: there is one at every exit.
const PATIENCE: u64 = 60;
const LOOKS: u64 = 100;

/// PSCI CPU_OFF.
const CPU_OFF: u64 = 0x8400_0002;

/// A loaded vCPU.
pub type Loaded<'v> = LoadedVcpu<'v, Hvc>;

/// A vCPU, and what must be known to go on with it.
pub struct Driven {
    pub vcpu: Vcpu,
    pub flags: &'static FlagShadowPage,
    pub book: Book,
    /// A GIC of its own: of interrupts it has its timer's.
    pub gic: Vgic<'static>,
}

/// Their cells.
static CELLS: [[[VcpuCell; 1]; VCPUS]; VMS] =
    [const { [const { [const { VcpuCell::new(0) }; 1] }; VCPUS] }; VMS];

/// Where a guest is.
#[derive(Default)]
pub struct Book {
    /// Its VM's slot.
    vm: usize,
    number: u64,
    /// It is AArch32.
    aarch32: bool,
    /// It waits for a command.
    waits: bool,
    /// Commands it has been given.
    given: u64,
    /// The counter device.
    sum: u64,
    /// The answer to the MMIO access at which it was left.
    open: Option<u64>,
}

impl Book {
    /// x0 and x1 of the answer that gives this command.
    fn encode(&self, command: Command) -> [u64; 2] {
        if self.aarch32 { guest32::encode(command, self.given) } else { command.encode() }
    }
}

struct Slot {
    vm: Vm<[Line; 64]>,
    handle: VmHandle,
    vcpus: [Option<Driven>; VCPUS],
    /// How many have been created.
    count: usize,
    dying: bool,
    /// It gets no vCPU any more.
    sealed: bool,
}

static SLOTS: [Lock<Option<Slot>>; VMS] = [const { Lock::new(None) }; VMS];
static GUEST: Once<&'static [u8]> = Once::new();
static NEXT_OWNER: AtomicU16 = AtomicU16::new(0);

/// Where each vCPU starts, and its argument; 0: nobody has to turn it on.
static START: [[[AtomicU64; 2]; VCPUS]; VMS] =
    [const { [const { [const { AtomicU64::new(0) }; 2] }; VCPUS] }; VMS];
/// Whether it is on.
static ON: [[AtomicBool; VCPUS]; VMS] = [const { [const { AtomicBool::new(false) }; VCPUS] }; VMS];

fn set_on(name: VcpuName, on: bool) {
    ON[usize::from(name.vm)][usize::from(name.vcpu)].store(on, Ordering::SeqCst);
}

/// Whether a vCPU is on.
pub fn is_on(name: VcpuName) -> bool {
    ON[usize::from(name.vm)][usize::from(name.vcpu)].load(Ordering::SeqCst)
}

/// Before a program: there are no VMs.
pub fn begin(guest: &'static [u8]) {
    GUEST.call_once(|| guest);
    for slot in &SLOTS {
        assert!(slot.lock().is_none(), "a VM of the program before is still there");
    }
}

/// The page allocator, which remembers the flag-shadow page it gave.
struct Supplier(Option<&'static FlagShadowPage>);

impl PageSupplier for Supplier {
    fn allocate(&mut self, count: u64) -> Option<u64> {
        Pages.allocate(count)
    }

    fn free(&mut self, first: u64, count: u64) {
        Pages.free(first, count);
    }

    fn flag_page(&mut self, pa: u64) -> &'static FlagShadowPage {
        let page = Pages.flag_page(pa);
        self.0 = Some(page);
        page
    }
}

/// Builds a VM if there is none in the slot.
pub fn create(slot: usize, config: VmConfig) -> u64 {
    let start = &START[slot];
    let mut slot = SLOTS[slot].lock();
    if slot.is_some() {
        return 1;
    }
    // Nobody turns on what the last VM here had.
    start.iter().for_each(|vcpu| vcpu[1].store(0, Ordering::SeqCst));
    let mut vm = match Vm::create([Line::FREE; 64], &Hvc, &mut Pages, config) {
        Ok(vm) => vm,
        // VMs of junk may have taken all that hyp has.
        Err(BuildError::Hyp(Error::Limit)) => return 2,
        Err(error) => panic!("VM_CREATE: {error}"),
    };
    let guest = GUEST.get().expect("set before the first program");
    let (first, count) = supply::image(guest).expect("memory for the guest");
    if let Err(error) = vm.map(&Hvc, &mut Pages, first, count, BASE) {
        panic!("VM_MAP: {error}");
    }
    if context().aarch32() {
        guest32::map(&mut vm);
    }
    let handle = vm.handle();
    let vcpus = [const { None }; VCPUS];
    *slot = Some(Slot { vm, handle, vcpus, count: 0, dying: false, sealed: false });
    0
}

/// Creates a vCPU in its place, if it is the next one.
pub fn create_vcpu(name: VcpuName, vl: u16, svl: u16) -> u64 {
    let (vq, svq) = (Vq::from_vl(vl.into()), Vq::from_vl(svl.into()));
    // What is no vector length at all can't even be asked for through the library.
    if (vq.is_none() && vl != 0) || (svq.is_none() && svl != 0) {
        return 2;
    }
    create_with(name, VcpuFeatures { vq, svq, aarch32: false })
}

/// The same of an AArch32 one.
pub fn create_vcpu32(name: VcpuName) -> u64 {
    create_with(name, VcpuFeatures::AARCH32)
}

fn create_with(name: VcpuName, features: VcpuFeatures) -> u64 {
    let mut slot = SLOTS[usize::from(name.vm)].lock();
    let Some(slot) = slot.as_mut().filter(|slot| slot.count == usize::from(name.vcpu)) else {
        return 1;
    };
    if slot.dying {
        return 2;
    }
    let owner =
        OWNERS.start + NEXT_OWNER.fetch_add(1, Ordering::SeqCst) % (OWNERS.end - OWNERS.start);
    let start = if features.aarch32 && context().aarch32() {
        [guest32::entry(), guest32::argument(owner, name.vcpu)]
    } else {
        let VcpuFeatures { vq, svq, .. } = features;
        let argument = Argument { vcpu: name.vcpu, owner, vq, svq, mode: Mode::Driven };
        [BASE, argument.encode()]
    };
    // Of a protected VM the first vCPU turns the others on.
    let off = slot.vm.config().protected && name.vcpu != 0;
    let [entry, argument] = start;
    // Until it is there, nobody can turn it on.
    let told = START[usize::from(name.vm)][usize::from(name.vcpu)].each_ref();
    told[0].store(entry, Ordering::SeqCst);
    told[1].store(0, Ordering::SeqCst);
    set_on(name, !off);
    let start = if off { Start::Off } else { Start::At { entry, argument } };
    let settings = VcpuSettings {
        index: VcpuIndex(name.vcpu.into()),
        affinity: UntrustedAffinity(name.vcpu.into()),
        features,
        start,
    };
    let mut supplier = Supplier(None);
    match slot.vm.create_vcpu(&Hvc, &mut supplier, settings) {
        Ok(vcpu) => {
            assert!(!slot.sealed, "a vCPU is made in a protected VM that is sealed");
            told[1].store(if off { argument } else { 0 }, Ordering::SeqCst);
            assert!(possible(features), "a vCPU has a vector length that guests can't have");
            let flags = supplier.0.expect("asked for while creating");
            let (number, aarch32) = (name.vcpu.into(), features.aarch32);
            let vm = name.vm.into();
            let book = Book { vm, number, aarch32, ..Book::default() };
            let cells = &CELLS[usize::from(name.vm)][usize::from(name.vcpu)];
            let gic = own_gic::enabled(cells, &[]);
            slot.vcpus[slot.count] = Some(Driven { vcpu, flags, book, gic });
            slot.count += 1;
            0
        }
        Err(BuildError::Hyp(Error::BadVl | Error::NoSve | Error::NoSme | Error::NoAarch32))
            if !possible(features) =>
        {
            3
        }
        Err(BuildError::Hyp(Error::Sealed)) if slot.sealed => 4,
        Err(error) => panic!("VCPU_CREATE: {error}"),
    }
}

fn possible(features: VcpuFeatures) -> bool {
    among(features, context().guests, context().guests_streaming)
        && (context().aarch32() || !features.aarch32)
}

fn among(features: VcpuFeatures, vqs: VqSet, svqs: VqSet) -> bool {
    let within = |length: Option<Vq>, set: VqSet| length.is_none_or(|vq| set.contains(vq));
    within(features.vq, vqs) && within(features.svq, svqs)
}

/// Whether a CPU has what a vCPU needs.
pub fn fits(features: VcpuFeatures, cpu: usize) -> bool {
    among(features, context().vqs[cpu], context().svqs[cpu])
}

/// Takes a VM down, if no CPU has one of its vCPUs loaded.
pub fn destroy(slot: usize) -> u64 {
    let mut place = SLOTS[slot].lock();
    let Some(mut slot) = place.take() else { return 1 };
    let all_here = slot.vcpus.iter().flatten().count() == slot.count;
    // Asked before the library is, which wants all vCPUs at once.
    match Hvc.vm_destroy(slot.handle) {
        // In a storm the last of them may just have been put and be on its way here, or may be here
        // while the CPU that had it goes off.
        Ok(()) if all_here || order::is_storm() => slot.dying = true,
        Err(Error::Dying) if slot.dying => {}
        // From now on none of its vCPUs can be loaded.
        Err(Error::Busy) if !all_here || order::is_storm() => {
            slot.dying = true;
            *place = Some(slot);
            return 2;
        }
        other => panic!("VM_DESTROY, all vCPUs put: {all_here}: {other:?}"),
    }
    if !all_here {
        *place = Some(slot);
        return 3;
    }
    let vcpus = slot.vcpus.map(|driven| driven.map(|driven| driven.vcpu));
    match slot.vm.destroy(&Hvc, &mut Pages, vcpus.into_iter().flatten()) {
        Ok(()) => 0,
        Err(failure) => panic!("VM_DESTROY: {}", failure.error),
    }
}

/// Whether a VM's teardown has begun.
pub fn is_dying(name: VcpuName) -> bool {
    SLOTS[usize::from(name.vm)].lock().as_ref().is_some_and(|slot| slot.dying)
}

/// What became of [`take`].
#[allow(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub enum Taken {
    /// Nobody else has it.
    Here(Driven),
    /// Some CPU has it.
    Elsewhere(VmHandle, VcpuIndex),
    /// There is no such vCPU.
    Nowhere,
}

/// A protected VM is built until somebody wants one of its vCPUs to run: then it is sealed. Returns the vCPU that
/// turns the others on, if there are others.
pub fn seal(name: VcpuName) -> Option<VcpuName> {
    let mut slot = SLOTS[usize::from(name.vm)].lock();
    let slot = slot.as_mut().filter(|slot| usize::from(name.vcpu) < slot.count)?;
    if !slot.vm.config().protected || slot.sealed || slot.dying {
        return None;
    }
    let early = Hvc.vcpu_load(slot.handle, VcpuIndex(name.vcpu.into()));
    assert_eq!(early, Err(Error::NotSealed), "VCPU_LOAD before the seal");
    if let Err(error) = slot.vm.seal(&Hvc) {
        panic!("VM_SEAL: {error}");
    }
    slot.sealed = true;
    (slot.count > 1).then_some(VcpuName { vcpu: 0, ..name })
}

/// Takes a vCPU out of its place, to be loaded.
pub fn take(name: VcpuName) -> Taken {
    let mut slot = SLOTS[usize::from(name.vm)].lock();
    let Some(slot) = slot.as_mut().filter(|slot| usize::from(name.vcpu) < slot.count) else {
        return Taken::Nowhere;
    };
    match slot.vcpus[usize::from(name.vcpu)].take() {
        Some(driven) => Taken::Here(driven),
        None => Taken::Elsewhere(slot.handle, VcpuIndex(name.vcpu.into())),
    }
}

/// Puts it back.
pub fn give_back(name: VcpuName, driven: Driven) {
    let mut slot = SLOTS[usize::from(name.vm)].lock();
    let slot = slot.as_mut().expect("a VM stays while one of its vCPUs is out");
    slot.vcpus[usize::from(name.vcpu)] = Some(driven);
}

/// VCPU_LOAD while another vCPU is loaded on this CPU: refused, whatever it names.
pub fn load_another(name: VcpuName) {
    let handle = SLOTS[usize::from(name.vm)].lock().as_ref().map(|slot| slot.handle);
    let handle = handle.unwrap_or(VmHandle(u64::MAX));
    let refused = Hvc.vcpu_load(handle, VcpuIndex(name.vcpu.into()));
    assert!(refused.is_err(), "a second vCPU is loaded on this CPU");
}

/// What the run of a vCPU needs beside it.
pub struct Entry<'b> {
    book: &'b mut Book,
    pub flags: &'static FlagShadowPage,
    gic: Own<'b>,
}

impl<'b> Entry<'b> {
    /// Of this vCPU.
    pub fn of(book: &'b mut Book, flags: &'static FlagShadowPage, gic: &'b Vgic<'b>) -> Self {
        Self { book, flags, gic: own_gic::first(gic) }
    }

    /// Runs the vCPU until it has obeyed, or left before if that will do. `seen` is told of each exit.
    pub fn run(
        &mut self,
        loaded: &mut Loaded<'_>,
        task: &mut Task,
        run: Run,
        seen: &dyn Fn(Kind, &FlagShadowPage),
    ) -> u64 {
        if let Some(data) = self.book.open.take() {
            loaded.answer_mmio(MmioAnswer::Read(data));
        }
        let mut command = Some(run.command);
        if self.book.waits {
            let [x0, x1] = self.book.encode(run.command);
            loaded.answer([x0, x1, 0, 0]);
            self.book.waits = false;
            self.book.given += 1;
            command = None;
        }
        let patience = Patience::new(PATIENCE, LOOKS);
        let flags = self.flags;
        let mut exits = Exits { book: self.book, command, once: run.once, flags, seen, patience };
        let stop = match loaded.run(task, &mut self.gic, &mut exits) {
            Ok(stop) => stop,
            Err(error) => panic!("VCPU_RUN: {error}"),
        };
        match stop {
            Stop::Done => 0,
            Stop::Left => 1,
            Stop::Failed(failure) => named(failure),
            Stop::Failed32(found) => guest32::failed(found),
            Stop::Broken(esr) => panic!("the guest broke: ESR_EL2 {esr:#x}"),
            Stop::Nothing(address) => panic!("the guest accesses {address:#x}"),
            Stop::Tables => panic!("a VM of two regions takes more tables"),
            Stop::Strange(x0) => panic!("the guest says {x0:#x}"),
            Stop::Stuck => panic!("the guest makes no progress"),
        }
    }
}

/// A guest's failure, with what it found traced to whose it is.
fn named(failure: Failure) -> ! {
    if let Failure::Register { found, .. } = failure {
        panic!("guest: {failure} ({:?})", whose_of(found));
    }
    panic!("guest: {failure}");
}

enum Stop {
    /// The guest has obeyed.
    Done,
    /// It was left at an exit, or everybody has to stop.
    Left,
    Failed(Failure),
    Failed32([u64; 3]),
    Broken(u64),
    Nothing(u64),
    Strange(u64),
    /// A call takes more tables.
    Tables,
    Stuck,
}

struct Exits<'e> {
    book: &'e mut Book,
    command: Option<Command>,
    once: bool,
    flags: &'static FlagShadowPage,
    seen: &'e dyn Fn(Kind, &FlagShadowPage),
    patience: Patience,
}

impl Exits<'_> {
    fn leave(&mut self) -> ControlFlow<Stop> {
        if self.once || order::stopped() {
            ControlFlow::Break(Stop::Left)
        } else if self.patience.is_over() {
            ControlFlow::Break(Stop::Stuck)
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl ExitHandler for Exits<'_> {
    type Stop = Stop;

    fn interrupt(&mut self) -> ControlFlow<Stop> {
        (self.seen)(Kind::ExitIrq, self.flags);
        self.leave()
    }

    fn wfi(&mut self, _: Wait) -> ControlFlow<Stop> {
        (self.seen)(Kind::ExitWfi, self.flags);
        self.leave()
    }

    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Stop, Answer> {
        (self.seen)(Kind::ExitHvc, self.flags);
        match x[0] {
            NEXT if x[1] != self.book.given => {
                ControlFlow::Break(Stop::Failed(Failure::Echo(x[1])))
            }
            NEXT => match self.command.take() {
                Some(command) => {
                    let [x0, x1] = self.book.encode(command);
                    self.book.given += 1;
                    ControlFlow::Continue([x0, x1, 0, 0])
                }
                None => {
                    self.book.waits = true;
                    ControlFlow::Break(Stop::Done)
                }
            },
            FAIL if self.book.aarch32 => ControlFlow::Break(Stop::Failed32([x[1], x[2], x[3]])),
            FAIL => {
                let failure = Failure::decode([x[1], x[2], x[3], x[4], x[5]]);
                ControlFlow::Break(Stop::Failed(failure))
            }
            ARGUMENT => {
                let of_vm = &START[self.book.vm];
                let start = usize::try_from(x[1]).ok().and_then(|vcpu| of_vm.get(vcpu));
                let [entry, argument] = start.map_or([0; 2], |start| {
                    start.each_ref().map(|word| word.load(Ordering::SeqCst))
                });
                ControlFlow::Continue([argument, entry, 0, 0])
            }
            // A normal guest asks for what only a protected one has.
            x0 if !is_hosts(x0) => ControlFlow::Continue([NOT_SUPPORTED as u64, 0, 0, 0]),
            x0 => ControlFlow::Break(Stop::Strange(x0)),
        }
    }

    fn mmio(
        &mut self,
        address: u64,
        access: MmioAccess,
        data: u64,
    ) -> ControlFlow<Stop, MmioAnswer> {
        (self.seen)(Kind::ExitMmio, self.flags);
        if address != counter(self.book.number, 8) || access.bytes != 8 {
            return ControlFlow::Break(Stop::Nothing(address));
        }
        if access.write {
            self.book.sum = self.book.sum.wrapping_add(data);
        }
        if let ControlFlow::Break(stop) = self.leave() {
            self.book.open = Some(self.book.sum);
            return ControlFlow::Break(stop);
        }
        ControlFlow::Continue(MmioAnswer::Read(self.book.sum))
    }

    fn fault(&mut self, address: u64) -> ControlFlow<Stop, Supplied> {
        ControlFlow::Break(Stop::Nothing(address))
    }

    fn tables(&mut self) -> ControlFlow<Stop, Supplied> {
        ControlFlow::Break(Stop::Tables)
    }

    fn cpu_on(&mut self, VcpuIndex(index): VcpuIndex) -> ControlFlow<Stop> {
        set_on(VcpuName { vm: self.book.vm as u8, vcpu: index as u8 }, true);
        ControlFlow::Continue(())
    }

    fn cpu_off(&mut self) -> Stop {
        Stop::Strange(CPU_OFF)
    }

    fn system(&mut self, event: SystemEvent, _: u64, _: u64) -> Stop {
        Stop::Strange(event as u64)
    }

    fn broken(&mut self, esr: u64) -> Stop {
        Stop::Broken(esr)
    }
}

/// The end of a program: every vCPU still has its registers, on a CPU that can run it, and every VM
/// goes away.
pub fn check_and_destroy() {
    for (slot, vm) in SLOTS.iter().enumerate() {
        for vcpu in 0..VCPUS {
            let name = VcpuName { vm: slot as u8, vcpu: vcpu as u8 };
            let dying = is_dying(name);
            // Its first vCPU, which is looked at first, turns the others on.
            let _ = seal(name);
            let Taken::Here(driven) = take(name) else { continue };
            let features = driven.vcpu.features();
            let cpu = (0..context().cpus).find(|&cpu| fits(features, cpu));
            let held = Lock::new(Some(driven));
            if let (Some(cpu), false) = (cpu, dying) {
                workers::on(cpu, || {
                    if let Some(driven) = held.lock().as_mut().filter(|_| is_on(name)) {
                        check(driven);
                    }
                });
            }
            let driven = held.lock().take().expect("put there above");
            give_back(name, driven);
        }
        if vm.lock().is_some() {
            assert_eq!(destroy(slot), 0, "VM_DESTROY at the program's end");
        }
    }
}

fn check(driven: &mut Driven) {
    let mut task = Task::new(HostFlags::empty());
    let mut loaded = match driven.vcpu.load(&Hvc, &mut task) {
        Ok(loaded) => loaded,
        Err(error) => panic!("VCPU_LOAD at the program's end: {error}"),
    };
    let mut entry = Entry::of(&mut driven.book, driven.flags, &driven.gic);
    let run = Run { command: Command::Check, hint: HostFlags::empty(), once: false };
    entry.run(&mut loaded, &mut task, run, &|_, _| {});
    if let Err(error) = loaded.put(&mut task) {
        panic!("VCPU_PUT at the program's end: {error}");
    }
}
