// Entry of the EL1 kernel, on the boot CPU and on secondaries, up to the first Rust instruction.
//
// The MMU and caches are off and the image lies at any 2 MiB boundary, while it is linked at a fixed
// virtual address: everything until `br` in umbra_enable_mmu addresses PC-relative. The boot tables
// map (TTBR0) the 2 MiB block of this code onto itself and (TTBR1) the image at its link address, with
// a window for the device tree.

.section .umbra.head, "ax", %progbits
.global umbra_image_start
    b       umbra_primary
    nop
    .quad   0                               // text_offset
    .quad   umbra_image_bytes               // image_size
    .quad   {IMAGE_FLAGS}
    .quad   0
    .quad   0
    .quad   0
    .long   {IMAGE_MAGIC}
    .long   0

umbra_primary:
    mov     x21, x0                         // device tree, physical
    mrs     x0, CurrentEL
    cmp     x0, #(1 << 2)
    b.eq    1f
0:  wfi                                     // not EL1: nothing here would work, the console neither
    b       0b
1:  adrp    x19, umbra_image_start          // image, physical

    // Old cache lines must neither be written over the tables (first pass) nor be read by the walker
    // in their place (second pass).
    bl      umbra_invalidate_tables
    adrp    x0, umbra_boot_tables
    adrp    x1, umbra_boot_tables_end
2:  stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    2b

    adrp    x0, umbra_boot_tables
    add     x1, x0, #0x1000                 // TTBR0 level 2
    add     x2, x0, #0x2000                 // TTBR1 level 1
    add     x3, x0, #0x3000                 // TTBR1 level 2: image
    add     x4, x0, #0x4000                 // TTBR1 level 2: windows
    ldr     x9, =({BLOCK_NORMAL})

    orr     x5, x1, #3                      // identity
    ubfx    x6, x19, #30, #9
    str     x5, [x0, x6, lsl #3]
    ubfx    x6, x19, #21, #9
    orr     x5, x19, x9
    str     x5, [x1, x6, lsl #3]

    orr     x5, x3, #3                      // image: up to 8 blocks
    str     x5, [x2, #({KERNEL_L1} * 8)]
    mov     x5, x19
    ldr     x6, =umbra_image_bytes
    add     x6, x6, x19
3:  orr     x7, x5, x9                      // whose upper bits are no address
    str     x7, [x3], #8
    add     x5, x5, #0x200000
    cmp     x5, x6
    b.lo    3b

    orr     x5, x4, #3                      // device tree: it may cross one block boundary
    str     x5, [x2, #({WINDOW_L1} * 8)]
    bic     x5, x21, #0x1fffff
    orr     x5, x5, x9
    str     x5, [x4]
    add     x5, x5, #0x200000
    str     x5, [x4, #8]
    bl      umbra_invalidate_tables

    adrp    x0, umbra_boot_tables
    adrp    x1, umbra_boot_tables
    add     x1, x1, #0x2000
    ldr     x2, =umbra_primary_virtual
    b       umbra_enable_mmu

// Drops the cache lines of the boot tables. Clobbers x0-x3.
umbra_invalidate_tables:
    dsb     sy
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4                 // DminLine: log2 of words
    mov     x2, #4
    lsl     x2, x2, x3
    adrp    x0, umbra_boot_tables
    adrp    x1, umbra_boot_tables_end
4:  dc      ivac, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    4b
    dsb     sy
    ret

// PSCI CPU_ON comes here. x0 = CPU index.
.global umbra_secondary
umbra_secondary:
    mov     x20, x0
    adrp    x0, umbra_boot_tables
    adrp    x1, umbra_kernel_root           // cleaned to the point of coherency by the boot CPU
    ldr     x1, [x1, :lo12:umbra_kernel_root]
    ldr     x2, =umbra_secondary_virtual
    b       umbra_enable_mmu

// x0 = TTBR0, x1 = TTBR1, x2 = virtual address to go on at.
umbra_enable_mmu:
    ldr     x3, =({MAIR})
    msr     mair_el1, x3
    ldr     x3, =({TCR})
    mrs     x4, id_aa64mmfr0_el1
    and     x4, x4, #0xf                    // PARange; 48 bits are the most a 4 KiB table can hold
    mov     x5, #5
    cmp     x4, x5
    csel    x4, x4, x5, lo
    bfi     x3, x4, #32, #3                 // TCR_EL1.IPS
    msr     tcr_el1, x3
    msr     ttbr0_el1, x0
    msr     ttbr1_el1, x1
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x3, =({SCTLR})
    msr     sctlr_el1, x3
    isb
    br      x2

// Puts x0 into TTBR1 by way of an empty table: the new one maps the same addresses with other block
// sizes, which must never be in the TLB together. Runs from the identity map; x30 is virtual.
.global umbra_replace_root
umbra_replace_root:
    msr     ttbr1_el1, x1
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     ttbr1_el1, x0
    isb
    ret
.ltorg

.text
umbra_primary_virtual:
    ldr     x0, =umbra_bss_start
    ldr     x1, =umbra_bss_end
5:  stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    5b
    ldr     x0, =umbra_stacks
    add     x0, x0, #{STACK_SLOT}
    mov     sp, x0
    ldr     x0, =umbra_vectors
    msr     vbar_el1, x0
    msr     tpidr_el1, xzr
    isb
    mov     x29, #0
    mov     x30, #0
    mov     x0, x21
    mov     x1, x19
    b       {primary}

umbra_secondary_virtual:
    ldr     x0, =umbra_stacks
    add     x1, x20, #1
    mov     x2, #{STACK_SLOT}
    madd    x0, x1, x2, x0
    mov     sp, x0
    ldr     x0, =umbra_vectors
    msr     vbar_el1, x0
    msr     tpidr_el1, x20
    isb
    mov     x29, #0
    mov     x30, #0
    mov     x0, x20
    b       {secondary}
.ltorg
