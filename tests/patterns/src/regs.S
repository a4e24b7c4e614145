// The FP/SVE register file, to memory and back, in the layout of umbra_shared::sve at the VL in force.

.arch_extension fp
.arch_extension simd
.arch_extension sve
.text

// x0 = image. Fills every register.
.global umbra_pattern_load_sve
umbra_pattern_load_sve:
    addvl   x1, x0, #31
    addvl   x1, x1, #1
    ldr     p0, [x1, #16, mul vl]           // FFR comes through a predicate register, so it is first
    wrffr   p0.b
// The same without FFR, for streaming mode.
.global umbra_pattern_load_streaming
umbra_pattern_load_streaming:
    addvl   x1, x0, #31
    addvl   x1, x1, #1
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    ldr     p\n, [x1, #\n, mul vl]
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    ldr     z\n, [x0, #\n, mul vl]
.endr
    ret

// x0 = buffer. Leaves every register as it is.
.global umbra_pattern_dump_sve
umbra_pattern_dump_sve:
    mov     x2, x30
    bl      umbra_pattern_dump_streaming
    rdffr   p0.b
    str     p0, [x1, #16, mul vl]
    ldr     p0, [x1]
    ret     x2

// The same without FFR, for streaming mode. x1 = where P0 went.
.global umbra_pattern_dump_streaming
umbra_pattern_dump_streaming:
    addvl   x1, x0, #31
    addvl   x1, x1, #1
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     z\n, [x0, #\n, mul vl]
.endr
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    str     p\n, [x1, #\n, mul vl]
.endr
    ret

.arch_extension nosve

// x0 = image of V0-V31.
.global umbra_pattern_load_fpsimd
umbra_pattern_load_fpsimd:
.irp n, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
    ldr     q\n, [x0, #(16 * \n)]
.endr
.irp n, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
    ldr     q\n, [x0, #(16 * \n)]
.endr
    ret

// x0 = buffer.
.global umbra_pattern_dump_fpsimd
umbra_pattern_dump_fpsimd:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    str     q\n, [x0, #(16 * \n)]
.endr
    ret

.arch_extension sve
.arch_extension sme
.arch_extension sme2

// x0 = a row of ZA, x1 = its number.
.global umbra_pattern_load_za
umbra_pattern_load_za:
    mov     w12, w1
    ldr     za[w12, 0], [x0]
    ret

// The same.
.global umbra_pattern_dump_za
umbra_pattern_dump_za:
    mov     w12, w1
    str     za[w12, 0], [x0]
    ret

// x0 = 64 bytes.
.global umbra_pattern_load_zt0
umbra_pattern_load_zt0:
    ldr     zt0, [x0]
    ret

// x0 = 64 bytes.
.global umbra_pattern_dump_zt0
umbra_pattern_dump_zt0:
    str     zt0, [x0]
    ret

.arch_extension nosme2
.arch_extension nosme
.arch_extension nosve
