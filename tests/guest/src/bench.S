// The loops that `cargo xtask bench` measures. x0 = function ID of the HVC, x1 = iterations; returns
// the counter's ticks.
//
// What is between the labels umbra_guest_begin_* and umbra_guest_end_* is what counts; a traced run
// counts it from outside (tools/src/bench/trace.rs). The counter is read right before and behind it.

.macro  enter_loop
    stp     x19, x20, [sp, #-64]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x30, [sp, #48]
    mov     x19, x0
    mov     x20, x1
.endm

.macro  leave_loop
    ldp     x25, x30, [sp, #48]
    ldp     x23, x24, [sp, #32]
    ldp     x21, x22, [sp, #16]
    ldp     x19, x20, [sp], #64
    ret
.endm

// What is measured is between these two: `iterations` times. Leaves what the counter went on by in x0.
.macro  measured name:req
    .global umbra_guest_bench_\name
    .global umbra_guest_begin_\name
    .global umbra_guest_end_\name
    isb
    mrs     x21, cntvct_el0
umbra_guest_begin_\name:
.endm

.macro  measured_end name:req
    subs    x20, x20, #1
    b.ne    umbra_guest_begin_\name
umbra_guest_end_\name:
    isb
    mrs     x0, cntvct_el0
    sub     x0, x0, x21
.endm

// `iterations` times `work` (up to three instructions).
.macro  bench_loop name:req, first:vararg
umbra_guest_bench_\name:
    enter_loop
    mov     x22, #{DEVICE}
    measured \name
    \first
.endm

.macro  bench_loop_end name:req
    measured_end \name
    leave_loop
.endm

bench_loop hvc_none, mov x0, x19
    hvc     #0
bench_loop_end hvc_none

// The same by a guest that uses pointer authentication: it has read one of its keys.
    .arch_extension pauth
.global umbra_guest_bench_hvc_pauth
umbra_guest_bench_hvc_pauth:
    mrs     x2, apiakeylo_el1
    b       umbra_guest_bench_hvc_none

// A load that only the host can answer.
bench_loop mmio, ldr x0, [x22]
bench_loop_end mmio

// ID_AA64PFR0_EL1: trapped, and answered by hyp.
bench_loop trap, mrs x0, id_aa64pfr0_el1
bench_loop_end trap

// A call that hyp refuses without its host: unknown SMC.
bench_loop smc, mov x0, x19
    smc     #0
bench_loop_end smc

// Nothing but turns: for interrupts to stop. It never ends by itself.
.global umbra_guest_bench_spin
umbra_guest_bench_spin:
    b       umbra_guest_bench_spin

// Interrupts are taken at vectors of the loop's own, whose handler does `before_end` between the acknowledgement and the end
// and leaves 1 in x23.
.macro  handler name:req, before_end:vararg
    .balign 0x800
guest_bench_vectors_\name:
    .org    guest_bench_vectors_\name + 0x280  // IRQ, at the current EL with SP_ELx
    mrs     x0, s3_0_c12_c12_0              // ICC_IAR1_EL1
    \before_end
    msr     s3_0_c12_c12_1, x0              // ICC_EOIR1_EL1
    mov     x23, #1
    eret
    .org    guest_bench_vectors_\name + 0x800
.endm

// The timer's line must be down before its interrupt is ended.
.macro  timer_off
    msr     cntv_ctl_el0, xzr
    isb
.endm

handler timer, timer_off
handler edge, nop

// With x24 = 1, x25 = some 30 ns, and the timer's time in the past.
.macro  enter_interrupts handler:req
    enter_loop
    mrs     x22, vbar_el1
    adr     x0, guest_bench_vectors_\handler
    msr     vbar_el1, x0
    mov     x0, #0xf8
    msr     s3_0_c4_c6_0, x0                // ICC_PMR_EL1
    mov     x24, #1
    msr     s3_0_c12_c12_7, x24             // ICC_IGRPEN1_EL1
    msr     cntv_cval_el0, xzr
    mrs     x25, cntfrq_el0
    lsr     x25, x25, #25
    add     x25, x25, #1
    mov     x23, #0
    msr     daifclr, #2
    isb
.endm

// `iterations` times `order` and the interrupt that comes of it, after a first time that doesn't count: from then on each
// turn begins with what the one before has left to the host.
.macro  interrupt_loop name:req, handler:req, order:vararg
umbra_guest_bench_\name:
    enter_interrupts \handler
    \order
5:  cbz     x23, 5b
    mov     x23, #0
    measured \name
    \order
3:  cbz     x23, 3b
    mov     x23, #0
    measured_end \name
    msr     daifset, #2
    msr     vbar_el1, x22
    isb
    leave_loop
.endm

.macro  arm_timer
    msr     cntv_ctl_el0, x24
    isb
.endm

// It fires after WFI, and before hyp looks.
.macro  arm_timer_and_wait
    msr     cntv_tval_el0, x25
    msr     cntv_ctl_el0, x24
    isb
    wfi
.endm

.macro  call
    mov     x0, x19
    hvc     #0
.endm

// INTID 0 to the vCPU whose Aff0 is 1, 0.
.macro  send_and_wait list:req
    mov     x0, #\list
    msr     s3_0_c12_c11_5, x0              // ICC_SGI1R_EL1
    isb
    wfi
.endm

interrupt_loop tick, timer, arm_timer
interrupt_loop idle_tick, timer, arm_timer_and_wait
interrupt_loop interrupt, edge, call
interrupt_loop ipi, edge, send_and_wait 2

.global umbra_guest_bench_ipi_answer
umbra_guest_bench_ipi_answer:
    enter_interrupts edge
    wfi
4:  cbz     x23, 4b
    mov     x23, #0
    send_and_wait 1
    b       4b

.arch_extension simd
bench_loop hvc_fpsimd, add v0.16b, v0.16b, v0.16b
    mov     x0, x19
    hvc     #0
bench_loop_end hvc_fpsimd

.arch_extension sve
bench_loop hvc_sve, add z0.b, z0.b, z0.b
    mov     x0, x19
    hvc     #0
bench_loop_end hvc_sve

// One instruction between two readings of the counter, then an exit. A counter tick may be many
// instructions: each turn begins a different number of instructions later than the last (0 to 15), so
// that over sixteen turns the roundings cancel out.
.macro  touch_loop name:req, insn:vararg
    .global umbra_guest_bench_\name
    .global umbra_guest_begin_\name
    .global umbra_guest_end_\name
umbra_guest_bench_\name:
    enter_loop
    mov     x21, #0
1:  and     x0, x20, #15
    adr     x1, 2f
    sub     x1, x1, x0, lsl #2
    br      x1
    .rept   15
    nop
    .endr
2:  mrs     x22, cntvct_el0
umbra_guest_begin_\name:
    \insn
umbra_guest_end_\name:
    mrs     x0, cntvct_el0
    sub     x0, x0, x22
    add     x21, x21, x0
    mov     x0, x19
    hvc     #0
    subs    x20, x20, #1
    b.ne    1b
    mov     x0, x21
    leave_loop
.endm

touch_loop touch_none, nop
touch_loop touch_sve, add z0.b, z0.b, z0.b
.arch_extension nosve
touch_loop touch_fpsimd, add v0.16b, v0.16b, v0.16b
