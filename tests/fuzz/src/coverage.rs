//! Which event met which state of the registers, at which vector lengths.

use crate::program::Event;
use core::fmt;
use umbra_patterns::protocol::Command;
use umbra_shared::vl::Vq;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Events as coverage counts them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// [`Event::Fill`]
    Fill = "fill",
    /// [`Event::FillFpsimd`]
    FillFpsimd = "fpsimd",
    /// [`Event::Check`]
    Check = "check",
    /// [`Event::SetVl`]
    SetVl = "vl",
    /// [`Event::Mode`]
    Mode = "mode",
    /// [`Event::SetSvl`]
    SetSvl = "svl",
    /// [`Event::FillZa`]
    FillZa = "za",
    /// [`Event::CloseSve`]
    CloseSve = "close-sve",
    /// [`Event::Kernel`]
    Kernel = "kernel",
    /// Kernel-mode FP in an interrupt handler.
    Softirq = "softirq",
    /// [`Event::Tick`]
    Tick = "tick",
    /// [`Event::Poke`]
    Poke = "poke",
    /// [`Event::Off`]
    Off = "off",
    /// [`Event::On`]
    On = "on",
    /// [`Event::Suspend`] that keeps the registers.
    Standby = "standby",
    /// [`Event::Suspend`] that loses them.
    PowerDown = "power-down",
    /// [`Event::Vm`]
    Vm = "vm",
    /// [`Event::Vcpu`]
    Vcpu = "vcpu",
    /// [`Event::Vcpu32`]
    Vcpu32 = "vcpu32",
    /// [`Event::Destroy`]
    Destroy = "destroy",
    /// [`Event::Load`]
    Load = "load",
    /// [`Event::Put`]
    Put = "put",
    /// [`Event::Junk`]
    Junk = "junk",
    /// [`Event::Call`]
    Call = "call",
    /// [`Event::Enter`]
    Enter = "enter",
    /// [`Event::Write`]
    Write = "write",
    /// [`Event::Device`]
    Device = "device",
    /// [`Event::Run`] of a guest that leaves FP alone: nop, spin, WFI, MMIO, timer.
    RunPlain = "run",
    /// ... that fills its registers.
    RunFill = "run-fill",
    /// ... that fills V0-V31.
    RunFpsimd = "run-fpsimd",
    /// ... that checks them.
    RunCheck = "run-check",
    /// ... that changes its VL.
    RunSetVl = "run-vl",
    /// ... that fills and checks again and again.
    RunChurn = "run-churn",
    /// ... that changes PSTATE.SM and PSTATE.ZA.
    RunMode = "run-mode",
    /// ... that changes its SVL.
    RunSetSvl = "run-svl",
    /// ... that fills ZA.
    RunFillZa = "run-za",
    /// ... that closes SVE at EL1 in streaming mode, or no longer.
    RunCloseSve = "run-close-sve",
    /// An entry with FOREIGN_FPSTATE.
    HintForeign = "hint-foreign",
    /// An entry with SVE_DISCARDED.
    HintDiscarded = "hint-discarded",
    /// An exit for an interrupt.
    ExitIrq = "exit-irq",
    /// An exit for an MMIO access.
    ExitMmio = "exit-mmio",
    /// An exit for the command's end.
    ExitHvc = "exit-hvc",
    /// An exit for WFI.
    ExitWfi = "exit-wfi",
}

impl Kind {
    /// The kind of an event.
    pub const fn of(event: &Event) -> Self {
        match event {
            Event::Fill(_) => Self::Fill,
            Event::FillFpsimd => Self::FillFpsimd,
            Event::Check => Self::Check,
            Event::SetVl(_) => Self::SetVl,
            Event::Mode(_) => Self::Mode,
            Event::SetSvl(_) => Self::SetSvl,
            Event::FillZa => Self::FillZa,
            Event::CloseSve(_) => Self::CloseSve,
            Event::Kernel => Self::Kernel,
            Event::Tick { .. } => Self::Tick,
            Event::Poke(_) => Self::Poke,
            Event::Off => Self::Off,
            Event::On(_) => Self::On,
            Event::Suspend { power_down: false } => Self::Standby,
            Event::Suspend { power_down: true } => Self::PowerDown,
            Event::Vm(..) => Self::Vm,
            Event::Vcpu(..) => Self::Vcpu,
            Event::Vcpu32(_) => Self::Vcpu32,
            Event::Destroy(_) => Self::Destroy,
            Event::Load(_) => Self::Load,
            Event::Put => Self::Put,
            Event::Junk(_) => Self::Junk,
            Event::Call(_) => Self::Call,
            Event::Enter(_) => Self::Enter,
            Event::Write(_) => Self::Write,
            Event::Device { .. } => Self::Device,
            Event::Run(run) => match run.command {
                Command::Fill(_) => Self::RunFill,
                Command::FillFpsimd => Self::RunFpsimd,
                Command::Check => Self::RunCheck,
                Command::SetVl(_) => Self::RunSetVl,
                Command::Churn(_) => Self::RunChurn,
                Command::Mode(_) => Self::RunMode,
                Command::SetSvl(_) => Self::RunSetSvl,
                Command::FillZa => Self::RunFillZa,
                Command::CloseSve(_) => Self::RunCloseSve,
                Command::Nop
                | Command::Spin(_)
                | Command::Wfi
                | Command::Mmio
                | Command::Timer(_) => Self::RunPlain,
            },
        }
    }

    /// The kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

/// Whose state is in a CPU's registers, as hyp's word, the events so far and the counters tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Live {
    /// The host's.
    Host,
    /// The loaded vCPU's.
    Guest,
    /// Nobody's.
    Nobody,
}

impl Live {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Host, Self::Guest, Self::Nobody];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
            Self::Nobody => "nobody",
        }
    }
}

/// PSTATE.SM and PSTATE.ZA of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostMode(u8);

impl HostMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self(0), Self(1), Self(2), Self(3)];

    /// By SVCR.
    pub const fn of(svcr: u64) -> Self {
        Self(svcr as u8 & 3)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "-",
            1 => "sm",
            2 => "za",
            _ => "sm+za",
        }
    }
}

/// An event, whose registers it met, the largest VLs of the CPU's host and of the loaded vCPU, and the
/// host's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The event.
    pub kind: Kind,
    /// The registers.
    pub live: Live,
    /// Of the host: VL class.
    pub host: VlClass,
    /// Of the loaded vCPU: VL class; `None` if none is loaded.
    pub guest: Option<VlClass>,
    /// Of the host: streaming mode and ZA.
    pub mode: HostMode,
}

/// A largest vector length: none, or a power of two (others count as the next smaller one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VlClass(u8);

impl VlClass {
    /// All of them: no SVE, 16, 32, 64, 128 and 256 bytes.
    pub const ALL: [Self; 6] = [Self(0), Self(1), Self(2), Self(3), Self(4), Self(5)];

    /// The class of a largest VL.
    pub const fn of(vq: Option<Vq>) -> Self {
        match vq {
            None => Self(0),
            Some(vq) => Self(1 + vq.quadwords().ilog2() as u8),
        }
    }

    /// The smallest VL of the class, bytes; 0: no SVE.
    pub const fn vl_bytes(self) -> u16 {
        if self.0 == 0 { 0 } else { 8 << self.0 }
    }

    fn from_vl(vl: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.vl_bytes() == vl)
    }
}

impl Pair {
    /// Numbers of pairs end here.
    pub const COUNT: usize = Kind::ALL.len() * 3 * 6 * 7 * 4;

    /// A number for each.
    pub const fn number(self) -> usize {
        let guest = match self.guest {
            None => 0,
            Some(class) => 1 + class.0 as usize,
        };
        let lengths = self.host.0 as usize * 7 + guest;
        ((self.kind as usize * 3 + self.live as usize) * 42 + lengths) * 4 + self.mode.0 as usize
    }

    /// The pair with this number.
    pub fn from_number(number: usize) -> Option<Self> {
        let (rest, mode) = (number / 4, number % 4);
        let (rest, guest) = (rest / 7, rest % 7);
        let (rest, host) = (rest / 6, rest % 6);
        Some(Self {
            kind: *Kind::ALL.get(rest / 3)?,
            live: Live::ALL[rest % 3],
            host: VlClass::ALL[host],
            guest: guest.checked_sub(1).map(|n| VlClass::ALL[n]),
            mode: HostMode::ALL[mode],
        })
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let kind = Kind::from_name(words.next()?)?;
        let live = words.next()?;
        let live = Live::ALL.into_iter().find(|l| l.name() == live)?;
        let host = VlClass::from_vl(words.next()?.parse().ok()?)?;
        let guest = match words.next()? {
            "-" => None,
            vl => Some(VlClass::from_vl(vl.parse().ok()?)?),
        };
        let mode = words.next()?;
        let mode = HostMode::ALL.into_iter().find(|m| m.name() == mode)?;
        words.next().is_none().then_some(Self { kind, live, host, guest, mode })
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.kind.name(), self.live.name(), self.host.vl_bytes())?;
        match self.guest {
            None => f.write_str("-")?,
            Some(class) => write!(f, "{}", class.vl_bytes())?,
        }
        write!(f, " {}", self.mode.name())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn pairs_have_numbers_and_text() {
        for number in 0..Pair::COUNT {
            let pair = Pair::from_number(number).unwrap();
            assert_eq!(pair.number(), number);
            assert_eq!(Pair::parse(&pair.to_string()), Some(pair));
        }
        assert_eq!(Pair::from_number(Pair::COUNT), None);
        assert_eq!(Pair::parse("fill host 48 - -"), None);
    }

    #[test]
    fn lengths_have_classes() {
        let class = |n| VlClass::of(Vq::new(n)).vl_bytes();
        assert_eq!([1, 2, 3, 4, 7, 8, 15, 16].map(class), [16, 32, 32, 64, 64, 128, 128, 256]);
        assert_eq!(VlClass::of(None).vl_bytes(), 0);
    }
}
