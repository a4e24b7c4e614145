//! PSCI between the host and firmware.
//!
//! The host's SMCs trap (HCR_EL2.TSC) because firmware would start CPUs at EL2, at an address of the
//! host's choosing. What hyp lets through is an allow-list; everything else is NOT_SUPPORTED.
//!
//! Hyp has brought every CPU up before the host runs and holds it at EL2, so for firmware they are
//! ON. To the host they are OFF until it turns them on; that picture is kept here, as a state per CPU
//! that only changes by compare-and-exchange, so that two CPU_ON racing for one CPU give one SUCCESS
//! and one ON_PENDING or ALREADY_ON.
//!
//! ```text
//!   Held --CPU_ON--> Pending --the CPU enters the host--> On --CPU_OFF--> Off (really off)
//!   Off --CPU_ON--> Pending: through firmware, at hyp's entry
//!   On --CPU_SUSPEND--> Suspended --firmware resumes it at hyp's entry--> On
//! ```

#![forbid(unsafe_code)]

use arm_psci::{ErrorCode, Function, FunctionId};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use umbra_shared::call::{SVE_HINT, VENDOR_UID};

/// A CPU's power state as the host may know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Power {
    /// Off, for firmware too; hyp has not seen it yet or it went through CPU_OFF.
    Off = 0,
    /// Waiting at EL2; off for the host.
    Held = 1,
    /// On its way to the host.
    Pending = 2,
    /// The host runs there.
    On = 3,
    /// The host suspended it; to the host it is on.
    Suspended = 4,
}

/// One CPU's power state, and where it is to enter the host.
#[derive(Debug)]
pub struct PowerCell {
    state: AtomicU8,
    entry: AtomicU64,
    context: AtomicU64,
}

/// Where a CPU enters the host: EL1, MMU off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostEntry {
    /// PC.
    pub pc: u64,
    /// x0.
    pub context: u64,
}

impl PowerCell {
    /// A CPU in this state.
    #[must_use]
    pub const fn new(state: Power) -> Self {
        Self {
            state: AtomicU8::new(state as u8),
            entry: AtomicU64::new(0),
            context: AtomicU64::new(0),
        }
    }

    /// The state now.
    pub fn state(&self) -> Power {
        match self.state.load(Ordering::Acquire) {
            0 => Power::Off,
            1 => Power::Held,
            3 => Power::On,
            4 => Power::Suspended,
            // Pending, or claimed and about to be.
            _ => Power::Pending,
        }
    }

    /// Sets the state. Only for the CPU itself, or for the boot CPU before the host runs.
    pub fn set(&self, state: Power) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// CPU_ON: claims the CPU for `entry`. Says whether firmware must be asked to start it.
    ///
    /// # Errors
    ///
    /// ALREADY_ON, ON_PENDING.
    pub fn claim(&self, entry: HostEntry) -> Result<Start, ErrorCode> {
        loop {
            let now = self.state();
            let start = match now {
                Power::On | Power::Suspended => return Err(ErrorCode::AlreadyOn),
                Power::Pending => return Err(ErrorCode::OnPending),
                Power::Held => Start::Release,
                Power::Off => Start::Firmware,
            };
            // CLAIMED keeps others out while the entry is written; to them it is Pending.
            if self
                .state
                .compare_exchange(now as u8, CLAIMED, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                self.entry.store(entry.pc, Ordering::Relaxed);
                self.context.store(entry.context, Ordering::Relaxed);
                self.state.store(Power::Pending as u8, Ordering::Release);
                return Ok(start);
            }
        }
    }

    /// Firmware would not start the CPU that was claimed: it is off again, unless it has come after all.
    pub fn give_up_claim(&self) {
        // If it is not pending any more, the CPU itself has said what it is.
        let _ = self.state.compare_exchange(
            Power::Pending as u8,
            Power::Off as u8,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
    }

    /// A CPU about to suspend resumes at `entry` if it loses its state. Only for the CPU itself, which is
    /// on.
    pub fn suspend(&self, entry: HostEntry) {
        self.entry.store(entry.pc, Ordering::Relaxed);
        self.context.store(entry.context, Ordering::Relaxed);
        self.set(Power::Suspended);
    }

    /// The claimed CPU is here: where it goes. `None` if nobody claimed it.
    pub fn take_entry(&self) -> Option<HostEntry> {
        // Not through `state`, to which a claim whose entry is being written is pending as well.
        let raw = self.state.load(Ordering::Acquire);
        let here = raw == Power::Pending as u8 || raw == Power::Suspended as u8;
        here.then(|| HostEntry {
            pc: self.entry.load(Ordering::Relaxed),
            context: self.context.load(Ordering::Relaxed),
        })
    }
}

const CLAIMED: u8 = 0xff;

/// How a claimed CPU gets going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is held at EL2 and sees the claim.
    Release,
    /// Through firmware.
    Firmware,
}

/// What hyp does with a PSCI call of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer this in w0/x0.
    Answer(i64),
    /// Pass it to firmware as it is and answer what firmware answers.
    Forward,
    /// SYSTEM_OFF, SYSTEM_RESET, SYSTEM_RESET2: the end of the machine, by this call of firmware.
    End([u64; 4]),
    /// CPU_ON of the CPU with this affinity.
    CpuOn {
        /// MPIDR affinity
        target: u64,
        /// where it is to start
        entry: HostEntry,
    },
    /// CPU_OFF of the calling CPU.
    CpuOff,
    /// CPU_SUSPEND.
    CpuSuspend {
        /// the power state as passed: its format is firmware's choice
        state: u32,
        /// where the host wants to resume after a power-down
        entry: HostEntry,
    },
    /// AFFINITY_INFO at level 0 of the CPU with this affinity.
    AffinityInfo {
        /// MPIDR affinity
        target: u64,
    },
    /// PSCI_FEATURES of this function: NOT_SUPPORTED here, or what firmware says.
    Features {
        /// the function asked about
        function: u32,
    },
}

/// x0 for an error.
pub const fn error(code: ErrorCode) -> i64 {
    code as i32 as i64
}

const fn answer(code: ErrorCode) -> Action {
    Action::Answer(error(code))
}

/// x0-x3 of an SMC of the host's as they count: neither the upper half of x0 nor SMCCC 1.3's hint select a
/// function, and SMC32's arguments are 32 bits wide. So hyp and firmware see the same call, whatever
/// firmware makes of the rest.
pub const fn registers(x: &[u64; 18]) -> [u64; 4] {
    const SMC64: u64 = 1 << 30;
    const LOW: u64 = 0xffff_ffff;
    let [x0, x1, x2, x3, ..] = *x;
    let mask = if x0 & SMC64 == 0 { LOW } else { u64::MAX };
    [x0 & LOW & !SVE_HINT, x1 & mask, x2 & mask, x3 & mask]
}

/// Answers SMCCC's question who the hypervisor is, in w0 to w3. It answers to SMC as well as to HVC: the device tree
/// says SMC, and only who has been answered knows that there is somebody to call by HVC.
pub fn answer_uid(x: &mut [u64; 18]) {
    for (x, word) in x.iter_mut().zip(VENDOR_UID) {
        *x = u64::from(word);
    }
}

/// Whether a function ID is PSCI's: SMCCC standard secure service calls 0x00..=0x1f, of either width.
pub const fn is_psci(function: u32) -> bool {
    matches!(function & 0xbfff_ffff, 0x8400_0000..=0x8400_001f)
}

/// Functions hyp answers or forwards; what is not here does not exist for the host.
fn allowed(id: FunctionId) -> bool {
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
}

/// Whether a function turns the machine off or resets it.
pub fn ends_the_machine(function: u32) -> bool {
    matches!(
        FunctionId::try_from(function),
        Ok(FunctionId::SystemOff
            | FunctionId::SystemReset
            | FunctionId::SystemReset232
            | FunctionId::SystemReset264)
    )
}

/// Decides. `regs` are the host's x0-x3.
pub fn decide(regs: [u64; 4]) -> Action {
    let function = regs[0] as u32;
    let Ok(id) = FunctionId::try_from(function) else {
        return answer(ErrorCode::NotSupported);
    };
    if !allowed(id) {
        return answer(ErrorCode::NotSupported);
    }
    // Asking about a function needs the raw number: arm-psci refuses numbers it doesn't know, and
    // SMCCC_VERSION is asked about through PSCI too.
    if id == FunctionId::PsciFeatures {
        return Action::Features { function: regs[1] as u32 };
    }
    // Not through arm-psci, which knows one of the two formats of a power state.
    match id {
        FunctionId::CpuSuspend32 => {
            let entry =
                HostEntry { pc: u64::from(regs[2] as u32), context: u64::from(regs[3] as u32) };
            return Action::CpuSuspend { state: regs[1] as u32, entry };
        }
        FunctionId::CpuSuspend64 => {
            let entry = HostEntry { pc: regs[2], context: regs[3] };
            return Action::CpuSuspend { state: regs[1] as u32, entry };
        }
        _ => {}
    }
    match Function::try_from(&regs) {
        Ok(Function::CpuOn { target_cpu, entry }) => Action::CpuOn {
            target: u64::from(target_cpu),
            entry: HostEntry { pc: entry.entry_point_address(), context: entry.context_id() },
        },
        Ok(Function::CpuOff) => Action::CpuOff,
        Ok(Function::AffinityInfo { mpidr, lowest_affinity_level: 0 }) => {
            Action::AffinityInfo { target: u64::from(mpidr) }
        }
        // PSCI 1.0 lets an implementation support level 0 only.
        Ok(Function::AffinityInfo { .. }) | Err(_) => answer(ErrorCode::InvalidParameters),
        Ok(_) if ends_the_machine(function) => Action::End(regs),
        Ok(_) => Action::Forward,
    }
}

/// Whether firmware may lack this way to end the machine, and is asked before anything is stopped for it
/// (PSCI 1.1: SYSTEM_RESET2 is optional).
pub fn may_lack(function: u32) -> bool {
    matches!(
        FunctionId::try_from(function),
        Ok(FunctionId::SystemReset232 | FunctionId::SystemReset264)
    )
}

/// Whether a CPU_SUSPEND to `state` loses the CPU's context. Which bit says so depends on the format
/// that firmware reports in PSCI_FEATURES(CPU_SUSPEND), bit 1 (PSCI 1.1 §5.4.2, Linux
/// `psci_power_state_loses_context`).
pub const fn loses_context(state: u32, features: i64) -> bool {
    let extended = features > 0 && features & 1 << 1 != 0;
    state & if extended { 1 << 30 } else { 1 << 16 } != 0
}

/// Whether the host is told that a function exists; then firmware's own answer counts.
pub fn may_exist(function: u32) -> bool {
    // SMCCC_VERSION: hyp implements it for the host.
    function == SMCCC_VERSION || FunctionId::try_from(function).is_ok_and(allowed)
}

/// SMCCC_VERSION, which is asked about through PSCI_FEATURES, too (SMCCC 1.1 §7.2).
pub const SMCCC_VERSION: u32 = 0x8000_0000;
/// What it answers hosts and guests: 1.2.
pub const SMCCC_1_2: i64 = 0x1_0002;
/// SMCCC_ARCH_FEATURES.
pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// SMCCC_ARCH_WORKAROUND_1: firmware's mitigation of CVE-2017-5715.
pub const WORKAROUND_1: u32 = 0x8000_8000;
/// SMCCC_ARCH_WORKAROUND_2, of CVE-2018-3639, which is on or off on a CPU.
pub const WORKAROUND_2: u32 = 0x8000_7fff;
/// SMCCC_ARCH_WORKAROUND_3, of CVE-2022-23960.
pub const WORKAROUND_3: u32 = 0x8000_3fff;
/// All of them, which are the host's to call.
pub const WORKAROUNDS: [u32; 3] = [WORKAROUND_1, WORKAROUND_2, WORKAROUND_3];

/// AFFINITY_INFO's answer for a CPU in this state.
pub const fn affinity_info(power: Power) -> i64 {
    match power {
        Power::On | Power::Suspended => 0,
        Power::Off | Power::Held => 1,
        Power::Pending => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: HostEntry = HostEntry { pc: 0x4020_0000, context: 7 };

    #[test]
    fn cpu_on_twice_starts_once() {
        let cell = PowerCell::new(Power::Held);
        assert_eq!(cell.take_entry(), None);
        assert_eq!(cell.claim(ENTRY), Ok(Start::Release));
        assert_eq!(cell.claim(ENTRY), Err(ErrorCode::OnPending));
        assert_eq!(affinity_info(cell.state()), 2);
        assert_eq!(cell.take_entry(), Some(ENTRY));
        cell.set(Power::On);
        assert_eq!(cell.claim(ENTRY), Err(ErrorCode::AlreadyOn));
        cell.set(Power::Off);
        assert_eq!(cell.claim(ENTRY), Ok(Start::Firmware));
    }

    #[test]
    fn a_suspended_cpu_is_on() {
        let cell = PowerCell::new(Power::On);
        cell.suspend(ENTRY);
        assert_eq!(affinity_info(cell.state()), 0);
        assert_eq!(cell.claim(ENTRY), Err(ErrorCode::AlreadyOn));
        assert_eq!(cell.take_entry(), Some(ENTRY));
    }

    #[test]
    fn a_claim_is_given_up_only_if_nobody_came() {
        let cell = PowerCell::new(Power::Off);
        cell.claim(ENTRY).unwrap();
        cell.give_up_claim();
        assert_eq!(cell.state(), Power::Off);
        cell.claim(ENTRY).unwrap();
        cell.set(Power::On);
        cell.give_up_claim();
        assert_eq!(cell.state(), Power::On);
    }

    #[test]
    fn a_claim_half_made_is_no_entry() {
        let cell = PowerCell::new(Power::Held);
        cell.state.store(CLAIMED, Ordering::Relaxed);
        assert_eq!(cell.take_entry(), None);
        assert_eq!(affinity_info(cell.state()), 2);
        assert_eq!(cell.claim(ENTRY), Err(ErrorCode::OnPending));
    }

    #[test]
    fn racing_claims_have_one_winner() {
        for _ in 0..200 {
            let cell = PowerCell::new(Power::Held);
            let wins = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|n| {
                        scope.spawn({
                            let cell = &cell;
                            move || {
                                cell.claim(HostEntry { pc: n * 0x1000, context: n })
                                    .is_ok()
                                    .then_some(n)
                            }
                        })
                    })
                    .collect();
                threads.into_iter().filter_map(|t| t.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(wins.len(), 1);
            let entry = cell.take_entry().unwrap();
            assert_eq!((entry.pc, entry.context), (wins[0] * 0x1000, wins[0]));
        }
    }

    #[test]
    fn the_rest_is_not_supported() {
        let not_supported = Action::Answer(-1);
        for f in [0x8400_000e_u64, 0x8400_0005, 0x8400_0013, 0x8400_001f, 0xc400_0012_0000] {
            assert_eq!(decide([f, 0, 0, 0]), not_supported, "{f:#x}");
        }
        assert_eq!(decide([0x8400_0000, 0, 0, 0]), Action::Forward);
        let off = [0x8400_0008, 0, 0, 0];
        assert_eq!(decide(off), Action::End(off));
        let reset = [0x8400_0009, 0, 0, 0];
        assert_eq!(decide(reset), Action::End(reset));
        assert!(!may_lack(0x8400_0008) && !may_lack(0x8400_0009));
        for function in [0x8400_0012, 0xc400_0012] {
            // SYSTEM_WARM_RESET, and one of a vendor's with a cookie.
            for kind in [0, 1 << 31] {
                let reset2 = [function, kind, 7, 0];
                assert_eq!(decide(reset2), Action::End(reset2));
            }
            assert!(may_lack(function as u32));
        }
        // What firmware does about memory at a reset is not the host's to change.
        for function in [0x8400_0013, 0x8400_0014, 0xc400_0014] {
            assert_eq!(decide([function, 0, 0, 0]), not_supported);
            assert!(!may_exist(function as u32));
        }
        assert!(ends_the_machine(0x8400_0008) && ends_the_machine(0x8400_0009));
        assert!(!ends_the_machine(0x8400_0002) && !ends_the_machine(0x8400_0000));
        assert_eq!(decide([0x8400_0002, 0, 0, 0]), Action::CpuOff);
        assert_eq!(
            decide([0xc400_0003, 1, 0x4020_0000, 7]),
            Action::CpuOn { target: 1, entry: ENTRY }
        );
        assert_eq!(decide([0xc400_0004, 2, 0, 0]), Action::AffinityInfo { target: 2 });
        assert_eq!(decide([0xc400_0004, 2, 1, 0]), Action::Answer(-2));
        assert_eq!(
            decide([0xc400_0001, 1 << 30, 0x4020_0000, 7]),
            Action::CpuSuspend { state: 1 << 30, entry: ENTRY }
        );
        assert_eq!(
            decide([0x8400_0001, 1 << 16, 0xdead_0000_4020_0000, 7]),
            Action::CpuSuspend { state: 1 << 16, entry: ENTRY }
        );
        // Firmware's answer -1 (no features) and 0 mean the original format.
        assert!(loses_context(1 << 16, 0) && loses_context(1 << 16, -1));
        assert!(!loses_context(1 << 30, 0) && !loses_context(1 << 16, 2));
        assert!(loses_context(1 << 30, 2) && loses_context(1 << 30, 3));
        assert!(!may_exist(0x8400_000e) && may_exist(0xc400_0003));
    }

    #[test]
    fn a_call_is_what_counts_of_its_registers() {
        let call = |x0, x1| {
            let mut x = [u64::MAX; 18];
            [x[0], x[1]] = [x0, x1];
            registers(&x)
        };
        let (all, low) = (u64::MAX, 0xffff_ffff);
        for x0 in [0xc400_0003, 0xc401_0003, 0xdead_beef_c400_0003, 0xffff_ffff_c401_0003] {
            assert_eq!(call(x0, 1 << 40 | 5), [0xc400_0003, 1 << 40 | 5, all, all], "{x0:#x}");
            assert_eq!(call(x0 & !(1 << 30), 1 << 40 | 5), [0x8400_0003, 5, low, low], "{x0:#x}");
        }
        for x0 in [0xc402_0003, 0xc480_0003] {
            assert_eq!(call(x0, 0)[0], x0, "bits above the hint select");
        }
    }

    #[test]
    fn psci_range() {
        assert!(is_psci(0x8400_0000) && is_psci(0xc400_001f));
        assert!(!is_psci(0x8400_0050) && !is_psci(0x8600_ff01) && !is_psci(0x8000_0000));
    }
}
