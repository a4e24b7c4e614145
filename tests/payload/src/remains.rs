//! The end of a machine that guards a secret: `end=WAY` on the command line.
//!
//! A protected guest has pages full of [`secret`] and copies them on and on; one of its vCPUs runs on a
//! CPU of its own. Another CPU waits for an interrupt with all of them masked, or is suspended in
//! firmware, a third says all the time that it is alive.
//! Then the machine ends, in the way that was asked for, and whoever has its memory
//! (`tools/src/remains.rs`) looks whether anything is left.
//!
//! ```text
//! @end ready WAY                       the secret is there, and the end comes now
//! @end alive                           a CPU of the host's runs
//! ```

use crate::{
    context,
    puppet::{BASE, Machine as Vm},
    runner::{self, catch},
    workers,
};
use core::arch::asm;
use core::sync::atomic::{AtomicUsize, Ordering};
use smccc::{Smc, psci, smc64};
use umbra_host::{
    emit,
    hypercall::{Hvc, Hypervisor},
    kernel::{exception, machine::Machine, mmu, power, smp, sysreg, timer},
};
use umbra_shared::{
    PAGE_SIZE,
    call::VmConfig,
    exit::{Reason, RunFlags},
    firmware::secret,
};

/// Where the guest's code has its words, and where it copies them to: bytes from the start of a page.
const WORDS: u64 = 0x800;
/// Words of a page that are secret.
const SECRETS: u64 = (PAGE_SIZE as u64 - WORDS) / 8;

/// A64 for: for ever, copy the words from here to the page behind this one.
const CODE: [u32; 9] = [
    0x1000_4000, // adr x0, . + 0x800
    0x9140_0401, // add x1, x0, #1, lsl #12
    0xd280_0002, // mov x2, #0
    0xf862_6803, // 1: ldr x3, [x0, x2]
    0xf822_6823, // str x3, [x1, x2]
    0x9100_2042, // add x2, x2, #8
    0x9240_2842, // and x2, x2, #0x7ff
    0x17ff_fffc, // b 1b
    0x0000_0000, // udf
];

/// CPUs that have got where they stay.
static SETTLED: AtomicUsize = AtomicUsize::new(0);

/// Does what the command line says, and ends the machine.
pub fn main(machine: &'static Machine, way: &str) -> ! {
    exception::set_hook(runner::hook);
    if let Err(why) = catch(|| context::init(machine)) {
        emit!("@verdict failed: {why}");
        power::off()
    }
    let ended = catch(|| {
        if way != "look" {
            keep_a_secret(way);
        }
        end(way);
    });
    match ended {
        Ok(()) => emit!("@verdict failed: the machine goes on"),
        Err(why) => emit!("@verdict failed: {why}"),
    }
    power::off()
}

/// A page of the host's with the code and its words in it.
fn code() -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    for (place, word) in page.chunks_mut(4).zip(CODE) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    page
}

/// The words go where the guest will have them, and nowhere else: not through this stack.
fn write_secret(page: u64) {
    let words = mmu::linear::<u64>(page + WORDS);
    for n in 0..SECRETS {
        // SAFETY: a page of this test's, which is a guest's later.
        unsafe { words.add(n as usize).write_volatile(secret(n)) };
    }
}

/// Ends the machine, too.
fn keep_a_secret(way: &str) {
    assert_eq!(context::context().cpus, 4, "a machine of four CPUs");
    let vm = Vm::with_code_and(VmConfig::protected(), &code(), write_secret);
    let guest = vm.vcpu(None);
    workers::on_all(|cpu| match cpu {
        1 => {
            guest.load();
            loop {
                let exit = guest.try_enter(RunFlags::empty(), [0; 4]).expect("VCPU_RUN");
                assert_eq!(exit.info.reason(), Some(Reason::Irq));
            }
        }
        2 | 3 => {
            sysreg::mask_interrupts();
            SETTLED.fetch_add(1, Ordering::SeqCst);
            loop {
                let in_firmware = match way {
                    // Without its registers: it would come back as from CPU_ON.
                    "reset2" if power::suspend_is_extended() => Some(1 << 30),
                    "reset2" => Some(1 << 16),
                    // In standby: that returns to where it was called.
                    "late" => Some(0),
                    _ => None,
                };
                if cpu == 2
                    && let Some(state) = in_firmware
                {
                    let _ = power::cpu_suspend(state, smp::entry(), 2);
                }
                // One that is to be killed is silent first.
                if cpu == 2 || way == "killed" {
                    sysreg::wait_for_interrupt();
                } else {
                    // Whoever dies wants the console for itself.
                    let next = timer::now() + timer::frequency() / 500;
                    timer::wait_until(60, || timer::now() > next);
                    emit!("@end alive");
                }
            }
        }
        _ => {
            let settled = timer::wait_until(60, || SETTLED.load(Ordering::SeqCst) == 2);
            assert!(settled, "CPUs that do as they are told");
            // The guest has copied its words more than once by then.
            let copied = timer::now() + timer::frequency() / 5;
            timer::wait_until(60, || timer::now() > copied);
            assert!(exception::probe_read(vm.page(BASE)).is_err(), "the host has none of it");
            emit!("@end ready {way}");
            end(way);
        }
    });
}

fn end(way: &str) {
    match way {
        "off" | "look" => power::off(),
        "reset" | "late" => {
            let _ = psci::system_reset::<Smc>();
        }
        // SYSTEM_RESET2, SYSTEM_WARM_RESET. Where firmware hasn't got it, that is said and nothing is
        // stopped.
        "reset2" => {
            const SYSTEM_RESET2: u32 = 0xc400_0012;
            let answer = smc64(SYSTEM_RESET2, [0; 17])[0] as i32;
            if answer != -1 {
                return;
            }
            emit!("@end there is no SYSTEM_RESET2");
            let version = Hvc.version();
            assert!(version.is_ok(), "the host goes on");
            let _ = psci::system_reset::<Smc>();
        }
        // This firmware hurts whoever calls it so.
        "panic" => {
            let _ = psci::migrate_info_type::<Smc>();
        }
        // Somebody pulls the plug.
        "killed" => loop {
            // SAFETY: a hint.
            unsafe { asm!("wfi", options(nostack)) };
        },
        _ => {}
    }
}
