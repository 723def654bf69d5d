/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last accesses to MSRs that somebody watches, each MSR in a ring of its own. Whoever watches
 * looks when it likes, and an entry that nobody has looked at is overwritten, so a vCPU waits for
 * nobody. An entry has no time while it is written: whoever reads it then leaves it out.
 */
#include "core.h"

/* Return the number of the ring for an MSR; KVMSR_WATCHED if nobody watches it. */
static uint32_t ring_of(const struct kvmsr_tables *tables, uint32_t index)
{
	uint32_t ring = 0;

	while (ring < KVMSR_WATCHED &&
	       __atomic_load_n(&tables->watched[ring], __ATOMIC_RELAXED) != index + 1ull)
		ring++;
	return ring;
}

/* Note the last access, if its MSR is watched. */
void kvmsr_note(struct kvmsr_cpu *cpu)
{
	struct kvmsr_vcpu *vcpu = cpu->shared;
	const struct kvmsr_access *a = &cpu->access;
	const struct kvmsr_outcome *o = &cpu->outcome;
	uint32_t ring = ring_of(cpu->tables, a->index);

	if (ring == KVMSR_WATCHED)
		return;
	uint32_t place = ring * KVMSR_RECENT + vcpu->n_recent[ring]++ % KVMSR_RECENT;
	struct kvmsr_recent *entry = &vcpu->recent[place];

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
}

/* Copy entry NUMBER of a vCPU's rings. Return whether it is one, and whole. */
int kvmsr_read_recent(struct kvmsr_vcpu *vcpu, uint32_t number, struct kvmsr_recent *found)
{
	const struct kvmsr_recent *entry = &vcpu->recent[number % KVMSR_ALL_RECENT];
	uint64_t before = __atomic_load_n(&entry->time_ns, __ATOMIC_ACQUIRE);

	*found = *entry;
	found->time_ns = before;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return before && __atomic_load_n(&entry->time_ns, __ATOMIC_RELAXED) == before;
}
