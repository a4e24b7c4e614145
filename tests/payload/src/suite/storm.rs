//! Hypercalls with arguments that nobody means: hyp stays up and gives sane answers (I7).

use crate::{
    context::context,
    junk::Junk,
    ledger::{self, each},
    puppet::Machine,
    runner::Skip,
    tests, workers,
};
use umbra_host::{
    hypercall::{Hvc, Hypervisor},
    kernel::timer,
};

tests![random_hypercalls, random_hypercalls_on_all_cpus];

/// Sequences begin here.
const SEED: u64 = 0x00c0_ffee;
/// Pages that the calls may do anything with.
const PAGES: u64 = 96;

fn storm(seed: u64, region: u64, calls: usize) {
    let mut junk = Junk::new(seed, region, PAGES);
    // A guest that comes to run whatever it finds there must not run for ever.
    timer::set_tick(timer::frequency() / 1000);
    let done = (0..calls).filter(|_| junk.call(|_| true)).count();
    timer::set_tick(0);
    let _ = Hvc.vcpu_put();
    assert!(done > calls / 50, "only {done} of {calls} calls did anything");
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
