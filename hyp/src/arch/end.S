// What is done to memory as a whole: a translation of all of RAM, one to one (`end`), is in force
// meanwhile, and there is no stack. The code is mapped at its physical address by all of hyp's tables.

.section .idmap.text, "ax"

// x10 = bytes that DC ZVA zeroes, 0 if it must not be used; x11 = bytes of a cache line. Clobbers x12.
.macro  end_sizes
    mrs     x12, dczid_el0
    ubfx    x10, x12, #0, #4            // BS: log2 of words
    mov     x11, #4
    lsl     x10, x11, x10
    tst     x12, #(1 << 4)              // DZP
    csel    x10, xzr, x10, ne
    mrs     x12, ctr_el0
    ubfx    x12, x12, #16, #4           // DminLine: log2 of words
    lsl     x11, x11, x12
.endm

// Zeroes pages from \from (which moves on) to \to, in memory: each is cleaned to PoC, because a reset may
// lose what is in caches, and memory would be as before. Clobbers x12, x13.
.macro  end_zero_pages from:req, to:req
1:  cmp     \from, \to
    b.hs    6f
    add     x12, \from, #4096
    mov     x13, \from
    cbz     x10, 3f
2:  dc      zva, x13
    add     x13, x13, x10
    cmp     x13, x12
    b.lo    2b
    b       4f
3:  stp     xzr, xzr, [x13], #16
    cmp     x13, x12
    b.lo    3b
4:  mov     x13, \from
5:  dc      civac, x13
    add     x13, x13, x11
    cmp     x13, x12
    b.lo    5b
    mov     \from, x12
    b       1b
6:
.endm

// The translation with this root, and nothing of another in the TLB. What two of them map alike stays
// mapped; this is executed there.
.macro  end_translate root:req
    dsb     sy
    msr     ttbr0_el2, \root
    isb
    tlbi    alle2
    dsb     nsh
    isb
.endm

// x0 = Plan, physical; x1 = TTBR0_EL2 of the translation of all RAM. Every stage 2 loses its root's entries,
// and every TLB what it held of EL1&0.
.global umbra_end_close
umbra_end_close:
    mrs     x9, ttbr0_el2
    end_translate x1
    add     x2, x0, #{PLAN_ROOTS}
    add     x3, x2, #{PLAN_ROOTS_BYTES}
7:  ldr     x4, [x2], #8
    cbz     x4, 9f
    add     x5, x4, #4096
8:  stp     xzr, xzr, [x4], #16
    cmp     x4, x5
    b.lo    8b
9:  cmp     x2, x3
    b.lo    7b
    // Twice: on some cores stores outlive the first (world/errata.rs).
    dsb     ish
    tlbi    alle1is
    dsb     ish
    tlbi    alle1is
    dsb     ish
    end_translate x9
    ret

// x0..x1: pages, physical; x2 = TTBR0_EL2 of the translation of all RAM.
.global umbra_end_zero
umbra_end_zero:
    mrs     x9, ttbr0_el2
    end_translate x2
    end_sizes
    end_zero_pages x0, x1
    end_translate x9
    ret

// x0 = Plan, physical; x1 = TTBR0_EL2 of the translation of all RAM; x2-x5 = the call of firmware that ends the
// machine; x6 = whether firmware wipes. Takes hyp's own translation from all other CPUs, and zeroes all that is not the
// host's: pages by owner first, then hyp's own, the plan and the owners among it. Nothing is read there but what is in
// registers by then.
.global umbra_end_wipe
umbra_end_wipe:
    mov     x20, x2
    mov     x21, x3
    mov     x22, x4
    mov     x23, x5
    mrs     x9, ttbr0_el2
    end_translate x1
    // A CPU that firmware returns only now, or that wakes only now, fetches nothing at EL2, its vectors included: it
    // writes nothing behind the wipe, whatever it was about to do.
    and     x9, x9, #0xfffffffff000
    add     x10, x9, #4096
7:  stp     xzr, xzr, [x9], #16
    cmp     x9, x10
    b.lo    7b
    // Twice, as above.
    dsb     ish
    tlbi    alle2is
    dsb     ish
    tlbi    alle2is
    dsb     ish
    isb
    cbnz    x6, 11f
    end_sizes
    ldp     x24, x25, [x0, #{PLAN_HYP}]
    ldp     x26, x27, [x0, #({PLAN_HYP} + 16)]
    mov     x15, #{WIPED_STATES}
    add     x2, x0, #{PLAN_BANKS}
    mov     x3, #{MAX_BANKS}
    // Of each bank, x5..x6: its pages; x7: the owner of the first.
7:  ldp     x5, x6, [x2], #16
    ldr     x7, [x2], #8
8:  cmp     x5, x6
    b.hs    10f
    ldrb    w8, [x7], #{STATE_BYTES}
    lsr     x8, x15, x8
    add     x14, x5, #4096
    tbz     x8, #0, 9f
    end_zero_pages x5, x14
9:  mov     x5, x14
    b       8b
10: subs    x3, x3, #1
    b.ne    7b
    end_zero_pages x24, x25
    end_zero_pages x26, x27
    dsb     sy
11: mov     x0, x20
    mov     x1, x21
    mov     x2, x22
    mov     x3, x23
    .irp    n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, xzr
    .endr
    smc     #0
    // Firmware would not: there is nothing to go on with.

// A CPU stops. What it executes here is not wiped, and needs no translation.
.global umbra_end_park
umbra_end_park:
    mrs     x0, sctlr_el2
    bic     x0, x0, #1
    msr     sctlr_el2, x0
    isb
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, xzr
    .endr
12: wfe
    b       12b
