//! Which vector lengths the host has: all that its CPU has, or with `umbra.host-vl=common` what all
//! CPUs have. Guests have the same in both cases.
//!
//! VL_INFO says what the hardware has, so that it can't say what hyp makes of it: that is asked of the
//! registers. On a CPU that is wider than the host is let, nothing says so but RDVL.

use crate::{
    context::{Counters, context, need_sve},
    host,
    puppet::Machine,
    runner::Skip,
    tests, workers,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_patterns::{pattern::Kept, regs};
use umbra_shared::{
    call::Counter,
    sve::Layout,
    vl::{Vq, VqSet},
};

tests![
    full_is_all_that_the_cpu_has,
    common_is_what_all_cpus_have,
    r01_host_images_hold_what_a_cpu_saves,
    host_patterns_survive_guests_at_every_vl,
];

/// The vector lengths that EL1 of this CPU can select.
fn selectable() -> VqSet {
    let mut found = VqSet::EMPTY;
    for len in (0..16).rev() {
        found = found.with(regs::set_vl(Vq::from_len(len)));
    }
    host::full_vl();
    found
}

/// What hyp found on this CPU.
fn hardware(cpu: usize) -> VqSet {
    Hvc.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO").vqs
}

fn full_is_all_that_the_cpu_has() -> Result<(), Skip> {
    need_sve()?;
    if context().host_vl_common() {
        return Err(Skip("umbra.host-vl=common"));
    }
    workers::on_all(|cpu| {
        if context().late.contains(&cpu) {
            assert!(selectable().max() <= context().image_vq(), "CPU {cpu}");
        } else {
            assert_eq!(selectable(), hardware(cpu), "CPU {cpu}");
        }
    });
    Ok(())
}

fn common_is_what_all_cpus_have() -> Result<(), Skip> {
    need_sve()?;
    if !context().host_vl_common() {
        return Err(Skip("umbra.host-vl=full"));
    }
    let common = Hvc.vl_info(None).expect("VL_INFO").vqs;
    let mut wider = 0;
    for cpu in 0..context().cpus {
        workers::on(cpu, || {
            let found = selectable();
            if context().late.contains(&cpu) {
                // It may lack some. What it has beyond the others is not the host's.
                assert_eq!(Some(found), held_to(hardware(cpu), common), "late CPU {cpu}");
            } else {
                assert_eq!(found, common, "CPU {cpu}");
            }
            host::full_vl();
            // However it asks.
            for zcr in [0xf, 0x1ff, u64::MAX] {
                // SAFETY: any value is valid.
                unsafe {
                    core::arch::asm!(
                        ".arch_extension sve",
                        "msr zcr_el1, {}",
                        "isb",
                        ".arch_extension nosve",
                        in(reg) zcr,
                        options(nostack)
                    );
                }
                assert_eq!(Some(regs::rdvl()), found.max(), "ZCR_EL1 = {zcr:#x} on CPU {cpu}");
            }
            host::full_vl();
        });
        wider += usize::from(hardware(cpu).max() > common.max());
    }
    assert!(wider > 0, "a machine on which the option changes nothing shows nothing");
    Ok(())
}

/// `hardware` as far as `common` goes.
fn held_to(hardware: VqSet, common: VqSet) -> Option<VqSet> {
    let limit = common.max()?;
    Some(hardware.iter().filter(|&vq| vq <= limit).fold(VqSet::EMPTY, VqSet::with))
}

fn r01_host_images_hold_what_a_cpu_saves() -> Result<(), Skip> {
    need_sve()?;
    workers::on_all(|cpu| {
        let info = Hvc.vl_info(Some(context().at_hyp(cpu))).expect("VL_INFO");
        let saved = Layout::new(selectable().max().expect("SVE")).image_bytes() as u64;
        assert!(info.image_bytes >= saved, "CPU {cpu}: {} bytes, saves {saved}", info.image_bytes);
        // One size for all, whatever the host is held to.
        assert_eq!(info.image_bytes, context().image_bytes(), "CPU {cpu}");
    });
    Ok(())
}

fn host_patterns_survive_guests_at_every_vl() -> Result<(), Skip> {
    need_sve()?;
    for cpu in 0..context().cpus {
        for vq in context().common.iter() {
            let guest = Machine::normal().started(Some(vq));
            guest.fill(1);
            guest.put();
            workers::on(cpu, || {
                guest.load();
                for (n, host_vq) in context().host_vqs(cpu).iter().enumerate() {
                    let generation = 10 + n as u32;
                    assert_eq!(regs::set_vl(host_vq), host_vq);
                    host::fill(generation);
                    guest.check(1);
                    let before = Counters::now();
                    host::check(generation);
                    assert_eq!(before.since(Counter::HostFpTraps), 1, "the guest was live");
                    assert_eq!(regs::rdvl(), host_vq);
                    // Filled at its largest, kept at least up to the length in between.
                    host::full_vl();
                    host::fill(generation);
                    assert_eq!(regs::set_vl(host_vq), host_vq);
                    guest.check(1);
                    host::full_vl();
                    host::check_kept(generation, Kept::UpTo(host_vq));
                }
                host::full_vl();
                guest.put();
            });
            crate::ledger::destroy(guest.machine.vm);
        }
    }
    Ok(())
}
