/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan as C reads it: one run of bytes without pointers, so that it can lie in shared memory.
 * kvmsr.native.table writes it, and evaluate.c answers accesses by it.
 */
#ifndef KVMSR_TABLE_H
#define KVMSR_TABLE_H

#include <stddef.h>
#include <stdint.h>

#define KVMSR_TABLE_MAGIC 0x4c42544bu /* "KTBL" */
#define KVMSR_NONE 0xffffffffu
#define KVMSR_UNRULED 0u /* the name of whoever passes an access to KVM without a rule */
#define KVMSR_MAX_RANGES 16

enum kvmsr_op { KVMSR_READ, KVMSR_WRITE };
enum kvmsr_reason { KVMSR_UNKNOWN, KVMSR_INVALID, KVMSR_FILTER };

enum kvmsr_action {
	KVMSR_ACT_VALUE,
	KVMSR_ACT_IGNORE,
	KVMSR_ACT_FAULT,
	KVMSR_ACT_SHADOW,
	KVMSR_ACT_KERNEL,
	KVMSR_ACT_STOP,
	KVMSR_ACT_UPCALL, /* Python knows */
	KVMSR_ACT_COUNTER,
	KVMSR_ACTIONS,
};

enum kvmsr_verdict {
	KVMSR_VALUE,
	KVMSR_DONE,
	KVMSR_FAULT,
	KVMSR_STOP,
	KVMSR_KERNEL, /* KVM is to be asked */
	KVMSR_UPCALL, /* Python is to be asked */
	KVMSR_THEIRS, /* it is the VMM's */
};

enum kvmsr_log {
	KVMSR_LOG_NEVER,
	KVMSR_LOG_FAULT_ONCE,
	KVMSR_LOG_ONCE,
	KVMSR_LOG_CHANGE,
	KVMSR_LOG_ALWAYS,
	KVMSR_LOGS,
};

/* In the order of kvmsr.policy.Scope. */
enum kvmsr_scope { KVMSR_THREAD, KVMSR_CORE, KVMSR_PACKAGE, KVMSR_VM, KVMSR_SCOPES };

/* Which conditions a rule has. */
enum {
	KVMSR_WHEN_VCPU = 1,
	KVMSR_WHEN_VALUE = 2,
	KVMSR_WHEN_RIP = 4,
	KVMSR_WHEN_COUNT = 8,
	KVMSR_WHEN_REASON = 16,
};

/* In the order of kvmsr.policy.Bits. */
struct kvmsr_bits {
	uint64_t rw, ro, fault, w1c, w1s, once, lock, rc;
};

/* One rule in one direction. */
struct kvmsr_rule {
	uint64_t value; /* what reads give; of a shadow or counter, what it holds at first */
	uint64_t hz; /* of a counter */
	uint64_t when_value, when_mask;
	uint64_t rip_first, rip_last;
	uint64_t after, every; /* which matches hold: number after, and each every-th from there */
	uint32_t name; /* who says so, for the summary: a number that Python gave it */
	uint32_t bits; /* its number in the table's bits, or KVMSR_NONE */
	uint32_t vcpus, n_vcpus; /* the vCPUs that it holds for, in the table's vcpus */
	uint32_t counter; /* the number of its matches in the table's counters */
	uint8_t action, scope, log, when;
	uint8_t reasons; /* a bit for each, under KVMSR_WHEN_REASON */
};

/* MSRs from table.firsts[i] on, up to the next one's. */
struct kvmsr_segment {
	uint32_t steps, n_steps; /* the rules to try in turn: their numbers are in table.steps */
	uint32_t swallowed; /* KVM does not know these MSRs, the filter denies them all the same */
};

struct kvmsr_range {
	uint32_t flags, base, count; /* KVM_MSR_FILTER_READ and WRITE */
	uint32_t bitmap; /* where its (count + 7) / 8 bytes lie in the table; 1 lets through */
};

/* Arrays are found by their offset in bytes from the start of the table, each a multiple of 8. */
struct kvmsr_table {
	uint32_t magic, version;
	uint64_t size;
	uint32_t serial; /* which policy of the run this is */
	uint32_t logs; /* whether anybody takes log lines */
	uint32_t threads_per_core, cores_per_package; /* 0: one package */
	uint32_t n_segments[2], firsts[2], segments[2]; /* by op */
	uint32_t steps, n_steps;
	uint32_t rules, n_rules; /* the first six are the defaults, see below */
	uint32_t bits, n_bits;
	uint32_t vcpus, n_vcpus;
	uint32_t counters, n_counters; /* uint64_t: how often each rule that counts has matched */
	uint32_t reasons; /* a bit for each KVM_MSR_EXIT_REASON that the plan wants to see */
	uint32_t default_deny, n_ranges, pad;
	struct kvmsr_range ranges[KVMSR_MAX_RANGES];
};

/* The numbers of the default rules: these, and one more for writes. */
enum {
	KVMSR_DEFAULT_UNKNOWN = 0,
	KVMSR_DEFAULT_INVALID = 2,
	KVMSR_ON_ERROR = 4,
	KVMSR_DEFAULTS = 6,
};

struct kvmsr_access {
	uint64_t value; /* what is written */
	uint32_t vcpu, index;
	uint8_t op, reason;
	uint8_t theirs; /* a bit for each reason for which the VMM itself asked for this MSR */
	uint8_t denied; /* the VMM's own filter denies it, and the VMM did not ask to see that */
};

struct kvmsr_outcome {
	uint64_t value; /* what a read gives */
	uint32_t rule; /* the rule's number in the table, or KVMSR_NONE */
	uint32_t name;
	uint8_t verdict;
	uint8_t log; /* Python may want to log it */
};

static inline const void *kvmsr_part(const struct kvmsr_table *table, uint32_t offset)
{
	return (const char *)table + offset;
}

#endif
