/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Evaluate mutated tables, and let the controller's C work on a mutated block; built with sanitizers.
 * TABLE is a file with a valid table. Each round mutates a copy of the table, and, if it passes the
 * check, decides accesses by it; and it writes nonsense into the block as a VMM could.
 *
 *     fuzz TABLE ROUNDS SEED
 */
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core.h"
#include "merge.h"

enum { VCPUS = 2 };

static uint64_t seed;

static uint64_t chance(uint64_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

static uint64_t number(void)
{
	static const uint64_t numbers[] = {
		0, 1, 2, 3, 4, 7, 8, 9, 0x35, 0x7f, 0x80, 0xff, 0x100, 0xfff, 0x1000, 0xffff,
		0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 0xffffffffffffffff,
	};

	return chance(3) ? numbers[chance(sizeof(numbers) / sizeof(*numbers))] : chance(UINT64_MAX);
}

/* Return memory that ends with the end of a page that must not be read; ASan guards malloc alike. */
static void *memory(size_t size)
{
	void *made = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (made == MAP_FAILED)
		err(1, "mmap");
	return made;
}

static void decide(struct kvmsr_cpu *cpu, const struct kvmsr_table *table)
{
	static const uint32_t indices[] = { 0, 0x35, 0x36, 0x100, 0x150, 0x277, 0x1000, 0xffffffff };

	for (int i = 0; i < 16; i++) {
		struct kvmsr_access *a = &cpu->access;

		*a = (struct kvmsr_access){
			.value = number(), .vcpu = chance(3) ? chance(4) : number(),
			.index = chance(4) ? indices[chance(8)] : number(), .op = chance(2),
			.reason = chance(3), .vmm_reasons = chance(8), .denied = chance(2),
		};
		cpu->where = (struct kvmsr_where){ .n_callers = chance(KVMSR_CALLERS + 1) };
		for (int n = 0; n < cpu->where.n_callers; n++)
			cpu->where.callers[n] = chance(2) ? number() : chance(0x2000);
		kvmsr_evaluate(cpu, table, a, &cpu->outcome);
		if (cpu->outcome.verdict == KVMSR_KERNEL)
			kvmsr_refused(cpu, table, a, chance(2), &cpu->outcome);
		if (!chance(4))
			kvmsr_failed(cpu, table, a, &cpu->outcome);
		int news;
		struct kvmsr_row *row = kvmsr_record(cpu, a, &cpu->outcome, &news);

		kvmsr_event(cpu, row, news);
	}
}

static int n_ranges(const struct kvm_msr_filter *filter)
{
	int n = 0;

	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
		n += filter->ranges[i].nmsrs > 0;
	return n;
}

static uint32_t near(const struct kvm_msr_filter *filter)
{
	const struct kvm_msr_filter_range *r = &filter->ranges[chance(KVM_MSR_FILTER_MAX_RANGES)];

	return r->base + chance(r->nmsrs + 2) - 1;
}

static void any_filter(struct kvm_msr_filter *filter)
{
	static uint8_t bitmaps[4][KVMSR_MAX_BITMAP];

	memset(filter, 0, sizeof(*filter));
	bitmaps[chance(4)][chance(16)] = number();
	filter->flags = !chance(4);
	for (uint64_t i = chance(17); i < KVM_MSR_FILTER_MAX_RANGES; i++)
		filter->ranges[i] = (struct kvm_msr_filter_range){
			.flags = 1 + chance(3), .base = chance(4) ? chance(0x200) : number(),
			.nmsrs = chance(chance(8) ? 0x80 : 0x3001), .bitmap = bitmaps[chance(4)],
		};
}

/* Merge two filters, and check that the result denies what either of them denies. */
static void merge(const struct kvm_msr_filter *plan, const struct kvm_msr_filter *wish)
{
	static struct kvmsr_merged merged;
	uint32_t lost = kvmsr_merge(plan, wish, &merged);
	int exact = n_ranges(plan) + n_ranges(wish) <= KVM_MSR_FILTER_MAX_RANGES / 2;

	for (int i = 0; i < 64; i++) {
		uint32_t index = chance(8) ? near(chance(2) ? plan : wish) : number();
		int op = chance(2);
		int either = kvmsr_denies(plan, index, op) || kvmsr_denies(wish, index, op);
		int both = kvmsr_denies(&merged.filter, index, op) != 0;

		if (either ? !both && !lost : both && exact)
			errx(1, "MSR %#x, op %d: either filter %d, merged %d", index, op, either, both);
	}
}

static int try_table(struct kvmsr_cpu *cpu, const char *whole, size_t size)
{
	size_t room = chance(8) ? size : chance(size + 1);
	char *copy = malloc(room ? room : 1);

	memcpy(copy, whole, room);
	for (uint64_t i = chance(4); room && i < 4; i++) {
		uint64_t value = number();
		size_t place = chance(2) ? chance(room) : chance(room < 1200 ? room : 1200);
		size_t width = 1u << chance(4);

		if (place + width <= room)
			memcpy(copy + place, &value, width);
	}
	struct kvmsr_table *table = (struct kvmsr_table *)copy;
	int good = !kvmsr_table_check(table, room);

	if (good) {
		struct kvm_msr_filter filter = { 0 }, wish = { 0 };

		decide(cpu, table);
		if (!chance(16)) { /* it costs more than all else */
			kvmsr_plan_filter(table, &filter);
			if (chance(2))
				any_filter(&filter);
			any_filter(&wish);
			merge(&filter, &wish);
		}
	}
	free(copy);
	return good;
}

/* What the controller calls, on a block into which somebody else writes. */
static void control(struct kvmsr_block *block, struct kvmsr_tables *tables, const char *whole,
		    size_t size)
{
	uint32_t *words[] = {
		(uint32_t *)block, (uint32_t *)&block->vms[chance(2)],
		(uint32_t *)&block->vcpus[chance(VCPUS)], (uint32_t *)block->vms[chance(2)].shadows,
		(uint32_t *)&block->vcpus[chance(VCPUS)].head,
	};
	struct kvmsr_vcpu *vcpu = &block->vcpus[chance(VCPUS)];
	static struct kvmsr_spin spin;
	struct kvmsr_upcall asked;
	struct kvmsr_event events[8];
	uint64_t callers[8 * KVMSR_CALLERS];

	for (int i = 0; i < 4; i++)
		words[chance(5)][chance(48)] = number();
	static struct kvmsr_memory slots;

	kvmsr_set_slot(&slots, chance(700), number(), chance(2) * number(), number());
	kvmsr_take_events(vcpu, events, chance(2) ? callers : NULL, 8);
	vcpu->upcall.state |= KVMSR_ASKED;
	if (kvmsr_next_question(vcpu, &asked, &spin, 0))
		kvmsr_give_answer(vcpu, &asked);
	if (!chance(512)) {
		kvmsr_reset(&block->vms[chance(2)], chance(2));
		for (int i = 0; i < 4; i++)
			kvmsr_shadow_put(&block->vms[chance(2)], number(), number(), number());
		for (int i = 0; i < VCPUS; i++)
			block->vcpus[i].reading = 0;
		kvmsr_install(tables, block, whole, size);
		uint32_t vm = kvmsr_take_vm(block, "fuzz");
		struct kvmsr_vcpu *taken = kvmsr_take_vcpu(block, VCPUS, vm, number());

		if (taken)
			kvmsr_free_vcpu(block, taken);
		if (vm < KVMSR_MAX_VMS)
			kvmsr_free_vm(&block->vms[vm]);
	}
}

int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "usage: fuzz TABLE ROUNDS SEED");
	FILE *file = fopen(argv[1], "rb");
	static char whole[1 << 20];
	size_t size = file ? fread(whole, 1, sizeof(whole), file) : 0;
	unsigned long rounds = strtoul(argv[2], NULL, 0), good = 0;

	if (!size)
		err(1, "%s", argv[1]);
	seed = strtoull(argv[3], NULL, 0) * 2654435761u + 88172645463325252u;
	struct kvmsr_tables *tables = memory(sizeof(*tables));
	struct kvmsr_block *block = memory(kvmsr_block_size(VCPUS));

	kvmsr_block_make(block, tables, VCPUS);
	const char *wrong = kvmsr_install(tables, block, whole, size);

	if (wrong)
		errx(1, "%s", wrong);
	uint32_t vm = kvmsr_take_vm(block, "fuzz");
	struct kvmsr_cpu cpu = {
		.tables = tables, .block = block, .vm = &block->vms[vm], .fd = -1,
		.shared = kvmsr_take_vcpu(block, VCPUS, vm, 0), .events = 1,
	};

	for (unsigned long i = 0; i < rounds; i++) {
		good += try_table(&cpu, whole, size);
		control(block, tables, whole, size);
		/* What the vCPU's own thread relies on is its own: make it whole again. */
		cpu.shared->n_rows %= KVMSR_ROW_LIMIT;
	}
	printf("%lu rounds, %lu tables passed the check\n", rounds, good);
	return 0;
}
