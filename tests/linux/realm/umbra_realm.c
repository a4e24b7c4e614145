// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What a protected guest is measured by, as it reads it itself: RSI's initial measurement (Arm DEN0137, RSI_MEASUREMENT_READ of
 * index 0), in /sys/module/umbra_realm/parameters/rim.
 *
 * Linux calls RSI for itself and has no interface to measurements for user space (7.3: arm-cca-guest makes attestation tokens alone,
 * and registers none of CONFIG_TSM_MEASUREMENTS).
 */
#include <linux/arm-smccc.h>
#include <linux/hex.h>
#include <linux/module.h>
#include <asm/rsi_smc.h>

/* SHA-256's */
#define RIM_BYTES 32

static char rim[2 * RIM_BYTES + 1];
module_param_string(rim, rim, sizeof(rim), 0444);

static int __init umbra_realm_init(void)
{
	struct arm_smccc_1_2_regs regs = { .a0 = SMC_RSI_MEASUREMENT_READ };

	arm_smccc_1_2_smc(&regs, &regs);
	if (regs.a0 != RSI_SUCCESS)
		return -ENODEV;
	/* The first byte is the lowest of the first register. */
	const __le64 value[] = {
		cpu_to_le64(regs.a1), cpu_to_le64(regs.a2), cpu_to_le64(regs.a3), cpu_to_le64(regs.a4),
	};
	static_assert(sizeof(value) == RIM_BYTES);
	*bin2hex(rim, value, sizeof(value)) = '\0';
	return 0;
}

static void __exit umbra_realm_exit(void)
{
}

module_init(umbra_realm_init);
module_exit(umbra_realm_exit);
MODULE_DESCRIPTION("A protected guest's initial measurement");
MODULE_LICENSE("Dual MIT/GPL");
