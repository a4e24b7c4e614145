//! An ITS and LPIs as a driver finds them, and hyp's side of each access: every register, every width.

use super::gic::map;
use crate::{
    context::{Counters, context, need_cpus},
    lpi::{
        CLEAR, DISCARD, INT, INV, VALID, aborts, driver, event, gicr, gits, mapd, mapti, movi,
        read, read32, taken, taken_on, write, write32,
    },
    runner::Skip,
    tests, workers,
};
use core::arch::{asm, global_asm};
use umbra_host::kernel::{layout, mmu, timer};
use umbra_shared::call::Counter;

tests![
    its_interrupts_arrive_on_every_cpu,
    its_commands_do_what_they_say,
    its_registers_are_as_written,
    its_tables_that_are_new_are_empty,
    its_takes_a_long_queue,
    lpis_survive_a_cpu_that_goes_and_comes,
    a_kernel_that_begins_anew_has_tables_of_its_own,
    gic_registers_from_and_to_every_register,
    gic_loads_extend_as_the_instruction_says,
    gic_accesses_of_other_widths_are_aborts,
    nobody_but_devices_sends_interrupts,
];

pub(super) fn its_interrupts_arrive_on_every_cpu() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    for cpu in 0..context().cpus {
        let (device, intid) = (0x100 + cpu as u64, 8200 + cpu as u64);
        map(driver, device, intid, cpu);
        for _ in 0..3 {
            driver.send(&[event(INT, device, 1), [0x05, 0, driver.target(cpu), 0]]);
            assert_eq!(taken_on(cpu, 1000), Some(intid), "CPU {cpu}");
        }
        assert_eq!(taken_on(cpu, 1), None, "CPU {cpu}");
    }
    Ok(())
}

fn its_commands_do_what_they_say() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    let last = context().cpus - 1;
    map(driver, 5, 8300, 0);
    driver.send(&[driver.mapc(9, last)]);
    // The configuration counts from INV on; GICR_INVLPIR is the redistributor's own.
    driver.configure(8300, false);
    driver.send(&[event(INV, 5, 1), event(INT, 5, 1)]);
    assert_eq!(taken(5), None, "disabled");
    driver.configure(8300, true);
    driver.send(&[event(INV, 5, 1)]);
    assert_eq!(taken(1000), Some(8300), "enabled while pending");
    driver.configure(8300, false);
    driver.send(&[[0x0d, 0, 0, 0], event(INT, 5, 1)]);
    assert_eq!(taken(5), None, "INVALL");
    driver.send(&[event(CLEAR, 5, 1)]);
    driver.configure(8300, true);
    driver.send(&[event(INV, 5, 1)]);
    assert_eq!(taken(5), None, "CLEAR");
    driver.send(&[movi(5, 1, 9), event(INT, 5, 1)]);
    assert_eq!(taken_on(last, 1000), Some(8300), "MOVI");
    driver.send(&[event(DISCARD, 5, 1), event(INT, 5, 1)]);
    assert_eq!(taken_on(last, 5), None, "DISCARD");
    driver.send(&[mapti(5, 2, 8301, 9), [5 << 32 | 0x08, 0, 0, 0], event(INT, 5, 2)]);
    assert_eq!(taken_on(last, 5), None, "MAPD without V");
    // MAPI: the interrupt has the event's number, which 14 bits hold.
    driver.configure(8302, true);
    driver.send(&[
        [6 << 32 | 0x08, 13, VALID, 0],
        [6 << 32 | 0x0b, 8302, 9, 0],
        event(INT, 6, 8302),
    ]);
    assert_eq!(taken_on(last, 1000), Some(8302), "MAPI");
    driver.send(&[[6 << 32 | 0x08, 0, 0, 0]]);
    // What is an error is one command's.
    driver.send(&[
        event(INT, 77, 0),
        mapti(5, 16, 8300, 0),
        [0x21, u64::MAX, u64::MAX, u64::MAX],
        [0xff, 0, 0, 0],
        mapd(5, driver.itt),
        mapti(5, 3, 8301, 9),
        event(INT, 5, 3),
    ]);
    driver.configure(8301, true);
    driver.send(&[event(INV, 5, 3)]);
    assert_eq!(taken_on(last, 1000), Some(8301));
    Ok(())
}

fn its_registers_are_as_written() -> Result<(), Skip> {
    let driver = driver()?;
    write32(driver.its(gits::CTLR), 0);
    assert!(matches!(read32(driver.its(gits::PIDR2)) >> 4 & 0xf, 3 | 4));
    let typer = read(driver.its(gits::TYPER));
    assert_eq!(typer & 3, 1, "physical LPIs and no virtual ones");
    assert_eq!(u64::from(read32(driver.its(gits::TYPER))), typer & 0xffff_ffff);
    let devices = driver.baser(1);
    let fixed = read(devices) & (7 << 56 | 0x1f << 48);
    for value in
        [VALID | 7 << 59 | 0x4321_0000 | 1 << 10 | 2 << 8 | 7, 0x1234_5000, VALID | 3 << 10]
    {
        write(devices, value | 1 << 62);
        assert_eq!(read(devices), value | fixed, "with one level");
        write(driver.its(gits::CBASER), value & !(3 << 8));
        assert_eq!(read(driver.its(gits::CBASER)), value & !(3 << 8));
    }
    assert_eq!(read(driver.its(gits::CREADR)), 0);
    // None of a GICv4's.
    assert!((0..8).all(|n| read(driver.its(gits::BASER + 8 * n)) >> 56 & 7 != 2));
    let rd = driver.rd(0, 0);
    let (ctlr, pidr2) = (read32(rd), read32(rd + gits::PIDR2));
    assert!(matches!(pidr2 >> 4 & 0xf, 3 | 4));
    // A redistributor's other registers take nothing.
    for offset in (0x100..0x1_0000).step_by(4) {
        write32(rd + offset, u32::MAX);
    }
    assert_eq!((read32(rd), read32(rd + gits::PIDR2)), (ctlr, pidr2));
    assert_eq!(read32(rd + gicr::WAKER) & 6, 0, "awake");
    driver.begin();
    Ok(())
}

fn its_tables_that_are_new_are_empty() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    map(driver, 3, 8192, 0);
    driver.send(&[event(INT, 3, 1)]);
    assert_eq!(taken(1000), Some(8192));
    // Off for a while, with the same tables.
    write32(driver.its(gits::CTLR), 0);
    write32(driver.its(gits::CTLR), 1);
    driver.send(&[event(INT, 3, 1)]);
    assert_eq!(taken(1000), Some(8192));
    driver.begin();
    driver.send(&[event(INT, 3, 1)]);
    assert_eq!(taken(5), None);
    map(driver, 3, 8192, 0);
    driver.send(&[event(INT, 3, 1)]);
    assert_eq!(taken(1000), Some(8192));
    Ok(())
}

/// More than one access does; round the end of the queue many times.
fn its_takes_a_long_queue() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    map(driver, 3, 8192, 0);
    for _ in 0..5 {
        driver.send(&[event(CLEAR, 3, 1); 126]);
    }
    driver.send(&[event(INT, 3, 1)]);
    assert_eq!(taken(1000), Some(8192));
    // As many devices as there is room for, and then no more.
    for device in (0..1200).step_by(100) {
        let hundred: [_; 100] = core::array::from_fn(|n| mapd(device + n as u64, 0));
        driver.send(&hundred);
        driver.send(&hundred.map(|command| [command[0], 0, 0, 0])[..device as usize / 100]);
    }
    for device in (0..1200).step_by(100) {
        driver.send(&core::array::from_fn::<_, 100, _>(|n| {
            [(device + n as u64) << 32 | 0x08, 0, 0, 0]
        }));
    }
    map(driver, 3, 8192, 0);
    driver.send(&[event(INT, 3, 1)]);
    assert_eq!(taken(1000), Some(8192));
    Ok(())
}

fn lpis_survive_a_cpu_that_goes_and_comes() -> Result<(), Skip> {
    need_cpus(2)?;
    let driver = driver()?;
    driver.enable_lpis();
    driver.begin();
    map(driver, 3, 8192, 1);
    for _ in 0..3 {
        workers::off(1);
        assert!(timer::wait_until(30, || super::fp_smp::is_off(1)), "CPU 1 does not go off");
        driver.send(&[movi(3, 1, 0), driver.mapc(0, 0), event(INT, 3, 1)]);
        driver.send(&[movi(3, 1, 0), event(INT, 3, 1)]);
        assert_eq!(taken(1000), Some(8192));
        workers::on_again(1);
        driver.enable_lpis_of(1);
        driver.send(&[movi(3, 1, 1), event(INT, 3, 1)]);
        assert_eq!(taken_on(1, 1000), Some(8192));
    }
    Ok(())
}

/// As after a kexec: the other CPUs are off, and their redistributors are as the old kernel has left them.
fn a_kernel_that_begins_anew_has_tables_of_its_own() -> Result<(), Skip> {
    let driver = driver()?;
    driver.enable_lpis();
    for table in [driver.second, driver.configuration] {
        driver.begin();
        for cpu in 0..context().cpus {
            write32(driver.rd(cpu, gicr::CTLR), 0);
            driver.enable_lpis_with(cpu, table);
            let other = driver.rd((cpu + 1) % context().cpus, gicr::CTLR);
            let expected = u32::from(cpu + 1 == context().cpus);
            assert_eq!(
                read32(other) & 1,
                expected,
                "none has the old table, once CPU {cpu} has the new"
            );
        }
        // SAFETY: the table is the driver's.
        unsafe { mmu::linear::<u8>(table + 8).write_volatile(0x23) };
        for cpu in 0..context().cpus {
            driver.send(&[driver.mapc(0, cpu), mapd(3, driver.itt), mapti(3, 1, 8200, 0)]);
            driver.send(&[event(INV, 3, 1), event(INT, 3, 1)]);
            assert_eq!(taken_on(cpu, 1000), Some(8200), "CPU {cpu}");
        }
    }
    Ok(())
}

global_asm!(
    ".macro through n, a",
    // x0 = address, x1 = value -> x1 what comes back into the register.
    "    stp     x\\n, x30, [sp, #-16]!",
    "    mov     \\a, x0",
    "    mov     x\\n, x1",
    "    str     x\\n, [\\a]",
    "    mov     x\\n, xzr",
    "    ldr     x\\n, [\\a]",
    "    mov     x1, x\\n",
    "    .if     \\n > 17",
    "    ldp     x\\n, x30, [sp], #16",
    "    .else",
    "    add     sp, sp, #16",
    "    .endif",
    "    ret",
    "    .p2align 5",
    ".endm",
    ".pushsection .text",
    ".p2align 5",
    "umbra_through:",
    ".irp n, 0,1,2,3,4,5,6,7,8,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "    through \\n, x9",
    ".endr",
    "    through 9, x10",
    ".popsection",
);

unsafe extern "C" {
    static umbra_through: u8;
}

fn gic_registers_from_and_to_every_register() -> Result<(), Skip> {
    let driver = driver()?;
    write32(driver.its(gits::CTLR), 0);
    let address = driver.its(gits::CBASER);
    let before = Counters::now();
    for n in 0..31u64 {
        let value = VALID | (0x1000 * (n + 1)) | n;
        let found: u64;
        // SAFETY: a routine of 32 bytes and some; one of its own for each register, all of the same size; it stores
        // to a register of the GIC and loads it. What it uses is saved or clobbered.
        unsafe {
            let routine = (&raw const umbra_through).addr() as u64 + 64 * n;
            asm!("blr {}", in(reg) routine, inout("x0") layout::device::<u8>(address).as_ptr() => _,
                inout("x1") value => found, clobber_abi("C"));
        }
        assert_eq!((found, read(address)), (value, value), "routine {n}");
    }
    assert_eq!(before.since(Counter::GicTraps), 3 * 31);
    // SAFETY: XZR, stored and loaded.
    unsafe {
        asm!("str xzr, [{0}]", "ldr xzr, [{0}]", in(reg) layout::device::<u8>(address).as_ptr());
    }
    assert_eq!(read(address), 0);
    driver.begin();
    Ok(())
}

fn gic_loads_extend_as_the_instruction_says() -> Result<(), Skip> {
    let driver = driver()?;
    write32(driver.its(gits::CTLR), 0);
    let register = driver.its(gits::CBASER);
    write(register, VALID | 0xf000_1003);
    let address = layout::device::<u8>(register).as_ptr();
    let (word, signed, high): (u64, u64, u64);
    // SAFETY: loads of a register that hyp emulates.
    unsafe {
        asm!("mov {1}, #-1", "ldr {1:w}, [{0}]", "ldrsw {2}, [{0}]", "ldrsw {3}, [{0}, #4]",
            in(reg) address, out(reg) word, out(reg) signed, out(reg) high);
    }
    assert_eq!(word, 0xf000_1003);
    assert_eq!(signed, 0xffff_ffff_f000_1003);
    assert_eq!(high, 0xffff_ffff_8000_0000);
    driver.begin();
    Ok(())
}

fn gic_accesses_of_other_widths_are_aborts() -> Result<(), Skip> {
    let driver = driver()?;
    let before = Counters::now();
    for pa in [driver.its(gits::CBASER), driver.rd(0, gicr::PENDBASER)] {
        let at = layout::device::<u8>(pa).as_ptr();
        // SAFETY: they end in an abort, which is seen to.
        unsafe {
            assert!(aborts(|| asm!("strb wzr, [{}]", in(reg) at)), "{pa:#x}");
            assert!(aborts(|| asm!("strh wzr, [{}]", in(reg) at)), "{pa:#x}");
            assert!(aborts(|| asm!("stp xzr, xzr, [{}]", in(reg) at)), "{pa:#x}");
            assert!(aborts(|| asm!("str xzr, [{0}], #8", inout(reg) at => _)), "{pa:#x}");
        }
    }
    let its = layout::device::<u8>(driver.its(gits::CBASER)).as_ptr();
    // SAFETY: as above.
    unsafe {
        assert!(aborts(|| asm!("ldrb {0:w}, [{1}]", out(reg) _, in(reg) its)));
        assert!(aborts(|| asm!("ldp {0}, {1}, [{2}]", out(reg) _, out(reg) _, in(reg) its)));
    }
    assert_eq!(before.since(Counter::HostAborts), 10);
    Ok(())
}

fn nobody_but_devices_sends_interrupts() -> Result<(), Skip> {
    let driver = driver()?;
    assert!(aborts(|| write32(driver.its(gits::TRANSLATER), 0)), "GITS_TRANSLATER");
    assert!(aborts(|| _ = read32(driver.its(gits::TRANSLATER))));
    Ok(())
}
