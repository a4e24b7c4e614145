//! Programs as text: one line for each step.

use core::{fmt, str::FromStr};
use thiserror::Error;
use umbra_patterns::protocol::Command;
use umbra_shared::{
    call::{BLOCK_PAGES, Function, Policy, VmConfig},
    flags::HostFlags,
};

/// VMs that a program can have at a time.
pub const VMS: usize = 4;
/// vCPUs of each.
pub const VCPUS: usize = 3;
/// CPUs.
pub const CPUS: usize = 8;
/// Steps of a program.
pub const STEPS: usize = 512;

/// How a program's steps are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// One after the other, on whatever CPU.
    Replay,
    /// One after the other on each CPU, all CPUs at the same time.
    Storm,
}

/// A vCPU: of which VM, and which of its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuName {
    /// Below [`VMS`].
    pub vm: u8,
    /// Below [`VCPUS`].
    pub vcpu: u8,
}

/// An entry into the loaded vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// What the guest is told next.
    pub command: Command,
    /// What the host says of its registers.
    pub hint: HostFlags,
    /// Leave it at the first exit that is not the command's end, wherever that is; a later run goes on
    /// from there.
    pub once: bool,
}

/// What happens on a CPU. Vector lengths are in bytes, times in nanoseconds of the counter (which are
/// instructions where instructions are counted).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The host selects a VL (0: keeps its own) and fills all registers.
    Fill(u16),
    /// The host fills V0-V31.
    FillFpsimd,
    /// The host checks all registers.
    Check,
    /// The host selects a VL.
    SetVl(u16),
    /// The host writes SVCR: PSTATE.SM (1) and PSTATE.ZA (2).
    Mode(u8),
    /// The host selects an SVL.
    SetSvl(u16),
    /// The host fills ZA and ZT0, and turns ZA on for it.
    FillZa,
    /// The host closes SVE at EL1 whenever it is in streaming mode (1), or leaves it open (0).
    CloseSve(u8),
    /// Kernel-mode FP in the current task.
    Kernel,
    /// The timer fires after so many nanoseconds; its handler may use FP.
    Tick {
        /// when
        after: u32,
        /// with kernel-mode FP in the handler
        kernel: bool,
    },
    /// Another CPU is interrupted, and its handler uses FP.
    Poke(u8),
    /// This CPU turns itself off.
    Off,
    /// Another CPU is turned on, if it is off.
    On(u8),
    /// This CPU suspends itself.
    Suspend {
        /// and loses its registers
        power_down: bool,
    },
    /// A VM is built.
    Vm(u8, VmConfig),
    /// A vCPU is created with these VL and SVL: 0 without SVE, without SME.
    Vcpu(VcpuName, u16, u16),
    /// An AArch32 vCPU is created.
    Vcpu32(VcpuName),
    /// A VM is taken down.
    Destroy(u8),
    /// A vCPU is loaded on this CPU.
    Load(VcpuName),
    /// The loaded vCPU runs.
    Run(Run),
    /// The loaded vCPU is put.
    Put,
    /// A hypercall with random function and arguments, chosen by this seed.
    Junk(u64),
    /// This very hypercall. What it answers is judged by the specification.
    Call(Call),
    /// VCPU_RUN with these flags and answers, for at most [`ENTRY_NANOSECONDS`].
    Enter([Arg; 4]),
    /// The host writes into a page whatever it writes, if it has it; what it finds there is checked.
    Write(u8),
    /// A device reads a page, or writes it if that is this CPU's to have written.
    Device {
        /// the page
        page: u8,
        /// writes, not reads
        write: bool,
    },
}

/// Pages that a program's calls can name.
pub const PAGES: usize = 64;
/// The CPU whose business a page's content is, of so many: each has pages in a row.
pub const fn cpu_of_page(page: u8, cpus: usize) -> usize {
    page as usize * cpus / PAGES
}

/// Pages of its block.
pub const BLOCK: u16 = BLOCK_PAGES as u16;

/// VM handles that it can keep.
pub const HANDLES: usize = 8;
/// How long the timer lets a guest run that is entered by [`Event::Enter`].
pub const ENTRY_NANOSECONDS: u64 = 1_000_000;

/// An argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// This number.
    Number(u64),
    /// The address of one of the program's pages, and so many bytes.
    Page(u8, u16),
    /// The address of a page of the program's block, which is aligned to its size.
    Block(u16),
    /// A handle that was kept.
    Vm(u8),
    /// A page of hyp's.
    Hyp,
    /// A page of device registers.
    Mmio,
}

/// A hypercall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The function; never VCPU_RUN.
    pub function: Function,
    /// x1-x7.
    pub args: [Arg; 7],
    /// Where x1 of the answer is kept as a handle.
    pub keep: Option<u8>,
}

/// An event, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Below [`CPUS`].
    pub cpu: u8,
    /// What.
    pub event: Event,
}

/// A line of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A new program begins.
    Program {
        /// It was made from this.
        seed: u64,
        /// Its order.
        mode: Mode,
    },
    /// A step of it.
    Step(Step),
    /// `machine WORDS`: what it is to run on, for whoever builds the machine.
    Machine(&'a str),
    /// Nothing, or a comment (`#`).
    Blank,
}

/// A line that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Not an event, a mode, a command, ...
    #[error("unknown word")]
    Word,
    /// A number is missing, malformed or too large.
    #[error("bad number")]
    Number,
    /// The line goes on.
    #[error("too many words")]
    Rest,
}

fn number<T: FromStr>(word: Option<&str>) -> Result<T, ParseError> {
    word.and_then(|word| word.parse().ok()).ok_or(ParseError::Number)
}

fn below(word: Option<&str>, end: usize) -> Result<u8, ParseError> {
    number::<u8>(word)
        .and_then(|n| if usize::from(n) < end { Ok(n) } else { Err(ParseError::Number) })
}

fn hexadecimal(word: Option<&str>) -> Result<u64, ParseError> {
    word.and_then(|word| word.strip_prefix("0x"))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(ParseError::Number)
}

fn vcpu(word: Option<&str>) -> Result<VcpuName, ParseError> {
    let (vm, vcpu) = word.and_then(|word| word.split_once('.')).ok_or(ParseError::Number)?;
    Ok(VcpuName { vm: below(Some(vm), VMS)?, vcpu: below(Some(vcpu), VCPUS)? })
}

fn policy(word: Option<&str>) -> Result<Policy, ParseError> {
    match word {
        Some("lazy") => Ok(Policy::Lazy),
        Some("eager") => Ok(Policy::Eager),
        Some("scrub") => Ok(Policy::Scrub),
        _ => Err(ParseError::Word),
    }
}

type Words<'w, 'a> = &'w mut dyn Iterator<Item = &'a str>;

fn command(words: Words<'_, '_>) -> Result<Command, ParseError> {
    Ok(match words.next() {
        Some("nop") => Command::Nop,
        Some("fill") => Command::Fill(number(words.next())?),
        Some("fpsimd") => Command::FillFpsimd,
        Some("check") => Command::Check,
        Some("vl") => Command::SetVl(number(words.next())?),
        Some("churn") => Command::Churn(number(words.next())?),
        Some("spin") => Command::Spin(number(words.next())?),
        Some("wfi") => Command::Wfi,
        Some("mmio") => Command::Mmio,
        Some("timer") => Command::Timer(number(words.next())?),
        Some("mode") => Command::Mode(below(words.next(), 4)?.into()),
        Some("svl") => Command::SetSvl(number(words.next())?),
        Some("za") => Command::FillZa,
        Some("close-sve") => Command::CloseSve(below(words.next(), 2)?.into()),
        _ => return Err(ParseError::Word),
    })
}

fn run(words: Words<'_, '_>) -> Result<Run, ParseError> {
    let mut run = Run { command: command(words)?, hint: HostFlags::empty(), once: false };
    while let Some(word) = words.next() {
        match word {
            "once" => run.once = true,
            "hint" => match words.next() {
                Some("foreign") => run.hint |= HostFlags::FOREIGN_FPSTATE,
                Some("discarded") => run.hint |= HostFlags::SVE_DISCARDED,
                _ => return Err(ParseError::Word),
            },
            _ => return Err(ParseError::Word),
        }
    }
    Ok(run)
}

fn argument(word: &str) -> Result<Arg, ParseError> {
    let indexed = |rest: &str, end| below(Some(rest), end);
    Ok(match (word, word.split_at_checked(1)) {
        ("hyp", _) => Arg::Hyp,
        ("mmio", _) => Arg::Mmio,
        (_, Some(("p", rest))) => match rest.split_once('+') {
            Some((page, offset)) => Arg::Page(indexed(page, PAGES)?, number(Some(offset))?),
            None => Arg::Page(indexed(rest, PAGES)?, 0),
        },
        (_, Some(("b", rest))) => Arg::Block(number(Some(rest)).and_then(|n: u16| match n {
            0..BLOCK => Ok(n),
            _ => Err(ParseError::Number),
        })?),
        (_, Some(("v", rest))) => Arg::Vm(indexed(rest, HANDLES)?),
        _ if word.starts_with("0x") => Arg::Number(hexadecimal(Some(word))?),
        _ => Arg::Number(number(Some(word))?),
    })
}

/// Arguments up to the end of the line or a `>`; those that are missing are 0.
fn arguments<const N: usize>(words: Words<'_, '_>) -> Result<([Arg; N], bool), ParseError> {
    let mut args = [Arg::Number(0); N];
    for (n, word) in words.enumerate() {
        if word == ">" {
            return Ok((args, true));
        }
        *args.get_mut(n).ok_or(ParseError::Rest)? = argument(word)?;
    }
    Ok((args, false))
}

fn call(words: Words<'_, '_>) -> Result<Call, ParseError> {
    let name = words.next().ok_or(ParseError::Word)?;
    let function = Function::ALL.iter().copied().find(|f| f.name() == name);
    let function = function.filter(|&f| f != Function::VcpuRun).ok_or(ParseError::Word)?;
    let (args, keeps) = arguments(words)?;
    let keep = match keeps {
        false => None,
        true => match words.next().map(argument) {
            Some(Ok(Arg::Vm(n))) => Some(n),
            _ => return Err(ParseError::Word),
        },
    };
    Ok(Call { function, args, keep })
}

fn event(words: Words<'_, '_>) -> Result<Event, ParseError> {
    let event = match words.next() {
        Some("fill") => Event::Fill(number(words.next())?),
        Some("fpsimd") => Event::FillFpsimd,
        Some("check") => Event::Check,
        Some("vl") => Event::SetVl(number(words.next())?),
        Some("mode") => Event::Mode(below(words.next(), 4)?),
        Some("svl") => Event::SetSvl(number(words.next())?),
        Some("za") => Event::FillZa,
        Some("close-sve") => Event::CloseSve(below(words.next(), 2)?),
        Some("kernel") => Event::Kernel,
        Some("tick") => {
            let after = number(words.next())?;
            match words.next() {
                None => Event::Tick { after, kernel: false },
                Some("kernel") => Event::Tick { after, kernel: true },
                Some(_) => return Err(ParseError::Word),
            }
        }
        Some("poke") => Event::Poke(below(words.next(), CPUS)?),
        Some("off") => Event::Off,
        Some("on") => Event::On(below(words.next(), CPUS)?),
        Some("suspend") => match words.next() {
            Some("standby") => Event::Suspend { power_down: false },
            Some("power-down") => Event::Suspend { power_down: true },
            _ => return Err(ParseError::Word),
        },
        Some("vm") => {
            let slot = below(words.next(), VMS)?;
            let policy = policy(words.next())?;
            let protected = match words.next() {
                Some("normal") => false,
                Some("protected") => true,
                _ => return Err(ParseError::Word),
            };
            Event::Vm(slot, VmConfig { policy, protected, ..VmConfig::normal() })
        }
        Some("vcpu") => {
            let (name, vl) = (vcpu(words.next())?, words.next());
            match (vl, words.next()) {
                (Some("aarch32"), None) => Event::Vcpu32(name),
                (vl, None) => Event::Vcpu(name, number(vl)?, 0),
                (vl, svl) => Event::Vcpu(name, number(vl)?, number(svl)?),
            }
        }
        Some("destroy") => Event::Destroy(below(words.next(), VMS)?),
        Some("load") => Event::Load(vcpu(words.next())?),
        Some("run") => Event::Run(run(words)?),
        Some("put") => Event::Put,
        Some("junk") => Event::Junk(hexadecimal(words.next())?),
        Some("call") => Event::Call(call(words)?),
        Some("enter") => match arguments(words)? {
            (args, false) => Event::Enter(args),
            (_, true) => return Err(ParseError::Word),
        },
        Some("write") => Event::Write(below(words.next(), PAGES)?),
        Some("device") => {
            let page = below(words.next(), PAGES)?;
            match words.next() {
                Some("reads") => Event::Device { page, write: false },
                Some("writes") => Event::Device { page, write: true },
                _ => return Err(ParseError::Word),
            }
        }
        _ => return Err(ParseError::Word),
    };
    if words.next().is_some() { Err(ParseError::Rest) } else { Ok(event) }
}

impl<'a> Line<'a> {
    /// Reads a line.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(line: &'a str) -> Result<Self, ParseError> {
        let line = line.trim();
        let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let mut words = rest.split_whitespace();
        match first {
            "" => Ok(Self::Blank),
            _ if first.starts_with('#') => Ok(Self::Blank),
            "machine" => Ok(Self::Machine(rest.trim())),
            "program" => {
                let seed = hexadecimal(words.next())?;
                let mode = match words.next() {
                    Some("replay") => Mode::Replay,
                    Some("storm") => Mode::Storm,
                    _ => return Err(ParseError::Word),
                };
                if words.next().is_some() {
                    Err(ParseError::Rest)
                } else {
                    Ok(Self::Program { seed, mode })
                }
            }
            cpu => {
                let cpu = below(Some(cpu), CPUS).map_err(|_| ParseError::Word)?;
                Ok(Self::Step(Step { cpu, event: event(&mut words)? }))
            }
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replay => "replay",
            Self::Storm => "storm",
        })
    }
}

impl fmt::Display for VcpuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.vm, self.vcpu)
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.command {
            Command::Nop => f.write_str("nop")?,
            Command::Fill(vl) => write!(f, "fill {vl}")?,
            Command::FillFpsimd => f.write_str("fpsimd")?,
            Command::Check => f.write_str("check")?,
            Command::SetVl(vl) => write!(f, "vl {vl}")?,
            Command::Churn(times) => write!(f, "churn {times}")?,
            Command::Spin(times) => write!(f, "spin {times}")?,
            Command::Wfi => f.write_str("wfi")?,
            Command::Mmio => f.write_str("mmio")?,
            Command::Timer(ticks) => write!(f, "timer {ticks}")?,
            Command::Mode(svcr) => write!(f, "mode {svcr}")?,
            Command::SetSvl(svl) => write!(f, "svl {svl}")?,
            Command::FillZa => f.write_str("za")?,
            Command::CloseSve(close) => write!(f, "close-sve {close}")?,
        }
        if self.hint.contains(HostFlags::FOREIGN_FPSTATE) {
            f.write_str(" hint foreign")?;
        }
        if self.hint.contains(HostFlags::SVE_DISCARDED) {
            f.write_str(" hint discarded")?;
        }
        if self.once { f.write_str(" once") } else { Ok(()) }
    }
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n @ ..4096) => write!(f, "{n}"),
            Self::Number(n) => write!(f, "{n:#x}"),
            Self::Page(n, 0) => write!(f, "p{n}"),
            Self::Page(n, offset) => write!(f, "p{n}+{offset}"),
            Self::Block(n) => write!(f, "b{n}"),
            Self::Vm(n) => write!(f, "v{n}"),
            Self::Hyp => f.write_str("hyp"),
            Self::Mmio => f.write_str("mmio"),
        }
    }
}

/// Those at the end that are 0 are left out.
fn display_arguments(f: &mut fmt::Formatter<'_>, args: &[Arg]) -> fmt::Result {
    let used = args.iter().rposition(|&arg| arg != Arg::Number(0)).map_or(0, |last| last + 1);
    args[..used].iter().try_for_each(|arg| write!(f, " {arg}"))
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fill(vl) => write!(f, "fill {vl}"),
            Self::FillFpsimd => f.write_str("fpsimd"),
            Self::Check => f.write_str("check"),
            Self::SetVl(vl) => write!(f, "vl {vl}"),
            Self::Mode(svcr) => write!(f, "mode {svcr}"),
            Self::SetSvl(svl) => write!(f, "svl {svl}"),
            Self::FillZa => f.write_str("za"),
            Self::CloseSve(close) => write!(f, "close-sve {close}"),
            Self::Kernel => f.write_str("kernel"),
            Self::Tick { after, kernel: false } => write!(f, "tick {after}"),
            Self::Tick { after, kernel: true } => write!(f, "tick {after} kernel"),
            Self::Poke(cpu) => write!(f, "poke {cpu}"),
            Self::Off => f.write_str("off"),
            Self::On(cpu) => write!(f, "on {cpu}"),
            Self::Suspend { power_down: false } => f.write_str("suspend standby"),
            Self::Suspend { power_down: true } => f.write_str("suspend power-down"),
            Self::Vm(slot, config) => {
                let policy = match config.policy {
                    Policy::Lazy => "lazy",
                    Policy::Eager => "eager",
                    Policy::Scrub => "scrub",
                };
                let kind = if config.protected { "protected" } else { "normal" };
                write!(f, "vm {slot} {policy} {kind}")
            }
            Self::Vcpu32(name) => write!(f, "vcpu {name} aarch32"),
            Self::Vcpu(name, vl, 0) => write!(f, "vcpu {name} {vl}"),
            Self::Vcpu(name, vl, svl) => write!(f, "vcpu {name} {vl} {svl}"),
            Self::Destroy(slot) => write!(f, "destroy {slot}"),
            Self::Load(name) => write!(f, "load {name}"),
            Self::Run(run) => write!(f, "run {run}"),
            Self::Put => f.write_str("put"),
            Self::Junk(seed) => write!(f, "junk {seed:#x}"),
            Self::Call(call) => {
                write!(f, "call {}", call.function.name())?;
                display_arguments(f, &call.args)?;
                call.keep.map_or(Ok(()), |n| write!(f, " > v{n}"))
            }
            Self::Enter(args) => {
                f.write_str("enter")?;
                display_arguments(f, args)
            }
            Self::Write(page) => write!(f, "write {page}"),
            Self::Device { page, write: false } => write!(f, "device {page} reads"),
            Self::Device { page, write: true } => write!(f, "device {page} writes"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.cpu, self.event)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::generate::{Generator, Shape};
    use proptest::prelude::*;
    use std::string::ToString;

    proptest! {
        #[test]
        fn what_is_written_is_read(seed: u64, cpus in 1usize..5) {
            let shape = Shape::new(&[64, 256, 16, 32][..cpus], &[32, 16, 64, 128][..cpus], true);
            for step in Generator::new(seed, Mode::Storm, &shape) {
                let text = step.to_string();
                prop_assert_eq!(Line::parse(&text), Ok(Line::Step(step)), "{}", text);
            }
        }

        #[test]
        fn calls_are_read_as_written(
            function in 0usize..Function::ALL.len(),
            kinds: [u8; 7],
            numbers: [u64; 7],
            keep in proptest::option::of(0u8..HANDLES as u8),
        ) {
            let args = core::array::from_fn(|n| match kinds[n] % 7 {
                5 => Arg::Block(numbers[n] as u16 % BLOCK),
                0 => Arg::Number(numbers[n]),
                1 => Arg::Number(numbers[n] % 5000),
                2 => Arg::Page((numbers[n] % PAGES as u64) as u8, (numbers[n] >> 32) as u16),
                3 => Arg::Vm((numbers[n] % HANDLES as u64) as u8),
                4 => Arg::Hyp,
                _ => Arg::Mmio,
            });
            let function = Function::ALL[function];
            prop_assume!(function != Function::VcpuRun);
            for event in [
                Event::Call(Call { function, args, keep }),
                Event::Enter([args[0], args[1], args[2], args[3]]),
                Event::Write(kinds[0] % PAGES as u8),
                Event::Device { page: kinds[0] % PAGES as u8, write: kinds[1] & 1 != 0 },
            ] {
                let step = Step { cpu: 1, event };
                let text = step.to_string();
                prop_assert_eq!(Line::parse(&text), Ok(Line::Step(step)), "{}", text);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[ -~]{0,40}") {
            let _ = Line::parse(&text);
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (line, error) in [
            ("0 nonsense", ParseError::Word),
            ("9 check", ParseError::Word),
            ("0 load 4.0", ParseError::Number),
            ("0 load 0", ParseError::Number),
            ("0 fill", ParseError::Number),
            ("0 check twice", ParseError::Rest),
            ("0 run fill 16 twice", ParseError::Word),
            ("program 7 storm", ParseError::Number),
            ("program 0x7 slowly", ParseError::Word),
            ("0 mode 4", ParseError::Number),
            ("0 run mode 4", ParseError::Number),
            ("0 run close-sve 2", ParseError::Number),
            ("0 vcpu 0.0 16 x", ParseError::Number),
            ("0 vcpu 0.0 16 16 16", ParseError::Rest),
            ("0 call VcpuRun", ParseError::Word),
            ("0 call VmMap p64", ParseError::Number),
            ("0 call VmMap 1 2 3 4 5 6 7 8", ParseError::Rest),
            ("0 call VmCreate p1 > 3", ParseError::Word),
        ] {
            assert_eq!(Line::parse(line), Err(error), "{line}");
        }
        assert_eq!(Line::parse("  # 0 check"), Ok(Line::Blank));
        assert_eq!(Line::parse("machine --smp 4 "), Ok(Line::Machine("--smp 4")));
        assert_eq!(
            Line::parse("program 0xff storm"),
            Ok(Line::Program { seed: 255, mode: Mode::Storm })
        );
    }
}
