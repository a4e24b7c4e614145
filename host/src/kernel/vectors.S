// Exception vectors. Everything runs at EL1 with SP_EL1, so only the "current EL, SPx" entries are
// regular; the others report and stop. No FP register is touched: an exception finds and leaves them
// as they are.

.macro vector kind, handler
    .balign 0x80
    sub     sp, sp, #{FRAME_BYTES}
    // Is there a stack to push on? Stacks lie in the upper half of slots twice their size, so the bit
    // of the stack size is set in every good stack pointer. x0 is kept by arithmetic alone.
    add     sp, sp, x0
    sub     x0, sp, x0
    tbz     x0, #{STACK_SHIFT}, 9f
    sub     x0, sp, x0
    sub     sp, sp, x0
    stp     x0, x1, [sp, #(16 * 0)]
    mov     x0, #\kind
    b       \handler
9:  b       umbra_overflow
.endm

.text
.balign 0x800
.global umbra_vectors
umbra_vectors:
    vector  0, umbra_save_fatal
    vector  1, umbra_save_fatal
    vector  2, umbra_save_fatal
    vector  3, umbra_save_fatal
    vector  4, umbra_save_sync
    vector  5, umbra_save_irq
    vector  6, umbra_save_fatal
    vector  7, umbra_save_fatal
    vector  8, umbra_save_fatal
    vector  9, umbra_save_fatal
    vector  10, umbra_save_fatal
    vector  11, umbra_save_fatal
    vector  12, umbra_save_fatal
    vector  13, umbra_save_fatal
    vector  14, umbra_save_fatal
    vector  15, umbra_save_fatal
// A vector that does not fit pushes the last one beyond this, which the assembler refuses.
.org umbra_vectors + 0x800

.macro save
    stp     x2, x3, [sp, #(16 * 1)]
    stp     x4, x5, [sp, #(16 * 2)]
    stp     x6, x7, [sp, #(16 * 3)]
    stp     x8, x9, [sp, #(16 * 4)]
    stp     x10, x11, [sp, #(16 * 5)]
    stp     x12, x13, [sp, #(16 * 6)]
    stp     x14, x15, [sp, #(16 * 7)]
    stp     x16, x17, [sp, #(16 * 8)]
    stp     x18, x19, [sp, #(16 * 9)]
    stp     x20, x21, [sp, #(16 * 10)]
    stp     x22, x23, [sp, #(16 * 11)]
    stp     x24, x25, [sp, #(16 * 12)]
    stp     x26, x27, [sp, #(16 * 13)]
    stp     x28, x29, [sp, #(16 * 14)]
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    stp     x30, x2, [sp, #(16 * 15)]
    str     x3, [sp, #(16 * 16)]
    mov     x1, x0
    mov     x0, sp
.endm

umbra_save_sync:
    save
    bl      {sync}
    b       umbra_return
umbra_save_irq:
    save
    bl      {irq}
    b       umbra_return
umbra_save_fatal:
    save
    bl      {fatal}

umbra_return:
    ldp     x30, x2, [sp, #(16 * 15)]
    ldr     x3, [sp, #(16 * 16)]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    ldp     x0, x1, [sp, #(16 * 0)]
    ldp     x2, x3, [sp, #(16 * 1)]
    ldp     x4, x5, [sp, #(16 * 2)]
    ldp     x6, x7, [sp, #(16 * 3)]
    ldp     x8, x9, [sp, #(16 * 4)]
    ldp     x10, x11, [sp, #(16 * 5)]
    ldp     x12, x13, [sp, #(16 * 6)]
    ldp     x14, x15, [sp, #(16 * 7)]
    ldp     x16, x17, [sp, #(16 * 8)]
    ldp     x18, x19, [sp, #(16 * 9)]
    ldp     x20, x21, [sp, #(16 * 10)]
    ldp     x22, x23, [sp, #(16 * 11)]
    ldp     x24, x25, [sp, #(16 * 12)]
    ldp     x26, x27, [sp, #(16 * 13)]
    ldp     x28, x29, [sp, #(16 * 14)]
    add     sp, sp, #{FRAME_BYTES}
    eret

// The stack is gone. One emergency stack for all CPUs: the first to come here prints and stops.
umbra_overflow:
    ldr     x0, ={emergency}
    add     x0, x0, #{EMERGENCY_BYTES}
    mov     sp, x0
    bl      {overflow}

// Loads and stores that may fault: when they do, the handler sends them to the fixup. x0 = address
// (x1 = value); returns x0 = value, x1 = 0 or 1 for a fault.
.global umbra_probe_load
umbra_probe_load:
    ldr     x0, [x0]
    mov     x1, #0
    ret
.global umbra_probe_store
umbra_probe_store:
    str     x1, [x0]
    mov     x1, #0
    ret
.global umbra_probe_fixup
umbra_probe_fixup:
    mov     x1, #1
    ret
.ltorg
