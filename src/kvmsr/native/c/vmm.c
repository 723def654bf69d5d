/* SPDX-License-Identifier: Apache-2.0 */
/* The VMM's VMs and vCPUs, and the plan's exit reasons and filter in each VM. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim.h"

static struct vm *vms;

/* Set the VM's exit reasons and filter to what plan and VMM need together. The lock is held. */
static int put_plan(struct vm *vm)
{
	static struct kvmsr_merged merged;
	uint32_t generation = __atomic_load_n(&kvmsr_block->generation, __ATOMIC_ACQUIRE);
	const struct kvmsr_table *table = kvmsr_table_at(kvmsr_block, kvmsr_block->active);
	struct kvm_msr_filter plan = { 0 };
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { vm->wish.reasons },
	};
	uint32_t lost = 0;

	if (!vm->unserved) {
		cap.args[0] |= table->reasons;
		/* What the VMM's filter denies must come to the shim, too: a rule may apply to it. */
		if (table->reasons && vm->filtered)
			cap.args[0] |= KVM_MSR_EXIT_REASON_FILTER;
		kvmsr_plan_filter(table, &plan);
	}
	lost = kvmsr_merge(&plan, &vm->wish.filter, &merged);
	if (lost > kvmsr_block->lost_ranges)
		kvmsr_block->lost_ranges = lost;
	__atomic_store_n(&vm->generation, generation, __ATOMIC_RELEASE);
	if (kvmsr_call(vm->fd, KVM_ENABLE_CAP, &cap) ||
	    kvmsr_call(vm->fd, KVM_X86_SET_MSR_FILTER, &merged.filter)) {
		kvmsr_block->failed = errno;
		return -1;
	}
	__atomic_store_n(&kvmsr_block->vms[vm->number].generation, generation, __ATOMIC_RELEASE);
	return 0;
}

/* Set the filter of a policy that has replaced another one, before the guest runs again. */
void kvmsr_renew(struct vm *vm)
{
	int before = errno;

	pthread_mutex_lock(&kvmsr_changing);
	if (vm->fd >= 0 && vm->generation != __atomic_load_n(&kvmsr_block->generation, __ATOMIC_ACQUIRE))
		put_plan(vm);
	pthread_mutex_unlock(&kvmsr_changing);
	errno = before;
}

static int is_kvm(int fd, const char *kind)
{
	char path[64], found[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ssize_t length = readlink(path, found, sizeof(found) - 1);

	if (length < 0)
		return 0;
	found[length] = 0;
	return !strncmp(found, kind, strlen(kind));
}

/* Return the VM that FD refers to, or NULL. The lock is held. */
static struct vm *vm_of(int fd)
{
	const struct descriptor *d = kvmsr_descriptor(fd);

	return d ? d->vm : NULL;
}

void kvmsr_new_vm(int system, int fd)
{
	kvmsr_attach();
	if (!kvmsr_block || !__atomic_load_n(&kvmsr_block->generation, __ATOMIC_ACQUIRE) ||
	    !is_kvm(fd, "anon_inode:kvm-vm"))
		return;
	kvmsr_make_table();
	struct descriptor *d = kvmsr_descriptor(fd);
	struct vm *vm = calloc(1, sizeof(*vm));
	int size = kvmsr_call(system, KVM_GET_VCPU_MMAP_SIZE, NULL);
	uint32_t number = KVMSR_MAX_VMS;

	if (d && vm && size > 0)
		number = __atomic_fetch_add(&kvmsr_block->n_vms, 1, __ATOMIC_ACQ_REL);
	if (number >= KVMSR_MAX_VMS) {
		__atomic_fetch_add(&kvmsr_block->missed, 1, __ATOMIC_RELAXED);
		free(vm);
		return;
	}
	pthread_mutex_lock(&kvmsr_changing);
	kvmsr_forget(fd);
	*vm = (struct vm){ .next = vms, .fd = fd, .fds = 1, .number = number, .size = size };
	vms = d->vm = vm;
	kvmsr_block->vms[number].pid = getpid();
	put_plan(vm);
	pthread_mutex_unlock(&kvmsr_changing);
}

/*
 * There is no room for one of the VM's vCPUs. Take the whole VM out from under the policy: that
 * vCPU's MSR exits would otherwise reach the VMM, which did not ask for them.
 */
static void leave_alone(struct vm *vm)
{
	vm->unserved = 1;
	__atomic_fetch_add(&kvmsr_block->missed, 1, __ATOMIC_RELAXED);
	put_plan(vm);
}

void kvmsr_new_vcpu(int vm_fd, int fd, uint32_t id)
{
	if (!kvmsr_block || fd < 0)
		return;
	pthread_mutex_lock(&kvmsr_changing);
	kvmsr_forget(fd);
	struct vm *vm = vm_of(vm_fd);
	struct descriptor *d = kvmsr_descriptor(fd);
	struct vcpu *vcpu = vm && !vm->unserved && d ? kvmsr_spare_vcpu() : NULL;
	struct kvmsr_vcpu *shared = vcpu ? kvmsr_take_vcpu(kvmsr_block, vm->number, id) : NULL;
	void *page = MAP_FAILED;

	if (shared)
		page = mmap(NULL, vm->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page != MAP_FAILED) {
		vcpu->vm = vm;
		vcpu->fds = 1;
		vcpu->size = vm->size;
		vcpu->cpu = (struct kvmsr_cpu){
			.block = kvmsr_block, .shared = shared, .run = page, .fd = fd, .vm_fd = vm_fd,
			.events = 1, .question = shared->upcall.state & ~3u,
		};
		__atomic_store_n(&d->vcpu, vcpu, __ATOMIC_RELEASE);
	} else if (vm && !vm->unserved) {
		leave_alone(vm);
	}
	pthread_mutex_unlock(&kvmsr_changing);
}

/* The VMM has asked for MSR exits itself. KVM has accepted CAP, so it is valid. */
void kvmsr_new_reasons(int fd, const struct kvm_enable_cap *cap)
{
	pthread_mutex_lock(&kvmsr_changing);
	struct vm *vm = kvmsr_block ? vm_of(fd) : NULL;

	if (vm) {
		vm->wish.reasons = cap->args[0];
		vm->asked = 1;
		put_plan(vm);
	}
	pthread_mutex_unlock(&kvmsr_changing);
}

void kvmsr_new_filter(int fd, const struct kvm_msr_filter *filter)
{
	pthread_mutex_lock(&kvmsr_changing);
	struct vm *vm = kvmsr_block ? vm_of(fd) : NULL;

	if (vm) {
		struct kvmsr_wish *wish = &vm->wish;

		wish->filter = *filter;
		vm->asked = vm->filtered = 1;
		for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++) {
			struct kvm_msr_filter_range *r = &wish->filter.ranges[i];

			if (!r->nmsrs)
				continue;
			memcpy(wish->bitmaps[i], r->bitmap, (r->nmsrs + 7) / 8);
			r->bitmap = wish->bitmaps[i];
		}
		put_plan(vm);
	}
	pthread_mutex_unlock(&kvmsr_changing);
}
