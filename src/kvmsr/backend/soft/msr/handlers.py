# SPDX-License-Identifier: Apache-2.0
"""
All handlers
------------

What a KVM handles in the kernel, by vendor module: its own handlers first, then the common ones.
"""

import functools

from kvmsr.backend.soft.msr import apic, common, hyperv, mce, mtrr, pv
from kvmsr.backend.soft.msr.table import Handlers
from kvmsr.backend.soft.msr.vendor import VENDORS

__all__ = ("handlers",)


@functools.cache
def handlers(vendor: str) -> Handlers:
    """Return what a KVM with this vendor module handles."""
    found = Handlers()
    for table in (common.TABLE, mtrr.TABLE, mce.TABLE, pv.TABLE, hyperv.TABLE, apic.TABLE):
        found.update(table)
    found.update(VENDORS[vendor])
    return found
