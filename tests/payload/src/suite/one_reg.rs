//! Registers of vCPUs that are loaded nowhere, as their host reads and writes them.

use crate::{
    context::context,
    instruction::{self as insn, SysReg, reg, sysreg},
    ledger,
    puppet::{BASE, Event, Machine, Puppet, Routine},
    runner::Skip,
    tests,
};
use umbra_host::hypercall::{Hvc, Hypervisor};
use umbra_shared::{
    call::{VcpuIndex, VmConfig, VmHandle},
    error::Error,
    exit::{Reason, RunFlags},
    register::{FFR, Register, UntrustedRegister, system},
    sve::Layout,
    vl::Vq,
};

tests![
    system_registers_are_those_of_their_names,
    general_registers_arrive,
    register_files_of_every_length,
    the_clock_and_the_timer,
    the_interface_of_interrupts,
    a_vcpu_is_on_or_off_and_keeps_the_rest,
    a_vcpu_goes_on_in_another_vm,
    r36_attack_registers_of_a_protected_vm,
    attack_a_pstate_that_is_no_guests,
    what_is_no_register_is_refused,
];

const fn number(r: SysReg) -> u16 {
    system(r.op0 as u16, r.op1 as u16, r.crn as u16, r.crm as u16, r.op2 as u16)
}

fn raw(register: Register) -> UntrustedRegister {
    register.encode()
}

#[track_caller]
fn read(guest: &Puppet, register: Register) -> u64 {
    let found = Hvc.vcpu_read(guest.machine.vm, guest.index, raw(register));
    let [low, high] = found.unwrap_or_else(|error| panic!("VCPU_READ of {register:x?}: {error}"));
    assert_eq!(high, 0, "{register:x?}");
    low
}

#[track_caller]
fn write(guest: &Puppet, register: Register, value: u64) {
    if let Err(error) = try_write(guest, register, value) {
        panic!("VCPU_WRITE of {register:x?}: {error}");
    }
}

fn try_write(guest: &Puppet, register: Register, value: u64) -> Result<(), Error> {
    Hvc.vcpu_write(guest.machine.vm, guest.index, raw(register), [value, 0])
}

/// Registers that a guest at EL1 reads and writes by this name, with bits that are there; not those that it stands on.
const PLAIN: &[(SysReg, u64)] = &[
    (reg(3, 0, 2, 0, 0), 0x0012_0000_4567_8000),
    (reg(3, 0, 2, 0, 1), 0x0034_0000_89ab_c000),
    (reg(3, 0, 2, 0, 2), 0x3519),
    (reg(3, 0, 10, 2, 0), 0x44ff_0400),
    (reg(3, 0, 5, 2, 0), 0x9600_0045),
    (reg(3, 0, 6, 0, 0), 0xffff_8000_1234_5678),
    (reg(3, 0, 13, 0, 1), 0x0000_4242),
    (reg(3, 0, 13, 0, 4), 0x1111_2222_3333_4444),
    (reg(3, 3, 13, 0, 2), 0x5555_6666_7777_8888),
    (reg(3, 3, 13, 0, 3), 0x9999_aaaa_bbbb_cccc),
    (reg(3, 0, 14, 1, 0), 3),
    (reg(3, 0, 4, 1, 0), 0xdddd_eeee_ffff_0000),
    (reg(3, 0, 4, 0, 1), 0x0123_4567_89ab_cdec),
    (reg(3, 0, 4, 0, 0), 0x6000_03c5),
    (reg(3, 2, 0, 0, 0), 2),
    (reg(3, 3, 4, 4, 1), 0x0800_0011),
    (reg(3, 3, 4, 4, 0), 0x0300_0000),
];

fn system_registers_are_those_of_their_names() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    for &(register, value) in PLAIN {
        let name = Register::System(number(register));
        guest.write(register, value);
        guest.put();
        assert_eq!(read(&guest, name), value, "{register:?} as its host finds it");
        write(&guest, name, value & !1);
        guest.load();
        assert_eq!(guest.read(register), value & !1, "{register:?} as its guest finds it");
    }
    // What it stands on, and what is its stack: as the host finds it, and the guest.
    for register in [reg(3, 0, 1, 0, 0), reg(3, 0, 1, 0, 2), reg(3, 0, 12, 0, 0)] {
        let expected = guest.read(register);
        guest.put();
        assert_eq!(read(&guest, Register::System(number(register))), expected, "{register:?}");
        guest.load();
    }
    guest.put();
    write(&guest, Register::System(system(3, 4, 4, 1, 0)), 0x4242_0000);
    guest.load();
    // MOV x0, sp
    assert_eq!(guest.exec(0x9100_03e0, 0), 0x4242_0000, "SP_EL1");
    // Who it is, and what it is shown, is so for good.
    let shown = [sysreg::MPIDR, reg(3, 0, 0, 4, 0), reg(3, 0, 0, 6, 1), reg(3, 0, 0, 7, 0)];
    let shown = shown.map(|register| (register, guest.read(register)));
    guest.put();
    for (register, value) in shown {
        let name = Register::System(number(register));
        assert_eq!(read(&guest, name), value, "{register:?}");
        assert_eq!(try_write(&guest, name, value), Ok(()), "what it is anyway");
        assert_eq!(try_write(&guest, name, value ^ 1), Err(Error::InvalidArgument));
    }
    Ok(())
}

fn general_registers_arrive() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    guest.put();
    let code = guest.instruction_address();
    for n in 0..31 {
        // MOV x1, xn; HVC #0
        guest.write_code(&[0xaa00_03e1 | n << 16, insn::HVC]);
        let value = 0x1122_3344_5500_0000 | u64::from(n);
        write(&guest, Register::X(n as u8), value);
        write(&guest, Register::Pc, code);
        assert_eq!(read(&guest, Register::X(n as u8)), value);
        guest.load();
        let exit = loop {
            let exit = guest.try_enter(RunFlags::empty(), [value; 4]).expect("VCPU_RUN");
            if exit.info.reason() != Some(Reason::Irq) {
                break exit;
            }
        };
        assert_eq!(exit.info.reason(), Some(Reason::Hvc));
        // The call that is open takes x0 to x3 from its host.
        assert_eq!(exit.data[1], value, "X{n}");
        guest.put();
        assert_eq!(read(&guest, Register::Pc), code + 8, "behind its HVC");
        assert_eq!(read(&guest, Register::Pstate) & 0x1f, 5, "EL1h");
    }
    Ok(())
}

fn register_files_of_every_length() -> Result<(), Skip> {
    let lengths = context().common.iter().map(Some);
    for vq in [None].into_iter().chain(lengths) {
        let guest = Machine::normal().started(vq);
        guest.fill(7);
        let [fpsr, fpcr, ..] = guest.call(Routine::Status, [0; 3]);
        guest.put();
        let (vm, index) = (guest.machine.vm, guest.index);
        assert_eq!(read(&guest, Register::System(system(3, 3, 4, 4, 1))), fpsr);
        assert_eq!(read(&guest, Register::System(system(3, 3, 4, 4, 0))), fpcr);
        let mut buffer = [0; Layout::new(Vq::MAX).image_bytes()];
        let image = guest.expected_image(7, &mut buffer);
        for (register, offset, count) in places(vq) {
            let [low, high] = Hvc.vcpu_read(vm, index, raw(register)).expect("VCPU_READ");
            let found = (u128::from(low) | u128::from(high) << 64).to_le_bytes();
            assert_eq!(found[..count], image[offset..offset + count], "{register:?} at {vq:?}");
            assert!(found[count..].iter().all(|&byte| byte == 0), "{register:?} at {vq:?}");
        }
        let image = guest.expected_image(8, &mut buffer);
        for (register, offset, count) in places(vq) {
            let mut bytes = [0; 16];
            bytes[..count].copy_from_slice(&image[offset..offset + count]);
            let value = u128::from_le_bytes(bytes);
            let halves = [value as u64, (value >> 64) as u64];
            Hvc.vcpu_write(vm, index, raw(register), halves).expect("VCPU_WRITE");
            if count < 16 {
                let beyond = [halves[0], halves[1] | 1 << 63];
                let refused = Hvc.vcpu_write(vm, index, raw(register), beyond);
                assert_eq!(refused, Err(Error::InvalidArgument), "{register:?} at {vq:?}");
            }
        }
        let (fpsr, fpcr) = guest.expected_status(8);
        write(&guest, Register::System(system(3, 3, 4, 4, 1)), fpsr);
        write(&guest, Register::System(system(3, 3, 4, 4, 0)), fpcr);
        guest.load();
        guest.check(8);
        guest.put();
        let quadwords = vq.map_or(1, Vq::quadwords) as u8;
        for beyond in [
            Register::Z { n: 0, quadword: quadwords },
            Register::P { n: 0, quadword: vq.map_or(0, |_| quadwords.div_ceil(8)) },
        ] {
            let refused = Hvc.vcpu_read(vm, index, raw(beyond));
            assert_eq!(refused, Err(Error::BadRegister), "{beyond:?} at {vq:?}");
        }
        ledger::destroy_all();
    }
    Ok(())
}

/// Where a register is in an image: offset and bytes.
fn places(vq: Option<Vq>) -> impl Iterator<Item = (Register, usize, usize)> {
    let quadwords = vq.map_or(1, Vq::quadwords);
    let z_bytes = 16 * quadwords;
    let z = (0..32).flat_map(move |n: u8| {
        (0..quadwords as u8).map(move |quadword| {
            let offset = usize::from(n) * z_bytes + 16 * usize::from(quadword);
            (Register::Z { n, quadword }, offset, 16)
        })
    });
    let p = vq.into_iter().flat_map(|vq| {
        let layout = Layout::new(vq);
        (0..=FFR).flat_map(move |n| {
            (0..layout.p_bytes().div_ceil(16) as u8).map(move |quadword| {
                let start = if n == FFR { layout.ffr() } else { layout.p(n.into()) };
                let skipped = 16 * usize::from(quadword);
                let count = (layout.p_bytes() - skipped).min(16);
                (Register::P { n, quadword }, start + skipped, count)
            })
        })
    });
    z.chain(p)
}

fn the_clock_and_the_timer() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    guest.write(sysreg::CNTV_CVAL, 0x7777_0000);
    guest.write(sysreg::CNTV_CTL, 2);
    let before = guest.read(sysreg::CNTVCT);
    guest.put();
    let register = |op1, crn, crm, op2| Register::System(system(3, op1, crn, crm, op2));
    let (ctl, cval, offset) = (register(3, 14, 3, 1), register(3, 14, 3, 2), register(4, 14, 0, 3));
    assert_eq!((read(&guest, ctl), read(&guest, cval)), (2, 0x7777_0000));
    assert_eq!(try_write(&guest, ctl, 4), Err(Error::InvalidArgument), "ISTATUS is the timer's");
    write(&guest, cval, 0x1234_5678_0000);
    // Its clock is an hour further.
    let hour = 3600 * umbra_host::kernel::timer::frequency();
    write(&guest, offset, read(&guest, offset).wrapping_sub(hour));
    guest.load();
    assert_eq!(guest.read(sysreg::CNTV_CVAL), 0x1234_5678_0000);
    let after = guest.read(sysreg::CNTVCT);
    assert!((before + hour..before + 2 * hour).contains(&after), "{before} and {after}");
    guest.put();
    Ok(())
}

fn the_interface_of_interrupts() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    guest.write(sysreg::ICC_PMR, 0xa8);
    guest.write(sysreg::ICC_IGRPEN1, 1);
    guest.put();
    let vmcr = Register::System(system(3, 4, 12, 11, 7));
    let found = read(&guest, vmcr);
    assert_eq!((found >> 24, found & 3), (0xa8, 2), "VPMR, VENG1 and VENG0");
    assert_eq!(try_write(&guest, vmcr, found | 1 << 32), Err(Error::InvalidArgument));
    write(&guest, vmcr, found & !(0xff << 24) | 0x50 << 24 | 1);
    guest.load();
    assert_eq!(guest.read(sysreg::ICC_PMR), 0x50);
    assert_eq!(guest.read(sysreg::ICC_IGRPEN0), 1);
    guest.put();
    Ok(())
}

fn a_vcpu_is_on_or_off_and_keeps_the_rest() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    guest.write(reg(3, 0, 13, 0, 4), 0x4242);
    guest.put();
    let (vm, index) = (guest.machine.vm, guest.index);
    assert_eq!(read(&guest, Register::Power), 1);
    write(&guest, Register::X(9), 0x99);
    for bad in [2, u64::MAX] {
        assert_eq!(try_write(&guest, Register::Power, bad), Err(Error::InvalidArgument));
    }
    let wide = Hvc.vcpu_write(vm, index, raw(Register::Power), [1, 1]);
    assert_eq!(wide, Err(Error::InvalidArgument));
    for (n, spsr) in (0..).zip([(3, 1), (3, 2), (3, 0), (3, 3)]) {
        write(&guest, Register::System(system(3, 4, 4, spsr.0, spsr.1)), 0x1d3 + n);
    }
    for _ in 0..2 {
        write(&guest, Register::Power, 0);
        assert_eq!(read(&guest, Register::Power), 0);
        assert_eq!(Hvc.vcpu_load(vm, index), Err(Error::PoweredOff));
    }
    write(&guest, Register::Power, 1);
    assert_eq!((read(&guest, Register::Power), read(&guest, Register::X(9))), (1, 0x99));
    for (n, spsr) in (0..).zip([(3, 1), (3, 2), (3, 0), (3, 3)]) {
        let name = Register::System(system(3, 4, 4, spsr.0, spsr.1));
        assert_eq!(read(&guest, name), 0x1d3 + n, "one that nobody uses");
    }
    guest.load();
    assert_eq!(guest.read(reg(3, 0, 13, 0, 4)), 0x4242, "TPIDR_EL1");
    // It turns itself off; its host turns it on behind its call, as if that had failed.
    guest.smccc(Routine::Hvc, 0x8400_0002, [0; 3]).exit(Reason::CpuOff);
    guest.put();
    assert_eq!(read(&guest, Register::Power), 0);
    write(&guest, Register::Power, 1);
    guest.load();
    assert!(matches!(guest.resume(RunFlags::empty(), [0; 4]), Event::Done(_)));
    assert_eq!(guest.read(reg(3, 0, 13, 0, 4)), 0x4242, "it was not reset");
    guest.put();
    Ok(())
}

/// All that a vCPU is, read and written elsewhere: the guest goes on as if nothing had been.
fn a_vcpu_goes_on_in_another_vm() -> Result<(), Skip> {
    let vq = context().largest();
    let from = Machine::normal().started(vq);
    from.fill(3);
    from.write(reg(3, 0, 13, 0, 4), 0x0123_4567);
    from.put();
    let to = Machine::normal().vcpu(vq);
    let bytes = to.machine.bytes();
    to.memory(BASE, bytes).copy_from_slice(from.memory(BASE, bytes));
    umbra_host::kernel::sysreg::clean_to_poc(to.memory(BASE, bytes).as_ptr() as usize, bytes);
    let mut moved = 0;
    let kinds = [(0, 31), (1, 3), (2, 0x1_0000), (3, 32), (4, 17)];
    for (kind, count) in kinds {
        for n in 0..count {
            for quadword in 0..16 {
                let name = UntrustedRegister(kind << 32 | n << 8 | quadword);
                match Hvc.vcpu_read(from.machine.vm, from.index, name) {
                    Ok(value) => {
                        let written = Hvc.vcpu_write(to.machine.vm, to.index, name, value);
                        assert_eq!(written, Ok(()), "{:x?}", name.decode());
                        moved += 1;
                    }
                    Err(Error::BadRegister) => break,
                    Err(error) => panic!("{:x?}: {error}", name.decode()),
                }
            }
        }
    }
    assert!(moved > 31 + 3 + 56 + 24 + 32, "{moved} registers");
    // Where it waits for an answer; which call is open is no register.
    to.load();
    let nothing = [Routine::Nothing.address(), 0, 0, 0];
    write_x0_to_x3(&to, nothing);
    assert!(matches!(to.resume(RunFlags::empty(), nothing), Event::Done(_)));
    assert_eq!(to.read(reg(3, 0, 13, 0, 4)), 0x0123_4567, "TPIDR_EL1");
    to.in_place_of(&from).check(3);
    to.put();
    Ok(())
}

/// What an answer to a call would have done.
fn write_x0_to_x3(guest: &Puppet, x: [u64; 4]) {
    guest.put();
    for (n, value) in (0..).zip(x) {
        write(guest, Register::X(n), value);
    }
    guest.load();
}

fn r36_attack_registers_of_a_protected_vm() -> Result<(), Skip> {
    for sealed in [false, true] {
        let guest = Machine::new(VmConfig::protected()).vcpu(None);
        if sealed {
            Hvc.vm_seal(guest.machine.vm).expect("VM_SEAL");
        }
        for register in [
            Register::Pc,
            Register::X(0),
            Register::Z { n: 0, quadword: 0 },
            Register::System(system(3, 0, 1, 0, 0)),
        ] {
            let (vm, index) = (guest.machine.vm, guest.index);
            assert_eq!(Hvc.vcpu_read(vm, index, raw(register)), Err(Error::Protected));
            let written = Hvc.vcpu_write(vm, index, raw(register), [BASE, 0]);
            assert_eq!(written, Err(Error::Protected));
        }
    }
    Ok(())
}

/// An ERET with it would lead to EL2, or nowhere.
fn attack_a_pstate_that_is_no_guests() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    guest.put();
    let before = read(&guest, Register::Pstate);
    // EL2h, EL2t, EL3h, reserved modes, AArch32, bits without a meaning.
    for bad in [9, 8, 13, 12, 1, 2, 3, 6, 7, 0x10, 0x13, 0x1a, 5 | 1 << 14, 5 | 1 << 34, !0] {
        assert_eq!(
            try_write(&guest, Register::Pstate, bad),
            Err(Error::InvalidArgument),
            "{bad:#x}"
        );
        assert_eq!(read(&guest, Register::Pstate), before);
    }
    write(&guest, Register::Pstate, before | 1 << 31);
    guest.load();
    assert!(matches!(
        guest.resume(RunFlags::empty(), [Routine::Nothing.address(), 0, 0, 0]),
        Event::Done(_)
    ));
    guest.put();
    Ok(())
}

fn what_is_no_register_is_refused() -> Result<(), Skip> {
    let guest = Machine::normal().started(None);
    let (vm, index) = (guest.machine.vm, guest.index);
    let pc = raw(Register::Pc);
    assert_eq!(Hvc.vcpu_read(vm, index, pc), Err(Error::Busy), "it is loaded");
    assert_eq!(Hvc.vcpu_write(vm, index, pc, [BASE, 0]), Err(Error::Busy));
    guest.put();
    assert_eq!(Hvc.vcpu_read(vm, VcpuIndex(1), pc), Err(Error::BadVcpu));
    assert_eq!(Hvc.vcpu_read(VmHandle(vm.0 + 256), index, pc), Err(Error::BadVm));
    // HCR_EL2, VTTBR_EL2, TTBR0_EL2, ICH_HCR_EL2, CNTHCTL_EL2: none of a guest's.
    let others = [(1, 1, 0), (2, 1, 0), (2, 0, 0), (12, 11, 0), (14, 1, 0)];
    let others = others.map(|(crn, crm, op2)| raw(Register::System(system(3, 4, crn, crm, op2))));
    let bad = [5 << 32, 31 << 8, 1 << 32 | 3 << 8, 1, 2 << 32 | 0x1_0000 << 8, 1 << 40, u64::MAX];
    for name in bad.map(UntrustedRegister).into_iter().chain(others) {
        assert_eq!(Hvc.vcpu_read(vm, index, name), Err(Error::BadRegister), "{name:x?}");
        let written = Hvc.vcpu_write(vm, index, name, [0, 0]);
        assert_eq!(written, Err(Error::BadRegister), "{name:x?}");
    }
    assert_eq!(try_write(&guest, Register::Pc, BASE + 2), Err(Error::InvalidArgument));
    assert_eq!(Hvc.vcpu_write(vm, index, pc, [BASE, 1]), Err(Error::InvalidArgument));
    Ok(())
}
