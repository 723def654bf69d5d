/* SPDX-License-Identifier: Apache-2.0 */
/* The KVM ioctls that answering an access needs. */
#include <errno.h>
#include <linux/kvm.h>
#include <sys/syscall.h>

#include "core.h"

long (*kvmsr_served)(int fd, unsigned long request, void *argument);

/*
 * ioctl(2) as a system call. It returns a negative errno, and does not go through the C library's
 * ioctl: the shim interposes that, and would call itself.
 */
long kvmsr_ioctl(int fd, unsigned long request, void *argument)
{
	long result;

	if (__builtin_expect(kvmsr_served != 0, 0))
		return kvmsr_served(fd, request, argument);
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"((long)SYS_ioctl), "D"((long)fd), "S"(request), "d"(argument)
			 : "rcx", "r11", "memory");
	return result;
}

uint64_t kvmsr_rip(const struct kvmsr_cpu *cpu)
{
	struct kvm_regs regs;

	if (cpu->fd < 0 || kvmsr_ioctl(cpu->fd, KVM_GET_REGS, &regs) < 0)
		return cpu->rip;
	return regs.rip;
}

/* Read or write one MSR as the host does. Return 0 if KVM refuses. */
int kvmsr_one_msr(int fd, unsigned long request, uint32_t index, uint64_t *value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = { .head = { .nmsrs = 1 }, .entry = { .index = index, .data = *value } };

	if (fd < 0 || kvmsr_ioctl(fd, request, &msrs) != 1)
		return 0;
	*value = msrs.entry.data;
	return 1;
}
