//! What the host may not reach is an abort, wherever it comes from: from a task at EL0, from EL1
//! on either stack pointer, with each bit of PSTATE and of SCTLR_EL1 that an exception looks at; by a load,
//! a store, a fetch; because nothing is mapped there for it, or because it is a device, which stage 2 lets
//! nobody execute.

use super::{
    levels::{BITS, DAIF, DIT, DSSBS, Has, LEVELS, PAN, SPAN, SPINTMASK, SSBS, TCO, UAO},
    pages::{MMIO, hyp_page},
};
use crate::{
    context::Counters,
    excursion::{self, Start, Taken},
    ledger::{self, PAGE},
    runner::Skip,
    tests,
    window::{self, Pane},
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::mmu,
};
use umbra_shared::call::{Counter, VM_PAGES, VmConfig};

tests![
    a_hosts_abort_has_its_level_and_its_pstate,
    a_fetch_from_a_device_is_an_abort,
    a_fetch_from_hyp_is_an_abort,
    an_smc_leaves_the_hosts_pstate_as_it_is,
];

/// SPSR fields that this CPU has, as `excursion.S` counts them.
fn fields(has: &Has) -> u64 {
    [has.pan, has.uao, has.dit, has.ssbs, has.mte]
        .iter()
        .enumerate()
        .fold(0, |fields, (n, &there)| fields | u64::from(there) << n)
}

/// What a handler can read of PSTATE.
const READABLE: u64 = 0xf << 28 | TCO | DIT | UAO | PAN | SSBS | DAIF | 0xf;

/// Goes there, and aborts.
#[track_caller]
pub fn go(pc: u64, spsr: u64, address: u64, sctlr: u64, has: &Has) -> Taken {
    let aborts = Counters::now();
    let start = Start { pc, spsr, x0: 0x5ec2_e700, x1: address, sctlr, fields: fields(has) };
    let taken = excursion::go(&start);
    assert_eq!(aborts.since(Counter::HostAborts), 1, "aborts for {taken:x?}");
    taken
}

/// ESR_EL1 of an abort: an external one, or a permission fault of the kernel's half of addresses.
pub const fn syndrome(fetch: bool, el0: bool, write: bool) -> u64 {
    let class = match (fetch, el0) {
        (true, true) => 0x20,
        (true, false) => 0x21,
        (false, true) => 0x24,
        (false, false) => 0x25,
    };
    let code = if fetch || el0 { 0x10 } else { 0x0f };
    class << 26 | 1 << 25 | code | (write as u64) << 6
}

fn a_hosts_abort_has_its_level_and_its_pstate() -> Result<(), Skip> {
    let has = Has::new();
    let kernels = excursion::sctlr() & !(SPAN | DSSBS | SPINTMASK);
    // The host's own page until a moment ago.
    let hidden = ledger::take(VM_PAGES);
    ledger::enter(Hvc.vm_create(hidden, VM_PAGES, VmConfig::default()).expect("VM_CREATE"));
    for (level, mode, vector) in LEVELS {
        let pane = if mode == 0 { Pane::User } else { Pane::Data };
        for (write, code) in [(false, excursion::load()), (true, excursion::store())] {
            // EL0 finds everything at its physical address, EL1 where it always is.
            let (pc, address) = if mode == 0 {
                (mmu::image_pa(code), hidden)
            } else {
                (code as u64, mmu::linear::<u8>(hidden) as u64)
            };
            for bits in BITS {
                for sctlr in [0, SPAN, DSSBS, SPAN | DSSBS] {
                    let (spsr, sctlr) = (mode | bits, kernels | sctlr);
                    let taken = window::open_as(pane, |_| go(pc, spsr, address, sctlr, &has));
                    let what = (level, spsr, sctlr, write);
                    assert_eq!(taken.esr, syndrome(false, mode == 0, write), "{what:x?}: ESR_EL1");
                    assert_eq!((taken.elr, taken.far), (pc, address), "{what:x?}: ELR, FAR");
                    let before = has.returned(spsr);
                    assert_eq!((taken.spsr, taken.vector), (before, vector), "{what:x?}");
                    let expected = has.taken(before, sctlr) & READABLE;
                    assert_eq!(taken.pstate, expected, "{what:x?}: PSTATE in the handler");
                }
            }
        }
    }
    Ok(())
}

/// Fetches from there, at every level.
#[track_caller]
fn fetches(addresses: &[u64]) {
    let has = Has::new();
    let sctlr = excursion::sctlr();
    for (level, mode, vector) in LEVELS {
        let pane = if mode == 0 { Pane::User } else { Pane::Code };
        for &address in addresses {
            let spsr = DAIF | mode;
            let taken = window::open_as(pane, |_| go(address, spsr, 0, sctlr, &has));
            assert_eq!(taken.esr, syndrome(true, mode == 0, false), "at {level}: {taken:x?}");
            assert_eq!((taken.elr, taken.far), (address, address), "at {level}: {taken:x?}");
            assert_eq!((taken.spsr, taken.vector), (spsr, vector), "at {level}: {taken:x?}");
        }
    }
}

fn a_fetch_from_a_device_is_an_abort() -> Result<(), Skip> {
    // The UART, and what is nothing at all.
    fetches(&[MMIO, MMIO + 0x18, 0x0b00_0000]);
    Ok(())
}

fn a_fetch_from_hyp_is_an_abort() -> Result<(), Skip> {
    let page = hyp_page();
    fetches(&[page, page + PAGE - 4]);
    Ok(())
}

/// Hyp carries the host's SMCs out: it goes on behind them, with what it had in PSTATE but for BTYPE.
fn an_smc_leaves_the_hosts_pstate_as_it_is() -> Result<(), Skip> {
    let (has, sctlr) = (Has::new(), excursion::sctlr());
    for (level, mode, vector) in LEVELS.into_iter().filter(|level| level.1 != 0) {
        for bits in BITS {
            let (pc, spsr) = (excursion::smc() as u64, mode | bits);
            // SMCCC_VERSION.
            let start = Start { pc, spsr, x0: 0x8000_0000, x1: 0, sctlr, fields: fields(&has) };
            let taken = excursion::go(&start);
            // SVC.
            assert_eq!(taken.esr >> 26, 0x15, "{level} with {spsr:#x}: {taken:x?}");
            assert_eq!((taken.elr, taken.vector), (pc + 8, vector), "{level} with {spsr:#x}");
            let expected = has.returned(spsr) & !(3 << 10);
            assert_eq!(taken.spsr, expected, "{level} with {spsr:#x}: PSTATE behind it");
        }
    }
    Ok(())
}
