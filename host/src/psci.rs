//! The PSCI calls that guests make, for machines that are content with little.
//!
//! Handles what needs nothing of the VMM (VERSION, FEATURES) and tells it what it has to do for the
//! rest. A guest that asks for anything else is told NOT_SUPPORTED.

use arm_psci::{EntryPoint, ErrorCode, Function, FunctionId, PsciFeature, ReturnCode, Version};

/// What a PSCI call asks the VMM to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing: x0 of the guest becomes this.
    Answer(u64),
    /// Turn the VM off.
    SystemOff,
    /// Start the VM anew.
    SystemReset,
    /// This vCPU is off until it is turned on again.
    CpuOff,
    /// Turn a vCPU on. The VMM answers with [`answer`].
    CpuOn {
        /// MPIDR affinity
        target: u64,
        /// where it starts, MMU off
        entry: u64,
        /// its x0
        context: u64,
    },
}

/// The version that VERSION reports: 1.1.
const VERSION: Version = Version { major: 1, minor: 1 };

/// The x0 for a result.
pub fn answer(result: Result<(), ErrorCode>) -> u64 {
    let code = match result {
        Ok(()) => ReturnCode::Success,
        Err(error) => ReturnCode::Error(error),
    };
    i64::from(i32::from(code)) as u64
}

/// Reads the registers x0-x3 of a guest's HVC. `None`: not PSCI (another owner's function ID).
pub fn decode(x: &[u64; 4]) -> Option<Request> {
    /// Standard secure service calls 0x00-0x1f, fast, SMC32 and SMC64.
    const PSCI: core::ops::Range<u64> = 0x8400_0000..0x8400_0020;
    const SMC64: u64 = 1 << 30;
    let function = x[0] & 0xffff_ffff;
    if !PSCI.contains(&(function & !SMC64)) {
        return None;
    }
    let refuse = |code| Some(Request::Answer(answer(Err(code))));
    let Ok(id) = FunctionId::try_from(function as u32) else {
        return refuse(ErrorCode::NotSupported);
    };
    let Ok(call) = Function::try_from(x) else {
        // FEATURES of a function that doesn't exist is a good question with a negative answer.
        return refuse(match id {
            FunctionId::PsciFeatures => ErrorCode::NotSupported,
            _ => ErrorCode::InvalidParameters,
        });
    };
    Some(match call {
        Function::Version => Request::Answer(u32::from(VERSION).into()),
        Function::SystemOff => Request::SystemOff,
        Function::SystemReset => Request::SystemReset,
        Function::CpuOff => Request::CpuOff,
        Function::CpuOn { target_cpu, entry } => match entry {
            EntryPoint::Entry64 { entry_point_address, context_id } => Request::CpuOn {
                target: target_cpu.into(),
                entry: entry_point_address,
                context: context_id,
            },
            EntryPoint::Entry32 { .. } => {
                Request::Answer(answer(Err(ErrorCode::InvalidParameters)))
            }
        },
        Function::Features { psci_func_id } => Request::Answer(answer(features(psci_func_id))),
        _ => Request::Answer(answer(Err(ErrorCode::NotSupported))),
    })
}

fn features(feature: PsciFeature) -> Result<(), ErrorCode> {
    let PsciFeature::PsciFunction(function) = feature else {
        return Err(ErrorCode::NotSupported);
    };
    match function {
        FunctionId::PsciVersion
        | FunctionId::PsciFeatures
        | FunctionId::SystemOff
        | FunctionId::SystemReset
        | FunctionId::CpuOff
        | FunctionId::CpuOn64 => Ok(()),
        _ => Err(ErrorCode::NotSupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOT_SUPPORTED: Request = Request::Answer(-1i64 as u64);

    #[test]
    fn calls() {
        let d = |x0, x1| decode(&[x0, x1, 0x8000_0000, 7]);
        assert_eq!(d(0x8400_0000, 0), Some(Request::Answer(0x1_0001)));
        assert_eq!(d(0x8400_0008, 0), Some(Request::SystemOff));
        assert_eq!(d(0x8400_0009, 0), Some(Request::SystemReset));
        assert_eq!(d(0x8400_0002, 0), Some(Request::CpuOff));
        assert_eq!(
            d(0xc400_0003, 1),
            Some(Request::CpuOn { target: 1, entry: 0x8000_0000, context: 7 })
        );
        assert_eq!(d(0x8400_000a, 0x8400_0008), Some(Request::Answer(0)));
        assert_eq!(d(0x8400_000a, 0xc400_0001), Some(NOT_SUPPORTED));
        assert_eq!(d(0xc400_0001, 0), Some(NOT_SUPPORTED));
    }

    proptest! {
        #[test]
        fn whatever_is_asked_is_answered(function in 0x8400_0000u64..0x8400_0020, smc64: bool, x1: u64, x2: u64, x3: u64) {
            let x0 = function | if smc64 { 1 << 30 } else { 0 };
            prop_assert!(decode(&[x0, x1, x2, x3]).is_some());
        }

        #[test]
        fn other_owners_are_not_ours(x0: u64) {
            prop_assume!(!(0x8400_0000..0x8400_0020).contains(&(x0 & 0xbfff_ffff)));
            prop_assert_eq!(decode(&[x0, 0, 0, 0]), None);
        }
    }
}
