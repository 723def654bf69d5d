/* SPDX-License-Identifier: Apache-2.0 */
/* The run loop of our own machine: KVM_RUN, until there is something that Python has to do. */
#include <linux/kvm.h>

#include "core.h"

/*
 * Return KVMSR_EXIT: the page holds an exit that is no MSR's; KVMSR_ASK: cpu->outcome is to be
 * filled in by Python, and then this to be called again; KVMSR_LOG: cpu->access has been answered
 * and may have to be logged; or a negative errno.
 */
int kvmsr_run(struct kvmsr_cpu *cpu)
{
	if (cpu->waits) {
		cpu->waits = 0;
		kvmsr_answer(cpu);
	}
	for (;;) {
		long result = kvmsr_ioctl(cpu->fd, KVM_RUN, NULL);

		if (result < 0)
			return result;
		if (!kvmsr_is_msr_exit(cpu->run))
			return KVMSR_EXIT;
		kvmsr_take_access(cpu);
		kvmsr_decide(cpu);
		if (cpu->outcome.verdict == KVMSR_UPCALL || cpu->outcome.verdict == KVMSR_STOP) {
			cpu->waits = 1;
			return KVMSR_ASK;
		}
		kvmsr_answer(cpu);
		if (cpu->outcome.log)
			return KVMSR_LOG;
	}
}
