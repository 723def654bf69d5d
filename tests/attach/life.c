/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VMM that does to KVM what programs do besides running a guest, and prints what came of it:
 *
 *     life alarm       SIGALRM during KVM_RUN, of a guest that loops
 *     life halted      the same, of a guest that sleeps in HLT
 *     life kicks       300 signals for a vCPU's thread
 *     life immediate   immediate_exit
 *     life mask        KVM_SET_SIGNAL_MASK
 *     life process     a signal for the process, while its first thread is in KVM_RUN
 *     life ignored     signals that nobody handles
 *     life cancel      pthread_cancel(3)
 *     life busy        an ioctl on a vCPU that runs
 *     life threads     four vCPUs of a VM, each with its thread, and two more VMs
 *     life fork        a child that uses the parent's VM, and one of its own
 *     life opens       1,000 times all descriptors
 *     life orders      descriptors and mappings that go in any order
 *     life device      what the file system says of the device
 *     life crash       ends by SIGSEGV
 */
#define _GNU_SOURCE
#include <dirent.h>
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
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 0x10000, KICKS = 300 };

/* jmp . */
static const uint8_t LOOPS[] = { 0xeb, 0xfe };
/* sti; 1: hlt; jmp 1b */
static const uint8_t SLEEPS[] = { 0xfb, 0xf4, 0xeb, 0xfd };
/* 1: mov $0x35, %ecx; rdmsr; out %al, $0xf4; jmp 1b */
static const uint8_t READS[] = {
	0x66, 0xb9, 0x35, 0, 0, 0, 0x0f, 0x32, 0xe6, 0xf4, 0xeb, 0xf4,
};

struct guest {
	int kvm, vm, vcpus[4];
	struct kvm_run *runs[4];
	uint8_t *memory;
};

static volatile sig_atomic_t handled;
static struct kvm_run *to_stop;

static int checked(int result, const char *what)
{
	if (result < 0)
		err(1, "%s", what);
	return result;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

static void handle(int number)
{
	(void)number;
	handled++;
	if (to_stop)
		to_stop->immediate_exit = 1;
}

static void on(int number)
{
	struct sigaction action = { .sa_handler = handle, .sa_flags = SA_RESTART };

	checked(sigaction(number, &action, NULL), "sigaction");
}

static struct kvm_run *map(const struct guest *guest, int vcpu)
{
	void *page = mmap(NULL, ioctl(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
			  MAP_SHARED, vcpu, 0);

	if (page == MAP_FAILED)
		err(1, "mmap");
	return page;
}

static void add_vcpu(struct guest *guest, int number)
{
	int vcpu = checked(ioctl(guest->vm, KVM_CREATE_VCPU, number), "KVM_CREATE_VCPU");
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_sregs sregs;

	checked(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	checked(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	checked(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	checked(ioctl(vcpu, KVM_SET_MP_STATE, &state), "KVM_SET_MP_STATE");
	guest->vcpus[number] = vcpu;
	guest->runs[number] = map(guest, vcpu);
}

static struct guest make(const uint8_t *code, size_t size, int vcpus, int irqchip)
{
	struct guest guest = { .kvm = checked(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm") };

	guest.vm = checked(ioctl(guest.kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	guest.memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {
		.memory_size = SIZE, .userspace_addr = (uintptr_t)guest.memory,
	};
	memcpy(guest.memory, code, size);
	checked(ioctl(guest.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	if (irqchip)
		checked(ioctl(guest.vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	for (int i = 0; i < vcpus; i++)
		add_vcpu(&guest, i);
	return guest;
}

#define MAKE(code, vcpus, irqchip) make(code, sizeof(code), vcpus, irqchip)

/* Run until the guest's OUT; return what RDMSR gave. */
static uint64_t read_msr(const struct guest *guest, int number)
{
	struct kvm_regs regs;

	checked(ioctl(guest->vcpus[number], KVM_RUN, 0), "KVM_RUN");
	if (guest->runs[number]->exit_reason != KVM_EXIT_IO)
		errx(1, "exit %u", guest->runs[number]->exit_reason);
	checked(ioctl(guest->vcpus[number], KVM_GET_REGS, &regs), "KVM_GET_REGS");
	return regs.rax | regs.rdx << 32;
}

/* KVM_RUN must fail with EINTR. */
static void interrupted(const struct guest *guest)
{
	if (ioctl(guest->vcpus[0], KVM_RUN, 0) >= 0 || errno != EINTR)
		err(1, "KVM_RUN with exit %u, instead of EINTR,", guest->runs[0]->exit_reason);
}

static void alarms(struct guest guest)
{
	struct itimerval soon = { .it_value = { .tv_usec = 100000 } };
	double begin = now();

	on(SIGALRM);
	setitimer(ITIMER_REAL, &soon, NULL);
	interrupted(&guest);
	printf("handled %d, exit %u, %s\n", handled, guest.runs[0]->exit_reason,
	       now() - begin < 1 ? "soon" : "late");
}

static pthread_t runner;

static void *kick(void *kicks)
{
	for (int i = 0; i < KICKS; i++) {
		usleep(200);
		pthread_kill(runner, SIGUSR1);
		while (handled <= i)
			sched_yield();
	}
	return kicks;
}

static void kicks(void)
{
	struct guest guest = MAKE(LOOPS, 1, 0);
	pthread_t kicker;
	int eintrs = 0;

	on(SIGUSR1);
	runner = pthread_self();
	to_stop = guest.runs[0];
	pthread_create(&kicker, NULL, kick, NULL);
	while (handled < KICKS) {
		interrupted(&guest);
		guest.runs[0]->immediate_exit = 0;
		eintrs++;
	}
	pthread_join(kicker, NULL);
	printf("handled %d, %s\n", handled, eintrs <= KICKS ? "each ended a KVM_RUN" : "too many");
}

static void immediate(void)
{
	struct guest guest = MAKE(READS, 1, 0);

	guest.runs[0]->immediate_exit = 1;
	interrupted(&guest);
	guest.runs[0]->immediate_exit = 0;
	printf("then %#lx\n", read_msr(&guest, 0));
}

static void set_mask(const struct guest *guest, uint64_t blocked)
{
	struct {
		struct kvm_signal_mask head;
		uint64_t mask;
	} __attribute__((packed)) mask = { { .len = 8 }, blocked };

	checked(ioctl(guest->vcpus[0], KVM_SET_SIGNAL_MASK, &mask), "KVM_SET_SIGNAL_MASK");
}

static void mask(void)
{
	struct guest guest = MAKE(READS, 1, 0);
	sigset_t usr1;

	on(SIGUSR1);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	/* Blocked outside only: it ends KVM_RUN, and stays pending. */
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	set_mask(&guest, 0);
	pthread_kill(pthread_self(), SIGUSR1);
	interrupted(&guest);
	int eaten = sigwaitinfo(&usr1, NULL);

	printf("handled %d, eaten %d, then %#lx\n", handled, eaten == SIGUSR1, read_msr(&guest, 0));
	/* Blocked in KVM_RUN, and outside: neither ends it nor is handled. */
	set_mask(&guest, 1 << (SIGUSR1 - 1));
	pthread_kill(pthread_self(), SIGUSR1);
	printf("handled %d, then %#lx", handled, read_msr(&guest, 0));
	pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
	printf(", handled %d\n", handled);
}

static pid_t handler_of;

static void note_thread(int number)
{
	(void)number;
	handled++;
	handler_of = gettid();
}

static void *wait_for_ever(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void process(void)
{
	struct guest guest = MAKE(LOOPS, 1, 0);
	struct sigaction action = { .sa_handler = note_thread }, former;
	pthread_t another;

	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGUSR1, NULL, &former);
	pthread_create(&another, NULL, wait_for_ever, NULL); /* blocks no signal */
	pid_t child = fork();

	while (!child) { /* again and again: one may come between two KVM_RUN */
		usleep(100000);
		kill(getppid(), SIGUSR1);
	}
	for (int i = 0; i < 3; i++) {
		interrupted(&guest);
		printf("%s", handler_of == getpid() ? "first " : "another ");
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("handled %s, %s\n", handled < 3 ? "too few" : "all",
	       former.sa_handler == note_thread ? "own" : "alien");
}

static void ignored(void)
{
	struct guest guest = MAKE(LOOPS, 1, 0);
	struct itimerval soon = { .it_value = { .tv_usec = 200000 } };
	pid_t child = fork();

	if (!child) {
		usleep(50000);
		_exit(0);
	}
	signal(SIGUSR2, SIG_IGN);
	on(SIGALRM);
	setitimer(ITIMER_REAL, &soon, NULL);
	raise(SIGUSR2);
	double begin = now();

	interrupted(&guest); /* by SIGALRM, and not by the child's end before it */
	printf("handled %d, %s\n", handled, now() - begin > 0.15 ? "at its time" : "too early");
	waitpid(child, NULL, 0);
}

static void *run_for_ever(void *guest)
{
	const struct guest *g = guest;

	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	for (;;)
		ioctl(g->vcpus[0], KVM_RUN, 0);
	return NULL;
}

static void cancel(void)
{
	struct guest guests[] = { MAKE(LOOPS, 1, 0), MAKE(SLEEPS, 1, 1), MAKE(READS, 1, 0) };
	int cancelled = 0;

	for (int i = 0; i < 15; i++) {
		pthread_t thread;
		void *result;

		pthread_create(&thread, NULL, run_for_ever, &guests[i % 3]);
		usleep(10000 + 777 * i);
		pthread_cancel(thread);
		pthread_join(thread, &result);
		cancelled += result == PTHREAD_CANCELED;
	}
	struct guest another = MAKE(READS, 1, 0);

	printf("cancelled %d, then %#lx\n", cancelled, read_msr(&another, 0));
}

static void *kick_once(void *unused)
{
	usleep(300000);
	pthread_kill(runner, SIGUSR1);
	return unused;
}

static void *run_once(void *guest)
{
	interrupted(guest);
	return NULL;
}

/* The vCPU's mutex: the ioctl waits for KVM_RUN's end. */
static void busy(void)
{
	struct guest guest = MAKE(LOOPS, 1, 0);
	struct kvm_regs regs;
	pthread_t kicker;

	on(SIGUSR1);
	pthread_create(&runner, NULL, run_once, &guest);
	pthread_create(&kicker, NULL, kick_once, NULL);
	usleep(100000);
	double begin = now();

	checked(ioctl(guest.vcpus[0], KVM_GET_REGS, &regs), "KVM_GET_REGS");
	printf("%s\n", now() - begin > 0.1 ? "waited" : "did not wait");
	pthread_join(runner, NULL);
	pthread_join(kicker, NULL);
}

struct job {
	struct guest *guest;
	int number;
	uint64_t sum;
};

static void *reader(void *argument)
{
	struct job *job = argument;

	for (int i = 0; i < 200; i++)
		job->sum += read_msr(job->guest, job->number);
	return NULL;
}

static void threads(void)
{
	struct guest guests[] = { MAKE(READS, 4, 0), MAKE(READS, 1, 0), MAKE(READS, 1, 0) };
	struct job jobs[6];
	pthread_t all[6];
	uint64_t sum = 0;

	for (int i = 0; i < 6; i++) {
		jobs[i] = (struct job){ &guests[i < 4 ? 0 : i - 3], i < 4 ? i : 0, 0 };
		pthread_create(&all[i], NULL, reader, &jobs[i]);
	}
	for (int i = 0; i < 6; i++) {
		pthread_join(all[i], NULL);
		sum += jobs[i].sum;
	}
	printf("1200 reads, sum %#lx\n", sum);
}

static void try_in_child(struct guest *guest)
{
	struct kvm_regs regs;
	int refused = ioctl(guest->vcpus[0], KVM_GET_REGS, &regs) < 0 && errno == EIO;

	refused += ioctl(guest->vm, KVM_CREATE_VCPU, 1) < 0 && errno == EIO;
	refused += ioctl(guest->kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION;
	close(guest->vcpus[0]);
	close(guest->vm);
	struct guest own = MAKE(READS, 1, 0);

	printf("child: %d of 3, own %#lx\n", refused, read_msr(&own, 0));
	fflush(stdout);
	_exit(0);
}

static void forks(void)
{
	struct guest guest = MAKE(READS, 1, 0), other = MAKE(READS, 2, 0);
	struct job jobs[] = { { &other, 0, 0 }, { &other, 1, 0 } };
	pthread_t both[2];

	read_msr(&guest, 0);
	for (int i = 0; i < 2; i++) /* whatever locks they hold at fork() */
		pthread_create(&both[i], NULL, reader, &jobs[i]);
	for (int i = 0; i < 5; i++) {
		pid_t child = checked(fork(), "fork");
		int status;

		if (!child)
			try_in_child(&guest);
		checked(waitpid(child, &status, 0), "waitpid");
		if (status)
			errx(1, "the child ended with %#x", status);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(both[i], NULL);
	printf("parent: %#lx\n", read_msr(&guest, 0));
}

static int descriptors(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int count = 0;

	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

/* In KiB. */
static long resident(void)
{
	char text[128];
	long pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	if (!file || !fgets(text, sizeof(text), file))
		err(1, "/proc/self/statm");
	fclose(file);
	sscanf(text, "%*d %ld", &pages);
	return pages * 4;
}

static void drop(struct guest *guest, int order)
{
	int size = ioctl(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	for (int i = 0; i < 4; i++) {
		switch (i ^ order) {
		case 0:
			close(guest->kvm);
			break;
		case 1:
			close(guest->vm);
			break;
		case 2:
			close(guest->vcpus[0]);
			break;
		default:
			munmap(guest->runs[0], size);
		}
	}
	munmap(guest->memory, SIZE);
}

static void opens(void)
{
	int before = 0;
	long memory = 0;

	for (int i = 0; i < 1000; i++) {
		struct guest guest = MAKE(READS, 1, 0);

		if (i % 10 == 0)
			read_msr(&guest, 0);
		drop(&guest, i % 4);
		if (i == 100) {
			before = descriptors();
			memory = resident();
		}
	}
	long more = resident() - memory;

	printf("%d descriptors more, %s\n", descriptors() - before,
	       more < 20000 ? "little memory" : "much memory");
	fprintf(stderr, "%ld KiB more\n", more);
}

static void orders(void)
{
	struct guest guest = MAKE(READS, 2, 0);
	int again = checked(dup(guest.vcpus[0]), "dup"), size = ioctl(guest.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	close(guest.kvm);
	close(guest.vm); /* its vCPUs keep it */
	printf("%#lx", read_msr(&guest, 0));
	munmap(guest.runs[0], size);
	close(guest.vcpus[0]);
	guest.kvm = checked(open("/dev//../dev/./kvm", O_RDWR), "open");
	guest.vcpus[0] = checked(dup2(again, 100), "dup2");
	guest.runs[0] = map(&guest, again);
	close(again);
	printf(" %#lx", read_msr(&guest, 0));
	close(100);
	printf(" %s", ioctl(100, KVM_RUN, 0) < 0 && errno == EBADF ? "closed" : "open");
	printf(" %#lx\n", read_msr(&guest, 1));
}

static void device(void)
{
	struct stat by_path, by_fd;
	int fd = checked(open("/dev/kvm", O_RDONLY), "open");

	checked(stat("/dev/kvm", &by_path), "stat");
	checked(fstat(fd, &by_fd), "fstat");
	printf("%d:%d %s %s access %d %d cloexec %d\n", major(by_path.st_rdev), minor(by_path.st_rdev),
	       S_ISCHR(by_path.st_mode) ? "character" : "other",
	       by_fd.st_rdev == by_path.st_rdev ? "same" : "different", access("/dev/kvm", R_OK | W_OK),
	       access("/dev/kvm", X_OK), fcntl(fd, F_GETFD) & FD_CLOEXEC);
	printf("%d\n", ioctl(fd, KVM_GET_API_VERSION, 0));
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	/* Whatever goes wrong, it does not outlast who has started it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!strcmp(what, "alarm"))
		alarms(MAKE(LOOPS, 1, 0));
	else if (!strcmp(what, "halted"))
		alarms(MAKE(SLEEPS, 1, 1));
	else if (!strcmp(what, "kicks"))
		kicks();
	else if (!strcmp(what, "immediate"))
		immediate();
	else if (!strcmp(what, "mask"))
		mask();
	else if (!strcmp(what, "process"))
		process();
	else if (!strcmp(what, "ignored"))
		ignored();
	else if (!strcmp(what, "cancel"))
		cancel();
	else if (!strcmp(what, "busy"))
		busy();
	else if (!strcmp(what, "threads"))
		threads();
	else if (!strcmp(what, "fork"))
		forks();
	else if (!strcmp(what, "opens"))
		opens();
	else if (!strcmp(what, "orders"))
		orders();
	else if (!strcmp(what, "device"))
		device();
	else if (!strcmp(what, "crash")) {
		struct guest guest = MAKE(READS, 1, 0);

		read_msr(&guest, 0);
		raise(SIGSEGV);
	} else
		errx(2, "what?");
	return 0;
}
