/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * VCPU_RUN, and all registers as it leaves them (../src/hunt.rs has the layout): for a build that looks for a protected guest's
 * content there. No other part of the module touches FP registers.
 */
#include <linux/linkage.h>

	.arch	armv8-a+sve

#define ARGUMENTS	0
#define HAS		14
#define X		16
#define FPSR		47
#define VL		48
#define SYSTEM		50
#define Z		80
#define P		1104

#define HAS_SVE		0
#define HAS_SME		1

#define SVCR		s3_3_c4_c2_2
#define ZCR_EL1		s3_0_c1_c2_0
#define TPIDR2_EL0	s3_3_c13_c0_5

	.macro	keep register
	mrs	x9, \register
	str	x9, [x10], #8
	.endm

/* x0: the words. Interrupts are masked. */
SYM_FUNC_START(umbra_hunt_run)
	stp	x29, x30, [sp, #-112]!
	mov	x29, sp
	stp	x19, x20, [sp, #16]
	stp	x21, x22, [sp, #32]
	stp	x23, x24, [sp, #48]
	stp	x25, x26, [sp, #64]
	stp	x27, x28, [sp, #80]
	str	x0, [sp, #96]
	mov	x15, x0
	.irp	n, 0, 2, 4, 6, 8, 10, 12
	ldr	x\n, [x15, #8 * (ARGUMENTS + \n)]
	.endr
	.irp	n, 1, 3, 5, 7, 9, 11, 13
	ldr	x\n, [x15, #8 * (ARGUMENTS + \n)]
	.endr
	hvc	#0
	str	x0, [sp, #104]
	ldr	x0, [sp, #96]
	.irp	n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
	str	x\n, [x0, #8 * (X + \n)]
	.endr
	ldr	x9, [sp, #104]
	str	x9, [x0, #8 * X]

	/* What the guest has of its own, and hyp switches. */
	ldr	x11, [x0, #8 * HAS]
	add	x10, x0, #8 * SYSTEM
	.irp	register, tpidr_el0, tpidrro_el0, tpidr_el1, contextidr_el1, par_el1, far_el1, elr_el1, \
			spsr_el1, sp_el0, afsr0_el1, afsr1_el1, esr_el1, mair_el1, amair_el1, tcr_el1, ttbr0_el1, \
			ttbr1_el1, vbar_el1, cntkctl_el1, cntv_cval_el0, mdscr_el1, dbgbvr0_el1, dbgwvr0_el1
	keep	\register
	.endr
	mov	x12, xzr
	tbz	x11, #HAS_SME, 1f
	mrs	x12, SVCR
	keep	TPIDR2_EL0
1:
	/* The first of these brings the host's registers back, if all is well. */
	mrs	x9, fpsr
	str	x9, [x0, #8 * FPSR]
	add	x14, x0, #8 * Z
	tbz	x11, #HAS_SVE, 3f
	/* As much of the registers as the host can see. */
	mrs	x13, ZCR_EL1
	mov	x9, #15
	msr	ZCR_EL1, x9
	isb
	rdvl	x9, #1
	str	x9, [x0, #8 * VL]
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	str	z\n, [x14, #\n, mul vl]
	.endr
	mov	x14, #8 * P
	add	x14, x0, x14
	.irp	n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	str	p\n, [x14, #\n, mul vl]
	.endr
	/* In streaming mode there may be no FFR. */
	tbnz	x12, #0, 2f
	rdffr	p0.b
	str	p0, [x14, #16, mul vl]
	ldr	p0, [x14]
2:	msr	ZCR_EL1, x13
	isb
	b	4f
3:	mov	x9, #16
	str	x9, [x0, #8 * VL]
	.irp	n, 0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,30
	str	q\n, [x14, #16 * \n]
	.endr
	.irp	n, 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31
	str	q\n, [x14, #16 * \n]
	.endr
4:	ldp	x19, x20, [sp, #16]
	ldp	x21, x22, [sp, #32]
	ldp	x23, x24, [sp, #48]
	ldp	x25, x26, [sp, #64]
	ldp	x27, x28, [sp, #80]
	ldp	x29, x30, [sp], #112
	ret
SYM_FUNC_END(umbra_hunt_run)
