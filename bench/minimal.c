/* SPDX-License-Identifier: Apache-2.0
 *
 * The least that a VMM can do for an exit: answer MSR accesses in a C loop, and ignore ports. Runs an
 * image COUNT times around its loop, until it writes to port 0xf4. Prints the nanoseconds of one exit,
 * and when the first one came, by CLOCK_MONOTONIC.
 *
 *     minimal IMAGE COUNT
 */

#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { MEMORY = 16 << 20, START = 0x7c00, COUNT_AT = 4 };

static int checked(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(2, "usage: minimal IMAGE COUNT");
	uint32_t count = strtoul(argv[2], NULL, 0);
	uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	FILE *image = fopen(argv[1], "rb");
	if (memory == MAP_FAILED || !image || !fread(memory + START, 1, 4096, image))
		err(1, "%s", argv[1]);
	memcpy(memory + START + COUNT_AT, &count, sizeof(count));

	int kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory,
	};
	checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	/* The same interrupt controllers as kvmsr's machine has: they cost a little at each exit. */
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	checked(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	checked(ioctl(vm, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
	int vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap");
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_UNKNOWN },
	};
	checked(ioctl(vm, KVM_ENABLE_CAP, &cap), "KVM_ENABLE_CAP");
	struct kvm_sregs sregs;
	checked(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	checked(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = START, .rsp = START, .rflags = 2 };
	checked(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

	double begun = now(), first = 0;
	do {
		checked(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		if (!first)
			first = now();
		if (run->exit_reason == KVM_EXIT_X86_RDMSR)
			run->msr.data = 0x20004;
		else if (run->exit_reason != KVM_EXIT_IO)
			errx(1, "exit %u", run->exit_reason);
	} while (run->exit_reason != KVM_EXIT_IO || run->io.port != 0xf4);
	printf("%.1f %.0f\n", (now() - begun) / count, first);
	return 0;
}
