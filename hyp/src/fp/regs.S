// The only FP/SIMD/SVE/SME instructions of hyp: save, load, zero, and reading the VL.
//
// Offsets come from the vector length in force ("mul vl"), so an image is always laid out as
// umbra_shared::sve::Layout says for the VL that RDVL returns at that moment: Z0-Z31, P0-P15, FFR.
// Every routine takes its image as an argument and is called across a real function call, so the
// compiler knows that memory changes. CPTR_EL2 must be open (and synchronised) for what they touch.

.arch_extension sve

.macro  for_z insn:req
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \insn   z\n, [x0, #\n, mul vl]
    .endr
.endm

.macro  for_p insn:req
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \insn   p\n, [x2, #\n, mul vl]
    .endr
.endm

.text

// () -> VL in bytes
.global umbra_fp_rdvl
umbra_fp_rdvl:
    rdvl    x0, #1
    ret

// x0 = image, x1 = *mut [FPSR, FPCR] as u64
.global umbra_fp_save_sve
umbra_fp_save_sve:
    for_z   str
    addvl   x2, x0, #16
    addvl   x2, x2, #16
    for_p   str
    rdffr   p0.b                        // FFR is reachable through a predicate only: after P0 is safe
    str     p0, [x2, #16, mul vl]
    ldr     p0, [x2]                    // a save changes nothing
    mrs     x3, fpsr
    mrs     x4, fpcr
    stp     x3, x4, [x1]
    ret

// x0 = image, x1 = *const [FPSR, FPCR] as u64
.global umbra_fp_load_sve
umbra_fp_load_sve:
    addvl   x2, x0, #16
    addvl   x2, x2, #16
    ldr     p0, [x2, #16, mul vl]       // FFR first: it goes through P0
    wrffr   p0.b
    for_p   ldr
    for_z   ldr
    ldp     x3, x4, [x1]
    msr     fpsr, x3
    msr     fpcr, x4
    ret

// Both without FFR, for streaming mode without FEAT_SME_FA64: RDFFR and WRFFR are illegal there.
.global umbra_fp_save_streaming
umbra_fp_save_streaming:
    for_z   str
    addvl   x2, x0, #16
    addvl   x2, x2, #16
    for_p   str
    mrs     x3, fpsr
    mrs     x4, fpcr
    stp     x3, x4, [x1]
    ret

.global umbra_fp_load_streaming
umbra_fp_load_streaming:
    addvl   x2, x0, #16
    addvl   x2, x2, #16
    for_p   ldr
    for_z   ldr
    ldp     x3, x4, [x1]
    msr     fpsr, x3
    msr     fpcr, x4
    ret

// Zeroes all of Z, P and FFR at the VL in force, FPSR and FPCR.
.global umbra_fp_zero_sve
umbra_fp_zero_sve:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    pfalse  p\n\().b
    .endr
    wrffr   p0.b
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    dup     z\n\().d, #0
    .endr
    msr     fpsr, xzr
    msr     fpcr, xzr
    ret

.arch_extension nosve
.arch_extension sme2

// () -> SVL in bytes
.global umbra_fp_rdsvl
umbra_fp_rdsvl:
    rdsvl   x0, #1
    ret

// () -> SVCR
.global umbra_fp_svcr
umbra_fp_svcr:
    mrs     x0, svcr
    ret

// PSTATE.SM = 1, and so on. A change of PSTATE.SM zeroes Z, P and FFR, one of PSTATE.ZA to 1 zeroes ZA.
.global umbra_fp_start_sm
umbra_fp_start_sm:
    smstart sm
    ret

.global umbra_fp_stop_sm
umbra_fp_stop_sm:
    smstop  sm
    ret

.global umbra_fp_start_za
umbra_fp_start_za:
    smstart za
    ret

.global umbra_fp_stop_za
umbra_fp_stop_za:
    smstop  za
    ret

// One row of ZA after the other, 16 at a time: the SVL is a multiple of 16 bytes, and ZA is square.
.macro  for_za insn:req
    rdsvl   x1, #1
    mov     w12, #0
1:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \insn   za[w12, \n], [x0, #\n, mul vl]
    .endr
    addsvl  x0, x0, #16
    add     w12, w12, #16
    cmp     w12, w1
    b.lo    1b
.endm

// x0 = ZA, SVL * SVL bytes
.global umbra_fp_save_za
umbra_fp_save_za:
    for_za  str
    ret

.global umbra_fp_load_za
umbra_fp_load_za:
    for_za  ldr
    ret

.global umbra_fp_zero_za
umbra_fp_zero_za:
    zero    {{za}}
    ret

// x0 = ZT0, 64 bytes
.global umbra_fp_save_zt0
umbra_fp_save_zt0:
    str     zt0, [x0]
    ret

.global umbra_fp_load_zt0
umbra_fp_load_zt0:
    ldr     zt0, [x0]
    ret

.global umbra_fp_zero_zt0
umbra_fp_zero_zt0:
    zero    {{zt0}}
    ret

.arch_extension nosme2
.arch_extension nosme

// FPMR by its encoding, S3_3_C4_C4_2: it is younger than many assemblers.
// () -> FPMR
.global umbra_fp_fpmr
umbra_fp_fpmr:
    mrs     x0, s3_3_c4_c4_2
    ret

// x0 = FPMR
.global umbra_fp_set_fpmr
umbra_fp_set_fpmr:
    msr     s3_3_c4_c4_2, x0
    ret

.arch_extension fp
.arch_extension simd

.macro  for_q_pairs insn:req
    \insn   q0, q1, [x0, #0]
    \insn   q2, q3, [x0, #32]
    \insn   q4, q5, [x0, #64]
    \insn   q6, q7, [x0, #96]
    \insn   q8, q9, [x0, #128]
    \insn   q10, q11, [x0, #160]
    \insn   q12, q13, [x0, #192]
    \insn   q14, q15, [x0, #224]
    \insn   q16, q17, [x0, #256]
    \insn   q18, q19, [x0, #288]
    \insn   q20, q21, [x0, #320]
    \insn   q22, q23, [x0, #352]
    \insn   q24, q25, [x0, #384]
    \insn   q26, q27, [x0, #416]
    \insn   q28, q29, [x0, #448]
    \insn   q30, q31, [x0, #480]
.endm

// x0 = V0-V31 (512 bytes), x1 = *mut [FPSR, FPCR] as u64
.global umbra_fp_save_fpsimd
umbra_fp_save_fpsimd:
    for_q_pairs stp
    mrs     x3, fpsr
    mrs     x4, fpcr
    stp     x3, x4, [x1]
    ret

// x0 = V0-V31, x1 = *const [FPSR, FPCR] as u64. With SVE open, writing a V register zeroes the rest
// of its Z register; P and FFR stay as they are.
.global umbra_fp_load_fpsimd
umbra_fp_load_fpsimd:
    for_q_pairs ldp
    ldp     x3, x4, [x1]
    msr     fpsr, x3
    msr     fpcr, x4
    ret

// Zeroes V0-V31, FPSR and FPCR.
.global umbra_fp_zero_fpsimd
umbra_fp_zero_fpsimd:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    movi    v\n\().2d, #0
    .endr
    msr     fpsr, xzr
    msr     fpcr, xzr
    ret
