// What `puppet.S` of the test kernel is for AArch64, in A32. Its loop makes an HVC; the host answers with
// r0 = the address of a routine below and r1-r3 = arguments; what the routine leaves in r0-r4 the host finds
// at the next HVC. r5 tells why it called: DONE; EXCEPTION plus the vector's number (r0 = CPSR in the
// handler, r1 = LR, r2 = SPSR, r3 = DFSR or IFSR, r4 = DFAR or IFAR); IRQ (r0 = ICC_IAR1).
//
// Everything runs in Supervisor mode with the MMU off: all accesses are aligned. r9 is the host's
// (`address`), r10 and r11 are the loop's.

.equ    DONE, 0x600d
.equ    EXCEPTION, 0xbad0
.equ    IRQ, 0x1990

.arch_extension virt
.fpu    neon-fp-armv8
.arm
.section .umbra.puppet, "ax", %progbits
.global umbra_puppet32_start
umbra_puppet32_start:
    b       entry
    .word   (routines_end - routines) / 4
// In the order of `Routine` of the test kernel.
routines:
    .word   exec
    .word   run
    .word   address
    .word   fill_vfp
    .word   dump_vfp
    .word   compute
    .word   registers
    .word   count
    .word   modes
    .word   driven
routines_end:

entry:
    adr     r1, vectors
    mcr     p15, 0, r1, c12, c0, 0          // VBAR
    mov     r1, #(0xf << 20)                // CPACR: cp10, cp11
    mcr     p15, 0, r1, c1, c0, 2
    isb
loop:
    movw    r12, #DONE
tell:
    mov     r5, r4
    mov     r4, r3
    mov     r3, r2
    mov     r2, r1
    mov     r1, r0
    mov     r0, r12
    hvc     #0
    blx     r0
    b       loop

// r1 = an area that nothing else uses, r2 = an instruction. Executes it with r0 = r3 and r1 = r9.
exec:
    movw    r4, #0xff1e                     // BX LR
    movt    r4, #0xe12f
    str     r2, [r1]
    str     r4, [r1, #4]
    mov     r2, r3
    mov     r3, r9
// r1 = code, bit 0 set for T32, that ends with BX LR. Executes it with r0 = r2 and r1 = r3; it keeps r10.
run:
    bic     r4, r1, #1
    mcr     p15, 0, r4, c7, c11, 1          // DCCMVAU
    dsb     ish
    mov     r0, #0
    mcr     p15, 0, r0, c7, c5, 0           // ICIALLU
    mcr     p15, 0, r0, c7, c5, 6           // BPIALL
    dsb     ish
    isb
    mov     r10, lr
    mov     r11, r1
    mov     r0, r2
    mov     r1, r3
    mov     r2, #0                          // of a call, reserved
    mov     r3, #0
    blx     r11
    bx      r10

// r1 = what r1 is when the next instruction is executed.
address:
    mov     r9, r1
    bx      lr

// r1 = image of D0-D31, r2 = FPSCR.
fill_vfp:
    vldm    r1!, {{d0-d15}}
    vldm    r1, {{d16-d31}}
    vmsr    fpscr, r2
    bx      lr

// r1 = buffer. Returns FPSCR.
dump_vfp:
    vstm    r1!, {{d0-d15}}
    vstm    r1, {{d16-d31}}
    vmrs    r0, fpscr
    bx      lr

// r1 = operands: two doubles, four singles, four more, sixteen bytes. r2 = results: sum, product and
// quotient of the doubles; sums and products of the singles; the bytes in reverse, and their sum.
compute:
    vldm    r1, {{d0-d7}}
    vadd.f64 d16, d0, d1
    vmul.f64 d17, d0, d1
    vdiv.f64 d18, d0, d1
    vmov    d19, d18
    vadd.f32 q10, q1, q2
    vmul.f32 q11, q1, q2
    vrev64.8 q12, q3
    vswp    d24, d25
    vpaddl.u8 q13, q3
    vpaddl.u16 q13, q13
    vpaddl.u32 q13, q13
    vadd.i64 d26, d26, d27
    vmov.i64 d27, #0
    vstm    r2, {{d16-d27}}
    bx      lr

// r1 = buffer. Gives a value of its own to each general-purpose register of every mode, waits (WFI), stores
// them: r0-r12; SP and LR of usr, LR of svc, SP and LR of abt, und, irq, fiq; R8-R12 of fiq: 29 words.
registers:
    mov     r10, lr
    str     r10, [r1, #(4 * 30)]
    str     r9, [r1, #(4 * 31)]
    movw    r0, #0
    movt    r0, #0x6750
.macro  tag_register name:req
    add     r0, r0, #1
    msr     \name, r0
.endm
    tag_register SP_usr
    tag_register LR_usr
    add     r0, r0, #1
    mov     lr, r0
    tag_register SP_abt
    tag_register LR_abt
    tag_register SP_und
    tag_register LR_und
    tag_register SP_irq
    tag_register LR_irq
    tag_register SP_fiq
    tag_register LR_fiq
    tag_register R8_fiq
    tag_register R9_fiq
    tag_register R10_fiq
    tag_register R11_fiq
    tag_register R12_fiq
    mov     sp, r1
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
    movw    r\n, #\n
    movt    r\n, #0x6751
.endr
    wfi
    stm     sp, {{r0-r12}}
    mov     r1, sp
    add     r2, r1, #(4 * 13)
.irp name, SP_usr, LR_usr
    mrs     r0, \name
    str     r0, [r2], #4
.endr
    str     lr, [r2], #4
.irp name, SP_abt, LR_abt, SP_und, LR_und, SP_irq, LR_irq, SP_fiq, LR_fiq, R8_fiq, R9_fiq, R10_fiq, R11_fiq, R12_fiq
    mrs     r0, \name
    str     r0, [r2], #4
.endr
    ldr     r9, [r1, #(4 * 31)]
    ldr     r10, [r1, #(4 * 30)]
    bx      r10

// Counts at [r1] up to r2, with what D0-D31 hold untouched.
count:
    mov     r3, #0
1:  add     r3, r3, #1
    str     r3, [r1]
    cmp     r3, r2
    bne     1b
    mov     r0, r3
    bx      lr

// r1 = code, r2 = a mode's number. Executes it there, with r0 = 0; if it comes back at all it does with
// SVC from User mode, and with BX LR from others. SP and LR of that mode are lost.
modes:
    mov     r10, lr
    mrs     r11, cpsr
    bic     r3, r11, #0x1f
    orr     r3, r3, r2
    mov     r4, r1
    mov     r0, #0
    mov     r5, #0
    dsb     ish
    mcr     p15, 0, r0, c7, c5, 0
    dsb     ish
    isb
    msr     cpsr_c, r3
    isb
    blx     r4
    msr     cpsr_c, r11
    bx      r10

.macro  handler number:req, status:req, address:req
    mrc     p15, 0, r3, c5, c0, \status
    mrc     p15, 0, r4, c6, c0, \address
    movw    r12, #(EXCEPTION + \number)
    b       report
.endm

undefined:
    handler 1, 0, 0
supervisor_call:
    handler 2, 0, 0
prefetch_abort:
    handler 3, 1, 2
data_abort:
    handler 4, 0, 0
irq:
    mrc     p15, 0, r0, c12, c12, 0         // ICC_IAR1
    mov     r1, lr
    mrs     r2, spsr
    movw    r12, #IRQ
    b       leave
fiq:
    handler 7, 0, 0
report:
    mov     r1, lr
    mrs     r2, spsr
    mrs     r0, cpsr
leave:
    cps     #0x13
    b       tell

.balign 32
vectors:
    b       .
    b       undefined
    b       supervisor_call
    b       prefetch_abort
    b       data_abort
    b       .
    b       irq
    b       fiq
