// Marks for a traced run, and the null hypercall's loop.
//
// A row of the table is what is executed between umbra_bench_row and umbra_bench_row_end, as far as it
// lies between a label *_begin_* and the next *_end_* (the guest has its own: tests/guest/src/bench.S).

.text
.global umbra_bench_row
umbra_bench_row:
    ret
.global umbra_bench_row_end
umbra_bench_row_end:
    ret
.global umbra_bench_begin_any
umbra_bench_begin_any:
    ret
.global umbra_bench_end_any
umbra_bench_end_any:
    ret

// x0 = function ID, x1 = iterations. Returns the counter's ticks. The call changes x0-x8 at most.
.global umbra_bench_null
.global umbra_bench_begin_null
.global umbra_bench_end_null
umbra_bench_null:
    mov     x9, x0
    mov     x10, x1
    isb
    mrs     x11, cntvct_el0
umbra_bench_begin_null:
    mov     x0, x9
    hvc     #0
    subs    x10, x10, #1
    b.ne    umbra_bench_begin_null
umbra_bench_end_null:
    isb
    mrs     x0, cntvct_el0
    sub     x0, x0, x11
    ret
