//! Hypercalls with arguments that nobody means: hyp stays up and gives sane answers (I7).

use crate::{
    context::context,
    ledger::{self, PAGE, each},
    puppet::Machine,
    runner::Skip,
    tests, workers,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::timer,
};
use umbra_shared::{
    call::{Function, VmHandle},
    error::{Error, SUCCESS},
};

tests![random_hypercalls, random_hypercalls_on_all_cpus];

/// Sequences begin here.
const SEED: u64 = 0x00c0_ffee;
/// Pages that the calls may do anything with.
const PAGES: u64 = 96;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// An argument: an address of ours, of hyp or of nothing; a count; a handle; junk. Never an address
/// that the kernel needs: junk has a bit set that no RAM has.
fn argument(random: &mut Random, region: u64, handles: &[u64; 8]) -> u64 {
    match random.below(12) {
        0..5 => region + random.below(PAGES) * PAGE,
        5 => region + random.below(PAGES * PAGE),
        6 => random.below(20),
        7 => handles[random.below(8) as usize],
        8 => super::pages::MMIO + random.below(16) * PAGE,
        9 => (1 << random.below(64)) | 1 << 62,
        10 => 16 * random.below(17),
        _ => random.next() | 1 << 63,
    }
}

fn storm(seed: u64, region: u64, calls: usize) {
    let mut random = Random(seed);
    // A guest that comes to run whatever it finds there must not run for ever.
    timer::set_tick(timer::frequency() / 1000);
    let mut handles = [0; 8];
    let mut done = 0;
    for n in 0..calls {
        let functions = Function::ALL;
        let function = functions[random.below(functions.len() as u64) as usize];
        let id = function.id() ^ if random.below(16) == 0 { random.next() << 32 } else { 0 };
        let mut args: [u64; 7] = core::array::from_fn(|_| argument(&mut random, region, &handles));
        // Now and then a call that could be meant.
        match function {
            Function::VmCreate if random.below(2) == 0 => {
                args[1] = 4 + random.below(5);
                args[2] = random.below(3) | random.below(2) << 4;
            }
            Function::VmMap
            | Function::VmTopup
            | Function::VcpuCreate
            | Function::VcpuLoad
            | Function::VmDestroy
            | Function::VmReclaim
                if random.below(4) != 0 =>
            {
                args[0] = handles[random.below(8) as usize];
            }
            _ => {}
        }
        // A page that the kernel or another storm needs is not among them: a range that begins in
        // the region may leave it.
        if matches!(function, Function::VmCreate) && within(args[0], region) {
            args[1] = args[1].min((region + PAGES * PAGE - args[0]) / PAGE).min(9);
        } else if matches!(function, Function::VmTopup | Function::VcpuCreate)
            && within(args[1], region)
        {
            args[2] = args[2].min((region + PAGES * PAGE - args[1]) / PAGE).min(9);
        }
        let daif = umbra_host::kernel::sysreg::mask_interrupts();
        let (x0, results) = Hvc::raw(id, args);
        umbra_host::kernel::sysreg::restore_interrupts(daif);
        let code = x0 as i64;
        assert!(
            code == SUCCESS || Error::from_code(code).is_some(),
            "call {n} of seed {seed:#x}: {function:?} {args:x?} answers {x0:#x}"
        );
        if code == SUCCESS {
            done += 1;
            if function == Function::VmCreate {
                handles[random.below(8) as usize] = results[0];
                ledger::enter_if_room(VmHandle(results[0]));
            }
        }
    }
    timer::set_tick(0);
    let _ = Hvc.vcpu_put();
    assert!(done > calls / 50, "only {done} of {calls} calls did anything");
}

fn within(pa: u64, region: u64) -> bool {
    (region..region + PAGES * PAGE).contains(&pa)
}

/// VMs of the storms, whatever became of them, are taken down before the next one needs slots.
fn random_hypercalls() -> Result<(), Skip> {
    let region = ledger::take(PAGES);
    for n in 0..4 {
        log::info!("seed {:#x}", SEED + n);
        storm(SEED + n, region, 4000);
        ledger::destroy_all();
    }
    each(region, PAGES).for_each(|page| {
        let _ = Hvc.unshare_flag_page(page);
        super::pages::assert_ours(page);
    });
    // Hyp does what it did before.
    let guest = Machine::normal().started(context().largest());
    guest.fill(1);
    crate::host::fill(1);
    guest.check(1);
    crate::host::check(1);
    Ok(())
}

fn random_hypercalls_on_all_cpus() -> Result<(), Skip> {
    crate::context::need_cpus(2)?;
    let region = ledger::take(PAGES);
    log::info!("seeds {:#x}", SEED << 8);
    // All in the same region.
    workers::on_all(|cpu| storm((SEED << 8) + cpu as u64, region, 2000));
    Ok(())
}
