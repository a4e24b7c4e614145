// Entry and vectors of the test guest. The MMU stays off: memory is Device-nGnRnE, so every access is
// aligned, and there are no exclusives.

.section .umbra.head, "ax", %progbits
.global umbra_guest_head
umbra_guest_head:
    b       1f
    .word   0
    .quad   umbra_guest_bytes
1:  and     x1, x0, #0xff                   // the vCPU: protocol::Argument
    cmp     x1, #{MAX_VCPUS}
    b.hs    2f
    msr     tpidr_el1, x1
    add     x1, x1, #1
    adrp    x2, umbra_guest_stacks
    mov     x3, #{STACK_BYTES}
    madd    x2, x1, x3, x2
    mov     sp, x2
    adrp    x1, umbra_guest_vectors
    add     x1, x1, :lo12:umbra_guest_vectors
    msr     vbar_el1, x1
    isb
    mov     x29, #0
    mov     x30, #0
    bl      {main}
2:  wfi
    b       2b

.macro vector label
    .balign 0x80
    b       \label
.endm

.text
.balign 0x800
umbra_guest_vectors:
    .rept 4
    vector  umbra_guest_fatal
    .endr
    vector  umbra_guest_fatal
    vector  umbra_guest_irq
    .rept 10
    vector  umbra_guest_fatal
    .endr
.org umbra_guest_vectors + 0x800

// Saves what the procedure call standard doesn't. No FP register is touched.
umbra_guest_irq:
    sub     sp, sp, #(16 * 10)
    stp     x0, x1, [sp, #(16 * 0)]
    stp     x2, x3, [sp, #(16 * 1)]
    stp     x4, x5, [sp, #(16 * 2)]
    stp     x6, x7, [sp, #(16 * 3)]
    stp     x8, x9, [sp, #(16 * 4)]
    stp     x10, x11, [sp, #(16 * 5)]
    stp     x12, x13, [sp, #(16 * 6)]
    stp     x14, x15, [sp, #(16 * 7)]
    stp     x16, x17, [sp, #(16 * 8)]
    stp     x18, x30, [sp, #(16 * 9)]
    bl      {irq}
    ldp     x0, x1, [sp, #(16 * 0)]
    ldp     x2, x3, [sp, #(16 * 1)]
    ldp     x4, x5, [sp, #(16 * 2)]
    ldp     x6, x7, [sp, #(16 * 3)]
    ldp     x8, x9, [sp, #(16 * 4)]
    ldp     x10, x11, [sp, #(16 * 5)]
    ldp     x12, x13, [sp, #(16 * 6)]
    ldp     x14, x15, [sp, #(16 * 7)]
    ldp     x16, x17, [sp, #(16 * 8)]
    ldp     x18, x30, [sp, #(16 * 9)]
    add     sp, sp, #(16 * 10)
    eret

umbra_guest_fatal:
    mrs     x0, esr_el1
    mrs     x1, elr_el1
    mrs     x2, far_el1
    b       {exception}
