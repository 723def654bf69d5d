# SPDX-License-Identifier: Apache-2.0
"""
Results of an access
--------------------

The codes that KVM's handlers return (``KVM_MSR_RET_*`` of arch/x86/kvm/x86.h).
"""

from enum import IntEnum

__all__ = ("MsrRet",)


class MsrRet(IntEnum):
    """What came of an access: done, illegal, unknown, or denied by the filter."""

    __hash__ = int.__hash__  # an enumeration's own is Python: slow, on the way of every access

    OK = 0
    INVALID = 1
    UNSUPPORTED = 2
    FILTERED = 3
