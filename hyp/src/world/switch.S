// The world switch: straight-line, no decisions. Rust decides what to switch; this moves it.

.text

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
