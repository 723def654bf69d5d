/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last accesses to MSRs that somebody watches. Whoever watches looks when it likes, and an entry
 * that nobody has looked at is overwritten, so a vCPU waits for nobody. An entry has no time while it
 * is written: whoever reads it then leaves it out.
 */
#include "core.h"

static int is_watched(const struct kvmsr_tables *tables, uint32_t index)
{
	for (uint32_t i = 0; i < KVMSR_WATCHED; i++) {
		uint64_t watched = __atomic_load_n(&tables->watched[i], __ATOMIC_RELAXED);

		if (watched == index + 1ull)
			return 1;
		if (!watched)
			break;
	}
	return 0;
}

/* Note the last access, if its MSR is watched. */
void kvmsr_note(struct kvmsr_cpu *cpu)
{
	struct kvmsr_vcpu *vcpu = cpu->shared;
	const struct kvmsr_access *a = &cpu->access;
	const struct kvmsr_outcome *o = &cpu->outcome;

	if (!is_watched(cpu->tables, a->index))
		return;
	struct kvmsr_recent *entry = &vcpu->recent[vcpu->n_recent % KVMSR_RECENT];

	__atomic_store_n(&entry->time_ns, 0, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	entry->value = o->verdict == KVMSR_VALUE ? o->value : a->value;
	entry->index = a->index;
	entry->name = o->name;
	entry->vm = vcpu->vm;
	entry->vcpu = vcpu->id;
	entry->op = a->op;
	entry->reason = a->reason;
	entry->verdict = o->verdict <= KVMSR_FAULT ? o->verdict : KVMSR_STOP;
	__atomic_store_n(&entry->time_ns, kvmsr_now_ns(), __ATOMIC_RELEASE);
	vcpu->n_recent++;
}

/* Copy entry NUMBER of a vCPU's ring. Return whether it is one, and whole. */
int kvmsr_read_recent(struct kvmsr_vcpu *vcpu, uint32_t number, struct kvmsr_recent *found)
{
	const struct kvmsr_recent *entry = &vcpu->recent[number % KVMSR_RECENT];
	uint64_t before = __atomic_load_n(&entry->time_ns, __ATOMIC_ACQUIRE);

	*found = *entry;
	found->time_ns = before;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return before && __atomic_load_n(&entry->time_ns, __ATOMIC_RELAXED) == before;
}
