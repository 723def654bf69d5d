/* SPDX-License-Identifier: Apache-2.0 */
/* Record accesses: in the rows of the summary, and as events. One thread writes a vCPU's record. */
#include "core.h"

static void count_other(struct kvmsr_block *block, uint32_t index)
{
	struct kvmsr_others *others = &block->others;
	uint16_t *slot = &others->page_of[index >> KVMSR_PAGE_BITS];
	uint16_t page = __atomic_load_n(slot, __ATOMIC_ACQUIRE);

	if (!page) {
		uint32_t fresh;

		if (__atomic_load_n(&others->n_pages, __ATOMIC_RELAXED) > KVMSR_PAGES)
			return;
		fresh = __atomic_add_fetch(&others->n_pages, 1, __ATOMIC_RELAXED);
		if (fresh > KVMSR_PAGES)
			return;
		/* If another vCPU has just taken one, this page is lost, which does no harm. */
		if (__atomic_compare_exchange_n(slot, &page, fresh, 0, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE))
			page = fresh;
	}
	uint32_t bit = index & ((1u << KVMSR_PAGE_BITS) - 1);

	__atomic_fetch_or(&others->pages[(page - 1) % KVMSR_PAGES][bit / 64], 1ull << bit % 64,
			  __ATOMIC_RELAXED);
}

static struct kvmsr_row *row_for(struct kvmsr_cpu *cpu, const struct kvmsr_access *a, uint32_t name)
{
	struct kvmsr_vcpu *vcpu = cpu->shared;
	uint32_t hash = (a->index * 0x9e3779b1u) ^ (name * 0x85ebca6bu) ^ (a->op * 4 + a->reason);

	for (uint32_t i = hash % KVMSR_ROW_SLOTS;; i = (i + 1) % KVMSR_ROW_SLOTS) {
		struct kvmsr_row *row = &vcpu->rows[i];

		if (!row->used) {
			if (vcpu->n_rows >= KVMSR_ROW_LIMIT)
				break;
			vcpu->n_rows++;
			row->index = a->index;
			row->name = name;
			row->op = a->op;
			row->reason = a->reason;
			row->first_rip = kvmsr_rip(cpu);
			row->has = 2;
			__atomic_store_n(&row->used, 1, __ATOMIC_RELEASE);
			return row;
		}
		if (row->index == a->index && row->name == name && row->op == a->op &&
		    row->reason == a->reason)
			return row;
	}
	count_other(cpu->block, a->index);
	return &vcpu->others[a->op];
}

/* Count an access. */
void kvmsr_record(struct kvmsr_cpu *cpu, const struct kvmsr_access *a,
		  const struct kvmsr_outcome *o)
{
	struct kvmsr_row *row = row_for(cpu, a, o->name);
	uint64_t value = a->value;

	if (!(row->has & 2)) {
		row->first_rip = kvmsr_rip(cpu);
		row->has |= 2;
	}
	switch (o->verdict) {
	case KVMSR_VALUE:
		row->values++;
		value = o->value;
		break;
	case KVMSR_DONE:
		row->dones++;
		break;
	case KVMSR_FAULT:
		row->faults++;
		break;
	default:
		row->stops++;
	}
	if (a->op == KVMSR_READ && o->verdict != KVMSR_VALUE)
		return; /* the guest got no value */
	row->last_value = value;
	if (!(row->has & 1)) {
		row->first_value = value;
		row->has |= 1;
	}
}

/* Report the last access to the controller. If there is no room, count it as dropped. */
void kvmsr_event(struct kvmsr_cpu *cpu)
{
	struct kvmsr_vcpu *vcpu = cpu->shared;
	const struct kvmsr_access *a = &cpu->access;
	const struct kvmsr_outcome *o = &cpu->outcome;
	uint64_t tail = __atomic_load_n(&vcpu->tail, __ATOMIC_ACQUIRE);

	if (vcpu->head - tail >= KVMSR_EVENTS) {
		vcpu->dropped++;
		return;
	}
	vcpu->events[vcpu->head % KVMSR_EVENTS] = (struct kvmsr_event){
		.time_ns = kvmsr_now_ns(),
		.value = o->verdict == KVMSR_VALUE ? o->value : a->value,
		.index = a->index,
		.name = o->name,
		.rule = o->rule,
		.serial = cpu->serial,
		.op = a->op,
		.reason = a->reason,
		.verdict = o->verdict,
		.log = o->log,
	};
	__atomic_store_n(&vcpu->head, vcpu->head + 1, __ATOMIC_RELEASE);
}

/* Take the oldest event; return 0 if there is none. */
int kvmsr_next_event(struct kvmsr_vcpu *vcpu, struct kvmsr_event *event)
{
	uint64_t head = __atomic_load_n(&vcpu->head, __ATOMIC_ACQUIRE);
	uint64_t tail = vcpu->tail;

	if (tail == head)
		return 0;
	if (head - tail > KVMSR_EVENTS) /* the VMM wrote nonsense here */
		tail = head - KVMSR_EVENTS;
	*event = vcpu->events[tail % KVMSR_EVENTS];
	__atomic_store_n(&vcpu->tail, tail + 1, __ATOMIC_RELEASE);
	return 1;
}
