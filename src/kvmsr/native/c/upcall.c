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
 * Every wait has a limit, in milliseconds, because not everything that ends it wakes the futex. The
 * vCPU has to notice that the controller has died or that the VMM wants its thread back (answer.c),
 * and the controller's thread that it was closed (attach/questions.py).
 */
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core.h"

void kvmsr_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

/* Sleep while WORD is FOUND. Return 0 if it may have changed, -EINTR by a signal, or -ETIMEDOUT. */
static int await_change(uint32_t *word, uint32_t found, unsigned int milliseconds)
{
	struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000l };

	if (!syscall(SYS_futex, word, FUTEX_WAIT, found, &time, NULL, 0) || errno == EAGAIN)
		return 0;
	return errno == EINTR ? -EINTR : -ETIMEDOUT;
}

/* Ask Python about cpu->access, for the rule in cpu->outcome. */
void kvmsr_ask(struct kvmsr_cpu *cpu)
{
	struct kvmsr_upcall *upcall = &cpu->shared->upcall;

	upcall->serial = cpu->serial;
	upcall->access = cpu->access;
	upcall->outcome = cpu->outcome;
	cpu->question = (cpu->question + 4) & ~3u;
	__atomic_store_n(&upcall->state, cpu->question | KVMSR_ASKED, __ATOMIC_RELEASE);
	kvmsr_wake(&upcall->state);
}

/* Wait for the answer. Return 0 if it is in cpu->outcome, -EINTR for a signal, or -ETIMEDOUT. */
int kvmsr_await_answer(struct kvmsr_cpu *cpu, unsigned int milliseconds)
{
	struct kvmsr_upcall *upcall = &cpu->shared->upcall;
	uint32_t asked = cpu->question | KVMSR_ASKED;
	int result = 0;

	if (__atomic_load_n(&upcall->state, __ATOMIC_ACQUIRE) == asked)
		result = await_change(&upcall->state, asked, milliseconds);
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

/* Wait for a question. Return the value that kvmsr_give_answer needs, or 0 if none came. */
uint32_t kvmsr_await_question(struct kvmsr_vcpu *vcpu, unsigned int milliseconds)
{
	uint32_t state = __atomic_load_n(&vcpu->upcall.state, __ATOMIC_ACQUIRE);

	if ((state & 3) != KVMSR_ASKED) {
		await_change(&vcpu->upcall.state, state, milliseconds);
		state = __atomic_load_n(&vcpu->upcall.state, __ATOMIC_ACQUIRE);
	}
	return (state & 3) == KVMSR_ASKED ? state : 0;
}

/* Answer a question. Return 0 if the vCPU has given it up. */
int kvmsr_give_answer(struct kvmsr_vcpu *vcpu, uint32_t question, uint8_t verdict, uint64_t value,
		      uint32_t name)
{
	struct kvmsr_upcall *upcall = &vcpu->upcall;
	uint32_t answered = (question & ~3u) | KVMSR_ANSWERED;

	upcall->answer = (struct kvmsr_outcome){
		.value = value, .rule = upcall->outcome.rule, .name = name, .verdict = verdict,
	};
	if (!__atomic_compare_exchange_n(&upcall->state, &question, answered, 0, __ATOMIC_ACQ_REL,
					 __ATOMIC_RELAXED))
		return 0;
	kvmsr_wake(&upcall->state);
	return 1;
}
