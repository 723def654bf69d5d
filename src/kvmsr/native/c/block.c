/* SPDX-License-Identifier: Apache-2.0 */
/* The shared memory: making it, checking it, its records, and replacing the policy in it. */
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

/* Make both parts, in new memory that is all zeros. */
void kvmsr_block_make(struct kvmsr_block *block, struct kvmsr_tables *tables, uint32_t max_vcpus)
{
	block->version = tables->version = KVMSR_VERSION;
	tables->max_vcpus = max_vcpus;
	__atomic_store_n(&tables->magic, KVMSR_BLOCK_MAGIC, __ATOMIC_RELEASE);
	__atomic_store_n(&block->magic, KVMSR_BLOCK_MAGIC, __ATOMIC_RELEASE);
}

const char *kvmsr_block_check(const struct kvmsr_block *block, size_t size,
			      const struct kvmsr_tables *tables, size_t tables_size)
{
	if (tables_size < sizeof(*tables) || tables->magic != KVMSR_BLOCK_MAGIC ||
	    size < sizeof(*block) || block->magic != KVMSR_BLOCK_MAGIC)
		return "this is not kvmsr's shared memory";
	if (block->version != KVMSR_VERSION || tables->version != KVMSR_VERSION)
		return "the shared memory is of another version of kvmsr";
	if (tables_size != sizeof(*tables) || size != kvmsr_block_size(tables->max_vcpus))
		return "the shared memory does not have the size that it declares";
	return NULL;
}

const uint64_t *kvmsr_page(const struct kvmsr_others *others, uint32_t number)
{
	return others->pages[number % KVMSR_PAGES];
}

const struct kvmsr_table *kvmsr_table_at(const struct kvmsr_tables *tables, uint32_t number)
{
	return (const struct kvmsr_table *)tables->tables[number & 1];
}

struct kvmsr_vm *kvmsr_vm_at(struct kvmsr_block *block, uint32_t number)
{
	return &block->vms[number % KVMSR_MAX_VMS];
}

uint64_t *kvmsr_counters(struct kvmsr_vm *vm, uint32_t table)
{
	return vm->counters[table & 1];
}

struct kvmsr_vcpu *kvmsr_vcpu_at(struct kvmsr_block *block, uint32_t number)
{
	return &block->vcpus[number];
}

/* Change a record that was left to TAKING. Return whether that succeeded. */
static int take_left(uint32_t *taken)
{
	uint32_t left = KVMSR_LEFT;

	return __atomic_compare_exchange_n(taken, &left, KVMSR_TAKING, 0, __ATOMIC_ACQ_REL,
					   __ATOMIC_RELAXED);
}

/* Return the next number of a record that was never used. It may be too large. */
static uint32_t take_fresh(uint32_t *used, uint32_t limit)
{
	if (__atomic_load_n(used, __ATOMIC_ACQUIRE) >= limit)
		return limit;
	return __atomic_fetch_add(used, 1, __ATOMIC_ACQ_REL);
}

/*
 * Take a record for a VM of the process NAME and return its number; KVMSR_MAX_VMS if there is none.
 * Records of VMs that are gone are reused only when there are no others, because their registers may
 * still be saved.
 */
uint32_t kvmsr_take_vm(struct kvmsr_block *block, const char *name)
{
	uint32_t number = take_fresh(&block->n_vms, KVMSR_MAX_VMS);
	int reused = number >= KVMSR_MAX_VMS;

	for (uint32_t i = 0; i < KVMSR_MAX_VMS && number >= KVMSR_MAX_VMS; i++)
		if (take_left(&block->vms[i].taken))
			number = i;
	if (number >= KVMSR_MAX_VMS)
		return KVMSR_MAX_VMS;
	struct kvmsr_vm *vm = &block->vms[number];

	if (reused) {
		vm->generation = vm->failed = vm->lost_ranges = vm->unserved = 0;
		vm->resets = vm->loads = vm->n_shadows = 0;
		vm->refused = vm->exits = 0;
		memset(vm->counters, 0, sizeof(vm->counters));
		memset(vm->shadows, 0, sizeof(vm->shadows));
	}
	vm->pid = getpid();
	strncpy(vm->name, name, sizeof(vm->name));
	if (reused || !vm->begun_ns) /* a state that was restored has set it */
		vm->begun_ns = kvmsr_now_ns();
	vm->serial++;
	__atomic_store_n(&vm->taken, KVMSR_TAKEN, __ATOMIC_RELEASE);
	return number;
}

/* Release the record of a VM that is gone. */
void kvmsr_free_vm(struct kvmsr_vm *vm)
{
	__atomic_store_n(&vm->taken, KVMSR_LEFT, __ATOMIC_RELEASE);
}

/*
 * Take a record for a vCPU: one that a closed vCPU has left, or a new one. NULL if there is none. A
 * record keeps the rows of the vCPU that left it, because rows do not name their vCPU.
 */
struct kvmsr_vcpu *kvmsr_take_vcpu(struct kvmsr_block *block, uint32_t max_vcpus, uint32_t vm,
				   uint32_t id)
{
	uint32_t n = __atomic_load_n(&block->n_vcpus, __ATOMIC_ACQUIRE);
	struct kvmsr_vcpu *vcpu = NULL;

	if (id >= KVMSR_MAX_ID)
		return NULL;
	for (uint32_t i = 0; i < n && i < max_vcpus && !vcpu; i++)
		if (take_left(&block->vcpus[i].taken))
			vcpu = &block->vcpus[i];
	if (!vcpu) {
		n = take_fresh(&block->n_vcpus, max_vcpus);
		if (n >= max_vcpus)
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
void kvmsr_free_vcpu(struct kvmsr_block *block, struct kvmsr_vcpu *vcpu)
{
	uint32_t vm = vcpu->vm;

	if (vm < KVMSR_MAX_VMS)
		__atomic_fetch_add(&block->vms[vm].exits, vcpu->exits, __ATOMIC_RELAXED);
	vcpu->exits = 0;
	vcpu->pid = vcpu->reading = 0;
	__atomic_store_n(&vcpu->taken, KVMSR_LEFT, __ATOMIC_RELEASE);
}

/*
 * Put TABLE in force, while guests run. Return NULL, or why that failed.
 *
 * There is room for two tables, and the new one overwrites the one that is not active. vCPUs that
 * are reading the active table finish their access with it. A vCPU that is still reading the other
 * one began before the last replacement; a reader needs microseconds, so this hardly ever waits.
 *
 * A reader (kvmsr_enter) first announces in `reading` which table it is about to use, and then
 * checks that this table is still active. The writer makes the other table active, and only at the
 * next replacement looks at `reading`. All of this is sequentially consistent, so either the writer
 * sees the announcement and waits, or the reader sees that the table has changed and starts again.
 */
const char *kvmsr_install(struct kvmsr_tables *tables, struct kvmsr_block *block, const void *table,
			  size_t size)
{
	const char *wrong = kvmsr_table_check(table, size);

	if (wrong)
		return wrong;
	if (size > KVMSR_TABLE_ROOM)
		return "the policy is too large";
	uint32_t to = tables->generation ? !tables->active : 0;
	uint32_t n_vcpus = __atomic_load_n(&block->n_vcpus, __ATOMIC_ACQUIRE);
	uint64_t deadline = kvmsr_now_ns() + 1000000000;

	for (uint32_t i = 0; i < n_vcpus && i < tables->max_vcpus; i++)
		while (__atomic_load_n(&block->vcpus[i].reading, __ATOMIC_SEQ_CST) == to + 1)
			if (kvmsr_now_ns() > deadline)
				return "a vCPU is still using the policy before the last";
	memcpy(tables->tables[to], table, size);
	for (uint32_t i = 0; i < KVMSR_MAX_VMS; i++)
		if (__atomic_load_n(&block->vms[i].taken, __ATOMIC_ACQUIRE) != KVMSR_FRESH)
			memset(block->vms[i].counters[to], 0,
			       kvmsr_table_at(tables, to)->n_counters * sizeof(uint64_t));
	__atomic_store_n(&tables->active, to, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&tables->generation, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* Return the table in force and keep it from being overwritten; NULL if there is none. */
const struct kvmsr_table *kvmsr_enter(struct kvmsr_cpu *cpu)
{
	const struct kvmsr_tables *tables = cpu->tables;
	uint32_t active;

	if (!__atomic_load_n(&tables->generation, __ATOMIC_ACQUIRE))
		return NULL;
	do {
		active = __atomic_load_n(&tables->active, __ATOMIC_SEQ_CST) & 1;
		__atomic_store_n(&cpu->shared->reading, active + 1, __ATOMIC_SEQ_CST);
	} while ((__atomic_load_n(&tables->active, __ATOMIC_SEQ_CST) & 1) != active);
	cpu->active = active;
	return kvmsr_table_at(tables, active);
}

void kvmsr_leave(struct kvmsr_cpu *cpu)
{
	__atomic_store_n(&cpu->shared->reading, 0, __ATOMIC_RELEASE);
}
