/* SPDX-License-Identifier: Apache-2.0 */
/* The way of one access under a VMM: answered here, by Python in the controller, or the VMM's own. */
#include <errno.h>

#include "shim.h"

#define SLICE_MS 10
#define PATIENCE 100 /* slices */

static int alone; /* the controller has died: nobody is asked any more */

static const uint32_t kvm_reason[] = {
	[KVMSR_UNKNOWN] = KVM_MSR_EXIT_REASON_UNKNOWN,
	[KVMSR_INVALID] = KVM_MSR_EXIT_REASON_INVAL,
	[KVMSR_FILTER] = KVM_MSR_EXIT_REASON_FILTER,
};

/* What would have become of this access without us? */
static void ask_wish(const struct kvmsr_wish *wish, struct kvmsr_access *a)
{
	int denies = kvmsr_denies(&wish->filter, a->index, a->op);

	a->theirs = 0;
	for (int reason = 0; reason < 3; reason++)
		if (wish->reasons & kvm_reason[reason] && (reason != KVMSR_FILTER || denies))
			a->theirs |= 1 << reason;
	a->denied = denies && !(wish->reasons & KVM_MSR_EXIT_REASON_FILTER);
}

/*
 * Has the VMM asked for this vCPU to come out of KVM_RUN? Where it has KVM unblock signals (with
 * KVM_SET_SIGNAL_MASK), one may be pending that this thread never sees: then yes, to be safe. KVM_RUN
 * may always return EINTR.
 */
static int kicked(const struct vcpu *vcpu)
{
	return vcpu->has_mask ||
	       __atomic_load_n(&vcpu->cpu.run->immediate_exit, __ATOMIC_RELAXED);
}

static void give_up(struct vcpu *vcpu)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;
	const struct kvmsr_table *table = kvmsr_enter(cpu);

	kvmsr_failed(cpu, table, &cpu->access, &cpu->outcome);
	kvmsr_leave(cpu);
	kvmsr_give_up(cpu);
}

/*
 * Wait for Python's answer; return 0 if it is there. Else the VMM is to get EINTR: the access stays
 * unanswered inside KVM, so the next KVM_RUN has to come here first. A signal that comes between
 * looking and waiting would be missed: so no wait is long.
 */
static int await(struct vcpu *vcpu, int slices, int patient)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;

	for (int i = 0; !slices || i < slices; i++) {
		int result = kvmsr_await_answer(cpu, SLICE_MS);

		if (!result)
			return 0;
		if (!kvmsr_controller_lives()) {
			alone = 1;
			give_up(vcpu);
			return 0;
		}
		if (!patient && (result == -EINTR || kicked(vcpu)))
			return -EINTR;
	}
	give_up(vcpu);
	return 0;
}

/* Answer the MSR exit in the page; 0: run on; 1: it is the VMM's; -EINTR: it has to wait. */
static int answer(struct vcpu *vcpu)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;

	if (!vcpu->pending) {
		kvmsr_take_access(cpu);
		if (unlikely(vcpu->vm->asked))
			ask_wish(&vcpu->vm->wish, &cpu->access);
		kvmsr_decide(cpu);
		if (cpu->outcome.verdict == KVMSR_THEIRS) {
			cpu->run->msr.reason = kvm_reason[cpu->access.reason];
			return 1;
		}
		if (cpu->outcome.verdict == KVMSR_UPCALL || cpu->outcome.verdict == KVMSR_STOP) {
			if (alone) {
				give_up(vcpu);
			} else {
				vcpu->pending = 1;
				kvmsr_ask(cpu);
			}
		}
	}
	if (vcpu->pending) {
		int result = await(vcpu, 0, 0);

		if (result)
			return result;
		vcpu->pending = 0;
	}
	kvmsr_answer(cpu);
	return 0;
}

int kvmsr_run_on(struct vcpu *vcpu, int fd, void *argument)
{
	for (;;) {
		int result = answer(vcpu);

		if (result < 0) {
			vcpu->cpu.run->exit_reason = KVM_EXIT_INTR; /* as KVM_RUN leaves it */
			return failed(result);
		}
		if (result)
			return 0;
		if (unlikely(vcpu->vm->generation !=
			     __atomic_load_n(&kvmsr_block->generation, __ATOMIC_ACQUIRE)))
			kvmsr_renew(vcpu->vm);
		long left = kvmsr_ioctl(fd, KVM_RUN, argument);

		if (left < 0)
			return failed(left);
		if (!kvmsr_is_msr_exit(vcpu->cpu.run))
			return left;
	}
}

/*
 * The VMM is about to write the vCPU's state. An access that still waits in KVM would be finished
 * on top of the new state: finish it now.
 */
void kvmsr_finish(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->cpu.run;
	uint8_t kick = run->immediate_exit;

	await(vcpu, PATIENCE, 1);
	vcpu->pending = 0;
	kvmsr_answer(&vcpu->cpu);
	run->immediate_exit = 1;
	kvmsr_ioctl(vcpu->cpu.fd, KVM_RUN, NULL);
	run->immediate_exit = kick;
}
