// The puppet: a guest that does one thing at a time, as the host tells it through its HVCs.
//
// Its loop makes an HVC; the host answers with x0 = the address of a routine below and x1-x3 =
// arguments; what the routine leaves in x0-x4 the host finds in x1-x5 at the next HVC. x0 tells why it called
// (and is no function of hyp's): PUPPET_DONE, PUPPET_EXCEPTION (x1-x5 = ESR, ELR, SPSR, FAR, the vector's
// number) or PUPPET_IRQ (x1 = ICC_IAR1_EL1).
// Everything is position-independent and runs with the MMU off: all accesses are aligned.

.section .rodata.puppet, "a", %progbits
.balign 4096
.global umbra_puppet_start
umbra_puppet_start:
    adr     x1, umbra_puppet_vectors
    msr     vbar_el1, x1
    mov     x1, #(3 << 20)                  // CPACR_EL1.FPEN
    orr     x1, x1, #(3 << 16)              // .ZEN
    orr     x1, x1, #(3 << 24)              // .SMEN
    msr     cpacr_el1, x1
    isb
puppet_loop:
    mov     x5, x4
    mov     x4, x3
    mov     x3, x2
    mov     x2, x1
    mov     x1, x0
    mov     x0, #{DONE}
    hvc     #0
    blr     x0
    b       puppet_loop

// An entry: tells what a vCPU finds there, x0, DAIF and SCTLR_EL1; x0 = 0x4a3.
.global umbra_puppet_raw
umbra_puppet_raw:
    mov     x1, x0
    mrs     x2, daif
    mrs     x3, sctlr_el1
    mov     x0, #0x4a3
    hvc     #0
    b       umbra_puppet_raw

// Nothing.
.global umbra_puppet_nothing
umbra_puppet_nothing:
    ret

// A call: x0 = x20, x1-x3.
.global umbra_puppet_hvc
umbra_puppet_hvc:
    mov     x0, x20
    hvc     #0
    ret
.global umbra_puppet_smc
umbra_puppet_smc:
    mov     x0, x20
    smc     #0
    ret

// x1 = an area that nothing else uses, x2 = an instruction. Executes it with x0 = x3 and x1 = x20.
.global umbra_puppet_exec
umbra_puppet_exec:
    str     w2, [x1]
    mov     w4, #0x03c0                     // RET
    movk    w4, #0xd65f, lsl #16
    str     w4, [x1, #4]
    dc      cvau, x1
    dsb     ish
    ic      ivau, x1
    dsb     ish
    isb
    mov     x21, x30
    mov     x22, x1
    mov     x0, x3
    mov     x1, x20
    mov     x2, #0                          // of a call, reserved
    mov     x3, #0
    blr     x22
    mov     x30, x21
    ret

// x1 = what x1 is when the next instruction is executed.
.global umbra_puppet_address
umbra_puppet_address:
    mov     x20, x1
    ret

.arch_extension sve
// x1 = image. Returns the VL.
.global umbra_puppet_fill_sve
umbra_puppet_fill_sve:
    addvl   x2, x1, #31
    addvl   x2, x2, #1
    ldr     p0, [x2, #16, mul vl]
    wrffr   p0.b
// The same without FFR, for streaming mode.
.global umbra_puppet_fill_streaming
umbra_puppet_fill_streaming:
    addvl   x2, x1, #31
    addvl   x2, x2, #1
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    ldr     p\n, [x2, #\n, mul vl]
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    ldr     z\n, [x1, #\n, mul vl]
.endr
    rdvl    x0, #1
    ret

// x1 = buffer. Returns the VL.
.global umbra_puppet_dump_sve
umbra_puppet_dump_sve:
    mov     x3, x30
    bl      umbra_puppet_dump_streaming
    rdffr   p0.b
    str     p0, [x2, #16, mul vl]
    ldr     p0, [x2]
    ret     x3

// The same without FFR, for streaming mode. x2 = where P0 went.
.global umbra_puppet_dump_streaming
umbra_puppet_dump_streaming:
    addvl   x2, x1, #31
    addvl   x2, x2, #1
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     z\n, [x1, #\n, mul vl]
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    str     p\n, [x2, #\n, mul vl]
.endr
    rdvl    x0, #1
    ret

// x1 = ZCR_EL1. Returns the VL.
.global umbra_puppet_set_zcr
umbra_puppet_set_zcr:
    msr     s3_0_c1_c2_0, x1
    isb
.global umbra_puppet_rdvl
umbra_puppet_rdvl:
    rdvl    x0, #1
    ret

.arch_extension sme
.arch_extension sme2
// x1 = SVCR.
.global umbra_puppet_set_svcr
umbra_puppet_set_svcr:
    msr     svcr, x1
    ret

// Returns SVCR.
.global umbra_puppet_svcr
umbra_puppet_svcr:
    mrs     x0, svcr
    ret

// x1 = SMCR_EL1. Returns the SVL.
.global umbra_puppet_set_smcr
umbra_puppet_set_smcr:
    msr     s3_0_c1_c2_6, x1
    isb
.global umbra_puppet_rdsvl
umbra_puppet_rdsvl:
    rdsvl   x0, #1
    ret

// x1 = rows of ZA, one behind the other.
.global umbra_puppet_fill_za
umbra_puppet_fill_za:
    rdsvl   x2, #1
    mov     w12, #0
5:  ldr     za[w12, 0], [x1]
    add     x1, x1, x2
    add     w12, w12, #1
    cmp     w12, w2
    b.lo    5b
    ret

// x1 = buffer.
.global umbra_puppet_dump_za
umbra_puppet_dump_za:
    rdsvl   x2, #1
    mov     w12, #0
6:  str     za[w12, 0], [x1]
    add     x1, x1, x2
    add     w12, w12, #1
    cmp     w12, w2
    b.lo    6b
    ret

// x1 = 64 bytes.
.global umbra_puppet_fill_zt0
umbra_puppet_fill_zt0:
    ldr     zt0, [x1]
    ret

// x1 = buffer.
.global umbra_puppet_dump_zt0
umbra_puppet_dump_zt0:
    str     zt0, [x1]
    ret
.arch_extension nosme2
.arch_extension nosme
.arch_extension nosve

.arch_extension fp
.arch_extension simd
// x1 = image of V0-V31.
.global umbra_puppet_fill_fpsimd
umbra_puppet_fill_fpsimd:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    ldr     q\n, [x1, #(16 * \n)]
.endr
    ret

// x1 = buffer.
.global umbra_puppet_dump_fpsimd
umbra_puppet_dump_fpsimd:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     q\n, [x1, #(16 * \n)]
.endr
    ret

// x1 = FPSR, x2 = FPCR.
.global umbra_puppet_set_status
umbra_puppet_set_status:
    msr     fpsr, x1
    msr     fpcr, x2
    ret

// Returns FPSR, FPCR.
.global umbra_puppet_status
umbra_puppet_status:
    mrs     x0, fpsr
    mrs     x1, fpcr
    ret

// x1, x2 = areas, x3 = bytes. Returns the first offset at which they differ, or x3.
.global umbra_puppet_compare
umbra_puppet_compare:
    mov     x0, #0
1:  cmp     x0, x3
    b.hs    2f
    ldrb    w4, [x1, x0]
    ldrb    w6, [x2, x0]
    cmp     w4, w6
    b.ne    2f
    add     x0, x0, #1
    b       1b
2:  ret

// x1 = 31 words. Fills x0-x30 with 0x6757_0000_0000_0000 + n, waits (WFI), stores x0-x30.
.global umbra_puppet_registers
umbra_puppet_registers:
    mov     x19, x30
    str     x19, [x1, #(8 * 31)]
    mov     sp, x1
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    mov     x\n, #\n
    movk    x\n, #0x6757, lsl #48
.endr
    wfi
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    str     x\n, [sp, #(8 * \n)]
.endr
    ldr     x30, [sp, #(8 * 31)]
    ret

// Counts at [x1], for ever.
.global umbra_puppet_spin
umbra_puppet_spin:
    mov     x2, #0
3:  add     x2, x2, #1
    str     x2, [x1]
    b       3b

// x1 = a word. Writes 1 there, waits until somebody writes 2, then uses FP for the first time.
.global umbra_puppet_meet
umbra_puppet_meet:
    mov     x2, #1
    str     x2, [x1]
4:  yield
    ldr     x2, [x1]
    cmp     x2, #2
    b.ne    4b
    fmov    d0, xzr
    ret

// x1 = where to go on, x2 = with which PSTATE, x3 = SCTLR_EL1. Goes there with x1 and x19 = x20; an
// exception is the only way back.
.global umbra_puppet_leave
umbra_puppet_leave:
    msr     sctlr_el1, x3
    msr     elr_el1, x1
    msr     spsr_el1, x2
    ic      iallu
    dsb     ish
    isb
    mov     x0, #0
    mov     x1, x20
    mov     x19, x20
    eret

// x5 = the vector's number.
puppet_exception:
    mrs     x1, esr_el1
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    mrs     x4, far_el1
    mov     x0, #{EXCEPTION}
    hvc     #0
    blr     x0
    b       puppet_loop
puppet_irq:
    mrs     x1, s3_0_c12_c12_0              // ICC_IAR1_EL1
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    mov     x0, #{IRQ}
    hvc     #0
    blr     x0
    b       puppet_loop

.balign 0x800
.global umbra_puppet_vectors
umbra_puppet_vectors:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .balign 0x80
    mov     x5, #\n
    .if \n == 5
    b       puppet_irq
    .endif
    b       puppet_exception
.endr
    .balign 0x80
.global umbra_puppet_end
umbra_puppet_end:
.text
