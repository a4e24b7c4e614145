//! The first and only program of a Linux that runs as Umbra's host, or without Umbra for comparison.
//!
//! It is a static AArch64 program without libc, made of direct system calls. It is built for the
//! soft-float bare-metal target like everything else here: so the FP registers belong to the
//! patterns, in compiled code nothing else touches them.
//!
//! As `init` it looks at what Linux found ([`seen`]), tries to reach hyp's memory ([`reach`]), then
//! keeps several processes per CPU busy with patterns ([`stress`]) while CPUs go and come, until all
//! that is asked for has happened, says what it thinks of all that in the `@` protocol of the console (`tools/src/console.rs`), and ends the
//! machine. Asked for `bench`, it measures instead ([`bench`]).
//!
//! Arguments, behind `--` on the kernel's command line:
//!
//! | word | what |
//! |---|---|
//! | `cpus=N` | CPUs that the machine has |
//! | `times=N` | how often everything has to happen on each CPU ([`work`]) |
//! | `seconds=N` | how long the patterns run at least, for people |
//! | `processes=N` | processes per CPU |
//! | `umbra` | Umbra is underneath: its memory must be out of reach |
//! | `reboot` | end with a reset instead of a power-off |
//! | `bench` | measure |
//! | `devices` | use the disks and the network instead of the patterns ([`devices`]) |
//! | `vm` | run virtual machines ([`vm`]): `guests=N` beside the patterns, `rounds=N` of random ioctls, `kills=N` monitors; or `scenarios`, what a boot `costs`, or a `shell` |
//! | `el2` | it runs at EL2, and has Linux's own KVM |
//! | `guest` | it is a virtual machine, and may `probe`, `echo`, `wait`, use a disk's `root` or a `shell` there, and fill patterns |
//! | `ciphers` | the kernel's ciphers are among what happens to the patterns ([`cipher`]) |
//! | `withheld` | devices that reach memory are withheld: no patterns either |
//! | `disk=N`, `digest=N` | bytes of each disk, and what they come to (`umbra_patterns::digest`) |
//! | `file=N`, `file-digest=N` | the same of the file that the network has |

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "why something failed is a line of text, and there is no heap"
)]

mod bench;
mod cipher;
mod clock;
mod compat;
mod devices;
mod filled;
mod frame;
mod modules;
mod reach;
mod say;
mod seen;
mod signal;
mod start;
mod stress;
mod sys;
mod tagged;
mod vm;
mod work;
mod worker;

use start::Start;

/// What `init` does; the reason if it finds something wrong.
fn run(start: &Start) -> Result<(), say::Text> {
    sys::mount(c"proc", c"/proc");
    sys::mount(c"sysfs", c"/sys");
    sys::mount(c"devtmpfs", c"/dev");
    // From here on the console is ours: a kernel message in the middle of a line would break it.
    sys::quiet_kernel();
    if start.has("bench") {
        bench::run()?;
        return if start.has("devices") { devices::bench::run() } else { Ok(()) };
    }
    if start.has("guest") {
        vm::inside(start)?;
        return seen::check_after(start);
    }
    seen::check(start)?;
    if start.has("umbra") {
        reach::check()?;
        compat::check()?;
    }
    if start.has("vm") {
        vm::run(start)?;
    } else if start.has("devices") {
        devices::run(start)?;
    } else if !start.has("withheld") {
        stress::run(start)?;
    }
    seen::check_after(start)
}

fn main(start: &Start) -> ! {
    match run(start) {
        Ok(()) => say::line(format_args!("@verdict ok")),
        Err(why) => {
            seen::show_log();
            say::line(format_args!("@verdict failed: {why}"));
        }
    }
    sys::end_machine(start.has("reboot"))
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say::line(format_args!("@fatal process {}: {info}", sys::process()));
    sys::end_machine(false)
}
