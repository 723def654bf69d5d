/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The values of shadowed MSRs: a hash table that several vCPUs, threads or processes, use at once.
 *
 * Each VM has its own. It only grows, up to its limit, and an entry never moves. Its key is the scope
 * and unit that hold the register, and the MSR (kvmsr_holder); bit 63 is set in every key, so that 0
 * means free. A vCPU takes a free entry by a compare-and-exchange of its key. If two vCPUs want the
 * same key, both probe the same entries in the same order, so the one that loses finds the key of
 * the other there. Since no key is ever removed, a search ends at the first free entry.
 *
 * A vCPU adds 1 to n_shadows before it takes an entry, and subtracts it again if the limit has been
 * reached or another vCPU took the entry. So there are never more entries than the limit; close to
 * it, a write may be refused because of a 1 that is about to be subtracted.
 *
 * `state` says what the value means: until KVMSR_HAS is set, the register has its reset value. To change
 * a register, a vCPU reads, computes and writes, so it locks the entry with BUSY. Others spin; the
 * lock is held for a few instructions. A process that is killed, or that writes nonsense here, may
 * leave it locked for good, so whoever has spun for about a second takes the lock over. A plain read
 * needs no lock, because the value is a single word.
 */
#include "core.h"

#define PATIENCE (1u << 24) /* spins */

static uint64_t hash(uint64_t key)
{
	key *= 0x9e3779b97f4a7c15u;
	return key ^ key >> 32;
}

/* Return the upper half of a key, which identifies the register's holder: scope and unit. */
uint64_t kvmsr_holder(const struct kvmsr_table *table, uint32_t vcpu, uint8_t scope)
{
	uint32_t unit = vcpu;

	if (scope != KVMSR_THREAD) {
		unit = scope == KVMSR_VM ? 0 : vcpu / table->threads_per_core;
		if (scope == KVMSR_PACKAGE)
			unit = table->cores_per_package ? unit / table->cores_per_package : 0;
	}
	return 1ull << 63 | (uint64_t)scope << 52 | (uint64_t)(unit & 0xfffff) << 32;
}

/* Return the shadow of KEY. If there is none, make one if MAKE is set; NULL if there is no room. */
static struct kvmsr_shadow *shadow_at(struct kvmsr_vm *vm, uint64_t key, int make)
{
	for (uint32_t i = hash(key) % KVMSR_SHADOW_SLOTS, n = 0; n < KVMSR_SHADOW_SLOTS;
	     i = (i + 1) % KVMSR_SHADOW_SLOTS, n++) {
		struct kvmsr_shadow *s = &vm->shadows[i];
		uint64_t found = __atomic_load_n(&s->key, __ATOMIC_ACQUIRE);

		if (found == key)
			return s;
		if (found)
			continue;
		if (!make)
			return NULL;
		if (__atomic_fetch_add(&vm->n_shadows, 1, __ATOMIC_RELAXED) >= KVMSR_SHADOW_LIMIT) {
			__atomic_fetch_sub(&vm->n_shadows, 1, __ATOMIC_RELAXED);
			__atomic_fetch_add(&vm->refused, 1, __ATOMIC_RELAXED);
			return NULL;
		}
		if (__atomic_compare_exchange_n(&s->key, &found, key, 0, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE))
			return s;
		__atomic_fetch_sub(&vm->n_shadows, 1, __ATOMIC_RELAXED);
		if (found == key) /* another vCPU has just made it */
			return s;
	}
	return NULL;
}

/* Lock a shadow and return its state. Each spin takes one from PATIENCE. */
static uint32_t lock(struct kvmsr_shadow *s, uint32_t *patience)
{
	for (;;) {
		uint32_t state = __atomic_load_n(&s->state, __ATOMIC_RELAXED);

		state &= ~(uint32_t)KVMSR_BUSY;
		if (__atomic_compare_exchange_n(&s->state, &state, state | KVMSR_BUSY, 0,
						__ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return state;
		if (!*patience)
			return state;
		--*patience;
		__builtin_ia32_pause();
	}
}

static void unlock(struct kvmsr_shadow *s, uint32_t state)
{
	__atomic_store_n(&s->state, state, __ATOMIC_RELEASE);
}

uint64_t kvmsr_shadow_read(struct kvmsr_vm *vm, uint64_t key, uint64_t reset)
{
	struct kvmsr_shadow *s = shadow_at(vm, key, 0);

	if (!s || !(__atomic_load_n(&s->state, __ATOMIC_ACQUIRE) & KVMSR_HAS))
		return reset;
	return __atomic_load_n(&s->value, __ATOMIC_RELAXED);
}

static void set(struct kvmsr_shadow *s, uint64_t value, uint32_t state, int keep)
{
	__atomic_store_n(&s->value, value, __ATOMIC_RELAXED);
	unlock(s, (state & ~(uint32_t)KVMSR_KEEP) | KVMSR_HAS | (keep ? KVMSR_KEEP : 0));
}

/* Set a shadow's value. Return 0 if there is no room. */
int kvmsr_shadow_write(struct kvmsr_vm *vm, uint64_t key, uint64_t value, int keep)
{
	struct kvmsr_shadow *s = shadow_at(vm, key, 1);
	uint32_t patience = PATIENCE;

	if (s)
		set(s, value, lock(s, &patience), keep);
	return s != NULL;
}

/* Read a register and clear its rc bits. Return 0 if there is no room. */
int kvmsr_shadow_read_bits(struct kvmsr_vm *vm, uint64_t key, const struct kvmsr_rule *rule,
			   const struct kvmsr_bits *bits, uint64_t *value)
{
	struct kvmsr_shadow *s = shadow_at(vm, key, 0);
	uint32_t patience = PATIENCE;

	if (!s) {
		*value = rule->value;
		if (!(*value & bits->rc))
			return 1;
		s = shadow_at(vm, key, 1);
		if (!s)
			return 0;
	}
	uint32_t state = lock(s, &patience);

	*value = state & KVMSR_HAS ? s->value : rule->value;
	if (*value & bits->rc)
		set(s, *value & ~bits->rc, state, rule->keep);
	else
		unlock(s, state);
	return 1;
}

/* Write a register under the rules of its bits. If that faults, change nothing and return 0. */
int kvmsr_shadow_write_bits(struct kvmsr_vm *vm, uint64_t key, uint64_t value,
			    const struct kvmsr_rule *rule, const struct kvmsr_bits *bits)
{
	struct kvmsr_shadow *s = shadow_at(vm, key, 0);
	uint32_t state = 0, patience = PATIENCE;
	uint64_t old = rule->value;

	/* A write that faults must not take an entry, so check that first. */
	if (s) {
		state = lock(s, &patience);
		if (state & KVMSR_HAS)
			old = s->value;
	}
	if (old & bits->lock || (old ^ value) & bits->fault) {
		if (s)
			unlock(s, state);
		return 0;
	}
	if (!s) {
		s = shadow_at(vm, key, 1);
		if (!s)
			return 0;
		state = lock(s, &patience);
		if (state & KVMSR_HAS) { /* another vCPU has just written it: start again */
			unlock(s, state);
			return kvmsr_shadow_write_bits(vm, key, value, rule, bits);
		}
	}
	uint64_t takes = bits->rw | (state & KVMSR_WRITTEN ? 0 : bits->once);
	uint64_t sets = bits->w1s | bits->lock;
	uint64_t keeps = ~(takes | bits->w1c | sets);
	uint64_t new = (value & takes) | (old & ~value & bits->w1c) | ((old | value) & sets) |
		       (old & keeps);

	set(s, new, state | (bits->once ? KVMSR_WRITTEN : 0), rule->keep);
	return 1;
}

/* Restore a shadow from a snapshot. STATE has its KVMSR_WRITTEN and KVMSR_KEEP. */
void kvmsr_shadow_put(struct kvmsr_vm *vm, uint64_t key, uint64_t value, uint32_t state)
{
	struct kvmsr_shadow *s = shadow_at(vm, key, 1);
	uint32_t patience = PATIENCE;

	if (s) {
		lock(s, &patience);
		set(s, value, state & KVMSR_WRITTEN, state & KVMSR_KEEP);
	}
}

/* Reset a VM's shadows, but not those that are to be kept unless ALL is set. Entries stay. */
static void forget(struct kvmsr_vm *vm, int all)
{
	uint32_t patience = PATIENCE;

	for (uint32_t i = 0; __atomic_load_n(&vm->n_shadows, __ATOMIC_RELAXED) && i < KVMSR_SHADOW_SLOTS;
	     i++) {
		struct kvmsr_shadow *s = &vm->shadows[i];

		if (!__atomic_load_n(&s->key, __ATOMIC_ACQUIRE))
			continue;
		uint32_t state = lock(s, &patience);

		unlock(s, state & KVMSR_KEEP && !all ? state : 0);
	}
}

/* The VM's guest starts anew: so do its registers. If ALL is set, even those that rules keep. */
void kvmsr_reset(struct kvmsr_vm *vm, int all)
{
	forget(vm, all);
	vm->begun_ns = kvmsr_now_ns();
	__atomic_add_fetch(&vm->resets, 1, __ATOMIC_RELEASE);
}
