# SPDX-License-Identifier: Apache-2.0
"""
Hyper-V's interface
-------------------

What arch/x86/kvm/hyperv.c gives guests whose CPUID says Hyper-V: ``cpuid`` (what is offered, and
which feature bit allows what), ``partition`` (what a VM has), ``reference`` (the page by which
guests tell the time), ``synic`` and ``stimers`` (a vCPU's interrupt sources and timers), ``vcpu``
(all that a vCPU has), and ``hypercalls``. The MSRs are in ``msr.hyperv``. The names are those of
Microsoft's Hypervisor Top Level Functional Specification (TLFS).

There are no event ports (KVM_HYPERV_EVENTFD), no SINT routes, and nothing for nested guests.
"""
