/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A vCPU as its own process sees it, and the functions that the core's files share.
 *
 * build.py passes this header, block.h and table.h to cffi, so that Python gets every declaration
 * from here. It describes the few forms that declarations must have.
 *
 * Calls go upwards only, in this order: kvm, block, shadow, upcall; evaluate and record; access;
 * and at the top loop or, beside it, the shim.
 */
#ifndef KVMSR_CORE_H
#define KVMSR_CORE_H

#include "block.h"

struct kvm_run;

/* One vCPU as its own process sees it. */
struct kvmsr_cpu {
	struct kvmsr_block *block;
	struct kvmsr_vcpu *shared;
	struct kvm_run *run;
	int fd; /* of the vCPU; -1: there is no KVM, and rip and time_ns stand in for the guest's */
	int vm_fd;
	uint64_t rip, time_ns;
	struct kvmsr_access access; /* the last one */
	struct kvmsr_outcome outcome; /* of that access */
	uint32_t serial; /* of the table that decided it */
	uint32_t question; /* the number of the last question, times 4 */
	int waits; /* Python has to fill in the outcome */
	int events; /* accesses to be logged become events */
};

/* block.c */
uint64_t kvmsr_now_ns(void);
size_t kvmsr_block_size(uint32_t max_vcpus);
void kvmsr_block_make(struct kvmsr_block *block, uint32_t max_vcpus);
const char *kvmsr_block_check(const struct kvmsr_block *block, size_t size);
const uint64_t *kvmsr_page(const struct kvmsr_others *others, uint32_t number);
struct kvmsr_table *kvmsr_table_at(struct kvmsr_block *block, uint32_t number);
struct kvmsr_vcpu *kvmsr_vcpu_at(struct kvmsr_block *block, uint32_t number);
struct kvmsr_vcpu *kvmsr_take_vcpu(struct kvmsr_block *block, uint32_t vm, uint32_t id);
void kvmsr_free_vcpu(struct kvmsr_vcpu *vcpu);
const char *kvmsr_table_check(const struct kvmsr_table *table, size_t room);
const char *kvmsr_install(struct kvmsr_block *block, const void *table, size_t size);
const struct kvmsr_table *kvmsr_enter(struct kvmsr_cpu *cpu);
void kvmsr_leave(struct kvmsr_cpu *cpu);

/* evaluate.c */
void kvmsr_evaluate(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
		    struct kvmsr_access *access, struct kvmsr_outcome *outcome);
void kvmsr_refused(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
		   struct kvmsr_access *access, uint8_t reason, struct kvmsr_outcome *outcome);
void kvmsr_failed(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
		  const struct kvmsr_access *access, struct kvmsr_outcome *outcome);

/* shadow.c */
struct kvmsr_shadow *kvmsr_shadow_at(struct kvmsr_block *block, uint64_t key, int make);
uint64_t kvmsr_holder(const struct kvmsr_table *table, uint32_t vm, uint32_t vcpu, uint8_t scope);
uint64_t kvmsr_shadow_read(struct kvmsr_block *block, uint64_t key, uint64_t reset);
int kvmsr_shadow_write(struct kvmsr_block *block, uint64_t key, uint64_t value);
int kvmsr_shadow_read_bits(struct kvmsr_block *block, uint64_t key, uint64_t reset,
			   const struct kvmsr_bits *bits, uint64_t *value);
int kvmsr_shadow_write_bits(struct kvmsr_block *block, uint64_t key, uint64_t value, uint64_t reset,
			    const struct kvmsr_bits *bits);
void kvmsr_shadow_put(struct kvmsr_block *block, uint64_t key, uint64_t value, int written);
void kvmsr_shadow_forget(struct kvmsr_block *block, uint32_t vm);

/* record.c */
void kvmsr_record(struct kvmsr_cpu *cpu, const struct kvmsr_access *access,
		  const struct kvmsr_outcome *outcome);
void kvmsr_event(struct kvmsr_cpu *cpu);
int kvmsr_next_event(struct kvmsr_vcpu *vcpu, struct kvmsr_event *event);

/* kvm.c */
long kvmsr_ioctl(int fd, unsigned long request, void *argument);
int kvmsr_one_msr(int fd, unsigned long request, uint32_t index, uint64_t *value);
uint64_t kvmsr_rip(const struct kvmsr_cpu *cpu);

/* access.c */
int kvmsr_is_msr_exit(const struct kvm_run *run);
void kvmsr_take_access(struct kvmsr_cpu *cpu);
void kvmsr_decide(struct kvmsr_cpu *cpu);
void kvmsr_answer(struct kvmsr_cpu *cpu);

/* loop.c */
enum { KVMSR_EXIT, KVMSR_ASK, KVMSR_LOG };
int kvmsr_run(struct kvmsr_cpu *cpu);

/* upcall.c */
void kvmsr_wake(uint32_t *word);
void kvmsr_ask(struct kvmsr_cpu *cpu);
int kvmsr_await_answer(struct kvmsr_cpu *cpu, unsigned int milliseconds);
void kvmsr_give_up(struct kvmsr_cpu *cpu);
uint32_t kvmsr_await_question(struct kvmsr_vcpu *vcpu, unsigned int milliseconds);
int kvmsr_give_answer(struct kvmsr_vcpu *vcpu, uint32_t question, uint8_t verdict, uint64_t value,
		      uint32_t name);

#endif
