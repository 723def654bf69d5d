/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decide accesses, exactly as kvmsr.dispatch.Dispatcher does; the comment on top of dispatcher.py
 * explains how. tests/native/test_differential.py compares the two.
 */
#include "core.h"

static const struct kvmsr_segment *find(const struct kvmsr_table *t, int op, uint32_t index)
{
	const uint32_t *firsts = kvmsr_part(t, t->firsts[op]);
	const struct kvmsr_segment *segments = kvmsr_part(t, t->segments[op]);
	uint32_t low = 0, count = t->n_segments[op];

	while (count > 1) {
		uint32_t half = count / 2;

		low = firsts[low + half] <= index ? low + half : low;
		count -= half;
	}
	return &segments[low];
}

static int among(const struct kvmsr_table *t, const struct kvmsr_rule *r, uint32_t vcpu)
{
	const uint32_t *vcpus = (const uint32_t *)kvmsr_part(t, t->vcpus) + r->vcpus;

	for (uint32_t i = 0; i < r->n_vcpus; i++)
		if (vcpus[i] == vcpu)
			return 1;
	return 0;
}

/* Is the guest in the rule's function, or was that called from there? */
static int called_from(struct kvmsr_cpu *cpu, const struct kvmsr_rule *r)
{
	const struct kvmsr_where *where = kvmsr_where(cpu, KVMSR_CALLERS);

	if (where->rip >= r->caller_first && where->rip <= r->caller_last)
		return 1;
	/* A call ends where it returns to. That may be where the next function begins. */
	for (int i = 0; i < where->n_callers; i++)
		if (where->callers[i] && where->callers[i] - 1 >= r->caller_first &&
		    where->callers[i] - 1 <= r->caller_last)
			return 1;
	return 0;
}

/* Does the rule hold? The count comes last, because only an access that meets all else counts. */
static int holds(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, const struct kvmsr_rule *r,
		 const struct kvmsr_access *a)
{
	if (!r->when)
		return 1;
	if (r->when & KVMSR_WHEN_VCPU && !among(t, r, a->vcpu))
		return 0;
	if (r->when & KVMSR_WHEN_REASON && !(r->reasons >> a->reason & 1))
		return 0;
	if (r->when & KVMSR_WHEN_VALUE && (a->value & r->when_mask) != r->when_value)
		return 0;
	if (r->when & KVMSR_WHEN_RIP) {
		uint64_t rip = kvmsr_rip(cpu);

		if (rip < r->rip_first || rip > r->rip_last)
			return 0;
	}
	if (r->when & KVMSR_WHEN_CALLER && !called_from(cpu, r))
		return 0;
	if (r->when & KVMSR_WHEN_COUNT) {
		uint64_t *counter = &kvmsr_counters(cpu->vm, cpu->active)[r->counter];
		uint64_t n = __atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);

		return n >= r->after && (n - r->after) % r->every == 0;
	}
	return 1;
}

/*
 * Is this the first such access? This memory is small and may forget, and then an access is passed
 * on for logging again; the log itself remembers exactly.
 */
static int unmarked(struct kvmsr_cpu *cpu, uint32_t name, const struct kvmsr_access *a)
{
	uint64_t mark = (uint64_t)name << 33 | (uint64_t)a->op << 32 | a->index;
	uint64_t *place = &cpu->shared->marks[(mark * 0x9e3779b97f4a7c15u >> 40) % KVMSR_MARKS];

	mark = ~mark; /* an empty place is 0 */
	if (*place == mark)
		return 0;
	*place = mark;
	return 1;
}

static int wants_log(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, const struct kvmsr_rule *r,
		 const struct kvmsr_access *a, uint8_t verdict)
{
	if (!t->logs || r->log == KVMSR_LOG_NEVER || verdict == KVMSR_KERNEL)
		return 0;
	if (r->log >= KVMSR_LOG_CHANGE)
		return 1;
	if (r->log == KVMSR_LOG_FAULT_ONCE && verdict != KVMSR_FAULT)
		return 0;
	return unmarked(cpu, r->name, a);
}

static void shadow(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, const struct kvmsr_rule *r,
		   const struct kvmsr_access *a, struct kvmsr_outcome *o)
{
	uint64_t key = kvmsr_holder(t, a->vcpu, r->scope) | a->index;
	const struct kvmsr_bits *bits = NULL;
	int good = 1;

	if (r->bits != KVMSR_NONE)
		bits = (const struct kvmsr_bits *)kvmsr_part(t, t->bits) + r->bits;
	if (a->op == KVMSR_READ && bits)
		good = kvmsr_shadow_read_bits(cpu->vm, key, r, bits, &o->value);
	else if (a->op == KVMSR_READ)
		o->value = kvmsr_shadow_read(cpu->vm, key, r->value);
	else if (bits)
		good = kvmsr_shadow_write_bits(cpu->vm, key, a->value, r, bits);
	else
		good = kvmsr_shadow_write(cpu->vm, key, a->value, r->keep);
	if (!good) {
		o->verdict = KVMSR_FAULT;
		o->value = 0;
	}
}

/* What is stored of a counter is the value it had when the guest began. */
static void counter(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, const struct kvmsr_rule *r,
		    const struct kvmsr_access *a, struct kvmsr_outcome *o)
{
	uint64_t key = kvmsr_holder(t, a->vcpu, r->scope) | a->index;
	uint64_t now = cpu->fd < 0 ? cpu->time_ns : kvmsr_now_ns() - cpu->vm->begun_ns;
	uint64_t ticks = (unsigned __int128)now * r->hz / 1000000000;

	if (a->op == KVMSR_READ)
		o->value = kvmsr_shadow_read(cpu->vm, key, r->value) + ticks;
	else if (!kvmsr_shadow_write(cpu->vm, key, a->value - ticks, r->keep))
		o->verdict = KVMSR_FAULT;
}

static void act(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, uint32_t number,
		const struct kvmsr_access *a, struct kvmsr_outcome *o)
{
	const struct kvmsr_rule *r = (const struct kvmsr_rule *)kvmsr_part(t, t->rules) + number;

	o->rule = number;
	o->name = r->name;
	o->value = 0;
	o->verdict = a->op == KVMSR_READ ? KVMSR_VALUE : KVMSR_DONE;
	switch (r->action) {
	case KVMSR_ACT_VALUE:
		o->value = r->value;
		break;
	case KVMSR_ACT_SHADOW:
		shadow(cpu, t, r, a, o);
		break;
	case KVMSR_ACT_COUNTER:
		counter(cpu, t, r, a, o);
		break;
	case KVMSR_ACT_FAULT:
		o->verdict = KVMSR_FAULT;
		break;
	case KVMSR_ACT_STOP:
		o->verdict = KVMSR_STOP;
		break;
	case KVMSR_ACT_KERNEL:
		o->verdict = KVMSR_KERNEL;
		break;
	case KVMSR_ACT_UPCALL:
		o->verdict = KVMSR_UPCALL;
		break;
	}
	o->log = wants_log(cpu, t, r, a, o->verdict);
}

/* No rule decides, NUMBER being KVMSR_NONE, or rule NUMBER leaves the access to KVM. */
static void unruled(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, uint32_t number,
		    const struct kvmsr_access *a, struct kvmsr_outcome *o)
{
	const struct kvmsr_rule *rules = kvmsr_part(t, t->rules);
	int to_vmm = a->vmm_reasons >> a->reason & 1;

	if (!to_vmm && a->reason != KVMSR_FILTER) {
		act(cpu, t, (a->reason == KVMSR_INVALID ? KVMSR_DEFAULT_INVALID : 0) + a->op, a, o);
		return;
	}
	/* An access that the VMM denies without asking for the exit gets #GP, as it would from KVM. */
	o->verdict = to_vmm ? KVMSR_TO_VMM : a->denied ? KVMSR_FAULT : KVMSR_KERNEL;
	o->rule = number;
	o->name = number == KVMSR_NONE ? KVMSR_UNRULED : rules[number].name;
	o->value = 0;
	o->log = 0;
}

void kvmsr_evaluate(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, struct kvmsr_access *a,
		    struct kvmsr_outcome *o)
{
	const struct kvmsr_segment *s = find(t, a->op, a->index);
	const struct kvmsr_rule *rules = kvmsr_part(t, t->rules);
	const uint32_t *steps = (const uint32_t *)kvmsr_part(t, t->steps) + s->steps;

	/* With ignore_msrs KVM pretends to know every MSR, so the filter denies the unknown ones. */
	if (s->swallowed && a->reason == KVMSR_FILTER)
		a->reason = KVMSR_UNKNOWN;
	for (uint32_t i = 0; i < s->n_steps; i++) {
		const struct kvmsr_rule *r = &rules[steps[i]];

		if (!holds(cpu, t, r, a))
			continue;
		if (r->action == KVMSR_ACT_KERNEL)
			unruled(cpu, t, steps[i], a, o);
		else
			act(cpu, t, steps[i], a, o);
		return;
	}
	unruled(cpu, t, KVMSR_NONE, a, o);
}

/* KVM has answered an access that *o passed on to it. Without a rule, the log has the first one. */
void kvmsr_passed(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, const struct kvmsr_access *a,
		  struct kvmsr_outcome *o)
{
	o->log = t->logs && t->observes && o->rule == KVMSR_NONE && unmarked(cpu, o->name, a);
}

/*
 * KVM refuses the host what it was asked on behalf of the guest. For which reason would it have
 * refused the guest? HOST_READS: the host can read the MSR, though not write this value.
 */
uint8_t kvmsr_why_refused(const struct kvmsr_table *t, const struct kvmsr_access *a, int host_reads)
{
	const uint32_t *spans = kvmsr_part(t, t->never_unknown);

	for (uint32_t i = 0; i < t->n_never_unknown; i++)
		if (a->index >= spans[2 * i] && a->index <= spans[2 * i + 1])
			return KVMSR_INVALID;
	return a->op && host_reads && find(t, a->op, a->index)->known ? KVMSR_INVALID :
									KVMSR_UNKNOWN;
}

/*
 * Decide an access that *o passed on to KVM and that KVM refused for REASON, which becomes the
 * access's reason.
 */
void kvmsr_refused(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, struct kvmsr_access *a,
		   uint8_t reason, struct kvmsr_outcome *o)
{
	const struct kvmsr_segment *s = find(t, a->op, a->index);
	const struct kvmsr_rule *rules = kvmsr_part(t, t->rules);
	const uint32_t *steps = (const uint32_t *)kvmsr_part(t, t->steps) + s->steps;
	uint32_t passed = o->rule;

	a->reason = reason;
	for (uint32_t i = 0; i < s->n_steps; i++) {
		const struct kvmsr_rule *r = &rules[steps[i]];

		if (!r->when || steps[i] == passed)
			break;
		/* The other rules have already been tried, and would count the access twice. */
		if (r->when & KVMSR_WHEN_REASON && !(r->reasons >> KVMSR_FILTER & 1) &&
		    holds(cpu, t, r, a)) {
			if (r->action == KVMSR_ACT_KERNEL)
				unruled(cpu, t, steps[i], a, o);
			else
				act(cpu, t, steps[i], a, o);
			return;
		}
	}
	unruled(cpu, t, passed, a, o);
}

/* Decide an access that Python did not answer: as a handler's failure. */
void kvmsr_failed(struct kvmsr_cpu *cpu, const struct kvmsr_table *t, const struct kvmsr_access *a,
		  struct kvmsr_outcome *o)
{
	act(cpu, t, KVMSR_ON_ERROR + a->op, a, o);
	if (o->verdict == KVMSR_STOP) /* without Python, nothing could stop the run */
		o->verdict = KVMSR_FAULT;
}
