//! A guest's GIC, between its devices, its vCPUs on several CPUs and the list registers.

use crate::{
    gic_guest::{
        Board, CPU_OFF, CPU_SUSPEND, Cells, Driver, GLANCES, Guest, LOWER, Left, MOST, Taken,
    },
    instruction::{self as insn, sysreg},
    runner::Skip,
    tests,
};
use umbra_host::{
    vcpu::VTIMER_INTID,
    vgic::{Line, registers::*},
};
use umbra_patterns::protocol::{GICD, GICR, GICR_BYTES};

tests![
    vgic_a_level_ends_when_its_device_is_asked,
    vgic_a_level_is_pending_again_until_its_line_is_down,
    vgic_a_line_that_is_down_before_it_is_taken_is_nothing,
    vgic_more_than_list_registers_come_in_the_order_of_their_priorities,
    vgic_what_preempts_is_what_the_binary_point_says,
    vgic_frames_take_the_widths_of_the_architecture,
    vgic_wfi_does_not_wait_while_an_interrupt_does,
    vgic_a_vcpu_that_goes_off_leaves_no_timer_behind,
];

/// The priority that [`Board::new`] gives to everything.
const PRIORITY: u64 = 0xa0;

/// A guest, whose first vCPU begins here.
fn begun<R>(board: &Board<'_>, f: impl FnOnce(&mut Driver<'_>) -> R) -> R {
    Guest::new().with(board, 0, |guest| {
        guest.begin();
        f(guest)
    })
}

pub fn distributor(board: &Board<'_>, at: u32, width: Width, value: u64) {
    board.vgic.write_distributor(at.into(), width, value, &mut board.told());
}

/// Edge-triggered SPIs from 32 to 95.
pub fn edges(board: &Board<'_>) {
    for n in 2..6 {
        distributor(board, GICD_ICFGR + 4 * n, Width::Word, 0xaaaa_aaaa);
    }
}

pub fn route(board: &Board<'_>, intid: u16, to: u64) {
    distributor(board, GICD_IROUTER + 8 * u32::from(intid), Width::Doubleword, to);
}

pub fn priority(board: &Board<'_>, intid: u16, priority: u8) {
    distributor(board, GICD_IPRIORITYR + u32::from(intid), Width::Byte, priority.into());
}

/// The bit of an INTID in the guest's own view of its first redistributor's register.
fn private(board: &Board<'_>, vcpu: usize, register: u32, intid: u16) -> bool {
    let at = u64::from(SGI_BASE + register);
    board.vgic.read_redistributor(vcpu, at, Width::Word) >> intid & 1 != 0
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

/// As many INTIDs as that, with priorities in no order; sorted by those.
pub fn waiting(board: &Board<'_>, count: u16) -> Taken {
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

fn vgic_frames_take_the_widths_of_the_architecture() -> Result<(), Skip> {
    use insn::{LDR32, LDR64, LDRB, LDRH, LDRSB64, STR32, STR64, STRB, STRH};
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
        board.line(40, true);
        // Its PSTATE keeps interrupts out, which nobody who waits looks at. By a call: a CPU need not trap a WFI that
        // would end at once.
        assert_eq!(guest.exec(insn::HVC, CPU_SUSPEND, 0), 0);
        assert_eq!(board.waits(0), 0);
        assert_eq!(guest.take_one(GLANCES), Some(40));
        board.line(40, false);
        assert_eq!(guest.take_one(GLANCES), None);
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
