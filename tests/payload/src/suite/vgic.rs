//! A guest's GIC, between its devices, its vCPUs on several CPUs and the list registers.

use crate::{
    context::{context, need_cpus},
    gic_guest::{Board, CPU_OFF, Cells, Driver, GLANCES, Guest, LOOKS, LOWER, Left, MOST, Taken},
    instruction::{self as insn, sysreg},
    runner::Skip,
    tests, workers,
};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use umbra_host::{
    kernel::timer,
    vcpu::VTIMER_INTID,
    vgic::{Line, registers::*},
};
use umbra_patterns::protocol::{GICD, GICR, GICR_BYTES};

tests![
    vgic_an_spi_stops_a_guest_on_another_cpu,
    vgic_a_level_ends_when_its_device_is_asked,
    vgic_a_level_is_pending_again_until_its_line_is_down,
    vgic_a_line_that_is_down_before_it_is_taken_is_nothing,
    vgic_sgis_between_two_cpus_are_not_lost,
    vgic_one_of_n_is_taken_once_and_by_who_takes_part,
    vgic_more_than_list_registers_come_in_the_order_of_their_priorities,
    vgic_what_preempts_is_what_the_binary_point_says,
    vgic_a_vcpu_takes_its_interrupts_to_another_cpu,
    vgic_frames_take_the_widths_of_the_architecture,
    vgic_wfi_does_not_wait_while_an_interrupt_does,
    vgic_wfi_ends_when_another_cpu_sends_an_interrupt,
    vgic_a_vcpu_that_goes_off_leaves_no_timer_behind,
    vgic_many_interrupts_from_all_cpus_arrive_once_each,
];

/// Seconds for what another CPU must do.
const PATIENCE: u64 = 60;

/// The priority that [`Board::new`] gives to everything.
const PRIORITY: u64 = 0xa0;

#[track_caller]
fn wait_until(done: impl FnMut() -> bool) {
    assert!(timer::wait_until(PATIENCE, done), "another CPU does not get there");
}

/// A guest, whose first vCPU begins here.
fn begun<R>(board: &Board<'_>, f: impl FnOnce(&mut Driver<'_>) -> R) -> R {
    Guest::new().with(board, 0, |guest| {
        guest.begin();
        f(guest)
    })
}

fn distributor(board: &Board<'_>, at: u32, width: Width, value: u64) {
    board.vgic.write_distributor(at.into(), width, value, &mut board.told());
}

/// Edge-triggered SPIs from 32 to 95.
fn edges(board: &Board<'_>) {
    for n in 2..6 {
        distributor(board, GICD_ICFGR + 4 * n, Width::Word, 0xaaaa_aaaa);
    }
}

fn route(board: &Board<'_>, intid: u16, to: u64) {
    distributor(board, GICD_IROUTER + 8 * u32::from(intid), Width::Doubleword, to);
}

fn priority(board: &Board<'_>, intid: u16, priority: u8) {
    distributor(board, GICD_IPRIORITYR + u32::from(intid), Width::Byte, priority.into());
}

/// The bit of an INTID in the guest's own view of its first redistributor's register.
fn private(board: &Board<'_>, vcpu: usize, register: u32, intid: u16) -> bool {
    let at = u64::from(SGI_BASE + register);
    board.vgic.read_redistributor(vcpu, at, Width::Word) >> intid & 1 != 0
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

fn vgic_a_level_ends_when_its_device_is_asked() -> Result<(), Skip> {
    let cells = Cells::new();
    let board = Board::new(&cells);
    begun(&board, |guest| {
        for asked in [true, false] {
            board.vgic.set_resample(Line::Spi(40), asked).expect("an SPI");
            let before = board.resampled();
            board.line(40, true);
            assert_eq!(guest.read(sysreg::ICC_IAR1), 40);
            assert_eq!(guest.read(sysreg::ICC_IAR1), 1023, "it is active");
            assert_eq!(board.resampled(), before, "it has not ended");
            guest.write(sysreg::ICC_EOIR1, 40);
            assert_eq!(board.resampled(), before + usize::from(asked));
            // Who asks for it lowers the line until the device says otherwise.
            assert_eq!(guest.take_one(GLANCES), (!asked).then_some(40));
            board.line(40, false);
            assert_eq!(guest.take_one(GLANCES), None);
        }
    });
    Ok(())
}

fn vgic_a_level_is_pending_again_until_its_line_is_down() -> Result<(), Skip> {
    let cells = Cells::new();
    let board = Board::new(&cells);
    begun(&board, |guest| {
        board.line(40, true);
        // In one go: each end makes it pending again, without an order of the host's between.
        let taken = guest.take(MOST, GLANCES);
        assert_eq!(taken.len(), MOST);
        assert!(taken.iter().all(|&intid| intid == 40), "{taken:?}");
        // The guest sees to its device, and then ends it.
        assert_eq!(guest.read(sysreg::ICC_IAR1), 40);
        guest.exec(insn::STR32, 40, LOWER);
        guest.write(sysreg::ICC_EOIR1, 40);
        assert_eq!(guest.take_one(GLANCES), None);
    });
    Ok(())
}

fn vgic_a_line_that_is_down_before_it_is_taken_is_nothing() -> Result<(), Skip> {
    let cells = Cells::new();
    let board = Board::new(&cells);
    begun(&board, |guest| {
        for runs in 0..3 {
            board.line(40, true);
            for _ in 0..runs {
                // It is in a list register, and nobody acknowledges it.
                guest.exec(insn::NOP, 0, 0);
            }
            board.line(40, false);
            assert_eq!(guest.take_one(GLANCES), None, "after {runs} runs");
        }
        // A latch is not a line.
        let bit = 1 << (40 % 32);
        guest.exec(insn::STR32, bit, GICD + u64::from(GICD_ISPENDR) + 4);
        assert_eq!(guest.take_one(GLANCES), Some(40));
        assert_eq!(guest.take_one(GLANCES), None);
    });
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
            let [waited, taken] = guest.exchange(ROUNDS, 3 << 24 | 2 >> cpu, cpu == 1);
            assert_eq!((waited, taken), (ROUNDS, ROUNDS), "vCPU {cpu}");
            assert_eq!(guest.take_one(GLANCES), None, "none is left");
        });
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

/// As many INTIDs as that, with priorities in no order; sorted by those.
fn waiting(board: &Board<'_>, count: u16) -> Taken {
    edges(board);
    // Steps of 8, as all CPUs have; 7 has no factor in common with 24.
    let mut all: arrayvec::ArrayVec<(u8, u16), MOST> =
        (0..count).map(|n| ((n * 7 % 24 * 8) as u8, 40 + n)).collect();
    for &(urgency, intid) in &all {
        priority(board, intid, urgency);
        board.pulse(intid);
    }
    all.sort_unstable();
    all.iter().map(|&(_, intid)| intid.into()).collect()
}

fn vgic_more_than_list_registers_come_in_the_order_of_their_priorities() -> Result<(), Skip> {
    let cells = Cells::new();
    let board = Board::new(&cells);
    begun(&board, |guest| {
        for _ in 0..3 {
            let expected = waiting(&board, 24);
            // In one go: the host looks again when list registers run out, and at no other time.
            assert_eq!(guest.take(24, GLANCES), expected);
            assert_eq!(guest.take_one(GLANCES), None);
        }
    });
    Ok(())
}

fn vgic_what_preempts_is_what_the_binary_point_says() -> Result<(), Skip> {
    let cells = Cells::new();
    let board = Board::new(&cells);
    begun(&board, |guest| {
        edges(&board);
        for (intid, urgency) in [(40, 0xb8), (41, 0xa0), (42, 0x80), (43, 0x60)] {
            priority(&board, intid, urgency);
        }
        // Bits 7:5 are the group priority; then all that there are.
        for (point, second) in [(5, 1023), (3, 41)] {
            guest.write(sysreg::ICC_BPR1, point);
            board.pulse(40);
            assert_eq!(guest.read(sysreg::ICC_IAR1), 40);
            board.pulse(41);
            assert_eq!(guest.read(sysreg::ICC_IAR1), second, "ICC_BPR1_EL1 {point}");
            board.pulse(42);
            assert_eq!(guest.read(sysreg::ICC_IAR1), 42);
            assert_eq!(guest.read(sysreg::ICC_RPR), 0x80);
            board.pulse(43);
            assert_eq!(guest.read(sysreg::ICC_IAR1), 43);
            let active: &[u64] = if second == 41 { &[43, 42, 41, 40] } else { &[43, 42, 40] };
            for &intid in active {
                guest.write(sysreg::ICC_EOIR1, intid);
            }
            assert_eq!(guest.read(sysreg::ICC_RPR), 0xff, "all have ended");
            assert_eq!(guest.take_one(GLANCES), (second == 1023).then_some(41));
        }
    });
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

fn vgic_frames_take_the_widths_of_the_architecture() -> Result<(), Skip> {
    use insn::{LDR32, LDR64, LDRB, LDRH, LDRSB64, STR32, STR64, STRB, STRH};
    need_cpus(1)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    let d = |at: u32| GICD + u64::from(at);
    let r = |vcpu: u64, at: u32| GICR + GICR_BYTES * vcpu + u64::from(at);
    let bit = 1 << (40 % 32);
    // The second vCPU's, and what it does to the first one's.
    guest.with(&board, 1, |guest| {
        guest.begin();
        let mut load = |instruction, at, expected| {
            let found = guest.exec(instruction, u64::MAX, at);
            assert_eq!(found, expected, "{instruction:#x} of {at:#x}");
        };
        // 64 SPIs, ten bits of INTID.
        load(LDR32, d(GICD_TYPER), u64::from(TYPER_ID_BITS) | 2);
        load(LDR64, d(GICD_TYPER), 0);
        load(LDRH, d(GICD_TYPER), 0);
        load(LDRB, d(GICD_TYPER), 0);
        load(LDR32, d(GICD_PIDR2), PIDR2.into());
        load(LDR32, d(GICD_CTLR), u64::from(CTLR_DS | CTLR_ARE | CTLR_ENABLE_GRP1));
        let typer = 1 << 32 | 1 << 8 | TYPER_DPGS | TYPER_LAST;
        load(LDR64, r(1, GICR_TYPER), typer);
        load(LDR32, r(1, GICR_TYPER), typer & 0xffff_ffff);
        load(LDR32, r(1, GICR_TYPER_HIGH), 1);
        load(LDR64, r(0, GICR_TYPER), TYPER_DPGS);
        load(LDRB, d(GICD_IPRIORITYR + 40), PRIORITY);
        load(LDRSB64, d(GICD_IPRIORITYR + 40), PRIORITY | !0xff);
        load(LDR32, d(GICD_IPRIORITYR + 40), 0xa0a0_a0a0);
        load(LDRH, d(GICD_IPRIORITYR + 40), 0);
        load(LDR64, d(GICD_IROUTER + 8 * 40), 0);
        // An SGI's and a PPI's are their redistributors'.
        load(LDR32, d(GICD_ISENABLER), 0);
        load(LDR32, r(0, SGI_BASE + GICD_ISENABLER), 0xffff_ffff);

        let mut store = |(instruction, at, value), (load, from, expected)| {
            guest.exec(instruction, value, at);
            let found = guest.exec(load, u64::MAX, from);
            assert_eq!(found, expected, "{instruction:#x} to {at:#x}");
        };
        let at = d(GICD_IPRIORITYR + 41);
        // The bits that list registers have.
        store((STRB, at, 0x4f), (LDR32, at - 1, 0xa0a0_48a0));
        store((STRH, at - 1, 0), (LDR32, at - 1, 0xa0a0_48a0));
        store((STR64, at - 1, 0), (LDR32, at - 1, 0xa0a0_48a0));
        store((STR32, at - 1, 0x1020_3040), (LDRB, at, 0x30));
        let at = d(GICD_IROUTER + 8 * 40);
        store((STR64, at, 1), (LDR64, at, 1));
        store((STR32, at, IROUTER_IRM.into()), (LDR64, at, IROUTER_IRM.into()));
        store((STR32, at + 4, 1), (LDR64, at, IROUTER_IRM.into()));
        store((STR64, at, 0), (LDR32, at, 0));
        for base in [d(0), r(0, SGI_BASE)] {
            let place = if base == GICD { 4 } else { 0 };
            let register = |at: u32| base + u64::from(at) + place;
            let (set, clear) = (register(GICD_ISENABLER), register(GICD_ICENABLER));
            store((STR32, clear, bit), (LDR32, set, 0xffff_ffff & !bit));
            for narrow in [STRB, STRH, STR64] {
                store((narrow, set, bit), (LDR32, clear, 0xffff_ffff & !bit));
            }
            store((STR32, set, bit), (LDR32, clear, 0xffff_ffff));
        }
        let at = r(0, SGI_BASE + GICD_IPRIORITYR + 20);
        store((STRB, at, 0x10), (LDR32, at, 0xa0a0_a010));
        store((STRB, at, PRIORITY), (LDRB, r(1, SGI_BASE + GICD_IPRIORITYR + 20), PRIORITY));
        // It is enabled, and comes to where it is routed.
        guest.exec(STR32, bit, d(GICD_ISPENDR) + 4);
        assert_eq!(guest.take_one(GLANCES), None);
        guest.exec(STR64, 1, d(GICD_IROUTER + 8 * 40));
        assert_eq!(guest.take_one(GLANCES), Some(40));
    });
    Ok(())
}

fn vgic_wfi_does_not_wait_while_an_interrupt_does() -> Result<(), Skip> {
    let cells = Cells::new();
    let board = Board::new(&cells);
    begun(&board, |guest| {
        // What the guest's mask keeps out ends no WFI in the CPU, and the exit is its host's to look at.
        guest.write(sysreg::ICC_PMR, 0);
        board.line(40, true);
        guest.exec(insn::WFI, 0, 0);
        assert_eq!(board.waits(0), 0);
        guest.write(sysreg::ICC_PMR, 0xf8);
        assert_eq!(guest.take_one(GLANCES), Some(40));
        board.line(40, false);
        assert_eq!(guest.take_one(GLANCES), None);
    });
    Ok(())
}

fn vgic_wfi_ends_when_another_cpu_sends_an_interrupt() -> Result<(), Skip> {
    need_cpus(2)?;
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    edges(&board);
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
            for round in 0..ROUNDS {
                guest.exec(insn::WFI, 0, 0);
                assert_eq!(board.waits(0), round + 1);
                assert_eq!(guest.take_one(GLANCES), Some(40));
            }
        }),
        _ => {}
    });
    Ok(())
}

fn vgic_a_vcpu_that_goes_off_leaves_no_timer_behind() -> Result<(), Skip> {
    let cells = Cells::new();
    let (board, guest) = (Board::new(&cells), Guest::new());
    let is_pending = || private(&board, 1, GICD_ISPENDR, VTIMER_INTID);
    guest.begin(&board, 0);
    guest.begin(&board, 1);
    for round in 1..4 {
        guest.with(&board, 1, |guest| {
            assert_eq!(guest.take_one(GLANCES), None, "a timer of an earlier life");
            guest.write(sysreg::CNTV_CVAL, 0);
            guest.write(sysreg::CNTV_CTL, 1);
            // It is due, and stops the guest before it gets anywhere.
            guest.exec(insn::NOP, 0, 0);
            assert!(is_pending());
            if round == 1 {
                // The rule, before the exception: it comes, again and again while it is due.
                let timer = u64::from(VTIMER_INTID);
                assert_eq!(guest.take(3, GLANCES)[..], [timer; 3]);
            }
            assert_eq!(guest.attempt(insn::HVC, CPU_OFF, 0), Left::Off);
        });
        assert!(!is_pending(), "round {round}");
        guest.with(&board, 0, |guest| assert_eq!(guest.turn_on(1), 0));
        assert_eq!(board.turned_on(), round);
        guest.begin(&board, 1);
    }
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
