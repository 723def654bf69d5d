/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small VMM that does not know MSR exits. It runs the loop image with COUNT accesses and prints
 * the final EAX. With "storm", a thread kicks the vCPU all the time, as VMMs do: by a signal whose
 * handler sets immediate_exit. With "deny", a filter denies MSR 0x35 and the VMM does not ask for
 * the exit; with "watch", it asks for the exit and answers 0x99. With "high", the vCPU is run
 * through a duplicate of its descriptor with a large number; with "many", it is run after 1,500
 * other vCPUs have come and gone; with "crowd", while 1,024 others exist; with "vms", while 128 other
 * VMs exist; with "fork", after a child has tried to run it and has closed everything. With "full",
 * the VMM's own filter has as many ranges as there can be. With "moved", the VM's first descriptor is
 * closed, and its filter is set through another one. With "confined", the vCPU's thread may not use
 * process_vm_readv(2): it would be killed.
 *
 *     vmm IMAGE COUNT [HOW]
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
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

/* Deny reads and writes of MSR 0x35. */
static void deny(int vm)
{
	static uint8_t none;
	struct kvm_msr_filter filter = {
		.ranges = { { .flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
			      .nmsrs = 1, .base = 0x35, .bitmap = &none } },
	};
	checked(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter), "KVM_X86_SET_MSR_FILTER");
}

/* Use all ranges that a filter can have, for MSRs that nobody accesses. */
static void fill(int vm)
{
	static uint8_t all = 0xff;
	struct kvm_msr_filter filter = { 0 };

	for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
		filter.ranges[i] = (struct kvm_msr_filter_range){
			.flags = KVM_MSR_FILTER_READ, .nmsrs = 1, .base = 0x1000 + i,
			.bitmap = &all,
		};
	checked(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter), "KVM_X86_SET_MSR_FILTER");
}

/* Make VMs with so many vCPUs each. */
static void others(int kvm, int vms, int vcpus, int stay)
{
	for (int i = 0; i < vms; i++) {
		int other = checked(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");

		for (int id = 0; id < vcpus; id++) {
			int vcpu = checked(ioctl(other, KVM_CREATE_VCPU, id), "KVM_CREATE_VCPU");

			if (!stay)
				close(vcpu);
		}
		if (!stay)
			close(other);
	}
}

/* KVM refuses a VM's descriptors in another process than that which created it. */
static void try_in_child(int vm, int vcpu)
{
	pid_t child = checked(fork(), "fork");
	int status;

	if (!child) {
		int good = ioctl(vcpu, KVM_RUN, 0) < 0 && errno == EIO;

		close(vcpu);
		close(vm);
		_exit(!good);
	}
	checked(waitpid(child, &status, 0), "waitpid");
	if (status)
		errx(1, "the child ended with %#x", status);
}

static void confine(void)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { sizeof(program) / sizeof(*program), program };

	checked(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
	checked(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), "PR_SET_SECCOMP");
}

static void watch(int vm)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_FILTER },
	};
	checked(ioctl(vm, KVM_ENABLE_CAP, &cap), "KVM_ENABLE_CAP");
}

int main(int argc, char **argv)
{
	if (argc < 3)
		errx(2, "usage: vmm IMAGE COUNT [HOW]");
	const char *how = argc > 3 ? argv[3] : "";
	uint32_t count = strtoul(argv[2], NULL, 0);
	uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	FILE *image = fopen(argv[1], "rb");
	if (memory == MAP_FAILED || !image || !fread(memory + START, 1, 65536, image))
		err(1, "%s", argv[1]);
	memcpy(memory + START + COUNT_AT, &count, sizeof(count));

	int kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	if (!strcmp(how, "many"))
		others(kvm, 500, 3, 0);
	if (!strcmp(how, "crowd"))
		others(kvm, 16, 64, 1);
	if (!strcmp(how, "vms"))
		others(kvm, 128, 0, 1);
	int vm = checked(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	if (!strcmp(how, "moved")) {
		int moved = checked(fcntl(vm, F_DUPFD_CLOEXEC, 900), "F_DUPFD");

		close(vm);
		vm = moved;
		deny(vm);
	}
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY, .userspace_addr = (uintptr_t)memory,
	};
	checked(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	/* The vCPU that runs reuses the descriptor number of one that was closed. */
	close(checked(ioctl(vm, KVM_CREATE_VCPU, 1), "KVM_CREATE_VCPU"));
	int vcpu = checked(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	int size = checked(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap");
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[256];
	} cpuid = { .head = { .nent = 256 } };

	checked(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
	checked(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
	struct kvm_sregs sregs;
	checked(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	checked(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = START, .rsp = START, .rflags = 2 };
	checked(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");

	if (!strcmp(how, "storm")) {
		struct sigaction action = { .sa_handler = kick };
		pthread_t thread;

		sigaction(SIGUSR1, &action, NULL);
		runner = pthread_self();
		pthread_create(&thread, NULL, storm, NULL);
	}
	if (!strcmp(how, "deny") || !strcmp(how, "watch"))
		deny(vm);
	if (!strcmp(how, "watch"))
		watch(vm);
	if (!strcmp(how, "high")) {
		struct rlimit limit, more = { 1 << 17, 1 << 17 };

		checked(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
		if (setrlimit(RLIMIT_NOFILE, &more)) /* without the right to raise it */
			more.rlim_cur = limit.rlim_cur;
		int high = checked(fcntl(vcpu, F_DUPFD_CLOEXEC, more.rlim_cur - 7), "F_DUPFD");
		close(vcpu);
		vcpu = checked(dup2(high, high + 1), "dup2");
		close(high);
	}
	if (!strcmp(how, "full"))
		fill(vm);
	if (!strcmp(how, "fork"))
		try_in_child(vm, vcpu);
	if (!strcmp(how, "confined"))
		confine();
	unsigned long kicks = 0;
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno != EINTR)
				err(1, "KVM_RUN");
			/* With immediate_exit KVM leaves it as it is, before the first entry at 0. */
			if (run->exit_reason != KVM_EXIT_INTR && run->exit_reason != KVM_EXIT_UNKNOWN)
				errx(1, "EINTR with exit %u", run->exit_reason);
			kicks++;
			run->immediate_exit = 0;
		} else if (run->exit_reason == KVM_EXIT_IO) {
			break;
		} else if (run->exit_reason == KVM_EXIT_X86_RDMSR && !strcmp(how, "watch")) {
			run->msr.data = 0x99;
			run->msr.error = 0;
		} else {
			errx(1, "exit %u", run->exit_reason);
		}
	}
	checked(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	printf("%llu %lu\n", regs.rax, kicks);
	return 7;
}
