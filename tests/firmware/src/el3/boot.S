// From reset to the first Rust instruction at EL3, on every CPU; exceptions to EL3; the way down.
//
// Flash at 0 holds code and constants, page tables among them, so the MMU is on before anything is
// written: no CPU ever writes with caches off. RAM is not initialised, and after a warm reset it
// holds the last run's values, so no word in it can tell other CPUs to wait for the boot CPU: they
// wait in WFI for its SGI.

.section .head, "ax"
.global umbra_firmware_start
umbra_firmware_start:
    b       reset
    .balign {CONFIG_OFFSET}
.global umbra_firmware_config
umbra_firmware_config:
    .skip   {CONFIG_BYTES}

// Filled in, like the configuration, in the file: they are the board's.
.section .tables, "a"
.balign 4096
umbra_tables:
    .skip   {TABLES_BYTES}

.section .reset, "ax"
reset:
    msr     daifset, #0xf
    adr     x0, umbra_vectors
    msr     vbar_el3, x0
    ldr     x0, ={SCTLR}
    ldr     x1, ={SCTLR_ENABLES}
    bic     x1, x0, x1
    msr     sctlr_el3, x1
    isb
    ldr     x1, =0x04ff
    msr     mair_el3, x1
    ldr     x1, ={TCR}
    msr     tcr_el3, x1
    ldr     x1, =umbra_tables
    msr     ttbr0_el3, x1
    isb
    tlbi    alle3
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el3, x0
    isb

    // This CPU's number, by its affinity. The device tree is checked against the list later.
    mrs     x0, mpidr_el1
    ldr     x1, ={AFFINITY}
    and     x0, x0, x1
    ldr     x1, =umbra_firmware_start + {AFFINITIES_OFFSET}
    mov     x19, xzr
6:  ldr     x2, [x1], #8
    cmp     x2, x0
    b.eq    7f
    add     x19, x19, #1
    cmp     x19, #{CPUS}
    b.lo    6b
    b       dead
7:  msr     tpidr_el3, x19
    ldr     x0, =umbra_stacks
    add     x1, x19, #1
    mov     x2, #{STACK_BYTES}
    madd    x20, x1, x2, x0             // stack top

    mov     x0, #0xf                    // system registers, for EL2 as well
    msr     s3_6_c12_c12_5, x0          // ICC_SRE_EL3
    isb
    cbnz    x19, 4f

    ldr     x0, =umbra_data_begin
    ldr     x1, =umbra_data_end
    ldr     x2, =umbra_data_load
1:  cmp     x0, x1
    b.hs    2f
    ldp     x3, x4, [x2], #16
    stp     x3, x4, [x0], #16
    b       1b
2:  ldr     x0, =umbra_bss_begin
    ldr     x1, =umbra_bss_end
3:  stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    3b
    mov     sp, x20
    mov     x29, xzr
    mov     x30, xzr
    bl      firmware_boot
    b       dead

    // Until the boot CPU's SGI. It has set this CPU's redistributor up by then.
4:  mov     x0, #0xff
    msr     s3_0_c4_c6_0, x0            // ICC_PMR_EL1
    mov     x0, #1
    msr     s3_0_c12_c12_6, x0          // ICC_IGRPEN0_EL1
    isb
5:  wfi
    mrs     x0, s3_0_c12_c8_0           // ICC_IAR0_EL1
    cmp     w0, #{SGI}
    b.ne    5b
    msr     s3_0_c12_c8_1, x0           // ICC_EOIR0_EL1
    dsb     sy
    mov     sp, x20
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    bl      firmware_cpu

dead:
    wfi
    b       dead

.ltorg

.macro  save
    sub     sp, sp, #256
    stp     x0, x1, [sp]
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
.endm

.macro  slot target
    .balign 128
    save
    b       \target
.endm

.section .vectors, "ax"
.balign 2048
umbra_vectors:
    .rept   4                           // current EL, SP_EL0
    slot    fatal
    .endr
    .rept   4                           // current EL, SP_EL3
    slot    fatal
    .endr
    slot    lower_sync
    slot    fatal
    slot    lower_fiq
    slot    fatal
    .rept   4                           // AArch32: nobody runs it
    slot    fatal
    .endr
    .balign 128

lower_sync:
    mrs     x0, esr_el3
    lsr     x0, x0, #26
    cmp     x0, #0x17                   // SMC from AArch64
    b.ne    fatal
    mov     x0, sp
    mrs     x1, tpidr_el3
    bl      firmware_smc
    b       return

lower_fiq:
    bl      firmware_fiq

return:
    ldp     x0, x1, [sp]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    add     sp, sp, #256
    eret

fatal:
    mrs     x0, esr_el3
    mrs     x1, elr_el3
    mrs     x2, far_el3
    mrs     x3, spsr_el3
    bl      firmware_exception
    b       dead

// x0 = PC, x1 = x0 at EL2: a boot loader's way into an image. EL3's stack is empty again.
.global umbra_enter_el2
umbra_enter_el2:
    msr     elr_el3, x0
    mov     x0, #0x3c9                  // EL2h, DAIF masked
    msr     spsr_el3, x0
    ldr     x2, =umbra_stacks
    mrs     x3, tpidr_el3
    add     x3, x3, #1
    mov     x4, #{STACK_BYTES}
    madd    x2, x3, x4, x2
    mov     sp, x2
    mov     x0, x1
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    eret
.ltorg

.section .bss.umbra_stacks, "aw", %nobits
.balign 4096
umbra_stacks:
    .skip   {CPUS} * {STACK_BYTES}
