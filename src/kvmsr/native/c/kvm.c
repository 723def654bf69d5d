/* SPDX-License-Identifier: Apache-2.0 */
/* What of an access has to do with KVM: the kvm_run page, and asking KVM itself. */
#include <errno.h>
#include <linux/kvm.h>
#include <sys/syscall.h>

#include "block.h"

/* ioctl(2) without errno; it is the shim's own, so it must not come back to the shim. */
long kvmsr_ioctl(int fd, unsigned long request, void *argument)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"((long)SYS_ioctl), "D"((long)fd), "S"(request), "d"(argument)
			 : "rcx", "r11", "memory");
	return result;
}

uint64_t kvmsr_rip(const struct kvmsr_cpu *cpu)
{
	struct kvm_regs regs;

	if (cpu->fd < 0 || kvmsr_ioctl(cpu->fd, KVM_GET_REGS, &regs) < 0)
		return cpu->rip;
	return regs.rip;
}

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
	a->theirs = 0;
}

static int one_msr(int fd, unsigned long request, uint32_t index, uint64_t *value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = { .head = { .nmsrs = 1 }, .entry = { .index = index, .data = *value } };

	if (fd < 0 || kvmsr_ioctl(fd, request, &msrs) != 1)
		return 0;
	*value = msrs.entry.data;
	return 1;
}

/* Have KVM answer, whatever the filter says; where it refuses, the plan has the last word. */
static void ask_kvm(struct kvmsr_cpu *cpu, const struct kvmsr_table *table)
{
	struct kvmsr_access *a = &cpu->access;
	struct kvmsr_outcome *o = &cpu->outcome;
	uint64_t value = a->value;

	if (one_msr(cpu->fd, a->op ? KVM_SET_MSRS : KVM_GET_MSRS, a->index, &value)) {
		o->verdict = a->op ? KVMSR_DONE : KVMSR_VALUE;
		o->value = a->op ? 0 : value;
		return;
	}
	uint8_t reason = KVMSR_UNKNOWN;

	if (a->op && one_msr(cpu->fd, KVM_GET_MSRS, a->index, &value))
		reason = KVMSR_INVALID; /* KVM knows it, so it is the value */
	kvmsr_refused(cpu, table, a, reason, o);
	if (o->verdict == KVMSR_THEIRS)
		a->reason = reason;
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
	if (cpu->events && (o->tell || cpu->block->trace))
		kvmsr_event(cpu);
}
