/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the guest is: its RIP and CPL, and the functions that called the one that it is in.
 *
 * The callers are return addresses. A kernel with frame pointers has them in a chain that RBP begins.
 * Other kernels, as Debian's, just have them somewhere on the stack, between data and what earlier
 * calls have left. Then words are taken for return addresses if there is a CALL before the address,
 * from RSP upwards: one whose CALL leads to the function that was called, or, if there is none, the
 * first; that is a guess. kvmsr.kvm.callers does the same in Python.
 *
 * The guest chooses what RSP, RBP, page tables and stack hold, and the VMM may take memory away at any
 * time. So addresses go through KVM_TRANSLATE and the VM's memory slots, what is there is copied by
 * process_vm_readv(2), which fails where a load would kill the process, and all work has a limit.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "core.h"

#define PAGE 4096u
#define STACK 512u /* bytes of stack that are searched, */
#define CHAIN 16384u /* and in which a chain of frames must be */
#define WORDS (STACK / 4)
#define NEAR 0x80000000u /* kernel code is within 2 GiB */
#define FUNCTION 4096u /* bytes of a function, at most */
#define CALL 7u /* bytes of the longest CALL */
#define KEPT 8

enum kind { UNKNOWN, OTHER, INDIRECT, DIRECT };

struct guest {
	const struct kvmsr_cpu *cpu;
	struct kvm_regs regs;
	uint64_t code, stack; /* bases of CS and SS */
	uint64_t mask; /* of addresses */
	unsigned int word; /* bytes */
	struct {
		uint64_t linear, physical;
		int valid;
	} pages[KEPT]; /* the last ones that were looked for */
	unsigned int translated;
	unsigned int n_words; /* of the stack, that were read */
	uint64_t words[WORDS], targets[WORDS];
	uint8_t kinds[WORDS];
};

/* Set the memory of slot ID; SIZE 0 takes it away. One thread at a time may do that. */
void kvmsr_set_slot(struct kvmsr_memory *memory, uint32_t id, uint64_t first, uint64_t size,
		    uint64_t host)
{
	uint32_t n = 0;

	while (n < memory->n_slots && (memory->slots[n].id != id || !memory->slots[n].size))
		n++;
	for (uint32_t i = 0; n == memory->n_slots && i < n; i++)
		if (!memory->slots[i].size)
			n = i;
	if (n == KVMSR_SLOTS)
		return; /* what is there cannot be read */
	__atomic_add_fetch(&memory->changes, 1, __ATOMIC_SEQ_CST);
	memory->slots[n] = (struct kvmsr_slot){ first, size, host, id, 0 };
	if (n == memory->n_slots)
		memory->n_slots++;
	__atomic_add_fetch(&memory->changes, 1, __ATOMIC_SEQ_CST);
}

/* Return where SIZE bytes at a guest-physical address are in the VMM; 0 if nowhere, or in motion. */
static uint64_t host_address(const struct kvmsr_memory *memory, uint64_t physical, size_t size)
{
	uint32_t changes = __atomic_load_n(&memory->changes, __ATOMIC_SEQ_CST);
	uint64_t found = 0;

	for (uint32_t i = 0; i < memory->n_slots && i < KVMSR_SLOTS && !found; i++) {
		const struct kvmsr_slot *slot = &memory->slots[i];
		uint64_t offset = physical - slot->first;

		if (offset < slot->size && size <= slot->size - offset)
			found = slot->host + offset;
	}
	if (changes & 1 || changes != __atomic_load_n(&memory->changes, __ATOMIC_SEQ_CST))
		return 0;
	return found;
}

static int translate(struct guest *g, uint64_t linear, uint64_t *physical)
{
	uint64_t page = linear & ~(uint64_t)(PAGE - 1);

	for (unsigned int i = 0; i < KEPT && i < g->translated; i++)
		if (g->pages[i].linear == page) {
			*physical = g->pages[i].physical | (linear & (PAGE - 1));
			return g->pages[i].valid;
		}
	struct kvm_translation t = { .linear_address = page };
	int valid = kvmsr_ioctl(g->cpu->fd, KVM_TRANSLATE, &t) == 0 && t.valid;
	unsigned int place = g->translated++ % KEPT;

	g->pages[place].linear = page;
	g->pages[place].physical = t.physical_address & ~(uint64_t)(PAGE - 1);
	g->pages[place].valid = valid;
	*physical = g->pages[place].physical | (linear & (PAGE - 1));
	return valid;
}

/* Copy SIZE bytes at a linear address, which are within one page. Return whether they are there. */
static int copy(struct guest *g, uint64_t linear, void *to, size_t size)
{
	const struct kvmsr_memory *memory = g->cpu->memory;
	uint64_t physical;

	if (!translate(g, linear, &physical))
		return 0;
	uint64_t host = host_address(memory, physical, size);
	struct iovec here = { to, size }, there = { (void *)(uintptr_t)host, size };

	return host && syscall(SYS_process_vm_readv, (long)memory->pid, &here, 1l, &there, 1l, 0l) ==
			       (long)size;
}

/* Copy up to SIZE bytes, at most 4096, and return how many there are. */
static size_t copy_up_to(struct guest *g, uint64_t linear, void *to, size_t size)
{
	size_t first = PAGE - (linear & (PAGE - 1));

	if (first >= size)
		return copy(g, linear, to, size) ? size : 0;
	if (!copy(g, linear, to, first))
		return 0;
	return first + (copy(g, (linear + first) & g->mask, (char *)to + first, size - first) ?
				size - first :
				0);
}

/* Return the length of the indirect near CALL (ff /2) that begins at CODE; 0 if there is none. */
static unsigned int indirect_call(const uint8_t *code)
{
	unsigned int mod = code[1] >> 6, rm = code[1] & 7, sib = mod != 3 && rm == 4;

	if (code[0] != 0xff || (code[1] >> 3 & 7) != 2)
		return 0;
	if (mod == 3)
		return 2;
	if (mod == 2 || (mod == 0 && (sib ? code[2] & 7 : rm) == 5))
		return 2 + sib + 4;
	return 2 + sib + mod;
}

/* Is there a CALL before ADDRESS? A direct one gives *TARGET. */
static enum kind call_before(struct guest *g, uint64_t address, uint64_t *target)
{
	uint8_t code[CALL + 1] = { 0 };
	uint64_t end = (g->code + address) & g->mask;
	size_t size = end & (PAGE - 1); /* what lies in the last byte's page */

	if (!address || address - g->regs.rip + NEAR >= 2ull * NEAR)
		return OTHER;
	if (!size || size > CALL)
		size = CALL;
	if (!copy(g, (end - size) & g->mask, code + CALL - size, size))
		return OTHER;
	if (size < CALL)
		copy(g, (end - CALL) & g->mask, code, CALL - size);
	if (code[2] == 0xe8) {
		int32_t distance;

		memcpy(&distance, code + 3, 4);
		*target = (address + (int64_t)distance) & g->mask;
		return DIRECT;
	}
	for (unsigned int length = 2; length <= CALL; length++)
		if (indirect_call(code + CALL - length) == length)
			return INDIRECT;
	return OTHER;
}

static void read_stack(struct guest *g)
{
	union {
		uint64_t quads[STACK / 8];
		uint32_t longs[STACK / 4];
	} found;
	uint64_t at = (g->stack + g->regs.rsp) & g->mask;

	g->n_words = copy_up_to(g, at, &found, STACK) / g->word;
	for (unsigned int i = 0; i < g->n_words; i++)
		g->words[i] = g->word == 8 ? found.quads[i] : found.longs[i];
}

/* Return what the words of the stack at AT hold, through *FOUND. Are they there? */
static int two_words(struct guest *g, uint64_t at, uint64_t found[2])
{
	uint32_t longs[2];

	at = (g->stack + at) & g->mask;
	if (g->word == 8)
		return copy_up_to(g, at, found, 16) == 16;
	if (copy_up_to(g, at, longs, 8) != 8)
		return 0;
	found[0] = longs[0];
	found[1] = longs[1];
	return 1;
}

/*
 * Follow the chain of frames, and return its length. RBP may hold anything, so a single frame counts
 * only if it is the outermost.
 */
static unsigned int follow(struct guest *g, uint64_t *callers)
{
	uint64_t frame = g->regs.rbp, least = g->regs.rsp, words[2], target;
	unsigned int n = 0;

	while (n < KVMSR_CALLERS && frame >= least && frame - g->regs.rsp < CHAIN &&
	       frame % g->word == 0 && two_words(g, frame, words) &&
	       call_before(g, words[1], &target) != OTHER) {
		callers[n++] = words[1];
		least = frame + 1;
		frame = words[0];
	}
	return n > 1 || !frame ? n : 0;
}

static int is_confirmed(const struct guest *g, unsigned int at, uint64_t address)
{
	return g->kinds[at] == DIRECT && address - g->targets[at] < FUNCTION;
}

/*
 * Return which word, from FIRST on, is the return address into the caller of ADDRESS's function.
 *
 * The CALL before it leads to where that function begins, and no other CALL leads to a place between
 * there and ADDRESS: so the highest such place is the best. Without any, an indirect CALL is likely.
 */
static unsigned int search(struct guest *g, unsigned int first, unsigned int last, uint64_t address)
{
	unsigned int best = last, indirect = last, direct = last;

	for (unsigned int i = first; i < last; i++) {
		if (g->kinds[i] == UNKNOWN)
			g->kinds[i] = call_before(g, g->words[i], &g->targets[i]);
		if (is_confirmed(g, i, address) &&
		    (best == last || g->targets[i] > g->targets[best]))
			best = i;
		if (g->kinds[i] == INDIRECT && indirect == last)
			indirect = i;
		if (g->kinds[i] == DIRECT && direct == last)
			direct = i;
	}
	return best < last ? best : indirect < last ? indirect : direct;
}

static void find(struct guest *g, struct kvmsr_where *where, unsigned int most)
{
	uint64_t chain[KVMSR_CALLERS], address = g->regs.rip;
	unsigned int n = follow(g, chain), at, last;

	read_stack(g);
	if (n && g->n_words && search(g, 0, 1, address) == 0 && is_confirmed(g, 0, address) &&
	    g->words[0] != chain[0])
		where->callers[where->n_callers++] = g->words[0]; /* the last function has no frame */
	for (unsigned int i = 0; i < n && where->n_callers < most; i++)
		where->callers[where->n_callers++] = chain[i];
	if (n)
		return;
	/* A function that does nothing but access an MSR has nothing else on the stack. */
	last = search(g, 0, 1, address) == 0 && g->n_words ? 1 : g->n_words;
	for (at = 0; where->n_callers < most; at++, last = g->n_words) {
		at = search(g, at, last, address);
		if (at == last)
			return;
		if (!is_confirmed(g, at, address))
			where->guesses |= 1 << where->n_callers;
		address = where->callers[where->n_callers++] = g->words[at];
	}
}

/* Find out where the guest is, with up to MOST callers, at its last access; once for each access. */
const struct kvmsr_where *kvmsr_where(struct kvmsr_cpu *cpu, unsigned int most)
{
	struct kvmsr_where *where = &cpu->where;
	struct guest g = { .cpu = cpu };
	struct kvm_sregs s;

	if (cpu->fd < 0 || (where->known && where->most >= most))
		return where;
	*where = (struct kvmsr_where){ .known = 1, .most = most };
	if (cpu->syncs) {
		g.regs = cpu->run->s.regs.regs;
		s = cpu->run->s.regs.sregs;
	} else if (kvmsr_ioctl(cpu->fd, KVM_GET_REGS, &g.regs) < 0 ||
		   kvmsr_ioctl(cpu->fd, KVM_GET_SREGS, &s) < 0) {
		return where;
	}
	where->rip = g.regs.rip;
	where->cpl = s.ss.dpl;
	g.word = s.cs.l ? 8 : s.cs.db ? 4 : 0;
	if (!most || !cpu->memory || !g.word)
		return where;
	g.mask = s.cs.l ? UINT64_MAX : UINT32_MAX;
	g.code = s.cs.l ? 0 : s.cs.base;
	g.stack = s.cs.l ? 0 : s.ss.base;
	find(&g, where, most < KVMSR_CALLERS ? most : KVMSR_CALLERS);
	return where;
}

/* Find out what an access of the trace has, for Python. */
void kvmsr_locate(struct kvmsr_cpu *cpu)
{
	if (cpu->tables->trace_rip)
		kvmsr_where(cpu, cpu->tables->callers);
}
