/* SPDX-License-Identifier: Apache-2.0 */
/* The run loop of kvmsr's own machine: KVM_RUN until Python has something to do. */
#include <linux/kvm.h>

#include "core.h"

/*
 * Run the vCPU, and return why it stopped:
 *
 * - KVMSR_EXIT: the kvm_run page has an exit that is not an MSR access.
 * - KVMSR_ASK: Python has to fill in cpu->outcome, and call this again.
 * - KVMSR_LOG: cpu->access has been answered, and may have to be logged.
 * - A negative errno: KVM_RUN failed.
 */
int kvmsr_run(struct kvmsr_cpu *cpu)
{
	if (cpu->waits) {
		cpu->waits = 0;
		kvmsr_answer(cpu);
	}
	for (;;) {
		/* Two ioctls less for each access of the trace, at the price of two copies an exit. */
		cpu->syncs = cpu->can_sync && cpu->tables->trace_rip;
		if (cpu->syncs)
			cpu->run->kvm_valid_regs |= KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
		long result = kvmsr_ioctl(cpu->fd, KVM_RUN, NULL);

		if (result < 0)
			return result;
		if (!kvmsr_is_msr_exit(cpu->run))
			return KVMSR_EXIT;
		kvmsr_take_access(cpu);
		kvmsr_decide(cpu);
		if (cpu->outcome.verdict == KVMSR_UPCALL || cpu->outcome.verdict == KVMSR_STOP) {
			cpu->waits = 1;
			kvmsr_locate(cpu);
			return KVMSR_ASK;
		}
		kvmsr_answer(cpu);
		if (cpu->outcome.log) {
			kvmsr_locate(cpu);
			return KVMSR_LOG;
		}
	}
}
