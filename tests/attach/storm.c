/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small VMM with two vCPUs, each in a thread of its own, which run ROUNDS rounds of storm.S. It makes
 * the file RESULT first, and at the end writes what the guests have counted into it, a line of numbers
 * for each vCPU: struct area, and how often the vCPU was kicked. With "storm", another thread kicks the vCPUs all the
 * time, by a signal whose handler sets immediate_exit; with "stay", the VMM does not end.
 *
 *     storm IMAGE ROUNDS RESULT [storm|stay]
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

enum { MEMORY = 1 << 20, START = 0x7c00, VCPUS = 2, AREAS = 0x10000, AREA = 0x1000, NUMBERS = 16 };

struct area {
	uint32_t numbers[NUMBERS]; /* as in storm.S, beginning with the rounds */
};

struct vcpu {
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	unsigned long kicks;
	int ended;
};

static struct vcpu vcpus[VCPUS];
static uint8_t *memory;
static _Thread_local struct vcpu *own;

static int checked(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static void kick(int number)
{
	(void)number;
	if (own)
		own->run->immediate_exit = 1;
}

static void run(struct vcpu *vcpu)
{
	for (;;) {
		if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				err(1, "KVM_RUN");
			/* With immediate_exit KVM leaves it as it is, before the first entry at 0. */
			if (vcpu->run->exit_reason != KVM_EXIT_INTR &&
			    vcpu->run->exit_reason != KVM_EXIT_UNKNOWN)
				errx(1, "EINTR with exit %u", vcpu->run->exit_reason);
			vcpu->kicks++;
			vcpu->run->immediate_exit = 0;
		} else if (vcpu->run->exit_reason == KVM_EXIT_IO) {
			return;
		} else {
			errx(1, "exit %u", vcpu->run->exit_reason);
		}
	}
}

static void *thread(void *vcpu)
{
	own = vcpu;
	run(vcpu);
	__atomic_store_n(&own->ended, 1, __ATOMIC_RELEASE);
	pause(); /* until the process ends */
	return NULL;
}

static void make_vcpu(int kvm, int vm, int id, uint32_t rounds)
{
	struct vcpu *vcpu = &vcpus[id];
	struct area *area = (struct area *)(memory + AREAS + id * AREA);
	int size = checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");

	area->numbers[0] = rounds;
	vcpu->fd = checked(ioctl(vm, KVM_CREATE_VCPU, id), "KVM_CREATE_VCPU");
	vcpu->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED)
		err(1, "mmap");
	struct kvm_sregs sregs;
	checked(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ds.base = sregs.ss.base = AREAS + id * AREA;
	sregs.ds.selector = sregs.ss.selector = sregs.ds.base >> 4;
	checked(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = START, .rsp = AREA - 16, .rflags = 2 };
	checked(ioctl(vcpu->fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static int all_ended(void)
{
	for (int id = 0; id < VCPUS; id++)
		if (!__atomic_load_n(&vcpus[id].ended, __ATOMIC_ACQUIRE))
			return 0;
	return 1;
}

static void report(FILE *file)
{
	for (int id = 0; id < VCPUS; id++) {
		struct area *area = (struct area *)(memory + AREAS + id * AREA);

		for (int i = 0; i < NUMBERS; i++)
			fprintf(file, "%u ", area->numbers[i]);
		fprintf(file, "%lu\n", vcpus[id].kicks);
	}
	fclose(file);
}

int main(int argc, char **argv)
{
	if (argc < 4)
		errx(2, "usage: storm IMAGE ROUNDS RESULT [storm|stay]");
	const char *how = argc > 4 ? argv[4] : "";
	FILE *image = fopen(argv[1], "rb"), *result = fopen(argv[3], "w");

	if (!result)
		err(1, "%s", argv[3]);
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || !image || !fread(memory + START, 1, 4096, image))
		err(1, "%s", argv[1]);
	int kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory,
	};
	checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	sigaction(SIGUSR1, &(struct sigaction){ .sa_handler = kick }, NULL);
	for (int id = 0; id < VCPUS; id++)
		make_vcpu(kvm, vm, id, strtoul(argv[2], NULL, 0));
	for (int id = 0; id < VCPUS; id++)
		pthread_create(&vcpus[id].thread, NULL, thread, &vcpus[id]);
	while (!all_ended()) {
		for (int id = 0; id < VCPUS && !strcmp(how, "storm"); id++)
			pthread_kill(vcpus[id].thread, SIGUSR1);
		usleep(strcmp(how, "storm") ? 2000 : 100);
	}
	report(result);
	if (!strcmp(how, "stay"))
		pause();
	return 0;
}
