/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the two halves of the module call each other by. All that decides anything is Rust (../src); here is Linux.
 *
 * umbra_*: Rust's, called from C. shim_*: C's, called from Rust. Addresses of pages are physical, counts are pages,
 * and what returns an int or a long returns a negative errno.
 */
#ifndef UMBRA_H
#define UMBRA_H

#include <linux/types.h>

/* What a file of ours stands for, and Rust's object behind it. */
enum umbra_kind { UMBRA_SYSTEM, UMBRA_VM, UMBRA_VCPU, UMBRA_GIC, UMBRA_KINDS };

/* Whether Umbra is below; only then anything else may be called. */
int umbra_init(void);
void umbra_exit(void);
/* Takes every VM down, as no more is to run. */
void umbra_shutdown(void);

long umbra_ioctl(u32 kind, void *object, u32 command, unsigned long argument);
void umbra_release(u32 kind, void *object);
/* The page of a vCPU's kvm_run; 0: the object has none. */
u64 umbra_run_page(u32 kind, void *object);

/* An irqfd has been signalled. In atomic context. */
void umbra_irqfd(void *vm, u32 gsi, bool resample);
/* The work of shim_work_queue. */
void umbra_work(void *object);

int umbra_files_init(void);
void umbra_files_exit(void);
int umbra_cpu_init(void);
void umbra_cpu_exit(void);
int umbra_events_init(void);
void umbra_events_exit(void);

#endif
