/* SPDX-License-Identifier: Apache-2.0 */
/* The ioctls and the end of descriptors, and fork. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "soft.h"

static int (*real_ioctl)(int, unsigned long, ...);
static int (*real_close)(int);

static void find_real(void)
{
	real_ioctl = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	real_close = (int (*)(int))dlsym(RTLD_NEXT, "close");
}

static void before_fork(void)
{
	soft_python_before_fork();
	soft_objects_before_fork();
}

static void in_parent(void)
{
	soft_objects_after_fork();
	soft_python_in_parent();
}

static void in_child(void)
{
	soft_returns(); /* whatever the parent's first thread does */
	soft_objects_after_fork();
	soft_python_in_child();
}

static __attribute__((constructor)) void begin(void)
{
	find_real();
	pthread_atfork(before_fork, in_parent, in_child);
}

/* Have Python do an ioctl of a vCPU's. */
static long serve_vcpu(struct soft_object *vcpu, unsigned long request, void *argument, uint64_t blocked)
{
	pthread_mutex_lock(&vcpu->busy);
	if (request == KVM_RUN)
		soft_runs(vcpu->has_mask ? vcpu->mask : blocked);
	long result = soft_calls.ioctl(vcpu->inode, request, argument, blocked);

	if (request == KVM_RUN) {
		soft_returns();
	} else if (request == KVM_SET_SIGNAL_MASK && !result) {
		vcpu->has_mask = argument != NULL;
		if (argument)
			memcpy(&vcpu->mask, ((struct kvm_signal_mask *)argument)->sigset,
			       sizeof(vcpu->mask));
	}
	pthread_mutex_unlock(&vcpu->busy);
	return result;
}

/*
 * Have Python do it. A VM and its vCPUs are the creating process's alone, as with KVM. BLOCKED are the
 * signals that are not merely held back.
 */
static long serve(struct soft_object *object, unsigned long request, void *argument, uint64_t blocked)
{
	if (object->kind != SOFT_SYSTEM && object->pid != getpid())
		return -EIO;
	if (object->kind == SOFT_VCPU)
		return serve_vcpu(object, request, argument, blocked);
	long result = soft_calls.ioctl(object->inode, request, argument, blocked);

	if (result >= 0 && object->kind == SOFT_SYSTEM && request == KVM_CREATE_VM)
		return soft_add(result, SOFT_VM);
	if (result >= 0 && object->kind == SOFT_VM && request == KVM_CREATE_VCPU)
		return soft_add(result, SOFT_VCPU);
	return result;
}

/* Do an ioctl of KVM's, and return its result or a negative errno. The shim calls this, too. */
PUBLIC long kvmsr_soft_ioctl(int fd, unsigned long request, void *argument)
{
	request = (uint32_t)request;
	if (_IOC_TYPE(request) == KVMIO) {
		uint64_t blocked = soft_hold();
		struct soft_object *object = soft_take(fd);
		long result = 0;

		if (object) {
			result = serve(object, request, argument, blocked);
			soft_put(object);
		}
		soft_let_go(blocked); /* handlers run, as at the end of a system call */
		if (object)
			return result;
	}
	if (!real_ioctl)
		find_real();
	int result = real_ioctl(fd, request, argument);

	return result < 0 ? -errno : result;
}

PUBLIC int ioctl(int fd, unsigned long request, ...)
{
	va_list list;

	va_start(list, request);
	void *argument = va_arg(list, void *);

	va_end(list);
	int before = errno;
	long result = kvmsr_soft_ioctl(fd, request, argument);

	errno = result < 0 ? -result : before;
	return result < 0 ? -1 : result;
}

PUBLIC int close(int fd)
{
	enum soft_kind kind;
	int before = errno, ours = soft_is_ours(fd, &kind);

	errno = before;
	if (!real_close)
		find_real();
	if (!ours)
		return real_close(fd);
	uint64_t blocked = soft_hold();
	int result = real_close(fd);

	soft_sweep();
	errno = before;
	soft_let_go(blocked);
	return result;
}
