//! A guest's GIC with its vCPUs on several CPUs at once.

use super::vgic::{edges, priority, route, waiting};
use crate::{
    context::{context, need_cpus},
    gic_guest::{Board, Cells, Driver, GLANCES, Guest, LOOKS, MOST},
    instruction::{self as insn, sysreg},
    runner::Skip,
    tests, workers,
};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use umbra_host::{
    kernel::timer,
    vgic::registers::{GICR_CTLR, IROUTER_IRM, Width},
};

tests![
    vgic_an_spi_stops_a_guest_on_another_cpu,
    vgic_sgis_between_two_cpus_are_not_lost,
    vgic_an_edge_behind_the_acknowledgement_is_another,
    vgic_one_of_n_is_taken_once_and_by_who_takes_part,
    vgic_a_vcpu_takes_its_interrupts_to_another_cpu,
    vgic_wfi_ends_when_another_cpu_sends_an_interrupt,
    vgic_many_interrupts_from_all_cpus_arrive_once_each,
];

/// Seconds for what another CPU must do.
const PATIENCE: u64 = 60;

#[track_caller]
pub fn wait_until(done: impl FnMut() -> bool) {
    assert!(timer::wait_until(PATIENCE, done), "another CPU does not get there");
}

fn vgic_an_spi_stops_a_guest_on_another_cpu() -> Result<(), Skip> {
    need_cpus(2)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    edges(&board);
    let (begun, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    const ROUNDS: usize = 100;
    route(&board, 40, 1);
    workers::on_all(|cpu| match cpu {
        0 => {
            for round in 0..ROUNDS {
                wait_until(|| begun.load(SeqCst) > round);
                board.pulse(40);
                // Until it has it nobody looks for it again.
                wait_until(|| taken.load(SeqCst) > round);
            }
        }
        1 => guest.with(&board, 1, |guest| {
            guest.begin();
            for round in 0..ROUNDS {
                begun.store(round + 1, SeqCst);
                assert_eq!(guest.take_one(LOOKS), Some(40), "round {round}");
                taken.store(round + 1, SeqCst);
            }
        }),
        _ => {}
    });
    assert_eq!((board.kicks(0), board.kicks(1)), (0, ROUNDS), "kicks are of whom it is routed to");
    Ok(())
}

fn vgic_sgis_between_two_cpus_are_not_lost() -> Result<(), Skip> {
    need_cpus(2)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    const ROUNDS: u64 = 500;
    let ready = AtomicUsize::new(0);
    workers::on_all(|cpu| {
        if cpu > 1 {
            return;
        }
        guest.with(&board, cpu, |guest| {
            guest.begin();
            ready.fetch_add(1, SeqCst);
            wait_until(|| ready.load(SeqCst) == 2);
            // INTID 3 to Aff0 of the other.
            let taken = guest.exchange(ROUNDS, 3 << 24 | 2 >> cpu, cpu == 1);
            assert_eq!(taken, ROUNDS, "vCPU {cpu}");
            assert_eq!(guest.take_one(GLANCES), None, "none is left");
        });
    });
    Ok(())
}

fn vgic_an_edge_behind_the_acknowledgement_is_another() -> Result<(), Skip> {
    need_cpus(2)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    edges(&board);
    const ROUNDS: usize = 5;
    let round = AtomicUsize::new(0);
    workers::on_all(|cpu| match cpu {
        0 => {
            for n in 0..ROUNDS {
                wait_until(|| round.load(SeqCst) > n);
                board.pulse(40);
                for turn in 0..MOST - 1 {
                    // The guest has not left since it was entered with that one pending.
                    wait_until(|| guest.acknowledged(0, turn) == Some(40));
                    board.pulse(40);
                }
            }
        }
        1 => guest.with(&board, 0, |driver| {
            driver.begin();
            for n in 0..ROUNDS {
                guest.forget(0);
                round.store(n + 1, SeqCst);
                let taken = driver.take(MOST, LOOKS);
                assert_eq!(taken.len(), MOST, "round {n}");
                assert_eq!(driver.take_one(GLANCES), None, "round {n}");
            }
        }),
        _ => {}
    });
    Ok(())
}

/// What a vCPU does that takes interrupts until it takes the last one, which is its own.
fn take_until(guest: &mut Driver<'_>, last: u64, each: impl Fn(u64)) {
    loop {
        match guest.take_one(LOOKS) {
            Some(intid) if intid == last => return,
            Some(intid) => each(intid),
            None => panic!("no interrupt arrives"),
        }
    }
}

fn vgic_one_of_n_is_taken_once_and_by_who_takes_part() -> Result<(), Skip> {
    need_cpus(3)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    edges(&board);
    const ROUNDS: usize = 60;
    /// GICR_CTLR.DPG1NS
    const DPG1NS: u64 = 1 << 25;
    route(&board, 40, IROUTER_IRM.into());
    route(&board, 50, 0);
    route(&board, 51, 1);
    let taken = [const { AtomicUsize::new(0) }; 2];
    let total = || taken.iter().map(|taken| taken.load(SeqCst)).sum::<usize>();
    let takes_part = |vcpu, does| {
        let value = if does { 0 } else { DPG1NS };
        let at = u64::from(GICR_CTLR);
        board.vgic.write_redistributor(vcpu, at, Width::Word, value, &mut board.told());
    };
    workers::on_all(|cpu| match cpu {
        0 | 1 => guest.with(&board, cpu, |guest| {
            guest.begin();
            take_until(guest, 50 + cpu as u64, |intid| {
                assert_eq!(intid, 40);
                taken[cpu].fetch_add(1, SeqCst);
            });
        }),
        2 => {
            wait_until(|| board.is_running(0) && board.is_running(1));
            for round in 0..ROUNDS {
                // Both, the second alone, the first alone.
                takes_part(0, round % 3 != 1);
                takes_part(1, round % 3 != 2);
                let before = taken[1].load(SeqCst);
                board.pulse(40);
                wait_until(|| total() > round);
                let by_second = taken[1].load(SeqCst) - before;
                match round % 3 {
                    1 => assert_eq!(by_second, 1, "round {round}"),
                    2 => assert_eq!(by_second, 0, "round {round}"),
                    _ => {}
                }
            }
            board.pulse(50);
            board.pulse(51);
        }
        _ => {}
    });
    assert_eq!(total(), ROUNDS, "each is taken once");
    Ok(())
}

fn vgic_a_vcpu_takes_its_interrupts_to_another_cpu() -> Result<(), Skip> {
    need_cpus(2)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    guest.begin(&board, 0);
    for cpu in [1, 0, 1] {
        // Here two are active, one above the other, and more wait than any CPU has list registers for.
        guest.with(&board, 0, |guest| {
            edges(&board);
            for (intid, urgency) in [(80, 0xe0), (81, 0xc8)] {
                priority(&board, intid, urgency);
                board.pulse(intid);
                assert_eq!(guest.read(sysreg::ICC_IAR1), intid.into());
            }
        });
        let expected = waiting(&board, 20);
        workers::on(cpu, || {
            guest.with(&board, 0, |guest| {
                assert_eq!(guest.read(sysreg::ICC_RPR), 0xc8, "on CPU {cpu}");
                let (first, others) = expected.split_first().expect("20 of them");
                assert_eq!(guest.read(sysreg::ICC_IAR1), *first);
                for intid in [*first, 81, 80] {
                    guest.write(sysreg::ICC_EOIR1, intid);
                }
                assert_eq!(guest.read(sysreg::ICC_RPR), 0xff, "all have ended");
                assert_eq!(guest.take(19, GLANCES)[..], *others);
                assert_eq!(guest.take_one(GLANCES), None);
            });
        });
    }
    Ok(())
}

/// Beside one that waits all the time and that the guest's mask keeps out.
fn vgic_wfi_ends_when_another_cpu_sends_an_interrupt() -> Result<(), Skip> {
    need_cpus(2)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    edges(&board);
    priority(&board, 40, 0x80);
    priority(&board, 42, 0x90);
    board.pulse(42);
    const ROUNDS: usize = 20;
    workers::on_all(|cpu| match cpu {
        0 => {
            for round in 0..ROUNDS {
                wait_until(|| board.waits(0) > round);
                board.pulse(40);
            }
        }
        1 => guest.with(&board, 0, |guest| {
            guest.begin();
            guest.write(sysreg::ICC_PMR, 0x90);
            for round in 0..ROUNDS {
                guest.exec(insn::WFI, 0, 0);
                assert_eq!(board.waits(0), round + 1);
                assert_eq!(guest.take_one(GLANCES), Some(40));
            }
            guest.write(sysreg::ICC_PMR, 0x98);
            guest.exec(insn::WFI, 0, 0);
            assert_eq!(board.waits(0), ROUNDS);
            assert_eq!(guest.take_one(GLANCES), Some(42));
        }),
        _ => {}
    });
    Ok(())
}

/// Both vCPUs take what CPUs beside theirs and devices of their own CPU send.
fn vgic_many_interrupts_from_all_cpus_arrive_once_each() -> Result<(), Skip> {
    need_cpus(3)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    edges(&board);
    const ROUNDS: usize = 40;
    // Every other SPI is the second vCPU's; the last of each ends it.
    for intid in 32..96 {
        route(&board, intid, u64::from(intid % 2));
    }
    let taken = [const { AtomicUsize::new(0) }; 96];
    let senders = context().cpus - 2;
    let done = AtomicUsize::new(0);
    workers::on_all(|cpu| match cpu {
        0 | 1 => guest.with(&board, cpu, |guest| {
            guest.begin();
            take_until(guest, 94 + cpu as u64, |intid| {
                assert_eq!(intid as usize % 2, cpu, "{intid} is the other's");
                taken[intid as usize].fetch_add(1, SeqCst);
            });
        }),
        _ => {
            wait_until(|| board.is_running(0) && board.is_running(1));
            // Each sender has its own: an edge is sent when the one before has been taken.
            let own = || (32..94).filter(|intid| intid % senders == cpu - 2);
            for round in 0..ROUNDS {
                for intid in own() {
                    board.pulse(intid as u16);
                }
                wait_until(|| own().all(|intid| taken[intid].load(SeqCst) > round));
            }
            if done.fetch_add(1, SeqCst) + 1 == senders {
                board.pulse(94);
                board.pulse(95);
            }
        }
    });
    for (intid, taken) in taken.iter().enumerate().skip(32).take(62) {
        assert_eq!(taken.load(SeqCst), ROUNDS, "INTID {intid}");
    }
    Ok(())
}
