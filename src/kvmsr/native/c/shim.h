/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim of kvmsr exec, preloaded into a VMM: what its files have in common.
 *
 * Who calls whom, from the ground up: attach (the shared memory, and whether the controller lives),
 * vmm (the VMM's VMs and vCPUs), answer (the way of one access), shim (the interposed ioctl).
 *
 * It must never make things worse than they were without it: it prints nothing and ends nothing, and
 * where something goes wrong it lets everything through.
 */
#ifndef KVMSR_SHIM_H
#define KVMSR_SHIM_H

#include <errno.h>
#include <linux/kvm.h>

#include "core.h"
#include "merge.h"

#define KVMSR_MAX_FDS 65536
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Fail as an ioctl does, for ERROR, a negative errno. */
static inline int failed(long error)
{
	errno = -error;
	return -1;
}

struct vm {
	struct vm *next;
	int fd;
	uint32_t number;
	uint32_t size; /* of a vCPU's mapping */
	int asked; /* the VMM has set a filter of its own, or reasons */
	int filtered; /* ... a filter */
	struct kvmsr_wish wish;
};

struct vcpu {
	struct kvmsr_cpu cpu;
	struct vm *vm;
	uint32_t size;
	int pending; /* its access has been put to Python, and waits */
	uint64_t blocked; /* KVM_SET_SIGNAL_MASK: the signals blocked in KVM_RUN */
	int has_mask;
};

/* attach.c */
extern struct kvmsr_block *kvmsr_block; /* NULL: nothing is to be done */
void kvmsr_attach(void);
int kvmsr_controller_lives(void);
int kvmsr_call(int fd, unsigned long request, void *argument);

/* vmm.c */
extern struct vcpu *kvmsr_vcpus[KVMSR_MAX_FDS]; /* by descriptor */
void kvmsr_new_vm(int system, int fd);
void kvmsr_new_vcpu(int vm_fd, int fd, uint32_t id);
void kvmsr_new_reasons(int fd, const struct kvm_enable_cap *cap);
void kvmsr_new_filter(int fd, const struct kvm_msr_filter *filter);

/* answer.c */
int kvmsr_run_on(struct vcpu *vcpu, int fd, void *argument);
void kvmsr_finish(struct vcpu *vcpu);

#endif
