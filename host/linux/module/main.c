// SPDX-License-Identifier: MIT OR Apache-2.0
/* The module's beginning and end, and what Rust code has of Linux that has no better place. */
#include <linux/arm-smccc.h>
#include <linux/delay.h>
#include <linux/kvm_host.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/suspend.h>
#include <linux/sysfs.h>
#include <linux/uaccess.h>

#if defined(CONFIG_VIRT_XFER_TO_GUEST_WORK)
#include <linux/entry-virt.h>
#elif defined(CONFIG_KVM_XFER_TO_GUEST_WORK)
#include <linux/entry-kvm.h>
#endif

#include "umbra.h"

void shim_log(const char *text, size_t bytes)
{
	pr_info("umbra: %.*s\n", (int)bytes, text);
}

void shim_panic(void)
{
	panic("umbra: its Rust half has panicked");
}

/* Zeroed, and aligned to 8 bytes. */
void *shim_alloc(size_t bytes)
{
	/* More is a warning of kvmalloc's, and the size may be user space's. */
	return bytes > INT_MAX ? NULL : kvzalloc(bytes, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
}

void shim_free(void *memory)
{
	kvfree(memory);
}

int shim_copy_from_user(void *to, unsigned long from, size_t bytes)
{
	return copy_from_user(to, (const void __user *)from, bytes) ? -EFAULT : 0;
}

int shim_copy_to_user(unsigned long to, const void *from, size_t bytes)
{
	return copy_to_user((void __user *)to, from, bytes) ? -EFAULT : 0;
}

struct mutex *shim_mutex_new(void)
{
	static struct lock_class_key key;
	struct mutex *mutex = kzalloc(sizeof(*mutex), GFP_KERNEL_ACCOUNT);

	if (mutex)
		__mutex_init(mutex, "umbra", &key);
	return mutex;
}

void shim_mutex_free(struct mutex *mutex)
{
	mutex_destroy(mutex);
	kfree(mutex);
}

void shim_mutex_lock(struct mutex *mutex)
{
	mutex_lock(mutex);
}

int shim_mutex_lock_killable(struct mutex *mutex)
{
	return mutex_lock_killable(mutex);
}

int shim_mutex_trylock(struct mutex *mutex)
{
	return mutex_trylock(mutex);
}

void shim_mutex_unlock(struct mutex *mutex)
{
	mutex_unlock(mutex);
}

void shim_preempt_disable(void)
{
	preempt_disable();
}

void shim_preempt_enable(void)
{
	preempt_enable();
}

/* Whoever runs with preemption disabled has gone on since. */
void shim_synchronize(void)
{
	synchronize_rcu();
}

#if defined(CONFIG_KVM_XFER_TO_GUEST_WORK) || defined(CONFIG_VIRT_XFER_TO_GUEST_WORK)
int shim_must_leave(void)
{
	return __xfer_to_guest_mode_work_pending();
}
#else
/* Nobody is to leave for what shim_guest_work can't do. */
int shim_must_leave(void)
{
	return need_resched() || signal_pending(current);
}
#endif

/* As KVM before it runs a guest. */
int shim_guest_work(void)
{
#if defined(CONFIG_VIRT_XFER_TO_GUEST_WORK)
	return xfer_to_guest_mode_handle_work();
#elif defined(CONFIG_KVM_XFER_TO_GUEST_WORK)
	/* What it notes of a signal in KVM's own vCPU, of which there is none here. Any number may write that at once. */
	static struct kvm_run run;
	static struct kvm_vcpu vcpu = { .run = &run };

	return xfer_to_guest_mode_handle_work(&vcpu);
#else
	cond_resched();
	return signal_pending(current) ? -EINTR : 0;
#endif
}

int shim_signal_pending(void)
{
	return signal_pending(current);
}

/* As KVM does it around KVM_RUN (kvm_sigset_activate): what was blocked is kept where a signal finds it. */
void shim_signals_block(u64 set)
{
	sigset_t blocked;

	BUILD_BUG_ON(sizeof(blocked) != sizeof(set));
	memcpy(&blocked, &set, sizeof(blocked));
	sigdelsetmask(&blocked, sigmask(SIGKILL) | sigmask(SIGSTOP));
	sigprocmask(SIG_SETMASK, &blocked, &current->real_blocked);
}

void shim_signals_restore(void)
{
	sigprocmask(SIG_SETMASK, &current->real_blocked, NULL);
	sigemptyset(&current->real_blocked);
}

void shim_sleep(void)
{
	msleep(10);
}

void shim_cond_resched(void)
{
	cond_resched();
}

/* SMCCC's question who the hypervisor is, by SMC, which Umbra's device tree names. */
void shim_vendor_uid(u32 function, u32 *uid)
{
	struct arm_smccc_res res = { .a0 = SMCCC_RET_NOT_SUPPORTED };

	if (arm_smccc_1_1_get_conduit() == SMCCC_CONDUIT_SMC)
		arm_smccc_1_1_smc(function, &res);
	uid[0] = res.a0;
	uid[1] = res.a1;
	uid[2] = res.a2;
	uid[3] = res.a3;
}

/* Pages that VMs have now, for who looks whether they come back. */
static int pages_get(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "%llu\n", umbra_pages());
}

static const struct kernel_param_ops pages_ops = { .get = pages_get };
module_param_cb(pages, &pages_ops, NULL, 0444);
MODULE_PARM_DESC(pages, "pages that VMs have now");

/* Whatever runs next, another kernel perhaps, finds no page that is a VM's. */
static int reboots(struct notifier_block *block, unsigned long action, void *data)
{
	umbra_shutdown();
	return NOTIFY_DONE;
}

static struct notifier_block reboot_block = { .notifier_call = reboots };

/*
 * An image of this kernel has no page that is a VM's, and what runs from an image knows of none. Sleep is another matter: a
 * VM's memory stays where it is, and its vCPUs' threads have left hyp before they are frozen.
 */
static int sleeps(struct notifier_block *block, unsigned long action, void *data)
{
	int err = 0;

	switch (action) {
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		/* VMs without files end in the background: those that are about to do so needn't refuse it. */
		umbra_events_flush();
		err = umbra_hibernate(true);
		break;
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		umbra_hibernate(false);
		break;
	}
	return notifier_from_errno(err);
}

static struct notifier_block sleep_block = { .notifier_call = sleeps };

static int __init umbra_module_init(void)
{
	int err = umbra_init();

	if (err)
		return err;
	err = umbra_events_init();
	if (err)
		goto rust;
	err = umbra_cpu_init();
	if (err)
		goto events;
	err = register_reboot_notifier(&reboot_block);
	if (err)
		goto cpu;
	err = register_pm_notifier(&sleep_block);
	if (err)
		goto reboot;
	err = umbra_files_init();
	if (err)
		goto sleep;
	return 0;

sleep:
	unregister_pm_notifier(&sleep_block);
reboot:
	unregister_reboot_notifier(&reboot_block);
cpu:
	umbra_cpu_exit();
events:
	umbra_events_exit();
rust:
	umbra_exit();
	return err;
}

static void __exit umbra_module_exit(void)
{
	umbra_files_exit();
	unregister_pm_notifier(&sleep_block);
	unregister_reboot_notifier(&reboot_block);
	/* The end of VMs goes on in the background: it is over behind this. */
	umbra_events_exit();
	umbra_cpu_exit();
	umbra_exit();
}

module_init(umbra_module_init);
module_exit(umbra_module_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("KVM's interface for virtual machines of the Umbra hypervisor");
MODULE_ALIAS_MISCDEV(232);
MODULE_ALIAS("devname:kvm");
