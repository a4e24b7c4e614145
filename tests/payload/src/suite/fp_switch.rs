//! FP/SVE state of host and guests across exits, interrupts and switches, under every policy.

use super::POLICIES;
use crate::{
    context::{context, need_sve, need_two_vls},
    host, instruction as insn, ledger,
    puppet::{Event, Machine, Puppet, Routine},
    runner::Skip,
    tests,
};
use umbra_patterns::{pattern::Kept, regs, tag::Tag};
use umbra_shared::{
    call::{Policy, VmConfig},
    exit::Reason,
    flags::HostFlags,
    vl::Vq,
};

tests![
    r02_ffr_survives_at_every_vl,
    r03_r28_all_registers_through_every_kind_of_exit,
    r04_host_state_survives_a_guest,
    r05_new_host_state_is_not_overwritten,
    r07_kernel_fp_between_exit_and_put,
    r08_entry_with_an_interrupt_pending,
    r09_guest_shrinks_exits_and_regrows,
    r12_the_host_never_sees_a_guests_registers,
    r20_kernel_fp_preempts_a_task,
    r25_a_new_vcpu_finds_the_reset_state,
    r26_status_registers_of_both_worlds,
    r26_sve_beside_no_sve,
    two_guests_and_a_sibling_in_turn,
    a_protected_guests_registers_survive,
    put_saves_and_load_brings_back,
    interrupts_at_any_moment,
];

/// A lazy guest with all the machine has.
fn guest() -> Puppet {
    Machine::normal().started(context().largest())
}

fn r02_ffr_survives_at_every_vl() -> Result<(), Skip> {
    need_sve()?;
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        for (n, vq) in context().host_vqs(0).iter().enumerate() {
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
        guest.put();
    }
    Ok(())
}

fn r03_r28_all_registers_through_every_kind_of_exit() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        host::fill(1);
        guest.fill(1);
        // HVC exits are what every call is. WFI:
        guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
        host::check(1);
        assert!(matches!(guest.resume(Default::default(), [0; 4]), Event::Done(_)));
        guest.check(1);
        // MMIO, finished by a fill of the host's.
        guest.at(crate::puppet::NOWHERE);
        guest.attempt(insn::LDR64, 0).exit(Reason::Mmio);
        host::fill(2);
        assert!(matches!(guest.resume(Default::default(), [5; 4]), Event::Done(_)));
        guest.check(1);
        host::check(2);
        // UNDEFINED and hypercalls of the host's in between, with junk in unused arguments.
        guest.undefined(0);
        use umbra_host::hypercall::Hvc;
        use umbra_shared::call::Function;
        Hvc::raw(Function::Version.id() | 0xffff_ffff << 32, [u64::MAX; 7]);
        guest.check(1);
        host::check(2);
        guest.put();
        host::check(2);
    }
    Ok(())
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

fn r05_new_host_state_is_not_overwritten() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        guest.fill(1);
        for generation in 1..6 {
            host::fill(generation);
            guest.check(1);
            host::check(generation);
            host::fill(generation + 100);
            guest.exec(insn::NOP, 0);
            host::check(generation + 100);
        }
        guest.put();
        host::check(105);
    }
    Ok(())
}

fn r07_kernel_fp_between_exit_and_put() -> Result<(), Skip> {
    let (_, largest) = need_two_vls()?;
    for policy in POLICIES {
        for len in [0, 15] {
            let guest = Machine::with_policy(policy).started(Some(largest));
            guest.set_len(len);
            guest.fill_here(1);
            guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
            host::fill(3);
            // An interrupt stops the guest at that VL, and the host uses FP before it puts.
            let daif = host::pend_interrupt();
            guest.enter(Default::default(), [0; 4]).exit(Reason::Irq);
            assert_eq!(Some(regs::rdvl()), context().host_vqs(0).max(), "the host's VL");
            host::check(3);
            host::fill(4);
            host::release_interrupt(daif);
            assert!(matches!(guest.resume(Default::default(), [0; 4]), Event::Done(_)));
            guest.check(1);
            // Its state is live now: put saves it, and the host's comes back on its next use.
            guest.put();
            host::check(4);
        }
    }
    Ok(())
}

fn r08_entry_with_an_interrupt_pending() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        guest.fill(1);
        for generation in 0..4 {
            guest.attempt(insn::WFI, 0).exit(Reason::Wfi);
            // Host live: the entry changes the traps and ends before the guest's first instruction.
            host::fill(generation);
            let daif = host::pend_interrupt();
            for _ in 0..3 {
                guest.enter(Default::default(), [0; 4]).exit(Reason::Irq);
                host::check(generation);
                host::fill(generation + 10);
                guest.enter(Default::default(), [0; 4]).exit(Reason::Irq);
                host::check(generation + 10);
                host::fill(generation);
            }
            host::release_interrupt(daif);
            assert!(matches!(guest.resume(Default::default(), [0; 4]), Event::Done(_)));
            guest.check(1);
            host::check(generation);
        }
        guest.put();
    }
    Ok(())
}

fn r09_guest_shrinks_exits_and_regrows() -> Result<(), Skip> {
    need_two_vls()?;
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        for small in context().common.iter() {
            guest.fill(1);
            guest.set_len(small.len_field());
            host::fill(1);
            guest.exec(insn::NOP, 0);
            host::check(1);
            guest.put();
            host::check(1);
            guest.load();
            assert_eq!(guest.rdvl(), small, "ZCR_EL1 is kept");
            assert_eq!(Some(guest.set_len(15)), context().largest());
            guest.check_kept(1, Kept::UpTo(small));
        }
        guest.put();
    }
    Ok(())
}

fn r12_the_host_never_sees_a_guests_registers() -> Result<(), Skip> {
    for policy in POLICIES {
        for vq in context().common.iter().map(Some).chain([None]) {
            let machine = Machine::with_policy(policy);
            let guest = machine.started(vq);
            // Without SVE there is one turn, at the only length there is.
            for host_vq in context().host_vqs(0).with(Vq::MIN).iter() {
                for foreign in [false, true] {
                    if context().sve() {
                        assert_eq!(regs::set_vl(host_vq), host_vq);
                    }
                    host::fill(1);
                    // Said to have nothing, the host finds nothing of its own, and nothing else.
                    let mut hint = HostFlags::empty();
                    hint.set(HostFlags::FOREIGN_FPSTATE, foreign);
                    guest.hint(hint);
                    guest.fill(2);
                    host::check_kept(1, if foreign { Kept::Nothing } else { Kept::All });
                    guest.check(2);
                    host::full_vl();
                    if foreign {
                        host::check_kept(1, Kept::Nothing);
                    }
                }
            }
            guest.put();
            assert_eq!(ledger::destroy(machine.vm), 0);
        }
    }
    Ok(())
}

fn r20_kernel_fp_preempts_a_task() -> Result<(), Skip> {
    let guest = guest();
    // Two tasks of the host, and a guest between them: the first's registers go to memory and come
    // back as the host's own kernel does it.
    host::fill(1);
    let mut saved = [0; umbra_patterns::pattern::MAX_IMAGE_BYTES];
    let status = regs::status();
    let sve = context().sve();
    guest.fill(1);
    if sve {
        regs::dump(&mut saved);
    } else {
        regs::dump_fpsimd(saved.first_chunk_mut().expect("as large"));
    }
    host::fill(2);
    guest.check(1);
    host::check(2);
    guest.fill(3);
    if sve {
        regs::load(&saved);
    } else {
        regs::load_fpsimd(saved.first_chunk().expect("as large"));
    }
    regs::set_status(status.0, status.1);
    guest.check(3);
    host::check(1);
    Ok(())
}

fn r25_a_new_vcpu_finds_the_reset_state() -> Result<(), Skip> {
    for policy in POLICIES {
        for vq in [context().largest(), None] {
            host::fill(1);
            let machine = Machine::with_policy(policy);
            let old = machine.started(vq);
            old.fill(1);
            old.put();
            let sibling = machine.started(vq);
            sibling.check_reset();
            sibling.fill(2);
            sibling.put();
            assert_eq!(ledger::destroy(machine.vm), 0);
            let new = Machine::with_policy(policy).started(vq);
            if let Some(vq) = vq {
                assert_eq!(new.rdvl(), Vq::MIN, "ZCR_EL1 is zero");
                assert_eq!(new.set_len(15), vq);
            }
            new.check_reset();
            new.put();
            host::check(1);
        }
    }
    Ok(())
}

fn r26_status_registers_of_both_worlds() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        regs::set_status(1 << 27 | 1, 1 << 24);
        guest.call(Routine::SetStatus, [0x9f, 3 << 22, 0]);
        assert_eq!(regs::status(), (1 << 27 | 1, 1 << 24), "host: FPSR, FPCR");
        assert_eq!(guest.call(Routine::Status, [0; 3])[..2], [0x9f, 3 << 22], "guest: FPSR, FPCR");
        guest.put();
        assert_eq!(regs::status(), (1 << 27 | 1, 1 << 24), "host: FPSR, FPCR after put");
        guest.load();
        assert_eq!(guest.call(Routine::Status, [0; 3])[..2], [0x9f, 3 << 22]);
        guest.put();
    }
    Ok(())
}

fn r26_sve_beside_no_sve() -> Result<(), Skip> {
    let largest = need_sve()?;
    for policy in POLICIES {
        let machine = Machine::with_policy(policy);
        let (with, without) = (machine.vcpu(Some(largest)), machine.vcpu(None));
        for guest in [with, without] {
            guest.loaded(|guest| guest.start());
        }
        host::fill(1);
        with.loaded(|with| with.fill(1));
        without.loaded(|without| without.fill(2));
        for _ in 0..3 {
            with.loaded(|with| with.check(1));
            without.loaded(|without| {
                without.undefined(insn::SVE);
                without.check(2);
                without.undefined(insn::RDVL);
            });
            host::check(1);
        }
    }
    Ok(())
}

fn two_guests_and_a_sibling_in_turn() -> Result<(), Skip> {
    let common = context().common;
    let vq = |n: usize| common.iter().nth(n % common.iter().count().max(1));
    let (a, b) = (Machine::normal(), Machine::with_policy(Policy::Scrub));
    let guests = [a.vcpu(vq(0)), a.vcpu(vq(1)), b.vcpu(common.max())];
    for guest in &guests {
        guest.loaded(|guest| guest.start());
    }
    for generation in 1..4 {
        host::fill(generation);
        for guest in &guests {
            guest.loaded(|guest| guest.fill(generation));
        }
        for _ in 0..2 {
            for guest in &guests {
                guest.loaded(|guest| guest.check(generation));
            }
            host::check(generation);
        }
    }
    Ok(())
}

/// Its images can't be written by the host once they are the guest's: it fills from what was there
/// and compares by itself.
fn a_protected_guests_registers_survive() -> Result<(), Skip> {
    for policy in POLICIES {
        let tag = Tag { owner: host::GUEST_OWNER + 15, generation: 9 };
        let config = VmConfig { policy, protected: true, ..VmConfig::normal() };
        let vq = context().largest();
        let machine = Machine::with_images(config, tag, vq);
        let guest = machine.started(vq);
        host::fill(1);
        guest.fill_prepared();
        host::check(1);
        guest.check_prepared();
        guest.put();
        host::check(1);
        guest.load();
        host::fill(2);
        guest.check_prepared();
        host::check(2);
        guest.put();
    }
    Ok(())
}

fn put_saves_and_load_brings_back() -> Result<(), Skip> {
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        guest.fill(1);
        guest.put();
        for _ in 0..3 {
            guest.loaded(|_| ());
            guest.loaded(|guest| guest.check(1));
        }
    }
    Ok(())
}

fn interrupts_at_any_moment() -> Result<(), Skip> {
    use umbra_host::kernel::timer;
    for policy in POLICIES {
        let guest = Machine::with_policy(policy).started(context().largest());
        host::fill(1);
        guest.fill(1);
        // Ticks that come often and never at the same place.
        timer::set_tick(timer::frequency() / 9973);
        let before = timer::ticks(0);
        let mut rounds = 0;
        while timer::ticks(0) < before + 100 {
            guest.check(1);
            host::check(1);
            rounds += 1;
            assert!(rounds < 100_000, "no ticks");
        }
        timer::set_tick(0);
        guest.put();
        host::check(1);
    }
    Ok(())
}
