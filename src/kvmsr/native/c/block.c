/* SPDX-License-Identifier: Apache-2.0 */
/* The shared block: making it, checking it, and replacing the policy in it. */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

uint64_t kvmsr_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

size_t kvmsr_block_size(uint32_t max_vcpus)
{
	return sizeof(struct kvmsr_block) + (size_t)max_vcpus * sizeof(struct kvmsr_vcpu);
}

/* Make a block in BLOCK, new memory that is all zeros. */
void kvmsr_block_make(struct kvmsr_block *block, uint32_t max_vcpus)
{
	block->version = KVMSR_VERSION;
	block->max_vcpus = max_vcpus;
	block->size = kvmsr_block_size(max_vcpus);
	__atomic_store_n(&block->magic, KVMSR_BLOCK_MAGIC, __ATOMIC_RELEASE);
}

const char *kvmsr_block_check(const struct kvmsr_block *block, size_t size)
{
	if (size < sizeof(*block) || block->magic != KVMSR_BLOCK_MAGIC)
		return "this is not kvmsr's shared memory";
	if (block->version != KVMSR_VERSION)
		return "the shared memory is of another version of kvmsr";
	if (block->size != size || kvmsr_block_size(block->max_vcpus) != size)
		return "the shared memory does not have the size that it declares";
	return NULL;
}

const uint64_t *kvmsr_page(const struct kvmsr_others *others, uint32_t number)
{
	return others->pages[number % KVMSR_PAGES];
}

struct kvmsr_table *kvmsr_table_at(struct kvmsr_block *block, uint32_t number)
{
	return (struct kvmsr_table *)block->tables[number & 1];
}

struct kvmsr_vcpu *kvmsr_vcpu_at(struct kvmsr_block *block, uint32_t number)
{
	return &block->vcpus[number];
}

/*
 * Take a record for a vCPU: one that a closed vCPU has left, or a new one. NULL if there is none. A
 * record keeps the rows of the vCPU that left it, because rows do not name their vCPU.
 */
struct kvmsr_vcpu *kvmsr_take_vcpu(struct kvmsr_block *block, uint32_t vm, uint32_t id)
{
	uint32_t n = __atomic_load_n(&block->n_vcpus, __ATOMIC_ACQUIRE);
	struct kvmsr_vcpu *vcpu = NULL;

	for (uint32_t i = 0; i < n && i < block->max_vcpus && !vcpu; i++) {
		uint32_t left = KVMSR_LEFT;

		if (__atomic_compare_exchange_n(&block->vcpus[i].taken, &left, KVMSR_TAKING, 0,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			vcpu = &block->vcpus[i];
	}
	if (!vcpu) {
		if (n >= block->max_vcpus)
			return NULL;
		n = __atomic_fetch_add(&block->n_vcpus, 1, __ATOMIC_ACQ_REL);
		if (n >= block->max_vcpus)
			return NULL;
		vcpu = &block->vcpus[n];
	}
	vcpu->vm = vm;
	vcpu->id = id;
	vcpu->pid = getpid();
	__atomic_store_n(&vcpu->taken, KVMSR_TAKEN, __ATOMIC_RELEASE);
	return vcpu;
}

/* Release the record of a vCPU that was closed, for another vCPU to take. */
void kvmsr_free_vcpu(struct kvmsr_vcpu *vcpu)
{
	vcpu->pid = 0;
	__atomic_store_n(&vcpu->taken, KVMSR_LEFT, __ATOMIC_RELEASE);
}

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
	    !fits(t->counters, t->n_counters, sizeof(uint64_t), size))
		return "an array is outside the table";
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

/*
 * Put TABLE in force, while guests run. Return NULL, or why that failed.
 *
 * The block has room for two tables, and the new one overwrites the one that is not active. vCPUs
 * that are reading the active table finish their access with it. A vCPU that is still reading the
 * other one began before the last replacement; a reader needs microseconds, so this hardly ever
 * waits.
 *
 * A reader (kvmsr_enter) first announces in `reading` which table it is about to use, and then
 * checks that this table is still active. The writer makes the other table active, and only at the
 * next replacement looks at `reading`. All of this is sequentially consistent, so either the writer
 * sees the announcement and waits, or the reader sees that the table has changed and starts again.
 */
const char *kvmsr_install(struct kvmsr_block *block, const void *table, size_t size)
{
	const char *wrong = kvmsr_table_check(table, size);

	if (wrong)
		return wrong;
	if (size > KVMSR_TABLE_ROOM)
		return "the policy is too large";
	uint32_t to = block->generation ? !block->active : 0;
	uint64_t deadline = kvmsr_now_ns() + 1000000000;

	for (uint32_t i = 0; i < block->n_vcpus && i < block->max_vcpus; i++)
		while (__atomic_load_n(&block->vcpus[i].reading, __ATOMIC_SEQ_CST) == to + 1)
			if (kvmsr_now_ns() > deadline)
				return "a vCPU is still using the policy before the last";
	if (!block->begun_ns)
		block->begun_ns = kvmsr_now_ns();
	memcpy(block->tables[to], table, size);
	__atomic_store_n(&block->active, to, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&block->generation, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* Return the table in force and keep it from being overwritten; NULL if there is none. */
const struct kvmsr_table *kvmsr_enter(struct kvmsr_cpu *cpu)
{
	struct kvmsr_block *block = cpu->block;
	uint32_t active;

	if (!__atomic_load_n(&block->generation, __ATOMIC_ACQUIRE))
		return NULL;
	do {
		active = __atomic_load_n(&block->active, __ATOMIC_SEQ_CST) & 1;
		__atomic_store_n(&cpu->shared->reading, active + 1, __ATOMIC_SEQ_CST);
	} while ((__atomic_load_n(&block->active, __ATOMIC_SEQ_CST) & 1) != active);
	return (const struct kvmsr_table *)block->tables[active];
}

void kvmsr_leave(struct kvmsr_cpu *cpu)
{
	__atomic_store_n(&cpu->shared->reading, 0, __ATOMIC_RELEASE);
}
