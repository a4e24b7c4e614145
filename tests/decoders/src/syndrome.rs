//! ESR_EL2 and kin: what trapped, and what a lower EL gets instead.

use crate::Numbers;
use umbra_hyp::guest::syndrome::{
    Abort, SysReg, class, ec, esr_external_abort, esr_host_abort, extend, fault_ipa, pstate, vector,
};

/// Takes a syndrome apart, and whatever else its exception came with.
pub fn syndrome(data: &[u8]) {
    let mut numbers = Numbers(data);
    let esr = numbers.next();
    abort(esr);
    sysreg(esr);
    address(numbers.next(), numbers.next());
    load(numbers.next());
    exception(esr, numbers.next(), numbers.next(), numbers.next());
}

fn abort(esr: u64) {
    let abort = Abort::new(esr);
    if abort.is_translation() {
        assert!(abort.is_stage2(), "a translation fault is one");
    }
    let Some(access) = abort.access() else {
        assert!(esr & 1 << 24 == 0 || esr & 3 << 7 != 0, "ISV, and neither CM nor S1PTW");
        return;
    };
    assert!(access.size_log2 < 4 && access.register < 32);
    // Put together again it is the syndrome.
    let bit = |value: bool, at: u32| u64::from(value) << at;
    let again = 1 << 24
        | access.size_log2 << 22
        | bit(access.sign, 21)
        | u64::from(access.register) << 16
        | bit(access.wide, 15)
        | bit(access.write, 6);
    // SSE, SRT, SF, WnR, SAS; what is not asked for: EC, IL, and ISS below.
    assert_eq!(again, esr & (0x1ff << 16 | 1 << 15 | 1 << 6));
}

fn sysreg(esr: u64) {
    let r = SysReg::new(esr);
    let again = u64::from(r.op0) << 20
        | u64::from(r.op2) << 17
        | u64::from(r.op1) << 14
        | u64::from(r.crn) << 10
        | u64::from(r.register) << 5
        | u64::from(r.crm) << 1
        | u64::from(r.read);
    assert_eq!(again, esr & 0x3f_ffff);
}

fn address(hpfar: u64, far: u64) {
    let ipa = fault_ipa(hpfar, far);
    assert_eq!(ipa & 0xfff, far & 0xfff, "the offset is FAR's");
    assert_eq!(ipa >> 12, hpfar >> 4 & 0xff_ffff_ffff, "the page is HPFAR's");
}

fn load(data: u64) {
    for bytes in [1u8, 2, 4, 8] {
        for (sign, wide) in [(false, false), (false, true), (true, false), (true, true)] {
            // Byte by byte.
            let fill = sign && data >> (8 * u32::from(bytes) - 1) & 1 == 1;
            let mut expected = data.to_le_bytes();
            expected[usize::from(bytes)..].fill(if fill { 0xff } else { 0 });
            if !wide {
                expected[4..].fill(0);
            }
            let found = extend(data, bytes, sign, wide);
            assert_eq!(found, u64::from_le_bytes(expected), "{bytes} bytes of {data:#x}");
        }
    }
}

fn exception(esr: u64, old: u64, sctlr: u64, vbar: u64) {
    for from_el0 in [false, true] {
        let injected = esr_external_abort(esr, from_el0);
        let instruction = class(esr) == ec::INSTRUCTION_ABORT;
        let expected = if instruction { 0x20 } else { 0x24 } + u64::from(!from_el0);
        assert_eq!(class(injected), expected);
        assert_eq!(injected & 0x3f, 0x10, "a synchronous external abort");
        assert_eq!(injected & 1 << 25, esr & 1 << 25, "IL");
        assert_eq!(injected & 1 << 6 != 0, !instruction && esr & 1 << 6 != 0, "WnR");
        for far in [old & !(1 << 55), old | 1 << 55] {
            let host = esr_host_abort(esr, far, from_el0);
            let kernels = far & 1 << 55 != 0 && !from_el0 && class(esr) == ec::DATA_ABORT;
            let code = if kernels { 0x0f } else { 0x10 };
            assert_eq!(host, injected & !0x3f | code, "{esr:#x} at {far:#x}");
        }
        // And nothing else of what trapped: a guest must not learn of EL2's ISS.
        assert_eq!(injected & !(0x3f << 26 | 1 << 25 | 1 << 6 | 0x3f), 0);
    }
    let new = pstate::on_exception(old, sctlr);
    assert_eq!(new & pstate::MODE, pstate::EL1H);
    assert_eq!(new & pstate::DAIF, pstate::DAIF, "masked");
    assert!(!pstate::is_el0(new) && !pstate::is_aarch32(new));
    assert_eq!(new & (pstate::BTYPE | pstate::SS), 0);
    assert_eq!(new & 0xf << 28, old & 0xf << 28, "NZCV stay");
    assert_eq!(pstate::on_exception(new, sctlr), new, "a second one changes nothing");

    let after = pstate::after_instruction(old);
    assert_eq!(after | pstate::BTYPE | pstate::SS, old | pstate::BTYPE | pstate::SS);
    assert_eq!(after & (pstate::BTYPE | pstate::SS), 0);

    let to = vector(vbar, old);
    assert_eq!(to & !0x7ff, vbar & !0x7ff, "within VBAR_EL1's table");
    assert!([0, 0x200, 0x400, 0x600].contains(&(to & 0x7ff)), "a synchronous entry");
    assert_eq!(to & 0x7ff == 0x600, old & 0x10 != 0, "AArch32 has its own");
}
