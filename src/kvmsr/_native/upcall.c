/* SPDX-License-Identifier: Apache-2.0 */
/* Questions of a vCPU to Python in another process, and the answers. */
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "block.h"

static void wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

/* Wait until WORD is WANTED: 0, -EINTR for a signal, or -ETIMEDOUT. */
static int await(uint32_t *word, uint32_t wanted, unsigned int milliseconds)
{
	struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000l };
	uint32_t found = __atomic_load_n(word, __ATOMIC_ACQUIRE);

	if (found == wanted)
		return 0;
	int failed = syscall(SYS_futex, word, FUTEX_WAIT, found, &time, NULL, 0) ? errno : 0;

	if (__atomic_load_n(word, __ATOMIC_ACQUIRE) == wanted)
		return 0;
	return failed == EINTR ? -EINTR : -ETIMEDOUT;
}

/* Ask what shall happen to cpu->access; cpu->outcome says which rule wants to know. */
void kvmsr_ask(struct kvmsr_cpu *cpu)
{
	struct kvmsr_upcall *upcall = &cpu->shared->upcall;

	upcall->serial = cpu->serial;
	upcall->access = cpu->access;
	upcall->outcome = cpu->outcome;
	__atomic_store_n(&upcall->state, KVMSR_ASKED, __ATOMIC_RELEASE);
	wake(&upcall->state);
}

int kvmsr_await_answer(struct kvmsr_vcpu *vcpu, unsigned int milliseconds)
{
	return await(&vcpu->upcall.state, KVMSR_ANSWERED, milliseconds);
}

int kvmsr_await_question(struct kvmsr_vcpu *vcpu, unsigned int milliseconds)
{
	return await(&vcpu->upcall.state, KVMSR_ASKED, milliseconds);
}

void kvmsr_give_answer(struct kvmsr_vcpu *vcpu, uint8_t verdict, uint64_t value, uint32_t name)
{
	vcpu->upcall.outcome.verdict = verdict;
	vcpu->upcall.outcome.value = value;
	vcpu->upcall.outcome.name = name;
	vcpu->upcall.outcome.tell = 0;
	__atomic_store_n(&vcpu->upcall.state, KVMSR_ANSWERED, __ATOMIC_RELEASE);
	wake(&vcpu->upcall.state);
}
