/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages have translated code
 * --------------------------------
 *
 * TCG notices that code is rewritten because stores to pages with translated code are slow: their
 * entries in the software TLB are marked (TLB_NOTDIRTY), and the store goes through a function that
 * looks for code. QEMU keeps a bitmap of such pages, marks those entries only, and unmarks them
 * when no code is left. Unicorn has none: it marks each new entry, unmarks it at the first store
 * whether code is left or not, and never unmarks one that the guest could also execute. The stack on
 * which Linux boots is such a page, so most of its stores are slow.
 *
 * Here is the bitmap, and what belongs to it, called in place of Unicorn's functions. Also in place
 * of Unicorn's: the search for the memory behind an address, which it does at each slow access.
 *
 * An engine runs on one thread at a time; which one it is, is told by tlb_enter.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define RANGES 8
#define PAGE_BITS 12
#define PAGE_SIZE (1 << PAGE_BITS)
#define PAGE_WRITE 2 /* exec/cpu-all.h */

/* Unicorn's functions. ram is an offset in all memory of an engine, by which it knows pages. */
struct functions {
	void *(*find_memory)(void *uc, uint64_t physical);
	void *(*host_of)(void *uc, void *block, uint64_t ram);
	uint64_t (*ram_of)(void *uc, void *host);
	void (*reset_dirty)(void *cpu, uint64_t host, uint64_t length);
	void (*set_dirty)(void *cpu, uint64_t linear);
	void (*invalidate)(void *uc, void *pages, uint64_t ram, int length, uintptr_t from);
	void (*set_page)(void *cpu, uint64_t linear, uint64_t physical, uint64_t attributes,
					 int protection, int mode, uint64_t size);
	void (*flush_code)(void *cpu);
};

/* Memory of the guest, and Unicorn's MemoryRegion of it. */
struct range {
	uint64_t first, size, host, ram;
	void *region;
};

struct engine {
	void *uc, *cpu;
	bool aliased; /* one host page is at two addresses: which ram it has, is not certain */
	bool partial; /* not all memory is known, so not all pages with code are */
	unsigned ranges;
	struct range range[RANGES];
	uint8_t *code;    /* for each page whether it has translated code */
	uint64_t pages;   /* in code; what is beyond counts as having some */
	uint64_t written; /* the page that is being written to */
};

static struct functions unicorn;
static __thread struct engine *running;

static bool has_code(const struct engine *engine, uint64_t page)
{
	return page >= engine->pages || engine->code[page];
}

static const struct range *range_of(const struct engine *engine, uint64_t physical)
{
	for (unsigned i = 0; i < engine->ranges; i++)
		if (physical - engine->range[i].first < engine->range[i].size)
			return &engine->range[i];
	return NULL;
}

/* In place of Unicorn's functions */

/* find_memory_mapping */
EXPORT void *tlb_find_memory(void *uc, uint64_t physical)
{
	if (running && running->uc == uc) {
		const struct range *range = range_of(running, physical);
		if (range)
			return range->region;
	}
	return unicorn.find_memory(uc, physical);
}

/* cpu_physical_memory_test_and_clear_dirty: a page has its first translated code */
EXPORT bool tlb_protect(uint64_t ram, uint64_t length, unsigned client)
{
	struct engine *engine = running;
	(void)client;
	if (engine) {
		if (ram >> PAGE_BITS < engine->pages)
			engine->code[ram >> PAGE_BITS] = 1;
		unicorn.reset_dirty(engine->cpu, (uint64_t)unicorn.host_of(engine->uc, NULL, ram), length);
	}
	return false;
}

/* tlb_unprotect_code: the last is gone */
EXPORT void tlb_unprotect(void *uc, uint64_t ram)
{
	if (running && running->uc == uc && ram >> PAGE_BITS < running->pages)
		running->code[ram >> PAGE_BITS] = 0;
}

/* tb_invalidate_phys_page_fast: a store through a marked entry; may not return */
EXPORT void tlb_invalidate(void *uc, void *pages, uint64_t ram, int length, uintptr_t from)
{
	if (running)
		running->written = ram >> PAGE_BITS;
	unicorn.invalidate(uc, pages, ram, length, from);
}

/* tlb_set_dirty: unmark the entry, after such a store */
EXPORT void tlb_set_dirty(void *cpu, uint64_t linear)
{
	if (!running || !has_code(running, running->written))
		unicorn.set_dirty(cpu, linear);
}

/* tlb_set_page_with_attrs: a new entry, which Unicorn marks */
EXPORT void tlb_set_page(void *cpu, uint64_t linear, uint64_t physical, uint64_t attributes,
						 int protection, int mode, uint64_t size)
{
	unicorn.set_page(cpu, linear, physical, attributes, protection, mode, size);
	if (protection & PAGE_WRITE && running && running->cpu == cpu) {
		const struct range *range = range_of(running, physical);
		if (range && !has_code(running, (range->ram + physical - range->first) >> PAGE_BITS))
			unicorn.set_dirty(cpu, linear);
	}
}

/* What Python calls */

EXPORT void tlb_use(const struct functions *functions)
{
	unicorn = *functions;
}

EXPORT struct engine *tlb_new(void *uc, void *cpu)
{
	struct engine *engine = calloc(1, sizeof *engine);
	if (engine) {
		engine->uc = uc;
		engine->cpu = cpu;
	}
	return engine;
}

EXPORT void tlb_free(struct engine *engine)
{
	if (engine) {
		free(engine->code);
		free(engine);
	}
}

/* Say that the engine will run on this thread, or none (NULL); return what did before. */
EXPORT struct engine *tlb_enter(struct engine *engine)
{
	struct engine *before = running;
	running = engine;
	return before;
}

/* Forget the engine's memory, which is about to change; which pages have code is not forgotten. */
EXPORT void tlb_forget(struct engine *engine)
{
	if (engine->partial)
		unicorn.flush_code(engine->cpu);
	engine->ranges = 0;
	engine->aliased = engine->partial = false;
}

static bool overlaps(const struct engine *engine, uint64_t host, uint64_t size)
{
	for (unsigned i = 0; i < engine->ranges; i++)
		if (host < engine->range[i].host + engine->range[i].size &&
			engine->range[i].host < host + size)
			return true;
	return false;
}

static bool reach(struct engine *engine, uint64_t pages)
{
	uint8_t *code;
	if (pages <= engine->pages)
		return true;
	code = calloc(pages, 1); /* of a large one, only what is used takes memory */
	if (!code)
		return false;
	if (engine->pages)
		memcpy(code, engine->code, engine->pages);
	free(engine->code);
	engine->code = code;
	engine->pages = pages;
	return true;
}

/* Learn of memory that has been mapped; what is not learnt is as slow as Unicorn makes it. */
EXPORT void tlb_learn(struct engine *engine, uint64_t first, uint64_t size, uint64_t host)
{
	uint64_t ram;
	if (engine->aliased || overlaps(engine, host, size)) {
		engine->aliased = engine->partial = true;
		engine->ranges = 0;
		return;
	}
	ram = unicorn.ram_of(engine->uc, (void *)host);
	if (engine->ranges == RANGES || ram == UINT64_MAX ||
		!reach(engine, (ram + size) >> PAGE_BITS)) {
		engine->partial = true;
		return;
	}
	engine->range[engine->ranges++] =
		(struct range){first, size, host, ram, unicorn.find_memory(engine->uc, first)};
}
