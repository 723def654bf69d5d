# SPDX-License-Identifier: Apache-2.0
"""
The nested machine
------------------

An upstream KVM to test on, on any x86 Linux: a distribution's stock kernel with its unmodified
``kvm_amd``, booted under QEMU's software emulation, which emulates AMD's SVM. It takes seconds.

    python -m tests.nested -m tests.conformance --on own

runs this Python with these arguments inside. What is inside is this Python, its standard library,
``kvmsr`` and ``tests``, at the places where they are outside, and nothing else: no shell and no
other program. ``machine`` says how it is put together and run, ``init`` is its first process.
"""
