// SPDX-License-Identifier: MIT OR Apache-2.0
/* The CPU under a vCPU: interrupts, the timers' and the GIC's PPIs, FP registers, sleep and wake-up. */
#include <linux/cpufeature.h>
#include <linux/cpuhotplug.h>
#include <linux/gfp.h>
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/of.h>
#include <linux/of_irq.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/thread_info.h>
#include <linux/wait.h>
#include <asm/arch_timer.h>
#include <clocksource/arm_arch_timer.h>

#include "umbra.h"

/* Where a GICv3's and the timer's nodes have the interrupts (arm,gic-v3.yaml, arm,arch_timer.yaml). */
#define MAINTENANCE 0
#define VIRTUAL_TIMER 2
#define HYP_TIMER 3

static unsigned int virtual_timer;
/* Interrupts that only stop a guest: the maintenance interrupt, and EL2's timer, which keeps the host's deadline. */
static unsigned int stops[2];
static int __percpu *stops_cookie;
static int cpuhp_state;

void shim_irq_disable(void)
{
	local_irq_disable();
}

void shim_irq_enable(void)
{
	local_irq_enable();
}

int shim_cpu(void)
{
	return smp_processor_id();
}

u64 shim_counter(void)
{
	return arch_timer_read_counter();
}

void shim_mask_virtual_timer(int masked)
{
	/* An error is for an interrupt that is none. */
	(void)irq_set_irqchip_state(virtual_timer, IRQCHIP_STATE_MASKED, masked);
}

/* The current task's registers are not those in the CPU. */
int shim_foreign_fpstate(void)
{
	return test_thread_flag(TIF_FOREIGN_FPSTATE);
}

/* Its streaming mode or ZA may be on. */
int shim_task_sme(void)
{
	return test_thread_flag(TIF_SME);
}

/* What the machine has that this kernel uses: SVE (bit 0), SME (bit 1). */
u64 shim_vectors(void)
{
	return (cpu_have_named_feature(SVE) ? 1 : 0) | (cpu_have_named_feature(SME) ? 2 : 0);
}

/* Whoever sleeps for a vCPU. */
struct shim_vcpu {
	wait_queue_head_t sleeps;
};

/*
 * Stops the guest on a CPU, by an interrupt that comes while it runs: no more is needed. One for each CPU, as one must
 * not be sent again before it has arrived; who finds it on its way has changed something before that, which is seen when it has.
 */
struct stop {
	call_single_data_t csd;
	atomic_t on_its_way;
};
static DEFINE_PER_CPU(struct stop, stop_of);

static void stopped(void *info)
{
	struct stop *stop = info;

	atomic_set(&stop->on_its_way, 0);
}

struct shim_vcpu *shim_vcpu_new(void)
{
	struct shim_vcpu *vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL_ACCOUNT);

	if (vcpu)
		init_waitqueue_head(&vcpu->sleeps);
	return vcpu;
}

/* Nobody sleeps there. */
void shim_vcpu_free(struct shim_vcpu *vcpu)
{
	kfree(vcpu);
}

void shim_vcpu_wake(struct shim_vcpu *vcpu)
{
	wake_up(&vcpu->sleeps);
}

/* Stops the guest on a CPU, if that is another one. In any context. */
void shim_stop(int cpu)
{
	struct stop *stop = per_cpu_ptr(&stop_of, cpu);
	int this = get_cpu();

	if (cpu != this && !atomic_xchg(&stop->on_its_way, 1) && smp_call_function_single_async(cpu, &stop->csd))
		/* It is off, and runs nothing. */
		atomic_set(&stop->on_its_way, 0);
	put_cpu();
}

/*
 * Sleeps until @done says so (0), a signal comes (-EINTR), or the counter reaches @deadline (0); with ~0 it never
 * does.
 */
int shim_vcpu_sleep(struct shim_vcpu *vcpu, bool (*done)(void *), void *argument, u64 deadline)
{
	int err = 0;
	DEFINE_WAIT(wait);

	for (;;) {
		prepare_to_wait(&vcpu->sleeps, &wait, TASK_INTERRUPTIBLE);
		if (done(argument))
			break;
		if (signal_pending(current)) {
			err = -EINTR;
			break;
		}
		if (deadline == ~0ULL) {
			schedule();
		} else {
			u64 now = arch_timer_read_counter();
			ktime_t left;

			if (now >= deadline)
				break;
			left = mul_u64_u64_div_u64(deadline - now, NSEC_PER_SEC, arch_timer_get_cntfrq());
			/* A day is never, and fits. */
			left = min_t(u64, left, 86400ULL * NSEC_PER_SEC);
			schedule_hrtimeout(&left, HRTIMER_MODE_REL);
		}
	}
	finish_wait(&vcpu->sleeps, &wait);
	return err;
}

static irqreturn_t stopping(int irq, void *cookie)
{
	return IRQ_HANDLED;
}

static int comes(unsigned int cpu)
{
	int n;

	for (n = 0; n < ARRAY_SIZE(stops); n++)
		enable_percpu_irq(stops[n], IRQ_TYPE_NONE);
	return 0;
}

static int goes(unsigned int cpu)
{
	int n;

	for (n = 0; n < ARRAY_SIZE(stops); n++)
		disable_percpu_irq(stops[n]);
	return 0;
}

static unsigned int interrupt_of(const char *compatible, int index)
{
	struct device_node *node = of_find_compatible_node(NULL, NULL, compatible);
	unsigned int irq = node ? irq_of_parse_and_map(node, index) : 0;

	of_node_put(node);
	return irq;
}

int umbra_cpu_init(void)
{
	static const char *const names[] = { "umbra-maintenance", "umbra-timer" };
	int err, n, cpu;

	for_each_possible_cpu(cpu)
		INIT_CSD(&per_cpu_ptr(&stop_of, cpu)->csd, stopped, per_cpu_ptr(&stop_of, cpu));
	stops[0] = interrupt_of("arm,gic-v3", MAINTENANCE);
	stops[1] = interrupt_of("arm,armv8-timer", HYP_TIMER);
	virtual_timer = interrupt_of("arm,armv8-timer", VIRTUAL_TIMER);
	if (!stops[0] || !stops[1] || !virtual_timer) {
		pr_err("umbra: the device tree lacks an interrupt of the GIC's or of the timer's\n");
		return -ENODEV;
	}
	stops_cookie = alloc_percpu(int);
	if (!stops_cookie)
		return -ENOMEM;
	for (n = 0; n < ARRAY_SIZE(stops); n++) {
		err = request_percpu_irq(stops[n], stopping, names[n], stops_cookie);
		if (err)
			goto requested;
	}
	err = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "umbra:online", comes, goes);
	if (err < 0)
		goto requested;
	cpuhp_state = err;
	return 0;

requested:
	while (n--)
		free_percpu_irq(stops[n], stops_cookie);
	free_percpu(stops_cookie);
	return err;
}

void umbra_cpu_exit(void)
{
	int n, cpu;

	cpuhp_remove_state(cpuhp_state);
	/* What is on its way arrives before this code goes, and who has handled it has returned. */
	for_each_possible_cpu(cpu)
		while (atomic_read(&per_cpu_ptr(&stop_of, cpu)->on_its_way))
			cond_resched();
	synchronize_rcu();
	for (n = 0; n < ARRAY_SIZE(stops); n++)
		free_percpu_irq(stops[n], stops_cookie);
	free_percpu(stops_cookie);
}
