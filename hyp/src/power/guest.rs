//! PSCI 1.1 as guests have it: which call asks for what.
//!
//! One implementation for all guests, normal and protected, AArch64 and AArch32. What is asked for is done in
//! [`crate::vm::power`]; the host learns what it must, as an exit: which vCPU can be loaded, that one is off, that
//! the machine is.
//!
//! CPU_SUSPEND is a standby whatever it asks for: a power-down may end as one (PSCI 1.1 §5.4.5), and KVM does the
//! same. What isn't mandatory in 1.1 and needs a platform is NOT_SUPPORTED.

#![forbid(unsafe_code)]

use super::psci::{SMCCC_VERSION, error};
use arm_psci::{ErrorCode, FunctionId};
use umbra_shared::exit::SystemEvent;

/// PSCI_VERSION: 1.1.
const VERSION: i64 = 1 << 16 | 1;
/// MIGRATE_INFO_TYPE: there is no Trusted OS to migrate.
const NO_TRUSTED_OS: i64 = 2;
/// Bits of a power state in the original format that are zero (PSCI 1.1 §5.4.2).
const POWER_STATE_RESERVED: u64 = 0xfcfe_0000;
/// SYSTEM_RESET2's types from here on are a vendor's (PSCI 1.1 §5.12).
const VENDOR_RESETS: u64 = 1 << 31;

/// What a guest's call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// This in x0.
    Answer(i64),
    /// CPU_ON.
    CpuOn {
        /// MPIDR affinity
        target: u64,
        /// PC
        entry: u64,
        /// x0
        context: u64,
    },
    /// CPU_OFF of the caller.
    CpuOff,
    /// The caller waits for an interrupt.
    Standby,
    /// AFFINITY_INFO of one CPU.
    AffinityInfo {
        /// MPIDR affinity
        target: u64,
    },
    /// The end of the machine.
    System {
        /// which end
        event: SystemEvent,
        /// SYSTEM_RESET2's reset_type
        kind: u64,
        /// its cookie
        cookie: u64,
    },
}

const fn refuse(code: ErrorCode) -> Action {
    Action::Answer(error(code))
}

/// Decides. `function` is a function of PSCI's range without the hint, `x` the caller's x1-x3: their lower halves
/// count if the function is one of SMC32's. An AArch32 caller has no other.
#[must_use]
pub fn decide(function: u32, x: [u64; 3], aarch32: bool) -> Action {
    let smc64 = function & 1 << 30 != 0;
    if smc64 && aarch32 {
        return refuse(ErrorCode::NotSupported);
    }
    let [x1, x2, x3] = if smc64 { x } else { x.map(|x| x & 0xffff_ffff) };
    let Ok(id) = FunctionId::try_from(function) else { return refuse(ErrorCode::NotSupported) };
    match id {
        FunctionId::PsciVersion => Action::Answer(VERSION),
        FunctionId::PsciFeatures => Action::Answer(features(x1 as u32, aarch32)),
        FunctionId::MigrateInfoType => Action::Answer(NO_TRUSTED_OS),
        FunctionId::CpuOn32 | FunctionId::CpuOn64 => {
            Action::CpuOn { target: x1, entry: x2, context: x3 }
        }
        FunctionId::CpuOff => Action::CpuOff,
        FunctionId::CpuSuspend32 | FunctionId::CpuSuspend64 => {
            // The power state has 32 bits in both.
            if x1 & (POWER_STATE_RESERVED | !0xffff_ffff) != 0 {
                refuse(ErrorCode::InvalidParameters)
            } else {
                Action::Standby
            }
        }
        // Levels above 0 are optional since PSCI 1.0 (§5.7.1).
        FunctionId::AffinityInfo32 | FunctionId::AffinityInfo64 if x2 == 0 => {
            Action::AffinityInfo { target: x1 }
        }
        FunctionId::AffinityInfo32 | FunctionId::AffinityInfo64 => {
            refuse(ErrorCode::InvalidParameters)
        }
        FunctionId::SystemOff => Action::System { event: SystemEvent::Off, kind: 0, cookie: 0 },
        FunctionId::SystemReset => Action::System { event: SystemEvent::Reset, kind: 0, cookie: 0 },
        FunctionId::SystemReset232 | FunctionId::SystemReset264 => {
            let kind = x1 & 0xffff_ffff;
            if kind != 0 && kind < VENDOR_RESETS {
                return refuse(ErrorCode::InvalidParameters);
            }
            Action::System { event: SystemEvent::Reset2, kind, cookie: x2 }
        }
        _ => refuse(ErrorCode::NotSupported),
    }
}

/// PSCI_FEATURES: 0 for what is there; of CPU_SUSPEND that is the original format, coordinated by the platform.
fn features(function: u32, aarch32: bool) -> i64 {
    let there = function == SMCCC_VERSION
        || (!aarch32 || function & 1 << 30 == 0)
            && matches!(
                FunctionId::try_from(function),
                Ok(FunctionId::PsciVersion
                    | FunctionId::PsciFeatures
                    | FunctionId::MigrateInfoType
                    | FunctionId::CpuOn32
                    | FunctionId::CpuOn64
                    | FunctionId::CpuOff
                    | FunctionId::CpuSuspend32
                    | FunctionId::CpuSuspend64
                    | FunctionId::AffinityInfo32
                    | FunctionId::AffinityInfo64
                    | FunctionId::SystemOff
                    | FunctionId::SystemReset
                    | FunctionId::SystemReset232
                    | FunctionId::SystemReset264)
            );
    if there { 0 } else { error(ErrorCode::NotSupported) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOT_SUPPORTED: Action = Action::Answer(-1);
    const INVALID_PARAMETERS: Action = Action::Answer(-2);

    fn call(function: u32, x1: u64, x2: u64, x3: u64) -> Action {
        decide(function, [x1, x2, x3], false)
    }

    #[test]
    fn what_is_there() {
        assert_eq!(call(0x8400_0000, 0, 0, 0), Action::Answer(0x1_0001));
        assert_eq!(call(0x8400_0006, 0, 0, 0), Action::Answer(2));
        assert_eq!(call(0x8400_0002, 9, 9, 9), Action::CpuOff);
        let on = |target, entry, context| Action::CpuOn { target, entry, context };
        assert_eq!(call(0xc400_0003, 1, 0x8000_0000, 1 << 40), on(1, 0x8000_0000, 1 << 40));
        assert_eq!(call(0x8400_0003, 1 << 32 | 1, 1 << 33, !0), on(1, 0, 0xffff_ffff));
        assert_eq!(call(0xc400_0004, 5, 0, 7), Action::AffinityInfo { target: 5 });
        assert_eq!(call(0xc400_0004, 5, 1, 7), INVALID_PARAMETERS);
        for state in [0, 1 << 16, 1 << 24, 0x0301_ffff] {
            assert_eq!(call(0xc400_0001, state, 0, 0), Action::Standby);
        }
        for state in [1 << 17, 1 << 26, 1 << 31, 1 << 32] {
            assert_eq!(call(0xc400_0001, state, 0, 0), INVALID_PARAMETERS);
        }
        let end = |event, kind, cookie| Action::System { event, kind, cookie };
        assert_eq!(call(0x8400_0008, 1, 2, 3), end(SystemEvent::Off, 0, 0));
        assert_eq!(call(0x8400_0009, 1, 2, 3), end(SystemEvent::Reset, 0, 0));
        assert_eq!(call(0xc400_0012, 0, 1 << 40, 3), end(SystemEvent::Reset2, 0, 1 << 40));
        assert_eq!(call(0x8400_0012, 1 << 31, 7, 3), end(SystemEvent::Reset2, 1 << 31, 7));
        assert_eq!(call(0xc400_0012, 1, 0, 0), INVALID_PARAMETERS);
    }

    #[test]
    fn what_is_not_there() {
        // MIGRATE, MIGRATE_INFO_UP_CPU, CPU_FREEZE, CPU_DEFAULT_SUSPEND, NODE_HW_STATE, SYSTEM_SUSPEND, ...
        for function in [5, 7, 0xb, 0xc, 0xd, 0xe, 0xf, 0x10, 0x11, 0x13, 0x14, 0x15, 0x1f] {
            for base in [0x8400_0000, 0xc400_0000] {
                assert_eq!(call(base | function, 0, 0, 0), NOT_SUPPORTED);
                let asked = u64::from(base | function);
                assert_eq!(call(0x8400_000a, asked, 0, 0), NOT_SUPPORTED);
            }
        }
        // Functions that SMC64 doesn't have.
        for function in [0xc400_0000, 0xc400_0002, 0xc400_0008, 0xc400_000a] {
            assert_eq!(call(function, 0, 0, 0), NOT_SUPPORTED);
        }
    }

    proptest! {
        #[test]
        fn features_say_what_is_there(number in 0u32..0x20, smc64: bool, aarch32: bool) {
            let function = 0x8400_0000 | number | if smc64 { 1 << 30 } else { 0 };
            // PSCI_FEATURES is asked about something that is there.
            let there = decide(function, [0x8400_0000, 0, 0], aarch32) != NOT_SUPPORTED;
            let asked = decide(0x8400_000a, [function.into(), 0, 0], aarch32);
            prop_assert_eq!(asked, if there { Action::Answer(0) } else { NOT_SUPPORTED });
            prop_assert!(!(aarch32 && smc64 && there));
        }
    }
}
