// Leaving a test from anywhere inside it: what setjmp and longjmp are in C.

.text
// x0 = 13 words to remember in, x1 = function, x2 = its argument. Returns 0 when the function has
// returned, 1 when it was left by umbra_throw.
.global umbra_catch
umbra_catch:
    stp     x19, x20, [x0, #0]
    stp     x21, x22, [x0, #16]
    stp     x23, x24, [x0, #32]
    stp     x25, x26, [x0, #48]
    stp     x27, x28, [x0, #64]
    stp     x29, x30, [x0, #80]
    mov     x9, sp
    str     x9, [x0, #96]
    mov     x19, x0
    mov     x0, x2
    blr     x1
    mov     x0, #0
    b       1f
// x0 = what umbra_catch remembers.
.global umbra_throw
umbra_throw:
    mov     x19, x0
    mov     x0, #1
1:  ldr     x9, [x19, #96]
    mov     sp, x9
    ldp     x29, x30, [x19, #80]
    ldp     x27, x28, [x19, #64]
    ldp     x25, x26, [x19, #48]
    ldp     x23, x24, [x19, #32]
    ldp     x21, x22, [x19, #16]
    ldp     x19, x20, [x19, #0]
    ret

// Where an exception that nobody expected goes on: x0 = ESR, x1 = ELR, x2 = FAR.
.global umbra_unexpected
umbra_unexpected:
    bl      {unexpected}

// VCPU_RUN with every register of the host known: x0 = 31 words to store x0-x30 in, x1 = function ID,
// x2 = flags. x18-x30 are filled with 0x4057_0000_0000_0000 + n.
.global umbra_run_tagged
umbra_run_tagged:
    sub     sp, sp, #112
    stp     x19, x20, [sp, #0]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    stp     x0, x18, [sp, #96]
    .irp    n, 18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, #\n
    movk    x\n, #0x4057, lsl #48
    .endr
    mov     x0, x1
    mov     x1, x2
    .irp    n, 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17
    mov     x\n, #0
    .endr
    hvc     #0
    sub     sp, sp, #16
    str     x0, [sp]
    ldr     x0, [sp, #(96 + 16)]
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    str     x\n, [x0, #(8 * \n)]
    .endr
    ldr     x1, [sp], #16
    str     x1, [x0]
    ldp     x0, x18, [sp, #96]
    ldp     x29, x30, [sp, #80]
    ldp     x27, x28, [sp, #64]
    ldp     x25, x26, [sp, #48]
    ldp     x23, x24, [sp, #32]
    ldp     x21, x22, [sp, #16]
    ldp     x19, x20, [sp, #0]
    add     sp, sp, #112
    ret
