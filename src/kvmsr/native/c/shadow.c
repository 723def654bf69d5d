/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The values of shadowed MSRs: a hash table that several vCPUs, threads or processes, use at once.
 *
 * The table only grows, up to its limit, and an entry never moves. Its key is the VM, the scope and
 * unit that hold the register, and the MSR (kvmsr_holder); bit 63 is set in every key, so that 0
 * means free. A vCPU takes a free entry by a compare-and-exchange of its key. If two vCPUs want the
 * same key, both probe the same entries in the same order, so the one that loses finds the key of
 * the other there. Since no key is ever removed, a search ends at the first free entry.
 *
 * A vCPU adds 1 to n_shadows before it takes an entry, and subtracts it again if the limit has been
 * reached or another vCPU took the entry. So there are never more entries than the limit; close to
 * it, a write may be refused because of a 1 that is about to be subtracted.
 *
 * `state` says what the value means: until HAS is set, the register has its reset value. To change
 * a register, a vCPU reads, computes and writes, so it locks the entry with BUSY. Others spin; the
 * lock is held for a few instructions. A plain read needs no lock, because the value is a single
 * word.
 */
#include "core.h"

enum {
	BUSY = 1, /* locked */
	HAS = 2, /* has a value; without it, the register has its reset value */
	WRITTEN = 4, /* the guest has written it, so its `once` bits are read-only now */
};

static uint64_t hash(uint64_t key)
{
	key *= 0x9e3779b97f4a7c15u;
	return key ^ key >> 32;
}

/* Return the upper half of a key, which identifies the register's holder: VM, scope, unit. */
uint64_t kvmsr_holder(const struct kvmsr_table *table, uint32_t vm, uint32_t vcpu, uint8_t scope)
{
	uint32_t unit = vcpu;

	if (scope != KVMSR_THREAD) {
		unit = scope == KVMSR_VM ? 0 : vcpu / table->threads_per_core;
		if (scope == KVMSR_PACKAGE)
			unit = table->cores_per_package ? unit / table->cores_per_package : 0;
	}
	return 1ull << 63 | (uint64_t)(vm & 0x1ff) << 54 | (uint64_t)scope << 52 |
	       (uint64_t)(unit & 0xfffff) << 32;
}

/* Return the shadow of KEY. If there is none, make one if MAKE is set; NULL if there is no room. */
struct kvmsr_shadow *kvmsr_shadow_at(struct kvmsr_block *block, uint64_t key, int make)
{
	for (uint32_t i = hash(key) % KVMSR_SHADOW_SLOTS, n = 0; n < KVMSR_SHADOW_SLOTS;
	     i = (i + 1) % KVMSR_SHADOW_SLOTS, n++) {
		struct kvmsr_shadow *s = &block->shadows[i];
		uint64_t found = __atomic_load_n(&s->key, __ATOMIC_ACQUIRE);

		if (found == key)
			return s;
		if (found)
			continue;
		if (!make)
			return NULL;
		if (__atomic_fetch_add(&block->n_shadows, 1, __ATOMIC_RELAXED) >=
		    KVMSR_SHADOW_LIMIT) {
			__atomic_fetch_sub(&block->n_shadows, 1, __ATOMIC_RELAXED);
			__atomic_fetch_add(&block->refused, 1, __ATOMIC_RELAXED);
			return NULL;
		}
		if (__atomic_compare_exchange_n(&s->key, &found, key, 0, __ATOMIC_ACQ_REL,
						__ATOMIC_ACQUIRE))
			return s;
		__atomic_fetch_sub(&block->n_shadows, 1, __ATOMIC_RELAXED);
		if (found == key) /* another vCPU has just made it */
			return s;
	}
	return NULL;
}

static uint32_t lock(struct kvmsr_shadow *s)
{
	for (;;) {
		uint32_t state = __atomic_load_n(&s->state, __ATOMIC_RELAXED) & ~(uint32_t)BUSY;

		if (__atomic_compare_exchange_n(&s->state, &state, state | BUSY, 0,
						__ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return state;
		__builtin_ia32_pause();
	}
}

static void unlock(struct kvmsr_shadow *s, uint32_t state)
{
	__atomic_store_n(&s->state, state, __ATOMIC_RELEASE);
}

uint64_t kvmsr_shadow_read(struct kvmsr_block *block, uint64_t key, uint64_t reset)
{
	struct kvmsr_shadow *s = kvmsr_shadow_at(block, key, 0);

	if (!s || !(__atomic_load_n(&s->state, __ATOMIC_ACQUIRE) & HAS))
		return reset;
	return __atomic_load_n(&s->value, __ATOMIC_RELAXED);
}

/* Set a shadow's value. Return 0 if there is no room. */
int kvmsr_shadow_write(struct kvmsr_block *block, uint64_t key, uint64_t value)
{
	struct kvmsr_shadow *s = kvmsr_shadow_at(block, key, 1);

	if (!s)
		return 0;
	uint32_t state = lock(s);

	__atomic_store_n(&s->value, value, __ATOMIC_RELAXED);
	unlock(s, state | HAS);
	return 1;
}

/* Read a register and clear its rc bits. Return 0 if there is no room. */
int kvmsr_shadow_read_bits(struct kvmsr_block *block, uint64_t key, uint64_t reset,
			   const struct kvmsr_bits *bits, uint64_t *value)
{
	struct kvmsr_shadow *s = kvmsr_shadow_at(block, key, 0);

	if (!s) {
		*value = reset;
		if (!(reset & bits->rc))
			return 1;
		s = kvmsr_shadow_at(block, key, 1);
		if (!s)
			return 0;
	}
	uint32_t state = lock(s);

	*value = state & HAS ? s->value : reset;
	if (*value & bits->rc) {
		__atomic_store_n(&s->value, *value & ~bits->rc, __ATOMIC_RELAXED);
		state |= HAS;
	}
	unlock(s, state);
	return 1;
}

/* Write a register under the rules of its bits. If that faults, change nothing and return 0. */
int kvmsr_shadow_write_bits(struct kvmsr_block *block, uint64_t key, uint64_t value, uint64_t reset,
			    const struct kvmsr_bits *bits)
{
	struct kvmsr_shadow *s = kvmsr_shadow_at(block, key, 0);
	uint32_t state = 0;
	uint64_t old = reset;

	/* A write that faults must not take an entry, so check that first. */
	if (s) {
		state = lock(s);
		if (state & HAS)
			old = s->value;
	}
	if (old & bits->lock || (old ^ value) & bits->fault) {
		if (s)
			unlock(s, state);
		return 0;
	}
	if (!s) {
		s = kvmsr_shadow_at(block, key, 1);
		if (!s)
			return 0;
		state = lock(s);
		if (state & HAS) { /* another vCPU has just written it: start again */
			unlock(s, state);
			return kvmsr_shadow_write_bits(block, key, value, reset, bits);
		}
	}
	uint64_t takes = bits->rw | (state & WRITTEN ? 0 : bits->once);
	uint64_t sets = bits->w1s | bits->lock;
	uint64_t keeps = ~(takes | bits->w1c | sets);

	__atomic_store_n(&s->value,
			 (value & takes) | (old & ~value & bits->w1c) | ((old | value) & sets) |
				 (old & keeps),
			 __ATOMIC_RELAXED);
	unlock(s, state | HAS | (bits->once ? WRITTEN : 0));
	return 1;
}

/* Restore a shadow from a snapshot. */
void kvmsr_shadow_put(struct kvmsr_block *block, uint64_t key, uint64_t value, int written)
{
	struct kvmsr_shadow *s = kvmsr_shadow_at(block, key, 1);

	if (s) {
		lock(s);
		__atomic_store_n(&s->value, value, __ATOMIC_RELAXED);
		unlock(s, HAS | (written ? WRITTEN : 0));
	}
}

/* Reset all shadows of a VM. It keeps their entries. */
void kvmsr_shadow_forget(struct kvmsr_block *block, uint32_t vm)
{
	for (uint32_t i = 0; block->n_shadows && i < KVMSR_SHADOW_SLOTS; i++) {
		struct kvmsr_shadow *s = &block->shadows[i];

		if (s->key && (s->key >> 54 & 0x1ff) == (vm & 0x1ff)) {
			lock(s);
			unlock(s, 0);
		}
	}
}
