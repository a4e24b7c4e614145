// A guest whose interrupts are its VM's GIC's, run by the library's loop.
//
// It makes an HVC with x0 = {DONE}, x1 and x2 = what the routine below left in x0 and x1; the host answers
// with x0 = a routine's address and x1-x3 = arguments. Its handler of interrupts counts in x25 and answers with
// x26 while x27 isn't zero; x24 is its own. The MMU is off: all accesses are aligned.

.section .rodata.gic_guest, "a", %progbits
.balign 4096
.global umbra_gic_guest_start
// x0 = a page of the vCPU's own.
umbra_gic_guest_start:
    msr     tpidr_el1, x0
    mov     x27, #0
    adr     x1, gic_guest_vectors
    msr     vbar_el1, x1
    mov     x1, #0xf8
    msr     s3_0_c4_c6_0, x1                // ICC_PMR_EL1
    mov     x1, #1
    msr     s3_0_c12_c12_7, x1              // ICC_IGRPEN1_EL1
    isb
gic_guest_loop:
    mov     x2, x1
    mov     x1, x0
    mov     x0, #{DONE}
    hvc     #0
    blr     x0
    b       gic_guest_loop

// x1 = an instruction. Executes it with x0 = x2 and x1 = x3.
.global umbra_gic_guest_exec
umbra_gic_guest_exec:
    mrs     x4, tpidr_el1
    mov     w5, #0x03c0                     // RET
    movk    w5, #0xd65f, lsl #16
    str     w1, [x4]
    str     w5, [x4, #4]
    dc      cvau, x4
    dsb     ish
    ic      ivau, x4
    dsb     ish
    isb
    mov     x21, x30
    mov     x0, x2
    mov     x1, x3
    blr     x4
    ret     x21

// CPU_ON of x1 at x2 with x3.
.global umbra_gic_guest_cpu_on
umbra_gic_guest_cpu_on:
    mov     x0, #3
    movk    x0, #0xc400, lsl #16
    hvc     #0
    ret

// Takes x1 interrupts, and looks x2 times at most for each. What it acknowledges is stored from x3 on, 8 bytes each.
// Returns how many there were.
.global umbra_gic_guest_take
umbra_gic_guest_take:
    mov     x4, #0
1:  mov     x6, x2
2:  mrs     x0, s3_0_c12_c12_0              // ICC_IAR1_EL1
    cmp     x0, #1023
    b.ne    3f
    subs    x6, x6, #1
    b.ne    2b
    b       4f
3:  str     x0, [x3], #8
    msr     s3_0_c12_c12_1, x0              // ICC_EOIR1_EL1
    isb
    add     x4, x4, #1
    cmp     x4, x1
    b.ne    1b
4:  mov     x0, x4
    ret

// Exchanges x1 SGIs each with the other vCPU, by x2 (ICC_SGI1R_EL1); who has x3 = 0 begins. Each is answered before it is
// ended, so that the next may come while a list register still has it. Looks 2^26 times for each. Returns how many it
// has taken.
.global umbra_gic_guest_exchange
umbra_gic_guest_exchange:
    mov     x20, #0
    mov     x25, #0
    mov     x26, x2
    mov     x27, x1
    cbnz    x3, 1f
    sub     x27, x27, #1
    msr     s3_0_c12_c11_5, x2
    isb
1:  msr     daifclr, #2
2:  mov     x0, #(1 << 26)
3:  cmp     x25, x20
    b.ne    4f
    subs    x0, x0, #1
    b.ne    3b
    b       5f
4:  mov     x20, x25
    cmp     x20, x1
    b.ne    2b
5:  msr     daifset, #2
    isb
    mov     x27, #0
    mov     x0, x25
    ret

gic_guest_irq:
    mrs     x24, s3_0_c12_c12_0
    cmp     x24, #1023
    b.eq    7f
    add     x25, x25, #1
    cbz     x27, 6f
    sub     x27, x27, #1
    msr     s3_0_c12_c11_5, x26
    isb
6:  msr     s3_0_c12_c12_1, x24
7:  eret

gic_guest_exception:
    mrs     x1, esr_el1
    mrs     x2, elr_el1
    mov     x0, #{FAILED}
    hvc     #0
    b       gic_guest_exception

.balign 0x800
gic_guest_vectors:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .balign 0x80
    .if \n == 5
    b       gic_guest_irq
    .else
    b       gic_guest_exception
    .endif
.endr
    .balign 0x80
.global umbra_gic_guest_end
umbra_gic_guest_end:
.text
