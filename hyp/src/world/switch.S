// The world switch: straight-line, no decisions. Rust decides what to switch; this moves it.

.macro  sb_barrier
    // Nothing is to be speculated past an ERET.
    dsb     nsh
    isb
.endm

.text

// x0 = *mut GuestRegs (x0-x30), x1 = *mut Cpu, for umbra_guest_trap. Returns in x0 which vector the guest left by:
// 0 synchronous, 1 IRQ or FIQ, 2 SError. ELR_EL2, SPSR_EL2, ESR_EL2 and so on are still the guest's.
// The host's callee-saved registers wait on hyp's stack.
.global umbra_guest_enter
umbra_guest_enter:
    stp     x19, x20, [sp, #-112]!
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    stp     x0, x1, [sp, #96]
guest_resume:
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    sb_barrier

// The guest's x0-x30 to its GuestRegs, in x0 then.
.macro  save_guest
    stp     x0, x1, [sp, #-16]!
    ldr     x0, [sp, #(96 + 16)]
    stp     x2, x3, [x0, #16]
    ldp     x2, x3, [sp], #16
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    str     x30, [x0, #240]
    stp     x2, x3, [x0]
.endm

guest_exit_sync:
    save_guest
    mrs     x1, esr_el2
    lsr     x2, x1, #26
    cmp     x2, #{EC_HVC64}
    b.ne    1f
2:  mov     x0, #0
    b       guest_exit_common
1:  mov     x19, x0
    ldr     x0, [sp, #104]
    bl      umbra_guest_trap
    tbz     w0, #0, 2b
    mov     x0, x19
    b       guest_resume
guest_exit_irq:
    save_guest
    mov     x0, #1
    b       guest_exit_common
guest_exit_serror:
    save_guest
    mov     x0, #2

guest_exit_common:
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    ldp     x19, x20, [sp], #112
    ret

// One pair of EL0/EL1 registers: the outgoing world's to [x0], the incoming world's from [x1].
.macro  switch_pair offset:req, a:req, b:req
    mrs     x2, \a
    mrs     x3, \b
    ldp     x4, x5, [x1, #\offset]
    stp     x2, x3, [x0, #\offset]
    msr     \a, x4
    msr     \b, x5
.endm

// x0 = *mut El1Regs to save to, x1 = *const El1Regs to load from. The order is that of El1Regs
// (checked there at compile time).
.global umbra_switch_el1
umbra_switch_el1:
    switch_pair 0,   sctlr_el1, cpacr_el1
    switch_pair 16,  ttbr0_el1, ttbr1_el1
    switch_pair 32,  tcr_el1, mair_el1
    switch_pair 48,  amair_el1, vbar_el1
    switch_pair 64,  esr_el1, far_el1
    switch_pair 80,  afsr0_el1, afsr1_el1
    switch_pair 96,  contextidr_el1, par_el1
    switch_pair 112, tpidr_el1, tpidr_el0
    switch_pair 128, tpidrro_el0, cntkctl_el1
    switch_pair 144, sp_el0, sp_el1
    switch_pair 160, elr_el1, spsr_el1
    switch_pair 176, csselr_el1, mdscr_el1
    ret

// The same for pointer-authentication keys (FEAT_PAuth), from PauthKeys.
.global umbra_switch_pauth
umbra_switch_pauth:
    .arch_extension pauth
    switch_pair 0,  apiakeylo_el1, apiakeyhi_el1
    switch_pair 16, apibkeylo_el1, apibkeyhi_el1
    switch_pair 32, apdakeylo_el1, apdakeyhi_el1
    switch_pair 48, apdbkeylo_el1, apdbkeyhi_el1
    switch_pair 64, apgakeylo_el1, apgakeyhi_el1
    ret
