/* SPDX-License-Identifier: Apache-2.0 */
/* Record accesses: in the rows of the summary, and as events. One thread writes a vCPU's record. */
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

/* An outcome's verdict as the summary counts it. */
static int verdict_of(const struct kvmsr_outcome *o)
{
	return o->verdict <= KVMSR_FAULT ? o->verdict : KVMSR_STOP;
}

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

/*
 * Count an access, and return its row. *NEWS says whether it is the first one in this row with this
 * verdict, or one with another value than the last, or neither. Nobody knows whether what found no
 * row is new, so it counts as that.
 */
struct kvmsr_row *kvmsr_record(struct kvmsr_cpu *cpu, const struct kvmsr_access *a,
			       const struct kvmsr_outcome *o, int *news)
{
	struct kvmsr_row *row = row_for(cpu, a, o->name);
	uint64_t *counts = &row->values; /* and dones, faults and stops, in the order of verdicts */
	uint64_t value = o->verdict == KVMSR_VALUE ? o->value : a->value;

	if (!(row->has & 2)) {
		row->first_rip = kvmsr_rip(cpu);
		row->has |= 2;
	}
	*news = counts[verdict_of(o)]++ && row->used ? KVMSR_REPEATED : KVMSR_NEW;
	if (a->op == KVMSR_READ && o->verdict != KVMSR_VALUE)
		return row; /* the guest got no value */
	if (!*news && row->last_value != value)
		*news = KVMSR_CHANGED;
	row->last_value = value;
	if (!(row->has & 1)) {
		row->first_value = value;
		row->has |= 1;
	}
	return row;
}

/* Count how long the last access took. */
void kvmsr_time(struct kvmsr_cpu *cpu)
{
	struct kvmsr_vcpu *vcpu = cpu->shared;
	uint64_t took = kvmsr_now_ns() - cpu->taken_ns;
	int bits = took ? 64 - __builtin_clzll(took) : 0;

	vcpu->latencies[bits < KVMSR_LATENCIES ? bits : KVMSR_LATENCIES - 1]++;
	vcpu->latency_ns += took;
}

/* Is there room for one more event? If the trace is to be lossless, wait for it. */
static int has_room(struct kvmsr_cpu *cpu, int traced)
{
	struct kvmsr_vcpu *vcpu = cpu->shared;
	struct timespec slice = { 0, 10000000 };

	for (;;) {
		uint64_t tail = __atomic_load_n(&vcpu->tail, __ATOMIC_SEQ_CST);

		if (vcpu->head - tail < KVMSR_EVENTS)
			return 1;
		if (!traced || !__atomic_load_n(&cpu->tables->lossless, __ATOMIC_RELAXED) ||
		    (cpu->events && !kvmsr_lives(cpu->tables)))
			return 0;
		syscall(SYS_futex, (uint32_t *)&vcpu->tail, FUTEX_WAIT, (uint32_t)tail, &slice, NULL, 0);
	}
}

/*
 * Make the last access an event: if it is to be logged by another process, or if it belongs into the
 * trace. If there is no room, count it as dropped.
 */
void kvmsr_event(struct kvmsr_cpu *cpu, struct kvmsr_row *row, int news)
{
	struct kvmsr_vcpu *vcpu = cpu->shared;
	const struct kvmsr_access *a = &cpu->access;
	const struct kvmsr_outcome *o = &cpu->outcome;
	uint32_t grade = cpu->tables->trace;
	int log = cpu->events && o->log;
	int traced = grade == KVMSR_TRACE_ALL || (grade == KVMSR_TRACE_CHANGE && news) ||
		     (grade == KVMSR_TRACE_ONCE && news == KVMSR_NEW);

	if (!log && !traced)
		return;
	if (!has_room(cpu, traced)) {
		vcpu->dropped++;
		return;
	}
	uint64_t now = kvmsr_now_ns(), took = traced ? now - cpu->taken_ns : 0;
	static const struct kvmsr_where none;
	const struct kvmsr_where *where = &none;
	uint64_t *callers = vcpu->callers[vcpu->head % KVMSR_EVENTS];

	if (cpu->tables->trace_rip)
		where = kvmsr_where(cpu, cpu->tables->callers);
	for (int i = 0; i < where->n_callers; i++)
		callers[i] = where->callers[i];

	vcpu->events[vcpu->head % KVMSR_EVENTS] = (struct kvmsr_event){
		.time_ns = now,
		.value = o->verdict == KVMSR_VALUE ? o->value : a->value,
		.rip = where->rip,
		.index = a->index,
		.name = o->name,
		.rule = o->rule,
		.serial = cpu->serial,
		.latency_ns = took < UINT32_MAX ? took : UINT32_MAX,
		.vm = vcpu->vm,
		.vcpu = vcpu->id,
		.op = a->op,
		.reason = a->reason,
		.verdict = verdict_of(o),
		.log = log,
		.traced = traced,
		.has_rip = where->known,
		.cpl = where->cpl,
		.n_callers = where->n_callers,
		.guesses = where->guesses,
	};
	if (traced)
		row->traced[verdict_of(o)]++;
	__atomic_store_n(&vcpu->head, vcpu->head + 1, __ATOMIC_RELEASE);
}

/*
 * Take up to MOST of the oldest events, and return their number. CALLERS, if it is not NULL, has room
 * for KVMSR_CALLERS of each.
 */
uint32_t kvmsr_take_events(struct kvmsr_vcpu *vcpu, struct kvmsr_event *events, uint64_t *callers,
			   uint32_t most)
{
	uint64_t head = __atomic_load_n(&vcpu->head, __ATOMIC_ACQUIRE);
	uint64_t tail = vcpu->tail;
	uint32_t count = 0;

	if (head - tail > KVMSR_EVENTS) /* the VMM wrote nonsense here */
		tail = head - KVMSR_EVENTS;
	for (; count < most && tail != head; tail++, count++) {
		events[count] = vcpu->events[tail % KVMSR_EVENTS];
		if (callers)
			memcpy(&callers[count * KVMSR_CALLERS], vcpu->callers[tail % KVMSR_EVENTS],
			       sizeof(vcpu->callers[0]));
	}
	if (count) {
		__atomic_store_n(&vcpu->tail, tail, __ATOMIC_SEQ_CST);
		syscall(SYS_futex, (uint32_t *)&vcpu->tail, FUTEX_WAKE, 1, NULL, NULL, 0);
	}
	return count;
}
