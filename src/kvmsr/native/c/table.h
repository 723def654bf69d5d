/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan as C reads it: a sequence of bytes without pointers, so that it can be in shared memory.
 * kvmsr.native.table writes it, and evaluate.c reads it.
 */
#ifndef KVMSR_TABLE_H
#define KVMSR_TABLE_H

#include <stddef.h>
#include <stdint.h>

#define KVMSR_TABLE_MAGIC 0x4c42544bu /* "KTBL" */
#define KVMSR_NONE 0xffffffffu
#define KVMSR_UNRULED 0u /* the name to record if an access goes to KVM without a rule */
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
	KVMSR_ACT_UPCALL, /* ask Python */
	KVMSR_ACT_COUNTER,
	KVMSR_ACTIONS,
};

enum kvmsr_verdict {
	KVMSR_VALUE,
	KVMSR_DONE,
	KVMSR_FAULT,
	KVMSR_STOP,
	KVMSR_KERNEL, /* ask KVM */
	KVMSR_UPCALL, /* ask Python */
	KVMSR_MAY_READ, /* ask the controller whether this process may read its memory */
	KVMSR_TO_VMM, /* hand the exit to the VMM, which asked for it */
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
	KVMSR_WHEN_CALLER = 32,
};

/* In the order of kvmsr.policy.Bits. */
struct kvmsr_bits {
	uint64_t rw, ro, fault, w1c, w1s, once, lock, rc;
};

/* One rule in one direction. */
struct kvmsr_rule {
	uint64_t value; /* that reads return; for a shadow or counter, its value at reset */
	uint64_t hz; /* of a counter */
	uint64_t when_value, when_mask;
	uint64_t rip_first, rip_last;
	uint64_t caller_first, caller_last;
	uint64_t after, every; /* holds for match number `after`, and every `every`-th after that */
	uint32_t name; /* number of the rule's name in the summary, see kvmsr.native.table.Names */
	uint32_t bits; /* index into the table's bits, or KVMSR_NONE */
	uint32_t vcpus, n_vcpus; /* the vCPUs that it holds for: part of the table's vcpus */
	uint32_t counter; /* number of its match count, see struct kvmsr_vm */
	uint8_t action, scope, log, when;
	uint8_t reasons; /* a bit for each, with KVMSR_WHEN_REASON */
	uint8_t keep; /* its registers survive a reset of the guest */
};

/* The MSRs from table.firsts[i] up to, but not including, table.firsts[i + 1]. */
struct kvmsr_segment {
	uint32_t steps, n_steps; /* the rules to try in order: part of table.steps */
	uint32_t known; /* KVM may handle such accesses itself */
	uint32_t swallowed; /* unknown to KVM; denied because ignore_msrs would swallow accesses */
};

struct kvmsr_range {
	uint32_t flags, base, count; /* flags: KVM_MSR_FILTER_READ and KVM_MSR_FILTER_WRITE */
	uint32_t bitmap; /* offset of its (count + 7) / 8 bytes; a set bit allows the access */
};

/* Arrays are given as offsets in bytes from the start of the table, multiples of 8. */
struct kvmsr_table {
	uint32_t magic, version;
	uint64_t size;
	uint32_t serial; /* number of the policy in this run */
	uint32_t logs; /* whether log lines are written at all */
	uint32_t observes; /* whether accesses come here only to be seen: they are logged */
	uint32_t threads_per_core, cores_per_package; /* 0: one package */
	uint32_t n_segments[2], firsts[2], segments[2]; /* by op */
	uint32_t steps, n_steps;
	uint32_t rules, n_rules; /* the first KVMSR_DEFAULTS are the defaults */
	uint32_t bits, n_bits;
	uint32_t vcpus, n_vcpus;
	uint32_t never_unknown, n_never_unknown; /* pairs, first and last: MSRs that every KVM knows */
	uint32_t n_counters; /* number of rules that count their matches */
	uint32_t reasons; /* the KVM_MSR_EXIT_REASON_* that the plan needs */
	uint32_t default_deny, n_ranges;
	struct kvmsr_range ranges[KVMSR_MAX_RANGES];
};

/* The numbers of the default rules for reads; those for writes follow each of them. */
enum {
	KVMSR_DEFAULT_UNKNOWN = 0,
	KVMSR_DEFAULT_INVALID = 2,
	KVMSR_ON_ERROR = 4,
	KVMSR_DEFAULTS = 6,
};

struct kvmsr_access {
	uint64_t value; /* written; 0 for a read */
	uint32_t vcpu, index;
	uint8_t op, reason;
	uint8_t vmm_reasons; /* a bit for each reason for which the VMM wants this access itself */
	uint8_t denied; /* by the VMM's own filter, and the VMM did not ask for the exit */
};

struct kvmsr_outcome {
	uint64_t value; /* that a read returns */
	uint32_t rule; /* the number of the rule that decided, or KVMSR_NONE */
	uint32_t name; /* of that rule, as a number */
	uint8_t verdict;
	uint8_t log; /* whether Python may have to log it */
};

static inline const void *kvmsr_part(const struct kvmsr_table *table, uint32_t offset)
{
	return (const char *)table + offset;
}

#endif
