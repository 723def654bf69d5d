# SPDX-License-Identifier: Apache-2.0
"""
MSRs
----

What is known about model-specific registers: :func:`catalog` and :func:`handled`.
"""

from kvmsr.msr.catalog import Catalog, HandledRange, Msr, catalog, handled

__all__ = ("Catalog", "HandledRange", "Msr", "catalog", "handled")
