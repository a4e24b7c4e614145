//! A guest's accesses that hyp does not let through, in either execution state: its aborts, and the exits that come
//! of them.

#![forbid(unsafe_code)]

use crate::arch::sysreg::*;
use crate::guest::exit::Exit;
use crate::guest::syndrome::{self, Abort, ec, pstate};
use crate::guest::{traps, traps32};
use crate::machine::machine;
use crate::memory::pages::VmId;
use crate::vm::calls::private_address;
use crate::vm::hardware::There;
use crate::vm::slots;
use crate::vm::vcpu::{DEVICES, Open, Vcpu};
use umbra_shared::PAGE_SIZE;
use umbra_shared::exit::{ExitInfo, Reason};

fn ipa() -> u64 {
    syndrome::fault_ipa(read_hpfar_el2(), sys::read_far_el2().bits())
}

/// An abort that stage 2 has caused, which may be none of the host's business. `None`: the guest goes on.
pub fn abort(vcpu: &mut Vcpu, vm: VmId, esr: u64) -> Option<Exit> {
    let abort = Abort::new(esr);
    let is_fetch = syndrome::class(esr) == ec::INSTRUCTION_ABORT;
    let ipa = ipa();
    let is_translation = abort.is_translation();
    if is_translation {
        // It has only to try again: what it missed was being broken up, and is there.
        if slots::is_there_again(vcpu, vm, ipa) {
            return None;
        }
        if vcpu.protected {
            match missed(vcpu, vm, ipa) {
                There::Memory(_) => return None,
                There::Aliased | There::Empty => {
                    external_abort(vcpu, esr);
                    return None;
                }
                There::Nothing => return Some(fault(vcpu, esr, ipa)),
                There::Device => {}
            }
        }
    }
    let emulated = is_translation && !is_fetch;
    Some(if emulated { data_abort(vcpu, esr, ipa) } else { fault(vcpu, esr, ipa) })
}

/// The host can't help a guest that looks for a page where it is private and has shared it at its alias, or has said that
/// nothing is. It is the guest's own
/// synchronous external abort, as the RMM has it of an address whose RIPAS is EMPTY (DEN0137).
fn external_abort(vcpu: &mut Vcpu, esr: u64) {
    let far = sys::read_far_el2().bits();
    if vcpu.is_aarch32() {
        traps32::external_abort_now(vcpu, esr, far);
    } else {
        traps::external_abort_now(vcpu, esr, far);
    }
}

/// An abort that is not emulated. Where in the page it was is a protected guest's own business.
fn fault(vcpu: &mut Vcpu, esr: u64, ipa: u64) -> Exit {
    if Abort::new(esr).is_stage2() {
        vcpu.open = Open::Fault { esr, far: sys::read_far_el2().bits() };
        let hidden = if vcpu.protected { PAGE_SIZE as u64 - 1 } else { 0 };
        Exit::new(Reason::Fault, [ipa & !hidden, 0, 0, 0, 0, 0])
    } else {
        Exit::new(Reason::Broken, [esr, 0, 0, 0, 0, 0])
    }
}

/// What is where a protected guest missed something. Of an enrolled page its stage 2 is asked once, as a rule; of the
/// upper half never, where all that is missing is a device.
fn missed(vcpu: &mut Vcpu, vm: VmId, ipa: u64) -> There {
    let page = ipa / PAGE_SIZE as u64;
    let known = &mut vcpu.devices[page as usize % DEVICES];
    if *known == page {
        return There::Device;
    }
    if private_address(machine().stage2.alias_bit(), ipa).is_some() {
        return There::Device;
    }
    let there = slots::lookup(vm, page * PAGE_SIZE as u64);
    if there == There::Device {
        *known = page;
    }
    there
}

/// A data abort, which may be an access to a device: anywhere, of a normal guest; of a protected one, where it has
/// said that there are devices, and in its upper half. Of its own memory, which the host may have withheld, the host
/// learns no data, nor does it answer for it. It is a translation fault: nothing else is a device's.
fn data_abort(vcpu: &mut Vcpu, esr: u64, ipa: u64) -> Exit {
    let abort = Abort::new(esr);
    let Some(access) = abort.access() else {
        return fault(vcpu, esr, ipa);
    };
    let bytes = 1u8 << access.size_log2;
    let far = sys::read_far_el2().bits();
    let big_endian = pstate::is_big_endian(vcpu.regs.pstate, read_sctlr_el1());
    let data = if access.write {
        vcpu.open = Open::Write { esr, far };
        let data = syndrome::extend(vcpu.regs.x(access.register), bytes, false, true);
        syndrome::device_order(data, bytes, big_endian)
    } else {
        vcpu.open = Open::Read {
            register: access.register,
            bytes,
            big_endian,
            sign: access.sign,
            // An AArch32 register has 32 bits, whatever the syndrome says of it.
            wide: access.wide && !vcpu.is_aarch32(),
            esr,
            far,
        };
        0
    };
    Exit { info: ExitInfo::mmio(access.size_log2, access.write, 0), data: [ipa, data, 0, 0, 0, 0] }
}
