/* SPDX-License-Identifier: Apache-2.0 */
/* Check a table: after this, evaluate.c may follow every offset and number in it. */
#include "core.h"

/* Does an array of COUNT elements of SIZE bytes fit at OFFSET in a table of TOTAL bytes? */
static int fits(uint32_t offset, uint64_t count, size_t size, uint64_t total)
{
	return offset % 8 == 0 && offset <= total && count <= (total - offset) / size;
}

static const char *check_rule(const struct kvmsr_table *t, const struct kvmsr_rule *r)
{
	if (r->action >= KVMSR_ACTIONS || r->log >= KVMSR_LOGS || r->scope >= KVMSR_SCOPES)
		return "a rule has an unknown action, log or scope";
	if (r->bits != KVMSR_NONE && r->bits >= t->n_bits)
		return "a rule's bits are missing";
	if (r->vcpus > t->n_vcpus || r->n_vcpus > t->n_vcpus - r->vcpus)
		return "a rule's vCPUs are missing";
	if (r->when & KVMSR_WHEN_COUNT && (r->counter >= t->n_counters || !r->every))
		return "a rule cannot count its matches";
	return NULL;
}

static const char *check_segments(const struct kvmsr_table *t, int op)
{
	const uint32_t *firsts = kvmsr_part(t, t->firsts[op]);
	const struct kvmsr_segment *segments = kvmsr_part(t, t->segments[op]);

	if (!t->n_segments[op] || firsts[0])
		return "the segments do not begin at MSR 0";
	for (uint32_t i = 0; i < t->n_segments[op]; i++) {
		const struct kvmsr_segment *s = &segments[i];

		if (i && firsts[i] <= firsts[i - 1])
			return "the segments are out of order";
		if (s->steps > t->n_steps || s->n_steps > t->n_steps - s->steps)
			return "a segment's rules are missing";
	}
	return NULL;
}

const char *kvmsr_table_check(const struct kvmsr_table *t, size_t room)
{
	if (room < sizeof(*t) || t->magic != KVMSR_TABLE_MAGIC || t->version != KVMSR_VERSION)
		return "this is not a table of this version";
	uint64_t size = t->size;

	if (size > room || size < sizeof(*t))
		return "the table does not have the size that it declares";
	for (int op = 0; op < 2; op++)
		if (!fits(t->firsts[op], t->n_segments[op], sizeof(uint32_t), size) ||
		    !fits(t->segments[op], t->n_segments[op], sizeof(struct kvmsr_segment), size))
			return "the segments are outside the table";
	if (!fits(t->steps, t->n_steps, sizeof(uint32_t), size) ||
	    !fits(t->rules, t->n_rules, sizeof(struct kvmsr_rule), size) ||
	    !fits(t->bits, t->n_bits, sizeof(struct kvmsr_bits), size) ||
	    !fits(t->vcpus, t->n_vcpus, sizeof(uint32_t), size) ||
	    !fits(t->never_unknown, t->n_never_unknown, 2 * sizeof(uint32_t), size))
		return "an array is outside the table";
	if (t->n_counters > KVMSR_MAX_COUNTERS)
		return "too many rules count their matches";
	if (t->n_rules < KVMSR_DEFAULTS || !t->threads_per_core)
		return "the defaults are missing";
	const uint32_t *steps = kvmsr_part(t, t->steps);
	const struct kvmsr_rule *rules = kvmsr_part(t, t->rules);

	for (uint32_t i = 0; i < t->n_steps; i++)
		if (steps[i] >= t->n_rules)
			return "a segment names a rule that does not exist";
	for (uint32_t i = 0; i < t->n_rules; i++) {
		const char *wrong = check_rule(t, &rules[i]);

		if (wrong)
			return wrong;
	}
	if (t->n_ranges > KVMSR_MAX_RANGES)
		return "there are more filter ranges than KVM accepts";
	for (uint32_t i = 0; i < t->n_ranges; i++) {
		const struct kvmsr_range *r = &t->ranges[i];

		if (r->count > 0x3000 || !fits(r->bitmap, (r->count + 7) / 8, 1, size))
			return "a filter range's bitmap is outside the table";
	}
	for (int op = 0; op < 2; op++) {
		const char *wrong = check_segments(t, op);

		if (wrong)
			return wrong;
	}
	return NULL;
}
