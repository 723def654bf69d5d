# SPDX-License-Identifier: Apache-2.0
"""
Building the native core
------------------------

What setup.py has cffi compile. Without a compiler the package is installed all the same, and goes
without.
"""

from cffi import FFI

__all__ = ("CFLAGS", "CORE", "SHIM", "SOURCES", "ffi")

SOURCES = "src/kvmsr/native/c"
"""Where the C lies, from the project's folder, in which setup.py runs."""

CFLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
CORE = ["block.c", "evaluate.c", "kvm.c", "loop.c", "record.c", "shadow.c", "upcall.c"]
SHIM = [*(name for name in CORE if name != "loop.c"), "merge.c", "shim.c"]

_CDEF = """
#define KVMSR_TABLE_MAGIC ...
#define KVMSR_VERSION ...
#define KVMSR_NONE ...

#define KVMSR_ROW_SLOTS ...
#define KVMSR_SHADOW_SLOTS ...
#define KVMSR_SHADOW_LIMIT ...
#define KVMSR_PAGE_BITS ...
#define KVMSR_PAGES ...

enum { KVMSR_EXIT, KVMSR_ASK, KVMSR_TELL, ... };
enum kvmsr_verdict { KVMSR_FAULT, KVMSR_STOP, KVMSR_UPCALL, ... };

struct kvmsr_bits { uint64_t rw, ro, fault, w1c, w1s, once, lock, rc; };
struct kvmsr_rule {
    uint64_t value, hz, when_value, when_mask, rip_first, rip_last, after, every;
    uint32_t name, bits, vcpus, n_vcpus, counter;
    uint8_t action, scope, log, when, reasons;
    ...;
};
struct kvmsr_segment { uint32_t steps, n_steps, swallowed; };
struct kvmsr_range { uint32_t flags, base, count, bitmap; };
struct kvmsr_table {
    uint32_t magic, version;
    uint64_t size;
    uint32_t serial, tells, threads_per_core, cores_per_package;
    uint32_t n_segments[2], firsts[2], segments[2];
    uint32_t steps, n_steps, rules, n_rules, bits, n_bits, vcpus, n_vcpus, counters, n_counters;
    uint32_t reasons, default_deny, n_ranges;
    struct kvmsr_range ranges[16];
    ...;
};
struct kvmsr_access { uint64_t value; uint32_t vcpu, index; uint8_t op, reason, theirs; ...; };
struct kvmsr_outcome { uint64_t value; uint32_t rule, name; uint8_t verdict, tell; ...; };
struct kvmsr_shadow { uint64_t key, value; uint32_t state; ...; };
struct kvmsr_row {
    uint32_t index, name;
    uint8_t op, reason, used, has;
    uint64_t values, dones, faults, stops, first_value, last_value, first_rip;
    ...;
};
struct kvmsr_event {
    uint64_t time_ns, value;
    uint32_t index, name, rule, serial;
    uint8_t op, reason, verdict, tell;
    ...;
};
struct kvmsr_upcall {
    uint32_t state, serial;
    struct kvmsr_access access;
    struct kvmsr_outcome outcome;
    ...;
};
struct kvmsr_others { uint32_t n_pages; uint16_t page_of[...]; ...; };
struct kvmsr_vcpu {
    uint32_t taken, vm, id, pid, n_rows;
    uint64_t exits, dropped;
    struct kvmsr_upcall upcall;
    struct kvmsr_row others[2];
    struct kvmsr_row rows[...];
    ...;
};
struct kvmsr_block {
    uint32_t max_vcpus, active, generation, n_vms, n_vcpus, installed, trace, lossless;
    uint32_t lost_ranges, failed, n_shadows;
    uint64_t refused, begun_ns;
    struct kvmsr_others others;
    struct kvmsr_shadow shadows[...];
    ...;
};
struct kvm_run;
struct kvmsr_cpu {
    struct kvmsr_block *block;
    struct kvmsr_vcpu *shared;
    struct kvm_run *run;
    int fd, vm_fd;
    uint64_t rip, time_ns;
    struct kvmsr_access access;
    struct kvmsr_outcome outcome;
    uint32_t serial;
    int waits, events;
    ...;
};

size_t kvmsr_block_size(uint32_t max_vcpus);
void kvmsr_block_make(struct kvmsr_block *block, uint32_t max_vcpus);
const uint64_t *kvmsr_page(const struct kvmsr_others *others, uint32_t number);
struct kvmsr_table *kvmsr_table_at(struct kvmsr_block *block, uint32_t number);
struct kvmsr_vcpu *kvmsr_vcpu_at(struct kvmsr_block *block, uint32_t number);
struct kvmsr_vcpu *kvmsr_take_vcpu(struct kvmsr_block *block, uint32_t vm, uint32_t id);
const char *kvmsr_install(struct kvmsr_block *block, const void *table, size_t size);
const char *kvmsr_table_check(const struct kvmsr_table *table, size_t room);
const struct kvmsr_table *kvmsr_enter(struct kvmsr_cpu *cpu);
void kvmsr_leave(struct kvmsr_cpu *cpu);
void kvmsr_evaluate(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
                    const struct kvmsr_access *access, struct kvmsr_outcome *outcome);
void kvmsr_refused(struct kvmsr_cpu *cpu, const struct kvmsr_table *table,
                   const struct kvmsr_access *access, uint8_t reason,
                   struct kvmsr_outcome *outcome);
void kvmsr_record(struct kvmsr_cpu *cpu, const struct kvmsr_access *access,
                  const struct kvmsr_outcome *outcome);
int kvmsr_next_event(struct kvmsr_vcpu *vcpu, struct kvmsr_event *event);
void kvmsr_shadow_put(struct kvmsr_block *block, uint64_t key, uint64_t value, int written);
uint64_t kvmsr_now_ns(void);
void kvmsr_shadow_forget(struct kvmsr_block *block, uint32_t vm);
int kvmsr_run(struct kvmsr_cpu *cpu);
uint32_t kvmsr_await_question(struct kvmsr_vcpu *vcpu, unsigned int milliseconds);
int kvmsr_give_answer(struct kvmsr_vcpu *vcpu, uint32_t question, uint8_t verdict, uint64_t value,
                      uint32_t name);
"""

ffi = FFI()
ffi.cdef(_CDEF)
ffi.set_source(
    "kvmsr.native._core",
    '#include "block.h"\n',
    sources=[f"{SOURCES}/{name}" for name in CORE],
    include_dirs=[SOURCES],
    extra_compile_args=CFLAGS,
    optional=True,
)
