/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim: preloaded into a VMM it stands between that and KVM, and answers the guest's MSR
 * accesses by the plan that the controller has put into shared memory. It must never make things
 * worse than they were without it: it prints nothing and ends nothing, and where something goes
 * wrong it lets everything through.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core.h"
#include "merge.h"

#define MAX_FDS 65536
#define SLICE_MS 10
#define PATIENCE 100 /* slices */
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

struct vm {
	struct vm *next;
	int fd;
	uint32_t number;
	uint32_t size; /* of a vCPU's mapping */
	int asked; /* the VMM has set a filter of its own, or reasons */
	struct kvmsr_wish wish;
};

struct vcpu {
	struct kvmsr_cpu cpu;
	struct vm *vm;
	uint32_t size;
	int pending; /* its access has been put to Python, and waits */
	uint64_t blocked; /* KVM_SET_SIGNAL_MASK: the signals blocked in KVM_RUN */
	int has_mask;
};

static struct vcpu *vcpus[MAX_FDS];
static struct vm *vms;
static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER;
static struct kvmsr_block *block; /* NULL: nothing is to be done */
static int controller, life = -1;
static int alone; /* the controller has died: nobody is asked any more */
static int (*real)(int, unsigned long, ...);

static int call(int fd, unsigned long request, void *argument)
{
	if (!real)
		real = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
	if (real)
		return real(fd, request, argument);
	long result = kvmsr_ioctl(fd, request, argument);

	if (result >= 0)
		return result;
	errno = -result;
	return -1;
}

/* Return the shared memory that FD holds; NULL: it holds something else. */
static struct kvmsr_block *block_in(int fd)
{
	struct stat stat;

	if (fd < 0 || fstat(fd, &stat) || !S_ISREG(stat.st_mode) ||
	    stat.st_size < (off_t)sizeof(struct kvmsr_block))
		return NULL;
	void *found = mmap(NULL, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (found == MAP_FAILED)
		return NULL;
	if (!kvmsr_block_check(found, stat.st_size))
		return found;
	munmap(found, stat.st_size);
	return NULL;
}

/* Find the shared memory, once: by the descriptor handed down, or the controller's own. */
static void attach(void)
{
	static int tried;
	const char *text = getenv("KVMSR_BLOCK"), *life_text = getenv("KVMSR_LIFE");
	char path[64];
	int number;

	if (tried || !text || sscanf(text, "%d:%d", &controller, &number) != 2)
		return;
	tried = 1;
	life = life_text ? atoi(life_text) : -1;
	block = block_in(number);
	if (block)
		return;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", controller, number);
	int fd = open(path, O_RDWR | O_CLOEXEC);

	block = block_in(fd);
	if (fd >= 0)
		close(fd);
}

static int controller_lives(void)
{
	struct pollfd end = { .fd = life };

	if (life >= 0 && poll(&end, 1, 0) >= 0 && !(end.revents & POLLNVAL))
		return !(end.revents & (POLLHUP | POLLERR));
	return !kill(controller, 0) || errno != ESRCH;
}

/* The plan and the VMM */

/* Give the VM what plan and VMM want to see, together. The lock is held. */
static int put_plan(struct vm *vm)
{
	static struct kvmsr_merged merged;
	const struct kvmsr_table *table = kvmsr_table_at(block, block->active);
	struct kvm_msr_filter plan;
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { table->reasons | vm->wish.reasons },
	};

	kvmsr_plan_filter(table, &plan);
	uint32_t lost = kvmsr_merge(&plan, &vm->wish.filter, &merged);

	if (lost > block->lost_ranges)
		block->lost_ranges = lost;
	if (call(vm->fd, KVM_ENABLE_CAP, &cap) || call(vm->fd, KVM_X86_SET_MSR_FILTER, &merged.filter)) {
		block->failed = errno;
		return -1;
	}
	return 0;
}

/* Waits for another policy, and gives it to the VMs. */
static void *follow(void *seen)
{
	uint32_t generation = (uintptr_t)seen;

	for (;;) {
		syscall(SYS_futex, &block->generation, FUTEX_WAIT, generation, NULL, NULL, 0);
		uint32_t now = __atomic_load_n(&block->generation, __ATOMIC_ACQUIRE);

		if (now == generation)
			continue;
		generation = now;
		pthread_mutex_lock(&changing);
		for (struct vm *vm = vms; vm; vm = vm->next)
			put_plan(vm);
		pthread_mutex_unlock(&changing);
		__atomic_store_n(&block->installed, generation, __ATOMIC_RELEASE);
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
	pthread_create(&thread, &attributes, follow, (void *)(uintptr_t)block->generation);
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

static void new_vm(int system, int fd)
{
	attach();
	if (!block || !__atomic_load_n(&block->generation, __ATOMIC_ACQUIRE) ||
	    !is_kvm(fd, "anon_inode:kvm-vm"))
		return;
	struct vm *vm = calloc(1, sizeof(*vm));
	int size = call(system, KVM_GET_VCPU_MMAP_SIZE, NULL);

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
	vm->number = __atomic_fetch_add(&block->n_vms, 1, __ATOMIC_ACQ_REL);
	vm->next = vms;
	vms = vm;
	put_plan(vm);
	begin_to_follow();
	pthread_mutex_unlock(&changing);
}

static void new_vcpu(int vm_fd, int fd, uint32_t id)
{
	if (!block || fd < 0 || fd >= MAX_FDS)
		return;
	pthread_mutex_lock(&changing);
	struct vm *vm = vm_of(vm_fd);
	struct vcpu *old = vcpus[fd], *vcpu = vm ? calloc(1, sizeof(*vcpu)) : NULL;
	struct kvmsr_vcpu *shared = vcpu ? kvmsr_take_vcpu(block, vm->number, id) : NULL;
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
			.block = block, .shared = shared, .run = page, .fd = fd, .vm_fd = vm_fd,
			.events = 1,
		};
	}
	__atomic_store_n(&vcpus[fd], vcpu, __ATOMIC_RELEASE);
	if (old) { /* the number is used again, so that vCPU is closed */
		munmap(old->cpu.run, old->size);
		free(old);
	}
	pthread_mutex_unlock(&changing);
}

/* The VMM asks for MSR exits itself. KVM has taken it, so it is right. */
static void new_reasons(int fd, const struct kvm_enable_cap *cap)
{
	pthread_mutex_lock(&changing);
	struct vm *vm = block ? vm_of(fd) : NULL;

	if (vm) {
		vm->wish.reasons = cap->args[0];
		put_plan(vm);
	}
	pthread_mutex_unlock(&changing);
}

static void new_filter(int fd, const struct kvm_msr_filter *filter)
{
	pthread_mutex_lock(&changing);
	struct vm *vm = block ? vm_of(fd) : NULL;

	if (vm) {
		struct kvmsr_wish *wish = &vm->wish;

		wish->filter = *filter;
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

/* The way of one access */

static const uint32_t kvm_reason[] = {
	[KVMSR_UNKNOWN] = KVM_MSR_EXIT_REASON_UNKNOWN,
	[KVMSR_INVALID] = KVM_MSR_EXIT_REASON_INVAL,
	[KVMSR_FILTER] = KVM_MSR_EXIT_REASON_FILTER,
};

/* For which reasons would the VMM have got this access? */
static uint8_t theirs(const struct kvmsr_wish *wish, const struct kvmsr_access *a)
{
	uint8_t reasons = 0;

	if (likely(!wish->reasons))
		return 0;
	for (int reason = 0; reason < 3; reason++)
		if (wish->reasons & kvm_reason[reason])
			reasons |= 1 << reason;
	if (reasons >> KVMSR_FILTER & 1 && !kvmsr_denies(&wish->filter, a->index, a->op))
		reasons &= ~(1 << KVMSR_FILTER);
	return reasons;
}

/* Has the VMM been asked to come out of KVM_RUN? */
static int kicked(const struct vcpu *vcpu)
{
	uint64_t signals = 0;

	if (__atomic_load_n(&vcpu->cpu.run->immediate_exit, __ATOMIC_RELAXED))
		return 1;
	if (!vcpu->has_mask || syscall(SYS_rt_sigpending, &signals, sizeof(signals)))
		return 0;
	return (signals & ~vcpu->blocked) != 0;
}

static void give_up(struct vcpu *vcpu)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;
	const struct kvmsr_table *table = kvmsr_enter(cpu);

	kvmsr_failed(cpu, table, &cpu->access, &cpu->outcome);
	kvmsr_leave(cpu);
	kvmsr_give_up(cpu);
}

/*
 * Wait for Python's answer; return 0 if it is there. Else the VMM is to get EINTR: the access stays
 * unanswered inside KVM, so the next KVM_RUN has to come here first. A signal that comes between
 * looking and waiting would be missed: so no wait is long.
 */
static int await(struct vcpu *vcpu, int slices, int patient)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;

	for (int i = 0; !slices || i < slices; i++) {
		int result = kvmsr_await_answer(cpu, SLICE_MS);

		if (!result)
			return 0;
		if (!controller_lives()) {
			alone = 1;
			give_up(vcpu);
			return 0;
		}
		if (!patient && (result == -EINTR || kicked(vcpu)))
			return -EINTR;
	}
	give_up(vcpu);
	return 0;
}

/* Answer the MSR exit in the page; 0: run on; 1: it is the VMM's; -EINTR: it has to wait. */
static int answer(struct vcpu *vcpu)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;

	if (!vcpu->pending) {
		kvmsr_take_access(cpu);
		cpu->access.theirs = theirs(&vcpu->vm->wish, &cpu->access);
		kvmsr_decide(cpu);
		if (cpu->outcome.verdict == KVMSR_THEIRS) {
			cpu->run->msr.reason = kvm_reason[cpu->access.reason];
			return 1;
		}
		if (cpu->outcome.verdict == KVMSR_UPCALL || cpu->outcome.verdict == KVMSR_STOP) {
			if (alone) {
				give_up(vcpu);
			} else {
				vcpu->pending = 1;
				kvmsr_ask(cpu);
			}
		}
	}
	if (vcpu->pending) {
		int result = await(vcpu, 0, 0);

		if (result)
			return result;
		vcpu->pending = 0;
	}
	kvmsr_answer(cpu);
	return 0;
}

static int failed(long error)
{
	errno = -error;
	return -1;
}

static __attribute__((noinline)) int run_on(struct vcpu *vcpu, int fd, void *argument)
{
	for (;;) {
		int result = answer(vcpu);

		if (result < 0)
			return failed(result);
		if (result)
			return 0;
		long left = kvmsr_ioctl(fd, KVM_RUN, argument);

		if (left < 0)
			return failed(left);
		if (!kvmsr_is_msr_exit(vcpu->cpu.run))
			return left;
	}
}

/*
 * The VMM is about to write the vCPU's state. An access that still waits in KVM would be finished
 * on top of the new state: finish it now.
 */
static void finish(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->cpu.run;
	uint8_t kick = run->immediate_exit;

	await(vcpu, PATIENCE, 1);
	vcpu->pending = 0;
	kvmsr_answer(&vcpu->cpu);
	run->immediate_exit = 1;
	kvmsr_ioctl(vcpu->cpu.fd, KVM_RUN, NULL);
	run->immediate_exit = kick;
}

/* What is rare: everything but KVM_RUN. */
static __attribute__((noinline)) int other(int fd, unsigned long request, void *argument)
{
	struct vcpu *vcpu = fd >= 0 && fd < MAX_FDS ? vcpus[fd] : NULL;

	switch (request) {
	case KVM_SET_REGS:
	case KVM_SET_SREGS:
	case KVM_SET_SREGS2:
	case KVM_SET_VCPU_EVENTS:
	case KVM_SET_MP_STATE:
	case KVM_SET_MSRS:
		if (vcpu && vcpu->pending)
			finish(vcpu);
		break;
	}
	int result = call(fd, request, argument);

	if (result < 0)
		return result;
	int before = errno;

	switch (request) {
	case KVM_CREATE_VM:
		new_vm(fd, result);
		break;
	case KVM_CREATE_VCPU:
		new_vcpu(fd, result, (uintptr_t)argument);
		break;
	case KVM_ENABLE_CAP:
		if (((struct kvm_enable_cap *)argument)->cap == KVM_CAP_X86_USER_SPACE_MSR)
			new_reasons(fd, argument);
		break;
	case KVM_X86_SET_MSR_FILTER:
		new_filter(fd, argument);
		break;
	case KVM_SET_SIGNAL_MASK:
		if (!vcpu)
			break;
		vcpu->has_mask = argument != NULL;
		if (argument)
			memcpy(&vcpu->blocked, ((struct kvm_signal_mask *)argument)->sigset, 8);
		break;
	}
	errno = before;
	return result;
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
	va_list list;

	va_start(list, request);
	void *argument = va_arg(list, void *);

	va_end(list);
	/* A request has 32 bits: some callers have them sign-extended. */
	if (unlikely((uint32_t)request != KVM_RUN))
		return other(fd, (uint32_t)request, argument);
	struct vcpu *vcpu = (unsigned int)fd < MAX_FDS ? vcpus[fd] : NULL;

	if (unlikely(!vcpu))
		return call(fd, request, argument);
	if (unlikely(vcpu->pending))
		return run_on(vcpu, fd, argument);
	long result = kvmsr_ioctl(fd, KVM_RUN, argument);

	if (unlikely(result < 0))
		return failed(result);
	if (unlikely(kvmsr_is_msr_exit(vcpu->cpu.run)))
		return run_on(vcpu, fd, argument);
	return result;
}
