/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recognise that the guest is reset, or that the VMM loads a saved state into it.
 *
 * KVM has no notion of either: the VMM sets the state of stopped vCPUs. At a reset it sets vCPU 0 to
 * what an x86 CPU is at power-on: real mode, with CS at 0xffff0000 and RIP 0xfff0 (SDM volume 3,
 * table 10-1). QEMU does so before it loads a snapshot, too, and then sets the snapshot's state. So
 * the two show as
 *
 *     power-on state, KVM_RUN                a reset
 *     power-on state, other state, KVM_RUN   a load
 *
 * What was set before vCPU 0 ran for the first time is not a reset: that was the power-on itself.
 */
#include "shim.h"

#define CR0_PE 1

static void reset(struct vcpu *vcpu)
{
	if (vcpu->ran)
		kvmsr_reset(vcpu->vm->shared, 0);
}

/* The VMM has set a vCPU's state by REQUEST. */
void kvmsr_new_state(struct vcpu *vcpu, unsigned long request, const void *argument)
{
	const struct kvm_sregs *sregs = argument; /* struct kvm_sregs2 begins alike */

	if (vcpu->cpu.access.vcpu)
		return;
	switch (request) {
	case KVM_SET_SREGS:
	case KVM_SET_SREGS2:
		vcpu->reset.sregs = sregs->cs.base == 0xffff0000 && !(sregs->cr0 & CR0_PE);
		break;
	case KVM_SET_REGS:
		vcpu->reset.regs = ((const struct kvm_regs *)argument)->rip == 0xfff0;
		break;
	case KVM_SET_MP_STATE:
		if (((const struct kvm_mp_state *)argument)->mp_state == KVM_MP_STATE_INIT_RECEIVED)
			reset(vcpu);
		return;
	default:
		return;
	}
	vcpu->touched = 1;
	if (vcpu->reset.sregs && vcpu->reset.regs) {
		if (!vcpu->reset.seen)
			reset(vcpu);
		vcpu->reset.seen = 1;
	} else if (vcpu->reset.seen) {
		vcpu->reset.seen = 0;
		__atomic_add_fetch(&vcpu->vm->shared->loads, 1, __ATOMIC_RELAXED);
	}
}

/* The vCPU enters the guest after the VMM has set its state. */
void kvmsr_about_to_run(struct vcpu *vcpu)
{
	vcpu->touched = 0;
	vcpu->ran = 1;
	vcpu->reset.sregs = vcpu->reset.regs = vcpu->reset.seen = 0;
}
