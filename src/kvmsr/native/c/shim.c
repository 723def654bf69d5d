/* SPDX-License-Identifier: Apache-2.0 */
/* The ioctl that is interposed between a VMM and KVM. */
#include <errno.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "shim.h"

#ifndef KVM_SET_USER_MEMORY_REGION2 /* its structure begins as that of the other request */
#define KVM_SET_USER_MEMORY_REGION2 0x40a0ae49u
#endif

/* Handle any request but KVM_RUN; these are rare. */
static __attribute__((noinline)) int other(int fd, unsigned long request, void *argument)
{
	const struct descriptor *d = kvmsr_descriptor(fd);
	struct vcpu *vcpu = d ? d->vcpu : NULL;

	switch (request) {
	case KVM_SET_REGS:
	case KVM_SET_SREGS:
	case KVM_SET_SREGS2:
	case KVM_SET_VCPU_EVENTS:
	case KVM_SET_MP_STATE:
	case KVM_SET_MSRS:
		if (vcpu && vcpu->pending)
			kvmsr_finish(vcpu);
		break;
	}
	int result = kvmsr_call(fd, request, argument);

	if (result < 0)
		return result;
	int before = errno, refused = 0;

	switch (request) {
	case KVM_CREATE_VM:
		refused = kvmsr_new_vm(fd, result);
		break;
	case KVM_CREATE_VCPU:
		refused = kvmsr_new_vcpu(fd, result, (uintptr_t)argument);
		break;
	case KVM_ENABLE_CAP:
		if (((struct kvm_enable_cap *)argument)->cap == KVM_CAP_X86_USER_SPACE_MSR)
			kvmsr_new_reasons(fd, argument);
		break;
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_USER_MEMORY_REGION2:
		kvmsr_new_memory(fd, argument);
		break;
	case KVM_X86_SET_MSR_FILTER:
		kvmsr_new_filter(fd, argument);
		break;
	case KVM_SET_SIGNAL_MASK:
		if (vcpu)
			vcpu->has_mask = argument != NULL;
		break;
	default:
		if (vcpu)
			kvmsr_new_state(vcpu, request, argument);
	}
	if (refused) {
		close(result);
		return failed(refused);
	}
	errno = before;
	return result;
}

static inline int run(struct vcpu *vcpu, int fd, void *argument)
{
	if (unlikely(vcpu->vm->generation != kvmsr_generation())) {
		int refused = kvmsr_renew(vcpu->vm);

		if (refused)
			return failed(refused);
	}
	if (unlikely(vcpu->touched))
		kvmsr_about_to_run(vcpu);
	if (unlikely(vcpu->pending))
		return kvmsr_run_on(vcpu, fd, argument);
	long result = kvmsr_ioctl(fd, KVM_RUN, argument);

	if (unlikely(result < 0))
		return failed(result);
	if (unlikely(kvmsr_is_msr_exit(vcpu->cpu.run)))
		return kvmsr_run_on(vcpu, fd, argument);
	return result;
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
	va_list list;

	va_start(list, request);
	void *argument = va_arg(list, void *);

	va_end(list);
	/* A request has 32 bits, and some callers sign-extend them. */
	if (unlikely((uint32_t)request != KVM_RUN))
		return other(fd, (uint32_t)request, argument);
	const struct descriptor *d = kvmsr_descriptor(fd);
	struct vcpu *vcpu = likely(d != NULL) ? __atomic_load_n(&d->vcpu, __ATOMIC_ACQUIRE) : NULL;

	if (unlikely(!vcpu))
		return kvmsr_call(fd, request, argument);
	__atomic_store_n(&vcpu->running, 1, __ATOMIC_RELAXED);
	int result = run(vcpu, fd, argument);

	__atomic_store_n(&vcpu->running, 0, __ATOMIC_RELEASE);
	if (unlikely(__atomic_load_n(&vcpu->closed, __ATOMIC_ACQUIRE))) {
		pthread_mutex_lock(&kvmsr_changing);
		kvmsr_retire(vcpu);
		pthread_mutex_unlock(&kvmsr_changing);
	}
	return result;
}
