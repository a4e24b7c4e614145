//! A guest with a GIC of its own, which the library's run loop runs: on strings, as the puppet is, on one CPU or on
//! several at once.
//!
//! Its vCPUs' interrupts are those of a [`Board`], whose kicks are SGIs to the CPU where a vCPU runs. Its pages are the
//! test's ([`ledger`]), and so is its end.

use crate::{
    context::context,
    instruction::SysReg,
    ledger::{self, PAGE},
    own_gic,
    task::Task,
};
use core::{
    arch::global_asm,
    ops::ControlFlow,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::{gic, mmu, smp, supply::Pages, sync::Lock, timer},
    vcpu::{Answer, ExitHandler, LoadedVcpu, MmioAnswer, Supplied, Vcpu, Wait},
    vgic::{Events, Interface, Line, SpiCell, VcpuCell, Vgic},
    vm::{self, PageSupplier, VcpuSettings, Vm},
};
use umbra_shared::{
    call::{Start, UntrustedAffinity, VcpuIndex, VmConfig},
    exit::{MmioAccess, SystemEvent},
    flags::{FlagShadowPage, HostFlags},
    vcpu::VcpuFeatures,
};

const DONE: u64 = 0x600d;
const FAILED: u64 = 0xbad;
/// PSCI CPU_OFF.
pub const CPU_SUSPEND: u64 = 0x8400_0001;
pub const CPU_OFF: u64 = 0x8400_0002;

global_asm!(include_str!("gic_guest.S"), DONE = const DONE, FAILED = const FAILED);

unsafe extern "C" {
    static umbra_gic_guest_start: u8;
    static umbra_gic_guest_end: u8;
    static umbra_gic_guest_exec: u8;
    static umbra_gic_guest_cpu_on: u8;
    static umbra_gic_guest_take: u8;
    static umbra_gic_guest_exchange: u8;
}

/// Where its memory begins: code, then for each vCPU a page.
pub const BASE: u64 = 0x8000_0000;
const CODE_PAGES: u64 = 2;
/// Where in a vCPU's page it stores what it acknowledges; before that is the instruction that it executes.
const TAKEN: u64 = 64;
/// The most that fit.
pub const MOST: usize = 64;

/// vCPUs.
pub const VCPUS: usize = 2;
/// SPIs of their GIC: 32 to 95.
const SPIS: usize = 64;

/// A device: a store of an INTID lowers the line of that SPI.
pub const LOWER: u64 = 0x0a00_0000;

/// Looks for an interrupt that must come from another CPU, whose turn it may be at any time.
pub const LOOKS: u64 = 1 << 26;
/// Looks for one that is there, or isn't.
pub const GLANCES: u64 = 1000;

/// The cells of a board.
pub struct Cells([VcpuCell; VCPUS], [SpiCell; SPIS]);

impl Cells {
    /// Affinities are numbers.
    pub const fn new() -> Self {
        Self([VcpuCell::new(0), VcpuCell::new(1)], [const { SpiCell::new() }; SPIS])
    }
}

/// A machine for a guest: its GIC, where its vCPUs run, and what was heard of them.
pub struct Board<'c> {
    pub vgic: Vgic<'c>,
    /// The CPU plus one; 0: none.
    running: [AtomicUsize; VCPUS],
    kicks: [AtomicUsize; VCPUS],
    resampled: AtomicUsize,
    /// How often each has waited in WFI for its host to find something.
    waits: [AtomicUsize; VCPUS],
    /// How often each has turned the other one on.
    turned_on: AtomicUsize,
}

impl<'c> Board<'c> {
    /// One whose interrupts are all enabled ([`own_gic::enabled`]).
    pub fn new(cells: &'c Cells) -> Self {
        Self::of(own_gic::enabled(&cells.0, &cells.1))
    }

    /// One of which nothing is enabled.
    pub fn at_reset(cells: &'c Cells) -> Self {
        Self::of(Vgic::new(&cells.0, &cells.1, 5).expect("cells of a GIC"))
    }

    fn of(vgic: Vgic<'c>) -> Self {
        let count = || [const { AtomicUsize::new(0) }; VCPUS];
        Self {
            vgic,
            running: count(),
            kicks: count(),
            resampled: AtomicUsize::new(0),
            waits: count(),
            turned_on: AtomicUsize::new(0),
        }
    }

    /// Who has to be told of what is done to it.
    pub fn told(&self) -> Told<'_> {
        Told { running: &self.running, kicks: &self.kicks, resampled: &self.resampled }
    }

    /// An SPI's line.
    pub fn line(&self, intid: u16, up: bool) {
        self.vgic.set_line(Line::Spi(intid), up, &mut self.told()).expect("an SPI");
    }

    /// An SPI's edge.
    pub fn pulse(&self, intid: u16) {
        self.vgic.pulse(Line::Spi(intid), &mut self.told()).expect("an SPI");
    }

    /// A vCPU's part, while it runs on this CPU.
    pub fn here<'b, R>(&'b self, n: usize, f: impl FnOnce(Interface<'b, Told<'b>>) -> R) -> R {
        let cpu = smp::cpu();
        let info = Hvc.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO");
        let registers = info.interface.registers;
        let gic = Interface::new(&self.vgic, n, registers, self.told());
        // Before its interrupts are looked at: who sends one later finds it here.
        self.running[n].store(cpu + 1, SeqCst);
        let result = f(gic.expect("it has that vCPU"));
        self.running[n].store(0, SeqCst);
        result
    }

    /// Whether it runs anywhere.
    pub fn is_running(&self, vcpu: usize) -> bool {
        self.running[vcpu].load(SeqCst) != 0
    }

    /// How often it was kicked.
    pub fn kicks(&self, vcpu: usize) -> usize {
        self.kicks[vcpu].load(SeqCst)
    }

    /// How many interrupts were said to have ended.
    pub fn resampled(&self) -> usize {
        self.resampled.load(SeqCst)
    }

    /// How often it has waited.
    pub fn waits(&self, vcpu: usize) -> usize {
        self.waits[vcpu].load(SeqCst)
    }

    /// How many calls of CPU_ON its host was told of.
    pub fn turned_on(&self) -> usize {
        self.turned_on.load(SeqCst)
    }
}

/// Whoever is told.
pub struct Told<'b> {
    running: &'b [AtomicUsize; VCPUS],
    kicks: &'b [AtomicUsize; VCPUS],
    resampled: &'b AtomicUsize,
}

impl Events for Told<'_> {
    /// Where it runs, that stops it; where it doesn't, it looks when it does.
    fn kick(&mut self, vcpu: usize) {
        self.kicks[vcpu].fetch_add(1, SeqCst);
        if let Some(cpu) = self.running[vcpu].load(SeqCst).checked_sub(1)
            && cpu != smp::cpu()
        {
            gic::send_sgi(context().machine.cpus[cpu], gic::KICK);
        }
    }

    fn resample(&mut self, _: usize, _: u16) {
        self.resampled.fetch_add(1, SeqCst);
    }
}

/// The ledger's pages: they come back when the test is over.
pub struct Books;

impl PageSupplier for Books {
    fn allocate(&mut self, count: u64) -> Option<u64> {
        Some(ledger::take(count))
    }

    fn free(&mut self, _: u64, _: u64) {}

    fn flag_page(&mut self, pa: u64) -> &'static FlagShadowPage {
        Pages.flag_page(pa)
    }
}

/// The guest.
pub struct Guest {
    vcpus: [Lock<Vcpu>; VCPUS],
    memory: u64,
}

impl Guest {
    /// A new one, whose first vCPU is on.
    pub fn new() -> Self {
        let start = &raw const umbra_gic_guest_start;
        let length = &raw const umbra_gic_guest_end as usize - start as usize;
        let count = CODE_PAGES + VCPUS as u64;
        let memory = ledger::take(count);
        assert!(length as u64 <= CODE_PAGES * PAGE);
        // SAFETY: the code lies between the two symbols; the pages are this test's, and hold it.
        unsafe { mmu::linear::<u8>(memory).copy_from_nonoverlapping(start, length) };
        let mut vm = Vm::create([vm::Line::FREE; 16], &Hvc, &mut Books, VmConfig::default())
            .expect("VM_CREATE");
        ledger::enter(vm.handle());
        vm.map(&Hvc, &mut Books, memory, count, BASE).expect("VM_MAP");
        let vcpus = core::array::from_fn(|n| {
            let settings = VcpuSettings {
                index: VcpuIndex(n as u64),
                affinity: UntrustedAffinity(n as u64),
                features: VcpuFeatures::FPSIMD,
                start: Start::At { entry: BASE, argument: page(n) },
            };
            Lock::new(vm.create_vcpu(&Hvc, &mut Books, settings).expect("VCPU_CREATE"))
        });
        Self { vcpus, memory }
    }

    /// Loads a vCPU on this CPU while `f` pulls its strings. The first time it begins first.
    pub fn with<R>(&self, board: &Board<'_>, n: usize, f: impl FnOnce(&mut Driver<'_>) -> R) -> R {
        board.here(n, |gic| {
            let mut vcpu = self.vcpus[n].lock();
            let mut task = Task::new(HostFlags::empty());
            let loaded = vcpu.load(&Hvc, &mut task).expect("VCPU_LOAD");
            let vmm = Vmm { board, vcpu: n };
            let mut driver = Driver { loaded, task, gic, vmm, taken: self.taken(n) };
            let result = f(&mut driver);
            let Driver { loaded, mut task, .. } = driver;
            loaded.put(&mut task).expect("VCPU_PUT");
            result
        })
    }

    /// Has a vCPU begin here.
    pub fn begin(&self, board: &Board<'_>, n: usize) {
        self.with(board, n, |guest| guest.begin());
    }

    /// Where the host finds what a vCPU has acknowledged.
    fn taken(&self, n: usize) -> *mut u64 {
        mmu::linear::<u64>(self.memory + page(n) - BASE + TAKEN)
    }

    /// Zeroes that, of a vCPU that runs nowhere.
    pub fn forget(&self, n: usize) {
        // SAFETY: in a page of the guest's, which is a normal one, and `MOST` fit there.
        unsafe { self.taken(n).write_bytes(0, MOST) };
    }

    /// What a vCPU that is taking interrupts has acknowledged at that turn, if it is that far. It is told of before it is
    /// ended.
    pub fn acknowledged(&self, n: usize, turn: usize) -> Option<u64> {
        assert!(turn < MOST);
        // SAFETY: as above; the guest stores whole words.
        let intid = unsafe { self.taken(n).add(turn).read_volatile() };
        (intid != 0).then_some(intid)
    }
}

/// A vCPU's page, for the guest.
pub fn page(n: usize) -> u64 {
    BASE + (CODE_PAGES + n as u64) * PAGE
}

/// A loaded vCPU.
pub struct Driver<'v> {
    loaded: LoadedVcpu<'v, Hvc>,
    task: Task,
    gic: Interface<'v, Told<'v>>,
    vmm: Vmm<'v>,
    taken: *mut u64,
}

/// How the guest left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// A routine has returned that.
    Done([u64; 2]),
    /// It has turned this vCPU off.
    Off,
}

impl Driver<'_> {
    /// Runs it until it asks for an order.
    #[track_caller]
    fn run(&mut self) -> Left {
        self.loaded.run(&mut self.task, &mut self.gic, &mut self.vmm).expect("VCPU_RUN")
    }

    /// Has it begin.
    #[track_caller]
    pub fn begin(&mut self) {
        assert!(matches!(self.run(), Left::Done(_)));
    }

    #[track_caller]
    fn order(&mut self, routine: *const u8, x: [u64; 3]) -> Left {
        let start = &raw const umbra_gic_guest_start as u64;
        let [a, b, c] = x;
        self.loaded.answer([routine as u64 - start + BASE, a, b, c]);
        self.run()
    }

    #[track_caller]
    fn ordered(&mut self, routine: *const u8, x: [u64; 3]) -> [u64; 2] {
        match self.order(routine, x) {
            Left::Done(x) => x,
            left => panic!("the guest has gone: {left:?}"),
        }
    }

    /// Executes an instruction with these in x0 and x1, whatever comes of it.
    #[track_caller]
    pub fn attempt(&mut self, instruction: u32, x0: u64, x1: u64) -> Left {
        self.order(&raw const umbra_gic_guest_exec, [instruction.into(), x0, x1])
    }

    /// Executes one and returns x0.
    #[track_caller]
    pub fn exec(&mut self, instruction: u32, x0: u64, x1: u64) -> u64 {
        match self.attempt(instruction, x0, x1) {
            Left::Done([x0, _]) => x0,
            left => panic!("the guest has gone: {left:?}"),
        }
    }

    /// MRS.
    #[track_caller]
    pub fn read(&mut self, register: SysReg) -> u64 {
        self.exec(register.mrs(), 0, 0)
    }

    /// MSR.
    #[track_caller]
    pub fn write(&mut self, register: SysReg, value: u64) {
        self.exec(register.msr(), value, 0);
    }

    /// Has the guest turn the other vCPU on where both begin. Its answer.
    #[track_caller]
    pub fn turn_on(&mut self, n: usize) -> u64 {
        self.ordered(&raw const umbra_gic_guest_cpu_on, [n as u64, BASE, page(n)])[0]
    }

    /// Takes and ends so many interrupts, looking so often for each, in one go. Their INTIDs.
    #[track_caller]
    pub fn take(&mut self, count: usize, looks: u64) -> Taken {
        assert!(count <= MOST);
        let at = page(self.vmm.vcpu) + TAKEN;
        let [found, _] = self.ordered(&raw const umbra_gic_guest_take, [count as u64, looks, at]);
        let found = usize::try_from(found).ok().filter(|&found| found <= count);
        let found = found.expect("not more than it was to take");
        // SAFETY: in a page of the guest's, which is a normal one and doesn't run; `MOST` fit there.
        (0..found).map(|n| unsafe { self.taken.add(n).read_volatile() }).collect()
    }

    /// [`Self::take`] of one, if there is one.
    #[track_caller]
    pub fn take_one(&mut self, looks: u64) -> Option<u64> {
        self.take(1, looks).first().copied()
    }

    /// Exchanges SGIs with the other vCPU, which does the same, as often as that. How many it has taken.
    #[track_caller]
    pub fn exchange(&mut self, count: u64, sgi1r: u64, waits_first: bool) -> u64 {
        let x = [count, sgi1r, waits_first.into()];
        self.ordered(&raw const umbra_gic_guest_exchange, x)[0]
    }
}

/// INTIDs, in the order in which the guest has acknowledged them.
pub type Taken = arrayvec::ArrayVec<u64, MOST>;

/// A run loop's host. What the guest must not do is a panic.
struct Vmm<'b> {
    board: &'b Board<'b>,
    vcpu: usize,
}

/// Seconds that a vCPU waits in WFI for what must come.
const PATIENCE: u64 = 60;

impl ExitHandler for Vmm<'_> {
    type Stop = Left;

    fn hvc(&mut self, x: &[u64; 6]) -> ControlFlow<Left, Answer> {
        match x[0] {
            DONE => ControlFlow::Break(Left::Done([x[1], x[2]])),
            FAILED => panic!("vCPU {}: ESR {:#x} ELR {:#x}", self.vcpu, x[1], x[2]),
            call => panic!("vCPU {} calls {call:#x}", self.vcpu),
        }
    }

    fn mmio(
        &mut self,
        address: u64,
        access: MmioAccess,
        data: u64,
    ) -> ControlFlow<Left, MmioAnswer> {
        let board = self.board;
        if let Some(answer) = own_gic::access(&board.vgic, address, access, data, &mut board.told())
        {
            return ControlFlow::Continue(answer);
        }
        let intid = u16::try_from(data).ok().filter(|_| address == LOWER && access.write);
        board.line(intid.unwrap_or_else(|| panic!("the guest accessed {address:#x}")), false);
        ControlFlow::Continue(MmioAnswer::Written)
    }

    fn wfi(&mut self, Wait { signalled, .. }: Wait) -> ControlFlow<Left> {
        self.board.waits[self.vcpu].fetch_add(1, SeqCst);
        let there = || self.board.vgic.has_interrupt(self.vcpu, signalled);
        assert!(timer::wait_until(PATIENCE, there), "vCPU {} waits for nothing", self.vcpu);
        ControlFlow::Continue(())
    }

    fn fault(&mut self, address: u64) -> ControlFlow<Left, Supplied> {
        panic!("the guest accessed {address:#x}")
    }

    fn tables(&mut self) -> ControlFlow<Left, Supplied> {
        panic!("a normal guest takes no tables")
    }

    fn cpu_on(&mut self, VcpuIndex(index): VcpuIndex) -> ControlFlow<Left> {
        assert_ne!(index, self.vcpu as u64);
        self.board.turned_on.fetch_add(1, SeqCst);
        ControlFlow::Continue(())
    }

    fn cpu_off(&mut self) -> Left {
        Left::Off
    }

    fn system(&mut self, event: SystemEvent, _: u64, _: u64) -> Left {
        panic!("the guest has ended: {event:?}")
    }

    fn broken(&mut self, esr: u64) -> Left {
        panic!("the guest broke, ESR {esr:#x}")
    }
}
