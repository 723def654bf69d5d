/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions of a vCPU to Python in another process, and their answers.
 *
 * Some accesses need Python: a handler, a register model, the host's MSRs. Under `kvmsr exec` the
 * vCPU is in the VMM's process and Python in the controller's, so the question goes through the
 * shared block. Each vCPU's record has one struct kvmsr_upcall, because a vCPU waits for one access
 * at a time; and the controller has one thread for each record, which answers its questions in
 * order.
 *
 * Everything hangs on one word, `state`: the number of the question times 4, plus
 *
 *     KVMSR_IDLE      nothing is asked
 *     KVMSR_ASKED     the vCPU has written the question and waits
 *     KVMSR_ANSWERED  the controller has written the answer
 *
 * The word is a futex, and both sides sleep on it: the vCPU's thread while its question is ASKED,
 * the controller's thread while it is not. Each side writes its fields first and then the state
 * (release); the other reads the state (acquire) and then the fields. So a side that sees ASKED
 * sees the whole question, and a side that sees ANSWERED sees the whole answer.
 *
 * The vCPU may give its question up: if the controller has died, or if the VMM is about to set the
 * vCPU's state and Python has not answered for a second. It may then ask the next question while
 * Python is still busy with the old one. This is why questions are numbered. The controller puts
 * its answer in place with a compare-and-exchange from exactly the state that it read with the
 * question. If the vCPU has given that question up, the number or the state differs, the exchange
 * fails, and the late answer is dropped. The fields of the answer have been overwritten by then,
 * but nobody reads them before the state says ANSWERED, and the only thread that could set it is
 * the one that has just failed; it goes on to answer the new question. Numbers repeat only after
 * 2**30 questions, and a vCPU that takes over the record of a closed one goes on counting.
 *
 * Sleeping and waking costs more than most answers, so a side spins for SPIN_NS before it sleeps, if
 * there is more than one CPU. It learns: after a wait that was longer, it does not spin in the next
 * waits, first in 1, then in 3, 7 and so on, and after each wait that spinning was long enough for,
 * half as many. So spinning hardly costs anything if questions are rare, or if other work needs the
 * CPUs: a thread that spins then keeps the other side from running.
 *
 * A side that sleeps says so in `sleepers`, and the other one wakes it only then. The sleeper sets
 * its bit before it looks at the state for the last time (in the kernel), and the waker sets the
 * state before it looks at the bit; all of this is sequentially consistent, so no wake-up is lost.
 *
 * Every wait has a limit, in milliseconds, because not everything that ends it wakes the futex. The
 * vCPU has to notice that the controller has died or that the VMM wants its thread back (answer.c),
 * and the controller's thread that it was closed (attach/questions.py).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

#define SPIN_NS 30000
#define LONGEST_PAUSE 1000 /* waits */

/* Wake SLEEPER, after the state has changed, if it sleeps. */
static void wake(struct kvmsr_upcall *upcall, uint32_t sleeper)
{
	if (__atomic_load_n(&upcall->sleepers, __ATOMIC_SEQ_CST) & sleeper)
		syscall(SYS_futex, &upcall->state, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

/* Set how a new thread spins. This makes a system call, so not every thread may do it. */
void kvmsr_spin_init(struct kvmsr_spin *spin)
{
	cpu_set_t set;

	*spin = (struct kvmsr_spin){ 0 };
	spin->spare = !sched_getaffinity(0, sizeof(set), &set) && CPU_COUNT(&set) > 1;
}

static int changes(const uint32_t *state, uint32_t found)
{
	uint64_t end = kvmsr_now_ns() + SPIN_NS;

	do {
		for (int i = 0; i < 16; i++) {
			if (__atomic_load_n(state, __ATOMIC_ACQUIRE) != found)
				return 1;
			__builtin_ia32_pause();
		}
	} while (kvmsr_now_ns() < end);
	return 0;
}

/* Spin while the state is FOUND, and learn. Return whether it changed. */
static int spin(const uint32_t *state, uint32_t found, struct kvmsr_spin *spin)
{
	if (!spin->spare)
		return 0;
	if (spin->left) {
		spin->left--;
		return 0;
	}
	int changed = changes(state, found);

	spin->pause = changed ? spin->pause / 2 : spin->pause * 2 + 1;
	if (spin->pause > LONGEST_PAUSE)
		spin->pause = LONGEST_PAUSE;
	spin->left = changed ? 0 : spin->pause;
	return changed;
}

/*
 * Wait while the state is FOUND, as SLEEPER. Return 0 if it may have changed, -EINTR by a signal, or
 * -ETIMEDOUT.
 */
static int await_change(struct kvmsr_upcall *upcall, uint32_t found, uint32_t sleeper,
			struct kvmsr_spin *spins, unsigned int milliseconds)
{
	struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000l };

	if (spin(&upcall->state, found, spins))
		return 0;
	__atomic_or_fetch(&upcall->sleepers, sleeper, __ATOMIC_SEQ_CST);
	long result = syscall(SYS_futex, &upcall->state, FUTEX_WAIT, found, &time, NULL, 0);
	int error = errno;

	__atomic_and_fetch(&upcall->sleepers, ~sleeper, __ATOMIC_SEQ_CST);
	if (!result || error == EAGAIN)
		return 0;
	return error == EINTR ? -EINTR : -ETIMEDOUT;
}

/* Ask Python about cpu->access, for the rule in cpu->outcome. */
void kvmsr_ask(struct kvmsr_cpu *cpu)
{
	struct kvmsr_upcall *upcall = &cpu->shared->upcall;

	upcall->serial = cpu->serial;
	upcall->access = cpu->access;
	upcall->where = cpu->where;
	upcall->outcome = cpu->outcome;
	cpu->question = (cpu->question + 4) & ~3u;
	__atomic_store_n(&upcall->state, cpu->question | KVMSR_ASKED, __ATOMIC_SEQ_CST);
	wake(upcall, KVMSR_PYTHON_SLEEPS);
}

/* Wait for the answer. Return 0 if it is in cpu->outcome, -EINTR for a signal, or -ETIMEDOUT. */
int kvmsr_await_answer(struct kvmsr_cpu *cpu, unsigned int milliseconds)
{
	struct kvmsr_upcall *upcall = &cpu->shared->upcall;
	uint32_t asked = cpu->question | KVMSR_ASKED;
	int result = 0;

	if (__atomic_load_n(&upcall->state, __ATOMIC_ACQUIRE) == asked)
		result = await_change(upcall, asked, KVMSR_VCPU_SLEEPS, &cpu->spin, milliseconds);
	if (__atomic_load_n(&upcall->state, __ATOMIC_ACQUIRE) != (cpu->question | KVMSR_ANSWERED))
		return result ? result : -ETIMEDOUT;
	cpu->outcome = upcall->answer;
	__atomic_store_n(&upcall->state, cpu->question | KVMSR_IDLE, __ATOMIC_RELEASE);
	return 0;
}

/* Stop waiting for the answer. */
void kvmsr_give_up(struct kvmsr_cpu *cpu)
{
	__atomic_store_n(&cpu->shared->upcall.state, cpu->question | KVMSR_IDLE, __ATOMIC_RELEASE);
}

/*
 * Wait for a question, and copy it to *question. Return 0 if none came. The VMM may write nonsense
 * here at any time, so only the copy may be checked and used.
 */
int kvmsr_next_question(struct kvmsr_vcpu *vcpu, struct kvmsr_upcall *question,
			struct kvmsr_spin *spins, unsigned int milliseconds)
{
	struct kvmsr_upcall *upcall = &vcpu->upcall;
	uint32_t state = __atomic_load_n(&upcall->state, __ATOMIC_ACQUIRE);

	if ((state & 3) != KVMSR_ASKED) {
		await_change(upcall, state, KVMSR_PYTHON_SLEEPS, spins, milliseconds);
		state = __atomic_load_n(&upcall->state, __ATOMIC_ACQUIRE);
	}
	if ((state & 3) != KVMSR_ASKED)
		return 0;
	*question = *upcall;
	question->state = state;
	return 1;
}

/* Put question->outcome in place as the answer. Return 0 if the vCPU has given the question up. */
int kvmsr_give_answer(struct kvmsr_vcpu *vcpu, const struct kvmsr_upcall *question)
{
	struct kvmsr_upcall *upcall = &vcpu->upcall;
	uint32_t asked = question->state;

	upcall->answer = question->outcome;
	if (!__atomic_compare_exchange_n(&upcall->state, &asked, (asked & ~3u) | KVMSR_ANSWERED, 0,
					 __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return 0;
	wake(upcall, KVMSR_VCPU_SLEEPS);
	return 1;
}

/*
 * Give an answer, and wait for the next question. In one call, because Python's interpreter lock
 * changes hands at each.
 */
int kvmsr_answer_and_next(struct kvmsr_vcpu *vcpu, struct kvmsr_upcall *question,
			  struct kvmsr_spin *spins, unsigned int milliseconds)
{
	kvmsr_give_answer(vcpu, question);
	return kvmsr_next_question(vcpu, question, spins, milliseconds);
}
