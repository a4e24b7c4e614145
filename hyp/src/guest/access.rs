//! A guest's accesses that hyp does not let through, in either execution state, and the exits that come of
//! them.

#![forbid(unsafe_code)]

use crate::arch::sysreg::*;
use crate::guest::syndrome::{self, Abort, pstate};
use crate::memory::pages::VmId;
use crate::vm::hardware::There;
use crate::vm::slots::{self, DEVICES, Open, Vcpu};
use umbra_shared::PAGE_SIZE;
use umbra_shared::exit::{ExitInfo, Reason};

/// An exit to the host: the reason and what goes with it into x2 and up.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Reason, and size and direction of an MMIO access.
    pub info: ExitInfo,
    /// x2-x7.
    pub data: [u64; 6],
}

impl Exit {
    /// An exit with data.
    pub const fn new(reason: Reason, data: [u64; 6]) -> Self {
        Self { info: ExitInfo::new(reason, 0), data }
    }
}

fn ipa() -> u64 {
    syndrome::fault_ipa(read_hpfar_el2(), sys::read_far_el2().bits())
}

/// Whether the guest has only to try again: what it missed was being broken up, and is there.
pub fn is_passing(vcpu: &mut Vcpu, vm: VmId, esr: u64) -> bool {
    Abort::new(esr).is_translation() && slots::is_there_again(vcpu, vm, ipa())
}

/// An abort that is not emulated. Where in the page it was is a protected guest's own business.
pub fn fault(vcpu: &mut Vcpu, esr: u64) -> Exit {
    if Abort::new(esr).is_stage2() {
        vcpu.open = Open::Fault { esr, far: sys::read_far_el2().bits() };
        let hidden = if vcpu.protected { PAGE_SIZE as u64 - 1 } else { 0 };
        Exit::new(Reason::Fault, [ipa() & !hidden, 0, 0, 0, 0, 0])
    } else {
        Exit::new(Reason::Broken, [esr, 0, 0, 0, 0, 0])
    }
}

/// Whether a protected guest has enrolled a page. Asked of its stage 2 once for each, as a rule.
fn is_device(vcpu: &mut Vcpu, vm: VmId, page: u64) -> bool {
    let known = &mut vcpu.devices[page as usize % DEVICES];
    let device = *known == page || slots::lookup(vm, page * PAGE_SIZE as u64) == There::Device;
    if device {
        *known = page;
    }
    device
}

/// A data abort, which may be an access to a device: anywhere, of a normal guest; of a protected one, where it has
/// said that there are devices. Of its own memory, which the host may have withheld, the host learns no data, nor
/// does it answer for it.
pub fn data_abort(vcpu: &mut Vcpu, vm: VmId, esr: u64) -> Exit {
    let abort = Abort::new(esr);
    let Some(access) = abort.access().filter(|_| abort.is_translation()) else {
        return fault(vcpu, esr);
    };
    if vcpu.protected && !is_device(vcpu, vm, ipa() / PAGE_SIZE as u64) {
        return fault(vcpu, esr);
    }
    let bytes = 1u8 << access.size_log2;
    let far = sys::read_far_el2().bits();
    let big_endian = pstate::is_big_endian(vcpu.regs.pstate, read_sctlr_el1());
    let data = if access.write {
        vcpu.open = Open::Write { esr, far };
        let data = syndrome::extend(read_register(vcpu, access.register), bytes, false, true);
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
    Exit {
        info: ExitInfo::mmio(access.size_log2, access.write, 0),
        data: [ipa(), data, 0, 0, 0, 0],
    }
}

/// Xn; 31 is XZR.
pub fn read_register(vcpu: &Vcpu, n: u8) -> u64 {
    vcpu.regs.x.get(n as usize).copied().unwrap_or(0)
}

/// Writes Xn; XZR takes nothing.
pub fn write_register(vcpu: &mut Vcpu, n: u8, value: u64) {
    if let Some(x) = vcpu.regs.x.get_mut(n as usize) {
        *x = value;
    }
}
