//! PSCI 1.1: what each call is answered, and each CPU's power state.
//!
//! A state only changes by compare-and-exchange, so that two CPU_ON racing for one CPU give one
//! SUCCESS and one ON_PENDING or ALREADY_ON:
//!
//! ```text
//!   Off --CPU_ON--> Pending --the CPU leaves for EL2--> On --CPU_OFF, by the CPU itself--> Off
//! ```

use crate::config::SuspendFormat;
use crate::tree::Range;
use arm_psci::{ErrorCode, Function, FunctionId, MigrateInfoType, ResetType};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use umbra_shared::firmware::FIRMWARE_CPUS;

/// PSCI 1.1.
const VERSION: i64 = 0x1_0001;
/// SMCCC_VERSION, and its answer: 1.2.
const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_1_2: i64 = 0x1_0002;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// PSCI_FEATURES of CPU_SUSPEND: the extended StateID format is used.
const FEATURE_EXTENDED: i64 = 1 << 1;

const MEM_PROTECT: u32 = 0x8400_0013;
const CHECK_RANGE_32: u32 = 0x8400_0014;
const CHECK_RANGE_64: u32 = 0xc400_0014;

const OFF: u8 = 0;
const CLAIMED: u8 = 1;
const PENDING: u8 = 2;
const ON: u8 = 3;

/// Where a CPU enters EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// PC, physical.
    pub pc: u64,
    /// x0.
    pub context: u64,
}

/// One CPU's power state.
#[derive(Debug)]
pub struct Cpu {
    state: AtomicU8,
    pc: AtomicU64,
    context: AtomicU64,
    /// CPU_ON calls still to be denied.
    refusals: AtomicU8,
}

impl Cpu {
    /// An off CPU.
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(OFF),
            pc: AtomicU64::new(0),
            context: AtomicU64::new(0),
            refusals: AtomicU8::new(0),
        }
    }

    /// Denies the next `count` CPU_ON calls.
    pub fn refuse(&self, count: u8) {
        self.refusals.store(count, Ordering::Relaxed);
    }

    /// The CPU that boots is on without having been turned on.
    pub fn set_on(&self) {
        self.state.store(ON, Ordering::Release);
    }

    /// The CPU itself has nothing left to do at EL2.
    pub fn set_off(&self) {
        self.state.store(OFF, Ordering::Release);
    }

    /// Whether it was turned on and has not come yet.
    pub fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) == PENDING
    }

    /// The CPU itself asks whether it was turned on. If so, it is on from now on.
    pub fn take(&self) -> Option<Entry> {
        (self.state.load(Ordering::Acquire) == PENDING).then(|| {
            let entry = Entry {
                pc: self.pc.load(Ordering::Relaxed),
                context: self.context.load(Ordering::Relaxed),
            };
            self.state.store(ON, Ordering::Release);
            entry
        })
    }

    fn claim(&self, entry: Entry) -> Result<(), ErrorCode> {
        match self.state.compare_exchange(OFF, CLAIMED, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => {}
            Err(ON) => return Err(ErrorCode::AlreadyOn),
            Err(_) => return Err(ErrorCode::OnPending),
        }
        let refusals = self.refusals.load(Ordering::Relaxed);
        if refusals > 0 {
            self.refusals.store(refusals - 1, Ordering::Relaxed);
            self.state.store(OFF, Ordering::Release);
            return Err(ErrorCode::Denied);
        }
        self.pc.store(entry.pc, Ordering::Relaxed);
        self.context.store(entry.context, Ordering::Relaxed);
        self.state.store(PENDING, Ordering::Release);
        Ok(())
    }

    fn affinity_info(&self) -> i64 {
        match self.state.load(Ordering::Acquire) {
            ON => 0,
            OFF => 1,
            _ => 2,
        }
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

/// All CPUs.
pub type Cpus = [Cpu; FIRMWARE_CPUS];

/// What a call needs to know of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// Power states.
    pub cpus: &'a [Cpu],
    /// MPIDR affinities of the same CPUs.
    pub affinities: &'a [u64],
    /// Memory that an entry point may lie in.
    pub banks: &'a [Range],
    /// How CPU_SUSPEND's power_state is laid out.
    pub suspend: SuspendFormat,
    /// Whether memory is wiped at a reset (MEM_PROTECT); `None`: the function isn't there.
    pub protected: Option<&'a AtomicBool>,
}

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer this in x0.
    Answer(i64),
    /// Wake this CPU, which is pending now, and answer SUCCESS.
    Wake(usize),
    /// Turn the caller off.
    Off,
    /// Wait for an interrupt, keep everything, answer SUCCESS.
    Standby,
    /// Forget everything, wait for an interrupt, go there.
    PowerDown(Entry),
    /// Turn the machine off.
    SystemOff,
    /// Reset it.
    SystemReset,
}

const fn error(code: ErrorCode) -> Action {
    Action::Answer(code as i32 as i64)
}

impl Machine<'_> {
    /// Decides a call: `regs` are x0-x3.
    pub fn call(&self, regs: [u64; 4]) -> Action {
        let function = regs[0] as u32;
        match function {
            SMCCC_VERSION => return Action::Answer(SMCCC_1_2),
            SMCCC_ARCH_FEATURES => {
                return match regs[1] as u32 {
                    SMCCC_VERSION | SMCCC_ARCH_FEATURES => Action::Answer(0),
                    _ => error(ErrorCode::NotSupported),
                };
            }
            MEM_PROTECT | CHECK_RANGE_32 | CHECK_RANGE_64 => return self.protect(regs),
            _ => {}
        }
        let Some(id) = implemented(function) else { return error(ErrorCode::NotSupported) };
        match id {
            // arm-psci knows only one of power_state's two formats, and fewer functions to ask
            // about than there are.
            FunctionId::CpuSuspend32 => {
                let low = |n: usize| u64::from(regs[n] as u32);
                return self.suspend(regs[1] as u32, Entry { pc: low(2), context: low(3) });
            }
            FunctionId::CpuSuspend64 => {
                return self.suspend(regs[1] as u32, Entry { pc: regs[2], context: regs[3] });
            }
            FunctionId::PsciFeatures => return self.features(regs[1] as u32),
            _ => {}
        }
        match Function::try_from(&regs) {
            Ok(Function::Version) => Action::Answer(VERSION),
            Ok(Function::CpuOn { target_cpu, entry }) => self.cpu_on(
                u64::from(target_cpu),
                Entry { pc: entry.entry_point_address(), context: entry.context_id() },
            ),
            Ok(Function::CpuOff) => Action::Off,
            Ok(Function::AffinityInfo { mpidr, lowest_affinity_level: 0 }) => {
                match self.find(u64::from(mpidr)) {
                    Some(n) => Action::Answer(self.cpus[n].affinity_info()),
                    None => error(ErrorCode::InvalidParameters),
                }
            }
            Ok(Function::MigrateInfoType) => {
                Action::Answer(MigrateInfoType::MigrationNotRequired as u32 as i64)
            }
            Ok(Function::SystemOff) => Action::SystemOff,
            Ok(Function::SystemReset) => Action::SystemReset,
            // SYSTEM_WARM_RESET; a vendor's own there are none.
            Ok(Function::SystemReset2 { reset_type: ResetType::Architectural(_), .. }) => {
                Action::SystemReset
            }
            // AFFINITY_INFO above level 0 may be left out since PSCI 1.0.
            Ok(_) | Err(_) => error(ErrorCode::InvalidParameters),
        }
    }

    fn find(&self, affinity: u64) -> Option<usize> {
        self.affinities.iter().position(|&known| known == affinity)
    }

    fn valid(&self, entry: Entry) -> bool {
        entry.pc.is_multiple_of(4)
            && self.banks.iter().any(|&(start, end)| (start..end).contains(&entry.pc))
    }

    fn cpu_on(&self, target: u64, entry: Entry) -> Action {
        let Some(n) = self.find(target) else { return error(ErrorCode::InvalidParameters) };
        if !self.valid(entry) {
            return error(ErrorCode::InvalidAddress);
        }
        match self.cpus[n].claim(entry) {
            Ok(()) => Action::Wake(n),
            Err(code) => error(code),
        }
    }

    fn suspend(&self, power_state: u32, entry: Entry) -> Action {
        match power_down(self.suspend, power_state) {
            None => error(ErrorCode::InvalidParameters),
            Some(false) => Action::Standby,
            Some(true) if self.valid(entry) => Action::PowerDown(entry),
            Some(true) => error(ErrorCode::InvalidAddress),
        }
    }

    /// MEM_PROTECT and MEM_PROTECT_CHECK_RANGE: all memory of EL2 and below is covered.
    fn protect(&self, regs: [u64; 4]) -> Action {
        let Some(protected) = self.protected else { return error(ErrorCode::NotSupported) };
        let (function, argument) = (regs[0] as u32, regs[1]);
        if function == MEM_PROTECT {
            return Action::Answer(protected.swap(argument as u32 != 0, Ordering::SeqCst).into());
        }
        let small = function == CHECK_RANGE_32;
        let number = |n: u64| if small { u64::from(n as u32) } else { n };
        let (start, length) = (number(argument), number(regs[2]));
        let inside = start.checked_add(length).is_some_and(|end| {
            self.banks.iter().any(|bank| bank.0 <= start && start < end && end <= bank.1)
        });
        if inside { Action::Answer(0) } else { error(ErrorCode::Denied) }
    }

    fn features(&self, function: u32) -> Action {
        if [MEM_PROTECT, CHECK_RANGE_32, CHECK_RANGE_64].contains(&function) {
            return match self.protected {
                Some(_) => Action::Answer(0),
                None => error(ErrorCode::NotSupported),
            };
        }
        if function == SMCCC_VERSION {
            return Action::Answer(0);
        }
        match implemented(function) {
            None => error(ErrorCode::NotSupported),
            Some(FunctionId::CpuSuspend32 | FunctionId::CpuSuspend64) => {
                Action::Answer(match self.suspend {
                    SuspendFormat::Original => 0,
                    SuspendFormat::Extended => FEATURE_EXTENDED,
                })
            }
            Some(_) => Action::Answer(0),
        }
    }
}

fn implemented(function: u32) -> Option<FunctionId> {
    let id = FunctionId::try_from(function).ok()?;
    matches!(
        id,
        FunctionId::PsciVersion
            | FunctionId::CpuSuspend32
            | FunctionId::CpuSuspend64
            | FunctionId::CpuOff
            | FunctionId::CpuOn32
            | FunctionId::CpuOn64
            | FunctionId::AffinityInfo32
            | FunctionId::AffinityInfo64
            | FunctionId::MigrateInfoType
            | FunctionId::SystemOff
            | FunctionId::SystemReset
            | FunctionId::SystemReset232
            | FunctionId::SystemReset264
            | FunctionId::PsciFeatures
    )
    .then_some(id)
}

/// Whether `power_state` is a power-down state; `None` if reserved bits are set, or the state is
/// of more than this CPU (only CPUs are powered here).
fn power_down(format: SuspendFormat, power_state: u32) -> Option<bool> {
    // Original: PowerLevel 25:24, StateType 16, StateID 15:0. Extended: StateType 30, StateID 27:0.
    let (bit, valid) = match format {
        SuspendFormat::Original => (1 << 16, 0x0001_ffff),
        SuspendFormat::Extended => (1 << 30, 0x4fff_ffff),
    };
    (power_state & !valid == 0).then_some(power_state & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PC: u64 = 0x4020_0000;
    const INVALID_PARAMETERS: Action = Action::Answer(-2);
    const DENIED: Action = Action::Answer(-3);
    const ALREADY_ON: Action = Action::Answer(-4);
    const ON_PENDING: Action = Action::Answer(-5);
    const INVALID_ADDRESS: Action = Action::Answer(-9);

    fn with<T>(suspend: SuspendFormat, test: impl FnOnce(Machine<'_>) -> T) -> T {
        let cpus = [Cpu::new(), Cpu::new()];
        cpus[0].set_on();
        let banks = [(0x4000_0000, 0x8000_0000)];
        let affinities = &[0, 0x100];
        test(Machine { cpus: &cpus, affinities, banks: &banks, suspend, protected: None })
    }

    #[test]
    fn a_cpu_is_turned_on_and_off() {
        with(SuspendFormat::Original, |machine| {
            let on = [0xc400_0003, 0x100, PC, 7];
            let info = [0xc400_0004, 0x100, 0, 0];
            assert_eq!(machine.call(info), Action::Answer(1));
            assert_eq!(machine.call(on), Action::Wake(1));
            assert_eq!(machine.call(info), Action::Answer(2));
            assert_eq!(machine.call(on), ON_PENDING);
            assert_eq!(machine.cpus[1].take(), Some(Entry { pc: PC, context: 7 }));
            assert_eq!(machine.cpus[1].take(), None);
            assert_eq!(machine.call(info), Action::Answer(0));
            assert_eq!(machine.call(on), ALREADY_ON);
            assert_eq!(machine.call([0x8400_0002, 0, 0, 0]), Action::Off);
            machine.cpus[1].set_off();
            // The 32-bit call takes w1 to w3.
            let junk = 0xffff_ffff_0000_0000;
            let on = [0x8400_0003, 0x100, PC | junk, 7 | junk];
            assert_eq!(machine.call(on), Action::Wake(1));
            assert_eq!(machine.cpus[1].take(), Some(Entry { pc: PC, context: 7 }));
        });
    }

    #[test]
    fn bad_targets_and_addresses() {
        with(SuspendFormat::Original, |machine| {
            assert_eq!(machine.call([0xc400_0003, 1, PC, 0]), INVALID_PARAMETERS);
            assert_eq!(machine.call([0xc400_0003, 0x100 | 1 << 24, PC, 0]), INVALID_PARAMETERS);
            assert_eq!(machine.call([0xc400_0003, 0x100, PC + 2, 0]), INVALID_ADDRESS);
            assert_eq!(machine.call([0xc400_0003, 0x100, 0x8000_0000, 0]), INVALID_ADDRESS);
            assert_eq!(machine.call([0xc400_0004, 0x100, 1, 0]), INVALID_PARAMETERS);
            assert_eq!(machine.call([0xc400_0004, 0x200, 0, 0]), INVALID_PARAMETERS);
        });
    }

    #[test]
    fn a_late_cpu_comes_at_the_second_call() {
        with(SuspendFormat::Original, |machine| {
            machine.cpus[1].refuse(1);
            let on = [0xc400_0003, 0x100, PC, 7];
            assert_eq!(machine.call(on), DENIED);
            assert_eq!(machine.call([0xc400_0004, 0x100, 0, 0]), Action::Answer(1));
            assert_eq!(machine.call(on), Action::Wake(1));
        });
    }

    #[test]
    fn racing_calls_have_one_winner() {
        for _ in 0..200 {
            with(SuspendFormat::Original, |machine| {
                let wins = std::thread::scope(|scope| {
                    let threads: Vec<_> = (0..4)
                        .map(|n| {
                            scope.spawn(move || {
                                let call = machine.call([0xc400_0003, 0x100, PC, n]);
                                (call == Action::Wake(1)).then_some(n)
                            })
                        })
                        .collect();
                    threads.into_iter().filter_map(|t| t.join().unwrap()).collect::<Vec<_>>()
                });
                assert_eq!(wins.len(), 1);
                assert_eq!(machine.cpus[1].take().unwrap().context, wins[0]);
            });
        }
    }

    #[test]
    fn power_states_of_both_formats() {
        let entry = Entry { pc: PC, context: 7 };
        let call = |format, state| {
            with(format, |machine| machine.call([0xc400_0001, state, entry.pc, entry.context]))
        };
        use SuspendFormat::{Extended, Original};
        assert_eq!(call(Original, 1), Action::Standby);
        assert_eq!(call(Original, 1 << 16), Action::PowerDown(entry));
        assert_eq!(call(Original, 1 << 30), INVALID_PARAMETERS);
        // Of the cluster: there is none.
        assert_eq!(call(Original, 1 << 24 | 1 << 16), INVALID_PARAMETERS);
        assert_eq!(call(Extended, 1 << 16), Action::Standby);
        assert_eq!(call(Extended, 1 << 30 | 5), Action::PowerDown(entry));
        assert_eq!(call(Extended, 1 << 31), INVALID_PARAMETERS);
        // A standby state does not look at the entry point.
        with(Original, |machine| {
            assert_eq!(machine.call([0xc400_0001, 0, 3, 0]), Action::Standby);
            assert_eq!(machine.call([0xc400_0001, 1 << 16, 3, 0]), INVALID_ADDRESS);
            assert_eq!(machine.call([0x8400_000a, 0xc400_0001, 0, 0]), Action::Answer(0));
        });
        with(Extended, |machine| {
            assert_eq!(machine.call([0x8400_000a, 0x8400_0001, 0, 0]), Action::Answer(2));
        });
    }

    #[test]
    fn the_rest() {
        with(SuspendFormat::Original, |machine| {
            let call = |function: u64, argument: u64| machine.call([function, argument, 0, 0]);
            assert_eq!(call(0x8400_0000, 0), Action::Answer(0x1_0001));
            assert_eq!(call(0x8400_0006, 0), Action::Answer(2));
            assert_eq!(call(0x8400_0008, 0), Action::SystemOff);
            assert_eq!(call(0x8400_0009, 0), Action::SystemReset);
            assert_eq!(call(0x8000_0000, 0), Action::Answer(0x1_0002));
            assert_eq!(call(0x8000_0001, 0x8000_0000), Action::Answer(0));
            assert_eq!(call(0x8400_000a, 0x8000_0000), Action::Answer(0));
            assert_eq!(call(0x8400_000a, 0xc400_0003), Action::Answer(0));
            for reset in [0x8400_0012, 0xc400_0012] {
                assert_eq!(call(reset, 0), Action::SystemReset);
                assert_eq!(call(reset, 1 << 31), INVALID_PARAMETERS);
                assert_eq!(call(0x8400_000a, reset), Action::Answer(0));
            }
            let none = [0x8400_000e, 0x8400_0005, 0x8000_8000, 0x8600_ff01, 0x8400_0013];
            for missing in none.into_iter().chain([0x8400_0014, 0xc400_0014]) {
                assert_eq!(call(missing, 0), Action::Answer(-1), "{missing:#x}");
                assert_eq!(call(0x8400_000a, missing), Action::Answer(-1), "{missing:#x}");
            }
        });
    }

    #[test]
    fn memory_is_protected_from_the_next_who_has_it() {
        with(SuspendFormat::Original, |machine| {
            let protected = AtomicBool::new(false);
            let machine = Machine { protected: Some(&protected), ..machine };
            let call = |function: u64, a: u64, b: u64| machine.call([function, a, b, 0]);
            for function in [0x8400_0013, 0x8400_0014, 0xc400_0014] {
                assert_eq!(call(0x8400_000a, function, 0), Action::Answer(0));
            }
            assert_eq!(call(0x8400_0013, 1, 0), Action::Answer(0));
            assert!(protected.load(Ordering::Relaxed));
            assert_eq!(call(0x8400_0013, 0, 0), Action::Answer(1));
            assert!(!protected.load(Ordering::Relaxed));
            assert_eq!(call(0xc400_0014, 0x4000_0000, 0x4000_0000), Action::Answer(0));
            assert_eq!(call(0x8400_0014, 0x4000_0000, 0x1000), Action::Answer(0));
            for (start, length) in [(0x3fff_f000, 0x2000), (0x7fff_f000, 0x2000), (1, u64::MAX)] {
                assert_eq!(call(0xc400_0014, start, length), DENIED);
            }
        });
    }
}
