// SPDX-License-Identifier: Apache-2.0
/*
 * What user space does, and what comes of it, as lines that are the same on every sound machine.
 *
 *      work            all of it
 *      work rdmsr N    read MSR N of CPU 0 through /dev/cpu/0/msr
 *      work wrmsr N V  write it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void die(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

/* Processes */

static void processes(const char *self)
{
	int ends[2], status, left = 0;
	char text[64] = "";
	volatile int private = 1;

	for (int i = 0; i < 20; i++)
		if (fork() == 0)
			_exit(i);
	while (wait(&status) > 0)
		left += WEXITSTATUS(status);
	printf("20 children exit with %d in all\n", left);

	if (pipe(ends))
		die("pipe");
	fflush(stdout);
	if (fork() == 0) {
		private = 2;
		dup2(ends[1], 1);
		execl(self, self, "child", "of", "exec", (char *)NULL);
		_exit(127);
	}
	close(ends[1]);
	wait(&status);
	if (read(ends[0], text, sizeof(text) - 1) < 0)
		die("read");
	printf("exec says \"%s\", exits with %d; its memory was its own: %d\n", text,
	       WEXITSTATUS(status), private == 1);
	if (fork() == 0) {
		raise(SIGKILL);
		_exit(0);
	}
	wait(&status);
	printf("a killed child: signal %d\n", WTERMSIG(status));
}

/* Signals */

static sigjmp_buf back;
static volatile siginfo_t last;

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	last = *info;
	siglongjmp(back, 1);
}

static void catch(int signal)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	sigaction(signal, &action, NULL);
}

static void shown(const char *what)
{
	printf("%s: signal %d, code %d\n", what, last.si_signo, last.si_code);
}

#define TRY(what, statement)                                   \
	do {                                                   \
		if (sigsetjmp(back, 1) == 0) {                 \
			statement;                             \
			printf("%s: nothing happened\n", what);\
		} else {                                       \
			shown(what);                           \
		}                                              \
	} while (0)

static volatile sig_atomic_t alarms;
static volatile uint64_t rounds;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
}

static void signals(void)
{
	stack_t stack = { .ss_sp = malloc(65536), .ss_size = 65536 };
	volatile int zero = 0, result;
	char *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int file = memfd_create("short", 0);
	char *beyond = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);
	struct itimerval often = { { 0, 2000 }, { 0, 2000 } }, never = { { 0, 0 }, { 0, 0 } };

	sigaltstack(&stack, NULL);
	catch(SIGSEGV);
	catch(SIGILL);
	catch(SIGFPE);
	catch(SIGBUS);
	catch(SIGTRAP);
	TRY("a null pointer", *(volatile int *)(uintptr_t)zero = 1);
	mprotect(page + 4096, 4096, PROT_READ);
	TRY("a read-only page", page[5000] = 1);
	printf("at the right place: %d\n", last.si_addr == page + 5000);
	TRY("ud2", __asm__ volatile("ud2"));
	TRY("int3", __asm__ volatile("int3"));
	TRY("a division", result = 5 / zero);
	TRY("beyond the file", result = beyond[0]);
	TRY("a privileged instruction", __asm__ volatile("hlt"));
	TRY("rdmsr", __asm__ volatile("rdmsr" : : "c"(0x10) : "eax", "edx"));
	TRY("a non-canonical address", result = *(volatile int *)0x8000000000000000);
	TRY("a page that may not be executed", ((void (*)(void))page)());

	/* A busy loop is interrupted, and does not notice. */
	signal(SIGALRM, on_alarm);
	setitimer(ITIMER_REAL, &often, NULL);
	uint64_t a = 1, b = 2;
	while (alarms < 20) {
		rounds++;
		__asm__ volatile("add %1, %0\n\tsub %1, %0\n\tcmp %1, %1\n\tsete %%cl\n\tmovzbq %%cl, %1"
				 : "+r"(a), "+r"(b) : : "rcx", "cc");
	}
	setitimer(ITIMER_REAL, &never, NULL);
	printf("20 alarms in a busy loop, which went well: %d %d\n", a == 1 && b == 1, rounds > 1000);
	(void)result;
	free(stack.ss_sp);
}

/* Threads */

#define THREADS 4
#define TIMES 20000

static atomic_int counter;
static int guarded, turns;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static __thread int own;

static void *thread(void *number)
{
	for (int i = 0; i < TIMES; i++) {
		atomic_fetch_add(&counter, 1);
		pthread_mutex_lock(&mutex);
		guarded++;
		pthread_mutex_unlock(&mutex);
		own++;
	}
	/* One after the other, round by round. */
	for (int round = 0; round < 50; round++) {
		pthread_mutex_lock(&mutex);
		while (turns % THREADS != (int)(intptr_t)number)
			pthread_cond_wait(&changed, &mutex);
		turns++;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&mutex);
	}
	return (void *)(intptr_t)own;
}

static void threads(void)
{
	pthread_t ids[THREADS];
	intptr_t sum = 0;

	for (intptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&ids[i], NULL, thread, (void *)i))
			die("pthread_create");
	for (int i = 0; i < THREADS; i++) {
		void *result;

		pthread_join(ids[i], &result);
		sum += (intptr_t)result;
	}
	printf("threads count %d, %d, %d, and take %d turns\n", counter, guarded, (int)sum, turns);
}

/* Code that changes */

typedef int (*number)(void);

static void put(unsigned char *code, int value)
{
	code[0] = 0xb8; /* mov $value, %eax; ret */
	memcpy(code + 1, &value, 4);
	code[5] = 0xc3;
}

static void changing_code(void)
{
	long sum = 0;
	unsigned char *code =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int file = memfd_create("code", 0);
	unsigned char *writable, *executable;

	for (int i = 0; i < 1000; i++) {
		put(code, i);
		sum += ((number)code)();
	}
	printf("code written in place: %ld\n", sum);

	sum = 0;
	for (int i = 0; i < 200; i++) {
		mprotect(code, 4096, PROT_READ | PROT_WRITE);
		put(code + i, i);
		mprotect(code, 4096, PROT_READ | PROT_EXEC);
		sum += ((number)(code + i))();
	}
	printf("code written in turn with executing it: %ld\n", sum);

	if (ftruncate(file, 4096))
		die("ftruncate");
	writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	executable = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
	sum = 0;
	for (int i = 0; i < 1000; i++) {
		put(writable + 100, i);
		sum += ((number)(executable + 100))();
	}
	printf("code written at another address: %ld\n", sum);

	/* The loop changes its own body: add $1 becomes add $3 half way. */
	static const unsigned char loop[] = {
		0xb9, 100, 0, 0, 0,             /* mov $100, %ecx */
		0x31, 0xc0,                     /* xor %eax, %eax */
		0x83, 0xc0, 1,                  /* 1: add $1, %eax */
		0x83, 0xf9, 51,                 /* cmp $51, %ecx */
		0x75, 7,                        /* jne 2f */
		0xc6, 0x05, 0xf3, 0xff, 0xff, 0xff, 3, /* movb $3, 1b+2(%rip) */
		0xff, 0xc9,                     /* 2: dec %ecx */
		0x75, 0xed,                     /* jnz 1b */
		0xc3,
	};
	mprotect(code, 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
	memcpy(code, loop, sizeof(loop));
	printf("a loop that rewrites itself: %d\n", ((number)code)());
}

/* Numbers */

static void numbers(void)
{
	double sum = 0, x = 1;
	float single = 0;
	long double wide = 0;
	uint64_t bits, random = 88172645463325252u, mixed = 0;
	unsigned __int128 product = 1;

	for (int i = 1; i < 20000; i++) {
		sum += 1.0 / i;
		single += 1.0f / (float)i;
		wide += 1.0L / i;
		x = x * 1.0000001 - 1e-9;
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		mixed += (uint64_t)((unsigned __int128)random * (random | 1) >> 64) ^ random % 1000003;
		product = product * 3 + random;
	}
	memcpy(&bits, &sum, 8);
	printf("doubles %016llx", (unsigned long long)bits);
	memcpy(&bits, &x, 8);
	printf(" %016llx", (unsigned long long)bits);
	uint32_t small;
	memcpy(&small, &single, 4);
	printf(", singles %08x, 80 bits %.18Lg", small, wide);
	double root;
	__asm__("sqrtsd %1, %0" : "=x"(root) : "x"(sum));
	memcpy(&bits, &root, 8);
	printf(", a root %016llx\n", (unsigned long long)bits);
	printf("integers %016llx %016llx%016llx\n", (unsigned long long)mixed,
	       (unsigned long long)(product >> 64), (unsigned long long)product);

	uint32_t lanes[4] = { 1, 2, 3, 4 };
	__asm__ volatile("movdqu (%0), %%xmm1\n\tpaddd %%xmm1, %%xmm1\n\tpshufd $0x1b, %%xmm1, %%xmm2\n\t"
			 "pmuludq %%xmm2, %%xmm1\n\tpxor %%xmm2, %%xmm1\n\tmovdqu %%xmm1, (%0)"
			 : : "r"(lanes) : "xmm1", "xmm2", "memory");
	printf("lanes %08x %08x %08x %08x\n", lanes[0], lanes[1], lanes[2], lanes[3]);
	long ebx_is_kept = 0;
	__asm__ volatile("int $0x80" : "=a"(ebx_is_kept) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
	printf("the 32-bit system call agrees: %d\n", ebx_is_kept == getpid());
}

/* Time */

static void times(void)
{
	struct timespec a, b, pause = { 0, 20000000 };
	int backwards = 0;

	clock_gettime(CLOCK_MONOTONIC, &a);
	for (int i = 0; i < 20000; i++) {
		clock_gettime(CLOCK_MONOTONIC, &b);
		backwards += b.tv_sec < a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec < a.tv_nsec);
		a = b;
	}
	nanosleep(&pause, NULL);
	clock_gettime(CLOCK_MONOTONIC, &b);
	long slept = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
	printf("time goes backwards %d times; a pause of 20 ms takes that long: %d\n", backwards,
	       slept >= 19 && slept < 2000);
}

/* MSRs */

static int msr(int argc, char **argv)
{
	int file = open("/dev/cpu/0/msr", argc > 3 ? O_WRONLY : O_RDONLY);
	off_t index = (off_t)strtoull(argv[2], NULL, 0);
	uint64_t value = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;
	ssize_t done;

	if (file < 0)
		die("/dev/cpu/0/msr");
	done = argc > 3 ? pwrite(file, &value, 8, index) : pread(file, &value, 8, index);
	if (done != 8)
		printf("%s %s: %s\n", argv[1], argv[2], strerror(errno));
	else
		printf("%s %s = 0x%llx\n", argv[1], argv[2], (unsigned long long)value);
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 2 && strcmp(argv[1], "child") == 0) {
		printf("%s %s", argv[2], argv[3]);
		return 42;
	}
	if (argc > 2)
		return msr(argc, argv);
	processes("/proc/self/exe");
	signals();
	threads();
	changing_code();
	numbers();
	times();
	return 0;
}
