/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory that a run shares, between the vCPU threads of `kvmsr run`, or between the controller
 * and the VMMs of `kvmsr exec`. It has two parts, each with a size that is fixed when it is made and
 * with room for the worst case. A page that is not touched uses no memory.
 *
 * struct kvmsr_tables is what the controller decides. A VMM can only read it.
 *
 * - There are two tables, so that one can be replaced while vCPUs read the other (kvmsr_install and
 *   kvmsr_enter in block.c).
 *
 * struct kvmsr_block is what VMs and vCPUs write. Hardly any of it needs a lock:
 *
 * - The thread that runs a vCPU writes that vCPU's record, and others read it. Its counters only
 *   grow, a row is valid once `used` is set, and events go through a ring buffer with one writer,
 *   who moves `head`, and one reader, who moves `tail`.
 * - A question to Python and its answer change hands by the question's state: see upcall.c.
 * - All vCPUs of a VM write its shadows, and all vCPUs the set of other MSRs, with atomic
 *   operations. A shadow is locked while its value changes, for a few instructions: see shadow.c.
 *
 * A guest that has broken into its VMM can write anything into the block, at any time. So the
 * controller trusts nothing that it finds there: it reads each field once, and checks what it read.
 */
#ifndef KVMSR_BLOCK_H
#define KVMSR_BLOCK_H

#include "table.h"

#define KVMSR_BLOCK_MAGIC 0x4b4c42525356u
#define KVMSR_VERSION 4

#define KVMSR_TABLE_ROOM (64u << 20)
#define KVMSR_SHADOW_SLOTS (1u << 17)
#define KVMSR_SHADOW_LIMIT 65536u
#define KVMSR_ROW_SLOTS (1u << 13)
#define KVMSR_ROW_LIMIT 4096u
#define KVMSR_EVENTS (1u << 15)
#define KVMSR_MARKS (1u << 12)
#define KVMSR_WATCHED 4u
#define KVMSR_RECENT 64u /* of each MSR that is watched */
#define KVMSR_ALL_RECENT (KVMSR_WATCHED * KVMSR_RECENT)
#define KVMSR_MAX_VMS 128u /* at a time */
#define KVMSR_MAX_COUNTERS 65536u
#define KVMSR_CALLERS 8u
#define KVMSR_LATENCIES 32
#define KVMSR_MAX_ID 4096u /* vCPUs with larger numbers are not served */

/* The MSRs that found no row: a bit for each, in pages that are allocated on demand. */
#define KVMSR_PAGE_BITS 15
#define KVMSR_PAGES 4096u
struct kvmsr_others {
	uint32_t n_pages; /* more than KVMSR_PAGES: some MSRs were not counted */
	uint32_t pad;
	uint16_t page_of[1u << (32 - KVMSR_PAGE_BITS)]; /* the page's number plus 1; 0: none */
	uint64_t pages[KVMSR_PAGES][(1u << KVMSR_PAGE_BITS) / 64];
};

/* The value of one shadowed MSR of one holder. */
struct kvmsr_shadow {
	uint64_t key; /* 0: free */
	uint64_t value;
	uint32_t state; /* see shadow.c */
	uint32_t pad;
};

/* A row of the summary; see kvmsr.trace.Row. */
struct kvmsr_row {
	uint32_t index, name;
	uint8_t op, reason, used;
	uint8_t has; /* which fields are valid; 1: first_value and last_value, 2: first_rip */
	uint32_t pad;
	uint64_t values, dones, faults, stops;
	uint64_t first_value, last_value, first_rip;
	uint64_t traced[4]; /* how many of the values, dones, faults and stops are in the trace */
};

/* An access to be logged or traced. */
struct kvmsr_event {
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	uint64_t value; /* read or written */
	uint64_t rip; /* if has_rip */
	uint32_t index, name, rule, serial;
	uint32_t latency_ns; /* from KVM's exit to the answer; at most UINT32_MAX */
	uint16_t vm, vcpu;
	uint8_t op, reason, verdict;
	uint8_t log, traced; /* what the event is for */
	uint8_t has_rip, cpl;
	uint8_t n_callers, guesses; /* see struct kvmsr_where */
	uint8_t pad[7];
};

/* Where the guest is. */
struct kvmsr_where {
	uint64_t rip;
	uint64_t callers[KVMSR_CALLERS]; /* return addresses, the nearest first */
	uint8_t n_callers;
	uint8_t guesses; /* a bit for each caller: it only looks like one */
	uint8_t cpl;
	uint8_t known; /* whether all this is known, */
	uint8_t most; /* with so many callers, if the guest has them */
	uint8_t pad[3];
};

/* One of a vCPU's last accesses to an MSR that somebody watches: see recent.c. */
struct kvmsr_recent {
	uint64_t time_ns; /* CLOCK_MONOTONIC; 0 while the entry is written */
	uint64_t value; /* read or written */
	uint32_t index, name;
	uint16_t vm, vcpu;
	uint8_t op, reason, verdict;
	uint8_t pad;
};

/* Which accesses are events of the trace: see kvmsr.trace.file.Grade. */
enum kvmsr_trace { KVMSR_TRACE_COUNT, KVMSR_TRACE_ONCE, KVMSR_TRACE_CHANGE, KVMSR_TRACE_ALL };

enum kvmsr_asked { KVMSR_IDLE, KVMSR_ASKED, KVMSR_ANSWERED };
enum kvmsr_sleeper { KVMSR_VCPU_SLEEPS = 1, KVMSR_PYTHON_SLEEPS = 2 };

/* A question to Python, and its answer; see upcall.c. */
struct kvmsr_upcall {
	uint32_t state; /* the question's number * 4 + enum kvmsr_asked; a futex */
	uint32_t sleepers; /* who sleeps on it: enum kvmsr_sleeper */
	uint32_t serial; /* of the table that has the rule */
	struct kvmsr_access access;
	struct kvmsr_where where; /* if the trace has that */
	struct kvmsr_outcome outcome; /* the rule that asks */
	struct kvmsr_outcome answer;
};

/* A record's way: never used, being filled in, in use, and left by a vCPU or VM that was closed. */
enum kvmsr_taken { KVMSR_FRESH, KVMSR_TAKING, KVMSR_TAKEN, KVMSR_LEFT };

struct kvmsr_vcpu {
	uint32_t taken; /* enum kvmsr_taken */
	uint32_t vm, id; /* the VM's number in this run; the vCPU's number in the VM */
	uint32_t pid; /* of the process that runs it */
	uint32_t reading; /* the number of the table being read, plus 1; 0: none */
	uint32_t n_rows;
	uint64_t exits; /* number of accesses answered since the record was taken */
	uint64_t latencies[KVMSR_LATENCIES]; /* [n]: of accesses that took less than 2**n ns */
	uint64_t latency_ns; /* of these, together */
	struct kvmsr_upcall upcall;
	uint64_t head __attribute__((aligned(64))); /* events written */
	uint64_t dropped; /* events that found no room */
	uint64_t tail __attribute__((aligned(64))); /* events read */
	uint64_t marks[KVMSR_MARKS]; /* what was logged "once"; may forget */
	struct kvmsr_row others[2]; /* by op: the accesses that found no row */
	uint32_t n_recent[KVMSR_WATCHED]; /* entries written so far, of rings one after the other */
	struct kvmsr_recent recent[KVMSR_ALL_RECENT];
	struct kvmsr_row rows[KVMSR_ROW_SLOTS];
	struct kvmsr_event events[KVMSR_EVENTS];
	uint64_t callers[KVMSR_EVENTS][KVMSR_CALLERS]; /* of these events */
};

struct kvmsr_vm {
	uint32_t taken; /* enum kvmsr_taken */
	uint32_t serial; /* counts how often the record was taken */
	uint32_t pid; /* of the process that created the VM */
	char name[16]; /* of that process; need not end with a zero */
	uint32_t generation; /* of the policy whose filter it has */
	uint32_t failed; /* errno, if KVM refused the plan */
	uint32_t lost_ranges; /* the plan's filter ranges for which the VMM's own left no room */
	uint32_t unserved; /* whether it runs without the policy, for want of vCPU records */
	uint32_t resets; /* counts the guest's resets */
	uint32_t loads; /* counts how often the VMM has loaded a saved state into it */
	uint32_t n_shadows;
	uint64_t refused; /* writes to shadows that found no room */
	uint64_t exits; /* accesses of vCPUs that have been closed */
	uint64_t begun_ns; /* CLOCK_MONOTONIC; when its counters started to count */
	uint64_t counters[2][KVMSR_MAX_COUNTERS]; /* by table: matches of rules that count */
	struct kvmsr_shadow shadows[KVMSR_SHADOW_SLOTS];
};

struct kvmsr_block {
	uint64_t magic;
	uint32_t version;
	uint32_t n_vms; /* VM records used so far */
	uint32_t n_vcpus; /* vCPU records used so far; may exceed max_vcpus */
	uint32_t missed; /* VMs for which there was no record, so that they run without the policy */
	struct kvmsr_others others;
	struct kvmsr_vm vms[KVMSR_MAX_VMS] __attribute__((aligned(4096)));
	struct kvmsr_vcpu vcpus[] __attribute__((aligned(4096)));
};

struct kvmsr_tables {
	uint64_t magic;
	uint32_t version;
	uint32_t max_vcpus; /* number of vCPU records in the block */
	uint32_t active; /* the number of the table in force */
	uint32_t generation; /* of the policy in force; 0: there is no policy yet */
	uint32_t trace; /* enum kvmsr_trace */
	uint32_t trace_rip; /* whether events have RIP and CPL */
	uint32_t callers; /* how many callers they have, at most */
	uint32_t reads; /* whether finding callers may be needed: see where.c and answer.c */
	uint32_t lossless; /* whether a vCPU waits for room if its trace finds none */
	uint32_t timed; /* whether latencies are counted */
	uint32_t watching; /* whether there are MSRs that somebody watches */
	uint64_t watched[KVMSR_WATCHED]; /* these, each plus 1; 0: none */
	uint32_t life[16]; /* a lock that the controller holds while it lives: see life.c */
	char tables[2][KVMSR_TABLE_ROOM] __attribute__((aligned(4096)));
};

#endif
