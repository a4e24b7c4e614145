//! A 32-bit program above hyp: its first use of VFP traps to EL2 as anybody's does.

use crate::fail;
use crate::say::{self, Text};
use crate::sys::{self, Ended, Errno, File};

const fn u16s(bytes: &mut [u8], at: usize, value: u16) {
    let value = value.to_le_bytes();
    bytes[at] = value[0];
    bytes[at + 1] = value[1];
}

const fn u32s(bytes: &mut [u8], at: usize, value: u32) {
    u16s(bytes, at, value as u16);
    u16s(bytes, at + 2, (value >> 16) as u16);
}

/// A32: D0 and D15 get a pattern, the CPU idles for 20 ms, in which hyp (`umbra.displace`) takes the
/// registers away, and they must be back.
const CODE: [u32; 30] = [
    0xe304_1234, // movw r1, #0x4234
    0xe345_1678, // movt r1, #0x5678
    0xe1e0_8001, // mvn r8, r1
    0xec48_1b10, // vmov d0, r1, r8
    0xec41_8b1f, // vmov d15, r8, r1
    0xe3a0_0001, // mov r0, #1 (CLOCK_MONOTONIC)
    0xe3a0_1000, // mov r1, #0
    0xe28f_2044, // adr r2, the time below
    0xe3a0_3000, // mov r3, #0
    0xe300_7197, // movw r7, #407 (clock_nanosleep_time64)
    0xef00_0000, // svc #0
    0xe1a0_9000, // mov r9, r0
    0xe1e0_1008, // mvn r1, r8
    0xec54_3b10, // vmov r3, r4, d0
    0xec56_5b1f, // vmov r5, r6, d15
    0xe153_0001, // cmp r3, r1
    0x0154_0008, // cmpeq r4, r8
    0x0155_0008, // cmpeq r5, r8
    0x0156_0001, // cmpeq r6, r1
    0x0359_0000, // cmpeq r9, #0
    0x03a0_002a, // moveq r0, #42
    0x13a0_0001, // movne r0, #1
    0xe3a0_7001, // mov r7, #1 (exit)
    0xef00_0000, // svc #0
    0xeaff_fffe, // b .
    0,
    0, // seconds
    0,
    20_000_000, // nanoseconds
    0,
];

const HEADER: usize = 52 + 32;
const BYTES: usize = HEADER + 4 * CODE.len();
const BASE: u32 = 0x10000;

/// The program as an ELF file: one segment, header and all.
const PROGRAM: [u8; BYTES] = {
    let mut out = [0; BYTES];
    u32s(&mut out, 0, u32::from_le_bytes(*b"\x7fELF"));
    u32s(&mut out, 4, 0x0001_0101); // 32 bits, little-endian, version 1
    u16s(&mut out, 16, 2); // ET_EXEC
    u16s(&mut out, 18, 40); // EM_ARM
    u32s(&mut out, 20, 1);
    u32s(&mut out, 24, BASE + HEADER as u32); // entry
    u32s(&mut out, 28, 52); // program headers
    u32s(&mut out, 36, 0x0500_0200); // EABI 5
    u16s(&mut out, 40, 52);
    u16s(&mut out, 42, 32);
    u16s(&mut out, 44, 1);
    u32s(&mut out, 52, 1); // PT_LOAD
    u32s(&mut out, 60, BASE);
    u32s(&mut out, 64, BASE);
    u32s(&mut out, 68, BYTES as u32);
    u32s(&mut out, 72, BYTES as u32);
    u32s(&mut out, 76, 5); // read, execute
    u32s(&mut out, 80, 0x10000);
    let mut n = 0;
    while n < CODE.len() {
        u32s(&mut out, HEADER + 4 * n, CODE[n]);
        n += 1;
    }
    out
};

/// ENOEXEC: the kernel or the CPU runs no AArch32.
const ENOEXEC: Errno = Errno(8);
const NO_AARCH32: u8 = 77;
const GOOD: u8 = 42;

/// Runs it, where there is AArch32.
pub fn check() -> Result<(), Text> {
    let path = c"/aarch32";
    let written = File::program(path).and_then(|file| file.write(&PROGRAM));
    if written != Ok(BYTES) {
        fail!("the 32-bit program can't be written: {written:?}");
    }
    let child = match sys::fork() {
        Ok(Some(child)) => child,
        Ok(None) => match sys::execute(path) {
            ENOEXEC => sys::exit(NO_AARCH32),
            _ => sys::exit(1),
        },
        Err(error) => fail!("fork: {error:?}"),
    };
    let is = match sys::wait(child) {
        Ok(Ended::Exit(GOOD)) => "VFP-kept",
        Ok(Ended::Exit(NO_AARCH32)) => "none",
        ended => fail!("32-bit program: {ended:?}"),
    };
    say::line(format_args!("@seen what=AArch32 is={is}"));
    Ok(())
}
