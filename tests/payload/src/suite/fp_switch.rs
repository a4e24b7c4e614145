//! FP/SVE state of host and guests across exits, interrupts and switches, under every policy.

use crate::{
    context::{context, need_sve, need_two_vls},
    host,
    puppet::{Machine, Puppet},
    runner::Skip,
    tests,
};
use umbra_patterns::{pattern::Kept, regs};
use umbra_shared::{call::Policy, vl::Vq};

tests![r04_host_state_survives_a_guest, r02_ffr_survives_at_every_vl];

const POLICIES: [Policy; 3] = [Policy::Lazy, Policy::Eager, Policy::Scrub];

/// A lazy guest with all the machine has.
fn guest() -> Puppet {
    Machine::normal().started(context().largest())
}

fn r04_host_state_survives_a_guest() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        for generation in 1..4 {
            host::fill(generation);
            guest.fill(generation);
            host::check(generation);
            guest.check(generation);
            host::check(generation);
        }
        guest.put();
        host::check(3);
    }
    Ok(())
}

fn r02_ffr_survives_at_every_vl() -> Result<(), Skip> {
    need_sve()?;
    let guest = guest();
    for (n, vq) in context().vqs[0].iter().enumerate() {
        assert_eq!(regs::set_vl(vq), vq);
        host::fill(n as u32);
        for guest_vq in context().common.iter() {
            guest.set_len(guest_vq.len_field());
            guest.fill_here(n as u32);
            host::check(n as u32);
            guest.check(n as u32);
        }
        host::check(n as u32);
    }
    let _ = (need_two_vls(), Kept::All, Vq::MIN);
    Ok(())
}
