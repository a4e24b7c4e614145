// A guest of random programs (tests/payload/src/fuzz): fills D0-D31 and FPSCR as it is told, and looks at
// them, and at FPEXC.EN, after every entry. r0 at the start: owner, and the vCPU's number from bit 16 on.
//
// r4 = commands obeyed, r6 = 512 bytes of its own, r8 = owner, r9 = generation; 0: nothing was filled yet.
// HVC: r0 = NEXT, r1 = r4; answered by r0 = what to do, r1 = generation. r0 = FAIL: r1 = which word of
// D0-D31, or 64 FPSCR, 65 FPEXC, 66 and above an exception's vector; r2 = found, r3 = expected.

.equ    DRIVEN_NEXT, 0xc3000005
.equ    DRIVEN_FAIL, 0xc3000002
.equ    DRIVEN_FILL, 1
.equ    DRIVEN_WFI, 2
.equ    DRIVEN_SPIN, 3

driven:
    uxth    r8, r0
    lsr     r7, r0, #16
    movw    r6, #:lower16:(driven_area - 1f - 8)
    movt    r6, #:upper16:(driven_area - 1f - 8)
1:  add     r6, pc, r6
    add     r6, r6, r7, lsl #9
    adr     r1, driven_vectors
    mcr     p15, 0, r1, c12, c0, 0          // VBAR
    mov     r1, #(0xf << 20)                // CPACR: cp10, cp11
    mcr     p15, 0, r1, c1, c0, 2
    isb
    mov     r1, #(1 << 30)                  // FPEXC.EN
    vmsr    fpexc, r1
    mov     r4, #0
    mov     r9, #0
driven_loop:
    movw    r0, #(DRIVEN_NEXT & 0xffff)
    movt    r0, #(DRIVEN_NEXT >> 16)
    mov     r1, r4
    hvc     #0
    add     r4, r4, #1
    mov     r10, r0
    mov     r11, r1
    bl      driven_check
    cmp     r10, #DRIVEN_FILL
    moveq   r9, r11
    bleq    driven_fill
    cmp     r10, #DRIVEN_WFI
    wfieq
    cmp     r10, #DRIVEN_SPIN
    movweq  r2, #4000
    movwne  r2, #40
2:  yield
    subs    r2, r2, #1
    bne     2b
    bl      driven_check
    b       driven_loop

// r3 = the first word, r7 = what each one more is. Words follow from owner and generation.
driven_first:
    movw    r2, #1
    movt    r2, #1
    mul     r3, r8, r2
    movw    r2, #0x0193
    movt    r2, #0x0100
    mla     r3, r9, r2, r3
    movw    r7, #3
    movt    r7, #1
    cmp     r9, #0
    moveq   r3, #0
    moveq   r7, #0
    bx      lr

// r2 = FPSCR: flags, and cumulative exceptions.
driven_fpscr:
    and     r1, r9, #0x1f
    lsl     r2, r9, #28
    orr     r2, r2, r1
    bx      lr

driven_fill:
    mov     r12, lr
    bl      driven_first
    mov     r0, #0
3:  str     r3, [r6, r0, lsl #2]
    add     r3, r3, r7
    add     r0, r0, #1
    cmp     r0, #64
    bne     3b
    mov     r0, r6
    vldm    r0!, {{d0-d15}}
    vldm    r0, {{d16-d31}}
    bl      driven_fpscr
    vmsr    fpscr, r2
    bx      r12

driven_check:
    mov     r12, lr
    mov     r0, r6
    vstm    r0!, {{d0-d15}}
    vstm    r0, {{d16-d31}}
    bl      driven_first
    mov     r1, #0
4:  ldr     r2, [r6, r1, lsl #2]
    cmp     r2, r3
    bne     driven_fail
    add     r3, r3, r7
    add     r1, r1, #1
    cmp     r1, #64
    bne     4b
    bl      driven_fpscr
    mov     r3, r2
    vmrs    r2, fpscr
    mov     r1, #64
    cmp     r2, r3
    bne     driven_fail
    vmrs    r2, fpexc
    mov     r1, #65
    mov     r3, #(1 << 30)
    tst     r2, r3
    beq     driven_fail
    bx      r12

driven_fail:
    movw    r0, #(DRIVEN_FAIL & 0xffff)
    movt    r0, #(DRIVEN_FAIL >> 16)
    hvc     #0
    b       driven_fail

.macro  driven_handler number:req
    mov     r1, #(66 + \number)
    mov     r2, lr
    mov     r3, #0
    b       driven_fail
.endm

.balign 32
driven_vectors:
    b       .
    b       driven_undefined
    b       driven_call
    b       driven_prefetch
    b       driven_data
    b       .
    b       driven_irq
    b       driven_irq
driven_undefined:
    driven_handler 1
driven_call:
    driven_handler 2
driven_prefetch:
    driven_handler 3
driven_data:
    driven_handler 4
driven_irq:
    driven_handler 6

.balign 4096
driven_area:
    .space  4096
