/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which descriptor refers to which VM or vCPU.
 *
 * A VMM may duplicate descriptors and close them. So dup, fcntl, close and their relatives are
 * interposed, too, and a VM or vCPU is gone when its last descriptor has been closed.
 *
 * A thread may be about to run a vCPU that another thread closes. So the memory of a struct vcpu or
 * struct vm is never freed, only reused for another one; and if the vCPU is in KVM_RUN when it is
 * closed, its page and record are released when KVM_RUN returns.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "shim.h"

#define FEWEST_FDS (1u << 20)
#define MOST_FDS (1u << 24)
#define PUBLIC __attribute__((visibility("default")))

struct descriptor *kvmsr_fds;
uint32_t kvmsr_n_fds;

static struct vcpu *free_vcpus;
static struct vm *free_vms;

/*
 * Make the table, for as many descriptors as the process may ever have. Pages of it that are not
 * touched use no memory.
 */
void kvmsr_make_table(void)
{
	struct rlimit limit;
	uint32_t count = FEWEST_FDS;

	if (kvmsr_fds)
		return;
	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_max > count)
		count = limit.rlim_max < MOST_FDS ? limit.rlim_max : MOST_FDS;
	void *made = mmap(NULL, count * sizeof(struct descriptor), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (made == MAP_FAILED)
		return;
	kvmsr_fds = made;
	__atomic_store_n(&kvmsr_n_fds, count, __ATOMIC_RELEASE);
}

/* These are called with the lock held. */

struct vm *kvmsr_spare_vm(void)
{
	struct vm *vm = free_vms;

	if (!vm)
		return calloc(1, sizeof(*vm));
	free_vms = vm->next;
	memset(vm, 0, sizeof(*vm));
	return vm;
}

struct vcpu *kvmsr_spare_vcpu(void)
{
	struct vcpu *vcpu = free_vcpus;

	if (!vcpu)
		return calloc(1, sizeof(*vcpu));
	free_vcpus = vcpu->next;
	memset(vcpu, 0, sizeof(*vcpu));
	return vcpu;
}

/* Release the VM's record once its descriptors and vCPUs are all gone, as KVM does with the VM. */
static void let_go(struct vm *vm)
{
	if (vm->fds || vm->vcpus)
		return;
	kvmsr_free_vm(vm->shared);
	vm->next = free_vms;
	free_vms = vm;
}

/* Release the vCPU's page and record: when it is closed, or when its last KVM_RUN has returned. */
void kvmsr_retire(struct vcpu *vcpu)
{
	if (vcpu->retired)
		return;
	vcpu->retired = 1;
	munmap(vcpu->cpu.run, vcpu->size);
	kvmsr_free_vcpu(kvmsr_block, vcpu->cpu.shared);
	vcpu->vm->vcpus--;
	let_go(vcpu->vm);
}

/* Return another descriptor of VM, of which FD is being closed; -1 if there is none. */
static int another(const struct vm *vm, int fd)
{
	for (uint32_t i = 0; vm->fds && i < kvmsr_n_fds; i++)
		if (kvmsr_fds[i].vm == vm && (int)i != fd)
			return i;
	return -1;
}

/* Does D refer to a VM, or to a vCPU of one, that this process has created? */
static int is_own(const struct descriptor *d)
{
	const struct vm *vm = d->vcpu ? d->vcpu->vm : d->vm;

	return vm && vm->pid == getpid();
}

/*
 * FD no longer refers to the VM or vCPU that it did. The lock is held.
 *
 * A child that was forked closes descriptors that its parent goes on using. It must not release the
 * parent's records; and with vfork(), this table is the parent's, too.
 */
void kvmsr_forget(int fd)
{
	struct descriptor *d = kvmsr_descriptor(fd);

	if (!d || !is_own(d))
		return;
	struct vcpu *vcpu = d->vcpu;
	struct vm *vm = d->vm;

	__atomic_store_n(&d->vcpu, NULL, __ATOMIC_RELEASE);
	d->vm = NULL;
	if (vcpu && !--vcpu->fds) {
		__atomic_store_n(&vcpu->closed, 1, __ATOMIC_SEQ_CST);
		if (!__atomic_load_n(&vcpu->running, __ATOMIC_SEQ_CST)) {
			kvmsr_retire(vcpu);
			vcpu->next = free_vcpus;
			free_vcpus = vcpu;
		}
	}
	if (vm) {
		vm->fds--;
		if (vm->fd == fd)
			vm->fd = another(vm, fd);
		let_go(vm);
	}
}

/* NEW has become a duplicate of OLD. */
static void same(int old, int new)
{
	struct descriptor *from = kvmsr_descriptor(old), *to = kvmsr_descriptor(new);

	if (!from || !to || new < 0 || old == new)
		return;
	pthread_mutex_lock(&kvmsr_changing);
	kvmsr_forget(new);
	if (is_own(from)) {
		if (from->vcpu)
			from->vcpu->fds++;
		if (from->vm)
			from->vm->fds++;
		to->vm = from->vm;
		__atomic_store_n(&to->vcpu, from->vcpu, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&kvmsr_changing);
}

static int is_known(int fd)
{
	const struct descriptor *d = kvmsr_descriptor(fd);

	return d && (d->vcpu || d->vm);
}

/* FD is being closed. */
static void gone(int fd)
{
	if (likely(!is_known(fd)))
		return;
	pthread_mutex_lock(&kvmsr_changing);
	kvmsr_forget(fd);
	pthread_mutex_unlock(&kvmsr_changing);
}

/* The C library's functions, or those of another preloaded library. */
static int (*real_close)(int), (*real_close_range)(unsigned int, unsigned int, int);
static int (*real_dup)(int), (*real_dup2)(int, int), (*real_dup3)(int, int, int);
static int (*real_fcntl)(int, int, ...);

/*
 * Called when the library is loaded. A child of a process with threads may call these functions
 * between fork() and exec(), when dlsym() might wait for a lock that no thread holds any more.
 */
static __attribute__((constructor)) void find_real(void)
{
	real_close = (int (*)(int))dlsym(RTLD_NEXT, "close");
	real_close_range =
		(int (*)(unsigned int, unsigned int, int))dlsym(RTLD_NEXT, "close_range");
	real_dup = (int (*)(int))dlsym(RTLD_NEXT, "dup");
	real_dup2 = (int (*)(int, int))dlsym(RTLD_NEXT, "dup2");
	real_dup3 = (int (*)(int, int, int))dlsym(RTLD_NEXT, "dup3");
	real_fcntl = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl");
}

/* Another library's constructor may call them before ours has run. */
#define REAL(name) (likely(real_##name) ? real_##name : (find_real(), real_##name))

PUBLIC int close(int fd)
{
	gone(fd);
	return REAL(close)(fd);
}

PUBLIC int close_range(unsigned int first, unsigned int last, int flags)
{
	for (uint64_t fd = first; !(flags & CLOSE_RANGE_CLOEXEC) && fd <= last && fd < kvmsr_n_fds; fd++)
		gone(fd);
	return REAL(close_range) ? real_close_range(first, last, flags) : (errno = ENOSYS, -1);
}

PUBLIC int dup(int fd)
{
	int made = REAL(dup)(fd);

	if (made >= 0 && is_known(fd))
		same(fd, made);
	return made;
}

/* The kernel closes WANTED if it is open; same() forgets it. */
PUBLIC int dup2(int fd, int wanted)
{
	int made = REAL(dup2)(fd, wanted);

	if (made >= 0 && (is_known(fd) || is_known(made)))
		same(fd, made);
	return made;
}

PUBLIC int dup3(int fd, int wanted, int flags)
{
	int made = REAL(dup3)(fd, wanted, flags);

	if (made >= 0 && (is_known(fd) || is_known(made)))
		same(fd, made);
	return made;
}

PUBLIC int fcntl(int fd, int command, ...)
{
	va_list list;

	va_start(list, command);
	void *argument = va_arg(list, void *);

	va_end(list);
	int result = REAL(fcntl)(fd, command, argument);

	if (result >= 0 && (command == F_DUPFD || command == F_DUPFD_CLOEXEC) && is_known(fd))
		same(fd, result);
	return result;
}

PUBLIC int fcntl64(int fd, int command, ...)
{
	va_list list;

	va_start(list, command);
	void *argument = va_arg(list, void *);

	va_end(list);
	return fcntl(fd, command, argument);
}
