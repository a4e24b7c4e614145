//! Protected guests of a Linux's, as `tests/linux` asks the monitor for them. From the same arguments `xtask` computes what they are
//! measured by.

use core::ffi::CStr;

/// A guest.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// The machine's arguments.
    pub machine: &'static [&'static CStr],
    /// The parts of its kernel's command line, with a space from each to the next.
    pub command_line: &'static [&'static CStr],
}

/// What every guest's kernel is told, and behind it come the words for its program.
pub const WORDS: &CStr = c"quiet panic=-1 rcupdate.rcu_cpu_stall_suppress=1 nowatchdog -- guest";
/// Where it says something.
pub const CONSOLE: &CStr = c"console=ttyS0";

/// One with a disk of Debian's user space, whose checksums it finds right, a network, and a virtio console, at which it talks. It keeps
/// patterns in its registers.
pub const DEBIAN: Guest = Guest {
    machine: &[
        c"--protected",
        c"--memory",
        c"512M",
        c"--cpus",
        c"2",
        c"--disk",
        c"/guest-root",
        c"--net",
        c"tap=tap0",
        c"--console",
        c"virtio",
    ],
    command_line: &[CONSOLE, WORDS, c"realm hvc echo ciphers cpus=2 times=1 processes=2 root"],
};

/// One that keeps patterns in its registers while others do.
pub const BESIDE: Guest = Guest {
    machine: &[c"--protected", c"--memory", c"256M", c"--cpus", c"2"],
    command_line: &[WORDS, c"realm ciphers cpus=2 times=8 processes=2"],
};
