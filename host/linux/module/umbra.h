/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the two halves of the module call each other by. All that decides anything is Rust (../src); here is Linux.
 *
 * umbra_*: Rust's, called from C. shim_*: C's, called from Rust. Addresses of pages are physical, counts are pages,
 * and what returns an int or a long returns a negative errno.
 */
#ifndef UMBRA_H
#define UMBRA_H

#include <linux/compiler.h>
#include <linux/types.h>

struct mm_struct;
struct mutex;

/* What a file of ours stands for, and Rust's object behind it. */
enum umbra_kind { UMBRA_SYSTEM, UMBRA_VM, UMBRA_VCPU, UMBRA_GIC, UMBRA_STATS, UMBRA_MEMORY, UMBRA_KINDS };

/* Whether Umbra is below; only then anything else may be called. */
int umbra_init(void);
void umbra_exit(void);
/* Takes every VM down, as no more is to run, and waits for those that go already. */
void umbra_shutdown(void);

/* Whether a kernel may begin that knows of no VM; until it is called with false none is made. */
int umbra_hibernate(bool begins);

long umbra_ioctl(u32 kind, void *object, u32 command, unsigned long argument);
void umbra_release(u32 kind, void *object);
/* Copies what is counted to user space: as many bytes as there are from @offset on, up to @bytes. Returns how many. */
long umbra_read(u32 kind, void *object, u64 offset, unsigned long to, size_t bytes);
/* Pages that VMs have now: the module's own, and pinned ones. In any context. */
u64 umbra_pages(void);
/* The page of a vCPU's kvm_run; 0: the object has none. */
u64 umbra_run_page(u32 kind, void *object);

/* Whether a memory file can be mapped. */
bool umbra_may_map(void *object);
/* A page of one has been accessed: what shim_fault_finish has returned, or 0: it is not for who accessed it. */
unsigned int umbra_fault(void *object, u64 page, void *fault);

/* An irqfd has been signalled. In atomic context. */
void umbra_irqfd(void *vm, u32 gsi, bool resample);
/* The work of shim_work_queue. */
void umbra_work(void *object);

int umbra_files_init(void);
void umbra_files_exit(void);
int umbra_cpu_init(void);
void umbra_cpu_exit(void);
int umbra_events_init(void);
void umbra_events_flush(void);
void umbra_events_exit(void);

/* main.c */
void shim_log(const char *text, size_t bytes);
void shim_panic(void) __noreturn;
void *shim_alloc(size_t bytes);
void shim_free(void *memory);
int shim_copy_from_user(void *to, unsigned long from, size_t bytes);
int shim_copy_to_user(unsigned long to, const void *from, size_t bytes);
struct mutex *shim_mutex_new(void);
void shim_mutex_free(struct mutex *mutex);
void shim_mutex_lock(struct mutex *mutex);
int shim_mutex_lock_killable(struct mutex *mutex);
int shim_mutex_trylock(struct mutex *mutex);
void shim_mutex_unlock(struct mutex *mutex);
void shim_preempt_disable(void);
void shim_preempt_enable(void);
void shim_synchronize(void);
int shim_must_leave(void);
int shim_signal_pending(void);
int shim_guest_work(void);
void shim_signals_block(u64 set);
void shim_signals_restore(void);
void shim_sleep(void);
void shim_cond_resched(void);
void shim_vendor_uid(u32 function, u32 *uid);

/* files.c */
struct file;
int shim_file(u32 kind, void *object, struct file **made);
void shim_file_install(int fd, struct file *file);
void shim_file_cancel(int fd, struct file *file);
struct file *shim_file_get(int fd, u32 kind, void **object);
void shim_file_put(struct file *file);

/* memory_file.c */
struct address_space;
struct vm_area_struct;
struct address_space *shim_mapping_new(void);
void shim_mapping_free(struct address_space *mapping);
void shim_file_mapping(struct file *file, struct address_space *mapping);
void shim_mapping_unmap(struct address_space *mapping, u64 first, u64 count);
unsigned int shim_fault_finish(void *fault, u64 pa);
int shim_memory_mmap(struct file *file, struct vm_area_struct *vma);

/* memory.c */
u64 shim_pages_alloc(u64 count);
void shim_page_free(u64 pa);
void shim_pages_give(u64 first, u64 count);
int shim_page_is_given(u64 pa);
void *shim_page_address(u64 pa);
struct mm_struct *shim_mm_get(void);
int shim_mm_is_mine(struct mm_struct *mm);
void shim_mm_put(struct mm_struct *mm);
int shim_mm_account(struct mm_struct *mm, u64 pages, int more);
long shim_pin(unsigned long address, u64 count, u64 *pages);
long shim_pin_present(unsigned long *address, unsigned long end, u64 count, u64 *pages);
int shim_page_is_memory(u64 pa);
void shim_unpin(u64 first, u64 count);

/* cpu.c */
struct shim_vcpu;
void shim_irq_disable(void);
void shim_irq_enable(void);
int shim_cpu(void);
u64 shim_counter(void);
void shim_mask_virtual_timer(int masked);
int shim_foreign_fpstate(void);
int shim_task_sme(void);
u64 shim_vectors(void);
struct shim_vcpu *shim_vcpu_new(void);
void shim_vcpu_free(struct shim_vcpu *vcpu);
void shim_vcpu_wake(struct shim_vcpu *vcpu);
void shim_stop(int cpu);
int shim_vcpu_sleep(struct shim_vcpu *vcpu, bool (*done)(void *), void *argument, u64 deadline);

/* events.c */
struct eventfd_ctx;
struct shim_irqfd;
struct shim_work;
struct shim_work *shim_work_new(void *object);
void shim_work_queue(struct shim_work *work);
void shim_work_free(struct shim_work *work);
struct eventfd_ctx *shim_eventfd(int fd);
void shim_eventfd_put(struct eventfd_ctx *context);
void shim_eventfd_signal(struct eventfd_ctx *context);
int shim_irqfd_new(int fd, void *vm, u32 gsi, bool resample, struct shim_irqfd **made);
bool shim_irqfd_is(struct shim_irqfd *irqfd, struct eventfd_ctx *context);
void shim_irqfd_free(struct shim_irqfd *irqfd);

#endif
