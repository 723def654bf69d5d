/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim of kvmsr exec, a library that is preloaded into a VMM: what its files share.
 *
 * Calls go upwards only, in this order: attach (the shared memory; whether the controller is
 * alive), descriptors and vmm (the VMM's VMs and vCPUs), answer (answering an access), shim (the
 * interposed ioctl).
 *
 * The shim must never make things worse than they are without it. It prints nothing, never ends
 * the process, and if something goes wrong, it lets every ioctl through unchanged.
 */
#ifndef KVMSR_SHIM_H
#define KVMSR_SHIM_H

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>

#include "core.h"
#include "merge.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Fail as ioctl(2) does; ERROR is a negative errno. */
static inline int failed(long error)
{
	errno = -error;
	return -1;
}

struct vm {
	struct vm *next;
	int fd; /* the descriptor that created it; -1: all of its descriptors are closed */
	uint32_t fds; /* number of its descriptors */
	uint32_t number;
	uint32_t size; /* of a vCPU's mapping */
	uint32_t generation; /* of the policy whose filter it has */
	int asked; /* the VMM has set exit reasons or a filter */
	int filtered; /* the VMM has set a filter */
	int unserved; /* runs without the policy: there is no room for one of its vCPUs */
	struct kvmsr_wish wish;
};

struct vcpu {
	struct kvmsr_cpu cpu;
	struct vm *vm;
	struct vcpu *next; /* in the list of free ones */
	uint32_t fds; /* number of its descriptors */
	uint32_t size; /* of the page's mapping */
	int running; /* a thread is in its KVM_RUN, or answers its access */
	int closed; /* its last descriptor has been closed */
	int retired; /* its page and record have been released */
	int pending; /* its access waits for Python's answer */
	int has_mask; /* KVM_SET_SIGNAL_MASK is in use: a wait may miss the signal that kicks it */
};

/* What a descriptor of the VMM's refers to: a vCPU, a VM, or neither. */
struct descriptor {
	struct vcpu *vcpu;
	struct vm *vm;
};

/* attach.c */
extern struct kvmsr_block *kvmsr_block; /* NULL: the shim does nothing */
void kvmsr_attach(void);
int kvmsr_controller_lives(void);
int kvmsr_call(int fd, unsigned long request, void *argument);

/* descriptors.c */
extern struct descriptor *kvmsr_fds; /* by number */
extern uint32_t kvmsr_n_fds;
void kvmsr_make_table(void);

/* Return the entry of FD; NULL if the table has none for it. */
static inline struct descriptor *kvmsr_descriptor(int fd)
{
	return (uint32_t)fd < kvmsr_n_fds ? &kvmsr_fds[fd] : NULL;
}

struct vcpu *kvmsr_spare_vcpu(void);
void kvmsr_retire(struct vcpu *vcpu);
void kvmsr_forget(int fd);

/* attach.c, for the others */
extern pthread_mutex_t kvmsr_changing; /* held by everything but KVM_RUN */

/* vmm.c */
void kvmsr_renew(struct vm *vm);
void kvmsr_new_vm(int system, int fd);
void kvmsr_new_vcpu(int vm_fd, int fd, uint32_t id);
void kvmsr_new_reasons(int fd, const struct kvm_enable_cap *cap);
void kvmsr_new_filter(int fd, const struct kvm_msr_filter *filter);

/* answer.c */
int kvmsr_run_on(struct vcpu *vcpu, int fd, void *argument);
void kvmsr_finish(struct vcpu *vcpu);

#endif
