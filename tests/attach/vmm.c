/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small KVM user that knows nothing of MSR exits: runs the loop image with COUNT accesses and
 * prints what EAX holds in the end. With STORM a thread kicks the vCPU all the time, as VMMs do it:
 * by a signal whose handler sets immediate_exit.
 *
 *     vmm IMAGE COUNT [STORM]
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MEMORY = 16 << 20, START = 0x7c00, COUNT_AT = 4 };

static struct kvm_run *run;
static pthread_t runner;

static int checked(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void kick(int number)
{
	(void)number;
	run->immediate_exit = 1;
}

static void *storm(void *unused)
{
	for (;;) {
		pthread_kill(runner, SIGUSR1);
		usleep(50);
	}
	return unused;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		errx(2, "usage: vmm IMAGE COUNT [STORM]");
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
	/* A first vCPU's number is used again by the one that runs. */
	close(checked(ioctl(vm, KVM_CREATE_VCPU, 1), "KVM_CREATE_VCPU"));
	int vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap");
	struct kvm_sregs sregs;
	checked(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	checked(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = START, .rsp = START, .rflags = 2 };
	checked(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

	if (argc > 3) {
		struct sigaction action = { .sa_handler = kick };
		pthread_t thread;

		sigaction(SIGUSR1, &action, NULL);
		runner = pthread_self();
		pthread_create(&thread, NULL, storm, NULL);
	}
	unsigned long kicks = 0;
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				err(1, "KVM_RUN");
			kicks++;
			run->immediate_exit = 0;
		} else if (run->exit_reason == KVM_EXIT_IO) {
			break;
		} else {
			errx(1, "exit %u", run->exit_reason);
		}
	}
	checked(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	printf("%llu %lu\n", regs.rax, kicks);
	return 7;
}
