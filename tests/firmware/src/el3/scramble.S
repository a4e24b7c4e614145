// What a power-down loses: junk in every register that is UNKNOWN when PSCI enters EL2, then there.
//
// x0 = PC, x1 = x0 at EL2, x2 = what this CPU has (features.rs), x3 = a seed for the junk. Does not
// return. The junk is chosen to hurt: traps armed, translation on where EL1 would run, small vector
// lengths, timers that fire, single-step and breakpoints, all list registers with an interrupt pending, all
// priorities active. PSCI promises: MMU off at EL2 (SCTLR_EL2), PSTATE,
// PC and x0; and the counter's frequency, which is firmware's to keep.
.section .text.umbra_enter_el2_scrambled, "ax"
.arch_extension sve
.arch_extension sme
.arch_extension sme2

.global umbra_enter_el2_scrambled
umbra_enter_el2_scrambled:
    mov     x28, x0
    mov     x29, x1
    mov     x27, x2
    ldr     x26, =0x5ca1ab1edeadbeef
    mrs     x0, tpidr_el3
    eor     x26, x26, x0, lsl #32       // another one on each CPU
    eor     x26, x26, x3

    // Streaming mode and ZA are on, too: Z and P are those of streaming mode then.
    tst     x27, #{SME}
    b.eq    0f
    mov     x0, #3
    msr     svcr, x0
    rdsvl   x1, #1
    adr     x0, umbra_enter_el2_scrambled
    mov     w12, #0
9:  ldr     za[w12, 0], [x0]            // this code is junk as good as any
    add     w12, w12, #1
    cmp     w12, w1
    b.lo    9b
    tst     x27, #{SME2}
    b.eq    0f
    ldr     zt0, [x0]
0:  tst     x27, #({SVE} | {SME})
    b.eq    1f
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    dup     z\n\().d, x26
.endr
    tst     x27, #{SME}
    b.ne    8f
    ptrue   p0.b
    wrffr   p0.b
8:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    ptrue   p\n\().h
.endr
    tst     x27, #{SVE}
    b.eq    2f
    mov     x0, #0
    msr     s3_4_c1_c2_0, x0            // ZCR_EL2: the smallest
    mov     x0, #1
    msr     s3_0_c1_c2_0, x0            // ZCR_EL1
    b       2f
.arch_extension nosme2
.arch_extension nosme
.arch_extension nosve
1:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    fmov    d\n, x26
    fmov    v\n\().d[1], x26
.endr
2:  mov     x0, #0x07c00000             // AHP, DN, FZ, RMode
    msr     fpcr, x0
    mov     x0, #0x9f
    msr     fpsr, x0

    tst     x27, #{SME}
    b.eq    3f
    mov     x0, #0
    msr     s3_4_c1_c2_6, x0            // SMCR_EL2: the smallest, no FA64
    msr     s3_0_c1_c2_6, x0            // SMCR_EL1
    msr     s3_3_c13_c0_5, x26          // TPIDR2_EL0
    msr     s3_0_c1_c2_4, x26           // SMPRI_EL1
    msr     s3_4_c1_c2_5, x26           // SMPRIMAP_EL2
3:  tst     x27, #{FPMR}
    b.eq    3f
    msr     s3_3_c4_c4_2, x26           // FPMR
3:
    mov     x0, #-1
    tst     x27, #{FGT}
    b.eq    4f
    msr     s3_4_c1_c1_4, x0            // HFGRTR_EL2
    msr     s3_4_c1_c1_5, x0            // HFGWTR_EL2
    msr     s3_4_c1_c1_6, x0            // HFGITR_EL2
    msr     s3_4_c3_c1_4, x0            // HDFGRTR_EL2
    msr     s3_4_c3_c1_5, x0            // HDFGWTR_EL2
4:  tst     x27, #{FGT_AMU}
    b.eq    5f
    msr     s3_4_c3_c1_6, x0            // HAFGRTR_EL2
5:  tst     x27, #{FGT2}
    b.eq    6f
    msr     s3_4_c3_c1_2, xzr           // HFGRTR2_EL2: here a 0 traps
    msr     s3_4_c3_c1_3, xzr           // HFGWTR2_EL2
    msr     s3_4_c3_c1_7, xzr           // HFGITR2_EL2
    msr     s3_4_c3_c1_0, xzr           // HDFGRTR2_EL2
    msr     s3_4_c3_c1_1, xzr           // HDFGWTR2_EL2
6:  tst     x27, #{HCX}
    b.eq    7f
    mov     x0, #0x5555
    msr     s3_4_c1_c2_2, x0            // HCRX_EL2
7:
    mov     x0, #-1
    msr     cptr_el2, x0                // all traps
    msr     hstr_el2, x0
    msr     mdcr_el2, x0
    msr     vtcr_el2, x26
    msr     vttbr_el2, x26
    msr     ttbr0_el2, x26
    msr     tcr_el2, x26
    msr     mair_el2, x26
    msr     vbar_el2, x26
    msr     tpidr_el2, x26
    msr     sp_el2, x26
    msr     elr_el2, x26
    msr     esr_el2, x26
    msr     far_el2, x26
    msr     hpfar_el2, x26
    msr     vpidr_el2, x26
    msr     vmpidr_el2, x26
    msr     cntvoff_el2, x26
    msr     cnthctl_el2, xzr            // EL1's counter and timer trap
    msr     cnthp_cval_el2, xzr
    mov     x0, #1                      // enabled, and its time has come
    msr     cnthp_ctl_el2, x0
    // VM, TGE, E2H, all virtual interrupts, all traps; neither nested virtualisation nor AArch64 EL1.
    ldr     x0, =0x77fffffff
    msr     hcr_el2, x0
    ldr     x0, ={SCTLR_EL2}
    msr     sctlr_el2, x0

    msr     s3_4_c12_c9_5, xzr          // ICC_SRE_EL2
    msr     s3_4_c12_c11_7, x26         // ICH_VMCR_EL2
    mov     x0, #0xff
    msr     s3_4_c12_c11_0, x0          // ICH_HCR_EL2: on, with maintenance interrupts
    mrs     x1, s3_4_c12_c11_1          // ICH_VTR_EL2: list registers, priority bits
    ldr     x0, =0x500000000000001b     // pending, Group 1, vINTID 27 and so on
    and     x2, x1, #0x1f
.macro  list number, register
    cmp     x2, #\number
    b.lo    9f
    msr     \register, x0
    add     x0, x0, #1
9:
.endm
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
    list    \n, s3_4_c12_c12_\n         // ICH_LR<n>_EL2
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7
    list    (\n + 8), s3_4_c12_c13_\n   // ICH_LR<n + 8>_EL2
.endr
    ubfx    x2, x1, #26, #3
    mov     x0, #0xffffffff
    msr     s3_4_c12_c8_0, x0           // ICH_AP0R0_EL2
    msr     s3_4_c12_c9_0, x0           // ICH_AP1R0_EL2
    cmp     x2, #5
    b.lo    9f
    msr     s3_4_c12_c8_1, x0
    msr     s3_4_c12_c9_1, x0
    b.eq    9f
    msr     s3_4_c12_c8_2, x0
    msr     s3_4_c12_c8_3, x0
    msr     s3_4_c12_c9_2, x0
    msr     s3_4_c12_c9_3, x0
9:
    tst     x27, #{PAUTH}
    b.eq    9f
.irp n, 0, 1, 2, 3
    msr     s3_0_c2_c1_\n, x26          // APIA, APIB
    msr     s3_0_c2_c2_\n, x26          // APDA, APDB
.endr
    msr     s3_0_c2_c3_0, x26           // APGA
    msr     s3_0_c2_c3_1, x26
9:  tst     x27, #{RAS}
    b.eq    9f
    msr     s3_0_c12_c1_1, x26          // DISR_EL1
    msr     s3_4_c12_c1_1, x26          // VDISR_EL2
    msr     s3_4_c5_c2_3, x26           // VSESR_EL2
9:  tst     x27, #{AARCH32}
    b.eq    9f
    msr     spsr_abt, x26
    msr     spsr_und, x26
    msr     spsr_irq, x26
    msr     spsr_fiq, x26
    msr     s3_4_c3_c0_0, x26           // DACR32_EL2
    msr     s3_4_c5_c0_1, x26           // IFSR32_EL2
    msr     s3_4_c5_c3_0, x26           // FPEXC32_EL2
    msr     s2_4_c0_c7_0, x26           // DBGVCR32_EL2
9:  tst     x27, #{SCXT}
    b.eq    9f
    msr     s3_3_c13_c0_7, x26          // SCXTNUM_EL0
    msr     s3_0_c13_c0_7, x26          // SCXTNUM_EL1
    msr     s3_4_c13_c0_7, x26          // SCXTNUM_EL2
9:  tst     x27, #{VHE}
    b.eq    9f
    mov     x0, #1
    msr     s3_4_c13_c0_1, x26          // CONTEXTIDR_EL2
    msr     s3_4_c2_c0_1, x26           // TTBR1_EL2
    msr     s3_4_c14_c3_2, xzr          // CNTHV_CVAL_EL2
    msr     s3_4_c14_c3_1, x0           // CNTHV_CTL_EL2
9:  tst     x27, #{TRF}
    b.eq    9f
    msr     s3_0_c1_c2_1, x26           // TRFCR_EL1
    msr     s3_4_c1_c2_1, x26           // TRFCR_EL2
9:  tst     x27, #{PMU}
    b.eq    9f
    mov     x0, #0x41
    mov     x1, #-1
    msr     s3_3_c9_c12_0, x0           // PMCR_EL0
    msr     s3_3_c9_c12_1, x1           // PMCNTENSET_EL0
    msr     s3_3_c9_c14_0, x1           // PMUSERENR_EL0
9:
    msr     s3_4_c1_c0_1, x26           // ACTLR_EL2
    msr     s3_4_c1_c1_7, x26           // HACR_EL2
    msr     s3_4_c5_c1_0, x26           // AFSR0_EL2
    msr     s3_4_c5_c1_1, x26           // AFSR1_EL2
    msr     s3_4_c10_c3_0, x26          // AMAIR_EL2
    msr     spsr_el2, x26

    ldr     x0, =0xa001                 // MDE, KDE, SS
    msr     mdscr_el1, x0
    mov     x0, #0x1e7                  // a breakpoint at EL1 and EL0
    msr     s2_0_c0_c0_4, x26           // DBGBVR0_EL1
    msr     s2_0_c0_c0_5, x0            // DBGBCR0_EL1
    mov     x0, #0xe
    msr     csselr_el1, x0
    msr     spsr_el1, x26
    ldr     x0, =0x30d0198d             // MMU and caches on
    msr     sctlr_el1, x0
    msr     ttbr0_el1, x26
    msr     ttbr1_el1, x26
    msr     tcr_el1, x26
    msr     mair_el1, x26
    msr     amair_el1, x26
    msr     vbar_el1, x26
    msr     contextidr_el1, x26
    msr     cpacr_el1, x26
    msr     cntkctl_el1, x26
    msr     sp_el1, x26
    msr     sp_el0, x26
    msr     elr_el1, x26
    msr     esr_el1, x26
    msr     far_el1, x26
    msr     afsr0_el1, x26
    msr     afsr1_el1, x26
    msr     par_el1, x26
    msr     tpidr_el0, x26
    msr     tpidrro_el0, x26
    msr     tpidr_el1, x26
    mov     x0, #1                      // enabled, and their time has come
    msr     cntv_cval_el0, xzr
    msr     cntp_cval_el0, xzr
    msr     cntv_ctl_el0, x0
    msr     cntp_ctl_el0, x0

    msr     elr_el3, x28
    mov     x0, #0x3c9                  // EL2h, DAIF masked
    msr     spsr_el3, x0
    isb
    mov     x0, x29
.irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,27,28,29,30
    mov     x\n, x26
.endr
    // EL3's stack is empty again.
    ldr     x1, =umbra_stacks
    mrs     x2, tpidr_el3
    add     x2, x2, #1
    mov     x3, #{STACK_BYTES}
    madd    x1, x2, x3, x1
    mov     sp, x1
    mov     x1, x26
    mov     x2, x26
    mov     x3, x26
    eret
.ltorg
