//! A guest on strings: it executes one routine or instruction at a time, as the test tells it.
//!
//! A [`Machine`] is a VM with the puppet's code (`puppet.S`) in its memory; a [`Puppet`] is one of its
//! vCPUs. Both are only names: what they stand for is in the books of the [`ledger`]. Each
//! vCPU has an area of its own in the guest's memory for instructions and for images of its registers.
//! A normal VM's memory stays readable and writable for the host; what a protected guest is to load
//! must be in place before the memory is the guest's, and what it stores it has to compare itself.

mod registers;

use crate::{
    host::GUEST_OWNER,
    instruction::SysReg,
    ledger::{self, PAGE},
};
use core::{arch::global_asm, fmt};
use umbra_host::{
    hypercall::{Exit, Hvc, Hypervisor},
    kernel::{mmu, sync::Lock, sysreg},
};
use umbra_patterns::{pattern, tag::Tag};
use umbra_shared::{
    PAGE_SIZE,
    call::{
        Policy, Start, UntrustedAffinity, UntrustedPa, UntrustedPages, VcpuConfig, VcpuIndex,
        VmConfig, VmHandle,
    },
    error::Error,
    exit::{Reason, RunFlags},
    flags::{FlagShadowPage, HostFlags},
    guest::GuestFunction,
    sme::za_bytes,
    sve::{FPSIMD_BYTES, Layout},
    vcpu::VcpuFeatures,
    vl::Vq,
};

const DONE: u64 = 0x600d;
const EXCEPTION: u64 = 0xbad;
const IRQ: u64 = 0x199;

global_asm!(
    include_str!("puppet.S"),
    DONE = const DONE,
    EXCEPTION = const EXCEPTION,
    IRQ = const IRQ,
);

macro_rules! routines {
    ($($(#[$doc:meta])* $name:ident = $symbol:ident;)*) => {
        unsafe extern "C" {
            $(static $symbol: u8;)*
        }

        /// What the puppet can do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Routine {
            $($(#[$doc])* $name,)*
        }

        impl Routine {
            /// Where it is in the guest.
            pub fn address(self) -> u64 {
                let start = &raw const umbra_puppet_start as u64;
                BASE - start + match self {
                    $(Self::$name => &raw const $symbol as u64,)*
                }
            }
        }
    };
}

routines! {
    /// Not a routine: where a vCPU can begin.
    Raw = umbra_puppet_raw;
    /// Nothing.
    Nothing = umbra_puppet_nothing;
    /// A call by HVC: x0 is what [`Routine::Address`] has set, x1-x3.
    Hvc = umbra_puppet_hvc;
    /// The same by SMC.
    Smc = umbra_puppet_smc;
    /// Execute an instruction.
    Exec = umbra_puppet_exec;
    /// Set what x1 is then.
    Address = umbra_puppet_address;
    /// Load Z, P, FFR.
    FillSve = umbra_puppet_fill_sve;
    /// Store them.
    DumpSve = umbra_puppet_dump_sve;
    /// Set ZCR_EL1; returns the VL.
    SetZcr = umbra_puppet_set_zcr;
    /// Returns the VL.
    Rdvl = umbra_puppet_rdvl;
    /// Load V.
    FillFpsimd = umbra_puppet_fill_fpsimd;
    /// Store V.
    DumpFpsimd = umbra_puppet_dump_fpsimd;
    /// Set FPSR, FPCR.
    SetStatus = umbra_puppet_set_status;
    /// Returns them.
    Status = umbra_puppet_status;
    /// Compare memory.
    Compare = umbra_puppet_compare;
    /// Tag x0-x30, wait, store them.
    Registers = umbra_puppet_registers;
    /// Count for ever.
    Spin = umbra_puppet_spin;
    /// Write 1, wait for 2, use FP.
    Meet = umbra_puppet_meet;
    /// Go on somewhere else with another PSTATE and SCTLR_EL1, until an exception.
    Leave = umbra_puppet_leave;
    /// Set SVCR.
    SetSvcr = umbra_puppet_set_svcr;
    /// Returns it.
    Svcr = umbra_puppet_svcr;
    /// Set SMCR_EL1; returns the SVL.
    SetSmcr = umbra_puppet_set_smcr;
    /// Returns the SVL.
    Rdsvl = umbra_puppet_rdsvl;
    /// Load Z, P.
    FillStreaming = umbra_puppet_fill_streaming;
    /// Store them.
    DumpStreaming = umbra_puppet_dump_streaming;
    /// Load ZA.
    FillZa = umbra_puppet_fill_za;
    /// Store it.
    DumpZa = umbra_puppet_dump_za;
    /// Load ZT0.
    FillZt0 = umbra_puppet_fill_zt0;
    /// Store it.
    DumpZt0 = umbra_puppet_dump_zt0;
}

unsafe extern "C" {
    static umbra_puppet_start: u8;
    static umbra_puppet_end: u8;
    static umbra_puppet_vectors: u8;
}

/// PSCI CPU_ON.
const CPU_ON: u64 = 0xc400_0003;

/// Held while a VM is sealed and its vCPUs are turned on.
static SEALING: Lock<()> = Lock::new(());

/// Where the guest's memory begins.
pub const BASE: u64 = 0x8000_0000;
/// Pages of code.
const CODE_PAGES: u64 = 4;
/// Pages of an area: instructions; scratch; two images.
const AREA_PAGES: u64 = 8;
/// vCPUs that have an area.
pub const MAX_PUPPETS: u64 = 3;
/// All memory.
pub const MEMORY_PAGES: u64 = CODE_PAGES + AREA_PAGES * MAX_PUPPETS;
/// Behind it, where vCPUs have SME: twice ZA and ZT0 for each.
const ZA_PAGES: u64 = za_bytes(Vq::MAX) as u64 / PAGE + 1;
/// A guest address where nothing is.
pub const NOWHERE: u64 = 0x0a00_0000;

/// Offsets in an area.
const SCRATCH: u64 = PAGE;
pub const IMAGE: u64 = 2 * PAGE;
pub const OTHER_IMAGE: u64 = 5 * PAGE;

/// Interrupts that a routine may be interrupted by before a test gives up on it.
const MOST_INTERRUPTS: usize = 100_000;

/// A protected VM. When its FP registers move is hyp's to say.
pub const PROTECTED: VmConfig =
    VmConfig { policy: Policy::Lazy, protected: true, ..VmConfig::normal() };

/// A VM with the puppet in its memory.
#[derive(Clone, Copy)]
pub struct Machine {
    pub vm: VmHandle,
    /// Physical address of its memory.
    pub memory: u64,
    /// Its pages.
    count: u64,
    protected: bool,
    /// Tag of its prepared image.
    tag: Tag,
}

/// One of its vCPUs.
#[derive(Clone, Copy)]
pub struct Puppet {
    pub machine: Machine,
    pub index: VcpuIndex,
    pub vq: Option<Vq>,
    pub svq: Option<Vq>,
    /// Its flag-shadow page.
    pub flags: &'static FlagShadowPage,
    pub flag_page: u64,
    /// Owner of its tags.
    owner: u16,
}

/// How an entry ended, as the puppet means it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A routine returned: x0-x4.
    Done([u64; 5]),
    /// The guest took an exception.
    Exception(Exception),
    /// The guest took an interrupt.
    Interrupt {
        /// ICC_IAR1_EL1
        intid: u64,
    },
    /// Something else.
    Exit(Exit),
}

/// What the guest found at its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub esr: u64,
    pub elr: u64,
    pub spsr: u64,
    pub far: u64,
    /// Number of the vector: its offset divided by 128.
    pub vector: u64,
}

impl Exception {
    /// ESR_EL1.EC
    pub fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// Whether it is UNDEFINED.
    pub fn is_undefined(&self) -> bool {
        self.esr == 1 << 25
    }
}

/// A flag-shadow page, shared.
pub fn flag_page() -> (u64, &'static FlagShadowPage) {
    let pa = ledger::take(1);
    Hvc.share_flag_page(pa).expect("SHARE_FLAG_PAGE");
    // SAFETY: a page of this test's, zeroed, that nobody uses otherwise until the test is over.
    (pa, unsafe { &*mmu::linear::<FlagShadowPage>(pa) })
}

/// What VCPU_CREATE takes for a vCPU of no puppet's, with pages of the test's.
pub fn vcpu_config(vm: VmHandle, features: VcpuFeatures, start: Start) -> VcpuConfig {
    let pages = ledger::take(features.pages());
    let index = ledger::vcpus(vm);
    VcpuConfig {
        vm,
        index: VcpuIndex(index),
        affinity: UntrustedAffinity(index),
        pages: UntrustedPages { start: UntrustedPa(pages), count: features.pages() },
        flag_page: UntrustedPa(flag_page().0),
        features: features.into(),
        start,
    }
}

/// The bytes of pages that the host can reach.
fn bytes(pa: u64, count: usize) -> &'static mut [u8] {
    // SAFETY: pages of this test's; the test is over before they are anybody else's, and no guest
    // runs while it looks.
    unsafe { core::slice::from_raw_parts_mut(mmu::linear::<u8>(pa), count) }
}

/// The puppet's.
fn code() -> &'static [u8] {
    let start = &raw const umbra_puppet_start;
    let count = &raw const umbra_puppet_end as usize - start as usize;
    // SAFETY: the code lies between the two symbols.
    unsafe { core::slice::from_raw_parts(start, count) }
}

impl Machine {
    /// A VM with the code in place.
    pub fn new(config: VmConfig) -> Self {
        Self::with_images(config, Tag::default(), None)
    }

    /// One with room for ZA.
    pub fn with_za(config: VmConfig) -> Self {
        Self::build(config, Tag::default(), VcpuFeatures::FPSIMD, 2 * ZA_PAGES * MAX_PUPPETS)
    }

    /// A lazy, normal one.
    pub fn normal() -> Self {
        Self::new(VmConfig::default())
    }

    /// One with this policy.
    pub fn with_policy(policy: Policy) -> Self {
        Self::new(VmConfig { policy, protected: false, ..VmConfig::normal() })
    }

    /// One in whose first vCPU's image there is the register file of `tag` from the beginning, for
    /// [`Puppet::fill_prepared`].
    pub fn with_images(config: VmConfig, tag: Tag, vq: Option<Vq>) -> Self {
        Self::build(config, tag, VcpuFeatures::sve(vq), 0)
    }

    /// The same with ZA and ZT0 at this SVL, for [`Puppet::za`].
    pub fn with_za_images(config: VmConfig, tag: Tag, vq: Option<Vq>, svq: Vq) -> Self {
        Self::build(config, tag, VcpuFeatures::sme(vq, svq), 2 * ZA_PAGES * MAX_PUPPETS)
    }

    /// One whose memory is looked at, or put in place, by `f`, in an order of its own.
    pub fn with_memory(config: VmConfig, f: impl FnOnce(&Self)) -> Self {
        let machine = Self::prepare(config, code(), Tag::default(), MEMORY_PAGES);
        f(&machine);
        machine
    }

    fn build(config: VmConfig, tag: Tag, images: VcpuFeatures, more: u64) -> Self {
        let machine = Self::prepare(config, code(), tag, MEMORY_PAGES + more);
        let memory = machine.memory;
        let image = memory + CODE_PAGES * PAGE + IMAGE;
        match images.vq {
            Some(vq) => {
                let layout = Layout::new(vq);
                pattern::expected(tag, layout, bytes(image, layout.image_bytes()));
            }
            None => {
                let image = bytes(image, FPSIMD_BYTES).first_chunk_mut().expect("as large");
                pattern::expected_fpsimd(tag, image);
            }
        }
        if let Some(svq) = images.svq {
            let za = bytes(memory + MEMORY_PAGES * PAGE, (ZA_PAGES * PAGE) as usize);
            write_za(tag, svq, za);
        }
        machine.map();
        machine
    }

    /// A VM with other code in place.
    pub fn with_code(config: VmConfig, code: &[u8]) -> Self {
        let machine = Self::prepare(config, code, Tag::default(), MEMORY_PAGES);
        machine.map();
        machine
    }

    /// The same, with more in the page of its code by `f`, which is told where that is.
    pub fn with_code_and(config: VmConfig, code: &[u8], f: impl FnOnce(u64)) -> Self {
        let machine = Self::prepare(config, code, Tag::default(), MEMORY_PAGES);
        f(machine.memory);
        machine.map();
        machine
    }

    /// The physical address of one of its guest's.
    pub const fn page(&self, ipa: u64) -> u64 {
        ipa - BASE + self.memory
    }

    /// A VM, and its memory with the code in it, which is not the guest's yet.
    fn prepare(config: VmConfig, code: &[u8], tag: Tag, count: u64) -> Self {
        assert!(code.len() <= CODE_PAGES as usize * PAGE_SIZE);
        let memory = ledger::take(count);
        bytes(memory, code.len()).copy_from_slice(code);
        Self { vm: ledger::vm(config), memory, count, protected: config.protected, tag }
    }

    fn map(&self) {
        for (n, page) in ledger::each(self.memory, self.count).enumerate() {
            Hvc.vm_map(self.vm, page, BASE + n as u64 * PAGE).expect("VM_MAP");
        }
    }

    /// A protected VM is built no more: it has all vCPUs that it will have. Its first turns the others on, here
    /// and now.
    pub fn seal(&self) {
        if !self.protected {
            return;
        }
        // Whoever wants to load one of them waits until it is on.
        let _sealing = SEALING.lock();
        match Hvc.vm_seal(self.vm) {
            Ok(()) => self.bring_up(),
            Err(Error::Sealed) => {}
            Err(error) => panic!("VM_SEAL: {error}"),
        }
    }

    fn bring_up(&self) {
        let count = ledger::vcpus(self.vm);
        if count < 2 {
            return;
        }
        let (flag_page, flags) = flag_page();
        let (vq, svq, owner) = (None, None, 0);
        let index = VcpuIndex(0);
        let first = Puppet { machine: *self, index, vq, svq, flags, flag_page, owner };
        Hvc.vcpu_load(self.vm, index).expect("VCPU_LOAD of the first vCPU");
        first.start();
        for vcpu in 1..count {
            let event = first.smccc(Routine::Hvc, CPU_ON, [vcpu, BASE, 0]);
            assert_eq!(event.exit(Reason::CpuOn).data[0], vcpu);
            first.start();
        }
        first.put();
    }

    /// Bytes of its memory, from [`BASE`] on.
    pub const fn bytes(&self) -> usize {
        self.count as usize * PAGE_SIZE
    }

    /// Whether it is.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// Creates the next vCPU.
    pub fn vcpu(&self, vq: Option<Vq>) -> Puppet {
        match self.try_vcpu(vq) {
            Ok(puppet) => puppet,
            Err(error) => panic!("VCPU_CREATE: {error}"),
        }
    }

    /// Creates the next vCPU, if hyp lets it.
    pub fn try_vcpu(&self, vq: Option<Vq>) -> Result<Puppet, Error> {
        self.try_vcpu_with(VcpuFeatures::sve(vq))
    }

    /// Creates the next vCPU.
    pub fn vcpu_with(&self, features: VcpuFeatures) -> Puppet {
        match self.try_vcpu_with(features) {
            Ok(puppet) => puppet,
            Err(error) => panic!("VCPU_CREATE: {error}"),
        }
    }

    /// The same with more than SVE.
    pub fn try_vcpu_with(&self, features: VcpuFeatures) -> Result<Puppet, Error> {
        let (flag_page, _) = flag_page();
        self.try_vcpu_of(features, ledger::take(features.pages()), flag_page)
    }

    /// The same of pages that the test knows.
    pub fn vcpu_of(&self, features: VcpuFeatures, first: u64, flag_page: u64) -> Puppet {
        match self.try_vcpu_of(features, first, flag_page) {
            Ok(puppet) => puppet,
            Err(error) => panic!("VCPU_CREATE: {error}"),
        }
    }

    fn try_vcpu_of(
        &self,
        features: VcpuFeatures,
        first: u64,
        flag_page: u64,
    ) -> Result<Puppet, Error> {
        let count = features.pages();
        // SAFETY: a page of this test's, zeroed, that nobody uses otherwise until the test is over.
        let flags = unsafe { &*mmu::linear::<FlagShadowPage>(flag_page) };
        // Whatever the host left in pages that it gives away must be no vCPU's state.
        bytes(first, count as usize * PAGE_SIZE).fill(0xa5);
        let start = if self.protected && ledger::vcpus(self.vm) != 0 {
            Start::Off
        } else {
            Start::At { entry: BASE, argument: 0 }
        };
        let index = VcpuIndex(ledger::vcpus(self.vm));
        assert!(index.0 < MAX_PUPPETS, "the guest's memory has no area for this vCPU");
        Hvc.vcpu_create(VcpuConfig {
            vm: self.vm,
            index,
            affinity: UntrustedAffinity(index.0),
            pages: UntrustedPages { start: UntrustedPa(first), count },
            flag_page: UntrustedPa(flag_page),
            features: features.into(),
            start,
        })?;
        ledger::count_vcpu(self.vm);
        let owner = GUEST_OWNER + (self.vm.0 & 3) as u16 * 4 + index.0 as u16;
        let VcpuFeatures { vq, svq, .. } = features;
        Ok(Puppet { machine: *self, index, vq, svq, flags, flag_page, owner })
    }

    /// A vCPU, loaded on this CPU and in its loop.
    pub fn started(&self, vq: Option<Vq>) -> Puppet {
        let puppet = self.vcpu(vq);
        puppet.load();
        puppet.start();
        puppet
    }
}

/// ZA's rows one behind the other, and ZT0 behind them.
pub fn write_za(tag: Tag, svq: Vq, out: &mut [u8]) {
    let row_bytes = svq.vl_bytes();
    let (rows, rest) = out.split_at_mut(za_bytes(svq));
    for (n, row) in rows.chunks_mut(row_bytes).enumerate() {
        pattern::expected_za(tag, n, row);
    }
    pattern::expected_zt0(tag, rest.first_chunk_mut().expect("there is room for ZT0"));
}

impl Puppet {
    /// Guest address of its area, which begins with a page for instructions.
    pub fn area(&self) -> u64 {
        BASE + (CODE_PAGES + self.index.0 * AREA_PAGES) * PAGE
    }

    /// Guest address of its first or second room for ZA and ZT0.
    pub fn za(&self, second: bool) -> u64 {
        assert!(self.machine.count > MEMORY_PAGES, "there is no room for ZA");
        BASE + (MEMORY_PAGES + (2 * self.index.0 + u64::from(second)) * ZA_PAGES) * PAGE
    }

    /// It with the registers of another: their tags are that one's.
    pub fn in_place_of(self, other: &Self) -> Self {
        Self { owner: other.owner, ..self }
    }

    /// Owner of its tags.
    pub fn owner(&self) -> u16 {
        self.owner
    }

    /// Guest address of a page for anything.
    pub fn scratch(&self) -> u64 {
        self.area() + SCRATCH
    }

    /// The physical address of that of a guest.
    pub fn physical(&self, ipa: u64) -> u64 {
        ipa - BASE + self.machine.memory
    }

    /// Guest memory as the host sees it.
    pub fn memory(&self, ipa: u64, count: usize) -> &'static mut [u8] {
        assert!(!self.machine.protected, "the host can't reach a protected guest's memory");
        let slice = bytes(self.physical(ipa), count);
        // The guest reads and writes it with its caches off: what is cached here is written back
        // before the guest looks, and what the guest wrote is not hidden by older lines.
        sysreg::clean_to_poc(slice.as_ptr() as usize, count);
        slice
    }

    /// VCPU_LOAD on this CPU.
    #[track_caller]
    pub fn load(&self) {
        self.machine.seal();
        if let Err(error) = Hvc.vcpu_load(self.machine.vm, self.index) {
            panic!("VCPU_LOAD: {error}");
        }
    }

    /// VCPU_PUT.
    #[track_caller]
    pub fn put(&self) {
        if let Err(error) = Hvc.vcpu_put() {
            panic!("VCPU_PUT: {error}");
        }
    }

    /// Loads it, does something, and puts it.
    pub fn loaded<R>(&self, f: impl FnOnce(&Self) -> R) -> R {
        self.load();
        let result = f(self);
        self.put();
        result
    }

    /// What the host says of its registers from now on.
    pub fn hint(&self, flags: HostFlags) {
        self.flags.flush(flags);
    }

    /// One VCPU_RUN, with interrupts masked; what is pending is taken afterwards.
    pub fn try_enter(&self, flags: RunFlags, answer: [u64; 4]) -> Result<Exit, Error> {
        let daif = sysreg::mask_interrupts();
        let result = Hvc.vcpu_run(flags, answer);
        sysreg::restore_interrupts(daif);
        result
    }

    /// One entry.
    #[track_caller]
    pub fn enter(&self, flags: RunFlags, answer: [u64; 4]) -> Event {
        match self.try_enter(flags, answer) {
            Ok(exit) => Event::new(exit),
            Err(error) => panic!("VCPU_RUN: {error}"),
        }
    }

    /// Enters until something happens that is no interrupt of the host's.
    #[track_caller]
    pub fn resume(&self, flags: RunFlags, answer: [u64; 4]) -> Event {
        let mut event = self.enter(flags, answer);
        for _ in 0..MOST_INTERRUPTS {
            match event {
                Event::Exit(exit) if exit.info.reason() == Some(Reason::Irq) => {
                    event = self.enter(RunFlags::empty(), [0; 4]);
                }
                event => return event,
            }
        }
        panic!("the guest makes no progress")
    }

    /// From its entry point to its loop, or once around it.
    #[track_caller]
    pub fn start(&self) {
        match self.resume(RunFlags::empty(), [Routine::Nothing.address(), 0, 0, 0]) {
            Event::Done(_) => {}
            event => panic!("the guest did not start: {event:x?}"),
        }
    }

    /// Begins a routine.
    #[track_caller]
    pub fn begin(&self, routine: Routine, args: [u64; 3]) -> Event {
        self.resume(RunFlags::empty(), [routine.address(), args[0], args[1], args[2]])
    }

    /// Runs a routine to its end.
    #[track_caller]
    pub fn call(&self, routine: Routine, args: [u64; 3]) -> [u64; 5] {
        match self.begin(routine, args) {
            Event::Done(x) => x,
            event => panic!("guest in {routine:?}: {event:x?}"),
        }
    }

    /// Makes a call, by [`Routine::Hvc`] or [`Routine::Smc`], with x0-x3.
    #[track_caller]
    pub fn smccc(&self, how: Routine, function: u64, args: [u64; 3]) -> Event {
        self.at(function).begin(how, args)
    }

    /// Makes a call that hyp answers without telling anybody: x0-x3 after it.
    #[track_caller]
    pub fn answered(&self, how: Routine, function: u64, args: [u64; 3]) -> [u64; 4] {
        match self.smccc(how, function, args) {
            Event::Done([x0, x1, x2, x3, _]) => [x0, x1, x2, x3],
            event => panic!("guest calling {function:#x}: {event:x?}"),
        }
    }

    /// The first step of a call that takes a page back, or gives it up, which the guest shares: the host is told of
    /// it, and goes on.
    #[track_caller]
    pub fn told(&self, event: Event, ipa: u64, page: u64) -> Event {
        let exit = event.exit(Reason::Unshare);
        assert_eq!(exit.data, [ipa, page, 0, 0, 0, 0], "which page it is");
        self.resume(RunFlags::empty(), [0x77; 4])
    }

    /// MEM_UNSHARE, in both its steps: x0-x3 after it.
    #[track_caller]
    pub fn unshare(&self, how: Routine, ipa: u64, page: u64) -> [u64; 4] {
        let event = self.smccc(how, GuestFunction::MemUnshare.id(), [ipa, 0, 0]);
        match self.told(event, ipa, page) {
            Event::Done([x0, x1, x2, x3, _]) => [x0, x1, x2, x3],
            event => panic!("guest unsharing {ipa:#x}: {event:x?}"),
        }
    }

    /// Executes an instruction whatever comes of it. x0 = `value`; x1 as set by [`Puppet::at`].
    #[track_caller]
    pub fn attempt(&self, instruction: u32, value: u64) -> Event {
        self.begin(Routine::Exec, [self.area(), u64::from(instruction), value])
    }

    /// Executes an instruction and returns x0.
    #[track_caller]
    pub fn exec(&self, instruction: u32, value: u64) -> u64 {
        self.attempt(instruction, value).executed(instruction)
    }

    /// Executes an instruction that must be UNDEFINED.
    #[track_caller]
    pub fn undefined(&self, instruction: u32) -> Exception {
        match self.attempt(instruction, 0) {
            Event::Exception(e) if e.is_undefined() => e,
            event => panic!("guest executing {instruction:#010x}: not UNDEFINED but {event:x?}"),
        }
    }

    /// Guest address of the instruction that [`Puppet::exec`] executes.
    pub fn instruction_address(&self) -> u64 {
        self.area()
    }

    /// Writes code where [`Puppet::exec`] executes its instructions.
    pub fn write_code(&self, words: &[u32]) {
        self.write_words(self.area(), words);
    }

    /// Writes words into its memory, as the guest reads them with its caches off.
    pub fn write_words(&self, ipa: u64, words: &[u32]) {
        let memory = self.memory(ipa, 4 * words.len());
        for (bytes, word) in memory.chunks_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        sysreg::clean_to_poc(memory.as_ptr() as usize, memory.len());
    }

    /// Guest address of its exception vectors.
    pub fn vectors(&self) -> u64 {
        BASE + (&raw const umbra_puppet_vectors as u64 - &raw const umbra_puppet_start as u64)
    }

    /// Sets x1 for the instructions to come.
    #[track_caller]
    pub fn at(&self, address: u64) -> &Self {
        self.call(Routine::Address, [address, 0, 0]);
        self
    }

    /// MRS.
    #[track_caller]
    pub fn read(&self, register: SysReg) -> u64 {
        self.exec(register.mrs(), 0)
    }

    /// MSR.
    #[track_caller]
    pub fn write(&self, register: SysReg, value: u64) {
        self.exec(register.msr(), value);
    }
}

impl Event {
    /// What an exit means.
    pub fn new(exit: Exit) -> Self {
        let [why, x0, x1, x2, x3, x4] = exit.data;
        match (exit.info.reason(), why) {
            (Some(Reason::Hvc), DONE) => Self::Done([x0, x1, x2, x3, x4]),
            (Some(Reason::Hvc), EXCEPTION) => {
                Self::Exception(Exception { esr: x0, elr: x1, spsr: x2, far: x3, vector: x4 })
            }
            (Some(Reason::Hvc), IRQ) => Self::Interrupt { intid: x0 },
            _ => Self::Exit(exit),
        }
    }

    /// An instruction has been executed: x0.
    #[track_caller]
    pub fn executed(self, instruction: u32) -> u64 {
        match self {
            Self::Done(x) => x[0],
            event => panic!("guest executing {instruction:#010x}: {event:x?}"),
        }
    }

    /// It is an exit for this reason.
    #[track_caller]
    pub fn exit(self, reason: Reason) -> Exit {
        match self {
            Self::Exit(exit) if exit.info.reason() == Some(reason) => exit,
            event => panic!("expected an exit {reason:?}, not {event:x?}"),
        }
    }
}

impl fmt::Debug for Puppet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "vCPU {} of VM {:#x}", self.index.0, self.machine.vm.0)
    }
}
