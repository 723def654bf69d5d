/* SPDX-License-Identifier: Apache-2.0 */
/* The way of one access: out of the kvm_run page, through the plan, and back into the page. */
#include <linux/kvm.h>

#include "core.h"

int kvmsr_is_msr_exit(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_X86_RDMSR || run->exit_reason == KVM_EXIT_X86_WRMSR;
}

void kvmsr_take_access(struct kvmsr_cpu *cpu)
{
	const struct kvm_run *run = cpu->run;
	struct kvmsr_access *a = &cpu->access;

	a->vcpu = cpu->shared->id;
	a->index = run->msr.index;
	a->op = run->exit_reason == KVM_EXIT_X86_WRMSR;
	a->value = a->op ? run->msr.data : 0;
	a->reason = run->msr.reason & KVM_MSR_EXIT_REASON_FILTER ? KVMSR_FILTER :
		    run->msr.reason & KVM_MSR_EXIT_REASON_INVAL	 ? KVMSR_INVALID :
								   KVMSR_UNKNOWN;
	a->theirs = a->denied = 0;
}

/* Have KVM answer, whatever the filter says; where it refuses, the plan has the last word. */
static void ask_kvm(struct kvmsr_cpu *cpu, const struct kvmsr_table *table)
{
	struct kvmsr_access *a = &cpu->access;
	struct kvmsr_outcome *o = &cpu->outcome;
	uint64_t value = a->value;

	if (kvmsr_one_msr(cpu->fd, a->op ? KVM_SET_MSRS : KVM_GET_MSRS, a->index, &value)) {
		o->verdict = a->op ? KVMSR_DONE : KVMSR_VALUE;
		o->value = a->op ? 0 : value;
		return;
	}
	uint8_t reason = KVMSR_UNKNOWN;

	if (a->op && kvmsr_one_msr(cpu->fd, KVM_GET_MSRS, a->index, &value))
		reason = KVMSR_INVALID; /* KVM knows it, so it is the value */
	kvmsr_refused(cpu, table, a, reason, o);
}

/* Find out what shall happen to cpu->access: cpu->outcome. */
void kvmsr_decide(struct kvmsr_cpu *cpu)
{
	const struct kvmsr_table *table = kvmsr_enter(cpu);

	if (!table) {
		cpu->outcome = (struct kvmsr_outcome){ .verdict = KVMSR_THEIRS };
		return;
	}
	kvmsr_evaluate(cpu, table, &cpu->access, &cpu->outcome);
	if (cpu->outcome.verdict == KVMSR_KERNEL)
		ask_kvm(cpu, table);
	cpu->serial = table->serial;
	kvmsr_leave(cpu);
}

/* Give the guest cpu->outcome, and count it. It takes effect with the next KVM_RUN. */
void kvmsr_answer(struct kvmsr_cpu *cpu)
{
	struct kvm_run *run = cpu->run;
	const struct kvmsr_outcome *o = &cpu->outcome;

	run->msr.error = o->verdict == KVMSR_FAULT || o->verdict == KVMSR_STOP;
	if (o->verdict == KVMSR_VALUE)
		run->msr.data = o->value;
	/* Nobody shall take it for an exit that still waits: KVM need not write this field. */
	run->exit_reason = KVM_EXIT_INTR;
	cpu->shared->exits++;
	kvmsr_record(cpu, &cpu->access, o);
	if (cpu->events && (o->log || cpu->block->trace))
		kvmsr_event(cpu);
}
