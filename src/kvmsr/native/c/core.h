/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vCPU as its own process sees it, and the functions that the core's files share.
 *
 * build.py passes this header, block.h and table.h to cffi, so that Python gets every declaration
 * from here. It describes the few forms that declarations must have.
 *
 * Calls go upwards only, in this order: kvm, table, life; where; block, shadow, upcall; evaluate,
 * record and recent; access; and at the top loop or, beside it, the shim.
 */
#ifndef KVMSR_CORE_H
#define KVMSR_CORE_H

#include <linux/kvm.h>

#include "block.h"

/* Whether a thread spins before it sleeps: see upcall.c. */
struct kvmsr_spin {
	uint32_t spare; /* there is more than one CPU */
	uint32_t pause; /* number of waits without spinning after one in which it was in vain */
	uint32_t left; /* of these */
};

/* A VM's memory, where it is in the process PID. */
struct kvmsr_slot {
	uint64_t first, size; /* guest-physical, in bytes; free if SIZE is 0 */
	uint64_t host;
	uint32_t id, pad;
};

#define KVMSR_SLOTS 512u
struct kvmsr_memory {
	uint32_t changes; /* odd while what follows changes */
	uint32_t pid, n_slots;
	struct kvmsr_slot slots[KVMSR_SLOTS];
};

/* One vCPU as its own process sees it. */
struct kvmsr_cpu {
	const struct kvmsr_tables *tables;
	struct kvmsr_block *block;
	struct kvmsr_vm *vm;
	struct kvmsr_vcpu *shared;
	struct kvm_run *run;
	int fd; /* of the vCPU; -1: there is no KVM, and rip and time_ns stand in for the guest's */
	uint64_t rip, time_ns;
	const struct kvmsr_memory *memory; /* NULL: it cannot be read, so callers are not known */
	struct kvmsr_access access; /* the last one */
	struct kvmsr_where where; /* the guest was then, once that is known */
	struct kvmsr_outcome outcome; /* of that access */
	uint32_t active; /* the number of the table that decides it */
	uint32_t serial; /* of that table */
	uint32_t question; /* the number of the last question, times 4 */
	uint64_t taken_ns; /* when the access was taken from KVM, if that is of interest */
	struct kvmsr_spin spin;
	int waits; /* Python has to fill in the outcome */
	int can_sync; /* KVM can put registers into the page: KVM_CAP_SYNC_REGS */
	int syncs; /* they were there after the last KVM_RUN */
	int events; /* another process logs: what is to be logged becomes an event */
};

/* table.c */
const char *kvmsr_table_check(const struct kvmsr_table *table, size_t room);

/* block.c */
uint64_t kvmsr_now_ns(void);
size_t kvmsr_block_size(uint32_t max_vcpus);
void kvmsr_block_make(struct kvmsr_block *block, struct kvmsr_tables *tables, uint32_t max_vcpus);
const char *kvmsr_block_check(const struct kvmsr_block *block, size_t size,
			      const struct kvmsr_tables *tables, size_t tables_size);
const uint64_t *kvmsr_page(const struct kvmsr_others *others, uint32_t number);
const struct kvmsr_table *kvmsr_table_at(const struct kvmsr_tables *tables, uint32_t number);
struct kvmsr_vm *kvmsr_vm_at(struct kvmsr_block *block, uint32_t number);
uint64_t *kvmsr_counters(struct kvmsr_vm *vm, uint32_t table);
struct kvmsr_vcpu *kvmsr_vcpu_at(struct kvmsr_block *block, uint32_t number);
uint32_t kvmsr_take_vm(struct kvmsr_block *block, const char *name);
void kvmsr_free_vm(struct kvmsr_vm *vm);
struct kvmsr_vcpu *kvmsr_take_vcpu(struct kvmsr_block *block, uint32_t max_vcpus, uint32_t vm,
				   uint32_t id);
void kvmsr_free_vcpu(struct kvmsr_block *block, struct kvmsr_vcpu *vcpu);
const char *kvmsr_install(struct kvmsr_tables *tables, struct kvmsr_block *block, const void *table,
			  size_t size);
const struct kvmsr_table *kvmsr_enter(struct kvmsr_cpu *cpu);
void kvmsr_leave(struct kvmsr_cpu *cpu);

/* life.c */
int kvmsr_live(struct kvmsr_tables *tables);
void kvmsr_end(struct kvmsr_tables *tables);
int kvmsr_lives(const struct kvmsr_tables *tables);

/* evaluate.c */
void kvmsr_evaluate(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
		    struct kvmsr_access *access, struct kvmsr_outcome *outcome);
void kvmsr_passed(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
		  const struct kvmsr_access *access, struct kvmsr_outcome *outcome);
uint8_t kvmsr_why_refused(const struct kvmsr_table *table, const struct kvmsr_access *access,
			  int host_reads);
void kvmsr_refused(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
		   struct kvmsr_access *access, uint8_t reason, struct kvmsr_outcome *outcome);
void kvmsr_failed(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
		  const struct kvmsr_access *access, struct kvmsr_outcome *outcome);

/* shadow.c */
enum { /* a shadow's state */
	KVMSR_BUSY = 1, /* locked */
	KVMSR_HAS = 2, /* has a value; without it, the register has its reset value */
	KVMSR_WRITTEN = 4, /* the guest has written it, so its `once` bits are read-only now */
	KVMSR_KEEP = 8, /* the rule that wrote it keeps its registers when the guest resets */
};
uint64_t kvmsr_holder(const struct kvmsr_table *table, uint32_t vcpu, uint8_t scope);
uint64_t kvmsr_shadow_read(struct kvmsr_vm *vm, uint64_t key, uint64_t reset);
int kvmsr_shadow_write(struct kvmsr_vm *vm, uint64_t key, uint64_t value, int keep);
int kvmsr_shadow_read_bits(struct kvmsr_vm *vm, uint64_t key, const struct kvmsr_rule *rule,
			   const struct kvmsr_bits *bits, uint64_t *value);
int kvmsr_shadow_write_bits(struct kvmsr_vm *vm, uint64_t key, uint64_t value,
			    const struct kvmsr_rule *rule, const struct kvmsr_bits *bits);
void kvmsr_shadow_put(struct kvmsr_vm *vm, uint64_t key, uint64_t value, uint32_t state);
void kvmsr_reset(struct kvmsr_vm *vm, int all);

/* record.c */
enum { KVMSR_REPEATED, KVMSR_CHANGED, KVMSR_NEW };
struct kvmsr_row *kvmsr_record(struct kvmsr_cpu *cpu, const struct kvmsr_access *access,
			       const struct kvmsr_outcome *outcome, int *news);
void kvmsr_time(struct kvmsr_cpu *cpu);
void kvmsr_event(struct kvmsr_cpu *cpu, struct kvmsr_row *row, int news);
uint32_t kvmsr_take_events(struct kvmsr_vcpu *vcpu, struct kvmsr_event *events, uint64_t *callers,
			   uint32_t most);

/* recent.c */
void kvmsr_note(struct kvmsr_cpu *cpu);
int kvmsr_read_recent(struct kvmsr_vcpu *vcpu, uint32_t number, struct kvmsr_recent *found);

/* kvm.c */
long kvmsr_ioctl(int fd, unsigned long request, void *argument);
int kvmsr_one_msr(int fd, unsigned long request, uint32_t index, uint64_t *value);
uint64_t kvmsr_rip(const struct kvmsr_cpu *cpu);

/* where.c */
void kvmsr_set_slot(struct kvmsr_memory *memory, uint32_t id, uint64_t first, uint64_t size,
		    uint64_t host);
const struct kvmsr_where *kvmsr_where(struct kvmsr_cpu *cpu, unsigned int most);
void kvmsr_locate(struct kvmsr_cpu *cpu);

/* Inline, because every exit of the guest comes here. */
static inline int kvmsr_is_msr_exit(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_X86_RDMSR || run->exit_reason == KVM_EXIT_X86_WRMSR;
}

/* access.c */
void kvmsr_take_access(struct kvmsr_cpu *cpu);
void kvmsr_decide(struct kvmsr_cpu *cpu);
void kvmsr_answer(struct kvmsr_cpu *cpu);

/* loop.c */
enum { KVMSR_EXIT, KVMSR_ASK, KVMSR_LOG };
int kvmsr_run(struct kvmsr_cpu *cpu);

/* upcall.c */
void kvmsr_spin_init(struct kvmsr_spin *spin);
void kvmsr_ask(struct kvmsr_cpu *cpu);
int kvmsr_await_answer(struct kvmsr_cpu *cpu, unsigned int milliseconds);
void kvmsr_give_up(struct kvmsr_cpu *cpu);
int kvmsr_next_question(struct kvmsr_vcpu *vcpu, struct kvmsr_upcall *question,
			struct kvmsr_spin *spin, unsigned int milliseconds);
int kvmsr_give_answer(struct kvmsr_vcpu *vcpu, const struct kvmsr_upcall *question);
int kvmsr_answer_and_next(struct kvmsr_vcpu *vcpu, struct kvmsr_upcall *question,
			  struct kvmsr_spin *spin, unsigned int milliseconds);

#endif
