// The only FP/SIMD/SVE instructions of hyp: save, load, zero, and reading the VL.
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

// PSTATE.SM = 0, PSTATE.ZA = 0 (SVCR by its encoding: assemblers may not know SME). Zeroes Z, P and FFR
// if streaming mode was on.
.global umbra_fp_stop_streaming
umbra_fp_stop_streaming:
    msr     s3_3_c4_c2_2, xzr
    isb
    ret

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
