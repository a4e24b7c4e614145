// SPDX-License-Identifier: MIT OR Apache-2.0
/* eventfds, and work in the background. */
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/poll.h>
#include <linux/preempt.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/workqueue.h>

#include "umbra.h"

static struct workqueue_struct *background;

struct shim_work {
	struct work_struct work;
	void *object;
};

static void work(struct work_struct *work)
{
	struct shim_work *this = container_of(work, struct shim_work, work);
	void *object = this->object;

	kfree(this);
	umbra_work(object);
}

struct shim_work *shim_work_new(void *object)
{
	struct shim_work *this = kzalloc(sizeof(*this), GFP_KERNEL_ACCOUNT);

	if (this) {
		INIT_WORK(&this->work, work);
		this->object = object;
	}
	return this;
}

/* umbra_work gets the object, once; this is freed before. */
void shim_work_queue(struct shim_work *this)
{
	queue_work(background, &this->work);
}

/* Not queued. */
void shim_work_free(struct shim_work *this)
{
	kfree(this);
}

/* The context of an eventfd; NULL: the descriptor is none. */
struct eventfd_ctx *shim_eventfd(int fd)
{
	struct eventfd_ctx *context = eventfd_ctx_fdget(fd);

	return IS_ERR(context) ? NULL : context;
}

void shim_eventfd_put(struct eventfd_ctx *context)
{
	eventfd_ctx_put(context);
}

/* In any context. */
void shim_eventfd_signal(struct eventfd_ctx *context)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	eventfd_signal(context, 1);
#else
	eventfd_signal(context);
#endif
}

/* An eventfd that is an interrupt. */
struct shim_irqfd {
	struct eventfd_ctx *context;
	wait_queue_entry_t waits;
	poll_table table;
	void *vm;
	u32 gsi;
	bool resample;
};

static int signalled(wait_queue_entry_t *waits, unsigned int mode, int sync, void *key)
{
	struct shim_irqfd *irqfd = container_of(waits, struct shim_irqfd, waits);
	u64 count;

	if (key_to_poll(key) & EPOLLIN) {
		eventfd_ctx_do_read(irqfd->context, &count);
		umbra_irqfd(irqfd->vm, irqfd->gsi, irqfd->resample);
	}
	return 0;
}

static void polled(struct file *file, wait_queue_head_t *queue, poll_table *table)
{
	struct shim_irqfd *irqfd = container_of(table, struct shim_irqfd, table);

	/* Before any reader of user space's, who would find nothing. */
	add_wait_queue_priority(queue, &irqfd->waits);
}

/* Until shim_irqfd_free every signal of the eventfd is told to @vm, one that came before at once. */
int shim_irqfd_new(int fd, void *vm, u32 gsi, bool resample, struct shim_irqfd **made)
{
	struct shim_irqfd *irqfd = kzalloc(sizeof(*irqfd), GFP_KERNEL_ACCOUNT);
	struct file *file;
	int err;

	if (!irqfd)
		return -ENOMEM;
	file = fget(fd);
	err = -EBADF;
	if (!file)
		goto no_file;
	irqfd->context = eventfd_ctx_fileget(file);
	err = PTR_ERR_OR_ZERO(irqfd->context);
	if (err)
		goto no_context;
	irqfd->vm = vm;
	irqfd->gsi = gsi;
	irqfd->resample = resample;
	init_waitqueue_func_entry(&irqfd->waits, signalled);
	init_poll_funcptr(&irqfd->table, polled);
	if (vfs_poll(file, &irqfd->table) & EPOLLIN) {
		preempt_disable();
		umbra_irqfd(vm, gsi, resample);
		preempt_enable();
	}
	fput(file);
	*made = irqfd;
	return 0;

no_context:
	fput(file);
no_file:
	kfree(irqfd);
	return err;
}

/* Whether it is this eventfd's. */
bool shim_irqfd_is(struct shim_irqfd *irqfd, struct eventfd_ctx *context)
{
	return irqfd->context == context;
}

void shim_irqfd_free(struct shim_irqfd *irqfd)
{
	u64 count;

	eventfd_ctx_remove_wait_queue(irqfd->context, &irqfd->waits, &count);
	eventfd_ctx_put(irqfd->context);
	kfree(irqfd);
}

int umbra_events_init(void)
{
	background = alloc_workqueue("umbra", WQ_UNBOUND, 0);
	return background ? 0 : -ENOMEM;
}

void umbra_events_flush(void)
{
	flush_workqueue(background);
}

void umbra_events_exit(void)
{
	destroy_workqueue(background);
}
