//! What a vCPU does all day.

use crate::{TIMER_INTERRUPTS, fail, gic, hvc, off};
use core::{arch::asm, cell::UnsafeCell, sync::atomic::Ordering};
use umbra_patterns::{
    pattern::{Kept, Mismatch},
    protocol::{Argument, ECHO, Failure, MAX_VCPUS, REPORT, STOP, counter},
    regs::{Bench, Width, rdvl, set_vl},
    tag::Tag,
};
use umbra_shared::vl::Vq;

/// Counter ticks until the timer fires.
const TIMER_TICKS: u64 = 2000;
/// How long its interrupt may take, in seconds of which no more counts than this part from one look at
/// the counter to the next: the counter goes on while the vCPU doesn't run.
const TIMER_SECONDS: u64 = 30;
const TIMER_LOOKS: u64 = 10_000;

struct Benches([UnsafeCell<Bench>; MAX_VCPUS]);

// SAFETY: each vCPU uses its own element only.
unsafe impl Sync for Benches {}

static BENCHES: Benches = Benches([const { UnsafeCell::new(Bench::new()) }; MAX_VCPUS]);

struct Worker {
    bench: &'static mut Bench,
    tag: Tag,
    vcpu: u64,
    clamp: Option<Vq>,
    verified: u64,
    /// What the device's counters hold: 8-byte, 4-byte.
    sums: (u64, u32),
    exits: u64,
}

pub fn run(argument: &Argument) -> ! {
    let vcpu = usize::from(argument.vcpu);
    // SAFETY: this runs once per vCPU.
    let bench = unsafe { &mut *BENCHES.0[vcpu].get() };
    let mut worker = Worker {
        bench,
        tag: Tag { owner: argument.owner, generation: 0 },
        vcpu: vcpu as u64,
        clamp: argument.vq,
        verified: 0,
        sums: (0, 0),
        exits: 0,
    };
    loop {
        match worker.clamp {
            None => worker.iteration(Width::Fpsimd),
            Some(clamp) => {
                for len in 0..16 {
                    worker.select(Vq::from_len(len), clamp);
                    worker.iteration(Width::Sve);
                }
                for len in 0..clamp.len_field() {
                    worker.shrink(Vq::from_len(len), clamp);
                }
            }
        }
    }
}

impl Worker {
    /// Selects a VL and sees that the clamp holds: never more, and no less when more is asked for.
    fn select(&mut self, asked: Vq, clamp: Vq) -> Vq {
        let given = set_vl(asked);
        if given > asked || given > clamp || (asked >= clamp && given != clamp) {
            let (asked, given) = (asked.vl_bytes() as u64, given.vl_bytes() as u64);
            fail(Failure::VectorLength { asked, given });
        }
        given
    }

    fn next_tag(&mut self) -> Tag {
        self.tag.generation = self.tag.generation.wrapping_add(1);
        self.tag
    }

    fn iteration(&mut self, width: Width) {
        let tag = self.next_tag();
        self.bench.fill(tag, width);
        self.exit();
        let result = self.bench.check(tag, width, Kept::All, &[tag]);
        self.verified(result);
    }

    fn shrink(&mut self, low: Vq, clamp: Vq) {
        self.select(clamp, clamp);
        let tag = self.next_tag();
        self.bench.fill(tag, Width::Sve);
        let low = self.select(low, clamp);
        self.exit();
        self.select(clamp, clamp);
        let result = self.bench.check(tag, Width::Sve, Kept::UpTo(low), &[tag]);
        self.verified(result);
    }

    fn verified(&mut self, result: Result<(), Mismatch>) {
        if let Err(mismatch) = result {
            let mut failure = Failure::from(mismatch);
            if let (Failure::Register { vl, .. }, Some(_)) = (&mut failure, self.clamp) {
                *vl = rdvl().vl_bytes() as u64;
            }
            fail(failure);
        }
        self.verified += 1;
        if hvc([REPORT, self.verified, gic::from_others(), 0, 0, 0]) == STOP {
            off();
        }
    }

    /// Exits in one way after the other. The registers are full of patterns.
    fn exit(&mut self) {
        self.exits += 1;
        match self.exits % 6 {
            0 => self.timer(),
            1 => self.echo(),
            2 => self.mmio8(),
            3 => gic::send_sgis(),
            4 => gic::raise(),
            _ => self.mmio4(),
        }
    }

    fn echo(&mut self) {
        let answer = hvc([ECHO, self.exits, 0, 0, 0, 0]);
        if answer != self.exits + 1 {
            fail(Failure::Echo(answer));
        }
    }

    fn mmio8(&mut self) {
        count8(self.vcpu, self.exits << 33 | self.exits, &mut self.sums.0);
    }

    fn mmio4(&mut self) {
        let add = self.exits as u32 | 1 << 31;
        self.sums.1 = self.sums.1.wrapping_add(add);
        let address = counter(self.vcpu, 4);
        let found: u64;
        // A sign-extending load: what the host answers has to go through that, too.
        // SAFETY: as above.
        unsafe {
            asm!(
                "str {add:w}, [{at}]",
                "ldrsw {found}, [{at}]",
                add = in(reg) add,
                at = in(reg) address,
                found = out(reg) found,
                options(nostack),
            );
        }
        let expected = self.sums.1 as i32 as i64 as u64;
        if found != expected {
            fail(Failure::Mmio { expected, found });
        }
    }

    fn timer(&mut self) {
        let count = &TIMER_INTERRUPTS[self.vcpu as usize];
        let before = count.load(Ordering::Relaxed);
        let (mut last, frequency): (u64, u64);
        // SAFETY: reads the counter and its frequency.
        unsafe {
            asm!(
                "mrs {last}, cntvct_el0",
                "mrs {frequency}, cntfrq_el0",
                last = out(reg) last,
                frequency = out(reg) frequency,
                options(nostack),
            );
        }
        let mut passed = 0;
        arm_timer(TIMER_TICKS);
        while count.load(Ordering::Relaxed) == before {
            let now: u64;
            // SAFETY: reads the counter.
            unsafe { asm!("yield", "isb", "mrs {}, cntvct_el0", out(reg) now, options(nostack)) };
            passed += now.wrapping_sub(last).min(frequency / TIMER_LOOKS);
            last = now;
            if passed > TIMER_SECONDS * frequency {
                fail(Failure::Timer);
            }
        }
    }
}

/// Adds to the device's 8-byte counter, which then has to say `sum` plus that.
pub fn count8(vcpu: u64, add: u64, sum: &mut u64) {
    *sum = sum.wrapping_add(add);
    let found: u64;
    // SAFETY: the device's registers, at its guest-physical address.
    unsafe {
        asm!(
            "str {add}, [{at}]",
            "ldr {found}, [{at}]",
            add = in(reg) add,
            at = in(reg) counter(vcpu, 8),
            found = out(reg) found,
            options(nostack),
        );
    }
    if found != *sum {
        fail(Failure::Mmio { expected: *sum, found });
    }
}

/// Lets the virtual timer fire after so many ticks of the counter.
pub fn arm_timer(ticks: u64) {
    // SAFETY: arms the virtual timer, whose interrupt is handled.
    unsafe {
        asm!(
            "msr cntv_tval_el0, {ticks}",
            "msr cntv_ctl_el0, {one}",
            "isb",
            ticks = in(reg) ticks,
            one = in(reg) 1u64,
            options(nostack),
        );
    }
}
