//! The puppet in AArch32 (`tests/guest32`): what [`puppet`](crate::puppet) is for AArch64.
//!
//! A [`Puppet32`] is a [`Puppet`] whose code is A32. What they have in common (loading, entering, memory) is
//! the latter's; what depends on the execution state is here.

use crate::{
    context::context,
    host::KNOWN,
    instruction32 as insn,
    puppet::{Event, IMAGE, Machine, OTHER_IMAGE, Puppet},
};
use core::ops::Deref;
use umbra_host::{
    hypercall::Exit,
    kernel::{initrd, sync::Once, sysreg},
};
use umbra_patterns::pattern;
use umbra_shared::{
    call::{Policy, VmConfig},
    error::Error,
    exit::{Reason, RunFlags},
    sve::FPSIMD_BYTES,
    vcpu::VcpuFeatures,
};

/// What r5 is when the guest reports an exception, with the vector's number in the lowest digit, or an
/// interrupt.
const EXCEPTION: u64 = 0xbad0;
const IRQ: u64 = 0x1990;

/// What the puppet can do, in the order of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routine {
    /// Execute an instruction.
    Exec,
    /// Execute code.
    Run,
    /// Set what r1 is for instructions.
    Address,
    /// Load D0-D31 and FPSCR.
    FillVfp,
    /// Store D0-D31; returns FPSCR.
    DumpVfp,
    /// Compute with VFP and Advanced SIMD.
    Compute,
    /// Tag the general-purpose registers of all modes, wait, store them.
    Registers,
    /// Count up to a number.
    Count,
    /// Execute code in another mode.
    Modes,
    /// Not a routine: where a guest of random programs begins.
    Driven,
}

const ROUTINES: usize = Routine::Driven as usize + 1;

/// D0-D31.
pub const VFP_BYTES: usize = 256;

/// Bits of FPSCR that take a tag: N, Z, C, V, QC, AHP, DN, FZ, RMode, the cumulative exceptions.
const FPSCR_BITS: u32 = 0xf << 28 | pattern::FPSR_BITS | pattern::FPCR_BITS;

/// An AArch32 guest on strings.
#[derive(Clone, Copy, Debug)]
pub struct Puppet32(pub Puppet);

/// What came of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event32 {
    /// A routine returned: r0-r4.
    Done([u32; 5]),
    /// The guest took an exception.
    Exception(Exception32),
    /// The guest took an interrupt: ICC_IAR1.
    Interrupt(u32),
    /// Something else.
    Exit(Exit),
}

/// What the guest found at its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception32 {
    /// The vector's number: its offset divided by 4.
    pub vector: u32,
    /// CPSR in the handler.
    pub cpsr: u32,
    /// LR of the mode.
    pub lr: u32,
    /// SPSR of the mode.
    pub spsr: u32,
    /// IFSR at a prefetch abort, else DFSR.
    pub fsr: u32,
    /// IFAR or DFAR.
    pub far: u32,
}

/// Whether a mode's SPSR is what EL2 left in it, and the other way round.
///
/// QEMU (7.2 to 11.1 at least) has the SPSR of the mode that runs in another place than EL2 finds it in, and
/// moves it when AArch32 changes its mode, but not when EL2 is entered or left. What hyp writes to
/// SPSR_und when it makes an exception of Undefined mode is lost there, as is SPSR_svc when two guests
/// exchange the CPU in Supervisor mode.
pub fn spsr_is_kept() -> bool {
    static KEPT: Once<bool> = Once::new();
    *KEPT.call_once(|| {
        let guests = [0x1000_0013, 0x2000_0013].map(|tag| {
            let guest = vcpu(&machine(VmConfig::default()));
            guest.loaded(|guest| {
                guest.start();
                guest.exec(insn::MSR_SPSR, tag);
            });
            (guest, tag)
        });
        guests.iter().all(|(guest, tag)| guest.loaded(|g| g.exec(insn::MRS_SPSR, 0)) == *tag)
    })
}

impl Exception32 {
    /// SPSR, under this mask, is so; not looked at if hyp made the exception on a machine that loses it.
    #[track_caller]
    pub fn assert_spsr(&self, mask: u32, expected: u32) {
        if spsr_is_kept() {
            assert_eq!(self.spsr & mask, expected, "SPSR");
        }
    }

    /// Whether it is UNDEFINED, in Undefined mode with interrupts masked.
    pub fn is_undefined(&self) -> bool {
        self.vector == 1 && self.cpsr & 0x9f == 0x9b
    }
}

/// The puppet's file.
pub fn code() -> &'static [u8] {
    initrd::file(context().machine, "guest32").expect("the initrd has the AArch32 guest")
}

fn word(n: usize) -> u32 {
    let bytes = code()[4 * n..].first_chunk().expect("the file begins with a table");
    u32::from_le_bytes(*bytes)
}

impl Routine {
    /// Where it is in the guest.
    pub fn address(self) -> u64 {
        assert_eq!(word(1) as usize, ROUTINES, "the guest's table is ours");
        word(2 + self as usize).into()
    }
}

/// A VM with the AArch32 puppet in its memory.
pub fn machine(config: VmConfig) -> Machine {
    Machine::with_code(config, code())
}

/// A vCPU in AArch32, if hyp lets it.
pub fn try_vcpu(machine: &Machine) -> Result<Puppet32, Error> {
    machine.try_vcpu_with(VcpuFeatures::AARCH32).map(Puppet32)
}

/// A vCPU in AArch32.
pub fn vcpu(machine: &Machine) -> Puppet32 {
    match try_vcpu(machine) {
        Ok(puppet) => puppet,
        Err(error) => panic!("VCPU_CREATE: {error}"),
    }
}

/// One in a VM of its own with this policy, loaded on this CPU and in its loop.
pub fn started(policy: Policy) -> Puppet32 {
    started_in(VmConfig { policy, protected: false, ..VmConfig::normal() })
}

/// The same in a VM like this.
pub fn started_in(config: VmConfig) -> Puppet32 {
    let puppet = vcpu(&machine(config));
    puppet.load();
    puppet.start();
    puppet
}

impl Deref for Puppet32 {
    type Target = Puppet;

    fn deref(&self) -> &Puppet {
        &self.0
    }
}

impl Puppet32 {
    /// Loads it, does something, and puts it.
    pub fn loaded<R>(&self, f: impl FnOnce(&Self) -> R) -> R {
        self.load();
        let result = f(self);
        self.put();
        result
    }

    /// Enters until something happens that is no interrupt of the host's.
    #[track_caller]
    pub fn resume(&self, flags: RunFlags, answer: [u64; 4]) -> Event32 {
        match self.0.resume(flags, answer) {
            Event::Done(x) => Event32::Done(x.map(narrow)),
            Event::Exit(exit) => Event32::new(exit),
            event => panic!("no event of an AArch32 guest's: {event:x?}"),
        }
    }

    /// Begins a routine.
    #[track_caller]
    pub fn begin(&self, routine: Routine, args: [u32; 3]) -> Event32 {
        let [a, b, c] = args.map(u64::from);
        self.resume(RunFlags::empty(), [routine.address(), a, b, c])
    }

    /// Runs a routine to its end.
    #[track_caller]
    pub fn call(&self, routine: Routine, args: [u32; 3]) -> [u32; 5] {
        match self.begin(routine, args) {
            Event32::Done(r) => r,
            event => panic!("AArch32 guest in {routine:?}: {event:x?}"),
        }
    }

    /// Its area's address in the guest.
    pub fn area(&self) -> u32 {
        narrow(self.0.area())
    }

    /// Guest address of a page for anything.
    pub fn scratch(&self) -> u32 {
        narrow(self.0.scratch())
    }

    /// Executes an A32 instruction whatever comes of it, with this r0; r1 as set by [`Self::at`].
    #[track_caller]
    pub fn attempt(&self, instruction: u32, value: u32) -> Event32 {
        self.begin(Routine::Exec, [self.area(), instruction, value])
    }

    /// Executes an A32 instruction and returns r0.
    #[track_caller]
    pub fn exec(&self, instruction: u32, value: u32) -> u32 {
        match self.attempt(instruction, value) {
            Event32::Done(r) => r[0],
            event => panic!("AArch32 guest executing {instruction:#010x}: {event:x?}"),
        }
    }

    /// Executes an A32 instruction that must be UNDEFINED.
    #[track_caller]
    pub fn undefined(&self, instruction: u32) -> Exception32 {
        match self.attempt(instruction, 0) {
            Event32::Exception(e) if e.is_undefined() => e,
            event => panic!("{instruction:#010x}: not UNDEFINED but {event:x?}"),
        }
    }

    /// Sets r1 for the instructions to come.
    #[track_caller]
    pub fn at(&self, address: u64) -> &Self {
        self.call(Routine::Address, [narrow(address), 0, 0]);
        self
    }

    /// Puts A32 code, which is to end with BX LR, where [`Self::code`] is.
    pub fn write_code(&self, words: &[u32]) {
        let memory = self.memory(self.0.area(), 4 * words.len());
        for (bytes, word) in memory.chunks_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        sysreg::clean_to_poc(memory.as_ptr() as usize, memory.len());
    }

    /// The same of T32, in halfwords.
    pub fn write_thumb(&self, halfwords: &[u16]) {
        let memory = self.memory(self.0.area(), 2 * halfwords.len());
        for (bytes, halfword) in memory.chunks_mut(2).zip(halfwords) {
            bytes.copy_from_slice(&halfword.to_le_bytes());
        }
        sysreg::clean_to_poc(memory.as_ptr() as usize, memory.len());
    }

    /// Executes A32 code with these r0 and r1.
    #[track_caller]
    pub fn run_code(&self, words: &[u32], r0: u32, r1: u32) -> Event32 {
        self.write_code(words);
        self.begin(Routine::Run, [self.area(), r0, r1])
    }

    /// Executes T32 code.
    #[track_caller]
    pub fn run_thumb(&self, halfwords: &[u16], r0: u32, r1: u32) -> Event32 {
        self.write_thumb(halfwords);
        self.begin(Routine::Run, [self.area() | 1, r0, r1])
    }

    /// Its FPSCR with this generation.
    pub fn fpscr(&self, generation: u32) -> u32 {
        let tag = self.tag(generation);
        let flags = (u32::from(tag.owner) ^ generation).wrapping_mul(0x9e37_79b9) & 0xf000_0000;
        (flags | pattern::fpsr(tag) | pattern::fpcr(tag)) & FPSCR_BITS
    }

    /// Fills D0-D31 and FPSCR. Its FPEXC.EN is set.
    #[track_caller]
    pub fn fill_vfp(&self, generation: u32) {
        let at = self.0.area() + IMAGE;
        let mut all = [0; FPSIMD_BYTES];
        pattern::expected_fpsimd(self.tag(generation), &mut all);
        let image = self.memory(at, VFP_BYTES);
        image.copy_from_slice(&all[..VFP_BYTES]);
        sysreg::clean_to_poc(image.as_ptr() as usize, image.len());
        self.call(Routine::FillVfp, [narrow(at), self.fpscr(generation), 0]);
    }

    /// They are as [`Self::fill_vfp`] left them.
    #[track_caller]
    pub fn check_vfp(&self, generation: u32) {
        let to = self.0.area() + OTHER_IMAGE;
        self.memory(to, VFP_BYTES).fill(0xee);
        self.memory(to, VFP_BYTES);
        let fpscr = self.call(Routine::DumpVfp, [narrow(to), 0, 0])[0];
        assert_eq!(fpscr, self.fpscr(generation), "AArch32 guest: FPSCR");
        let mut expected = [0; FPSIMD_BYTES];
        pattern::expected_fpsimd(self.tag(generation), &mut expected);
        let mut found = expected;
        found[..VFP_BYTES].copy_from_slice(self.memory(to, VFP_BYTES));
        if let Err(mismatch) = pattern::compare_fpsimd(&expected, &found, &KNOWN) {
            panic!("AArch32 guest: {mismatch}");
        }
    }

    /// D0-D31 and FPSCR hold zeroes: the reset state.
    #[track_caller]
    pub fn check_vfp_reset(&self) {
        let to = self.0.area() + OTHER_IMAGE;
        self.memory(to, VFP_BYTES).fill(0xee);
        self.memory(to, VFP_BYTES);
        assert_eq!(self.call(Routine::DumpVfp, [narrow(to), 0, 0])[0], 0, "FPSCR after reset");
        let stray = self.memory(to, VFP_BYTES).iter().position(|&byte| byte != 0);
        assert_eq!(stray, None, "byte of D0-D31 that is not zero after reset");
    }
}

impl Event32 {
    /// What an exit means.
    pub fn new(exit: Exit) -> Self {
        let [why, r0, r1, r2, r3, r4] = exit.data;
        if exit.info.reason() != Some(Reason::Hvc) {
            return Self::Exit(exit);
        }
        match why {
            IRQ => Self::Interrupt(narrow(r0)),
            _ if why & !7 == EXCEPTION => Self::Exception(Exception32 {
                vector: narrow(why & 7),
                cpsr: narrow(r0),
                lr: narrow(r1),
                spsr: narrow(r2),
                fsr: narrow(r3),
                far: narrow(r4),
            }),
            _ => Self::Exit(exit),
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

    /// It is the end of a routine: r0-r4.
    #[track_caller]
    pub fn done(self) -> [u32; 5] {
        match self {
            Self::Done(r) => r,
            event => panic!("the routine does not end: {event:x?}"),
        }
    }
}

/// What an AArch32 guest's register says in a register of the host's: its upper half is zero.
#[track_caller]
fn narrow(value: u64) -> u32 {
    match u32::try_from(value) {
        Ok(value) => value,
        Err(_) => panic!("{value:#x} in a register of 32 bits"),
    }
}
