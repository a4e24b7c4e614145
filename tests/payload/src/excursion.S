// The kernel somewhere else for a moment: at EL0, or at EL1 on either stack pointer, in any PSTATE, up to
// the exception that ends it.

.text
// x0 = PC, SPSR, x0, x1, SCTLR_EL1, which PSTATE fields there are; x1 = where to store ESR, ELR, SPSR, FAR,
// PSTATE in the handler, and the vector's number. Interrupts are masked, and are when it returns.
.global umbra_excursion
umbra_excursion:
    sub     sp, sp, #160
    stp     x19, x20, [sp, #0]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    stp     x0, x1, [sp, #96]
    mrs     x2, vbar_el1
    mrs     x3, sctlr_el1
    stp     x2, x3, [sp, #112]
    ldr     x6, [x0, #40]
    bl      umbra_excursion_pstate
    str     x3, [sp, #128]
    adrp    x2, umbra_excursion_vectors
    add     x2, x2, :lo12:umbra_excursion_vectors
    msr     vbar_el1, x2
    ldp     x2, x3, [x0]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    ldr     x2, [x0, #32]
    msr     sctlr_el1, x2
    isb
    ldp     x0, x1, [x0, #16]
    eret

// x6 = fields. Returns them in x3; keeps the rest but x4.
umbra_excursion_pstate:
    mov     x3, xzr
.macro  field number, name
    tbz     x6, #\number, 9f
    mrs     x4, \name
    orr     x3, x3, x4
9:
.endm
    field   0, s3_0_c4_c2_3             // PAN
    field   1, s3_0_c4_c2_4             // UAO
    field   2, s3_3_c4_c2_5             // DIT
    field   3, s3_3_c4_c2_6             // SSBS
    field   4, s3_3_c4_c2_7             // TCO
    ret

// Where it ends, on the stack that it began with: x2 = the vector's number.
umbra_excursion_end:
    mrs     x7, nzcv
    mrs     x4, daif
    orr     x7, x7, x4
    mrs     x4, currentel
    orr     x7, x7, x4
    mrs     x4, spsel
    orr     x7, x7, x4
    ldp     x0, x1, [sp, #96]
    ldr     x6, [x0, #40]
    bl      umbra_excursion_pstate
    orr     x7, x7, x3
    mrs     x3, esr_el1
    mrs     x4, elr_el1
    stp     x3, x4, [x1, #0]
    mrs     x3, spsr_el1
    mrs     x4, far_el1
    stp     x3, x4, [x1, #16]
    stp     x7, x2, [x1, #32]
    ldp     x2, x3, [sp, #112]
    msr     vbar_el1, x2
    msr     sctlr_el1, x3
    ldr     x3, [sp, #128]
.macro  give_back number, name
    tbz     x6, #\number, 9f
    msr     \name, x3
9:
.endm
    give_back 0, s3_0_c4_c2_3
    give_back 1, s3_0_c4_c2_4
    give_back 2, s3_3_c4_c2_5
    give_back 3, s3_3_c4_c2_6
    give_back 4, s3_3_c4_c2_7
    isb
    ldp     x29, x30, [sp, #80]
    ldp     x27, x28, [sp, #64]
    ldp     x25, x26, [sp, #48]
    ldp     x23, x24, [sp, #32]
    ldp     x21, x22, [sp, #16]
    ldp     x19, x20, [sp, #0]
    add     sp, sp, #160
    ret

.balign 0x800
umbra_excursion_vectors:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    .balign 0x80
    mov     x2, #\n
    b       umbra_excursion_end
.endr
    .balign 0x80

// What it does there.
.global umbra_excursion_load
umbra_excursion_load:
    ldr     x0, [x1]
    svc     #0
.global umbra_excursion_store
umbra_excursion_store:
    str     w0, [x1]
    svc     #0
.global umbra_excursion_smc
umbra_excursion_smc:
    smc     #0
    svc     #0
