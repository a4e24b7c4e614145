//! What a guest, and who saves and restores, finds in registers.

use super::model::Model;
use super::*;

#[test]
fn every_place_in_every_width_is_what_the_architecture_says() {
    let (vcpus, spis) = (vcpus(), spis());
    let vgic = Vgic::new(&vcpus, &spis, 5).unwrap();
    let mut model = Model::new(&AFFINITIES);
    let widths = [Width::Byte, Width::Halfword, Width::Word, Width::Doubleword];
    let told = &mut Told::default();
    for round in 0..2u64 {
        for at in 0..0x1_0000 {
            for width in widths {
                let value = vgic.read_distributor(at, width);
                let expected = model.read(Frame::Distributor, at as u32, width);
                assert_eq!(value, expected, "{at:#x} {width:?}");
            }
        }
        for at in 0..0x2_0000 {
            for width in widths {
                let value = vgic.read_redistributor(3, at, width);
                let expected = model.read(Frame::Redistributor(3), at as u32, width);
                assert_eq!(value, expected, "redistributor {at:#x} {width:?}");
            }
        }
        // Something everywhere, in a width that may not be the register's.
        for at in 0..0x2_0000u64 {
            let width = widths[((at / 8 + at) % 4) as usize];
            let value = at.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ round;
            vgic.write_distributor(at, width, value, told);
            if at < 0x1_0000 {
                model.write(Frame::Distributor, at as u32, width, value);
            }
            vgic.write_redistributor(3, at, width, value, told);
            model.write(Frame::Redistributor(3), at as u32, width, value);
        }
    }
    for at in [0x1_0000, 0x2_0000, 0x1_0000_0104, u64::MAX] {
        assert_eq!(vgic.read_distributor(at, Width::Word), 0);
        assert_eq!(vgic.read_redistributor(0, at | 0x2_0000, Width::Word), 0);
    }
    assert_eq!(vgic.read_redistributor(4, 0x14, Width::Word), 0, "no such vCPU");
    vgic.write_redistributor(4, 0x14, Width::Word, 2, told);
}

#[test]
fn a_gic_says_what_it_has() {
    let (vcpus, spis) = (vcpus(), spis());
    let vgic = Vgic::new(&vcpus, &spis, 5).unwrap();
    assert_eq!(vgic.read_distributor(0x4, Width::Word), 1 | 9 << 19 | 1 << 26);
    assert_eq!(vgic.read_distributor(0xffe8, Width::Word) >> 4 & 0xf, 3, "GICv3");
    let typer = |v| vgic.read_redistributor(v, 0x8, Width::Doubleword);
    assert_eq!(typer(0), 1 << 32 | 1 << 5);
    assert_eq!(typer(3), 0x02_00_13 << 32 | 3 << 8 | 1 << 5 | 1 << 4, "the last");
    // All SPIs that there can be: the last 32 INTIDs are four short.
    let all = [const { SpiCell::new() }; 988];
    let near = [VcpuCell::new(15)];
    let vgic = Vgic::new(&near, &all, 5).unwrap();
    assert_eq!(vgic.read_distributor(0x4, Width::Word), 31 | 9 << 19, "no RSS");
    vgic.write_distributor(0x17c, Width::Word, u64::MAX, &mut Told::default());
    assert_eq!(vgic.read_distributor(0x17c, Width::Word), 0x0fff_ffff);
    vgic.write_distributor(0x7fd8, Width::Doubleword, 15, &mut Told::default());
    assert_eq!(vgic.read_distributor(0x7fd8, Width::Doubleword), 15, "1019");
    assert_eq!(vgic.read_distributor(0x7fe0, Width::Doubleword), 0, "1020");
}

#[test]
fn priorities_have_the_bits_that_list_registers_have() {
    for bits in 5..=8u8 {
        let (vcpus, spis) = (vcpus(), spis());
        let vgic = Vgic::new(&vcpus, &spis, bits).unwrap();
        let told = &mut Told::default();
        vgic.write_distributor(0x420, Width::Word, 0xff_ff_ff_ff, told);
        vgic.write_redistributor(2, 0x1_041f, Width::Byte, 0xfff, told);
        let mask = u64::from(0xffu8 << (8 - bits));
        assert_eq!(vgic.read_distributor(0x420, Width::Word), mask * 0x0101_0101);
        assert_eq!(vgic.read_redistributor(2, 0x1_041f, Width::Byte), mask);
        assert_eq!(vgic.read_redistributor(1, 0x1_041f, Width::Byte), 0, "another vCPU's");
    }
}

#[test]
fn what_is_no_gic_is_refused() {
    let spis = [const { SpiCell::new() }; 989];
    let new = |vcpus: &[VcpuCell], count, bits| {
        Vgic::new(vcpus, &spis[..count], bits).map(|_| ()).unwrap_err()
    };
    let one = [VcpuCell::new(0)];
    assert_eq!(new(&[], 32, 5), Refused::Vcpus);
    assert_eq!(new(&one, 33, 5), Refused::Spis);
    assert_eq!(new(&one, 989, 5), Refused::Spis);
    assert_eq!((new(&one, 32, 4), new(&one, 32, 9)), (Refused::Priority, Refused::Priority));
    assert_eq!(
        new(&[VcpuCell::new(1), VcpuCell::new(2), VcpuCell::new(1)], 0, 5),
        Refused::Affinity
    );
    assert_eq!(new(&[VcpuCell::new(1 << 24)], 0, 5), Refused::Affinity);
    let many: Vec<_> = (0..=MAX_VCPUS as u32).map(VcpuCell::new).collect();
    assert_eq!(new(&many, 0, 5), Refused::Vcpus);
    assert!(Vgic::new(&many[1..], &spis[..988], 5).is_ok());
}

#[test]
fn a_new_gic_knows_nothing_of_an_older_one_in_its_cells() {
    let (vcpus, spis) = (vcpus(), spis());
    let told = &mut Told::default();
    {
        let vgic = running(&vcpus, &spis);
        vgic.set_line(Line::Spi(32), true, told).unwrap();
        vgic.write_redistributor(0, 0x14, Width::Word, 2, told);
        let listed = peek(&vgic, 0, 4);
        assert_eq!(listed, [], "asleep");
    }
    told.kicked();
    let vgic = Vgic::new(&vcpus, &spis, 5).unwrap();
    assert_eq!(vgic.read_state(Frame::Redistributor(0), 0x14), Ok(0), "and nobody is in the guest");
    assert_eq!(vgic.read_lines(0, 32), Ok(0));
    vgic.write_distributor(0, Width::Word, 3, told);
    assert_eq!(told.kicked(), [], "nothing is due");
}

#[test]
fn from_outside_pending_is_the_latch() {
    let (vgic, told) = four();
    let outside = Frame::Distributor;
    vgic.set_line(Line::Spi(33), true, told).unwrap();
    assert_eq!(vgic.read_distributor(0x204, Width::Word), 2, "a guest sees the line");
    assert_eq!(vgic.read_state(outside, 0x204), Ok(0));
    assert_eq!(vgic.read_lines(0, 32), Ok(2));
    // Set and cleared by one write.
    vgic.write_state(outside, 0x204, 0b101, told).unwrap();
    vgic.write_state(outside, 0x204, 0b100, told).unwrap();
    assert_eq!(vgic.read_state(outside, 0x204), Ok(0b100));
    assert_eq!(vgic.read_distributor(0x204, Width::Word), 0b110);
    // ICPENDR is nothing, for them.
    vgic.write_state(outside, 0x284, 0xffff_ffff, told).unwrap();
    assert_eq!(vgic.read_state(outside, 0x284), Ok(0));
    assert_eq!(vgic.read_state(outside, 0x204), Ok(0b100));
    // A line that is set is no edge.
    edge(&vgic, 40);
    vgic.write_lines(0, 32, 1 << 8, told).unwrap();
    assert_eq!(vgic.read_lines(0, 32), Ok(1 << 8));
    assert_eq!(vgic.read_distributor(0x204, Width::Word), 0b100);
    // SGIs have no lines, and PPIs are whose they are.
    vgic.write_lines(1, 0, 0xffff_ffff, told).unwrap();
    assert_eq!((vgic.read_lines(1, 0), vgic.read_lines(0, 0)), (Ok(0xffff_0000), Ok(0)));
}

#[test]
fn from_outside_what_is_not_there_is_an_error() {
    let (vgic, told) = four();
    let (dist, redist) = (Frame::Distributor, Frame::Redistributor(0));
    assert_eq!(vgic.read_state(dist, 0x1_0000), Err(Refused::NoRegister));
    assert_eq!(vgic.read_state(dist, 2), Err(Refused::NoRegister));
    assert_eq!(vgic.read_state(redist, 0x2_0000), Err(Refused::NoRegister));
    assert_eq!(vgic.read_state(Frame::Redistributor(4), 0), Err(Refused::NoVcpu));
    assert_eq!(vgic.read_lines(0, 33), Err(Refused::Invalid));
    assert_eq!(vgic.read_lines(0, 1024), Err(Refused::Invalid));
    assert_eq!(vgic.read_lines(4, 0), Err(Refused::NoVcpu));
    assert_eq!(vgic.read_lines(0, 64), Ok(0), "no such INTIDs");
    // The version of the state.
    let iidr = vgic.read_state(dist, 8).unwrap();
    assert_eq!(vgic.write_state(dist, 8, iidr, told), Ok(()));
    assert_eq!(vgic.write_state(dist, 8, iidr ^ 1 << 12, told), Err(Refused::Invalid));
    // Nothing of it while a vCPU runs.
    let (_, _, entries) = flush(&vgic, 2, 4);
    assert_eq!(vgic.read_state(dist, 0), Err(Refused::Busy));
    assert_eq!(vgic.write_lines(0, 32, 0, told), Err(Refused::Busy));
    vgic.sync(2, &entries, States::default(), told).unwrap();
    assert_eq!(vgic.read_state(dist, 0), Ok(0x52));
}
