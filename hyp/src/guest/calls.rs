//! Calls of a guest to hyp, by HVC and by SMC: who answers, and with what ([`umbra_shared::guest`]).

#![forbid(unsafe_code)]

use crate::arch::sysreg::read_sctlr_el1;
use crate::guest::exit::Exit;
use crate::guest::rsi;
use crate::guest::syndrome::{self, ec};
use crate::guest::traps;
use crate::guest::trng;
use crate::machine::machine;
use crate::memory::pages::VmId;
use crate::power::guest::{Action, decide};
use crate::power::hw::firmware;
use crate::power::psci::{
    SMCCC_1_2, SMCCC_ARCH_FEATURES, SMCCC_VERSION, WORKAROUND_1, WORKAROUND_2, WORKAROUND_3, error,
    is_psci,
};
use crate::vm::calls::{Caller, Parting, private_address};
use crate::vm::hardware::Boot;
use crate::vm::life::Interface;
use crate::vm::slots;
use crate::vm::vcpu::{Open, Vcpu, Waits};
use crate::world::switch::SCTLR_EE;
use arm_psci::ErrorCode;
use umbra_shared::PAGE_SIZE;
use umbra_shared::call::UntrustedIpa;
use umbra_shared::error::Error;
use umbra_shared::exit::Reason;
use umbra_shared::guest::{GuestFunction, INVALID_PARAMETER, NOT_SUPPORTED, UID, function_id};
use umbra_shared::rsi::{FUNCTIONS, RsiFunction};

/// ARCH_FEATURES of SMCCC_ARCH_WORKAROUND_2: there is nothing to turn on or off (SMCCC 1.1 §7.6).
const NOT_REQUIRED: i64 = 1;

/// What comes of a call.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// It has been answered; the exit, if there is one, is only to tell the host.
    Answered(Option<Exit>),
    /// The guest makes it again when the host has done what the exit asks for.
    Again(Exit),
    /// It is none of hyp's.
    NotHyps,
}

use Outcome::{Again, Answered, NotHyps};

/// The function that a call selects, and as much of x1-x3 as the caller's registers hold.
pub fn request(vcpu: &Vcpu) -> (u32, [u64; 3]) {
    let [x0, x1, x2, x3, ..] = vcpu.regs.x;
    (function_id(x0), [x1, x2, x3].map(|x| vcpu.register_width(x)))
}

/// Answers a call of vCPU `index` of VM `vm`, which trapped with `esr`. The guest's EL1 is live, and its PC where
/// the exception left it: behind an HVC, at an SMC.
pub fn call(vcpu: &mut Vcpu, vm: VmId, index: usize, esr: u64) -> Outcome {
    let again = is_again(vcpu);
    vcpu.open = Open::Nothing;
    let smc = matches!(syndrome::class(esr), ec::SMC64 | ec::SMC32);
    let (function, args) = request(vcpu);
    let outcome = match function {
        SMCCC_VERSION | SMCCC_ARCH_FEATURES => answer(vcpu, architecture(function, args)),
        WORKAROUND_1 | WORKAROUND_3 => {
            // It has no result, and leaves nothing behind.
            firmware([function.into(), 0, 0, 0]);
            Answered(None)
        }
        0x8000_0000..=0x8000_ffff | 0xc000_0000..=0xc000_ffff => answer(vcpu, NOT_SUPPORTED),
        0x8400_0050..=0x8400_005f | 0xc400_0050..=0xc400_005f => {
            if trng::call(vcpu, function.into()) {
                Answered(None)
            } else {
                answer(vcpu, NOT_SUPPORTED)
            }
        }
        _ if is_psci(function) => psci(vcpu, vm, index, decide(function, args, vcpu.is_aarch32())),
        _ if FUNCTIONS.contains(&function) => {
            rsi::call(vcpu, Caller { vm, index, again }, function, args)
        }
        _ if vcpu.protected && is_vendors(function) => {
            vendor(vcpu, Caller { vm, index, again }, function, args)
        }
        _ if smc => answer(vcpu, NOT_SUPPORTED),
        _ => NotHyps,
    };
    match outcome {
        // What is answered goes on behind the call.
        Answered(_) if smc => traps::step_over(vcpu, esr),
        // HVC and SMC have 4 bytes in every instruction set.
        Again(_) => {
            if !smc {
                vcpu.regs.pc = vcpu.regs.pc.wrapping_sub(4);
            }
            vcpu.open = Open::Call(Waits::Again { esr });
        }
        Answered(_) | NotHyps => {}
    }
    outcome
}

/// Whether a call of the guest's that comes now is the one that it was to make again.
pub fn is_again(vcpu: &Vcpu) -> bool {
    vcpu.open == Open::Again
}

/// The host brought nothing for a call that was to be made again, or won't have it: it fails.
pub fn fail(vcpu: &mut Vcpu, esr: u64) {
    match RsiFunction::from_id(request(vcpu).0).filter(|_| !vcpu.is_aarch32()) {
        Some(function) => rsi::fail(vcpu, function),
        None => vcpu.regs.x[0] = vcpu.register_width(INVALID_PARAMETER as u64),
    }
    traps::step_over(vcpu, esr);
}

pub(super) fn answer(vcpu: &mut Vcpu, x0: i64) -> Outcome {
    vcpu.regs.x[0] = vcpu.register_width(x0 as u64);
    Answered(None)
}

/// The vendor-specific hypervisor service range, of either convention.
fn is_vendors(function: u32) -> bool {
    function & 0xbf00_0000 == 0x8600_0000
}

fn architecture(function: u32, [x1, ..]: [u64; 3]) -> i64 {
    if function == SMCCC_VERSION {
        return SMCCC_1_2;
    }
    match x1 as u32 {
        SMCCC_VERSION | SMCCC_ARCH_FEATURES => 0,
        asked @ (WORKAROUND_1 | WORKAROUND_3) => firmware([function.into(), asked.into(), 0, 0]),
        // A state of the CPU's, which the host would be left with: where there is one it is firmware's default.
        asked @ WORKAROUND_2 => match firmware([function.into(), asked.into(), 0, 0]) {
            0.. => NOT_REQUIRED,
            _ => NOT_SUPPORTED,
        },
        _ => NOT_SUPPORTED,
    }
}

fn psci(vcpu: &mut Vcpu, vm: VmId, index: usize, action: Action) -> Outcome {
    let mut exit = None;
    let x0 = match action {
        Action::Answer(x0) => x0,
        Action::CpuOn { target, entry, context } => {
            let big_endian = read_sctlr_el1() & SCTLR_EE != 0;
            match slots::cpu_on(vm, target, Boot { entry, argument: context, big_endian }) {
                Ok(index) => {
                    exit = Some(Exit::new(Reason::CpuOn, [index as u64, 0, 0, 0, 0, 0]));
                    0
                }
                Err(code) => error(code),
            }
        }
        Action::CpuOff => {
            slots::cpu_off(vm, index);
            exit = Some(Exit::new(Reason::CpuOff, [0; 6]));
            0
        }
        Action::Standby => {
            exit = Some(Exit::wfi());
            0
        }
        Action::AffinityInfo { target } => match slots::affinity_info(vm, target) {
            Ok(affinity) => affinity as i64,
            Err(code) => error(code),
        },
        Action::System { event, kind, cookie } => {
            slots::end(vm);
            exit = Some(Exit::new(Reason::System, [event as u64, kind, cookie, 0, 0, 0]));
            // What a normal VM's guest finds if it is run again all the same.
            error(ErrorCode::InternalFailure)
        }
    };
    answer(vcpu, x0);
    Answered(exit)
}

fn vendor(vcpu: &mut Vcpu, caller: Caller, function: u32, args: [u64; 3]) -> Outcome {
    let known = if vcpu.is_aarch32() {
        GuestFunction::from_id32(function)
    } else {
        GuestFunction::from_id(function)
    };
    let Some(known) = known else { return answer(vcpu, NOT_SUPPORTED) };
    if known.decides() && !slots::guest_uses(caller.vm, Interface::Kvm) {
        return answer(vcpu, NOT_SUPPORTED);
    }
    if args[known.arguments()..].iter().any(|&x| x != 0) {
        return answer(vcpu, INVALID_PARAMETER);
    }
    let ipa = UntrustedIpa(args[0]);
    let result = match known {
        GuestFunction::Uid => return words(vcpu, UID),
        GuestFunction::Features => {
            let rsi = slots::guest_interface(caller.vm) == Some(Interface::Rsi);
            let alone = GuestFunction::FEATURES_ALONE;
            return words(vcpu, if rsi { alone } else { GuestFunction::features() });
        }
        GuestFunction::HypMeminfo => return answer(vcpu, PAGE_SIZE as i64),
        GuestFunction::MemShare => slots::guest_share(caller, ipa).map(|()| None),
        GuestFunction::MemUnshare => slots::guest_unshare(caller, ipa).map(Some),
        GuestFunction::MmioGuard => slots::guest_enrol(caller, ipa).map(|()| None),
        GuestFunction::MemRelinquish => slots::guest_relinquish(caller, ipa).map(Some),
    };
    let told = |reason, pa| Exit::new(reason, [ipa.0, pa, 0, 0, 0, 0]);
    match result {
        // Memory that the host hasn't given yet is memory all the same: it comes to where it is private.
        Err(Error::NotMapped) if known == GuestFunction::MemShare => {
            let alias_bit = machine().stage2.alias_bit();
            let at = private_address(alias_bit, ipa.0).unwrap_or(ipa.0);
            Again(Exit::new(Reason::Fault, [at, 0, 0, 0, 0, 0]))
        }
        Err(Error::NoTables) => Again(Exit::new(Reason::Tables, [0; 6])),
        Err(_) => answer(vcpu, INVALID_PARAMETER),
        Ok(Some(Parting::Tell(pa))) => Again(told(Reason::Unshare, pa)),
        Ok(parting) => {
            answer(vcpu, 0);
            Answered(match parting {
                Some(Parting::Done(pa)) if known == GuestFunction::MemRelinquish => {
                    Some(told(Reason::Relinquished, pa))
                }
                _ => None,
            })
        }
    }
}

fn words(vcpu: &mut Vcpu, words: [u32; 4]) -> Outcome {
    for (x, word) in vcpu.regs.x.iter_mut().zip(words) {
        *x = word.into();
    }
    Answered(None)
}
