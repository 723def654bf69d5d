/* SPDX-License-Identifier: Apache-2.0 */
/* The VMM's VMs and vCPUs, and the plan's exit reasons and filter in each VM. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim.h"

/*
 * Set the VM's exit reasons and filter to what plan and VMM need together. Return 0, or -EPERM if the
 * VM must not run because it cannot be under the whole plan. The lock is held.
 */
static int put_plan(struct vm *vm)
{
	static struct kvmsr_merged merged;
	uint32_t generation = kvmsr_generation();
	const struct kvmsr_table *table = kvmsr_table_at(kvmsr_tables, kvmsr_tables->active);
	struct kvm_msr_filter plan = { 0 };
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { vm->wish.reasons },
	};

	if (!vm->unserved) {
		cap.args[0] |= table->reasons;
		/* What the VMM's filter denies must come to the shim, too: a rule may apply to it. */
		if (table->reasons && vm->filtered)
			cap.args[0] |= KVM_MSR_EXIT_REASON_FILTER;
		kvmsr_plan_filter(table, &plan);
	}
	vm->shared->lost_ranges = kvmsr_merge(&plan, &vm->wish.filter, &merged);
	vm->shared->failed = kvmsr_call(vm->fd, KVM_ENABLE_CAP, &cap) ||
			     kvmsr_call(vm->fd, KVM_X86_SET_MSR_FILTER, &merged.filter) ? errno : 0;
	int whole = !vm->shared->lost_ranges && !vm->shared->failed && !vm->unserved;

	vm->barred = !whole && kvmsr_required();
	__atomic_store_n(&vm->generation, vm->barred ? 0 : generation, __ATOMIC_RELEASE);
	__atomic_store_n(&vm->shared->generation, generation, __ATOMIC_RELEASE);
	return vm->barred ? -EPERM : 0;
}

/*
 * Set the filter of a policy that has replaced another one, before the guest runs again. Return 0, or
 * -EPERM if the guest must not run.
 */
int kvmsr_renew(struct vm *vm)
{
	int before = errno, result = 0;

	pthread_mutex_lock(&kvmsr_changing);
	if (vm->fd < 0) /* it keeps the filter that it has */
		vm->generation = kvmsr_generation();
	else if (vm->generation != kvmsr_generation())
		result = put_plan(vm);
	pthread_mutex_unlock(&kvmsr_changing);
	errno = before;
	return result;
}

/* Return the VM that FD refers to, or NULL. The lock is held. */
static struct vm *vm_of(int fd)
{
	const struct descriptor *d = kvmsr_descriptor(fd);

	return d ? d->vm : NULL;
}

/* Return the number of a record for a new VM; KVMSR_MAX_VMS if the VM cannot be under the policy. */
static uint32_t record_for(int fd, int size)
{
	uint32_t number = KVMSR_MAX_VMS;

	kvmsr_make_table();
	if (kvmsr_descriptor(fd) && size > 0)
		number = kvmsr_take_vm(kvmsr_block, program_invocation_short_name);
	if (number == KVMSR_MAX_VMS)
		__atomic_fetch_add(&kvmsr_block->missed, 1, __ATOMIC_RELAXED);
	return number;
}

/* FD is a new VM. Return 0, or -EPERM if it must not run. */
int kvmsr_new_vm(int system, int fd)
{
	if (kvmsr_call(system, KVM_GET_API_VERSION, NULL) != KVM_API_VERSION)
		return 0; /* another device that has a request with this number */
	kvmsr_attach();
	if (!kvmsr_block || !kvmsr_generation())
		return kvmsr_required() ? -EPERM : 0;
	int size = kvmsr_call(system, KVM_GET_VCPU_MMAP_SIZE, NULL);
	int result = kvmsr_required() ? -EPERM : 0;

	pthread_mutex_lock(&kvmsr_changing);
	kvmsr_forget(fd);
	struct vm *vm = kvmsr_spare_vm();
	uint32_t number = vm ? record_for(fd, size) : KVMSR_MAX_VMS;

	if (number < KVMSR_MAX_VMS) {
		vm->fd = fd;
		vm->fds = 1;
		vm->pid = getpid();
		vm->number = number;
		vm->shared = kvmsr_vm_at(kvmsr_block, number);
		vm->size = size;
		vm->memory.pid = vm->pid;
		vm->memory.n_slots = 0;
		*kvmsr_descriptor(fd) = (struct descriptor){ .vm = vm };
		result = put_plan(vm);
	}
	pthread_mutex_unlock(&kvmsr_changing);
	return result;
}

/* Return a new vCPU with its record and page; NULL if there is no room. The lock is held. */
static struct vcpu *make_vcpu(struct vm *vm, int fd, uint32_t id)
{
	struct vcpu *vcpu = kvmsr_spare_vcpu();
	struct kvmsr_vcpu *shared = NULL;

	if (vcpu)
		shared = kvmsr_take_vcpu(kvmsr_block, kvmsr_tables->max_vcpus, vm->number, id);
	void *page = MAP_FAILED;

	if (shared)
		page = mmap(NULL, vm->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED) {
		if (shared)
			kvmsr_free_vcpu(kvmsr_block, shared);
		return NULL;
	}
	vm->vcpus++;
	vcpu->vm = vm;
	vcpu->fds = vcpu->touched = 1;
	vcpu->size = vm->size;
	vcpu->cpu = (struct kvmsr_cpu){
		.tables = kvmsr_tables, .block = kvmsr_block, .vm = vm->shared, .shared = shared,
		.run = page, .fd = fd, .events = 1, .access = { .vcpu = id },
		.question = shared->upcall.state & ~3u,
	};
	kvmsr_spin_init(&vcpu->cpu.spin);
	return vcpu;
}

/* FD is a new vCPU. Return 0, or -EPERM if it must not run. */
int kvmsr_new_vcpu(int vm_fd, int fd, uint32_t id)
{
	if (!kvmsr_block || fd < 0)
		return 0;
	pthread_mutex_lock(&kvmsr_changing);
	kvmsr_forget(fd);
	struct vm *vm = vm_of(vm_fd);
	struct descriptor *d = kvmsr_descriptor(fd);
	struct vcpu *vcpu = vm && !vm->unserved && d ? make_vcpu(vm, fd, id) : NULL;

	if (d) {
		d->vm = NULL;
		__atomic_store_n(&d->vcpu, vcpu, __ATOMIC_RELEASE);
	}
	if (vm && !vm->unserved && !vcpu) {
		/*
		 * Take the whole VM out from under the policy: this vCPU's MSR exits would otherwise
		 * reach the VMM, which did not ask for them.
		 */
		vm->unserved = vm->shared->unserved = 1;
		put_plan(vm);
	}
	int result = vm && vm->barred ? -EPERM : 0;

	pthread_mutex_unlock(&kvmsr_changing);
	return result;
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

/* The VMM has set a memory slot, or taken one away. */
void kvmsr_new_memory(int fd, const struct kvm_userspace_memory_region *region)
{
	pthread_mutex_lock(&kvmsr_changing);
	struct vm *vm = kvmsr_block ? vm_of(fd) : NULL;

	/* The upper half is the address space; SMM has its own. */
	if (vm && region->slot >> 16 == 0)
		kvmsr_set_slot(&vm->memory, region->slot, region->guest_phys_addr,
			       region->memory_size, region->userspace_addr);
	pthread_mutex_unlock(&kvmsr_changing);
}
