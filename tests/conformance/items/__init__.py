# SPDX-License-Identifier: Apache-2.0
"""
Items
-----

The checklist itself, a module a subject. All modules here are loaded by
:func:`tests.conformance.registry.load`.

Unless an item says otherwise: all reasons enabled (mask 7), no filter, one vCPU in 64-bit mode at
CPL 0, no CPUID set, no in-kernel interrupt controller, and X is an MSR unknown to everybody.
"""
