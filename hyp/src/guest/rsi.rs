//! RSI calls of a guest's ([`umbra_shared::rsi`]): what becomes of registers. Memory is [`crate::vm::rsi`]'s.

#![forbid(unsafe_code)]

use super::calls::{Outcome, answer};
use crate::guest::exit::Exit;
use crate::machine::machine;
use crate::vm::calls::Caller;
use crate::vm::life::Interface;
use crate::vm::rsi::{HostCall, Step};
use crate::vm::slots;
use crate::vm::vcpu::{Open, Vcpu, Waits};
use umbra_shared::PAGE_SIZE;
use umbra_shared::exit::Reason;
use umbra_shared::guest::NOT_SUPPORTED;
use umbra_shared::rsi::{
    ACCEPT, ERROR_INPUT, ERROR_STATE, ERROR_UNKNOWN, EXTENSION_BYTES, MEASUREMENT_WORDS, REJECT,
    Ripas, RsiFunction, SUCCESS, VERSION,
};

const PAGE: u64 = PAGE_SIZE as u64;

/// A call of this range.
#[cold]
#[inline(never)]
pub fn call(vcpu: &mut Vcpu, caller: Caller, function: u32, args: [u64; 3]) -> Outcome {
    let there = vcpu.protected && !vcpu.is_aarch32();
    let Some(function) = RsiFunction::from_id(function).filter(|_| there) else {
        return answer(vcpu, NOT_SUPPORTED);
    };
    let may = if function.decides() {
        slots::guest_uses(caller.vm, Interface::Rsi)
    } else {
        slots::guest_interface(caller.vm) != Some(Interface::Kvm)
    };
    if !may {
        return answer(vcpu, NOT_SUPPORTED);
    }
    let [x1, x2, x3] = args;
    let step = match function {
        RsiFunction::Version => {
            let error = if x1 == VERSION { SUCCESS } else { ERROR_INPUT };
            return results(vcpu, error, &[VERSION, VERSION]);
        }
        RsiFunction::Features => return results(vcpu, SUCCESS, &[0]),
        RsiFunction::MeasurementRead => {
            let mut words = [0; MEASUREMENT_WORDS];
            let Some(value) = slots::measurement(caller.vm, x1) else {
                return results(vcpu, ERROR_INPUT, &[]);
            };
            for (word, bytes) in words.iter_mut().zip(value.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            return results(vcpu, SUCCESS, &words);
        }
        RsiFunction::MeasurementExtend => {
            let mut extension = [0; EXTENSION_BYTES];
            for (bytes, word) in extension.chunks_exact_mut(8).zip(&vcpu.regs.x[3..]) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            let extension = usize::try_from(x2).ok().and_then(|bytes| extension.get(..bytes));
            let done = extension.is_some_and(|it| slots::extend_measurement(caller.vm, x1, it));
            return results(vcpu, if done { SUCCESS } else { ERROR_INPUT }, &[]);
        }
        RsiFunction::IpaStateGet => {
            return match slots::ipa_state_get(caller, (x1, x2)) {
                Ok(extent) => results(vcpu, SUCCESS, &[extent.top, extent.ripas as u64]),
                Err(_) => results(vcpu, ERROR_INPUT, &[]),
            };
        }
        RsiFunction::IpaStateSet => match Ripas::from_register(x3) {
            Some(ripas) => slots::ipa_state_set(caller, (x1, x2), ripas),
            None => return results(vcpu, ERROR_INPUT, &[]),
        },
        RsiFunction::RealmConfig => slots::realm_config(caller, x1),
        RsiFunction::HostCall => {
            let mut call = HostCall::default();
            let step = slots::host_call(caller, x1, &mut call);
            if let Ok(Step::Done(_)) = step {
                vcpu.flags.set_registers(&call.registers);
                vcpu.open = Open::Call(Waits::HostCall { ipa: x1 });
                let exit = Exit::new(Reason::HostCall, [call.immediate, 0, 0, 0, 0, 0]);
                return Outcome::Answered(Some(exit));
            }
            step
        }
        // There is nothing to make one of, and so none is under way.
        RsiFunction::AttestationTokenInit => return results(vcpu, ERROR_UNKNOWN, &[]),
        RsiFunction::AttestationTokenContinue => {
            let fits = x2 < PAGE && x3 <= PAGE - x2;
            let good = x1.is_multiple_of(PAGE) && x1 < machine().stage2.alias_bit() && fits;
            return results(vcpu, if good { ERROR_STATE } else { ERROR_INPUT }, &[]);
        }
    };
    let again =
        |reason, data: [u64; 2]| Outcome::Again(Exit::new(reason, [data[0], data[1], 0, 0, 0, 0]));
    match step {
        Ok(Step::Missing(ipa)) => again(Reason::Fault, [ipa, 0]),
        Ok(Step::Tables) => again(Reason::Tables, [0; 2]),
        Ok(Step::Tell { alias, pa }) => again(Reason::Unshare, [alias, pa]),
        Ok(Step::Done(top)) if function == RsiFunction::IpaStateSet => {
            results(vcpu, SUCCESS, &[top, ACCEPT])
        }
        Ok(Step::Rejected) => results(vcpu, SUCCESS, &[x1, REJECT]),
        Ok(Step::Done(_)) => results(vcpu, SUCCESS, &[]),
        Err(_) => results(vcpu, ERROR_INPUT, &[]),
    }
}

/// The host did not do what a call takes.
#[cold]
#[inline(never)]
pub fn fail(vcpu: &mut Vcpu, function: RsiFunction) {
    match function {
        // x1 is the base, as far as which it is done.
        RsiFunction::IpaStateSet => [vcpu.regs.x[0], vcpu.regs.x[2]] = [SUCCESS, REJECT],
        _ => vcpu.regs.x[0] = ERROR_UNKNOWN,
    }
}

/// The host lets a guest go on that has called it by HOST_CALL, with an answer or without.
#[cold]
#[inline(never)]
pub fn host_called(vcpu: &mut Vcpu, ipa: u64, answered: bool) {
    if answered {
        slots::answer_host_call(vcpu.vm(), ipa, &vcpu.flags.registers());
    }
    vcpu.regs.x[0] = if answered { SUCCESS } else { ERROR_UNKNOWN };
}

/// x0, and x1 on.
fn results(vcpu: &mut Vcpu, x0: u64, rest: &[u64]) -> Outcome {
    for (x, &result) in vcpu.regs.x.iter_mut().skip(1).zip(rest) {
        *x = result;
    }
    answer(vcpu, x0 as i64)
}
