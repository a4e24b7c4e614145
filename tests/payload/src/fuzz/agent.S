// A guest of one page, position-independent: it does what the host answers to its HVCs, as long as
// nothing else happens. x0 of an answer: 1 = store x1 in its own page, 2 = make the call x1 with x2 of
// its own to hyp, 3 = use FP, 4 = SVCR becomes x1 (of a vCPU with SME), 5 = as 2 with its own page in x2, as
// an entry, 6 = make the call x1 to hyp with a range that x2 names and a number: from the page x2 is in on as many as bits 11:4
// say, and bits 3:0; anything else: nothing.

.section .rodata.umbra_fuzz_agent, "a", %progbits
.balign 8
.global umbra_fuzz_agent
umbra_fuzz_agent:
    adr     x19, umbra_fuzz_agent
    mov     x0, #(3 << 20 | 3 << 24)        // CPACR_EL1.FPEN, SMEN
    msr     cpacr_el1, x0
    isb
1:  mov     x0, #0x77
    hvc     #0
    cmp     x0, #1
    b.eq    2f
    cmp     x0, #2
    b.eq    3f
    cmp     x0, #4
    b.eq    4f
    cmp     x0, #5
    b.eq    5f
    cmp     x0, #6
    b.eq    7f
    cmp     x0, #3
    b.ne    1b
.arch_extension fp
    fmov    d0, x1
.arch_extension nofp
    b       1b
2:  str     x1, [x19, #{STORED}]
    b       1b
3:  mov     x0, x1
    mov     x1, x2
    mov     x2, #0
6:  mov     x3, #0
    hvc     #0
    b       1b
5:  mov     x0, x1
    mov     x1, x2
    mov     x2, x19
    b       6b
7:  mov     x0, x1
    and     x3, x2, #0xf
    ubfx    x4, x2, #4, #8
    and     x1, x2, #~0xfff
    add     x2, x1, x4, lsl #12
    hvc     #0
    b       1b
4:  msr     S3_3_C4_C2_2, x1                // SVCR
    b       1b
.global umbra_fuzz_agent_end
umbra_fuzz_agent_end:
.text
