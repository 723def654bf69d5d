/* SPDX-License-Identifier: Apache-2.0 */
/* The VMM's VMs and vCPUs, and what they get of the plan. */
#include <errno.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

struct vcpu *kvmsr_vcpus[KVMSR_MAX_FDS];

static struct vm *vms;
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;

/* Give the VM what plan and VMM want to see, together. The lock is held. */
static int put_plan(struct vm *vm)
{
	static struct kvmsr_merged merged;
	const struct kvmsr_table *table = kvmsr_table_at(kvmsr_block, kvmsr_block->active);
	struct kvm_msr_filter plan;
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { table->reasons | vm->wish.reasons },
	};

	/* What the VMM denies comes to us as well: a rule may be for it. */
	if (table->reasons && vm->filtered)
		cap.args[0] |= KVM_MSR_EXIT_REASON_FILTER;
	kvmsr_plan_filter(table, &plan);
	uint32_t lost = kvmsr_merge(&plan, &vm->wish.filter, &merged);

	if (lost > kvmsr_block->lost_ranges)
		kvmsr_block->lost_ranges = lost;
	if (kvmsr_call(vm->fd, KVM_ENABLE_CAP, &cap) || kvmsr_call(vm->fd, KVM_X86_SET_MSR_FILTER, &merged.filter)) {
		kvmsr_block->failed = errno;
		return -1;
	}
	return 0;
}

/* Waits for another policy, and gives it to the VMs. */
static void *follow(void *seen)
{
	uint32_t generation = (uintptr_t)seen;

	for (;;) {
		syscall(SYS_futex, &kvmsr_block->generation, FUTEX_WAIT, generation, NULL, NULL, 0);
		uint32_t now = __atomic_load_n(&kvmsr_block->generation, __ATOMIC_ACQUIRE);

		if (now == generation)
			continue;
		generation = now;
		pthread_mutex_lock(&changing);
		for (struct vm *vm = vms; vm; vm = vm->next)
			put_plan(vm);
		pthread_mutex_unlock(&changing);
		__atomic_store_n(&kvmsr_block->installed, generation, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* A thread of ours that gets none of the VMM's signals. */
static void begin_to_follow(void)
{
	static int begun;
	pthread_attr_t attributes;
	sigset_t all, before;
	pthread_t thread;

	if (begun++ || pthread_attr_init(&attributes))
		return;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_attr_setstacksize(&attributes, 64 << 10);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_create(&thread, &attributes, follow, (void *)(uintptr_t)kvmsr_block->generation);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
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

/* Return the VM behind FD, which may be a duplicate of the one that it was made as. */
static struct vm *vm_of(int fd)
{
	pid_t self = getpid();

	for (struct vm *vm = vms; vm; vm = vm->next)
		if (vm->fd == fd || !syscall(SYS_kcmp, self, self, KCMP_FILE, vm->fd, fd))
			return vm;
	return vms && !vms->next && is_kvm(fd, "anon_inode:kvm-vm") ? vms : NULL;
}

void kvmsr_new_vm(int system, int fd)
{
	kvmsr_attach();
	if (!kvmsr_block || !__atomic_load_n(&kvmsr_block->generation, __ATOMIC_ACQUIRE) ||
	    !is_kvm(fd, "anon_inode:kvm-vm"))
		return;
	struct vm *vm = calloc(1, sizeof(*vm));
	int size = kvmsr_call(system, KVM_GET_VCPU_MMAP_SIZE, NULL);

	if (!vm || size <= 0) {
		free(vm);
		return;
	}
	pthread_mutex_lock(&changing);
	for (struct vm *old = vms; old; old = old->next)
		if (old->fd == fd)
			old->fd = -1; /* it was closed, and the number is used again */
	vm->fd = fd;
	vm->size = size;
	vm->number = __atomic_fetch_add(&kvmsr_block->n_vms, 1, __ATOMIC_ACQ_REL);
	vm->next = vms;
	vms = vm;
	put_plan(vm);
	begin_to_follow();
	pthread_mutex_unlock(&changing);
}

void kvmsr_new_vcpu(int vm_fd, int fd, uint32_t id)
{
	if (!kvmsr_block || fd < 0 || fd >= KVMSR_MAX_FDS)
		return;
	pthread_mutex_lock(&changing);
	struct vm *vm = vm_of(vm_fd);
	struct vcpu *old = kvmsr_vcpus[fd], *vcpu = vm ? calloc(1, sizeof(*vcpu)) : NULL;
	struct kvmsr_vcpu *shared = vcpu ? kvmsr_take_vcpu(kvmsr_block, vm->number, id) : NULL;
	void *page = MAP_FAILED;

	if (shared)
		page = mmap(NULL, vm->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED) {
		free(vcpu);
		vcpu = NULL;
	} else {
		vcpu->vm = vm;
		vcpu->size = vm->size;
		vcpu->cpu = (struct kvmsr_cpu){
			.block = kvmsr_block, .shared = shared, .run = page, .fd = fd, .vm_fd = vm_fd,
			.events = 1,
		};
	}
	__atomic_store_n(&kvmsr_vcpus[fd], vcpu, __ATOMIC_RELEASE);
	if (old) { /* the number is used again, so that vCPU is closed */
		munmap(old->cpu.run, old->size);
		free(old);
	}
	pthread_mutex_unlock(&changing);
}

/* The VMM asks for MSR exits itself. KVM has taken it, so it is right. */
void kvmsr_new_reasons(int fd, const struct kvm_enable_cap *cap)
{
	pthread_mutex_lock(&changing);
	struct vm *vm = kvmsr_block ? vm_of(fd) : NULL;

	if (vm) {
		vm->wish.reasons = cap->args[0];
		vm->asked = 1;
		put_plan(vm);
	}
	pthread_mutex_unlock(&changing);
}

void kvmsr_new_filter(int fd, const struct kvm_msr_filter *filter)
{
	pthread_mutex_lock(&changing);
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
	pthread_mutex_unlock(&changing);
}
