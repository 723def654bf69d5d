# SPDX-License-Identifier: Apache-2.0
"""
The conformance suite
---------------------

KVM's user-space MSR interface as a checklist: one item is one statement about it, with a number.

The same items run on every KVM there is: the host's, the soft backend under each of its profiles,
and an upstream KVM in a virtual machine of our own (``tests/nested``). Where kernels differ, the
item asks :class:`tests.conformance.kernel.Kernel` what to expect; it is never left out silently.
"Not applicable" is an outcome with a reason.

    python -m tests.conformance             everything that is here, as a table
    python -m tests.conformance --on kvm    the host's KVM alone
    python -m tests.conformance --help

Nothing here needs more than Python's standard library, because inside the nested machine there is
no more. ``tests/conformance/test_conformance.py`` hands the same items to pytest.
"""
