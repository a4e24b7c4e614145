//! What `cargo xtask bench` measures, on the guest's side: one routine after the other as the host
//! says, timed with the guest's own counter.

use crate::{fail, hvc2};
use core::arch::global_asm;
use umbra_patterns::{
    protocol::{Argument, BENCH, BENCH_NEXT, DEVICE, Failure, Routine},
    regs::set_vl,
};

global_asm!(include_str!("bench.S"), DEVICE = const DEVICE);

macro_rules! loops {
    ($($name:ident),* $(,)?) => {
        // SAFETY: the loops of bench.S, written for this signature.
        unsafe extern "C" {
            $(fn $name(function: u64, iterations: u64) -> u64;)*
        }
    };
}

loops! {
    umbra_guest_bench_hvc_none, umbra_guest_bench_hvc_fpsimd, umbra_guest_bench_hvc_sve,
    umbra_guest_bench_mmio, umbra_guest_bench_trap, umbra_guest_bench_smc,
    umbra_guest_bench_spin, umbra_guest_bench_touch_none, umbra_guest_bench_touch_fpsimd,
    umbra_guest_bench_touch_sve, umbra_guest_bench_hvc_pauth, umbra_guest_bench_tick,
    umbra_guest_bench_idle_tick, umbra_guest_bench_interrupt, umbra_guest_bench_ipi,
    umbra_guest_bench_ipi_answer,
}

fn measure(routine: Routine, iterations: u64) -> u64 {
    let run = match routine {
        Routine::HvcNone => umbra_guest_bench_hvc_none,
        Routine::HvcFpsimd => umbra_guest_bench_hvc_fpsimd,
        Routine::HvcSve => umbra_guest_bench_hvc_sve,
        Routine::Mmio => umbra_guest_bench_mmio,
        Routine::Trap => umbra_guest_bench_trap,
        Routine::Smc => umbra_guest_bench_smc,
        Routine::Spin => umbra_guest_bench_spin,
        Routine::TouchNone => umbra_guest_bench_touch_none,
        Routine::TouchFpsimd => umbra_guest_bench_touch_fpsimd,
        Routine::TouchSve => umbra_guest_bench_touch_sve,
        Routine::HvcPauth => umbra_guest_bench_hvc_pauth,
        Routine::Tick => umbra_guest_bench_tick,
        Routine::IdleTick => umbra_guest_bench_idle_tick,
        Routine::Interrupt => umbra_guest_bench_interrupt,
        Routine::Ipi => umbra_guest_bench_ipi,
        Routine::IpiAnswer => umbra_guest_bench_ipi_answer,
    };
    // SAFETY: they use their stack, the device, the timer, vectors that they give back and FP registers, in which nothing
    // is kept here.
    unsafe { run(BENCH, iterations) }
}

pub fn run(argument: &Argument) -> ! {
    if let Some(vq) = argument.vq {
        // The largest that it may have.
        set_vl(vq);
    }
    let mut ticks = 0;
    loop {
        let [order, iterations] = hvc2([BENCH_NEXT, ticks, 0, 0, 0, 0]);
        let Some(routine) = Routine::decode(order) else { fail(Failure::Garbled(order)) };
        ticks = measure(routine, iterations);
    }
}
