// EL2's two exception vectors: one for while the host runs, one for while a guest runs.
//
// EL2 runs with interrupts masked and handles one exception at a time, so at an exception from a
// lower EL the stack pointer is where EL2 left it at its last ERET. An exception from EL2 itself is
// fatal. The stack it would push on may be the reason, so it is checked first: stacks are
// STACK_BYTES large and lie in the upper half of slots of twice that size, whose lower half is not
// mapped; inside a stack, bit STACK_SHIFT of an address is set.

.macro  vector_entry target:req
    .p2align 7
    b       \target
    // The rest of the slot traps, should anything ever jump there.
    .rept   31
    udf     #0
    .endr
.endm

.macro  fatal_entry kind:req
    .p2align 7
    sub     sp, sp, #{FATAL_FRAME_BYTES}
    add     sp, sp, x0                  // test sp without a free register:
    sub     x0, sp, x0                  // x0 = sp, sp = sp + x0
    tbz     x0, #{STACK_SHIFT}, 1f
    sub     x0, sp, x0                  // both back
    sub     sp, sp, x0
    str     x1, [sp, #8]
    mov     x1, #\kind
    b       fatal_common
1:  mov     x1, #\kind
    b       fatal_no_stack
    .p2align 7
.endm

.section .vectors, "ax"
.p2align 11
.global umbra_host_vectors
umbra_host_vectors:
    fatal_entry 0
    fatal_entry 1
    fatal_entry 2
    fatal_entry 3
    fatal_entry 4
    fatal_entry 5
    fatal_entry 6
    fatal_entry 7
    vector_entry host_sync              // lower EL, AArch64
    fatal_entry 9
    fatal_entry 10
    fatal_entry 11
    fatal_entry 12                      // EL1 in AArch32: never; its 32-bit EL0 comes above
    fatal_entry 13
    fatal_entry 14
    fatal_entry 15
// A slot that overflowed would have pushed us past this, which is an error.
.org umbra_host_vectors + 2048

.p2align 11
.global umbra_guest_vectors
umbra_guest_vectors:
    fatal_entry 16
    fatal_entry 17
    fatal_entry 18
    fatal_entry 19
    fatal_entry 20
    fatal_entry 21
    fatal_entry 22
    fatal_entry 23
    vector_entry umbra_guest_exit_sync        // lower EL, AArch64
    vector_entry umbra_guest_exit_irq
    vector_entry umbra_guest_exit_irq         // FIQ: the host's as well
    vector_entry umbra_guest_exit_serror
    vector_entry umbra_guest_exit_sync        // lower EL, AArch32
    vector_entry umbra_guest_exit_irq
    vector_entry umbra_guest_exit_irq
    vector_entry umbra_guest_exit_serror
// A slot that overflowed would have pushed us past this, which is an error.
.org umbra_guest_vectors + 2048

// For one instruction that may be UNDEFINED, at boot: behind it x0 is -1.
.p2align 11
umbra_probe_vectors:
.org umbra_probe_vectors + 0x200            // from EL2 itself, synchronous
    mrs     x1, elr_el2
    add     x1, x1, #4
    msr     elr_el2, x1
    mov     x0, #-1
    eret
    dsb     nsh
    isb
.org umbra_probe_vectors + 2048

.text

// DBGAUTHSTATUS_EL1 in x0, or -1: every CPU with debug has it, and not every emulator.
.global umbra_probe_dbgauthstatus
umbra_probe_dbgauthstatus:
    mrs     x2, vbar_el2
    ldr     x1, =umbra_probe_vectors
    msr     vbar_el2, x1
    isb
    mrs     x0, dbgauthstatus_el1
    msr     vbar_el2, x2
    isb
    ret

// The 32 bits at x0 in x0, or -1 if nothing answers there.
.global umbra_probe_device
umbra_probe_device:
    mrs     x2, vbar_el2
    ldr     x1, =umbra_probe_vectors
    msr     vbar_el2, x1
    isb
    ldr     w0, [x0]
    dsb     sy
    msr     vbar_el2, x2
    isb
    ret

// A synchronous exception from the host: everything it does that needs hyp. x0-x18 and x30 go into
// a HostFrame; x19-x29 are callee-saved for the handler, and go there as well at an abort: that may be an access
// which hyp carries out, from or to any register.
host_sync:
    sub     sp, sp, #{HOST_FRAME_BYTES}
    stp     x0, x1, [sp, #0]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x30, [sp, #144]
    mrs     x1, esr_el2
    mov     x0, sp
    lsr     w2, w1, #26
    cmp     w2, #{EC_HVC64}
    b.ne    host_trap
    bl      umbra_host_call
host_return:
    ldp     x0, x1, [sp, #0]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x30, [sp, #144]
    add     sp, sp, #{HOST_FRAME_BYTES}
    eret
    // Nothing is to be speculated past an ERET.
    dsb     nsh
    isb

host_trap:
    // x1 = ESR_EL2. Of what comes from the host only aborts have this bit of EC.
    tbnz    w1, #31, host_abort
    bl      umbra_host_trap
    b       host_return
host_abort:
    stp     x19, x20, [sp, #{HOST_FRAME_X19}]
    stp     x21, x22, [sp, #{HOST_FRAME_X19} + 16]
    stp     x23, x24, [sp, #{HOST_FRAME_X19} + 32]
    stp     x25, x26, [sp, #{HOST_FRAME_X19} + 48]
    stp     x27, x28, [sp, #{HOST_FRAME_X19} + 64]
    str     x29, [sp, #{HOST_FRAME_X19} + 80]
    bl      umbra_host_abort
    ldp     x19, x20, [sp, #{HOST_FRAME_X19}]
    ldp     x21, x22, [sp, #{HOST_FRAME_X19} + 16]
    ldp     x23, x24, [sp, #{HOST_FRAME_X19} + 32]
    ldp     x25, x26, [sp, #{HOST_FRAME_X19} + 48]
    ldp     x27, x28, [sp, #{HOST_FRAME_X19} + 64]
    ldr     x29, [sp, #{HOST_FRAME_X19} + 80]
    b       host_return

// To a host that starts on this CPU (boot, CPU_ON, resume): x0 for it. ELR, SPSR and all of EL1 are
// set. The stack is emptied; registers hold nothing of hyp.
// x0 = value for x0, x1 = stack top
.global umbra_enter_host_fresh
umbra_enter_host_fresh:
    mov     sp, x1
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, xzr
    .endr
    eret
    // Nothing is to be speculated past an ERET.
    dsb     nsh
    isb

// Takes an SError that is pending: x0 = whether there was one. In the window, and nowhere else, one at EL2 is no bug.
.global umbra_take_serror
umbra_take_serror:
    mov     x0, #0
    msr     daifclr, #4
    // It is taken here at the earliest and behind the ISB at the latest.
serror_window:
    isb
serror_window_end:
    msr     daifset, #4
    ret

fatal_common:
    // x1 = kind, [sp + 8] = x1, everything else as it was.
    cmp     x1, #{SERROR_AT_EL2}
    b.ne    1f
    stp     x2, x3, [sp, #16]
    mrs     x1, elr_el2
    adr     x2, serror_window
    adr     x3, serror_window_end
    cmp     x1, x2
    ccmp    x1, x3, #2, hs
    ldp     x2, x3, [sp, #16]
    mov     x1, #{SERROR_AT_EL2}
    b.hi    1f
    ldr     x1, [sp, #8]
    add     sp, sp, #{FATAL_FRAME_BYTES}
    adr     x0, serror_window_end
    msr     elr_el2, x0
    mov     x0, #1
    eret
    dsb     nsh
    isb
1:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    str     x30, [sp, #240]
    str     x0, [sp]
    mov     x0, sp
    bl      umbra_fatal_exception
    b       .

fatal_no_stack:
    // x0 = the broken SP, x1 = kind. The per-CPU emergency stack is the only one left; without a
    // per-CPU block (very early) there is the boot stack's end.
    mov     x2, x0
    mrs     x3, tpidr_el2
    cbz     x3, 1f
    ldr     x3, [x3, #{CPU_EMERGENCY_STACK}]
    mov     sp, x3
    mov     x0, x2
    bl      umbra_stack_overflow
1:  b       .
