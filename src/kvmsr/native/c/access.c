/* SPDX-License-Identifier: Apache-2.0 */
/* One access, step by step: out of the kvm_run page, through the plan, and back into the page. */
#include <linux/kvm.h>

#include "core.h"

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
	a->vmm_reasons = a->denied = 0;
	cpu->where.known = 0;
	if (cpu->tables->trace || cpu->tables->timed)
		cpu->taken_ns = kvmsr_now_ns();
}

/*
 * Let KVM answer, by KVM_GET_MSRS or KVM_SET_MSRS, which ignore the filter. If KVM refuses, the
 * plan decides after all.
 */
static void ask_kvm(struct kvmsr_cpu *cpu, const struct kvmsr_table *table)
{
	struct kvmsr_access *a = &cpu->access;
	struct kvmsr_outcome *o = &cpu->outcome;
	uint64_t value = a->value;

	if (kvmsr_one_msr(cpu->fd, a->op ? KVM_SET_MSRS : KVM_GET_MSRS, a->index, &value)) {
		o->verdict = a->op ? KVMSR_DONE : KVMSR_VALUE;
		o->value = a->op ? 0 : value;
		kvmsr_passed(cpu, table, a, o);
		return;
	}
	int reads = a->op && kvmsr_one_msr(cpu->fd, KVM_GET_MSRS, a->index, &value);

	kvmsr_refused(cpu, table, a, kvmsr_why_refused(table, a, reads), o);
}

/* Decide cpu->access, and put the result into cpu->outcome. */
void kvmsr_decide(struct kvmsr_cpu *cpu)
{
	const struct kvmsr_table *table = kvmsr_enter(cpu);

	if (!table) {
		cpu->outcome = (struct kvmsr_outcome){ .verdict = KVMSR_TO_VMM };
		return;
	}
	kvmsr_evaluate(cpu, table, &cpu->access, &cpu->outcome);
	if (cpu->outcome.verdict == KVMSR_KERNEL)
		ask_kvm(cpu, table);
	cpu->serial = table->serial;
	kvmsr_leave(cpu);
}

/* Answer the exit with cpu->outcome, and count it. The guest sees it after the next KVM_RUN. */
void kvmsr_answer(struct kvmsr_cpu *cpu)
{
	struct kvm_run *run = cpu->run;
	const struct kvmsr_outcome *o = &cpu->outcome;
	int news;

	run->msr.error = o->verdict == KVMSR_FAULT || o->verdict == KVMSR_STOP;
	if (o->verdict == KVMSR_VALUE)
		run->msr.data = o->value;
	/* If KVM_RUN fails, KVM may leave this field alone: it must not look like an open exit. */
	run->exit_reason = KVM_EXIT_INTR;
	cpu->shared->exits++;
	struct kvmsr_row *row = kvmsr_record(cpu, &cpu->access, o, &news);

	if (cpu->tables->timed)
		kvmsr_time(cpu);
	if (o->log || cpu->tables->trace)
		kvmsr_event(cpu, row, news);
	if (__atomic_load_n(&cpu->tables->watching, __ATOMIC_RELAXED))
		kvmsr_note(cpu);
}
