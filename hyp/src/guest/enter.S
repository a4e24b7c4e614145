// Into a guest and out of it: straight-line, no decisions.

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
    // Nothing is to be speculated past an ERET.
    dsb     nsh
    isb

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

.global umbra_guest_exit_sync
.hidden umbra_guest_exit_sync
umbra_guest_exit_sync:
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
.global umbra_guest_exit_irq
.hidden umbra_guest_exit_irq
umbra_guest_exit_irq:
    save_guest
    mov     x0, #1
    b       guest_exit_common
.global umbra_guest_exit_serror
.hidden umbra_guest_exit_serror
umbra_guest_exit_serror:
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
