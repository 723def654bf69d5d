/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim of kvmsr exec, a library that is preloaded into a VMM: what its files share.
 *
 * Calls go upwards only, in this order: attach (the shared memory), descriptors and vmm (the VMM's
 * VMs and vCPUs), reset (the guest's resets), answer (answering an access), shim (the interposed
 * ioctl).
 *
 * The shim must never make things worse than they are without it. It prints nothing, never ends
 * the process, and if something goes wrong, it lets every ioctl through unchanged; only with
 * KVMSR_REQUIRE, it fails those without which the VM cannot run. A vCPU's thread may be confined to
 * few system calls. So between the first KVM_RUN and the last, the shim makes only two: ioctl and
 * futex. (It reads the clock, too; where the vDSO cannot do that, this is a third. And it reads the
 * guest's memory to find callers, but only if no thread of the VMM is confined: see answer.c.)
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
	struct vm *next; /* in the list of free ones */
	int fd; /* one of its descriptors; -1: all are closed */
	uint32_t fds; /* number of its descriptors */
	uint32_t vcpus; /* number of its vCPUs that have a record */
	pid_t pid; /* the process that created it; a child that was forked shares only our records */
	uint32_t number;
	struct kvmsr_vm *shared;
	uint32_t size; /* of a vCPU's mapping */
	uint32_t generation; /* of the policy whose filter it has; 0: it must not run */
	int asked; /* the VMM has set exit reasons or a filter */
	int filtered; /* the VMM has set a filter */
	int unserved; /* runs without the policy: there is no room for one of its vCPUs */
	int barred; /* must not run, because it would not be under the whole policy */
	struct kvmsr_wish wish;
	struct kvmsr_memory memory;
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
	int touched; /* the VMM has set its state since its last KVM_RUN */
	int ran; /* it has run */
	struct {
		uint8_t sregs, regs; /* the VMM has set these to what they are at power-on */
		uint8_t seen; /* both were, since the last KVM_RUN */
	} reset;
	int asked; /* whether this process may read its memory */
	int has_mask; /* KVM_SET_SIGNAL_MASK is in use: a wait may miss the signal that kicks it */
};

/* What a descriptor of the VMM's refers to: a vCPU, a VM, or neither. */
struct descriptor {
	struct vcpu *vcpu;
	struct vm *vm;
};

/* attach.c */
extern struct kvmsr_block *kvmsr_block; /* NULL: the shim does nothing */
extern const struct kvmsr_tables *kvmsr_tables;
extern pthread_mutex_t kvmsr_changing; /* held while what follows changes */
void kvmsr_attach(void);
int kvmsr_required(void);
int kvmsr_call(int fd, unsigned long request, void *argument);
extern long (*kvmsr_served)(int fd, unsigned long request, void *argument); /* kvm.c; NULL: KVM */

static inline uint32_t kvmsr_generation(void)
{
	return __atomic_load_n(&kvmsr_tables->generation, __ATOMIC_ACQUIRE);
}

/* descriptors.c */
extern struct descriptor *kvmsr_fds; /* by number */
extern uint32_t kvmsr_n_fds;
void kvmsr_make_table(void);

/* Return the entry of FD; NULL if the table has none for it. */
static inline struct descriptor *kvmsr_descriptor(int fd)
{
	return (uint32_t)fd < kvmsr_n_fds ? &kvmsr_fds[fd] : NULL;
}

struct vm *kvmsr_spare_vm(void);
struct vcpu *kvmsr_spare_vcpu(void);
void kvmsr_retire(struct vcpu *vcpu);
void kvmsr_forget(int fd);

/* vmm.c */
int kvmsr_renew(struct vm *vm);
int kvmsr_new_vm(int system, int fd);
int kvmsr_new_vcpu(int vm_fd, int fd, uint32_t id);
void kvmsr_new_reasons(int fd, const struct kvm_enable_cap *cap);
void kvmsr_new_filter(int fd, const struct kvm_msr_filter *filter);
void kvmsr_new_memory(int fd, const struct kvm_userspace_memory_region *region);

/* reset.c */
void kvmsr_new_state(struct vcpu *vcpu, unsigned long request, const void *argument);
void kvmsr_about_to_run(struct vcpu *vcpu);

/* answer.c */
int kvmsr_run_on(struct vcpu *vcpu, int fd, void *argument);
void kvmsr_finish(struct vcpu *vcpu);

#endif
