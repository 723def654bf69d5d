# SPDX-License-Identifier: Apache-2.0
"""
KVM's MSR path
--------------

What happens to one RDMSR or WRMSR in the kernel, with the kernel's names: ``path`` (emulation,
deflection, completion), ``filter``, ``access`` (what KVM does before and after a handler), the
handlers by family, and ``lists``. Nothing here knows the CPU engine: ``vcpu`` says what is asked
of a vCPU, and a scripted one will do.
"""
