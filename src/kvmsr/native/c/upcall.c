/* SPDX-License-Identifier: Apache-2.0 */
/* Questions of a vCPU to Python in another process, and the answers. */
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

/* Wait while WORD is FOUND: 0, -EINTR for a signal, or -ETIMEDOUT. */
static int await_change(uint32_t *word, uint32_t found, unsigned int milliseconds)
{
	struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000l };

	if (!syscall(SYS_futex, word, FUTEX_WAIT, found, &time, NULL, 0) || errno == EAGAIN)
		return 0;
	return errno == EINTR ? -EINTR : -ETIMEDOUT;
}

/* Ask what shall happen to cpu->access; cpu->outcome says which rule wants to know. */
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

/* Wait for the answer, which goes to cpu->outcome: 0; -EINTR for a signal; or -ETIMEDOUT. */
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

/* Nobody waits for the answer any more. */
void kvmsr_give_up(struct kvmsr_cpu *cpu)
{
	__atomic_store_n(&cpu->shared->upcall.state, cpu->question | KVMSR_IDLE, __ATOMIC_RELEASE);
}

/* Wait for a question, and return what kvmsr_give_answer wants to know of it; 0: there is none. */
uint32_t kvmsr_await_question(struct kvmsr_vcpu *vcpu, unsigned int milliseconds)
{
	uint32_t state = __atomic_load_n(&vcpu->upcall.state, __ATOMIC_ACQUIRE);

	if ((state & 3) != KVMSR_ASKED) {
		await_change(&vcpu->upcall.state, state, milliseconds);
		state = __atomic_load_n(&vcpu->upcall.state, __ATOMIC_ACQUIRE);
	}
	return (state & 3) == KVMSR_ASKED ? state : 0;
}

/* Answer; return 0 if nobody waits for it any more. */
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
