/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answer an access of a VMM's guest: here, by Python in the controller, or by the VMM itself.
 *
 * The VMM called ioctl(KVM_RUN). If KVM returns an MSR exit, kvmsr_run_on() answers it and calls
 * KVM_RUN again, so the VMM only sees the exits that are its own.
 *
 * Python's answer may take long, and the VMM must be able to get its thread back meanwhile: it
 * kicks vCPUs by a signal, or by setting immediate_exit. Then KVM_RUN returns EINTR to the VMM, as
 * it does from KVM, with the access still `pending`. KVM has not completed the instruction either,
 * so the next KVM_RUN on this vCPU must come here first, and wait on for the same answer.
 */
#include <errno.h>

#include "shim.h"

#define SLICE_MS 10
#define PATIENCE_NS 1000000000ull

static int alone; /* the controller has died, so questions cannot be asked any more */

static const uint32_t kvm_reason[] = {
	[KVMSR_UNKNOWN] = KVM_MSR_EXIT_REASON_UNKNOWN,
	[KVMSR_INVALID] = KVM_MSR_EXIT_REASON_INVAL,
	[KVMSR_FILTER] = KVM_MSR_EXIT_REASON_FILTER,
};

/* Note what would have become of the access without kvmsr. */
static void ask_wish(const struct kvmsr_wish *wish, struct kvmsr_access *a)
{
	int denies = kvmsr_denies(&wish->filter, a->index, a->op);

	a->vmm_reasons = 0;
	for (int reason = 0; reason < 3; reason++)
		if (wish->reasons & kvm_reason[reason] && (reason != KVMSR_FILTER || denies))
			a->vmm_reasons |= 1 << reason;
	a->denied = denies && !(wish->reasons & KVM_MSR_EXIT_REASON_FILTER);
}

/*
 * Does the VMM want this thread to return from KVM_RUN? If the VMM lets KVM_RUN unblock signals
 * (KVM_SET_SIGNAL_MASK), one may be pending that cannot interrupt a wait here. Then assume that it
 * does: KVM_RUN may return EINTR at any time.
 */
static int kicked(const struct vcpu *vcpu)
{
	return vcpu->has_mask ||
	       __atomic_load_n(&vcpu->cpu.run->immediate_exit, __ATOMIC_RELAXED);
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
 * Wait for Python's answer. Return 0 if it is in cpu->outcome, or -EINTR if the VMM wants its
 * thread back. A signal that comes after kicked() has looked and before the wait begins does not
 * interrupt the wait, so each wait is short.
 *
 * LIMIT_NS limits the whole; 0 is no limit. With it, kicks are ignored. If the limit is reached or
 * the controller has died, the policy's on_error answers.
 */
static int await(struct vcpu *vcpu, uint64_t limit_ns)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;
	uint64_t end = limit_ns ? kvmsr_now_ns() + limit_ns : UINT64_MAX;

	for (;;) {
		int result = kvmsr_await_answer(cpu, SLICE_MS);

		if (!result)
			return 0;
		if (!kvmsr_lives(kvmsr_tables)) {
			alone = 1;
			break;
		}
		if (!limit_ns && (result == -EINTR || kicked(vcpu)))
			return -EINTR;
		if (kvmsr_now_ns() > end)
			break;
	}
	give_up(vcpu);
	return 0;
}

/*
 * Finding callers makes system calls that a thread need not be allowed: one that is confined
 * (seccomp(2)) would be killed. Only from outside one can see whether it is. So ask the controller,
 * once, and now: a thread that runs a vCPU is as confined as it will ever be.
 */
static void ask_to_read(struct vcpu *vcpu)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;

	vcpu->asked = 1;
	cpu->outcome = (struct kvmsr_outcome){ .verdict = KVMSR_MAY_READ, .rule = KVMSR_NONE };
	kvmsr_ask(cpu);
	for (uint64_t end = kvmsr_now_ns() + PATIENCE_NS; kvmsr_await_answer(cpu, SLICE_MS);)
		if (!kvmsr_lives(kvmsr_tables) || kvmsr_now_ns() > end) {
			kvmsr_give_up(cpu);
			return;
		}
	if (cpu->outcome.verdict == KVMSR_VALUE && cpu->outcome.value)
		cpu->memory = &vcpu->vm->memory;
}

/*
 * Answer the MSR exit in the kvm_run page. Return 0 to run on, 1 to hand the exit to the VMM, or
 * -EINTR if it has to wait.
 */
static int answer(struct vcpu *vcpu)
{
	struct kvmsr_cpu *cpu = &vcpu->cpu;

	if (!vcpu->pending) {
		if (unlikely(kvmsr_tables->reads && !vcpu->asked))
			ask_to_read(vcpu);
		kvmsr_take_access(cpu);
		if (unlikely(vcpu->vm->asked))
			ask_wish(&vcpu->vm->wish, &cpu->access);
		kvmsr_decide(cpu);
		if (cpu->outcome.verdict == KVMSR_TO_VMM) {
			cpu->run->msr.reason = kvm_reason[cpu->access.reason];
			return 1;
		}
		if (cpu->outcome.verdict == KVMSR_UPCALL || cpu->outcome.verdict == KVMSR_STOP) {
			if (alone) {
				give_up(vcpu);
			} else {
				vcpu->pending = 1;
				kvmsr_locate(cpu);
				kvmsr_ask(cpu);
			}
		}
	}
	if (vcpu->pending) {
		int result = await(vcpu, 0);

		if (result)
			return result;
		vcpu->pending = 0;
	}
	kvmsr_answer(cpu);
	return 0;
}

int kvmsr_run_on(struct vcpu *vcpu, int fd, void *argument)
{
	vcpu->cpu.fd = fd; /* the VMM may have closed the descriptor that it had at first */
	for (;;) {
		int result = answer(vcpu);

		if (result < 0) {
			vcpu->cpu.run->exit_reason = KVM_EXIT_INTR; /* as KVM does */
			return failed(result);
		}
		if (result)
			return 0;
		if (unlikely(vcpu->vm->generation != kvmsr_generation())) {
			result = kvmsr_renew(vcpu->vm);
			if (result)
				return failed(result);
		}
		long left = kvmsr_ioctl(fd, KVM_RUN, argument);

		if (left < 0)
			return failed(left);
		if (!kvmsr_is_msr_exit(vcpu->cpu.run))
			return left;
	}
}

/*
 * Complete a pending access, because the VMM is about to set the vCPU's state. Later, KVM would
 * complete it on top of the new state: it would advance RIP and, for a read, write RAX and RDX.
 * KVM_RUN with immediate_exit completes the instruction and does not run the guest.
 */
void kvmsr_finish(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->cpu.run;
	uint8_t kick = run->immediate_exit;

	await(vcpu, PATIENCE_NS);
	vcpu->pending = 0;
	kvmsr_answer(&vcpu->cpu);
	run->immediate_exit = 1;
	kvmsr_ioctl(vcpu->cpu.fd, KVM_RUN, NULL);
	run->immediate_exit = kick;
}
