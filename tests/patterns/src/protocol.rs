//! What the test guest (`tests/guest`) and its host say to each other.
//!
//! The guest is one image for all its vCPUs, linked at [`BASE`]; the second 8 bytes of the file hold the
//! bytes of memory it needs. x0 at the start is an [`Argument`]. It calls the host with HVC, x0 being
//! one of the function IDs below (SMCCC: fast calls, SMC64, OEM service range), and it uses the counter
//! device at [`DEVICE`].

use crate::{pattern::Mismatch, tag::Register};
use core::fmt;
use umbra_shared::vl::Vq;

/// Where the guest's memory begins (guest-physical).
pub const BASE: u64 = 0x8000_0000;

/// The counter device: per vCPU one 8-byte and one 4-byte counter ([`counter`]). A write adds, a read
/// returns the sum.
pub const DEVICE: u64 = 0x0a00_0000;

/// Bytes of the counter device.
pub const DEVICE_BYTES: u64 = 0x1000;

/// A store of 4 bytes raises the device's interrupt, a level.
pub const RAISE: u64 = DEVICE + 0x800;
/// And one here lowers it.
pub const LOWER: u64 = DEVICE + 0x804;
/// Its INTID.
pub const DEVICE_SPI: u16 = 40;

/// The guest's GIC: the distributor.
pub const GICD: u64 = 0x0800_0000;
/// The redistributors, one for each vCPU.
pub const GICR: u64 = 0x080a_0000;
/// Bytes of the distributor, and of each redistributor.
pub const GICD_BYTES: u64 = 0x1_0000;
/// See there.
pub const GICR_BYTES: u64 = 0x2_0000;

/// The most vCPUs the guest image has stacks for.
pub const MAX_VCPUS: usize = 8;

/// The address of a vCPU's counter of 8 or 4 bytes.
pub const fn counter(vcpu: u64, bytes: u64) -> u64 {
    DEVICE + vcpu * 16 + if bytes == 8 { 0 } else { 8 }
}

/// x1: verified iterations, x2: SGIs that others have sent to this vCPU → x0: [`CONTINUE`] or [`STOP`].
pub const REPORT: u64 = 0xc300_0001;
/// x1-x5: a [`Failure`]. No return.
pub const FAIL: u64 = 0xc300_0002;
/// x1 → x0 = x1 + 1.
pub const ECHO: u64 = 0xc300_0003;
/// Nothing: what the benchmark measures.
pub const BENCH: u64 = 0xc300_0004;
/// x1: counter ticks of the last measurement → x0: the next [`Routine`], x1: iterations.
pub const BENCH_NEXT: u64 = 0xc300_0006;
/// x1: commands done → x0, x1: the next [`Command`].
pub const NEXT: u64 = 0xc300_0005;

/// x1: a vCPU → x0: its [`Argument`], x1: its entry, for whoever turns it on; x0 = 0: there is none.
pub const ARGUMENT: u64 = 0xc300_0007;

/// Go on.
pub const CONTINUE: u64 = 0;
/// Turn yourself off (PSCI CPU_OFF).
pub const STOP: u64 = 1;

/// What the vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Patterns, exits, checks.
    Verify = 0,
    /// One [`Routine`] after the other, timed.
    Bench = 1,
    /// One [`Command`] of the host's after the other.
    Driven = 4,
}

/// What a guest measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Routine {
    /// [`BENCH`] calls.
    HvcNone = 0,
    /// [`BENCH`] calls, and one Advanced SIMD instruction for each.
    HvcFpsimd = 1,
    /// [`BENCH`] calls, and one SVE instruction for each.
    HvcSve = 2,
    /// Loads from [`DEVICE`].
    Mmio = 3,
    /// Reads of an ID register.
    Trap = 4,
    /// SMCs.
    Smc = 5,
    /// Turns without end: what interrupts stop.
    Spin = 6,
    /// NOP between two looks at the counter, then a [`BENCH`] call.
    TouchNone = 7,
    /// An Advanced SIMD instruction in its place.
    TouchFpsimd = 8,
    /// An SVE instruction in its place.
    TouchSve = 9,
    /// [`BENCH`] calls of a guest that uses pointer authentication.
    HvcPauth = 10,
    /// The timer's interrupts, whose handler turns it off: the guest is busy, and sets it anew for at once.
    Tick = 11,
    /// The same of a guest that waits (WFI).
    IdleTick = 12,
    /// [`BENCH`] calls at which the host makes an interrupt pending.
    Interrupt = 13,
    /// SGIs to the second vCPU, each of which it answers with one.
    Ipi = 14,
    /// The second vCPU's part of that. It never ends.
    IpiAnswer = 15,
}

impl Routine {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::HvcNone,
        Self::HvcFpsimd,
        Self::HvcSve,
        Self::Mmio,
        Self::Trap,
        Self::Smc,
        Self::Spin,
        Self::TouchNone,
        Self::TouchFpsimd,
        Self::TouchSve,
        Self::HvcPauth,
        Self::Tick,
        Self::IdleTick,
        Self::Interrupt,
        Self::Ipi,
        Self::IpiAnswer,
    ];

    /// Reads a register.
    pub fn decode(x: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|&routine| routine as u64 == x)
    }
}

/// What a driven guest is told to do. Vector lengths are in bytes; 0 is the one in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing.
    Nop,
    /// Select a VL and fill all registers.
    Fill(u16),
    /// Fill V0-V31.
    FillFpsimd,
    /// Check all registers.
    Check,
    /// Select a VL.
    SetVl(u16),
    /// Fill V0-V31 and check, so many times.
    Churn(u16),
    /// YIELD so many times.
    Spin(u16),
    /// WFI.
    Wfi,
    /// Add to the counter device and read it back.
    Mmio,
    /// Let the virtual timer fire after so many ticks.
    Timer(u16),
    /// Set SVCR: PSTATE.SM and PSTATE.ZA.
    Mode(u16),
    /// Select an SVL.
    SetSvl(u16),
    /// Turn ZA on, if it is not, and fill it and ZT0.
    FillZa,
    /// Close SVE at EL1 (CPACR_EL1.ZEN) whenever in streaming mode, which must change nothing there, or
    /// leave it open (0).
    CloseSve(u16),
}

impl Command {
    /// x0 and x1.
    pub const fn encode(self) -> [u64; 2] {
        match self {
            Self::Nop => [0, 0],
            Self::Fill(vl) => [1, vl as u64],
            Self::FillFpsimd => [2, 0],
            Self::Check => [3, 0],
            Self::SetVl(vl) => [4, vl as u64],
            Self::Churn(times) => [5, times as u64],
            Self::Spin(times) => [6, times as u64],
            Self::Wfi => [7, 0],
            Self::Mmio => [8, 0],
            Self::Timer(ticks) => [9, ticks as u64],
            Self::Mode(svcr) => [10, svcr as u64],
            Self::SetSvl(svl) => [11, svl as u64],
            Self::FillZa => [12, 0],
            Self::CloseSve(close) => [13, close as u64],
        }
    }

    /// Reads x0 and x1.
    pub const fn decode([x0, x1]: [u64; 2]) -> Option<Self> {
        if x1 > u16::MAX as u64 {
            return None;
        }
        let n = x1 as u16;
        Some(match x0 {
            0 => Self::Nop,
            1 => Self::Fill(n),
            2 => Self::FillFpsimd,
            3 => Self::Check,
            4 => Self::SetVl(n),
            5 => Self::Churn(n),
            6 => Self::Spin(n),
            7 => Self::Wfi,
            8 => Self::Mmio,
            9 => Self::Timer(n),
            10 => Self::Mode(n),
            11 => Self::SetSvl(n),
            12 => Self::FillZa,
            13 => Self::CloseSve(n),
            _ => return None,
        })
    }
}

/// x0 at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Index of the vCPU.
    pub vcpu: u8,
    /// Owner of its tags.
    pub owner: u16,
    /// Its largest VL; `None`: no SVE.
    pub vq: Option<Vq>,
    /// Its largest SVL; `None`: no SME.
    pub svq: Option<Vq>,
    /// What to do.
    pub mode: Mode,
}

impl Argument {
    /// The register.
    pub const fn encode(self) -> u64 {
        const fn bytes(vq: Option<Vq>) -> u64 {
            match vq {
                Some(vq) => vq.vl_bytes() as u64,
                None => 0,
            }
        }
        let lengths = bytes(self.vq) << 24 | bytes(self.svq) << 48;
        self.vcpu as u64 | (self.owner as u64) << 8 | lengths | (self.mode as u64) << 40
    }

    /// Reads the register.
    pub const fn decode(x0: u64) -> Option<Self> {
        const fn length(bytes: u64) -> Option<Option<Vq>> {
            match (bytes, Vq::from_vl(bytes)) {
                (0, _) => Some(None),
                (_, Some(vq)) => Some(Some(vq)),
                _ => None,
            }
        }
        let mode = match x0 >> 40 & 0xff {
            0 => Mode::Verify,
            1 => Mode::Bench,
            4 => Mode::Driven,
            _ => return None,
        };
        let (Some(vq), Some(svq)) = (length(x0 >> 24 & 0xffff), length(x0 >> 48)) else {
            return None;
        };
        Some(Self { vcpu: x0 as u8, owner: (x0 >> 8) as u16, vq, svq, mode })
    }
}

/// Why a guest gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A register doesn't hold what it should.
    Register {
        /// which
        register: Register,
        /// at which byte
        byte: u32,
        /// the 8 bytes as they should be
        expected: u64,
        /// and as they are
        found: u64,
        /// the VL in force, bytes
        vl: u64,
    },
    /// A LEN gave a VL it must not give.
    VectorLength {
        /// asked for, bytes
        asked: u64,
        /// given, bytes
        given: u64,
    },
    /// ECHO answered wrong.
    Echo(u64),
    /// The counter device answered wrong.
    Mmio {
        /// the sum as the guest has it
        expected: u64,
        /// as the device has it
        found: u64,
    },
    /// The timer's interrupt did not come.
    Timer,
    /// One that the guest has sent itself (0), or asked its device for (2), did not come.
    NoInterrupt(u64),
    /// An exception nobody expected.
    Exception {
        /// ESR_EL1
        esr: u64,
        /// ELR_EL1
        elr: u64,
        /// FAR_EL1
        far: u64,
    },
    /// Registers that are no failure.
    Garbled(u64),
}

impl From<Mismatch> for Failure {
    fn from(m: Mismatch) -> Self {
        Self::Register {
            register: m.register,
            byte: m.byte as u32,
            expected: m.expected,
            found: m.found,
            vl: 0,
        }
    }
}

impl Failure {
    /// x1-x5 of [`FAIL`].
    pub const fn encode(self) -> [u64; 5] {
        match self {
            Self::Register { register, byte, expected, found, vl } => {
                [1, register.number() as u64 | (byte as u64) << 32, expected, found, vl]
            }
            Self::VectorLength { asked, given } => [2, asked, given, 0, 0],
            Self::Echo(found) => [3, found, 0, 0, 0],
            Self::Mmio { expected, found } => [4, expected, found, 0, 0],
            Self::Timer => [5, 0, 0, 0, 0],
            Self::NoInterrupt(which) => [8, which, 0, 0, 0],
            Self::Exception { esr, elr, far } => [6, esr, elr, far, 0],
            Self::Garbled(code) => [0, code, 0, 0, 0],
        }
    }

    /// Reads x1-x5.
    pub const fn decode(x: [u64; 5]) -> Self {
        match x[0] {
            0 => Self::Garbled(x[1]),
            1 => match Register::from_number(x[1] as u16) {
                Some(register) => Self::Register {
                    register,
                    byte: (x[1] >> 32) as u32,
                    expected: x[2],
                    found: x[3],
                    vl: x[4],
                },
                None => Self::Garbled(1),
            },
            2 => Self::VectorLength { asked: x[1], given: x[2] },
            3 => Self::Echo(x[1]),
            4 => Self::Mmio { expected: x[1], found: x[2] },
            5 => Self::Timer,
            8 => Self::NoInterrupt(x[1]),
            6 => Self::Exception { esr: x[1], elr: x[2], far: x[3] },
            code => Self::Garbled(code),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Register { register, byte, expected, found, vl } => write!(
                f,
                "{register} byte {byte} at VL {vl}: expected {expected:#018x}, found {found:#018x}"
            ),
            Self::VectorLength { asked, given } => write!(f, "asked for VL {asked}, got {given}"),
            Self::Echo(found) => write!(f, "hypercall answered {found:#x}"),
            Self::Mmio { expected, found } => {
                write!(f, "device counter is {found:#x}, expected {expected:#x}")
            }
            Self::Timer => f.write_str("the timer interrupt did not come"),
            Self::NoInterrupt(which) => write!(f, "interrupt {which} did not come"),
            Self::Exception { esr, elr, far } => {
                write!(f, "exception: ESR {esr:#x} ELR {elr:#x} FAR {far:#x}")
            }
            Self::Garbled(code) => write!(f, "unknown failure {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arguments_survive(
            vcpu: u8,
            owner: u16,
            n in 0u64..17,
            m in 0u64..17,
            mode in 0usize..3,
        ) {
            let modes = [Mode::Verify, Mode::Bench, Mode::Driven];
            let (vq, svq) = (Vq::new(n), Vq::new(m));
            let argument = Argument { vcpu, owner, vq, svq, mode: modes[mode] };
            prop_assert_eq!(Argument::decode(argument.encode()), Some(argument));
        }

        #[test]
        fn commands_survive(kind in 0u64..16, n: u16) {
            if let Some(command) = Command::decode([kind, n.into()]) {
                prop_assert_eq!(Command::decode(command.encode()), Some(command));
            } else {
                prop_assert!(kind > 13);
            }
        }

        #[test]
        fn failures_survive(x: [u64; 5], kind in 0u64..8) {
            let failure = Failure::decode([kind, x[1], x[2], x[3], x[4]]);
            prop_assert_eq!(Failure::decode(failure.encode()), failure);
        }
    }
}
