// From the boot loader (or PSCI CPU_ON) to the first Rust instruction.
//
// The loader enters as it would enter Linux (Documentation/arch/arm64/booting.rst): MMU and D-cache
// off, DAIF masked, x0 = physical address of the DTB, at a 2 MiB boundary. The image is linked at
// IMAGE_BASE; until the MMU is on, addresses are PC-relative only.
//
// Everything written here with caches off is invalidated from the caches afterwards: a clean line
// that a loader left behind must not hide it.

.macro  load_address rd:req, symbol:req
    adrp    \rd, \symbol
    add     \rd, \rd, :lo12:\symbol
.endm

// x0..x1: invalidate to PoC by virtual (= physical, MMU off) address. Clobbers x2, x3.
.macro  invalidate_range
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4             // DminLine: log2 of words
    mov     x3, #4
    lsl     x2, x3, x2
    sub     x3, x2, #1
    bic     x0, x0, x3
9:  dc      ivac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    9b
    dsb     sy
.endm

// With the MMU on: a place for exceptions of our own, before anything can cause one. No per-CPU data
// yet, and SP_EL2 is the stack pointer. Clobbers x5.
.macro  early_vectors
    ldr     x5, =umbra_host_vectors
    msr     vbar_el2, x5
    msr     tpidr_el2, xzr
    msr     spsel, #1
    isb
.endm

// EL2's translation has nothing but what TCR_EL2 and SCTLR_EL2 say: the registers of FEAT_TCR2 and FEAT_SCTLR2, which
// reset leaves UNKNOWN, are zero before the MMU is on. Clobbers x0.
.macro  plain_translation
    mrs     x0, s3_0_c0_c7_3            // ID_AA64MMFR3_EL1
    tst     x0, #0xf                    // TCRX
    b.eq    8f
    msr     s3_4_c2_c0_3, xzr           // TCR2_EL2
8:  tst     x0, #0xf0                   // SCTLRX
    b.eq    8f
    msr     s3_4_c1_c0_3, xzr           // SCTLR2_EL2
8:
.endm

.section .head, "ax"
.global umbra_image_start
umbra_image_start:
    b       primary_entry
    .word   0
    .quad   0                           // text_offset
    .quad   umbra_image_bytes
    .quad   0xa                         // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .ascii  "ARM\x64"
    .word   0
.global umbra_package_header
umbra_package_header:
    .skip   {PACKAGE_HEADER_BYTES}

.section .idmap.text, "ax"

primary_entry:
    msr     daifset, #0xf
    mov     x20, x0                     // DTB
    load_address x21, umbra_image_start // where we are

    // An address that the identity map below can't hold beside IMAGE_BASE: nobody can be told.
    lsr     x0, x21, #{PA_LIMIT_SHIFT}
    cbnz    x0, park

    // .bss, which holds the boot page tables and the boot stack.
    load_address x0, umbra_bss_begin
    load_address x1, umbra_bss_end
    mov     x4, x0
1:  stp     xzr, xzr, [x4], #16
    cmp     x4, x1
    b.lo    1b
    dsb     sy
    invalidate_range

    mrs     x19, CurrentEL
    lsr     x19, x19, #2
    mov     x22, #{BLOCK_FLAGS_EL1}
    cmp     x19, #2
    b.ne    2f
    // E2H = 0 gives the nVHE formats of TCR_EL2 and CPTR_EL2. A CPU may have E2H fixed to 1; then
    // EL1 names reach the EL2 registers in EL1's formats, and Rust gets to say why it stops.
    mov     x0, #(1 << 31)              // HCR_EL2.RW
    msr     hcr_el2, x0
    isb
    mrs     x0, hcr_el2
    tbnz    x0, #34, 2f
    mov     x22, #{BLOCK_FLAGS_EL2}
2:
    // Boot page tables: L0 -> (IMAGE_BASE: image, DTB window) and (identity: our first 2 MiB).
    load_address x4, umbra_boot_tables  // L0
    add     x5, x4, #0x1000             // L1 of IMAGE_BASE
    add     x6, x4, #0x2000             // L2 of IMAGE_BASE
    add     x7, x4, #0x3000             // L1 of the identity map
    add     x8, x4, #0x4000             // L2 of the identity map
    orr     x0, x5, #3
    str     x0, [x4, #({IMAGE_BASE_L0} * 8)]
    orr     x0, x6, #3
    str     x0, [x5]
    load_address x1, umbra_image_end
    mov     x2, x21
    mov     x3, x6
3:  orr     x0, x2, x22
    str     x0, [x3], #8
    add     x2, x2, #0x200000
    cmp     x2, x1
    b.lo    3b
    // The DTB and what follows it: a DTB is at most 2 MiB and may straddle a boundary.
    bic     x2, x20, #0x1fffff
    orr     x0, x2, x22
    str     x0, [x6, #({DTB_WINDOW_L2} * 8)]
    add     x2, x2, #0x200000
    orr     x0, x2, x22
    str     x0, [x6, #({DTB_WINDOW_L2} * 8 + 8)]
    // Identity.
    ubfx    x0, x21, #39, #9
    orr     x1, x7, #3
    str     x1, [x4, x0, lsl #3]
    ubfx    x0, x21, #30, #9
    orr     x1, x8, #3
    str     x1, [x7, x0, lsl #3]
    ubfx    x0, x21, #21, #9
    orr     x1, x21, x22
    str     x1, [x8, x0, lsl #3]
    dsb     sy
    mov     x0, x4
    add     x1, x4, #0x5000
    invalidate_range

    ldr     x1, ={MAIR}
    ldr     x2, ={TCR_EL1}
    ldr     x5, ={SCTLR_EL1_BOOT}
    ldr     x3, ={TCR_EL2}
    ldr     x6, ={SCTLR_EL2_BOOT}
    mrs     x0, id_aa64mmfr0_el1
    and     x0, x0, #0xf
    cmp     x0, #5                      // PS: at most 48 bits
    mov     x7, #5
    csel    x0, x0, x7, lo
    bfi     x2, x0, #32, #3             // TCR_EL1.IPS
    bfi     x3, x0, #16, #3             // TCR_EL2.PS
    mov     x7, #{BLOCK_FLAGS_EL2}
    cmp     x22, x7
    b.ne    4f
    plain_translation
    msr     mair_el2, x1
    msr     tcr_el2, x3
    msr     ttbr0_el2, x4
    isb
    tlbi    alle2
    dsb     nsh
    isb
    msr     sctlr_el2, x6
    isb
    early_vectors
    mov     x2, #0                      // at EL2, as it should be
    b       5f
4:  // EL1, or EL2 with E2H stuck at 1.
    msr     mair_el1, x1
    msr     tcr_el1, x2
    msr     ttbr0_el1, x4
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     sctlr_el1, x5
    isb
    mov     x2, x19                     // why we stop: 1 = EL1, 2 = E2H
5:
    ldr     x3, =umbra_boot_stack_end
    mov     sp, x3
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x20
    mov     x1, x21
    ldr     x3, =umbra_boot_main
    br      x3

park:
    wfi
    b       park

// A CPU that PSCI started (boot, hot-plug, resume): x0 = physical address of its CpuBootParams,
// which was cleaned to PoC. No stack, no memory but that.
.global umbra_secondary_entry
umbra_secondary_entry:
    msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    park
    mov     x1, #(1 << 31)
    msr     hcr_el2, x1
    isb
    mov     x20, x0
    ldp     x1, x2, [x20, #{PARAMS_TTBR}]   // TTBR0_EL2, TCR_EL2
    cbz     x1, park                        // wiped: the machine ends
    ldp     x3, x4, [x20, #{PARAMS_STACK}]  // stack top, CPU index
    ldr     x5, ={MAIR}
    ldr     x6, ={SCTLR_EL2}
    plain_translation
    msr     mair_el2, x5
    msr     tcr_el2, x2
    msr     ttbr0_el2, x1
    isb
    tlbi    alle2
    dsb     nsh
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x6
    isb
    early_vectors
    mov     sp, x3
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x4
    ldr     x5, =umbra_cpu_reset_main
    br      x5

// The boot CPU's way from the boot page tables to the final ones: x0 = physical address of its
// CpuBootParams, entered at its identity address. Blocks become pages, so the old translations
// must be gone before the new ones appear: the MMU is off between them.
.global umbra_switch_tables
umbra_switch_tables:
    mrs     x1, sctlr_el2
    bic     x1, x1, #1
    msr     sctlr_el2, x1
    isb
    b       umbra_secondary_entry
.ltorg

.section .bss.umbra_boot, "aw", %nobits
.balign 4096
.global umbra_boot_tables
umbra_boot_tables:
    .skip   {BOOT_TABLES} * 4096
umbra_boot_stack:
    .skip   131072
umbra_boot_stack_end:
