/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program's signals while the backend works for it.
 *
 * They are held back in the thread that it works in, and their handlers run afterwards, as they do
 * after a system call; the backend looks which ones wait. The kernel gives a signal for the whole
 * process to its first thread, unless that blocks it. So that it also does while that thread is in
 * KVM_RUN, handlers are wrapped: the thread that gets such a signal instead passes it on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "soft.h"

#define BIT(number) (1ull << ((number) - 1))
/* What an instruction itself raises cannot wait. */
#define NOW (BIT(SIGSEGV) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGABRT) | BIT(SIGSYS))

static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

static __attribute__((constructor)) void find_real(void)
{
	real_sigaction = (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(
		RTLD_NEXT, "sigaction");
}

/*
 * Hold signals back in this thread, and return what was blocked before. By the system call, for the C
 * library spares its own signals: pthread_cancel(3) must not end a thread that has Python's lock,
 * either.
 */
uint64_t soft_hold(void)
{
	uint64_t before = 0, held = ~NOW;

	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &held, &before, sizeof(held));
	return before;
}

void soft_let_go(uint64_t before)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof(before));
}

/* What the first thread does not block, while it is in KVM_RUN: else nothing. */
static uint64_t wanted_by_first;

static int is_first(void)
{
	return syscall(SYS_gettid) == getpid();
}

/* This thread enters KVM_RUN, where BLOCKED are blocked. */
void soft_runs(uint64_t blocked)
{
	if (is_first())
		__atomic_store_n(&wanted_by_first, ~blocked & ~NOW, __ATOMIC_SEQ_CST);
}

void soft_returns(void)
{
	if (is_first())
		__atomic_store_n(&wanted_by_first, 0, __ATOMIC_SEQ_CST);
}

/* The program's actions, for the signals whose action is handle(). */
static struct sigaction actions[_NSIG + 1];

/* Codes that only the kernel may give are passed on as this minus the code. */
enum { PASSED_ON = -4096 };

static int pass_on(int number, siginfo_t info)
{
	int before = errno;

	if (info.si_code >= 0)
		info.si_code = PASSED_ON - info.si_code;
	long failed = syscall(SYS_rt_tgsigqueueinfo, getpid(), getpid(), number, &info);

	errno = before;
	return !failed;
}

static void handle(int number, siginfo_t *info, void *context)
{
	int is_for_process = info->si_code != SI_TKILL;
	uint64_t wanted = __atomic_load_n(&wanted_by_first, __ATOMIC_SEQ_CST);

	if (is_for_process && wanted & BIT(number) && !is_first() && pass_on(number, *info))
		return;
	if (info->si_code <= PASSED_ON)
		info->si_code = PASSED_ON - info->si_code;
	if (actions[number].sa_flags & SA_SIGINFO)
		actions[number].sa_sigaction(number, info, context);
	else
		actions[number].sa_handler(number);
}

static int has_handler(const struct sigaction *action)
{
	return action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN;
}

int soft_sigaction(int number, const struct sigaction *action, struct sigaction *former)
{
	struct sigaction wrapped, found, own;

	if (!real_sigaction)
		find_real();
	if (number < 1 || number > _NSIG || BIT(number) & NOW)
		return real_sigaction(number, action, former);
	own = actions[number];
	if (action && has_handler(action)) {
		wrapped = *action;
		wrapped.sa_sigaction = handle;
		wrapped.sa_flags |= SA_SIGINFO;
		actions[number] = *action; /* before it is needed */
	}
	if (real_sigaction(number, action && has_handler(action) ? &wrapped : action, &found)) {
		actions[number] = own;
		return -1;
	}
	if (former && found.sa_flags & SA_SIGINFO && found.sa_sigaction == handle) {
		*former = own;
		former->sa_mask = found.sa_mask;
	} else if (former) {
		*former = found;
	}
	return 0;
}

static sighandler_t set(int number, sighandler_t handler, int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags }, former;

	if (!(flags & SA_NODEFER))
		sigaddset(&action.sa_mask, number);
	return soft_sigaction(number, &action, &former) ? SIG_ERR : former.sa_handler;
}

sighandler_t soft_signal(int number, sighandler_t handler)
{
	return set(number, handler, SA_RESTART);
}

sighandler_t soft_sysv_signal(int number, sighandler_t handler)
{
	return set(number, handler, SA_RESETHAND | SA_NODEFER);
}

ALSO(soft_sigaction, sigaction);
ALSO(soft_sigaction, __sigaction);
ALSO(soft_signal, signal);
ALSO(soft_signal, bsd_signal);
ALSO(soft_signal, ssignal);
ALSO(soft_sysv_signal, sysv_signal);
ALSO(soft_sysv_signal, __sysv_signal);
