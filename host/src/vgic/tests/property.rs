//! Whatever happens to a VM, in whatever order and with however many list registers: its guest finds what a GIC does.

use super::{
    AFFINITIES, Told,
    machine::{Machine, Op},
    spis, vcpus,
};
use crate::vgic::{Frame, SgiRegister, Vgic, registers::Width};
use proptest::{prelude::*, sample::select};

const VCPUS: usize = AFFINITIES.len();
/// Few, so that they meet.
const LINES: [u16; 6] = [27, 30, 32, 33, 34, 63];

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        3 => Just(Frame::Distributor),
        2 => (0..VCPUS).prop_map(Frame::Redistributor),
    ]
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![
        8 => Just(Width::Word),
        2 => Just(Width::Byte),
        1 => Just(Width::Halfword),
        2 => Just(Width::Doubleword),
    ]
}

/// A register of a frame, or its neighbour.
fn place(frame: Frame) -> impl Strategy<Value = u32> {
    let (base, next) = match frame {
        Frame::Distributor => (0, 1),
        Frame::Redistributor(_) => (0x1_0000, 0),
    };
    let bits = select(vec![0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380]);
    let bits = bits.prop_map(move |bank| base + bank + 4 * next);
    let all = match frame {
        Frame::Distributor => 0..0x1_0000u32,
        Frame::Redistributor(_) => 0..0x2_0000u32,
    };
    let route = select(vec![32u32, 33, 34, 63]).prop_map(|id| 0x6000 + 8 * id);
    let one = match frame {
        Frame::Distributor => route.boxed(),
        Frame::Redistributor(_) => Just(0x14).boxed(),
    };
    prop_oneof![
        10 => bits,
        3 => (0..32u32).prop_map(move |n| base + 0x400 + 32 * next + n),
        1 => (0..2u32).prop_map(move |n| base + 0xc00 + 8 * next + 4 * n),
        2 => Just(0u32),
        4 => one,
        1 => 0..0x20u32,
        1 => all,
    ]
}

fn value(frame: Frame, at: u32) -> BoxedStrategy<u64> {
    let route = prop_oneof![
        3 => select(AFFINITIES.to_vec()),
        1 => Just(0x77),
        2 => Just(1u32 << 31),
    ];
    match (frame, at & 0xffff) {
        (Frame::Distributor, 0) => select(vec![3, 3, 2, 1, 0]).boxed(),
        (Frame::Redistributor(_), 0) if at == 0 => (0..8u64).prop_map(|dpg| dpg << 24).boxed(),
        (Frame::Redistributor(_), 0x14) => select(vec![0u64, 0, 2]).boxed(),
        (Frame::Distributor, 0x6000..0x8000) => route.prop_map(u64::from).boxed(),
        // Few priorities, and bits that there are not.
        (_, 0x400..0x800) => any::<u32>().prop_map(|value| u64::from(value & 0xc7c7_c7c7)).boxed(),
        // What the lines are, and SGIs, and anything.
        _ => prop_oneof![
            Just(0x4800_0007),
            Just(0x8000_0007),
            select(vec![1u64, 2, 4, 1 << 27, 1 << 31]),
            any::<u64>(),
        ]
        .boxed(),
    }
}

/// The one vCPU of this affinity, in ICC_SGI1R_EL1.
fn target(affinity: u32) -> u64 {
    let [aff0, aff1, aff2, _] = affinity.to_le_bytes().map(u64::from);
    aff2 << 32 | aff1 << 16 | (aff0 / 16) << 44 | 1 << (aff0 % 16)
}

fn op() -> impl Strategy<Value = Op> {
    let access = (frame(), width())
        .prop_flat_map(|(frame, width)| (Just(frame), Just(width), place(frame)))
        .prop_flat_map(|(frame, width, at)| (Just((frame, width, at)), value(frame, at)))
        .boxed();
    let write = access.clone().prop_map(|((frame, width, at), value)| Op::Write {
        frame,
        at,
        width,
        value,
    });
    let read = access.prop_map(|((frame, width, at), _)| Op::Read { frame, at, width });
    let register =
        select(vec![SgiRegister::Sgi0, SgiRegister::Sgi1, SgiRegister::Sgi1, SgiRegister::Asgi1]);
    let target = select(AFFINITIES.to_vec()).prop_map(target);
    let elsewhere = prop_oneof![6 => Just(0u64), 2 => Just(1 << 40), 1 => Just(1 << 48), 1 => Just(1 << 44), 1 => 0..0x1_0000u64];
    let sgi = (0..VCPUS, register, target, 0..3u64, elsewhere).prop_map(
        |(from, register, target, intid, elsewhere)| {
            let value = target ^ elsewhere | intid << 24;
            Op::Sgi { from, register, value }
        },
    );
    let vcpu = 0..VCPUS;
    let spi = select(LINES[2..].to_vec());
    prop_oneof![
        8 => write,
        3 => read,
        3 => sgi,
        8 => (vcpu.clone(), select(LINES.to_vec()), any::<bool>())
            .prop_map(|(vcpu, intid, up)| Op::Line { vcpu, intid, up }),
        3 => spi.clone().prop_map(|intid| Op::Pulse { intid }),
        1 => (spi, any::<bool>()).prop_map(|(intid, wanted)| Op::Resample { intid, wanted }),
        1 => (vcpu.clone(), any::<bool>()).prop_map(|(vcpu, on)| Op::Power { vcpu, on }),
        8 => vcpu.clone().prop_map(|vcpu| Op::Enter { vcpu }),
        3 => vcpu.clone().prop_map(|vcpu| Op::Leave { vcpu }),
        14 => vcpu.clone().prop_map(|vcpu| Op::Acknowledge { vcpu }),
        8 => (vcpu, 1..4usize).prop_map(|(vcpu, count)| Op::End { vcpu, count }),
    ]
}

/// One thing, or interrupts within interrupts.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let nested = (0..VCPUS, 1..6usize).prop_map(|(vcpu, count)| {
        // Ever more urgent, at first.
        let mut ops = vec![Op::Enter { vcpu }];
        for intid in [2, 1, 0, 3] {
            let value = target(AFFINITIES[vcpu]) | intid << 24;
            ops.push(Op::Sgi { from: 0, register: SgiRegister::Sgi1, value });
            ops.push(Op::Acknowledge { vcpu });
        }
        ops.push(Op::End { vcpu, count });
        ops
    });
    prop_oneof![30 => op().prop_map(|op| vec![op]), 1 => nested]
}

/// A guest's beginning: groups and interrupts enabled, edges here and there, priorities, routes.
fn beginning() -> Vec<Op> {
    let write = |frame, at, value| Op::Write { frame, at, width: Width::Word, value };
    let mut ops = vec![
        write(Frame::Distributor, 0, 3),
        write(Frame::Distributor, 0xc08, 0x8),
        write(Frame::Distributor, 0xc0c, 0x8000_0000),
        write(Frame::Distributor, 0x104, 0xffff_ffff),
        write(Frame::Distributor, 0x420, 0xc080_4000),
        write(Frame::Distributor, 0x6000 + 8 * 33, AFFINITIES[1].into()),
        write(Frame::Distributor, 0x6000 + 8 * 34, 1 << 31),
        write(Frame::Distributor, 0x6000 + 8 * 63, AFFINITIES[2].into()),
    ];
    for v in 0..VCPUS {
        ops.push(write(Frame::Redistributor(v), 0x1_0100, 0xffff_ffff));
        ops.push(write(Frame::Redistributor(v), 0x1_0400, 0x00c0_8040));
        ops.push(Op::Enter { vcpu: v });
    }
    ops
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_guest_finds_what_a_gic_does(
        begun in prop::bool::weighted(0.9),
        ops in prop::collection::vec(ops(), 1..120),
        lrs in select(vec![1usize, 2, 4, 16]),
    ) {
        let (vcpus, spis) = (vcpus(), spis());
        let vgic = Vgic::new(&vcpus, &spis, 5).unwrap();
        let mut machine = Machine::new(&vgic, &AFFINITIES, lrs);
        for op in beginning().into_iter().filter(|_| begun).chain(ops.into_iter().flatten()) {
            machine.step(op);
        }
        machine.finish();
    }

    #[test]
    fn a_restored_vm_goes_on_as_it_was(
        before in prop::collection::vec(ops(), 1..60),
        after in prop::collection::vec(ops(), 1..60),
        lrs in select(vec![1usize, 2, 4, 16]),
    ) {
        let (vcpus_a, spis_a, vcpus_b, spis_b) = (vcpus(), spis(), vcpus(), spis());
        let vgic = Vgic::new(&vcpus_a, &spis_a, 5).unwrap();
        let restored = Vgic::new(&vcpus_b, &spis_b, 5).unwrap();
        let mut machine = Machine::new(&vgic, &AFFINITIES, lrs);
        for op in beginning().into_iter().chain(before.into_iter().flatten()) {
            // Who has an SPI active is no register's: it must be whom it is routed to.
            let route = matches!(op, Op::Write { frame: Frame::Distributor, at: 0x6000..0x8000, value, .. }
                if value >> 31 != 0 || machine.model.spis.iter().any(|i| i.active));
            if !route && !matches!(op, Op::Power { .. }) {
                machine.step(op);
            }
        }
        machine.read_all();
        restore(&vgic, &restored);
        let mut machine = machine.moved_to(&restored);
        machine.read_all();
        for intid in 32..64 {
            let wanted = machine.model.get(0, intid).resample;
            machine.step(Op::Resample { intid, wanted });
        }
        // What is active is so where it is routed to now.
        for vcpu in 0..VCPUS {
            machine.step(Op::Enter { vcpu });
        }
        for op in after.into_iter().flatten() {
            machine.step(op);
        }
        machine.finish();
    }
}

/// As a VMM does it: all that can be read is written, enables and active states after they are cleared.
fn restore(from: &Vgic<'_>, to: &Vgic<'_>) {
    let told = &mut Told::default();
    let mut frames = vec![(Frame::Distributor, 0u64, 0x8000u64)];
    frames.extend((0..VCPUS).map(|v| (Frame::Redistributor(v), 0x1_0000, 0x1_0d00)));
    for (frame, base, end) in frames {
        for clear in [0x180, 0x380] {
            for at in (base + clear..base + clear + 0x80).step_by(4) {
                to.write_state(frame, at, 0xffff_ffff, told).unwrap();
            }
        }
        for at in (0..end).step_by(4) {
            let bank: u64 = at.wrapping_sub(base);
            if !(0x180..0x200).contains(&bank) && !(0x380..0x400).contains(&bank) {
                let value = from.read_state(frame, at).unwrap();
                to.write_state(frame, at, value, told).unwrap();
            }
        }
    }
    for v in 0..VCPUS {
        to.write_lines(v, 0, from.read_lines(v, 0).unwrap(), told).unwrap();
    }
    to.write_lines(0, 32, from.read_lines(0, 32).unwrap(), told).unwrap();
}
